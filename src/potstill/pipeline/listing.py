"""The runs in a folder, side by side: how far they came, what they scored, and in what they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.core.explain import clear_errors
from potstill.pipeline.folder import RunFolder, read_or_none, read_state
from potstill.pipeline.inputs import OF_DATA, flat
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import plain

_SCORES = ("metric", "teacher", "alone", "distilled", "verdict", "seeds", "metrics", "bytes")


@clear_errors
def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each run in ``folder``, newest first.

    Returns:
        Dictionaries with ``name, folder, status, task, metric, teacher, alone, distilled, verdict, seeds, metrics,
        bytes, created, differs``; ``metrics`` holds all scores by model, ``differs`` the settings that are not equal in
        all runs; values that a run does not have yet are None. A run whose ``run.json`` cannot be read, or whose
        ``evaluation.json`` is not what was written, is ``damaged`` and has no scores.

    """
    files = sorted(Path(folder).glob("*/run.json"))
    recipes = {file.parent.name: recipe_settings(file.parent / "recipe.yaml") for file in files}
    differing = differing_settings(list(filter(None, recipes.values())))
    rows = []
    for file in files:
        run, state = file.parent, read_state(file)
        damaged = state is None or bool(RunFolder(run).damaged("evaluation"))
        row: dict[str, Any] = {
            "name": run.name,
            "folder": str(run),
            "status": "damaged" if state is None or damaged else _status(state),
            "task": (state or {}).get("task"),
            "created": (state or {}).get("created"),
            **dict.fromkeys(_SCORES),
            **({} if damaged else _scores(run / "evaluation.json")),
        }
        own = recipes[run.name]
        row["differs"] = {name: own[name] for name in differing if name in own}
        rows.append(row)
    return sorted(rows, key=lambda row: str(row["created"] or ""), reverse=True)


def recipe_settings(file: Path) -> dict[str, Any]:
    """Return the settings in a resolved recipe by their dotted names; empty where it cannot be read."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return _told(content) if isinstance(content, Mapping) else {}


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe as `recipe_settings` gives those of a file."""
    return _told(plain(recipe.model_dump()))


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(values).items() if not name.endswith(OF_DATA)}


def differing_settings(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that are not equal in all recipes."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    return [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)]


def _scores(file: Path) -> dict[str, Any]:
    evaluation = read_or_none(file)
    if evaluation is None:
        return {}
    try:
        metric, models = evaluation["headline_metric"], evaluation["models"]
        return {
            "metric": metric,
            **{name: scores["metrics"][metric] for name, scores in models.items()},
            "verdict": evaluation["verdict"]["helped"],
            "seeds": len(evaluation["seeds"]),
            "metrics": {name: scores["metrics"] for name, scores in models.items()},
            "bytes": models["distilled"]["bytes"],
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def _status(state: Mapping[str, Any]) -> str:
    statuses = {entry.get("status") for entry in state["stages"].values()}
    if state.get("finished"):
        return "finished"
    return "failed" if "failed" in statuses else "unfinished"
