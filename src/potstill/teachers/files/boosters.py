"""Boosted trees in their own formats as teachers: LightGBM text files, XGBoost JSON and UBJSON files.

Both say what they were trained for, and both give margins: logits without a detour over probabilities.
Shape legend: b samples, f numbers of a sample, c classes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.functions import cause
from potstill.teachers.answers import Answers, Array
from potstill.teachers.files.columns import Chosen, chosen_columns
from potstill.teachers.files.inputs import arranged, layout_for, options_of
from potstill.teachers.foreign import Opened, Wanted

OPTIONS = ("layout",)
_BINARY = ("binary:logistic", "binary:logitraw", "reg:logistic", "binary", "cross_entropy", "xentropy")
_MANY = ("multi:softprob", "multi:softmax", "multiclass", "softmax")


def open_lightgbm(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, answers: Answers | None = None
) -> Opened:
    """Open a LightGBM model file (``Booster.save_model``) as a teacher.

    Args:
        path: the file.
        wanted: what the teacher is asked to do.
        args: options: ``layout`` of flattened images.
        place: the teacher's place in the recipe.
        answers: ``probabilities`` to ask for these instead of margins.

    Raises:
        PotstillError: LightGBM is missing, the file cannot be read, or it is for something else.

    """
    lightgbm = _import("lightgbm", "a LightGBM file", place)
    try:
        booster = lightgbm.Booster(model_file=str(path))
    except Exception as error:
        raise UsageError(f"{path} is not a readable LightGBM model: {cause(error)}") from error
    if booster.pandas_categorical:
        raise TeacherError(
            f"{place}: {path.name} was trained on pandas categories, which its file keeps as numbers of its own. Save "
            "the fitted LGBMClassifier with its preprocessing as a skops file instead."
        )
    objective, *settings = str(_objective_of_text(path)).split()
    scale = next((float(one.partition(":")[2]) for one in settings if one.startswith("sigmoid:")), 1.0)
    names = booster.feature_name()
    plain = names == [f"Column_{index}" for index in range(len(names))]
    form = _form(path, wanted, args, objective, answers, None if plain else names, booster.num_feature(), place)
    ask = AskLightGBM(booster, form.answers == "logits", scale, path.name, *form.inputs)
    return form.opened(ask, "LightGBM")


def open_xgboost(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, answers: Answers | None = None
) -> Opened:
    """Open an XGBoost model file (``save_model`` to .json or .ubj) as a teacher; as `open_lightgbm`."""
    xgboost = _import("xgboost", "an XGBoost file", place)
    booster = xgboost.Booster()
    try:
        booster.load_model(str(path))
        config = json.loads(booster.save_config())
        objective = config["learner"]["objective"]["name"]
    except Exception as error:
        raise UsageError(f"{path} is not a readable XGBoost model: {cause(error)}") from error
    if "c" in (booster.feature_types or ()):
        raise TeacherError(
            f"{place}: {path.name} was trained on categorical columns, which potstill encodes otherwise. Save the "
            "fitted estimator with its preprocessing as a skops file instead."
        )
    form = _form(path, wanted, args, objective, answers, booster.feature_names, booster.num_features(), place)
    best = booster.attr("best_iteration")
    rounds = (0, int(best) + 1) if best is not None else (0, 0)
    return form.opened(AskXGBoost(booster, form.answers == "logits", rounds, path.name, *form.inputs), "XGBoost")


@dataclass(frozen=True)
class _Form:
    """What both kinds of file are opened with."""

    path: Path
    options: dict[str, Any]
    answers: Answers
    says: str
    classes: tuple[str, ...] | None
    inputs: tuple[str, bool, Chosen | None]

    def opened(self, ask: Callable[[Array], Array], runtime: str) -> Opened:
        return Opened(
            name=self.path.name,
            digest=fingerprint.of_json([fingerprint.of_file(self.path), self.options, self.answers]),
            size_bytes=self.path.stat().st_size,
            ask=ask,
            answers=self.answers,
            says=self.says,
            classes=self.classes,
            runtime=runtime,
        )


def _form(
    path: Path,
    wanted: Wanted,
    args: Mapping[str, Any],
    objective: str,
    answers: Answers | None,
    names: list[str] | None,
    count: int,
    place: str,
) -> _Form:
    options = options_of(args, OPTIONS, place=place, kind="a file of boosted trees")
    says = f"its objective is {objective}"
    classifies = objective in (*_BINARY, *_MANY)
    if classifies == wanted.values:
        raise TeacherError(
            f"{place}: {path.name} was trained for {objective}; the task is {wanted.task}. Usable for classification: "
            f"{', '.join((*_MANY, *_BINARY))}."
        )
    if classifies and (objective in _BINARY) != (wanted.num_outputs == 2):
        raise TeacherError(
            f"{place}: {path.name} was trained for {objective}; the data has {wanted.num_outputs} classes."
        )
    found: Answers = (answers if answers == "probabilities" else "logits") if classifies else "values"
    # Trees number their classes. Where some of the data's names are numbers and others not, order is all there is.
    numbers = tuple(str(number) for number in range(wanted.num_outputs))
    shared = set(numbers) & set(wanted.classes)
    classes = numbers if classifies and (not shared or shared == set(numbers)) else None
    if names is not None and wanted.columns:
        chosen = chosen_columns(names, wanted.columns, place=place, what=path.name)
        if chosen is not None and chosen.places is None:
            raise TeacherError(
                f"{place}: {path.name} was trained on the columns {', '.join(names[:10])}, of which the data has some "
                "as texts. Trees in their own format take numbers only; save the whole pipeline as a skops file."
            )
        return _Form(path, options, found, says, classes, ("nchw", False, chosen))
    layout, flat = layout_for(wanted.shape, [count], options.get("layout"), place=place, what=path.name)
    return _Form(path, options, found, says, classes, (layout, flat, None))


def _objective_of_text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("objective="):
                return line.removeprefix("objective=").strip()
            if line.startswith("Tree="):
                break
    return "unknown"


def _import(name: str, kind: str, place: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        raise PotstillError(
            f"{place} is {kind}, which needs the package that made it: install it with 'pip install {name}'."
        ) from error


def _rows(inputs: Array, layout: str, flat: bool, columns: Chosen | None) -> Array:
    rows = arranged(inputs, layout, flat)
    chosen: Array = rows if columns is None else columns.of(rows)
    return np.ascontiguousarray(chosen)


@dataclass(frozen=True)
class AskLightGBM:
    """Answers inputs by a LightGBM booster."""

    booster: Any
    margins: bool
    scale: float
    what: str
    layout: str
    flat: bool
    columns: Chosen | None

    def __call__(self, inputs: Array) -> Array:
        """Return margins, probabilities or values: (b,) or (b, c)."""
        rows = _rows(inputs, self.layout, self.flat, self.columns)
        try:
            found = np.asarray(self.booster.predict(rows, raw_score=self.margins))
        except Exception as error:
            raise TeacherError(f"{self.what} failed on inputs of shape {inputs.shape}: {cause(error)}") from error
        return found * self.scale if self.margins and found.ndim == 1 else found


@dataclass(frozen=True)
class AskXGBoost:
    """Answers inputs by an XGBoost booster, up to the round that early stopping chose."""

    booster: Any
    margins: bool
    rounds: tuple[int, int]
    what: str
    layout: str
    flat: bool
    columns: Chosen | None

    def __call__(self, inputs: Array) -> Array:
        """Return margins, probabilities or values: (b,) or (b, c)."""
        rows = _rows(inputs, self.layout, self.flat, self.columns)
        kind = "margin" if self.margins else "value"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                return np.asarray(
                    self.booster.inplace_predict(
                        rows, predict_type=kind, iteration_range=self.rounds, validate_features=False
                    )
                )
        except Exception as error:
            raise TeacherError(f"{self.what} failed on inputs of shape {inputs.shape}: {cause(error)}") from error
