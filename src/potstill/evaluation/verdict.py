"""What the numbers say, in words: whether distillation helped, what the student keeps, whether it fits the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from potstill.core.text import counted, kind_and_column
from potstill.evaluation.shown import change, level
from potstill.tasks.kinds import about, word

Helped = Literal["yes", "no", "unclear"]

SEEDS_FOR_A_CLAIM = 3
"""With fewer seeds a verdict is about the weights at hand, not about the method."""

NEGLIGIBLE = 0.005
"""A gain below this (half a point of accuracy, 0.005 of R2; of an error, that share of the error of the student alone)
is not worth having: it is not called a help, and if the whole interval lies below, no further data are needed to say
that distillation did not help."""

NARROWER = 0.85
"""Twice the seeds, or twice the test examples, are advised where they would leave at most this share of the width."""

RIVALS = {"alone": "trained alone", "pseudo": "trained on the teacher's labels"}
"""What the distilled student is compared with: the same student, trained otherwise."""

COLUMNS_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """A paired difference between two models and its 95 % interval, in the metric's own unit.

    Attributes:
        value: of the first minus of the second, averaged over the seeds.
        low: lower end of the interval.
        high: upper end.
        with_seeds: how wide the interval would be with twice the seeds, as a share of what it is; None where more seeds
            would answer another question (from one or two seeds it is about these weights), or nothing is known.
        with_examples: the same with twice the test examples.

    """

    value: float
    low: float
    high: float
    with_seeds: float | None = None
    with_examples: float | None = None

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
        measured: the measured value; None where it was not measured.
        unit: of both, for example ``"MB"``.

    """

    name: str
    limit: float
    measured: float | None
    unit: str

    @property
    def met(self) -> bool | None:
        """Whether the measured value is within the limit (not a number is not); None where it was not measured."""
        return None if self.measured is None else self.measured <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The result in plain English.

    Attributes:
        headline: one short sentence.
        sentences: the numbers behind it, one statement each.
        helped: whether distillation beat training alone; with one or two seeds, whether this distilled student beats
            this one trained alone. ``yes``: the 95 % interval of the gain lies above 0, and the gain is worth having
            (`NEGLIGIBLE`). ``no``: nothing worth having is left in the interval. ``unclear`` otherwise.
        fits_budget: whether every limit is met; None when there is none, or one was not measured and none is passed.
        warnings: what makes these numbers worth less, such as a teacher that is worse than the student alone.

    """

    headline: str
    sentences: tuple[str, ...]
    helped: Helped
    fits_budget: bool | None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data."""
        return {
            "headline": self.headline,
            "sentences": list(self.sentences),
            "helped": self.helped,
            "fits_budget": self.fits_budget,
            "warnings": list(self.warnings),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` wrote."""
        return Verdict(
            value["headline"],
            tuple(value["sentences"]),
            value["helped"],
            value["fits_budget"],
            tuple(value.get("warnings", ())),
        )


def baseline_of(models: Iterable[str]) -> str:
    """Return which student the distilled one is compared with: ``pseudo`` where there is no label to train alone on."""
    return "alone" if "alone" in models else "pseudo"


def judge(
    *,
    metric: str,
    scores: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Difference]],
    parameters: Mapping[str, int | None],
    num_seeds: int,
    num_examples: int,
    limits: Sequence[Limit] = (),
    remarks: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Verdict:
    """Put the numbers into words.

    Args:
        metric: what the verdict is about, a metric's name.
        scores: ``"teacher"``, ``"alone"``, ``"distilled"`` -> metric name -> value.
        differences: ``"distilled-alone"``, where labels are few ``"distilled-pseudo"`` and ``"pseudo-alone"`` (a
            student of the teacher's likeliest classes), with a separate teacher ``"distilled-teacher"``, and with
            further models ``"teacher-<name>"``, the merged teacher against its best member -> metric -> first minus
            second.
        parameters: ``"teacher"`` and ``"distilled"`` -> number of parameters, or None where nobody can count them.
        num_seeds: seeds of each student.
        num_examples: test examples.
        limits: the budget, measured.
        remarks: sentences to add before the last one.
        warnings: what makes the numbers worth less.

    """
    base = baseline_of(scores)
    rival, pair_of_students = RIVALS[base], f"distilled-{base}"
    gain = _gain_of(metric, differences[pair_of_students][metric])
    worth = NEGLIGIBLE if about(metric).rate or metric == "r2" else NEGLIGIBLE * abs(scores[base][metric])
    helped = _helped(gain, worth)
    sentences = [_gain(metric, gain, worth, num_seeds, rival)]
    enough = ""
    if base == "pseudo" and helped == "no":
        enough = (
            "The teacher's labels are better than its answers." if gain.high < 0 else "The teacher's labels are enough."
        )
    elif "distilled-pseudo" in differences and base == "alone":
        soft, hard = (_gain_of(metric, differences[pair][metric]) for pair in ("distilled-pseudo", "pseudo-alone"))
        sentences.append(_over_labels(metric, soft, hard, worth, num_seeds))
        enough = _labels_are_enough(soft, hard, worth)
    to_teacher = differences.get("distilled-teacher", {}).get(metric)
    if to_teacher is not None:
        pair = scores["distilled"][metric], scores["teacher"][metric]
        sentences.append(_kept(metric, *pair, _gain_of(metric, to_teacher), parameters))
    if metric == "r2":
        sentences += _typical_errors(scores)
    sentences += [
        _merged(metric, pair.removeprefix("teacher-"), _gain_of(metric, found[metric]))
        for pair, found in differences.items()
        if pair.startswith("teacher-teacher ")
    ]
    calibration = differences[pair_of_students].get("ece")
    if calibration is not None and calibration.clear and metric != "ece":
        way = "less well" if calibration.low > 0 else "better"
        sentences.append(
            f"Its confidence is {way} calibrated than that of the student {rival}: calibration error "
            f"{scores['distilled']['ece']:.3f} against {scores[base]['ece']:.3f}."
        )
    if num_seeds < SEEDS_FOR_A_CLAIM:
        sentences.append(
            f"With {counted(num_seeds, 'seed')} this is about these trained weights only: training again could come "
            f"out differently. Set seeds to {SEEDS_FOR_A_CLAIM} or more for a verdict on the method."
        )
    sentences += [*map(_limit, limits), *remarks]
    sentences.append(
        f"All numbers are from the {counted(num_examples, 'example')} of the test split, read once; "
        "checkpoints were chosen on the validation split."
    )
    headline = " ".join(filter(None, [_headline(metric, helped, gain, num_seeds, rival), enough, *_budget(limits)]))
    met = [limit.met for limit in limits]
    fits = False if False in met else None if None in met or not met else True
    return Verdict(headline, tuple(sentences), helped, fits, tuple(warnings))


def _gain_of(metric: str, difference: Difference) -> Difference:
    """Return a difference such that more is better."""
    if about(metric).higher_is_better:
        return difference
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


def _helped(gain: Difference, worth: float) -> Helped:
    if gain.low > 0 and gain.value >= worth:
        return "yes"
    return "no" if gain.high < worth else "unclear"


def _labels_are_enough(soft: Difference, hard: Difference, worth: float) -> str:
    """Return what to say in the headline where the teacher's likeliest classes do what its answers do."""
    if soft.high < 0:
        return "The teacher's labels are better than its answers."
    return "The teacher's labels are enough." if soft.high < worth and hard.low > 0 else ""


def _over_labels(metric: str, soft: Difference, hard: Difference, worth: float, num_seeds: int) -> str:
    """Return how the distilled student compares with one that learned the teacher's likeliest class of each sample."""
    behind = f"(95 % interval {_interval(metric, soft)}, {counted(num_seeds, 'seed')})"
    other = "the same student that learned the teacher's likeliest classes of the samples without a label"
    if soft.clear and soft.value > 0:
        gains = f"it gains {_amount(metric, soft)} {behind}"
        said = f"Against {other} {gains}: the teacher's answers say more than its labels."
    elif soft.clear:
        said = f"Against {other} it loses {_amount(metric, soft)} {behind}: train on the teacher's labels instead."
    elif soft.high < worth:
        said = f"Against {other} no gain worth having is left {behind}: the teacher's labels are enough."
    else:
        said = (
            f"From {other} it differs by {_amount(metric, soft, sign=True)} {behind}: that may be chance, so that the "
            "teacher's labels may do as well."
        )
    apart = f"{_amount(metric, hard, sign=True)} ({_interval(metric, hard)})"
    return f"{said} That student differs by {apart} from the one trained alone."


def _merged(metric: str, member: str, difference: Difference) -> str:
    found = "not clearly different from"
    if difference.clear:
        found = "better than" if difference.value > 0 else "worse than"
    return (
        f"The merged teacher is {found} its best member on these examples, {member}: "
        f"{_amount(metric, difference, sign=True)} (95 % interval {_interval(metric, difference)})."
    )


def _headline(metric: str, helped: Helped, gain: Difference, num_seeds: int, rival: str) -> str:
    size = _amount(metric, gain)
    most = _unit(metric, change(metric, gain.value, gain.low, max(gain.high, 0.0))[2])
    if num_seeds < SEEDS_FOR_A_CLAIM:
        if helped == "yes":
            return f"This distilled student is {size} better than this one {rival}."
        if gain.high < 0:
            return f"This distilled student is {size} worse than this one {rival}."
        if helped == "no":
            return f"This distilled student is at most {most} better than this one {rival}."
        if gain.low > 0:
            return f"This distilled student is {size} better than this one {rival}, perhaps too little to matter."
        return f"Not enough test examples to tell this distilled student from this one {rival}."
    if helped == "yes":
        more = "more" if about(metric).higher_is_better else "better"
        return f"Distillation helped: {size} {more} than the same student {rival}."
    if gain.high < 0:
        return f"Distillation did not help: the student is {size} worse than the same student {rival}."
    if helped == "no":
        return f"Distillation did not help: the gain over the same student {rival} is at most {most}."
    if gain.low > 0:
        return f"Distillation gained {size}, perhaps too little to matter."
    return "Not enough data to tell whether distillation helped."


def _budget(limits: Sequence[Limit]) -> list[str]:
    """Return what to say of the budget in the headline, if anything."""
    if any(limit.met is False for limit in limits):
        return ["It does not fit the budget."]
    if any(limit.met is None for limit in limits):
        return ["Whether it fits the budget was not measured."]
    return ["It fits the budget."] if limits else []


def _gain(metric: str, gain: Difference, worth: float, num_seeds: int, rival: str) -> str:
    size = _amount(metric, gain)
    behind = f"(95 % interval {_interval(metric, gain)}, {counted(num_seeds, 'seed')})"
    if gain.clear:
        better = gain.value > 0
        if about(metric).higher_is_better:
            verb, over = ("gains", "over") if better else ("loses", "against")
            text = f"The distilled student {verb} {size} {over} the same student {rival} {behind}"
        else:
            word = "better" if better else "worse"
            text = f"The distilled student is {size} {word} than the same student {rival} {behind}"
        least = _amount(metric, Difference(worth, worth, worth))
        small = f"; a gain below {least} is not worth having" if better and gain.value < worth else ""
        return f"{text}{small}. {_meaning(num_seeds)}"
    size = _amount(metric, gain, sign=True)
    text = f"The distilled student differs by {size} from the same student {rival} {behind}"
    if gain.high < worth:
        return f"{text}: no gain worth having is left in that interval. {_meaning(num_seeds)}"
    return f"{text}: that may be chance. {_meaning(num_seeds)}{_advice(gain)}"


def _meaning(num_seeds: int) -> str:
    """Return which question the interval answers."""
    if num_seeds < SEEDS_FOR_A_CLAIM:
        return "The interval is about these students on other examples like these."
    return "The interval is about the mean gain on other examples like these, trained again with other seeds."


def _advice(gain: Difference) -> str:
    """Return what would narrow the interval, where something would; each part of it is known from the numbers."""
    ways = (("test examples", gain.with_examples), ("seeds", gain.with_seeds))
    good = [(share, name) for name, share in ways if share is not None and share <= NARROWER]
    if not good:
        return ""
    first, *rest = [
        f"the {name} would narrow it to about {100 * share:.0f} % of its width" for share, name in sorted(good)
    ]
    return f" Twice {first}{''.join(f', twice {one}' for one in rest)}."


def weak_teacher(
    metric: str,
    scores: Mapping[str, Mapping[str, float]],
    to_student: Difference,
    *,
    balanced: tuple[float, float] | None,
    r2: tuple[float, float] | None,
    num_classes: int,
) -> list[str]:
    """Return the warnings about a teacher that has little to teach on the test split.

    Args:
        metric: the headline metric.
        scores: as in `judge`, with a teacher.
        to_student: the metric's difference from the student that the distilled one is compared with.
        balanced: the interval of the teacher's balanced accuracy; None for regression.
        r2: the interval of the teacher's R2; None for classification.
        num_classes: classes that the test split has examples of.

    """
    found, called, base = [], word(metric), baseline_of(scores)
    gain = _gain_of(metric, to_student)
    if gain.value < 0:
        sure = "" if gain.clear else ", though that may be chance"
        numbers = f"{_level(metric, scores['teacher'][metric])} against {_level(metric, scores[base][metric])}"
        found.append(
            f"The teacher is worse than the student {RIVALS[base]} ({called} {numbers}{sure}): "
            "a student that copies it perfectly loses by it."
        )
    if balanced is not None and balanced[0] <= 1 / max(num_classes, 1):
        found.append(
            f"The teacher is not clearly better than chance: balanced accuracy "
            f"{_level('balanced_accuracy', scores['teacher']['balanced_accuracy'])} (95 % interval "
            f"{100 * balanced[0]:.1f} to {100 * balanced[1]:.1f}), where guessing gives {100 / num_classes:.1f} %. "
            "Check its preprocessing, the order of its classes and that its weights were loaded."
        )
    if r2 is not None and r2[0] <= 0:
        found.append(
            f"The teacher is not clearly better than always answering the mean (R2 {scores['teacher']['r2']:.3f}, 95 % "
            f"interval {r2[0]:.3f} to {r2[1]:.3f}). Check the unit and order of its outputs, its preprocessing and its "
            "weights."
        )
    return found


def _typical_errors(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the typical error as a sentence, of several columns of each: of columns of unlike units there is no mean.

    Nothing is said where no error was measured.
    """

    names = [name for name in scores["distilled"] if kind_and_column(name)[0] == "rmse"]
    several = names != ["rmse"]

    def of(name: str) -> str:
        own, *rest = [
            f"{before}{level(name, scores[model][name])}"
            for before, model in (("", "distilled"), ("trained alone ", "alone"), ("teacher ", "teacher"))
            if model in scores
        ]
        return f"{own} ({', '.join(rest)})" if several else f"{own}; {', '.join(rest)}"

    if not several:
        return [f"Its typical error (RMSE, in the target's unit) is {of('rmse')}."]
    told = [f"{of(name)} in column {kind_and_column(name)[1]}" for name in names[:COLUMNS_NAMED]]
    more = f" ({len(names) - COLUMNS_NAMED} more columns in the table)" if len(names) > COLUMNS_NAMED else ""
    return [f"Its typical errors (RMSE, each in its column's unit) are {', '.join(told)}{more}."] if names else []


def exported_confidence(seed: int, temperature: float, *, raw: float, calibrated: float) -> str:
    """Return what to say of the exported student's probabilities, which are not the mean over the seeds.

    Args:
        seed: of that student.
        temperature: that its logits are divided by; 1 where none lowered log loss.
        raw: the calibration error of its logits as they are.
        calibrated: that of the logits divided by the temperature.

    """
    if temperature == 1:
        return (
            f"The probabilities of the exported student, seed {seed}, are those of its logits as they are: no "
            f"temperature lowered log loss on validation. Their calibration error is {raw:.3f}."
        )
    return (
        f"The probabilities of the exported student, seed {seed}, are calibrated by its temperature {temperature:.3g}, "
        f"fitted on validation: calibration error {calibrated:.3f}, without it {raw:.3f}."
    )


def _kept(metric: str, student: float, teacher: float, gain: Difference, parameters: Mapping[str, int | None]) -> str:
    called = word(metric)
    own, others = parameters["distilled"], parameters["teacher"]
    size = ""
    if own is not None:
        size = f" at {_share(own / others)} of its parameters" if others else f" at {own:,} parameters"
    numbers = f"{_level(metric, student)} against {_level(metric, teacher)}"
    if metric == "r2" and teacher <= 0:
        return f"The teacher itself explains nothing ({called} {_level(metric, teacher)}); the student has {numbers}."
    if gain.low > 0:
        return f"It exceeds the teacher's {called} ({numbers}){size}."
    if about(metric).of_teacher and teacher > 0 and student > 0:
        return f"It keeps {_share(student / teacher)} of the teacher's {called} ({numbers}){size}."
    comma = "," if size else ""
    return f"Its {called} is {_level(metric, student)}, the teacher's {_level(metric, teacher)}{comma}{size}."


def _limit(limit: Limit) -> str:
    if limit.measured is None:
        return f"Not measured for {limit.name}: the limit of {_number(limit.limit)} {limit.unit}."
    verdict = "within" if limit.met else "over"
    measured, allowed = told_apart(limit.measured, limit.limit)
    return f"Measured for {limit.name}: {measured} {limit.unit}, {verdict} the limit of {allowed} {limit.unit}."


def told_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers as text, with as many digits as it takes for different ones to look different."""
    texts = _number(one), _number(other)
    for digits in range(4, 18):
        if texts[0] != texts[1] or one == other:
            break
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
    return texts


def _amount(metric: str, gain: Difference, *, sign: bool = False) -> str:
    """Return a difference with its unit: its size, or with its sign."""
    text = change(metric, gain.value, gain.low, gain.high)[0]
    return _unit(metric, f"{'+' if gain.value >= 0 else ''}{text}" if sign else text.removeprefix("-"))


def _unit(metric: str, text: str) -> str:
    if about(metric).percent:
        return f"{text} points of {word(metric)}"
    return f"{text} {'' if about(metric).higher_is_better else 'of '}{word(metric)}"


def _interval(metric: str, difference: Difference) -> str:
    _, low, high = change(metric, difference.value, difference.low, difference.high)
    return f"{low} to {high}"


def _level(metric: str, value: float) -> str:
    return f"{level(metric, value)}{' %' if about(metric).percent else ''}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if abs(value) >= 0.01 else f"{100 * value:.2g} %"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
