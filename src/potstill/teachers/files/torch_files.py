"""Torch programs in files as teachers: TorchScript and ``torch.export``.

Shape legend: b samples.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import TeacherError, UsageError
from potstill.models.load import output_tensor
from potstill.teachers.files.inputs import options_of
from potstill.teachers.files.torch_archive import check_script, plain_program
from potstill.teachers.foreign import Opened, Wanted


def is_script(path: Path) -> bool:
    """Return whether a file is TorchScript, and not a checkpoint of weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(name.endswith("constants.pkl") for name in names)


def open_script(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, allow_pickle: bool = False
) -> Opened:
    """Open a TorchScript file (``torch.jit.save``) as a teacher.

    Raises:
        UsageError: the file holds weights only, its code reads or writes files, or it cannot be read.

    """
    options_of(args, (), place=place, kind="a TorchScript file")
    if not is_script(path):
        raise UsageError(
            f"{place}: {path} is no TorchScript file. Weights of a torch model need the model as well: give "
            f"{place}.model and {place}.weights. A whole model is saved with torch.export.save (.pt2), "
            "torch.onnx.export or torch.jit.save."
        )
    if not allow_pickle:
        check_script(path)
    try:
        with warnings.catch_warnings():
            # torch would like to see torch.export files instead; a user with such a file cannot act on that.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UsageError(f"{path} is not a readable TorchScript file: {' '.join(str(error).split())[:300]}") from error
    return _opened(path, TorchFile(module, path.name), wanted)


def open_program(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, allow_pickle: bool = False
) -> Opened:
    """Open a ``torch.export`` file as a teacher; without ``allow_pickle`` nothing in it can run but its operators.

    Raises:
        UsageError: the file cannot be read, or could run code.
        TeacherError: it takes samples of another shape, or several inputs.

    """
    options_of(args, (), place=place, kind="a torch.export file")
    source = str(path) if allow_pickle else plain_program(path)
    try:
        program = torch.export.load(source)
    except Exception as error:
        raise UsageError(f"{path} is not a readable torch.export file: {' '.join(str(error).split())[:300]}") from error
    fakes = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in _inputs_of(program)
    ]
    if len(fakes) != 1 or not isinstance(fakes[0], Tensor):
        raise TeacherError(f"{place}: {path.name} takes {len(fakes)} inputs; export the model with its samples only.")
    batch, *shape = [size if isinstance(size, int) else None for size in fakes[0].shape]
    if len(shape) != len(wanted.shape) or any(
        size not in (None, own) for size, own in zip(shape, wanted.shape, strict=True)
    ):
        takes = " x ".join("any" if size is None else str(size) for size in shape)
        raise TeacherError(
            f"{place}: {path.name} takes samples of shape {takes}, but the data has "
            f"{' x '.join(map(str, wanted.shape))} behind the teacher's preprocessing."
        )
    return _opened(path, TorchFile(program.module(), path.name, batch=batch, fixed_mode=True), wanted)


def _inputs_of(program: Any) -> set[str]:
    return set(program.graph_signature.user_inputs)


def _opened(path: Path, module: TorchFile, wanted: Wanted) -> Opened:
    return Opened(
        name=path.name,
        digest=fingerprint.of_file(path),
        size_bytes=path.stat().st_size,
        module=module.eval(),
        answers="values" if wanted.values else None,
        says=f"the task is {wanted.task}",
    )


class TorchFile(nn.Module):
    """A torch program from a file. Its layers cannot be tapped: the file has operations, not modules.

    Args:
        program: what the file holds.
        name: the file's name.
        batch: the number of samples it takes at once, where that is fixed.
        fixed_mode: whether the program is what it was when it was exported: it has no training mode and stays on the
            device it was exported for.

    """

    def __init__(self, program: nn.Module, name: str, *, batch: int | None = None, fixed_mode: bool = False) -> None:
        super().__init__()
        self.program = program
        self.file = name
        self.batch = batch
        self.fixed_mode = fixed_mode

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the program's first answer (b, ...) to inputs (b, ...)."""
        held = [*self.program.parameters(), *self.program.buffers()] if self.fixed_mode else []
        home = held[0].device if held else inputs.device
        return self._in_batches(inputs.to(home)).to(inputs.device)

    def _in_batches(self, inputs: Tensor) -> Tensor:
        size = self.batch
        if size is None or len(inputs) == size:
            return output_tensor(self.program(inputs))
        parts = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            fill = part[-1:].expand(size - len(part), *part.shape[1:])
            parts.append(output_tensor(self.program(torch.cat([part, fill])))[: len(part)])
        return torch.cat(parts)

    def train(self, mode: bool = True) -> TorchFile:
        """Set the mode; an exported program keeps the one it was exported in."""
        if self.fixed_mode:
            self.training = mode
            return self
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TorchFile:
        # An exported program holds the device in its operations: moving its weights alone would break it.
        return self if self.fixed_mode else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Return what tells two of these apart in ``print(model)``."""
        return repr(self.file)

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchFile:
        # Copies of TorchScript parameters are no leaves that can be frozen: the program is shared.
        copied = TorchFile(self.program, self.file, batch=self.batch, fixed_mode=self.fixed_mode)
        copied.training = self.training
        memo[id(self)] = copied
        return copied
