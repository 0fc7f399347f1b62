"""Fitted estimators as teachers: scikit-learn, and whatever speaks its language.

Shape legend: b samples, f numbers of a sample, c classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import TeacherError, UsageError, did_you_mean
from potstill.core.functions import cause
from potstill.core.optional import require
from potstill.teachers.answers import Answers, Array, class_text
from potstill.teachers.files.columns import Chosen, chosen_columns
from potstill.teachers.files.inputs import arranged, layout_for, options_of
from potstill.teachers.foreign import Opened, Wanted

RUNTIMES = {"sklearn": "scikit-learn", "lightgbm": "LightGBM", "xgboost": "XGBoost"}
OPTIONS = ("layout", "method", "trusted")
METHODS = ("predict_proba", "decision_function", "predict")


def open_estimator(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, allow_pickle: bool = False
) -> Opened:
    """Open a fitted estimator as a teacher: a skops file, or a joblib or pickle file where that is allowed.

    Args:
        path: the file.
        wanted: what the teacher is asked to do.
        args: options: ``method`` to ask with; ``trusted`` types of a skops file; ``layout`` of flattened images.
        place: the teacher's place in the recipe.
        allow_pickle: whether files that can run code may be read.

    Raises:
        PotstillError: a package is missing, the file may not or cannot be read, or it is for other data.

    """
    options = options_of(args, OPTIONS, place=place, kind="an estimator")
    trusted = options.pop("trusted", None) or []
    estimator = _read(path, trusted, place=place, allow_pickle=allow_pickle)
    method, answers = _method(estimator, options.get("method"), wanted, place=place, what=path.name)
    layout, flat, columns = _inputs(estimator, wanted, options.get("layout"), place=place, what=path.name)
    classes = getattr(estimator, "classes_", None) if not wanted.values else None
    if isinstance(classes, list):
        raise TeacherError(f"{place}: {path.name} predicts several targets at once; a teacher predicts one.")
    return Opened(
        name=path.name,
        digest=fingerprint.of_json([fingerprint.of_file(path), options]),
        size_bytes=path.stat().st_size,
        ask=AskEstimator(estimator, method, path.name, layout, flat, columns),
        answers=answers,
        says=f"it was asked by {method}",
        runtime=RUNTIMES.get(home := type(estimator).__module__.partition(".")[0], home),
        classes=None if classes is None else tuple(map(class_text, np.asarray(classes).tolist())),
    )


def _read(path: Path, trusted: Sequence[str], *, place: str, allow_pickle: bool) -> Any:
    if path.suffix == ".skops":
        skops = require("skops.io", feature="a teacher from a skops file", extra="estimators")
        try:
            unknown = [name for name in skops.get_untrusted_types(file=path) if name not in trusted]
        except Exception as error:
            raise UsageError(f"{path} is not a readable skops file: {cause(error)}") from error
        if unknown:
            lines = ", ".join(unknown)
            raise UsageError(
                f"{place}: {path.name} holds types that skops does not know to be harmless: {lines}. If you trust the "
                f"file, name them: 'args: {{trusted: [{lines}]}}'. Nothing in it was run."
            )
        return _loaded(path, lambda: skops.load(path, trusted=list(trusted)))
    if not allow_pickle:
        raise UsageError(
            f"{place}: {path} is a {path.suffix[1:]} file, which can run any code when it is read. Set "
            f"'allow_pickle: true' at {place} if you trust it, or save the estimator as a skops file: "
            f"skops.io.dump(estimator, '{path.stem}.skops')."
        )
    joblib = require("joblib", feature="a teacher from a joblib or pickle file", extra="estimators")
    return _loaded(path, lambda: joblib.load(path))


def _loaded(path: Path, load: Any) -> Any:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = load()
    except Exception as error:
        raise UsageError(f"{path} could not be read: {cause(error)}. It may need a package that is missing.") from error
    stale = [one for one in caught if type(one.message).__name__ == "InconsistentVersionWarning"]
    if stale:
        raise UsageError(
            f"{path} was fitted with another version of scikit-learn, which may answer differently: "
            f"{' '.join(str(stale[0].message).split())[:200]} Install that version, or fit it again."
        )
    return estimator


def _method(estimator: Any, chosen: str | None, wanted: Wanted, *, place: str, what: str) -> tuple[str, Answers]:
    """Return the method to ask with and what it answers with."""
    found = [name for name in METHODS if callable(getattr(estimator, name, None))]
    if chosen is not None and chosen not in found:
        raise UsageError(f"{place}.args.method: {what} has no method '{chosen}'.{did_you_mean(chosen, found)}")
    if not found:
        raise TeacherError(f"{place}: {what} holds a {type(estimator).__name__}, which cannot predict.")
    if wanted.values:
        if hasattr(estimator, "classes_"):
            raise TeacherError(f"{place}: {what} is a classifier ({type(estimator).__name__}); the task is regression.")
        return "predict", "values"
    if not hasattr(estimator, "classes_"):
        raise TeacherError(
            f"{place}: {what} holds a {type(estimator).__name__} without classes_: no fitted classifier. For a "
            "regressor set task: regression."
        )
    if chosen is None and "predict_proba" not in found and "decision_function" in found:
        raise TeacherError(
            f"{place}: {what} ({type(estimator).__name__}) knows no probabilities. Choose: 'args: {{method: predict}}' "
            "for its labels, or 'args: {method: decision_function}' to take its margins for logits, which are not "
            "calibrated. Better: fit it inside sklearn.calibration.CalibratedClassifierCV."
        )
    method = chosen or found[0]
    kinds: dict[str, Answers] = {"predict_proba": "probabilities", "decision_function": "logits", "predict": "labels"}
    return method, kinds[method]


def _inputs(
    estimator: Any, wanted: Wanted, layout: str | None, *, place: str, what: str
) -> tuple[str, bool, Chosen | None]:
    """Return layout, whether samples are flattened, and which columns the estimator takes, None for all in order."""
    own = getattr(estimator, "feature_names_in_", None)
    names = None if own is None else [str(name) for name in own]
    if names is not None and wanted.columns:
        return "nchw", False, chosen_columns(names, wanted.columns, place=place, what=what)
    count = getattr(estimator, "n_features_in_", None)
    # Images that are kept as they are need an estimator that says it takes them; scikit-learn's take rows.
    takes = None if count is None else [int(count)]
    found = layout_for(wanted.shape, takes, layout, place=place, what=what)
    return found[0], found[1] or len(wanted.shape) > 1, None


@dataclass(frozen=True)
class AskEstimator:
    """Answers inputs by one of an estimator's methods."""

    estimator: Any
    method: str
    what: str
    layout: str = "nchw"
    flat: bool = False
    columns: Chosen | None = None

    def __call__(self, inputs: Array) -> Array:
        """Return what the estimator says: (b,) or (b, c)."""
        rows: Any = arranged(inputs, self.layout, self.flat)
        if self.columns is not None:
            rows = self.columns.of(rows)
        try:
            with warnings.catch_warnings():
                # The names were compared when the file was opened; arrays have none.
                warnings.filterwarnings("ignore", message=".*feature names.*")
                return np.asarray(getattr(self.estimator, self.method)(rows))
        except Exception as error:
            raise TeacherError(f"{self.what} failed on inputs of shape {inputs.shape}: {cause(error)}") from error
