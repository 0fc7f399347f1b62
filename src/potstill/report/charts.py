"""The charts of scores and costs. Each takes plain records and returns an altair chart without size and style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from potstill.report.figures import DASHES, INK, LINE, PAGE, SOFT, Chart, altair, rows, series
from potstill.report.labels import place
from potstill.report.numbers import MODELS

PLOT_WIDTH, PLOT_HEIGHT = 330.0, 240.0  # pixels of a scatter's inside, between the wide and the narrow drawing
MOVED = 12.0  # pixels: a label further than this from its point gets a line to it
Records = list[dict[str, Any]]
HALO = {"stroke": PAGE, "strokeWidth": 4, "strokeJoin": "round"}  # keeps a label readable where it crosses a line


def axis_format(kind: str) -> str:
    """Return the number format of an axis for a metric's ``kind``."""
    return "~%" if kind == "percent" else "~g"


def score_rows(records: Records, *, kind: str, title: str) -> Chart:
    """Draw one row per model: a dot with its interval, small ticks for single seeds, the label above.

    Args:
        records: ``{"model", "label", "value", "low", "high", "seeds": [..]}``, top to bottom.
        kind: ``percent`` or ``number``.
        title: of the axis.

    """
    alt = altair()
    seeds = [{"model": r["model"], "label": r["label"], "value": seed} for r in records for seed in r["seeds"]]
    y = alt.Y("label:N", sort=[r["label"] for r in records], axis=None)
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=True, padding=14),
        axis=alt.Axis(format=axis_format(kind), tickCount=5),
    )
    base = alt.Chart(rows(records))
    colour = series()["color"]
    layers = [
        base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
            x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=colour
        ),
        base.mark_point(filled=True, size=95, opacity=1).encode(x=x, y=y, **series()),
        base.mark_text(align="left", dy=-19, fontWeight=600, **HALO).encode(
            x=alt.value(2), y=y, text="label:N", color=colour
        ),
    ]
    if seeds:
        layers.insert(
            1, alt.Chart(rows(seeds)).mark_tick(thickness=1.5, size=15, opacity=0.65).encode(x=x, y=y, color=colour)
        )
    return alt.layer(*layers)


def difference_rows(records: Records, *, kind: str, title: str) -> Chart:
    """Draw paired differences with their intervals around a marked zero; records as in `score_rows`."""
    alt = altair()
    factor = 100 if kind == "percent" else 1
    scaled = [{**r, **{key: factor * r[key] for key in ("value", "low", "high")}} for r in records]
    y = alt.Y("label:N", sort=[r["label"] for r in records], axis=None)
    base = alt.Chart(rows(scaled))
    reach = max([abs(r[key]) for r in scaled for key in ("low", "high")] + [1e-9])
    ends = [min(0.0, *(r["low"] for r in scaled)) - 0.12 * reach, max(0.0, *(r["high"] for r in scaled)) + 0.12 * reach]
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=ends, nice=True),
        axis=alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '+~g')", tickCount=5),
    )
    zero = alt.Chart(rows([{"value": 0}])).mark_rule(stroke=SOFT, strokeWidth=1.5).encode(x="value:Q")
    return alt.layer(
        zero,
        base.mark_rule(strokeWidth=2.5, strokeCap="round", stroke="var(--distilled)").encode(
            x=alt.X("low:Q", title=title), x2="high:Q", y=y
        ),
        base.mark_point(filled=True, size=95, opacity=1, fill="var(--distilled)").encode(x=x, y=y),
        base.mark_text(align="left", dy=-19, fontWeight=600, fill=INK, **HALO).encode(
            x=alt.value(2), y=y, text="label:N"
        ),
    )


def cost_scatter(records: Records, *, kind: str, cost_title: str, score_title: str, limit: float | None) -> Chart:
    """Draw score against cost, each point labelled, the budget's limit as a dashed line.

    Args:
        records: ``{"model", "label", "cost", "value", "low", "high", "file": bool}``; hollow points are files.
        kind: of the score.
        cost_title: of the horizontal axis.
        score_title: of the vertical axis.
        limit: the largest allowed cost.

    """
    alt = altair()
    costs = [r["cost"] for r in records] + ([limit] if limit else [])
    wide_range = max(costs) > 8 * min(costs)
    if wide_range:
        domain = [min(costs) / 1.6, max(costs) * 1.9]
        scale = alt.Scale(type="log", domain=domain, nice=False)
        axis = alt.Axis(values=round_steps(*domain), format="~g", grid=False)
    else:
        domain = [0, max(costs) * 1.25]
        scale, axis = alt.Scale(domain=domain, nice=False), alt.Axis(tickCount=4, grid=False)
    ends = [r[key] for r in records for key in ("value", "low", "high") if r[key] is not None]
    margin = 0.08 * ((max(ends) - min(ends)) or abs(max(ends)) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin

    def upright(field: str) -> Any:
        return alt.Y(
            field,
            title=score_title,
            scale=alt.Scale(domain=[low, high], nice=False, zero=False),
            axis=alt.Axis(format=axis_format(kind), tickCount=5),
        )

    def along(field: str) -> Any:
        return alt.X(field, title=cost_title, scale=scale, axis=axis)

    x, y = along("cost:Q"), upright("value:Q")

    def across(cost: float) -> float:
        share = math.log(cost / domain[0]) / math.log(domain[1] / domain[0]) if wide_range else cost / domain[1]
        return share * PLOT_WIDTH

    spots = [(across(r["cost"]), (high - r["value"]) / (high - low) * PLOT_HEIGHT) for r in records]
    places = place(spots, width=PLOT_WIDTH, height=PLOT_HEIGHT)
    placed = []
    for record, spot, own in zip(records, places, spots, strict=True):
        outer = spots[spot.beside]
        placed.append(
            {
                **record,
                "at": records[spot.beside]["cost"],
                "right": spot.right,
                "height": high - spot.y / PLOT_HEIGHT * (high - low),
                "moved": math.hypot(spot.y - own[1], outer[0] - own[0]) > MOVED,
            }
        )
    colour = series()["color"]

    def some(keep: str, value: bool) -> Chart:
        return alt.Chart(rows([record for record in placed if record[keep] == value]))

    layers = [
        alt.Chart(rows([r for r in placed if r["low"] is not None]))
        .mark_rule(strokeWidth=1.5, opacity=0.7)
        .encode(x=x, y=upright("low:Q"), y2="high:Q", color=colour),
        some("moved", True)
        .mark_rule(strokeWidth=1, opacity=0.6)
        .encode(x=x, y=y, x2="at:Q", y2="height:Q", color=colour),
        some("file", False).mark_point(filled=True, size=100, opacity=1).encode(x=x, y=y, **series()),
        some("file", True).mark_point(filled=False, size=210, strokeWidth=1.8, opacity=1).encode(x=x, y=y, **series()),
        *(
            some("right", right)
            .mark_text(align=align, dx=dx, dy=1, **HALO)
            .encode(x=along("at:Q"), y=upright("height:Q"), text="label:N", color=colour)
            for right, align, dx in ((True, "left", 14), (False, "right", -14))
        ),
    ]
    if limit:
        mark = alt.Chart(rows([{"cost": limit, "text": "limit"}]))
        layers[:0] = [
            mark.mark_rule(stroke=SOFT, strokeDash=[4, 4]).encode(x=x),
            mark.mark_text(align="left", baseline="top", dx=5, fill=SOFT).encode(x=x, y=alt.value(0), text="text:N"),
        ]
    return alt.layer(*layers)


def round_steps(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten between two positive ends; fewer when they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [10.0**power * step for power in powers for step in (1, 2, 5)]
    inside = [value for value in every if low <= value <= high]
    tens = [value for value in inside if math.isclose(math.log10(value) % 1, 0, abs_tol=1e-9)]
    return tens if len(inside) > 8 and len(tens) >= 2 else inside


def epoch_lines(records: Records, *, kind: str, title: str, domain: Sequence[float] | None = None) -> Chart:
    """Draw one line per model and seed over epochs; records are ``{"model", "seed", "epoch", "value"}``."""
    alt = altair()
    bounds = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), nice=False)
    last_epoch = max(r["epoch"] for r in records)
    return (
        alt.Chart(rows(records))
        .mark_line(clip=True, strokeWidth=2, opacity=0.9, point=last_epoch <= 3)
        .encode(
            x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1, tickCount=6, grid=False, format="d")),
            y=alt.Y("value:Q", title=title, scale=bounds, axis=alt.Axis(format=axis_format(kind), tickCount=5)),
            color=series()["color"],
            strokeDash=alt.StrokeDash("model:N", scale=alt.Scale(domain=list(MODELS), range=DASHES), legend=None),
            detail="seed:N",
        )
    )


def reliability_lines(records: Records) -> Chart:
    """Draw accuracy against confidence, ``{"model", "confidence", "accuracy", "share"}``, with the ideal diagonal."""
    alt = altair()
    unit = alt.Scale(domain=[0, 1])
    ideal = (
        alt.Chart(rows([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(stroke=SOFT, strokeDash=[4, 4], strokeWidth=1.2)
        .encode(x=alt.X("x:Q", scale=unit), y=alt.Y("y:Q", scale=unit))
    )
    base = alt.Chart(rows(records))
    x = alt.X("confidence:Q", title="Stated confidence", scale=unit, axis=alt.Axis(format=".0%", tickCount=5))
    y = alt.Y("accuracy:Q", title="Share that is right", scale=unit, axis=alt.Axis(format=".0%", tickCount=5))
    return alt.layer(
        ideal,
        base.mark_line(strokeWidth=1.5, opacity=0.75).encode(x=x, y=y, color=series()["color"]),
        base.mark_point(filled=True, opacity=1).encode(
            x=x, y=y, size=alt.Size("share:Q", scale=alt.Scale(domain=[0, 1], range=[22, 150]), legend=None), **series()
        ),
    )


def confusion_cells(records: Records, classes: Sequence[str], *, numbers: bool) -> Chart:
    """Draw the change of each confusion count: ``{"truth", "predicted", "change", "strength", "model", "text"}``."""
    alt = altair()
    order = list(classes)
    x = alt.X(
        "predicted:N",
        sort=order,
        title="Predicted class",
        axis=alt.Axis(
            labelAngle=0 if max(map(len, order)) <= 3 else -40, labelLimit=90, grid=False, ticks=False, domain=False
        ),
    )
    y = alt.Y(
        "truth:N", sort=order, title="True class", axis=alt.Axis(labelLimit=100, grid=False, ticks=False, domain=False)
    )
    base = alt.Chart(rows(records))
    layers = [
        base.mark_rect(stroke=LINE, strokeWidth=0.5).encode(
            x=x,
            y=y,
            fill=alt.Color(
                "model:N",
                scale=alt.Scale(domain=list(MODELS), range=[f"var(--{model})" for model in MODELS]),
                legend=None,
            ),
            fillOpacity=alt.FillOpacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0, 0.5]), legend=None),
        )
    ]
    if numbers:
        layers.append(base.mark_text(fontSize=11.5, fill=INK).encode(x=x, y=y, text="text:N"))
    return alt.layer(*layers)


def answer_rows(records: Records, order: Sequence[str], *, title: str) -> Chart:
    """Draw the true value and both models' answers of some samples: ``{"sample", "model", "value"}``."""
    alt = altair()
    y = alt.Y("sample:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=110, grid=True, ticks=False))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5, grid=False))
    models = [r for r in records if r["model"] != "truth"]
    truths = [r for r in records if r["model"] == "truth"]
    return alt.layer(
        alt.Chart(rows(truths)).mark_tick(thickness=2.5, size=17, color=INK, opacity=1).encode(x=x, y=y),
        alt.Chart(rows(models)).mark_point(filled=True, size=85, opacity=1).encode(x=x, y=y, **series()),
    )
