"""``potstill label`` of texts: asking a chat model, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli import show

if TYPE_CHECKING:
    from potstill.recipe.text import TextRecipe


def label_texts(
    recipe: TextRecipe, *, out: Path, base: Path, part: tuple[int, int] | None, json: bool, quiet: bool
) -> None:
    """Ask about every text, print the summary, and fail if there are rows without an answer."""
    from potstill.pipeline import label_text

    with show.stdout_for_result(json or quiet):
        summary = label_text.label_texts(recipe, out, part=part or (0, 1), base=base)
    if json:
        show.print_json(summary)
    elif not quiet:
        _print(summary)
    label_text.check_labelled(summary)


def _print(summary: Mapping[str, Any]) -> None:
    show.echo(f"{summary['answers']:,} of {summary['rows']:,} rows are answered, {summary['asked']:,} of them now")
    took = show.duration(summary["seconds"])
    show.echo(f"{took}, {show.number(summary['answers_per_second'])} answers/s, {summary['retried']:,} tries again")
    money = f", {summary['money']:,.4f} spent" if summary["money"] else ""
    show.echo(f"tokens: {summary['tokens_in']:,} in, {summary['tokens_out']:,} out{money}")
    if summary["accuracy"] is not None:
        show.echo(f"accuracy against the labels: {show.score('accuracy', summary['accuracy'])}")
    for finding in summary["findings"]:
        show.echo(f"warning: {finding}")
    if summary["store"] is not None:
        show.echo()
        show.files({"store": Path(summary["store"]), "page": Path(summary["page"])})
