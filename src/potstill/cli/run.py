"""``potstill run``: the whole main job."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from potstill.cli import show
from potstill.cli.guard import repeated_command
from potstill.cli.options import Changes, Json, Out, Quiet, RecipeFile, Untrusted, default_out
from potstill.core.errors import ParityError

if TYPE_CHECKING:
    from potstill.pipeline import Run


def run(
    recipe: RecipeFile,
    out: Out = None,
    changes: Changes = None,
    json: Json = False,
    quiet: Quiet = False,
    untrusted: Untrusted = False,
) -> None:
    """Train, measure, export and report, in one folder.

    Finished stages are kept and a stopped run goes on where it was: give the same command again.

    \b
    Examples:
      potstill run digits.yaml
      potstill run digits.yaml --set training.epochs=3 --set seeds=3
      potstill run digits.yaml --out runs/small --set student.args.width=2
      potstill run digits.yaml --json > result.json
    """
    from potstill.recipe.yaml import read

    read_recipe = read(recipe, changes or (), untrusted=untrusted)
    if quiet or json:
        os.environ["POTSTILL_QUIET"] = "1"
    folder = out or default_out(recipe)
    with show.stdout_for_result(json or quiet):
        from potstill import pipeline

        finished = pipeline.run(read_recipe, out=folder, base=recipe.parent, command=repeated_command())
    if show.is_main_process() and not quiet:
        _print(finished, json=json)
    if show.is_main_process() and finished.refused_by_name:
        raise ParityError(f"{finished.refused_by_name} Everything else is finished: {show.short(finished.report)}")


def _print(finished: Run, *, json: bool) -> None:
    if json:
        show.print_json(finished.summary())
        return
    show.evaluation(finished.evaluation)
    show.echo()
    show.files({"report": finished.report, **finished.exported})
