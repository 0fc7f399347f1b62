"""``potstill plan``: what a run will do and cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.cli import show
from potstill.cli.options import Changes, Json, Out, Quiet, RecipeFile, Terms, Untrusted, default_out


def plan(
    recipe: RecipeFile,
    out: Out = None,
    changes: Changes = None,
    terms: Terms = False,
    json: Json = False,
    quiet: Quiet = False,
    untrusted: Untrusted = False,
) -> None:
    """Check a recipe and show what a run will do and cost.

    Its data and models are loaded and tried on a few samples. Nothing is trained.

    \b
    Examples:
      potstill plan digits.yaml
      potstill plan digits.yaml --set seeds=3 --set store.dtype=float32
      potstill plan digits.yaml --set objective=reviewkd --terms
      potstill plan digits.yaml --quiet && potstill run digits.yaml
    """
    from potstill.recipe.yaml import fragment, read

    read_recipe = read(recipe, changes or (), untrusted=untrusted)
    if quiet or json or terms:
        os.environ["POTSTILL_QUIET"] = "1"
    with show.stdout_for_result(json or quiet or terms):
        from potstill import pipeline

        planned = pipeline.plan(read_recipe, out=out or default_out(recipe), base=recipe.parent).to_json()
    if json:
        show.print_json(planned)
    elif terms:
        show.echo(fragment({"objective": planned["terms"]}).rstrip("\n"))
    elif not quiet:
        _print(planned)


def _print(planned: Mapping[str, Any]) -> None:
    data = planned.get("data", {})
    counts = ", ".join(f"{data[split]:,} {split}" for split in ("train", "validation", "test") if split in data)
    shape = " x ".join(map(str, data.get("shape", ())))
    show.echo(f"data: {counts} samples" + (f" of shape {shape}" if shape else ""))
    warnings = planned.get("warnings", ())
    for finding in data.get("findings", ()):
        if finding["message"] not in warnings:  # these come last, where they are seen
            show.echo(f"  {finding['level']}: {finding['message']}")
    show.echo()
    rows = [
        [
            name,
            show.count(model["parameters"]),
            show.number(None if model["flops"] is None else model["flops"] / 1e6),
            show.megabytes(model["bytes"]),
        ]
        for name, model in planned.get("models", {}).items()
    ]
    show.table(["model", "parameters", "MFLOP", "MB"], rows, right=range(1, 4))
    if planned.get("teacher"):
        show.echo(planned["teacher"]["sentence"])
    if planned.get("objective"):
        show.echo("objective: " + "\n         + ".join(planned["objective"]))
    if planned.get("made_for"):
        show.echo(f"  settings made for {planned['made_for']}; here {data.get('train', 0):,} samples")
    for kind, pairs in _by_kind(planned.get("layers", ())).items():
        show.echo(f"{kind}: " + ", ".join(f"{one} from {other}" for one, other in pairs))
    show.echo()
    rows = [
        [stage["name"], stage["what"], "finished" if stage["reused"] else show.duration(stage["seconds"])]
        for stage in planned.get("stages", ())
    ]
    show.table(["stage", "what it does", "time"], rows, right=[2])
    left = [stage["seconds"] for stage in planned.get("stages", ()) if not stage["reused"]]
    if any(seconds is not None for seconds in left):
        show.echo(f"about {show.duration(sum(seconds or 0.0 for seconds in left))} in all")
    for stage in planned.get("stages", ()):
        if stage["why"]:
            then = "kept" if stage["reused"] else "made again, the earlier result is replaced"
            show.echo(f"{stage['name']}, {then}: {stage['why']}")
    show.echo()
    store = planned.get("store")
    if store:
        views = "1 view" if store["views"] == 1 else f"{store['views']} views"
        show.echo(f"store: {show.megabytes(store['bytes'])} MB for {views} of each sample, in {store['path']}")
    if planned.get("disk_free") is not None:
        show.echo(f"disk: {planned['disk_free'] / 1e9:,.1f} GB free")
    for warning in warnings:
        show.echo(f"warning: {warning}")


def _by_kind(layers: Sequence[Mapping[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of layers, (student, teacher), by what they are read for."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in layers:
        found.setdefault(row["for"], []).append((row["student"], row["teacher"]))
    return found
