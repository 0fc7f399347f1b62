"""The numbers behind the answer: the table of the models and their charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from potstill.evaluation import Difference, EvaluationResult, ModelScores
from potstill.evaluation.result import ONNX_RUNTIME
from potstill.evaluation.verdict import baseline_of
from potstill.report import numbers
from potstill.report.charts import cost_scatter, difference_rows, score_rows
from potstill.report.figures import Figure, draw
from potstill.report.files import Record, RunFiles
from potstill.report.headline import good_files, latency, time_in
from potstill.report.numbers import MODEL_NAMES, MODELS, short_name
from potstill.tasks import headline

ModelCost = Callable[[ModelScores], float | None]
FileCost = Callable[[Record], float | None]


@dataclass(frozen=True)
class Cell:
    """One value of the table with its interval below."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class ScoreRow:
    """One metric for all models."""

    label: str
    meaning: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The table of the models: column heads, measured metrics, then costs."""

    columns: tuple[str, ...]  # names of models, and "change" for distilled minus alone
    metrics: tuple[ScoreRow, ...]
    costs: tuple[ScoreRow, ...]


def present(evaluation: EvaluationResult) -> list[ModelScores]:
    """Return the scores of teacher and students, as far as they were evaluated, teacher first."""
    return [evaluation.models[name] for name in MODELS if name in evaluation.models]


def others(evaluation: EvaluationResult) -> list[ModelScores]:
    """Return the scores of further models: members of a merged teacher, assistants of a chain."""
    return [scores for name, scores in evaluation.models.items() if name not in MODELS]


def score_table(files: RunFiles, evaluation: EvaluationResult) -> ScoreTable:
    """Return the table of the models: metrics with intervals, then what each model costs."""
    models = present(evaluation)[::-1]  # the student first: a phone shows two columns
    differences = evaluation.differences.get(f"distilled-{baseline_of(evaluation.models)}", {})
    columns = [one.name for one in models]
    at = columns.index("distilled") + 1
    columns[at:at] = ["change"] if differences else []
    names = list(dict.fromkeys([evaluation.headline_metric, *(name for one in models for name in one.metrics)]))
    metrics = [
        ScoreRow(
            numbers.metric(name).label,
            numbers.metric(name).meaning,
            tuple(
                _difference_cell(name, differences.get(name))
                if column == "change"
                else _score_cell(name, evaluation.models[column])
                for column in columns
            ),
        )
        for name in names
    ]
    return ScoreTable(
        columns=tuple(columns),
        metrics=tuple(metrics),
        costs=tuple(
            replace(row, cells=(*row.cells[:at], Cell(""), *row.cells[at:])) if differences else row
            for row in _cost_rows(models, next(iter(good_files(files)), None))
        ),
    )


def other_rows(evaluation: EvaluationResult) -> list[tuple[str, tuple[Cell, ...]]]:
    """Return one row a further model: its headline score, parameters, stored weights and time for one sample."""
    name = evaluation.headline_metric
    return [
        (
            numbers.model_name(one.name),
            (
                _score_cell(name, one),
                Cell(numbers.count(one.parameters)),
                Cell(numbers.megabytes(one.bytes)),
                Cell(numbers.milliseconds(latency(one.latency_ms)), f"in {one.runtime}" if one.latency_ms else ""),
            ),
        )
        for one in others(evaluation)
    ]


def _score_cell(name: str, scores: ModelScores) -> Cell:
    if name not in scores.metrics:
        return Cell(numbers.DASH)
    return Cell(numbers.score(name, scores.metrics[name]), numbers.interval(name, scores.intervals.get(name)))


def _difference_cell(name: str, found: Difference | None) -> Cell:
    if found is None:
        return Cell(numbers.DASH)
    better = numbers.metric(name).better
    if not found.clear:
        note = "no clear difference"
    elif better == "none":
        note = ""
    else:
        note = "better" if (found.value > 0) == (better == "higher") else "worse"
    return Cell(*numbers.difference(name, found.value, found.low, found.high), note)


def _cost_rows(models: list[ModelScores], file: Record | None) -> list[ScoreRow]:
    rows = [
        ScoreRow("Parameters", "trainable numbers", tuple(Cell(numbers.count(one.parameters)) for one in models)),
        ScoreRow("Operations", "of one answer", tuple(Cell(numbers.count(one.flops or None)) for one in models)),
        ScoreRow("Stored weights", "", tuple(Cell(numbers.megabytes(one.bytes)) for one in models)),
    ]
    runtimes = dict.fromkeys([*(one.runtime for one in models), ONNX_RUNTIME])
    for batch, label in ((1, "Time for 1 sample"), (32, "Time for 32 samples")):
        # One row a runtime: times of two runtimes say nothing of each other.
        for runtime in runtimes:
            times = [time_in(one, runtime, batch) for one in models]
            meaning = f"median, in {runtime}"
            if runtime == ONNX_RUNTIME and file is not None:
                measured = latency(file.get("latency_ms"), batch)
                times = [measured if one.name == "distilled" else time for one, time in zip(models, times, strict=True)]
                meaning += f", {file['file']}"
            if any(time is not None for time in times):
                rows.append(ScoreRow(label, meaning, tuple(Cell(numbers.milliseconds(time)) for time in times)))
    return rows


def score_figures(evaluation: EvaluationResult) -> list[Figure]:
    """Return the charts of the headline metric: each model, and the paired differences."""
    name = evaluation.headline_metric
    metric = numbers.metric(name)
    records = [
        _row(
            one.name,
            f"{MODEL_NAMES[one.name]}  {numbers.score(name, one.metrics[name])}",
            one.metrics[name],
            one.intervals.get(name),
            one.per_seed.get(name, ()) if len(evaluation.seeds) > 1 else (),
        )
        for one in present(evaluation)
        if name in one.metrics
    ]
    if not records:
        return []
    ticks = " Small ticks are single seeds." if any(record["seeds"] for record in records) else ""
    found = [
        draw(
            "scores",
            f"{metric.label} on the test split",
            f"The dot is the measured value; the line is its 95{numbers.THIN}% interval, the range the true value "
            f"plausibly lies in.{ticks}",
            "; ".join(f"{record['label']}" for record in records),
            lambda: score_rows(records, kind=metric.unit, title=metric.label),
            height=74 * len(records) + 45,
        )
    ]
    labels = {
        "distilled-alone": "Distilled against alone",
        "distilled-pseudo": "Distilled against the teacher's labels",
        "distilled-teacher": "Distilled against teacher",
    }
    labels |= {
        pair: f"Teacher against {pair.removeprefix('teacher-')}"
        for pair in evaluation.differences
        if pair.startswith("teacher-") and pair not in ("teacher-alone", "teacher-pseudo")
    }
    changes = [
        _row(
            pair.partition("-")[0],
            f"{label}  {numbers.difference(name, change.value, change.low, change.high)[0]}",
            change.value,
            (change.low, change.high),
        )
        for pair, label in labels.items()
        if (change := evaluation.differences.get(pair, {}).get(name)) is not None
    ]
    if changes:
        unit = "percentage points" if metric.percent else metric.label
        found.append(
            draw(
                "differences",
                "What distillation changed",
                "Right of the vertical line the distilled student is better. A difference is clear when its interval "
                "does not touch that line.",
                "; ".join(f"{record['label']}" for record in changes),
                lambda: difference_rows(changes, kind=metric.unit, title=f"Difference in {unit}"),
                height=74 * max(len(changes), 2) + 45,
            )
        )
    return found


def _row(
    model: str, label: str, value: float, bounds: tuple[float, float] | None, seeds: tuple[float, ...] = ()
) -> dict[str, Any]:
    low, high = bounds or (value, value)
    return {"model": model, "label": label, "value": value, "low": low, "high": high, "seeds": list(seeds)}


def cost_figures(files: RunFiles, evaluation: EvaluationResult) -> list[Figure]:
    """Return the charts of the headline score against size and against latency."""
    name = evaluation.headline_metric
    metric, budget = numbers.metric(name), files.recipe.get("budget") or {}
    reading = "Up is better, left is cheaper. Hollow marks are the exported files, as deployed."
    kinds: tuple[tuple[str, str, str, str, ModelCost, FileCost], ...] = (
        (
            "size",
            "Score against size",
            "Megabytes",
            "megabytes",
            lambda one: None if one.bytes is None else one.bytes / 1e6,
            lambda file: numbers.finite(file.get("bytes", 0) / 1e6),
        ),
        (
            "latency",
            "Score against time for one sample",
            "Milliseconds, median",
            "milliseconds",
            lambda one: latency(one.latency_ms),
            lambda file: latency(file.get("latency_ms")),
        ),
    )
    found = []
    for key, title, axis, limit_name, model_cost, file_cost in kinds:
        records = [
            {
                **_row(one.name, short_name(one.name), one.metrics[name], one.intervals.get(name)),
                "cost": cost,
                "file": False,
            }
            for one in present(evaluation)
            if name in one.metrics and (cost := model_cost(one))
        ]
        if not records:
            continue
        records += [
            {
                "model": "distilled",
                "label": str(file["format"]),
                "value": value,
                "low": None,
                "high": None,
                "cost": cost,
                "file": True,
            }
            for file in good_files(files)
            if name == headline(files.task)
            if (cost := file_cost(file)) and (value := numbers.finite(file.get("accuracy_file"))) is not None
        ]
        limit = numbers.finite(budget.get(limit_name))
        described = "; ".join(
            f"{r['label']}: {numbers.score(name, r['value'])} at {numbers.significant(r['cost'])} {axis.lower()}"
            for r in records
        )
        timed = {f"{numbers.model_name(one.name).lower()} in {one.runtime}" for one in present(evaluation)}
        where = f" Timed: {', '.join(sorted(timed))}, files in {ONNX_RUNTIME}." if key == "latency" else ""
        dashed = " The dashed line is the budget's limit." if limit else ""
        found.append(
            draw(
                key,
                title.replace("Score", metric.label),
                reading + where + dashed,
                described,
                partial(
                    cost_scatter, records, kind=metric.unit, cost_title=axis, score_title=metric.label, limit=limit
                ),
                height=300,
            )
        )
    return found
