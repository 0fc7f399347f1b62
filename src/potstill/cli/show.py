"""Printing: tables for people, plain aligned text for pipes, one JSON object for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from potstill.core.text import printable
from potstill.tasks.kinds import is_percent, word

if TYPE_CHECKING:
    from potstill.evaluation import EvaluationResult

NOTHING = "-"
_printed: list[bool] = []
MODEL_NAMES = {
    "teacher": "teacher",
    "alone": "student alone",
    "pseudo": "student on teacher's labels",
    "distilled": "student distilled",
}


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def is_main_process() -> bool:
    """Return whether this process is the one that prints, when several train together."""
    return os.environ.get("RANK", "0") == "0"


def echo(text: str = "") -> None:
    """Print a line on standard output."""
    typer.echo(printable(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Print rows under a header; drawn with rich on a terminal, aligned with spaces elsewhere.

    Args:
        header: column names.
        rows: as many texts a row as there are columns.
        right: numbers of the columns that are aligned to the right.

    """
    if not is_terminal():
        echo(plain_table(header, rows, right=right))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if number in right else "left")
    for row in rows:
        drawn.add_row(*(Text(printable(text)) for text in row))
    Console(highlight=False).print(drawn)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return the table as aligned text, columns two spaces apart."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = []
    for line in lines:
        cells = [
            text.rjust(widths[column]) if column in right else text.ljust(widths[column])
            for column, text in enumerate(line)
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that JSON does not have (NaN, infinities) become null."""
    echo(json.dumps(_json(value), indent=2, allow_nan=False))
    _printed.append(True)


def printed_objects() -> int:
    """Return how many JSON objects this process has printed."""
    return len(_printed)


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _json(value.item()) if hasattr(value, "item") else str(value)


@contextmanager
def stdout_for_result(wanted: bool) -> Iterator[None]:
    """Send what libraries print to standard error while the block runs, so that the JSON stays alone."""
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def evaluation(result: EvaluationResult) -> None:
    """Print the three models side by side, and the verdict."""
    metric = result.headline_metric
    rows = []
    runtimes = {scores.runtime for scores in result.models.values()}
    several = len(runtimes) > 1
    for name, scores in result.models.items():
        latency = (scores.latency_ms or {}).get("1", {})
        rows.append(
            [
                MODEL_NAMES.get(name, name),
                score(metric, scores.metrics.get(metric)),
                interval(metric, scores.intervals.get(metric)),
                count(scores.parameters),
                megabytes(scores.bytes),
                number(latency.get("p50")) + (f" in {scores.runtime}" if several and latency else ""),
            ]
        )
    table(["", word(metric), "95% interval", "parameters", "MB", "ms"], rows, right=range(1, 6))
    seeds = f", students averaged over {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    # The verdict's limits are about the exported file, which has another size and runtime.
    timed = "" if several else f", ms in {min(runtimes)}"
    echo(f"{result.num_examples:,} {result.split} samples{seeds}; MB of the weights{timed}")
    echo()
    echo(result.verdict.headline)
    for sentence in result.verdict.sentences:
        echo(f"  {sentence}")
    for warning in result.verdict.warnings:
        echo(f"  Warning: {warning}")


def files(paths: Mapping[str, Path | str]) -> None:
    """Print what lies where; a text is an address."""
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        echo(f"{name.ljust(width)}  {short(path) if isinstance(path, Path) else path}")


def short(path: Path) -> str:
    """Return ``path`` relative to the working folder where it lies inside it."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def score(metric: str, value: float | None) -> str:
    """Return a metric's value: shares as percentages, the rest as numbers."""
    if value is None or not math.isfinite(value):
        return NOTHING
    from potstill.evaluation import shown

    return f"{shown.level(metric, value)}{'%' if is_percent(metric) else ''}"


def interval(metric: str, bounds: Sequence[float] | None) -> str:
    """Return an interval of a metric."""
    if bounds is None:
        return NOTHING
    return f"{score(metric, bounds[0])} to {score(metric, bounds[1])}"


def number(value: float | None) -> str:
    """Return a number with three significant digits and no exponent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def count(value: int | None) -> str:
    """Return a whole number in full; nothing is known of some models."""
    return NOTHING if value is None else f"{value:,}"


def megabytes(num_bytes: float | None) -> str:
    """Return a size in megabytes (10^6 bytes), without the unit."""
    return NOTHING if num_bytes is None else number(num_bytes / 1e6)


def duration(seconds: float | None) -> str:
    """Return a duration: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
