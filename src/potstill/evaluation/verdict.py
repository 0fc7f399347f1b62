"""What the numbers say, in words: whether distillation helped, what the student keeps, whether it fits the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Helped = Literal["yes", "no", "unclear"]

SEEDS_FOR_A_CLAIM = 3
"""With fewer seeds a verdict is about the weights at hand, not about the method."""

NEGLIGIBLE = 0.005
"""A gain below this (half a point of accuracy, 0.005 of R2) is not worth having: if the whole interval lies below,
distillation did not help, and no further data are needed to say so."""


@dataclass(frozen=True)
class Difference:
    """A paired difference between two models and its 95 % interval, in the metric's own unit."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Limit:
    """One limit of the budget and what was measured against it.

    Attributes:
        name: what is limited, for example ``"exported file"``.
        limit: the largest allowed value.
        measured: the measured value.
        unit: of both, for example ``"MB"``.

    """

    name: str
    limit: float
    measured: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the measured value is within the limit (a value that is not a number is not)."""
        return self.measured <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The result in plain English.

    Attributes:
        headline: one short sentence.
        sentences: the numbers behind it, one statement each.
        helped: whether distillation beat training alone. ``yes``: the 95 % interval of the difference lies above 0.
            ``no``: it lies below 0, or includes 0 and nothing worth having (`NEGLIGIBLE`). ``unclear`` otherwise.
        fits_budget: whether every limit is met; None when there is none.

    """

    headline: str
    sentences: tuple[str, ...]
    helped: Helped
    fits_budget: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data."""
        return {
            "headline": self.headline,
            "sentences": list(self.sentences),
            "helped": self.helped,
            "fits_budget": self.fits_budget,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` wrote."""
        return Verdict(value["headline"], tuple(value["sentences"]), value["helped"], value["fits_budget"])


def judge(
    *,
    metric: str,
    scores: Mapping[str, Mapping[str, float]],
    to_alone: Difference,
    to_teacher: Difference | None,
    parameters: Mapping[str, int | None],
    num_seeds: int,
    num_examples: int,
    calibration: Difference | None = None,
    to_member: tuple[str, Difference] | None = None,
    limits: Sequence[Limit] = (),
) -> Verdict:
    """Put the numbers into words.

    Args:
        metric: what the verdict is about, ``"accuracy"`` or ``"r2"``.
        scores: ``"teacher"``, ``"alone"``, ``"distilled"`` -> metric name -> value.
        to_alone: the metric's difference distilled - alone.
        to_teacher: the metric's difference distilled - teacher; None where there was no separate teacher.
        parameters: ``"teacher"`` and ``"distilled"`` -> number of parameters, or None where nobody can count them.
        num_seeds: seeds of each student.
        num_examples: test examples.
        calibration: the calibration error's difference distilled - alone; None where there is none.
        to_member: a merged teacher's best member on these examples, and the metric's difference merged - member.
        limits: the budget, measured.

    """
    helped = _helped(to_alone)
    sentences = [_gain(metric, to_alone, num_seeds)]
    if to_teacher is not None:
        sentences.append(_kept(metric, scores["distilled"][metric], scores["teacher"][metric], to_teacher, parameters))
    if metric == "r2":
        own, *rest = [
            f"{name} {_number(scores[model]['rmse'])}"
            for name, model in (("", "distilled"), ("trained alone", "alone"), ("teacher", "teacher"))
            if model in scores
        ]
        sentences.append(f"Its typical error (RMSE, in the target's unit) is{own}; {', '.join(rest)}.")
    if to_member is not None:
        sentences.append(_merged(metric, *to_member))
    if calibration is not None and calibration.clear:
        change = "less well" if calibration.low > 0 else "better"
        sentences.append(
            f"Its confidence is {change} calibrated than that of the student trained alone: calibration error "
            f"{scores['distilled']['ece']:.3f} against {scores['alone']['ece']:.3f}."
        )
    if num_seeds < SEEDS_FOR_A_CLAIM:
        sentences.append(
            f"With {_count(num_seeds, 'seed')} this is about these trained weights only: training again could come out "
            f"differently. Set seeds to {SEEDS_FOR_A_CLAIM} or more for a verdict on the method."
        )
    sentences += [_limit(limit) for limit in limits]
    sentences.append(
        f"All numbers are from the {_count(num_examples, 'example')} of the test split, read once; "
        "checkpoints were chosen on the validation split."
    )
    fits = all(limit.met for limit in limits) if limits else None
    headline = _headline(metric, helped, to_alone, num_seeds)
    if fits is not None:
        headline += " It fits the budget." if fits else " It does not fit the budget."
    return Verdict(headline, tuple(sentences), helped, fits)


def _helped(difference: Difference) -> Helped:
    if difference.low > 0:
        return "yes"
    return "no" if difference.high < NEGLIGIBLE else "unclear"


def _merged(metric: str, member: str, difference: Difference) -> str:
    found = "not clearly different from"
    if difference.clear:
        found = "better than" if difference.value > 0 else "worse than"
    return (
        f"The merged teacher is {found} its best member on these examples, {member}: "
        f"{_amount(metric, difference.value, sign=True)} (95 % interval {_interval(metric, difference)})."
    )


def _headline(metric: str, helped: Helped, difference: Difference, num_seeds: int) -> str:
    size = _amount(metric, abs(difference.value))
    if helped == "unclear":
        return "Not enough data to tell whether distillation helped."
    if helped == "no":
        how = (
            f"the student is {size} worse than the same student trained alone"
            if difference.high < 0
            else (
                f"the gain over the same student trained alone is at most {_amount(metric, max(difference.high, 0.0))}"
            )
        )
        return f"Distillation did not help: {how}."
    if num_seeds < SEEDS_FOR_A_CLAIM:
        return f"This distilled student is {size} better than this one trained alone."
    return f"Distillation helped: {size} more than the same student trained alone."


def _gain(metric: str, difference: Difference, num_seeds: int) -> str:
    about = f"(95 % interval {_interval(metric, difference)}, {_count(num_seeds, 'seed')})"
    if difference.clear:
        verb = "gains" if difference.value > 0 else "loses"
        over = "over" if difference.value > 0 else "against"
        size = _amount(metric, abs(difference.value))
        return f"The distilled student {verb} {size} {over} the same student trained alone {about}."
    size = _amount(metric, difference.value, sign=True)
    text = f"The distilled student differs by {size} from the same student trained alone {about}"
    if difference.high < NEGLIGIBLE:
        return f"{text}: no gain worth having is left in that interval."
    return f"{text}: that may be chance. More test examples or more seeds would narrow the interval."


def _kept(
    metric: str, student: float, teacher: float, difference: Difference, parameters: Mapping[str, int | None]
) -> str:
    word = _word(metric)
    own, others = parameters["distilled"] or 0, parameters["teacher"]
    size = f"{_share(own / others)} of its parameters" if others else f"{own:,} parameters"
    numbers = f"{_level(metric, student)} against {_level(metric, teacher)}"
    if teacher <= 0:
        return f"The teacher itself explains nothing ({word} {_level(metric, teacher)}); the student has {numbers}."
    if difference.low > 0:
        return f"It exceeds the teacher's {word} ({numbers}) at {size}."
    return f"It keeps {_share(student / teacher)} of the teacher's {word} ({numbers}) at {size}."


def _limit(limit: Limit) -> str:
    verdict = "within" if limit.met else "over"
    measured, allowed = (f"{_number(value)} {limit.unit}" for value in (limit.measured, limit.limit))
    return f"Measured for {limit.name}: {measured}, {verdict} the limit of {allowed}."


def _word(metric: str) -> str:
    return "R2" if metric == "r2" else metric


def _amount(metric: str, value: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    if metric == "r2":
        return f"{value:{plus}.3f} R2"
    digits = 1 if abs(value) >= 0.0095 else 2
    return f"{100 * value:{plus}.{digits}f} points of {metric}"


def _interval(metric: str, difference: Difference) -> str:
    if metric == "r2":
        return f"{difference.low:.3f} to {difference.high:.3f}"
    digits = 1 if abs(difference.value) >= 0.0095 else 2
    return f"{100 * difference.low:.{digits}f} to {100 * difference.high:.{digits}f}"


def _level(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric == "r2" else f"{100 * value:.1f} %"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if abs(value) >= 0.01 else f"{100 * value:.2g} %"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
