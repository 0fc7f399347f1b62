"""The student as one ONNX file that takes raw inputs: preprocessing, network and labels inside.

Shape legend: b samples in a batch, c classes or regression columns, h/w height and width.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core import fingerprint
from potstill.core.errors import DataError, PotstillError, UsageError
from potstill.core.files import atomic_path, read_json
from potstill.core.optional import require
from potstill.core.scale import TargetScale
from potstill.data.columns import Column
from potstill.data.frames import encoded
from potstill.data.raw import as_array
from potstill.export.student import Student
from potstill.export.trees import trees_model
from potstill.models.beside_weights import copied, without_computed_weights
from potstill.models.preprocess import Preprocessor
from potstill.models.zoo.trees import Trees
from potstill.tasks import TaskName, task_of

Array = np.ndarray[Any, Any]

OPSET = 18
"""The newest operator set that every supported torch writes natively."""

EXACT = ("preprocess", "restore", "calibrate")
"""Nodes whose names start with these scale what goes in and what comes out; int8 leaves them as they are."""

_ONE_FILE = 2**31 - 2**20


class _Prepare(nn.Module):
    """A `Preprocessor` as it goes into a file, for inputs of one shape.

    Resizing is a product with two constant matrices that hold torch's own antialiased weights: the result is the same
    to float rounding, and every runtime has a matrix product, while few have antialiased resizing.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, preprocess: Preprocessor, shape: Sequence[int]) -> None:
        super().__init__()
        size = preprocess.size
        self.resizes = size is not None and len(shape) == 3 and tuple(shape[1:]) != (size, size)
        self.normalise = Preprocessor(preprocess.mean, preprocess.std)
        if self.resizes and size is not None:
            self.register_buffer("rows", _resize_weights(shape[1], size))
            self.register_buffer("columns", _resize_weights(shape[2], size).T.contiguous())

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(torch.float32) / 255.0 if inputs.dtype == torch.uint8 else inputs.to(torch.float32)
        if self.resizes:
            inputs = self.rows @ inputs @ self.columns
        result: Tensor = self.normalise(inputs)
        return result


def _resize_weights(length: int, size: int) -> Tensor:
    """Return (size, length): what each new pixel takes from each old one along one axis."""
    unit = torch.eye(length)[None, None]
    return F.interpolate(unit, size=(size, length), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def export_onnx(
    model: nn.Module,
    preprocess: Preprocessor,
    example_inputs: Tensor,
    path: Path,
    *,
    task: TaskName,
    classes: Sequence[str] = (),
    recipe_hash: str = "",
    scale: TargetScale | None = None,
    columns: Sequence[Column] = (),
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
) -> Path:
    """Write a model and its preprocessing to one float32 ONNX file.

    The file's input is named ``input``, of the examples' type and shape with any batch size. Its outputs are ``logits``
    and ``probabilities``, which are calibrated (classification), or ``values`` (regression). Labels, recipe hash, task,
    temperature, columns and version are in its metadata. The model is not changed. Nothing is left behind on failure.

    Args:
        model: the trained model.
        preprocess: its preprocessing.
        example_inputs: (b, ...) raw inputs, uint8 pixels or float; fixes type and shape of the file's input.
        path: where to write.
        task: classification or regression.
        classes: class names in output order.
        recipe_hash: of the recipe that made the model.
        scale: the standard units that the model learned values in; the file answers in the target's.
        columns: the columns of the table that the model learned on; they stand in the metadata.
        temperature: that a classifier's logits are divided by before they become probabilities.
        thresholds: probability from which on each class is a yes, of several labels; they stand in the metadata.

    Raises:
        UsageError: no example inputs, or a model too large for one file.
        PotstillError: a package is missing, the model cannot be exported (with the reason), or the disk is full.

    """
    require("onnxscript", feature="exporting to ONNX", extra="export")
    onnx = require("onnx", feature="exporting to ONNX", extra="export")
    if len(example_inputs) == 0:
        raise UsageError("Exporting needs at least one example input.")
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > _ONE_FILE:
        raise UsageError(f"The model has {size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB.")
    prepare = _Prepare(copy.deepcopy(preprocess).cpu(), example_inputs.shape[1:])
    student = _WithProbabilities(
        copied(model).cpu(), prepare, task=task, classes=classes, scale=scale, temperature=temperature
    ).eval()
    if isinstance(model, Trees):
        proto = trees_model(student, model, preprocess, example_inputs, OPSET)
    else:
        proto = _network(student, type(model).__name__, example_inputs, task)
    wanted = {
        "labels": json.dumps(list(classes), ensure_ascii=False),
        "recipe_hash": recipe_hash,
        "task": task,
        "potstill_version": package_version(),
    }
    if task_of(task).probabilities is not None:
        wanted["temperature"] = repr(float(temperature))
    if thresholds:
        wanted["thresholds"] = json.dumps(list(thresholds))
    if columns:
        wanted["columns"] = json.dumps([column.to_json() for column in columns], ensure_ascii=False)
    set_metadata(proto, wanted)
    onnx.checker.check_model(proto)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return Path(path)


def _network(student: _WithProbabilities, name: str, inputs: Tensor, task: TaskName) -> Any:
    """Return a student of torch layers as an ONNX model."""
    without_computed_weights(student.model)
    # With one row the exporter would take the batch size for a constant.
    example = inputs[:1].cpu().repeat(2, *[1] * (inputs.dim() - 1))
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                student,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=["input"],
                output_names=list(task_of(task).signature),
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).partition("For more information")[0].split())[:400]
        raise PotstillError(
            f"{name} could not be exported to ONNX: {reason}. Usual causes: Python control flow that "
            "depends on tensor values, or a batch size that is fixed inside the model."
        ) from error
    if program is None:
        raise PotstillError(f"{name} could not be exported to ONNX: torch returned nothing.")
    _name_exact(program.model)
    return program.model_proto


class _WithProbabilities(Student):
    """A classifier as it goes into a file: with both its outputs."""

    def forward(self, inputs: Tensor | Any) -> Any:
        logits = super().forward(inputs)
        return logits if self.calibrate is None else (logits, self.calibrate(logits))


def _name_exact(model: Any) -> None:
    """Move the exporter's notes on what scales into node names, which survive optimisation, and drop all notes.

    The notes hold stack traces with the paths of the user's own files, which may be no text, and make small models a
    tenth larger.
    """
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        for part in EXACT:
            if f"'{part}'" in scopes:
                node.name = f"{part}/{node.name}"
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def set_metadata(proto: Any, values: Mapping[str, str]) -> None:
    """Add ``values`` to what an ONNX model says about itself."""
    kept = {entry.key: entry.value for entry in proto.metadata_props} | dict(values)
    del proto.metadata_props[:]
    for key, value in kept.items():
        # Names of files may hold halves of characters, which JSON reads back from their escapes.
        proto.metadata_props.add(key=key, value=value.encode("utf-8", "backslashreplace").decode("utf-8"))


def package_version() -> str:
    """Return the installed version of potstill."""
    try:
        return version("potstill")
    except PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own internals from the user: they are nothing a user can act on."""
    names = (
        *("root", "torch.onnx", "torch.onnx._internal.exporter._registration"),
        "torch.fx.experimental.symbolic_shapes",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refuse_damage(path: Path) -> None:
    """Refuse a file that its run checked when it was exported, and that is another now."""
    try:
        entries = read_json(path.with_name("parity.json"))["files"]
        digests = [entry.get("sha256") for entry in entries if entry["file"] == path.name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if digests and digests[0] not in (None, fingerprint.of_file(path)):
        raise damaged(path)


def damaged(path: Path) -> PotstillError:
    """Return the error of an exported file that is another now."""
    return PotstillError(
        f"{path} is not what was exported: it was changed, cut or damaged since. Copy the folder again, or give "
        "`potstill export` its run."
    )


class OnnxModel:
    """An ONNX file as a function from raw inputs to outputs, on a fixed number of CPU threads.

    Args:
        path: the file.
        threads: threads that one call may use.

    Attributes:
        metadata: what the file says about itself: ``labels`` (a JSON list), ``recipe_hash``, ``task``,
            ``potstill_version``, and for tables ``columns``.
        columns: the columns of the table that the model learned on; none where it was no table.

    Raises:
        UsageError: no such file, or one that is not a readable ONNX model.
        PotstillError: it lies in the folder that a run exported it to, and is not what was exported.

    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime = require("onnxruntime", feature="running ONNX files", extra="export")
        if not Path(path).is_file():
            raise UsageError(f"There is no file {path}.")
        _refuse_damage(Path(path))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        name = str(path)
        # The runtime takes no name with halves of characters, as Python gives to what its locale cannot read.
        source = name if name == name.encode("utf-8", "replace").decode("utf-8") else Path(path).read_bytes()
        try:
            self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UsageError(f"{path} is not a readable ONNX model: {' '.join(str(error).split())[:300]}") from error
        self._input = self._session.get_inputs()[0]
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._dtype = np.dtype(np.uint8 if self._input.type == "tensor(uint8)" else np.float32)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.columns = tuple(Column.from_json(column) for column in json.loads(self.metadata.get("columns", "[]")))

    def probabilities(self, inputs: Array | Tensor | Any) -> Array:
        """Return calibrated class probabilities (b, c) of inputs as for a call.

        Raises:
            DataError: as for a call.
            UsageError: a file without probabilities: of a regression, or written by an older version.

        """
        if "probabilities" not in self._outputs:
            raise UsageError("The file has no 'probabilities': it answers with values, or an older version wrote it.")
        return self._asked("probabilities", inputs)

    def __call__(self, inputs: Array | Tensor | Any) -> Array:
        """Return logits or values (b, c) of raw inputs (b, ...), or of named columns for a model of tables.

        Raises:
            DataError: a column is missing, or has another type than in training; or inputs of another type or shape
                than the file's, or that are masked.

        """
        return self._asked(self._outputs[0], inputs)

    def _asked(self, output: str, inputs: Array | Tensor | Any) -> Array:
        if self.columns and not isinstance(inputs, Tensor | np.ndarray):
            inputs = encoded(inputs, self.columns)
        array = as_array(inputs, "the inputs")
        if np.ma.is_masked(array):
            raise DataError("The inputs are masked (missing), and the file needs every number.")
        expected = tuple(self._input.shape[1:])
        if array.dtype != self._dtype or array.ndim == 0 or array.shape[1:] != expected:
            raise DataError(
                f"The file takes {self._dtype} inputs of shape (batch, {', '.join(map(str, expected))}); "
                f"got {array.dtype} of shape {array.shape}."
            )
        # Many graphs cannot compute on nothing.
        given = np.ma.getdata(array) if len(array) else np.zeros((1, *expected), self._dtype)
        result: Array = self._session.run([output], {self._input.name: given})[0]
        return result[: len(array)]
