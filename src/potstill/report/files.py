"""What the files of a run folder say, read once; a missing file is an absent value, not an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from potstill.core.errors import PotstillError, UsageError
from potstill.core.files import read_json
from potstill.core.text import printable, printable_parts
from potstill.evaluation import EvaluationResult
from potstill.tasks import headline

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """One model that was trained in this run."""

    model: str  # "teacher", "alone", "pseudo" or "distilled"
    seed: int | None  # None for the teacher
    history: tuple[Record, ...]  # one record per epoch
    result: Record


@dataclass(frozen=True)
class RunFiles:
    """Everything the report shows, as it lies on disk."""

    folder: Path
    run: Record
    recipe: Record
    recipe_text: str
    data: Record | None
    evaluation: EvaluationResult | None
    trained: tuple[Trained, ...]
    rates: tuple[Record, ...]  # what was tried before each training, and chosen; none where all rates were fixed
    exported: tuple[Record, ...]
    warnings: tuple[str, ...] | None  # what the run warned of; None in a folder that does not say
    samples: np.ndarray[Any, Any] | None  # (n, h, w, c) uint8 or (n, ...) float, in the order of the disagreements

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.run.get("name") or self.folder.name)

    @property
    def task(self) -> str:
        """``classification`` or ``regression``."""
        return str(self.run.get("task") or self.recipe.get("task") or "classification")

    @property
    def metric(self) -> str:
        """The metric that chose checkpoints and rates."""
        return str(self.recipe.get("metric") or headline(self.task))


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Args:
        folder: the run folder; only run.json must be there.

    Raises:
        UsageError: ``folder`` is not a run folder.
        PotstillError: a file of the run is damaged.

    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        problem = "has no run.json" if folder.is_dir() else "does not exist"
        raise UsageError(f"{folder} is not a run folder: it {problem}. Pass the folder that 'potstill run' wrote.")
    recipe_path = folder / "recipe.yaml"
    recipe_text = printable(recipe_path.read_text(encoding="utf-8")) if recipe_path.is_file() else ""
    evaluation = _json(folder / "evaluation.json")
    parity = _json(folder / "export" / "parity.json") or {}
    warnings = _json(folder / "warnings.json")
    return RunFiles(
        folder=folder,
        run=_json(folder / "run.json") or {},
        recipe=_recipe(recipe_path, recipe_text),
        recipe_text=recipe_text,
        data=_json(folder / "data.json"),
        evaluation=None if evaluation is None else EvaluationResult.from_json(evaluation),
        trained=tuple(_all_trained(folder)),
        rates=tuple(filter(None, map(_json, sorted((folder / "rates").glob("*/rates.json"))))),
        exported=tuple(parity.get("files", ())),
        warnings=None if warnings is None else tuple(map(str, warnings)),
        samples=_samples(folder / "disagreements.npz"),
    )


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return printable_parts(read_json(path))
    except ValueError as error:
        raise PotstillError(f"{path} is damaged ({error}). Delete it and run the same command again.") from error


def _recipe(path: Path, text: str) -> Record:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PotstillError(f"{path} is damaged ({error}). Run the same command again to write it anew.") from error
    return recipe if isinstance(recipe, dict) else {}


def _all_trained(folder: Path) -> list[Trained]:
    found = [_trained(folder / "teacher", "teacher", None)]
    seeds = sorted((int(path.name), path) for path in (folder / "seeds").glob("*") if path.name.isdecimal())
    found += [_trained(path / model, model, seed) for seed, path in seeds for model in ("alone", "pseudo", "distilled")]
    return [trained for trained in found if trained.history or trained.result]


def _trained(folder: Path, model: str, seed: int | None) -> Trained:
    return Trained(model, seed, _history(folder / "history.jsonl"), _json(folder / "result.json") or {})


def _history(path: Path) -> tuple[Record, ...]:
    """Read the epochs; a half-written last line of a killed run is left out."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return tuple(records)


def _samples(path: Path) -> np.ndarray[Any, Any] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive["images"])
    except (ValueError, KeyError, OSError) as error:
        raise PotstillError(f"{path} is damaged ({error}). Run 'potstill evaluate' to write it anew.") from error
