"""Teachers that are files: opened by what they are, whatever framework made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, UsageError, did_you_mean
from potstill.teachers.answers import Answers
from potstill.teachers.foreign import Opened, Wanted

_KERAS = (".keras", ".h5")
_PICKLES = (".joblib", ".pkl", ".pickle")
_RECORDED = (".parquet", ".npz", ".jsonl", ".csv")
SUFFIXES = (
    *(".onnx", ".pt", ".pth", ".ts", ".pt2", ".skops", *_PICKLES),
    *(".txt", ".json", ".ubj", *_RECORDED, *_KERAS),
)
"""What a teacher's file may end in; a TensorFlow SavedModel is a folder."""


def open_file(
    path: Path,
    wanted: Wanted,
    *,
    args: Mapping[str, Any] | None = None,
    answers: Answers | None = None,
    allow_pickle: bool = False,
    python: str | None = None,
    id_column: str | None = None,
    place: str = "teacher",
) -> Opened:
    """Open a file as a teacher: ONNX, TorchScript, torch.export, an estimator, boosted trees, Keras or answers.

    Args:
        path: the file, or the folder of a SavedModel.
        wanted: what the teacher is asked to do.
        args: options of the kind of file; see the ``open_*`` functions.
        answers: what the recipe says it answers with; some kinds can be asked in several ways.
        allow_pickle: whether files that can run code may be read.
        python: interpreter for a Keras file.
        id_column: the data's own id column.
        place: the teacher's place in the recipe.

    Raises:
        PotstillError: no such file, an unknown kind, a missing package, or a file that does not fit the data.

    """
    args, suffix = dict(args or {}), path.suffix.lower()
    if not path.exists():
        raise UsageError(f"{place}.file: there is no file {path}.")
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"{place}.file: {path} is a device or pipe; expected a file.")
    if python is not None and not (path.is_dir() or suffix in _KERAS):
        raise UsageError(f"{place}.python is the interpreter of a Keras file; {path.name} needs none. Drop it.")
    if path.is_dir() or suffix in _KERAS:
        return _open_keras(path, wanted, args, python=python, place=place)
    if suffix == ".onnx":
        from potstill.teachers.files.onnx import open_onnx

        return open_onnx(path, wanted, args, place=place)
    if suffix in (".pt", ".pth", ".ts", ".pt2"):
        from potstill.teachers.files.torch_files import open_program, open_script

        opening = open_program if suffix == ".pt2" else open_script
        return opening(path, wanted, args, place=place, allow_pickle=allow_pickle)
    if suffix == ".skops" or suffix in _PICKLES:
        from potstill.teachers.files.estimators import open_estimator

        return open_estimator(path, wanted, args, place=place, allow_pickle=allow_pickle)
    if suffix in (".txt", ".json", ".ubj"):
        from potstill.teachers.files.boosters import open_lightgbm, open_xgboost

        return (open_lightgbm if suffix == ".txt" else open_xgboost)(path, wanted, args, place=place, answers=answers)
    if suffix in _RECORDED:
        from potstill.teachers.files.recorded import open_recorded

        return open_recorded(path, wanted, args, place=place, id_column=id_column)
    if suffix == ".safetensors":
        raise UsageError(f"{place}.file: {path.name} holds weights only. Give {place}.model and {place}.weights.")
    raise UsageError(f"{place}.file: {path.name} is of no known kind.{did_you_mean(suffix, SUFFIXES)}")


def _open_keras(path: Path, wanted: Wanted, args: Mapping[str, Any], *, python: str | None, place: str) -> Opened:
    from potstill.teachers.keras_model import keras_ask

    try:
        process = keras_ask(path, python=python, args=args)
        facts = process.facts
    except PotstillError as error:
        raise type(error)(f"{place}: {error}") from error
    if facts.output is None and len(facts.outputs) > 1:
        raise UsageError(
            f"{place}: {path.name} has the outputs {', '.join(facts.outputs)}. Say which is its answer: "
            f"'args: {{output: {next(iter(facts.outputs))}}}'."
        )
    # Names inside a folder are part of what it says; that of a file, and where all of it lies, is not.
    names = [str(one.relative_to(path)) if one.is_relative_to(path) else "" for one in process.files]
    files = [[name, fingerprint.of_file(one)] for name, one in zip(names, process.files, strict=True)]
    options = {name: value for name, value in args.items() if not name.endswith("timeout")}
    return Opened(
        name=path.name,
        digest=fingerprint.of_json([files, options]),
        size_bytes=sum(one.stat().st_size for one in process.files),
        ask=process.ask,
        answers="values" if wanted.values else facts.answers,
        says=f"the task is {wanted.task}" if wanted.values else f"its last function is {facts.activation}",
        outputs=tuple(name for name in facts.outputs if name != facts.output),
        runtime="Keras",
    )
