"""Progress bars with rate and time left, only where standard error is a terminal; and sentences, always."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from potstill.core.text import printable

Advance = Callable[..., None]
"""``advance(amount=1, note="")``: report progress; ``note`` is a short text such as the current loss."""


def say(text: str) -> None:
    """Tell the user something on standard error, in any case: what is said here is not to be overlooked."""
    print(printable(text), file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """Tell the user something on standard error that is good to know; nothing where silence was asked for."""
    if not os.environ.get("POTSTILL_QUIET"):
        say(text)


@contextmanager
def progress(description: str, total: int | None, *, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """Show one progress bar on standard error while the block runs.

    Args:
        description: what is being done, for example ``"distilled, seed 0"``.
        total: how many units there are, or None when unknown.
        unit: the name of one unit in the rate column.
        done: units already finished by an earlier, interrupted run.

    """
    if not sys.stderr.isatty() or os.environ.get("POTSTILL_QUIET"):
        yield lambda _amount=1, **_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s", style="progress.data.speed")

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(printable(description), total=total, completed=done, note="")

        def advance(amount: int = 1, *, note: str = "") -> None:
            bar.update(task, advance=amount, note=printable(note))

        yield advance
