"""The student's weights and everything needed to build it again, as safetensors and JSON."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.alike import apart
from potstill.core.errors import UsageError
from potstill.core.files import atomic_path, read_json, write_json
from potstill.core.scale import TargetScale
from potstill.data.columns import Column
from potstill.export.onnx import damaged, package_version
from potstill.export.student import Student
from potstill.models.beside_weights import copied, initialise_lazy_layers, restore_unsaved, unsaved_tensors
from potstill.models.load import build, load_weights, save_weights
from potstill.models.preprocess import Preprocessor
from potstill.tasks import TaskName, task_of

WEIGHTS, CONFIG = "student.safetensors", "student.json"
UNSAVED = "student-unsaved.safetensors"
"""Tensors that the student computes with and its state dict does not hold; only there where it has any."""
_PROBE_ROWS, _PROBE_COLUMNS = 3, 16
_ALIKE = 1e-2
_FORMAT = 1


def save_student(
    model: nn.Module,
    folder: Path,
    *,
    preprocess: Preprocessor,
    task: TaskName,
    shape: Sequence[int],
    dtype: str | torch.dtype | None = None,
    model_name: str | None = None,
    args: Mapping[str, Any] | None = None,
    base: Path = Path(),
    classes: Sequence[str] = (),
    recipe_hash: str = "",
    scale: TargetScale | None = None,
    columns: Sequence[Column] = (),
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
    seed: int = 0,
) -> Path:
    """Write ``student.safetensors`` and ``student.json`` into a folder.

    With them go what the state dict does not hold (buffers with ``persistent=False``) and a few answers of the student
    to made-up inputs, so that `load_student` gives this model and no other.

    Args:
        model: the trained model.
        folder: where to write.
        preprocess: the model's preprocessing.
        task: classification or regression.
        shape: of one raw input.
        dtype: of raw inputs, ``"uint8"`` or ``"float32"``; left open when absent.
        model_name: how the model is built: a zoo name, ``"file.py:name"`` or ``"package.module:name"``; None when it
            was given as a Python object.
        args: keyword arguments it was built with.
        base: the folder that ``file.py`` is relative to; it is kept relative to ``folder``.
        classes: class names in output order.
        recipe_hash: of the recipe that made the model.
        scale: the standard units that the model learned values in.
        columns: the columns of the table that the model learned on.
        temperature: that a classifier's logits are divided by before they become probabilities.
        thresholds: probability from which on each class is a yes, of a student of several labels.
        seed: that it was built from.

    Returns:
        The path of the weights.

    Raises:
        UsageError: arguments that cannot be written as JSON.

    """
    folder = Path(folder)
    try:
        arguments = json.loads(json.dumps(dict(args or {})))
    except (TypeError, ValueError) as error:
        raise UsageError(f"The student's arguments {args} cannot be written as JSON: {error}.") from error
    weights = folder / WEIGHTS
    metadata = {"recipe_hash": recipe_hash, "task": task, "potstill_version": package_version()}
    if scale is not None:
        metadata["scale"] = json.dumps(scale.to_json())
    save_weights(model, weights, metadata)
    unsaved = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in unsaved_tensors(model).items()}
    if unsaved:
        with atomic_path(folder / UNSAVED) as temporary:
            save_file(unsaved, temporary)
    else:
        (folder / UNSAVED).unlink(missing_ok=True)
    parts = copied(model).cpu(), copy.deepcopy(preprocess).cpu()
    student = Student(*parts, task=task, classes=classes, scale=scale).eval()
    config = {
        "format": _FORMAT,
        "model": None if model_name is None else _relative(model_name, Path(base), folder),
        "class": type(model).__name__,
        "args": arguments,
        "seed": seed,
        "unsaved": sorted(unsaved),
        "preprocess": {
            "mean": None if preprocess.mean is None else preprocess.mean.tolist(),
            "std": None if preprocess.std is None else preprocess.std.tolist(),
            "size": preprocess.size,
        },
        "input": {
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "shape": list(shape),
        },
        "answers": _probe(student, preprocess, shape, dtype),
        "classes": list(classes),
        "temperature": temperature if task_of(task).probabilities is not None else None,
        **({"thresholds": list(thresholds)} if thresholds else {}),
        "columns": [column.to_json() for column in columns],
        "scale": None if scale is None else scale.to_json(),
        "task": task,
        "recipe_hash": recipe_hash,
        "potstill_version": package_version(),
        "sha256": {
            name: fingerprint.of_file(folder / name) for name in (WEIGHTS, UNSAVED) if (folder / name).is_file()
        },
    }
    write_json(folder / CONFIG, {**config, "checksum": fingerprint.of_json(config)})
    return weights


def load_student(folder: Path, *, model: nn.Module | Callable[..., nn.Module] | None = None) -> Student:
    """Build the student again from an export folder, in evaluation mode, on the CPU.

    The result takes raw inputs: its preprocessing is inside. When ``student.json`` names a Python file or module, that
    code is imported: load folders that you trust.

    Args:
        folder: the folder with ``student.json`` and ``student.safetensors``.
        model: the architecture, or a function that builds it; needed when it was given as a Python object, and used in
            place of the name otherwise. Its weights are replaced.

    Raises:
        UsageError: no such files, a model that has to be passed, weights that do not fit it, or a model that answers
            otherwise than the student did when it was exported.
        PotstillError: a file is not what was exported.

    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UsageError(f"There is no {CONFIG} in {folder}. Give the export folder of a finished run.")
    config = read_json(folder / CONFIG)
    if config.get("format") != _FORMAT:
        raise UsageError(
            f"{folder / CONFIG} has format {config.get('format')!r}; this potstill reads format {_FORMAT}. "
            "Use the version of potstill that wrote it."
        )
    _refuse_damage(folder, config)
    source = config["model"] if model is None else model
    if source is None:
        raise UsageError(
            f"The student ({config['class']}) was given as a Python object, so its code is not known here. "
            "Pass it: load_student(folder, model=MyModel(...))."
        )
    seed = config.get("seed", 0)
    built = build(source, {} if isinstance(source, nn.Module) else config["args"], seed=seed, base=folder)
    given, shape, dtype = config["preprocess"], config["input"]["shape"], config["input"]["dtype"]
    mean, std = (None if given[name] is None else torch.tensor(given[name]) for name in ("mean", "std"))
    preprocess = Preprocessor(mean, std, given["size"])
    initialise_lazy_layers(built, lambda: preprocess(_made_up(preprocess, shape, dtype)), seed=seed)
    load_weights(built, folder / WEIGHTS)
    if config.get("unsaved"):
        restore_unsaved(built, load_file(folder / UNSAVED))
    scale = None if config.get("scale") is None else TargetScale.from_json(config["scale"])
    columns = [Column.from_json(column) for column in config.get("columns", ())]
    student = Student(
        built,
        preprocess,
        task=config["task"],
        classes=config["classes"],
        scale=scale,
        columns=columns,
        temperature=config.get("temperature") or 1.0,
        thresholds=config.get("thresholds", ()),
        shape=shape,
    ).eval()
    expected = config.get("answers")
    if expected is not None and not _answers_like(_probe(student, preprocess, shape, dtype), expected):
        raise UsageError(
            f"{type(built).__name__} fits the weights in {folder}, but does not answer like the student that was "
            "exported: its code, or something that is not in its weights, is another. Use the code that it was trained "
            "with, or export it again."
        )
    return student


def _refuse_damage(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse files that are not what was exported; exports of before have no checksums."""
    own = {name: value for name, value in config.items() if name != "checksum"}
    wrong = [CONFIG] if config.get("checksum", fingerprint.of_json(own)) != fingerprint.of_json(own) else []
    for name, digest in config.get("sha256", {}).items():
        if not (folder / name).is_file() or fingerprint.of_file(folder / name) != digest:
            wrong.append(name)
    if wrong:
        raise damaged(folder / wrong[0])


def _made_up(preprocess: Preprocessor, shape: Sequence[int], dtype: str | torch.dtype | None) -> Tensor:
    """Return raw inputs (3, ...) that are nobody's data and lie where the data lies."""
    count = torch.arange(_PROBE_ROWS * math.prod(shape)).reshape(_PROBE_ROWS, *shape)
    if str(dtype).removeprefix("torch.") == "uint8":
        return (count * 37 % 256).to(torch.uint8)
    waves = torch.sin(count.double() * 0.7)
    if preprocess.mean is not None and preprocess.std is not None:
        place = [1] * waves.dim()
        place[1 if waves.dim() == 4 else -1] = -1
        waves = waves * preprocess.std.double().cpu().view(place) + preprocess.mean.double().cpu().view(place)
    return waves.to(torch.float32)


def _probe(
    student: Student, preprocess: Preprocessor, shape: Sequence[int], dtype: str | torch.dtype | None
) -> list[list[float]] | None:
    """Return the first numbers of what the student answers to made-up inputs; None where it has no fixed answer."""
    inputs = _made_up(preprocess, shape, dtype)
    try:
        with torch.no_grad():
            answers = student(inputs)
            again = student(inputs)
    except Exception:  # made-up inputs may be nothing that it can read, such as numbers of tokens
        return None
    if not torch.equal(answers, again) or not bool(torch.isfinite(answers).all()):
        return None
    rows: list[list[float]] = answers[:, :_PROBE_COLUMNS].tolist()
    return rows


def _answers_like(found: list[list[float]] | None, expected: list[list[float]]) -> bool:
    if found is None:
        return False
    return apart(np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)) <= _ALIKE


def _relative(name: str, base: Path, folder: Path) -> str:
    """Return a model's name with its file, if it has one, relative to ``folder``."""
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return name
    return f"{Path(os.path.relpath((base / file).resolve(), folder.resolve())).as_posix()}:{function}"
