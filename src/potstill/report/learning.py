"""How the models learned: curves over epochs and one line per training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.report import numbers
from potstill.report.charts import epoch_lines
from potstill.report.figures import Figure, draw
from potstill.report.files import RunFiles
from potstill.report.numbers import MODEL_NAMES, model_name, short_name

MOST_POINTS = 160  # of one line: more are not visible at this width
REASONS = {"finished": "all epochs done", "patience": "no longer improving", "minutes": "time was up"}


@dataclass(frozen=True)
class TrainingRow:
    """One training in the table."""

    model: str
    label: str
    seed: str
    epochs: str
    best_epoch: str
    best: str
    time: str
    stopped: str


@dataclass(frozen=True)
class RatesRow:
    """What was tried before one training, and what was chosen."""

    arm: str
    chosen: str
    tried: str
    steps: str


@dataclass(frozen=True)
class Learning:
    """The section on training."""

    figures: tuple[Figure, ...]
    rows: tuple[TrainingRow, ...]
    metric: str
    models: tuple[str, ...]
    rates: tuple[RatesRow, ...]


def learning(files: RunFiles) -> Learning | None:
    """Return the section on training, or None when nothing was trained in this run."""
    if not files.trained:
        return None
    name = files.metric
    models = tuple(dict.fromkeys(one.model for one in files.trained))
    rates = tuple(_rates(files, name))
    return Learning(tuple(_figures(files, name)), tuple(_rows(files, name)), numbers.in_prose(name), models, rates)


def _rates(files: RunFiles, name: str) -> list[RatesRow]:
    rows = []
    for race in files.rates:
        tried = race.get("tried") or ()
        said = [
            f"{_setting(one)}: "
            + ("diverged" if one.get("validation") is None else numbers.score(name, numbers.finite(one["validation"])))
            for one in tried
        ]
        steps = f"{tried[0].get('steps')} of {race.get('training_steps')}" if tried else numbers.DASH
        said_in_all = ", ".join(said) or "too short to try any"
        rows.append(RatesRow(short_name(str(race.get("arm"))), _setting(race), said_in_all, steps))
    return rows


def _setting(record: Mapping[str, Any]) -> str:
    rate = numbers.finite(record.get("learning_rate"))
    return f"{record.get('optimizer')} {numbers.DASH if rate is None else format(rate, 'g')}"


def _rows(files: RunFiles, name: str) -> list[TrainingRow]:
    return [
        TrainingRow(
            model=one.model,
            label=model_name(one.model),
            seed=numbers.DASH if one.seed is None else str(one.seed),
            epochs=numbers.plain(numbers.finite(one.result.get("epochs", len(one.history)))),
            best_epoch=str(one.result.get("best_epoch", numbers.DASH)),
            best=numbers.score(name, numbers.finite(one.result.get("best_validation"))),
            time=numbers.seconds(numbers.finite(one.result.get("seconds"))),
            stopped=REASONS.get(str(one.result.get("stopped")), "not finished"),
        )
        for one in files.trained
    ]


def curve(files: RunFiles, field: str) -> list[dict[str, Any]]:
    """Return ``{"model", "seed", "epoch", "value"}`` of one history field, thinned to what a chart can show."""
    records = []
    for one in files.trained:
        points = [
            {"model": one.model, "seed": str(one.seed), "epoch": epoch, "value": value}
            for record in one.history
            if (value := numbers.finite(record.get(field))) is not None
            and (epoch := numbers.finite(record.get("epoch"))) is not None
        ]
        stride = max(1, -(-len(points) // MOST_POINTS))
        records += points[::-1][::stride][::-1]  # counted from the end, so that the last epoch is always kept
    return records


def close_up(records: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Return the range of values after the first fifth of the epochs, or None when everything should be shown.

    The first epochs of a training span most of the range and would press the interesting part flat.
    """
    last = max(record["epoch"] for record in records)
    late = [record["value"] for record in records if record["epoch"] >= 0.2 * last]
    everything = [record["value"] for record in records]
    if last < 8 or not late or max(late) - min(late) > 0.6 * (max(everything) - min(everything)):
        return None
    low, high = min(late), max(max(late), max(everything))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _figures(files: RunFiles, name: str) -> list[Figure]:
    metric = numbers.metric(name)
    found = []
    scores = curve(files, "validation_metric")
    if scores:
        domain = close_up(scores)
        best = "lowest" if metric.better == "lower" else "highest"
        cut = " The first epochs lie below the drawn range." if domain else ""
        found.append(
            draw(
                "validation",
                f"{metric.label} on the validation split",
                f"Each line is one training. The epoch with the {best} value is kept; of equal ones, the one of the "
                f"lowest loss.{cut}",
                f"Validation {numbers.in_prose(name)} by epoch. " + _ends(files, name),
                lambda: epoch_lines(scores, kind=metric.unit, title=metric.label, domain=domain),
                height=290,
            )
        )
    losses = curve(files, "train_loss")
    if losses:
        found.append(
            draw(
                "loss",
                "Training loss",
                "Compare shapes, not heights: alone and distilled students minimise different formulas."
                + (" Values are learned in standard units." if (files.data or {}).get("scale") else ""),
                "Training loss by epoch: "
                + "; ".join(
                    f"{MODEL_NAMES[record['model']]} ends at {numbers.significant(record['value'])}"
                    for record in {r["model"]: r for r in losses}.values()
                ),
                lambda: epoch_lines(losses, kind="number", title="Loss"),
                height=290,
            )
        )
    return found


def _ends(files: RunFiles, name: str) -> str:
    best = [
        f"{MODEL_NAMES[one.model]}{'' if one.seed is None else f', seed {one.seed}'}: best {numbers.score(name, value)}"
        for one in files.trained
        if (value := numbers.finite(one.result.get("best_validation"))) is not None
    ]
    return "; ".join(best)
