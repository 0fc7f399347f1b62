"""``potstill report``: write the page of a run again."""

from __future__ import annotations

from potstill.cli import show
from potstill.cli.options import RunFolder, existing_run


def report(run: RunFolder) -> None:
    """Write report.html of a run again.

    It is made from the files in the run folder; damaged ones are refused. Prints its path.

    \b
    Examples:
      potstill report runs/digits
    """
    folder = existing_run(run)
    from potstill.pipeline import rewrite_report

    show.echo(show.short(rewrite_report(folder)))
