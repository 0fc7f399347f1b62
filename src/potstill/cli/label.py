"""``potstill label``: the recording alone."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli import show
from potstill.cli.guard import repeated_command
from potstill.cli.options import Changes, Json, Out, Quiet, RecipeFile, Untrusted, default_out
from potstill.core.errors import UsageError

if TYPE_CHECKING:
    from potstill.pipeline import Labelled

Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Record only the I-th of N parts, such as 2/4; others do the rest."),
]


def label(
    recipe: RecipeFile,
    out: Out = None,
    changes: Changes = None,
    shard: Shard = None,
    json: Json = False,
    quiet: Quiet = False,
    untrusted: Untrusted = False,
) -> None:
    """Record what the teacher says of the training samples, and describe it.

    It can be stopped at any moment: the same command goes on. 'potstill run' then finds the answers there. Parts
    recorded by machines that share a folder need nothing more; 'potstill store merge' puts other parts together.

    \b
    Examples:
      potstill label digits.yaml
      potstill label digits.yaml --set store.views=10
      potstill label digits.yaml --set store.shards=8 --shard 3/8
      potstill label digits.yaml --json > label.json
    """
    part = None if shard is None else _part(shard)
    from potstill.recipe.text import TextRecipe
    from potstill.recipe.yaml import read_for_label

    read_recipe = read_for_label(recipe, changes or (), untrusted=untrusted)
    if quiet or json:
        os.environ["POTSTILL_QUIET"] = "1"
    if isinstance(read_recipe, TextRecipe):
        from potstill.cli.label_text import label_texts

        folder = out or default_out(recipe)
        label_texts(read_recipe, out=folder, base=recipe.parent, part=part, json=json, quiet=quiet)
        return
    with show.stdout_for_result(json or quiet):
        from potstill import pipeline

        labelled = pipeline.label(
            read_recipe, out=out or default_out(recipe), base=recipe.parent, part=part, command=repeated_command()
        )
    if json:
        show.print_json(labelled.summary())
    elif show.is_main_process() and not quiet:
        _print(labelled, shard)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: give the part and how many there are, from 1/N to N/N, such as 2/4.")
    return int(match[1]) - 1, int(match[2])


def _print(labelled: Labelled, shard: str | None) -> None:
    if not labelled.finished:
        show.echo(f"part {shard} is recorded in {labelled.store}")
        show.echo("when all parts are there, the same command without --shard writes the page")
        return
    facts = labelled.facts
    show.echo(facts.headline)
    show.echo()
    for finding in facts.warnings:
        show.echo(f"{'stop' if finding['level'] == 'stop' else 'warning'}: {finding['message']}")
    for sentence in facts.hopes:
        show.echo(f"- {sentence}")
    show.echo()
    show.files({"store": labelled.store, "page": labelled.page})
