"""ONNX files as teachers, through ONNX Runtime.

Shape legend: b samples, c classes or outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.core import fingerprint
from potstill.core.errors import TeacherError, UsageError, did_you_mean
from potstill.core.optional import require
from potstill.teachers.answers import Answers, Array, class_text
from potstill.teachers.files.inputs import arranged, as_type, in_batches_of, layout_for, options_of
from potstill.teachers.foreign import Opened, Wanted

OPTIONS = ("layout", "input", "output")
_FEATURE = "a teacher from an ONNX file"
_TYPES = {"float": "float32", "double": "float64", "float16": "float16", "uint8": "uint8", "int8": "int8"}
_TYPES |= {f"int{bits}": f"int{bits}" for bits in (16, 32, 64)}
_CLASSIFIERS = ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")
"""Operations that know their classes and answer with a label first, then with one column for each class."""
_IN_PLACE = (
    *("Add", "Cast", "Clip", "Div", "Identity", "LogSoftmax", "Mean", "Mul", "Normalizer", "Scaler", "Sigmoid"),
    *("Softmax", "Sub", "Sum"),
)
"""Operations that leave columns in their places."""
_USUAL = ("logits", "output", "probabilities", "output_probability")
"""Names by which the answer is known among several outputs."""


def open_onnx(path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str) -> Opened:
    """Open an ONNX file as a teacher.

    Its answer is its only output, ``args["output"]``, or the usual name among several; the others with numbers are
    further signals. A file of scikit-learn's converter answers with its probabilities.

    Args:
        path: the file.
        wanted: what the teacher is asked to do.
        args: options: ``layout`` (``nchw`` or ``nhwc``), ``input`` and ``output`` names.
        place: the teacher's place in the recipe.

    Raises:
        PotstillError: packages are missing, the file cannot be read, or it takes other samples.

    """
    options = options_of(args, OPTIONS, place=place, kind="an ONNX file")
    what = path.name
    model = _read(path)
    _check_places(path, model)
    session = _Sessions(path).of(1)
    outputs = {one.name: one for one in session.get_outputs()}
    main = _main_output(list(outputs), options.get("output"), place=place, what=what)
    feeds = _feeds(session.get_inputs(), options, wanted, place=place, what=what)
    as_map = outputs[main].type.startswith(("seq(map", "sequence(map"))
    further = tuple(
        name
        for name, one in outputs.items()
        if name != main and one.type.startswith("tensor(") and one.type[7:-1] in _TYPES and len(one.shape or ()) >= 1
        and not (as_map or one.type == "tensor(int64)")
    )  # fmt: skip
    answers, says = _answers_said(model, outputs[main], as_map, wanted)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    classes = _classes_said(metadata, as_map) or (None if as_map else _class_labels(model, main))
    ask = _Ask(_Sessions(path), what, main, further, feeds, as_map)
    if as_map:
        classes = ask.keys_of_maps(wanted)
    return Opened(
        name=what,
        digest=fingerprint.of_json([[fingerprint.of_file(one) for one in files_of(path, model)], options]),
        size_bytes=sum(one.stat().st_size for one in files_of(path, model)),
        ask=ask,
        answers=answers,
        says=says,
        classes=classes,
        outputs=further,
        runtime="ONNX Runtime",
    )


def _check_places(path: Path, model: Any) -> None:
    """Refuse a file that takes weights from anywhere but its own folder: it could read any file of this machine."""
    helper = require("onnx.external_data_helper", feature=_FEATURE, extra="export")
    home = path.resolve().parent
    for tensor in helper._get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).resolve().is_relative_to(home):
                raise UsageError(
                    f"{path} was refused: its weights '{tensor.name}' are to be read from '{entry.value}', which is "
                    "outside the file's folder. Put the weights beside the file, or save it with its weights inside."
                )


def files_of(path: Path, model: Any) -> list[Path]:
    """Return an ONNX file and the files beside it that hold its weights."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and tensor.data_location == 1
    }
    return [path, *sorted(path.parent / name for name in names)]


class _Sessions:
    """Sessions of one file: opened when first needed, one for each number of threads, shared by all copies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[int, Any] = {}

    def of(self, threads: int) -> Any:
        """Return the session that uses so many threads."""
        if threads not in self._open:
            self._open[threads] = _session(self.path, threads)
        return self._open[threads]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Sessions, (self.path,)


def _session(path: Path, threads: int) -> Any:
    runtime = require("onnxruntime", feature=_FEATURE, extra="export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise UsageError(f"{path} is not a readable ONNX model: {' '.join(str(error).split())[:300]}") from error


def _read(path: Path) -> Any:
    onnx = require("onnx", feature=_FEATURE, extra="export")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise UsageError(f"{path} is not a readable ONNX model: {' '.join(str(error).split())[:300]}") from error


@dataclass(frozen=True)
class _Feed:
    """One input of the file and what goes into it: the whole sample, or one column of a table."""

    name: str
    dtype: str
    batch: int | None
    layout: str = "nchw"
    flat: bool = False
    column: int | None = None

    def of(self, inputs: Array, what: str) -> Array:
        values = inputs[:, self.column : self.column + 1] if self.column is not None else inputs
        return as_type(arranged(values, self.layout, self.flat), np.dtype(self.dtype), what=what)


def _feeds(
    inputs: Sequence[Any], options: Mapping[str, Any], wanted: Wanted, *, place: str, what: str
) -> tuple[_Feed, ...]:
    named = {one.name: one for one in inputs}
    chosen = options.get("input")
    if chosen is not None and chosen not in named:
        raise UsageError(f"{place}.args.input: {what} has no input '{chosen}'.{did_you_mean(chosen, named)}")
    if chosen is None and len(inputs) > 1:
        return _by_column(inputs, wanted, place=place, what=what)
    if chosen is not None and len(inputs) > 1:
        others = ", ".join(name for name in named if name != chosen)
        raise TeacherError(f"{place}: {what} also needs {others}. Export the model with its samples as the only input.")
    one = named[chosen] if chosen else inputs[0]
    takes = list(one.shape[1:]) if one.shape else None
    layout, flat = layout_for(wanted.shape, takes, options.get("layout"), place=place, what=what)
    return (_Feed(one.name, _dtype(one, what), _batch(one), layout, flat),)


def _by_column(inputs: Sequence[Any], wanted: Wanted, *, place: str, what: str) -> tuple[_Feed, ...]:
    """Return the feeds of a file that takes each column of a table by name."""
    places = [column.name for column in wanted.columns if column.categories is None and column.width == 1]
    names = [one.name for one in inputs]
    if len(places) != len(wanted.columns) or set(places) != set(names):
        raise TeacherError(
            f"{place}: {what} has the inputs {', '.join(names)}; expected one for the whole sample, or one for each "
            f"column of numbers of the data ({', '.join(column.name for column in wanted.columns) or 'no table'})."
        )
    return tuple(_Feed(one.name, _dtype(one, what), _batch(one), column=places.index(one.name)) for one in inputs)


def _dtype(one: Any, what: str) -> str:
    kind = one.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise TeacherError(f"{what} takes {one.type} as '{one.name}'; expected numbers.")
    return _TYPES[kind]


def _batch(one: Any) -> int | None:
    size = one.shape[0] if one.shape else None
    return size if isinstance(size, int) and size > 0 else None


def _main_output(names: Sequence[str], chosen: str | None, *, place: str, what: str) -> str:
    if chosen is not None:
        if chosen not in names:
            raise UsageError(f"{place}.args.output: {what} has no output '{chosen}'.{did_you_mean(chosen, names)}")
        return chosen
    usual = [name for name in _USUAL if name in names]
    if len(names) > 1 and not usual:
        raise TeacherError(
            f"{place}: {what} has the outputs {', '.join(names)}. Say which is its answer: "
            f"'args: {{output: {names[0]}}}'."
        )
    return usual[0] if len(names) > 1 else names[0]


def _answers_said(model: Any, output: Any, as_map: bool, wanted: Wanted) -> tuple[Answers | None, str]:
    """Return what the file itself says about its answer, and where."""
    if wanted.values:
        return "values", f"the task is {wanted.task}"
    if as_map:
        return "probabilities", f"its output '{output.name}' maps classes to probabilities"
    if output.type in ("tensor(int64)", "tensor(int32)", "tensor(string)"):
        return "labels", f"its output '{output.name}' is {output.type}"
    maker = next((node for node in model.graph.node if output.name in node.output), None)
    if maker is not None and maker.op_type == "Softmax":
        return "probabilities", "its last step is Softmax"
    if maker is not None and maker.op_type == "LogSoftmax":
        return "logits", "its last step is LogSoftmax"
    return None, ""


def _classes_said(metadata: Mapping[str, str], as_map: bool) -> tuple[str, ...] | None:
    """Return the class names in the file's metadata, as potstill and others write them."""
    for key in ("labels", "classes"):
        try:
            found = json.loads(metadata.get(key, ""))
        except ValueError:
            continue
        if isinstance(found, list) and found and not as_map:
            return tuple(str(name) for name in found)
    return None


def _class_labels(model: Any, output: str) -> tuple[str, ...] | None:
    """Return the class labels of the classifier that makes an output's columns, None where nothing says them.

    Converters of scikit-learn, LightGBM and XGBoost write them on the classifier's node. Between it and the output
    there may only be steps that leave the columns where they are.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    names, seen = [output], set()
    while names:
        name = names.pop(0)
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _CLASSIFIERS:
            held = [label for one in node.attribute if one.name.startswith("classlabels_") for label in _labels(one)]
            return tuple(map(class_text, held)) if held and name != node.output[0] else None
        if node.op_type in _IN_PLACE:
            names += node.input
    return None


def _labels(attribute: Any) -> list[Any]:
    return [*attribute.ints, *attribute.strings]


@dataclass(frozen=True)
class _Ask:
    """Answers inputs by running the file."""

    sessions: _Sessions
    what: str
    main: str
    further: tuple[str, ...]
    feeds: tuple[_Feed, ...]
    as_map: bool
    keys: list[Any] = field(default_factory=list)

    def __call__(self, inputs: Array) -> dict[str, Array]:
        """Return the answer (b, c) first, and further outputs by name."""
        sizes = {feed.batch for feed in self.feeds}
        return in_batches_of(sizes.pop() if len(sizes) == 1 else None, self._run, inputs)

    def _run(self, inputs: Array) -> dict[str, Array]:
        session = self.sessions.of(torch.get_num_threads())
        fed = {feed.name: feed.of(inputs, self.what) for feed in self.feeds}
        try:
            found = session.run([self.main, *self.further], fed)
        except Exception as error:
            raise TeacherError(f"{self.what} failed: {' '.join(str(error).split())[:300]}") from error
        main = found[0]
        if self.as_map:
            if not self.keys:
                self.keys.extend(main[0])
            main = np.array([[row[key] for key in self.keys] for row in main], dtype=np.float32)
        return dict(zip((self.main, *self.further), [np.asarray(main), *found[1:]], strict=True))

    def keys_of_maps(self, wanted: Wanted) -> tuple[str, ...]:
        """Return the classes of a file that answers with a mapping, by asking it about zeros."""
        replace(self)(np.zeros((1, *wanted.shape), dtype=np.float32))
        return tuple(map(class_text, self.keys))
