"""``potstill evaluate``: the numbers and the verdict of a run again."""

from __future__ import annotations

from potstill.cli import show
from potstill.cli.options import Json, RunFolder, Untrusted, check_run, existing_run


def evaluate(run: RunFolder, json: Json = False, untrusted: Untrusted = False) -> None:
    """Compute the numbers and verdict of a run again.

    From the predictions that the run kept: nothing is trained and the test split is not read again.

    \b
    Examples:
      potstill evaluate runs/digits
      potstill evaluate runs/digits --json
    """
    folder = existing_run(run)
    check_run(folder, untrusted=untrusted)
    with show.stdout_for_result(json):
        from potstill import pipeline

        result = pipeline.evaluate(folder)
    if json:
        show.print_json(result.to_json())
    else:
        show.evaluation(result)
