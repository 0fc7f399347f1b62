"""``potstill runs``: the runs in a folder, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli import show
from potstill.cli.options import Json
from potstill.core.errors import UsageError

HELPED = {"yes": "helped", "no": "did not help", "unclear": "unclear"}
CLAIMS = 3  # seeds from which on a verdict is about the method
THIS = {"yes": "better", "no": "not better", "unclear": "unclear"}  # with one or two seeds: of these students only


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder, newest first.

    \b
    Examples:
      potstill runs
      potstill runs experiments --json
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. Name the folder that holds the run folders.")
    with show.stdout_for_result(json):
        from potstill import pipeline

        found = pipeline.find_runs(folder)
    if json:
        show.print_json({"runs": found})
        return
    if not found:
        show.echo(f"There are no runs in {folder}.")
        return
    rows = []
    for run in found:
        metric = run.get("metric") or ("r2" if run.get("task") == "regression" else "accuracy")
        rows.append(
            [
                str(run["name"]),
                str(run["status"]),
                show.METRIC_NAMES.get(metric, metric),
                *(show.score(metric, run.get(model)) for model in show.MODEL_NAMES),
                _helped(run),
                show.megabytes(run.get("bytes")),
                str(run.get("created") or show.NOTHING)[:16].replace("T", " "),
            ]
        )
    header = ["run", "status", "metric", "teacher", "alone", "distilled", "distillation", "MB", "created"]
    show.table(header, rows, right=[3, 4, 5, 7])


def _helped(run: Mapping[str, Any]) -> str:
    verdict, seeds = str(run.get("verdict") or show.NOTHING), run.get("seeds")
    return (THIS if seeds is not None and seeds < CLAIMS else HELPED).get(verdict, verdict)
