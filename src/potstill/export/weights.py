"""The student's weights and everything needed to build it again, as safetensors and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.files import read_json, write_json
from potstill.core.scale import TargetScale
from potstill.export.onnx import package_version
from potstill.export.student import Student, Task
from potstill.models.load import build, load_weights, save_weights
from potstill.models.preprocess import Preprocessor

WEIGHTS, CONFIG = "student.safetensors", "student.json"
_FORMAT = 1


def save_student(
    model: nn.Module,
    folder: Path,
    *,
    preprocess: Preprocessor,
    task: Task,
    shape: Sequence[int],
    dtype: str | torch.dtype | None = None,
    model_name: str | None = None,
    args: Mapping[str, Any] | None = None,
    base: Path = Path(),
    classes: Sequence[str] = (),
    recipe_hash: str = "",
    scale: TargetScale | None = None,
) -> Path:
    """Write ``student.safetensors`` and ``student.json`` into a folder.

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
    write_json(
        folder / CONFIG,
        {
            "format": _FORMAT,
            "model": None if model_name is None else _relative(model_name, Path(base), folder),
            "class": type(model).__name__,
            "args": arguments,
            "preprocess": {
                "mean": None if preprocess.mean is None else preprocess.mean.tolist(),
                "std": None if preprocess.std is None else preprocess.std.tolist(),
                "size": preprocess.size,
            },
            "input": {
                "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
                "shape": list(shape),
            },
            "classes": list(classes),
            "scale": None if scale is None else scale.to_json(),
            "task": task,
            "recipe_hash": recipe_hash,
            "potstill_version": package_version(),
        },
    )
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
        UsageError: no such files, a model that has to be passed, or weights that do not fit it.

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
    source = config["model"] if model is None else model
    if source is None:
        raise UsageError(
            f"The student ({config['class']}) was given as a Python object, so its code is not known here. "
            "Pass it: load_student(folder, model=MyModel(...))."
        )
    built = build(source, {} if isinstance(source, nn.Module) else config["args"], base=folder)
    load_weights(built, folder / WEIGHTS)
    given = config["preprocess"]
    mean, std = (None if given[name] is None else torch.tensor(given[name]) for name in ("mean", "std"))
    preprocess = Preprocessor(mean, std, given["size"])
    scale = None if config.get("scale") is None else TargetScale.from_json(config["scale"])
    return Student(built, preprocess, task=config["task"], classes=config["classes"], scale=scale).eval()


def _relative(name: str, base: Path, folder: Path) -> str:
    """Return a model's name with its file, if it has one, relative to ``folder``."""
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return name
    return f"{Path(os.path.relpath((base / file).resolve(), folder.resolve())).as_posix()}:{function}"
