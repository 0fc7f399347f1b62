"""``potstill runs``: the runs in a folder, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli import show
from potstill.cli.options import Json
from potstill.core.errors import UsageError
from potstill.tasks import headline
from potstill.tasks.kinds import word

HELPED = {"yes": "helped", "no": "did not help", "unclear": "unclear"}
FURTHER = ("balanced_accuracy", "auc")  # of the distilled student, beside the headline metric
DIFFERS = 60  # characters of what differs between runs; --json has all of it
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
        metric = run.get("metric") or headline(str(run.get("task")))
        rows.append(
            [
                str(run["name"]),
                str(run["status"]),
                word(metric),
                *(show.score(metric, run.get(model)) for model in ("teacher", "alone", "distilled")),
                _helped(run),
                show.megabytes(run.get("bytes")),
                str(run.get("created") or show.NOTHING)[:16].replace("T", " "),
            ]
        )
    header = ["run", "status", "metric", "teacher", "alone", "distilled", "distillation", "MB", "created"]
    further = [name for name in FURTHER if any(name in _scores(run) for run in found)]
    at = header.index("distilled") + 1
    header[at:at] = [word(name) for name in further]
    for row, run in zip(rows, found, strict=True):
        row[at:at] = [show.score(name, _scores(run).get(name)) for name in further]
    if any(run.get("differs") for run in found):
        header.append("differs in")
        rows = [[*row, _differs(run.get("differs") or {})] for row, run in zip(rows, found, strict=True)]
    show.table(header, rows, right=[3, 4, 5, *range(at, at + len(further)), header.index("MB")])
    damaged = [str(run["name"]) for run in found if run["status"] == "damaged"]
    if damaged:
        show.echo(f"The run.json of {', '.join(damaged)} cannot be read. Its `potstill run` command makes it again.")


def _scores(run: Mapping[str, Any]) -> Mapping[str, float]:
    """Return all scores of a run's distilled student."""
    scores: Mapping[str, float] = (run.get("metrics") or {}).get("distilled") or {}
    return scores


def _differs(settings: Mapping[str, Any]) -> str:
    """Return the settings that are not equal in all runs, the last part of each name where that says it all."""
    ends = [name.rpartition(".")[2] for name in settings]
    named = {name: end if ends.count(end) == 1 else name for name, end in zip(settings, ends, strict=True)}
    text = ", ".join(f"{named[name]}={_plain(value)}" for name, value in settings.items())
    return text if len(text) <= DIFFERS else f"{text[: DIFFERS - 1]}…"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value, ensure_ascii=False, default=str)


def _helped(run: Mapping[str, Any]) -> str:
    from potstill.evaluation.verdict import SEEDS_FOR_A_CLAIM

    verdict, seeds = str(run.get("verdict") or show.NOTHING), run.get("seeds")
    return (THIS if seeds is not None and seeds < SEEDS_FOR_A_CLAIM else HELPED).get(verdict, verdict)
