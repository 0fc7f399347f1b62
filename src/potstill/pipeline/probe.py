"""What a model computes, in a few numbers: a fingerprint that survives another machine's rounding.

Shape legend: b samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from torch import Tensor, nn

from potstill.core.errors import PotstillError
from potstill.core.signals import Batch
from potstill.core.tensors import write_tensors
from potstill.data.samples import Samples
from potstill.models.load import output_signals
from potstill.teachers import Reads, Source, Teacher

Probe = Mapping[str, np.ndarray[Any, Any]]
"""Numbers by what they are: ``answers``, ``answers while training``, ``gradient``."""
SAMPLES = 6
TOLERANCE = 1e-3
"""Largest difference that is rounding, relative to the largest number."""
_MOST = 1024
_MODES = (("answers", False), ("answers while training", True))


def inputs_for(samples: Samples) -> Tensor:
    """Return the samples that models are probed with: a few, evenly over the split."""
    return samples.fetch(np.unique(np.linspace(0, len(samples) - 1, SAMPLES).astype(np.int64)))


def probe(model: nn.Module, inputs: Tensor) -> Probe:
    """Return what a model answers in eval and in train mode, and a gradient, on some inputs.

    The model is as it was afterwards, buffers included. Numbers that are not the same when they are computed twice
    (a forward that draws its own random numbers) are left out, and so is what the model cannot do.

    Args:
        model: on any device; computed in its own precision, without autocast.
        inputs: (b, ...) as the model sees them.

    """
    first, second = _numbers(model, inputs), _numbers(model, inputs)
    return {name: value for name, value in first.items() if not difference({name: value}, {name: second.get(name)})}


def answers(model: Source, inputs: Tensor) -> Probe:
    """Return what a teacher answers to some inputs (b, ...), in its own units; nothing where it fails."""
    ids, name = torch.arange(len(inputs)), _MODES[0][0]
    try:
        with model.teaching(Reads(outputs=model.facts.signals - {"logits"})) as teacher:
            first, second = (_answered(teacher, Batch(ids, torch.zeros_like(ids), inputs)) for _ in range(2))
    except PotstillError:
        return {}
    return {} if difference({name: first}, {name: second}) else {name: first}


def _answered(teacher: Teacher, batch: Batch) -> np.ndarray[Any, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return np.concatenate([_few(value) for _, value in sorted(teacher(batch).items())])


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words what differs by more than rounding, or an empty text; parts that only one side has do not count.

    Args:
        before: the numbers as they were.
        now: the numbers as they are.

    """
    for name in before:
        old, new = before[name], now.get(name)
        if old is None or new is None:
            continue
        if old.shape != new.shape:
            return f"{name} of shape {new.shape} instead of {old.shape}"
        if old.size == 0 or not np.array_equal(np.isfinite(old), np.isfinite(new)):
            if old.size:
                return f"{name}: other numbers are NaN or infinite"
            continue
        finite = np.isfinite(old)
        apart = float(np.abs(old - new, where=finite, out=np.zeros_like(old)).max())
        largest = float(np.abs(old, where=finite, out=np.zeros_like(old)).max())
        if apart > TOLERANCE * max(largest, 1e-6):
            return f"its {name} differ by up to {apart:.3g} (the largest was {largest:.3g})"
    return ""


def write(path: Path, found: Probe, note: Mapping[str, Any] | None = None) -> None:
    """Keep a probe in a file, with a note as JSON."""
    metadata = None if note is None else {"note": json.dumps(note)}
    write_tensors(path, {name: torch.from_numpy(value) for name, value in found.items()}, metadata)


def read_note(path: Path) -> dict[str, Any]:
    """Return the note beside a probe; empty where there is none that can be read."""
    try:
        with safe_open(path, "numpy") as file:
            note: dict[str, Any] = json.loads((file.metadata() or {}).get("note", "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return note


def read(path: Path) -> Probe | None:
    """Return a probe from its file, or None where there is none that can be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _numbers(model: nn.Module, inputs: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    with _untouched(model):
        for name, training in _MODES:
            try:
                found |= _in_mode(model, inputs, name, training=training)
            except Exception:  # noqa: S112  whatever a user's model cannot do is not compared
                continue
    return found


def _in_mode(model: nn.Module, inputs: Tensor, name: str, *, training: bool) -> dict[str, np.ndarray[Any, Any]]:
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    leaf = inputs.detach().clone().to(device)
    leaf.requires_grad_(training and leaf.is_floating_point())
    model.train(training)
    torch.default_generator.manual_seed(0)
    with torch.set_grad_enabled(training):
        signals = output_signals(model, model(leaf))
    found = {name: np.concatenate([_few(value) for _, value in sorted(signals.items())])}
    if training:
        total = sum((value.float() * _pattern(value)).sum() for value in signals.values())
        sources = [value for value in (leaf, *model.parameters()) if value.requires_grad]
        if isinstance(total, Tensor) and total.requires_grad and sources:
            slopes = torch.autograd.grad(total, sources, allow_unused=True)
            sums = [0.0 if slope is None else float((slope.float() * _pattern(slope)).sum()) for slope in slopes]
            found["gradient"] = np.array(sums, np.float32)
    return found


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Give a model back with its modes, buffers and gradient flags as they were; random numbers too."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(value, value.requires_grad) for value in model.parameters()]
    buffers = [
        (module, name, value, value.detach().clone())
        for module in model.modules()
        for name, value in module._buffers.items()
        if value is not None
    ]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            for parameter, _ in flags:
                parameter.requires_grad_(parameter.is_floating_point())
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        with torch.no_grad():
            for module, name, value, content in buffers:
                value.copy_(content)
                module._buffers[name] = value
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training


def _few(values: Tensor) -> np.ndarray[Any, Any]:
    flat = values.detach().float().cpu().reshape(-1)
    few: np.ndarray[Any, Any] = flat[:: max(1, len(flat) // _MOST)][:_MOST].numpy().copy()
    return few


def _pattern(values: Tensor) -> Tensor:
    """Return fixed numbers of a tensor's shape, all different."""
    return torch.cos(torch.arange(values.numel(), dtype=torch.float32, device=values.device)).reshape(values.shape)
