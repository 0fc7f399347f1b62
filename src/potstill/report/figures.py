"""Drawing: an altair chart becomes inline SVG that follows the page's colours and the reader's screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from potstill.core.optional import require
from potstill.report.numbers import MODELS

WIDE, NARROW = 520, 330  # pixels: one of two columns on a desktop, one column on a phone
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, SOFT, LINE, PAGE = "var(--ink)", "var(--ink-soft)", "var(--line)", "var(--page)"
COLOURS = [f"var(--{model})" for model in MODELS]
SHAPES = ["square", "triangle-up", "diamond", "circle"]
DASHES = [[7, 3], [2, 3], [7, 3, 2, 3], [1, 0]]

Chart = Any  # an altair chart; altair is imported late, so its types are not known here


@dataclass(frozen=True)
class Figure:
    """One chart, drawn for a wide and a narrow screen.

    Attributes:
        title: what is shown.
        reading: one plain sentence on how to read it.
        svg: drawn ``WIDE`` pixels wide.
        svg_narrow: drawn ``NARROW`` pixels wide.

    """

    title: str
    reading: str
    svg: str
    svg_narrow: str


def altair() -> Any:
    """Return the altair module, or raise the error that says how to install it."""
    return require("altair", feature="writing the report", extra="report")


def draw(name: str, title: str, reading: str, alternative: str, build: Callable[[], Chart], *, height: int) -> Figure:
    """Draw one chart at both widths.

    Args:
        name: a short name, unique on the page.
        title: what is shown.
        reading: one plain sentence on how to read the chart.
        alternative: what the chart says, for a reader who cannot see it.
        build: returns the chart without size and style.
        height: pixels.

    """
    wide, narrow = (
        _svg(build(), width, height, prefix=f"{name}-{width}", alternative=alternative) for width in (WIDE, NARROW)
    )
    return Figure(title, reading, wide, narrow)


def series(**options: Any) -> dict[str, Any]:
    """Return the colour and shape encodings by the field ``model`` that every chart shares."""
    alt = altair()
    domain = list(MODELS)
    return {
        "color": alt.Color("model:N", scale=alt.Scale(domain=domain, range=COLOURS), legend=None),
        "shape": alt.Shape("model:N", scale=alt.Scale(domain=domain, range=SHAPES), legend=None),
        **options,
    }


def rows(records: list[dict[str, Any]]) -> Any:
    """Return plain records as altair data that stays inside the chart."""
    return altair().InlineData(values=records)


def _svg(chart: Chart, width: int, height: int, *, prefix: str, alternative: str) -> str:
    convert = require("vl_convert", feature="writing the report", extra="report")
    fitted = chart.properties(
        width=width, height=height, autosize=altair().AutoSizeParams(type="fit", contains="padding")
    )
    axis = {
        "domainColor": LINE,
        "gridColor": LINE,
        "tickColor": LINE,
        "labelColor": SOFT,
        "titleColor": SOFT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 5,
        "labelFlush": False,
        "tickSize": 4,
        "domain": False,
    }
    styled = fitted.configure(
        font=FONT,
        aria=False,
        background="transparent",
        padding=2,
        axis=axis,
        view={"stroke": None},
        text={"fill": INK, "fontSize": 12.5},
    )
    version = ".".join(altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    known = version if version in convert.get_vegalite_versions() else None
    return _inline(convert.vegalite_to_svg(styled.to_dict(), vl_version=known), prefix, alternative)


def _inline(svg: str, prefix: str, alternative: str) -> str:
    """Make a drawn SVG scale with its box, carry its own text alternative and keep its ids to itself."""
    match = re.match(r"<svg[^>]*?\bviewBox=\"([\d.\s-]+)\"[^>]*>", svg)
    if match is None:
        raise ValueError(f"the chart renderer returned no SVG with a viewBox: {svg[:80]!r}")
    width = match[1].split()[2]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{match[1]}" role="img" '
        f'aria-label="{escape(alternative)}" style="max-width:{width}px">'
    )
    ids: dict[str, str] = {}
    for found in re.findall(r'\bid="([^"]+)"', svg):
        ids.setdefault(found, f"{prefix}-{len(ids)}")
    body = svg[match.end() :]
    for old, new in ids.items():
        body = body.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    empty = r'<path class="(?:background|foreground)" aria-hidden="true" d="(?:M0,0h0v0h0Z)?"[^>]*/>'
    return opening + re.sub(empty, "", body)
