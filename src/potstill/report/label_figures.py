"""The charts of the label page: how sure, how informative, how well stored, which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from potstill.report import numbers
from potstill.report.answers import FEWEST_PREDICTIONS, NUMBERED_CLASSES, unique_names
from potstill.report.charts import Records, confusion_cells, cost_scatter, reliability_lines
from potstill.report.figures import Chart, Figure, altair, draw, rows

Numbers = Mapping[str, Any]

PLACES = {"train": "training", "validation": "validation"}


def bars(records: Records, *, title: str, kind: str, colour: str) -> Chart:
    """Draw a histogram: ``{"low", "high", "share"}``; ``kind`` formats the horizontal axis."""
    alt = altair()
    ends = [records[0]["low"], records[-1]["high"]]
    return (
        alt.Chart(rows(records))
        .mark_bar(fill=f"var(--{colour})", binSpacing=1.5)
        .encode(
            x=alt.X(
                "low:Q",
                title=title,
                bin="binned",
                scale=alt.Scale(domain=ends, nice=False),
                axis=alt.Axis(format="~%" if kind == "percent" else ",~r", tickCount=6, grid=False),
            ),
            x2="high:Q",
            y=alt.Y("share:Q", title="Share", scale=alt.Scale(domainMin=0), axis=alt.Axis(format="~%", tickCount=5)),
        )
    )


def histogram_figure(
    name: str,
    title: str,
    reading: str,
    table: Numbers,
    *,
    axis: str,
    kind: str = "number",
    colour: str = "teacher",
    height: int = 240,
) -> Figure | None:
    """Draw ``{"edges", "counts"}``, or nothing when all counts are 0."""
    counts, edges = table["counts"], table["edges"]
    total = sum(counts)
    if not total:
        return None
    records = [
        {"low": low, "high": high, "share": count / total}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    top = max(records, key=lambda record: record["share"])
    told = (
        f"Histogram of {total:,} values; {numbers.score('accuracy', top['share'])} lie between "
        f"{numbers.significant(top['low'], 2)} and {numbers.significant(top['high'], 2)}."
    )
    return draw(name, title, reading, told, partial(bars, records, title=axis, kind=kind, colour=colour), height=height)


def teacher_figures(splits: Mapping[str, Numbers]) -> list[Figure]:
    """Return, by split: how sure the teacher is, and how often it is right when it is that sure."""
    found: list[Figure | None] = []
    for split, scores in splits.items():
        place = PLACES[split]
        found.append(
            histogram_figure(
                f"confidence-{split}",
                f"How sure the teacher is: {place}",
                f"Its probability of the class it names, over all {scores['num']:,} answers.",
                scores["confidence_histogram"],
                axis="Stated confidence",
                kind="percent",
                height=340,
            )
        )
        if "reliability" in scores:
            found.append(_reliability(split, scores))
    return [figure for figure in found if figure is not None]


def _reliability(split: str, scores: Numbers) -> Figure | None:
    table = scores["reliability"]
    points = [
        {"model": "teacher", "confidence": stated, "accuracy": right, "share": count / scores["num"]}
        for count, stated, right in zip(table["count"], table["confidence"], table["accuracy"], strict=True)
        if count >= FEWEST_PREDICTIONS
    ]
    if not points:
        return None
    return draw(
        f"reliability-{split}",
        f"Confidence against being right: {PLACES[split]}",
        "On the dashed line the teacher is right exactly as often as it says; below it, it is too sure of itself. "
        f"Larger dots stand for more answers; groups of fewer than {FEWEST_PREDICTIONS} are left out.",
        f"Reliability diagram. Calibration error {numbers.score('ece', scores['ece'])}.",
        lambda: reliability_lines(points),
        height=340,
    )


def entropy_figure(train: Numbers) -> Figure | None:
    """Return how much the answers say beyond their class."""
    return histogram_figure(
        "entropy",
        "What the answers say beyond their class",
        "Entropy of each training answer: 0 is a plain label, the right end is no opinion at all.",
        train["entropy_histogram"],
        axis="Bits",
    )


def wrong_figure(train: Numbers) -> Figure | None:
    """Return how sure the teacher is where it contradicts the label."""
    return histogram_figure(
        "wrong",
        "How sure the teacher is against the label",
        "The further right, the more likely that the label is wrong, or that the teacher is badly mistaken.",
        train["wrong_histogram"],
        axis="Stated confidence",
        kind="percent",
        colour="alone",
    )


def codec_figure(fidelity: Sequence[Numbers]) -> Figure | None:
    """Return fidelity against size by codec, when two codecs or more were measured."""
    measured = [row for row in fidelity if row.get("angle") is not None and row.get("bytes")]
    if len(measured) < 2:
        return None
    records = [
        {
            "model": "distilled" if row.get("chosen") else "teacher",
            "label": str(row["codec"]),
            "cost": row["bytes"],
            "value": row["angle"],
            "low": None,
            "high": None,
            "file": False,
        }
        for row in measured
    ]
    return draw(
        "codecs",
        "How true each form is, against its size",
        "Down is truer, left is smaller: the angle between a student's gradient from the stored and from the full "
        "answers. The blue dot is the form that was chosen.",
        "; ".join(
            f"{r['label']}: {numbers.significant(r['value'], 2)} degrees at {r['cost']:g} bytes" for r in records
        ),
        lambda: cost_scatter(
            records, kind="number", cost_title="Bytes", score_title="Gradient angle, degrees", limit=None
        ),
        height=300,
    )


def confusion_figure(table: Numbers, classes: Sequence[str], place: str) -> Figure | None:
    """Return which classes the teacher takes for which."""
    shown, counts = table["classes"], table["counts"]
    wrong = [count for i, row in enumerate(counts) for j, count in enumerate(row) if i != j]
    if not any(wrong):
        return None
    names = unique_names(classes)
    largest = max(wrong)
    records = [
        {
            "truth": names[shown[i]],
            "predicted": names[shown[j]],
            "change": count,
            "strength": 0.12 if i == j and count else min(count / largest, 1.0) if i != j else 0.0,
            "model": "distilled" if i == j else "alone",
            "text": f"{count:,}" if count and (i == j or count >= 0.15 * largest) else "",
        }
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
    ]
    return draw(
        "confusion",
        f"Which classes are taken for which, in {place} samples",
        "Rows are labels, columns the teacher's answers; the stronger the orange, the more frequent the mistake.",
        f"Confusion counts of {len(shown)} classes; the most frequent mistake occurs {largest:,} times.",
        lambda: confusion_cells(records, [names[i] for i in shown], numbers=len(shown) <= NUMBERED_CLASSES),
        height=min(520, 110 + 30 * len(shown)),
    )


def value_figures(splits: Mapping[str, Numbers]) -> list[Figure]:
    """Return the residuals of each split, or the values where there are no labels."""
    found = []
    for split, scores in splits.items():
        if "residual_histogram" in scores:
            unit = "" if scores["residual_unit"] == "target" else ", in spreads of the label"
            figure = histogram_figure(
                f"residuals-{split}",
                f"Answer minus label: {PLACES[split]}",
                "Around 0 the teacher is right; a heap beside 0 is a steady error. Beyond the ends counts at the ends.",
                scores["residual_histogram"],
                axis=f"Residual{unit}",
            )
        elif "value_histogram" in scores:
            figure = histogram_figure(
                f"values-{split}",
                f"The values the teacher gave: {PLACES[split]}",
                "Look for a pile at one value: a teacher that always says the same.",
                scores["value_histogram"],
                axis="Value",
            )
        else:
            figure = None
        if figure is not None:
            found.append(figure)
    return found


def length_figure(text: Numbers) -> Figure | None:
    """Return how long the texts are."""
    return histogram_figure(
        "lengths",
        "How long the answers are",
        "A pile at the right end is a sign that answers were cut off.",
        text["length_histogram"],
        axis="Tokens",
    )
