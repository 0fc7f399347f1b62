"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potstill.core.errors import UsageError, did_you_mean

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file.", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="The run folder.  [default: runs/<recipe name>]"),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, such as training.epochs=3. Can be given several times.",
    ),
]
Untrusted = Annotated[
    bool,
    typer.Option("--untrusted", help="Refuse a recipe that could run code, ask a server or reach beyond its folder."),
]
Terms = Annotated[bool, typer.Option("--terms", help="Print the objective as a list of terms for a recipe, only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def default_out(recipe: Path) -> Path:
    """Return the run folder of a recipe when the user names none."""
    return Path("runs") / recipe.stem


def existing_run(folder: Path) -> Path:
    """Return ``folder`` if it is a run folder.

    Raises:
        UsageError: it is not; names a run beside it.

    """
    if (folder / "run.json").is_file():
        return folder
    if folder.is_dir():
        inside = _runs_in(folder)
        hint = f" Runs in it: {', '.join(inside)}." if inside else ""
        raise UsageError(f"{folder} is not a run folder: it has no run.json.{hint}")
    known = _runs_in(folder.parent)
    hint = did_you_mean(folder.name, known) if known else " 'potstill run RECIPE' makes one."
    raise UsageError(f"There is no run {folder}.{hint}")


def check_run(folder: Path, *, untrusted: bool) -> None:
    """Refuse an untrusted run whose recipe could run code, ask a server or reach beyond the folder of its data."""
    if untrusted:
        from potstill.core.files import read_json
        from potstill.recipe.yaml import read

        base = read_json(folder / "run.json").get("base", folder)
        read(folder / "recipe.yaml", untrusted=True, base=str(base))


def _runs_in(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.glob("*/run.json"))
