"""The answer at a glance: the verdict's word, the key numbers and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.evaluation import EvaluationResult, Limit, ModelScores
from potstill.evaluation.result import ONNX_RUNTIME
from potstill.evaluation.verdict import SEEDS_FOR_A_CLAIM, baseline_of, told_apart
from potstill.export import recommended
from potstill.report import numbers
from potstill.report.files import RunFiles
from potstill.report.numbers import short_name
from potstill.tasks import headline

ANSWERS = {"yes": "Distillation helped", "no": "Distillation did not help", "unclear": "Not clear that it helped"}
THIS = {"yes": "This student is better", "no": "This student is not better", "unclear": "Not clear which is better"}


def answer(evaluation: EvaluationResult) -> str:
    """Return the verdict in a few words: about the method, or with one or two seeds about these students."""
    words = ANSWERS if len(evaluation.seeds) >= SEEDS_FOR_A_CLAIM else THIS
    return words.get(evaluation.verdict.helped, "")


@dataclass(frozen=True)
class KeyNumber:
    """One tile of the strip under the verdict."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Step:
    """One model in the first tile."""

    model: str
    label: str
    value: str


@dataclass(frozen=True)
class BudgetRow:
    """One limit and whether it is met."""

    name: str
    allowed: str
    measured: str
    met: bool | None  # None: not measured


def steps(evaluation: EvaluationResult) -> list[Step]:
    """Return the headline score of student alone, student distilled and teacher, in that order."""
    metric = evaluation.headline_metric
    names = [name for name in (baseline_of(evaluation.models), "distilled", "teacher") if name in evaluation.models]
    return [
        Step(
            name,
            short_name(name),
            numbers.score(metric, evaluation.models[name].metrics.get(metric)),
        )
        for name in names
    ]


def good_files(files: RunFiles) -> list[Mapping[str, Any]]:
    """Return the exported files that passed their parity check: the one to deploy, then the smallest."""
    budget = files.recipe.get("budget") or {}
    good = [file for file in files.exported if file.get("ok")]
    chosen = recommended(
        good, megabytes=numbers.finite(budget.get("megabytes")), milliseconds=numbers.finite(budget.get("milliseconds"))
    )
    return sorted(good, key=lambda file: (file["file"] != chosen, file.get("bytes") or 0))


def latency(record: Mapping[str, Mapping[str, float]] | None, batch: int = 1) -> float | None:
    """Return the median milliseconds of one call with ``batch`` samples, or None when it was not measured."""
    return numbers.finite(((record or {}).get(str(batch)) or {}).get("p50"))


def key_numbers(files: RunFiles, evaluation: EvaluationResult) -> list[KeyNumber]:
    """Return the tiles beside the headline score: parameters, megabytes, milliseconds."""
    student, teacher = evaluation.models.get("distilled"), evaluation.models.get("teacher")
    if student is None:
        return []
    best = next(iter(good_files(files)), None)
    size = best["bytes"] if best else student.bytes
    source = str(best["file"]) if best else "stored weights"
    kept = numbers.finite(best.get("accuracy_file")) if best else None
    metric = headline(files.task)
    # The file is of one seed and rounded; the scores of the first tile and the table are means over the seeds.
    quality = f"{numbers.in_prose(metric)} {numbers.score(metric, kept)} of this file" if kept is not None else ""
    tiles = [
        KeyNumber(
            "Parameters",
            numbers.count(student.parameters),
            _times(teacher.parameters if teacher else None, student.parameters, "fewer than the teacher"),
        ),
        KeyNumber(
            "Size",
            numbers.megabytes(size),
            _joined(source, quality, _times(teacher.bytes if teacher else None, size, "smaller than the teacher")),
        ),
    ]
    speed = latency(best.get("latency_ms")) if best else latency(student.latency_ms)
    if speed is not None:
        runtime = ONNX_RUNTIME if best else student.runtime
        note = _joined(f"{source} in {runtime}" if best else f"in {runtime}", _faster(teacher, speed, runtime))
        tiles.append(KeyNumber("One sample takes", numbers.milliseconds(speed), note))
    return tiles


def time_in(model: ModelScores, runtime: str, batch: int = 1) -> float | None:
    """Return the median milliseconds of one call in one runtime, or None where it was not measured there."""
    if runtime == model.runtime:
        return latency(model.latency_ms, batch)
    return latency(model.onnx_latency_ms, batch) if runtime == ONNX_RUNTIME else None


def _faster(teacher: ModelScores | None, speed: float, runtime: str) -> str:
    """Return how many times faster than the teacher in the same runtime, or what the teacher takes in another."""
    if teacher is None:
        return ""
    same, own = time_in(teacher, runtime), latency(teacher.latency_ms)
    if same is not None:
        return _times(same, speed, f"faster than the teacher in {runtime}")
    return "" if own is None else f"the teacher takes {numbers.milliseconds(own)} in {teacher.runtime}"


def _times(large: float | None, small: float | None, what: str) -> str:
    ratio = numbers.ratio(large, small)
    if ratio is None:
        return ""
    if ratio < 1.05:
        return f"not {what}"
    return f"{ratio:.{0 if ratio >= 10 else 1}f}{numbers.TIMES} {what}"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def budget_rows(files: RunFiles) -> list[BudgetRow]:
    """Return every limit of the recipe's budget against what was measured."""
    budget = files.recipe.get("budget") or {}
    found: list[Limit] = []
    minutes, megabytes, milliseconds = (
        numbers.finite(budget.get(name)) for name in ("minutes", "megabytes", "milliseconds")
    )
    times = [numbers.finite(one.result.get("seconds")) for one in files.trained if one.model == "distilled"]
    longest = max((time for time in times if time is not None), default=None)
    if minutes is not None and longest is not None:
        found.append(Limit("Training of one student", minutes, longest / 60, "min"))
    for file in good_files(files):
        if megabytes is not None and file.get("bytes"):
            found.append(Limit(f"Size of {file['file']}", megabytes, file["bytes"] / 1e6, "MB"))
        if milliseconds is not None:
            found.append(Limit(f"One sample with {file['file']}", milliseconds, latency(file.get("latency_ms")), "ms"))
    if files.evaluation and not good_files(files):
        found += [
            Limit("An exported file (there is none)", limit, None, unit)
            for limit, unit in ((megabytes, "MB"), (milliseconds, "ms"))
            if limit is not None
        ]
    return [_budget_row(limit) for limit in found]


def _budget_row(limit: Limit) -> BudgetRow:
    unit = f"{numbers.THIN}{limit.unit}"
    if limit.measured is None:
        return BudgetRow(limit.name, numbers.plain(limit.limit) + unit, "not measured", None)
    measured, allowed = told_apart(limit.measured, limit.limit)
    if measured == f"{limit.measured:.3g}":
        measured, allowed = numbers.significant(limit.measured), numbers.plain(limit.limit)
    return BudgetRow(limit.name, allowed + unit, measured + unit, _met(limit))


def _met(limit: Limit) -> bool | None:
    """Training stops at the first step after its time is up, so its time is met when it rounds to the limit."""
    if limit.unit == "min" and limit.measured is not None:
        return limit.measured <= 1.01 * limit.limit
    return limit.met
