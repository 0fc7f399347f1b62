"""The tables of the label page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.core.text import kind_and_column
from potstill.evaluation.labelling import LabelFacts
from potstill.report import numbers
from potstill.report.label_figures import PLACES
from potstill.report.scores import Cell, ScoreRow
from potstill.tasks.metrics import PER_COLUMN

Numbers = Mapping[str, Any]

MOST_CLASSES = 30  # rows of the table of classes


@dataclass(frozen=True)
class Table:
    """A table: the heads of its columns, and rows whose first cell is their own head."""

    heads: tuple[str, ...]
    rows: tuple[ScoreRow, ...]


def size(num_bytes: float | None) -> str:
    """Return a size in the unit that suits it: ``20 B``, ``13.4 kB``, ``0.29 MB``, ``5.1 GB``."""
    if num_bytes is not None and num_bytes < 1e3:
        return f"{f'{num_bytes:.0f}' if num_bytes >= 100 or num_bytes % 1 == 0 else f'{num_bytes:.1f}'}{numbers.THIN}B"
    if num_bytes is not None and num_bytes >= 1e9:
        return f"{numbers.significant(num_bytes / 1e9)}{numbers.THIN}GB"
    return numbers.megabytes(num_bytes)


def angle(value: float | None) -> str:
    """Return an angle: ``11.2°``, ``0.020°``."""
    if value is None:
        return numbers.DASH
    return f"{f'{value:.1f}' if value >= 1 else numbers.significant(value, 2)}°"


def fidelity_table(facts: LabelFacts) -> Table | None:
    """Return one row per codec that was tried on the probe set."""
    if not facts.fidelity:
        return None
    if "r2" in facts.fidelity[0]:
        kept = [
            ScoreRow(
                str(row["codec"]),
                "chosen" if row.get("chosen") else "",
                (Cell(size(row.get("bytes"))), Cell(f"{row['r2']:.4f}" if row["r2"] > 0 else "none")),
            )
            for row in facts.fidelity
        ]
        return Table(("Form", "Size", "R² of stored against said"), tuple(kept))
    rows = [
        ScoreRow(
            str(row["codec"]),
            "chosen" if row.get("chosen") else "",
            (
                Cell(size(row.get("bytes"))),
                Cell(numbers.significant(row.get("kl"), 2)),
                Cell(angle(row.get("angle"))),
                Cell(numbers.significant(row.get("norm_ratio"))),
                Cell(share(row.get("uncovered"))),
            ),
        )
        for row in facts.fidelity
    ]
    heads = ("Form", "Size", "Divergence, nats", "Gradient angle", "Gradient length", "Mass not covered")
    return Table(heads, tuple(rows))


def temperature_table(facts: LabelFacts) -> Table | None:
    """Return what a temperature does to the answers."""
    if not facts.temperatures:
        return None
    rows = [
        ScoreRow(
            f"{row['temperature']:g}",
            "",
            (Cell(f"{numbers.significant(row['entropy_bits'], 2)} bits"), Cell(share(row["off_top"]))),
        )
        for row in facts.temperatures
    ]
    return Table(("Temperature", "Entropy", "Probability off the top class"), tuple(rows))


def class_scores(facts: LabelFacts) -> Table:
    """Return the teacher's scores by split."""
    found = [_score_row(name, facts.splits) for name in ("accuracy", "nll", "ece")]
    measures = (
        ("majority", "Most frequent class", "accuracy of always answering it", "accuracy"),
        ("confidence", "Mean confidence", "probability of the class it names", "accuracy"),
        ("off_top", "Off the top class", "probability on all other classes", "accuracy"),
        ("entropy_bits", "Entropy", "in bits", "nll"),
        ("effective_classes", "Effective classes", "how many it wavers between, 2 to the entropy", "nll"),
    )
    found += [
        ScoreRow(label, meaning, tuple(Cell(numbers.score(kind, scores.get(key))) for scores in facts.splits.values()))
        for key, label, meaning, kind in measures
        if any(key in scores for scores in facts.splits.values())
    ]
    return Table(_split_heads(facts), tuple(row for row in found if row.cells))


def value_scores(facts: LabelFacts) -> Table:
    """Return the scores of a teacher of values by split."""
    kinds = ("r2", *PER_COLUMN)
    names = dict.fromkeys(name for scores in facts.splits.values() for name in scores)
    found = [_score_row(name, facts.splits) for name in names if kind_and_column(name)[0] in kinds]
    for key, label, meaning in (
        ("bias", "Mean error", "answer minus label"),
        ("mean", "Mean answer", ""),
        ("spread", "Spread of the answers", "standard deviation"),
    ):
        cells = tuple(
            Cell(", ".join(map(_beside, scores.get(key, [])[:4], scores["spread"])) or numbers.DASH)
            for scores in facts.splits.values()
        )
        found.append(ScoreRow(label, meaning, cells if any(key in s for s in facts.splits.values()) else ()))
    return Table(_split_heads(facts), tuple(row for row in found if row.cells))


def _beside(value: float, scale: float) -> str:
    """Return a number, without the rounding noise that is left where it is 0 beside ``scale``."""
    return numbers.significant(0.0 if abs(value) < 1e-9 * scale else value)


def _score_row(name: str, splits: Mapping[str, Numbers]) -> ScoreRow:
    metric = numbers.metric(name)
    if not any(name in scores for scores in splits.values()):
        return ScoreRow(metric.label, metric.meaning, ())
    cells = tuple(
        Cell(
            numbers.score(name, scores.get(name)),
            numbers.interval(name, tuple(scores[f"{name}_interval"])) if f"{name}_interval" in scores else "",
        )
        for scores in splits.values()
    )
    return ScoreRow(metric.label, metric.meaning, cells)


def _split_heads(facts: LabelFacts) -> tuple[str, ...]:
    return ("Measure", *(f"{PLACES[split].capitalize()}, {s['num']:,}" for split, s in facts.splits.items()))


def views_table(facts: LabelFacts) -> Table | None:
    """Return how far the answers depend on the view."""
    views = facts.views
    if views is None:
        return None
    rows = [
        ("Samples whose class changes", "in some view", views["samples_changed"], views["interval"]),
        ("Answers that differ from the first view", "", views["answers_changed"], None),
        ("Accuracy on the first view", "", views.get("accuracy_first"), None),
        ("Accuracy on further views", "", views.get("accuracy_further"), None),
    ]
    return Table(
        ("Measure", f"{views['num_views']} views"),
        tuple(
            ScoreRow(label, meaning, (Cell(share(value), numbers.interval("accuracy", bounds and tuple(bounds))),))
            for label, meaning, value, bounds in rows
            if value is not None
        ),
    )


def judged_split(facts: LabelFacts) -> str:
    """Return the split whose mistakes tell most: validation where the teacher was trained on the training samples."""
    labelled = [split for split, scores in facts.splits.items() if "accuracy" in scores]
    if not labelled:
        return ""
    return "validation" if facts.seen and "validation" in labelled else labelled[0]


def pairs_table(facts: LabelFacts) -> Table | None:
    """Return the most frequent mistakes of the split that tells most."""
    split = judged_split(facts)
    if not split or not facts.splits[split]["pairs"]:
        return None
    rows = [
        ScoreRow(
            f"{facts.classes[pair['label']]} → {facts.classes[pair['teacher']]}",
            "",
            (Cell(f"{pair['count']:,}"), Cell(share(pair["share"]))),
        )
        for pair in facts.splits[split]["pairs"]
    ]
    return Table(("Label → teacher", "Samples", "Of this label"), tuple(rows))


def class_table(facts: LabelFacts) -> Table | None:
    """Return the classes that the teacher finds least often."""
    split = judged_split(facts)
    if not split:
        return None
    rows = [row for row in facts.splits[split]["per_class"] if row["num"]]
    worst = sorted(rows, key=lambda row: row["recall"])[:MOST_CLASSES]
    return Table(
        ("Class", "Samples", "Found", "Right when named", "Mean confidence"),
        tuple(
            ScoreRow(
                str(facts.classes[row["class"]]),
                "",
                (
                    Cell(f"{row['num']:,}"),
                    Cell(share(row["recall"])),
                    Cell(share(row["precision"])),
                    Cell(share(row["confidence"])),
                ),
            )
            for row in worst
        ),
    )


def text_table(text: Numbers) -> Table:
    """Return the numbers of recorded texts."""
    entries = (
        ("Answers", f"{text['answers']:,}"),
        ("Without an answer", f"{text['failed']:,}"),
        ("Requests sent again", f"{text['retried']:,}"),
        ("Tokens sent", _whole(text["tokens_in"])),
        ("Tokens received", _whole(text["tokens_out"])),
        ("Cost", numbers.DASH if text["money"] is None else f"{text['money']:,.4g}"),
        ("Length, mean", f"{numbers.significant(text['mean_length'])} tokens"),
        ("Length, median and longest", f"{text['median_length']:,.0f} and {text['longest']:,} tokens"),
        ("With token probabilities", share(text["num_logprobs"] / text["answers"])),
        ("Log-probability of a token", _with_unit(text["mean_logprob"], f"{numbers.THIN}nats")),
    )
    return Table(("Measure", "Value"), tuple(ScoreRow(label, "", (Cell(value),)) for label, value in entries))


def reasons_table(text: Numbers) -> Table | None:
    """Return why the answers ended."""
    found = sorted(text["finish_reasons"].items(), key=lambda item: -item[1])
    if not found:
        return None
    rows = tuple(ScoreRow(why, "", (Cell(f"{n:,}"), Cell(share(n / text["answers"])))) for why, n in found)
    return Table(("Ended because", "Answers", "Share"), rows)


def share(value: float | None) -> str:
    """Return a share as a percentage, a small one with two digits that say something."""
    if value is None:
        return numbers.DASH
    small = 0 < abs(value) < 5e-4
    return f"{numbers.significant(100 * value, 2)}{numbers.THIN}%" if small else numbers.score("accuracy", value)


def _with_unit(value: float | None, unit: str) -> str:
    return numbers.DASH if value is None else f"{numbers.significant(value, 3)}{unit}"


def _whole(value: int | None) -> str:
    return numbers.DASH if value is None else f"{value:,}"
