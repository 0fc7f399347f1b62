"""What would fail only after the training, tried before it on the untrained student: copies, rebuilding, export."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.alike import apart
from potstill.core.errors import PotstillError
from potstill.core.functions import cause
from potstill.core.source import digests, files_of
from potstill.evaluation.predict import evaluating
from potstill.export import OnnxModel, parity, quantize
from potstill.models import zoo
from potstill.models.beside_weights import copied, unsaved_tensors
from potstill.models.load import output_tensor
from potstill.pipeline.build import Job
from potstill.pipeline.exporting import write_onnx
from potstill.pipeline.folder import RunFolder, package_versions
from potstill.pipeline.stages import in_target_units
from potstill.teachers import TorchModel

SIZES = (1, 2, 7)
"""Batches of these sizes have to be answered alike."""
KEPT = "export_tried"
"""The place in ``run.json`` of what was found out."""
_ALIKE = 1e-3
"""Largest difference of two answers that count as equal, relative to their spread."""
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_tried: dict[str, list[str]] = {}
"""What was found out in this process, by what the student computes with."""


def try_student(job: Job, folder: RunFolder | None = None) -> tuple[str, ...]:
    """Try on the untrained student what would fail only after the training; return what to warn of.

    It is copied, answers batches of several sizes, is built again and given its weights, and is exported to every
    wanted format and compared. A zoo model is not exported: it is known to be exportable.

    Args:
        job: the run.
        folder: the run folder, where what was found out of the same student is looked up and noted.

    Raises:
        PotstillError: what fails, and how to change the student.

    """
    model = job.student.fresh(job.recipe.seed, "alone")
    copied(model)
    rows = np.arange(max(SIZES)) % len(job.data.train)
    inputs = job.data.train.fetch(rows)
    ask = _asking(job, model)
    together, told = ask(inputs), []
    wanted = job.recipe.export.wanted
    if not _alike(together, ask(inputs)):
        text = (
            "The student answers the same samples differently when it is asked again, in evaluation mode: its forward "
            "draws random numbers. Use nn.Dropout, or pass training=self.training to the function that drops."
        )
        if wanted:
            raise PotstillError(f"{text} No exported file could answer like it.")
        return (text,)
    for size in SIZES[:-1]:
        if not _alike(together[:size], ask(inputs[:size])):
            told = [
                f"The student answers a sample differently in a batch of {size} than in one of {max(SIZES)}, in "
                "evaluation mode: its answers depend on the rest of the batch, and every score on the batch size."
            ]
    _try_rebuilding(job, model, inputs, together)
    if wanted and (job.student.given is not None or job.student.section.model not in zoo.__all__):
        told += _try_files(job, model, inputs, together, folder)
    return tuple(told)


def _asking(job: Job, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what asks the model in evaluation mode and checks that it answers every sample with one row."""

    def ask(inputs: Tensor) -> Tensor:
        size = len(inputs)
        try:
            with evaluating(model), torch.no_grad():
                answer = output_tensor(model(job.student.preprocess(inputs)))
        except PotstillError:
            raise
        except Exception as error:
            raise PotstillError(
                f"The student fails on a batch of {size} samples: {cause(error)}. {_FIXED_SIZE}"
            ) from error
        answer = answer[:, None] if answer.dim() == 1 else answer
        if tuple(answer.shape) != (size, job.data.num_outputs):
            raise PotstillError(
                f"The student answers a batch of {size} samples with numbers of shape {tuple(answer.shape)}, expected "
                f"({size}, {job.data.num_outputs}). {_FIXED_SIZE}"
            )
        return answer.to(torch.float32)

    return ask


_FIXED_SIZE = (
    "Batches of any size have to work: the last one of a split is smaller, and a deployed file answers single samples. "
    "Look for a batch size written into a view or reshape, and for squeeze() without a dimension."
)


def _try_rebuilding(job: Job, model: nn.Module, inputs: Tensor, expected: Tensor) -> None:
    """Build the student again and give it its weights, as is done after the training."""
    again = job.student.build(job.recipe.seed, "alone")
    again.load_state_dict(model.state_dict())
    if _alike(expected, _asking(job, again)(inputs)):
        return
    first, second = unsaved_tensors(model), unsaved_tensors(again)
    other = [name for name, one in first.items() if name not in second or not torch.equal(one, second[name])]
    what = "something that its weights do not hold differs"
    if other:
        what = f"the tensor '{other[0]}' is in no state dict (a buffer with persistent=False, or a plain attribute)"
    raise PotstillError(
        "The student, built twice from one seed and given the same weights, answers differently: "
        f"{what}, and it comes out another way in every build. After the training it would be rebuilt as another "
        "model. Register it as a buffer (persistent, the default), or make it from torch's own random numbers, which "
        "the seed fixes."
    )


def _try_files(job: Job, model: nn.Module, inputs: Tensor, expected: Tensor, folder: RunFolder | None) -> list[str]:
    """Write every wanted format and compare; the same model is tried once in a process, and once in a run folder."""
    formats = job.recipe.export.wanted, job.recipe.export.formats is None
    about = tuple(inputs.shape[1:]), str(inputs.dtype), job.data.task, formats, repr(job.student.preprocess)
    key = _computes_with(job, model, about)
    if key is None:
        return _write_and_compare(job, model, inputs, expected)
    before = {} if folder is None else folder.state.get(KEPT, {})
    if key not in _tried:
        known = before.get("key") == key
        _tried[key] = list(before["told"] if known else _write_and_compare(job, model, inputs, expected))
    if folder is not None and folder.path.is_dir():
        folder.state[KEPT] = {"key": key, "told": _tried[key]}
    return _tried[key]


def _computes_with(job: Job, model: nn.Module, about: Any) -> str | None:
    """Return what a model computes with, the same in any process; None where its code is in no file, or not all told.

    That is its layers, their settings, the shapes of its weights, and its code.
    """
    classes = {type(module) for module in model.modules()}
    settings = [
        (name, key, _told(value))
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if key not in _OF_EVERY_MODULE
    ]
    files = [getattr(sys.modules.get(one.__module__), "__file__", None) for one in classes]
    if None in files or any(text is None for _, _, text in settings):
        return None
    written = [job.student.given or job.student.section.model]
    code = digests(files_of([*written, *classes], base=job.base), base=job.base)
    shapes = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    layers = [fingerprint.of_json(str(TorchModel(model))), settings, shapes]
    return fingerprint.of_json([layers, code, job.student.section.args, repr(about), package_versions()])


def _told(value: Any) -> str | None:
    """Return a setting of a layer as text; None for one that no text tells apart from all others."""
    if isinstance(value, list | tuple):
        texts = [_told(item) for item in value]
        return None if None in texts else str(texts)
    if isinstance(value, FunctionType) and value.__module__.startswith("torch."):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value) if isinstance(value, _PLAIN) else None


def _write_and_compare(job: Job, model: nn.Module, inputs: Tensor, expected: Tensor) -> list[str]:
    advice = "Change the student, or do without the file: export: {formats: []}."
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        path = Path(folder) / "student.onnx"
        try:
            write_onnx(job, model, path, inputs[:2])
            file = OnnxModel(path)
            answers = np.concatenate([_asked(file, inputs[:size].numpy()) for size in SIZES])
            wanted = in_target_units(job, torch.cat([expected[:size] for size in SIZES]).numpy())
            known = job.data.for_teacher().train.targets
            targets = np.resize(known[:1], (len(wanted), *known.shape[1:]))
            found = parity(wanted, answers, targets, job.data.task, exact=True)
            if not found.ok:
                raise PotstillError(f"of its ONNX file, {'; '.join(found.reasons)}.")
        except PotstillError as error:
            raise PotstillError(
                f"The student cannot be exported, tried before the training: {error} {advice}"
            ) from error
        if "onnx-int8" not in job.recipe.export.wanted:
            return []
        try:
            quantize(path, Path(folder) / "student-int8.onnx", [inputs.numpy()])
        except PotstillError as error:
            if job.recipe.export.formats is not None:
                raise
            return [f"There will be no int8 file of the student, tried before the training: {error}"]
    return []


def _asked(file: OnnxModel, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        return file(inputs)
    except Exception as error:
        raise PotstillError(f"its ONNX file fails on a batch of {len(inputs)}: {cause(error)}.") from error


def _alike(first: Tensor, second: Tensor) -> bool:
    return apart(first.numpy(), second.numpy()) <= _ALIKE
