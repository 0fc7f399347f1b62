"""Recipes of others: what a recipe may not hold when nobody has read it.

A recipe names Python functions, programs and addresses, and potstill runs, opens and asks them. An untrusted recipe has
models of the zoo and data files beside it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.recipe.document import Place

_NAMES = ("model", "loss", "head", "transform", "preset", "objective")
"""Keys that name something of potstill's, or a Python function."""
_FILES = ("train", "validation", "test", "weights", "file", "path", "secret")
"""Keys that name a file or folder."""
_ANSWERS = (".parquet", ".npz", ".jsonl", ".csv")
_REMOTE = ("mlflow", "wandb")


def offences(value: Any, base: Path, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yield ``(place, what is wrong)`` for everything in a recipe that could run code or reach beyond its folder.

    Args:
        value: the recipe as plain data, or a part of it.
        base: the recipe's folder.
        place: where the part stands.

    """
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from offences(item, base, (*place, number))
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        here = (*place, key)
        if key in ("args", "options", "head_options"):
            # Arguments of what potstill brings; for anything else its name is refused.
            continue
        problem = _problem(key, item, base)
        if problem:
            yield here, f"{problem}. An untrusted recipe has models of the zoo and data files beside it only"
        elif not (key == "endpoint" and item):
            yield from offences(item, base, here)


def _problem(key: str, item: Any, base: Path) -> str:
    """Return what is wrong with one key, or nothing."""
    if key == "endpoint" and item:
        return "an endpoint would be sent the data, and keys of this machine's environment"
    if key == "allow_pickle" and item:
        return "pickles run code"
    if key == "python" and item:
        return f"'{item}' is a program to run"
    if key == "track" and any(name in _REMOTE for name in item or ()):
        return "mlflow and wandb send the run to another machine"
    if not isinstance(item, str) or not item:
        return ""
    if key in _NAMES and ":" in item:
        return f"'{item}' is Python code to run"
    if key not in _FILES:
        return ""
    if ":" in item:
        return f"'{item}' is Python code to run, or an address"
    if key == "file" and Path(item).suffix.lower() not in _ANSWERS:
        return f"'{item}' is a program to run; only recorded answers ({', '.join(_ANSWERS)}) are data"
    if item.startswith("~") or "$" in item or not _inside(base, item):
        return f"'{item}' is outside the recipe's folder"
    return ""


def _inside(base: Path, item: str) -> bool:
    home = base.resolve()
    return not Path(item).is_absolute() and (home / item).resolve().is_relative_to(home)
