"""Checkpoints: safetensors and JSON, so that a training killed at any moment goes on as if nothing had happened.

``checkpoint.json`` names the tensor files that belong to it and is replaced atomically, after they are on disk:
whatever moment the process dies at, it names a complete checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from potstill.core.errors import TrainingError, UsageError
from potstill.core.files import read_json, write_json
from potstill.core.tensors import write_tensors

Stopped = Literal["finished", "patience", "minutes"]
INDEX = "checkpoint.json"
FORMAT = 1


@dataclass(frozen=True)
class Counters:
    """How far training has come.

    Attributes:
        step: optimiser steps taken.
        epoch: epochs finished.
        batch: batches of the current epoch that are done.
        seconds: time spent, interrupted runs included.
        best_epoch: the epoch (from 1) with the best validation so far; 0 before the first.
        best_metric: its validation metric.
        best_loss: its validation loss.
        history_bytes: length of history.jsonl at this moment.
        seen: samples of the current epoch that are done.
        threads: of the steps to come, where they are chosen; 0 while they are not.
        stopped: why training is over, or None while it is not.

    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_metric: float = float("-inf")
    best_loss: float = float("inf")
    history_bytes: int = 0
    seen: int = 0
    threads: int = 0
    stopped: Stopped | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One moment of training: counters, all tensors, and the best weights so far (empty before the first)."""

    counters: Counters
    tensors: Mapping[str, Tensor]
    best: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before stays valid until this one is complete.

    Args:
        folder: the checkpoint folder; other files in it are removed.
        checkpoint: what to keep.
        identity: JSON-like description of the training, compared by `load`.

    Raises:
        PotstillError: the disk is full or read-only.

    """
    counters = checkpoint.counters
    state = f"state-{counters.step:09d}.safetensors"
    best = f"best-{counters.best_epoch:06d}.safetensors" if checkpoint.best else None
    save_tensors(folder / state, checkpoint.tensors)
    if best is not None and not _names(folder, best):
        save_tensors(folder / best, checkpoint.best)
    write_json(
        folder / INDEX,
        {"format": FORMAT, "identity": dict(identity), "counters": asdict(counters), "state": state, "best": best},
    )
    for path in folder.iterdir():
        if path.name not in (INDEX, state, best):
            path.unlink()


def load(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Read the checkpoint in ``folder``, or return None where there is none.

    Args:
        folder: the checkpoint folder.
        identity: description of the training that wants to go on.

    Raises:
        UsageError: the checkpoint belongs to another training; says what differs.
        TrainingError: the checkpoint is damaged.

    """
    index = folder / INDEX
    if not index.exists():
        return None
    try:
        content = read_json(index)
        if content["format"] != FORMAT:
            raise TrainingError(
                f"{index} has format {content['format']}, this version reads {FORMAT}. "
                f"Delete {folder} to train from the start."
            )
        _check_identity(folder, content["identity"], json.loads(json.dumps(dict(identity))))
        counters = Counters(**content["counters"])
        tensors = load_file(folder / content["state"])
        best = load_file(folder / content["best"]) if content["best"] else {}
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise TrainingError(
            f"The checkpoint in {folder} cannot be read ({error}). Delete that folder to train from the start."
        ) from error
    return Checkpoint(counters, tensors, best)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to one safetensors file, atomically; tied weights are written once per name."""
    content = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_tensors(path, content, metadata)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module by name, also those its state dict leaves out."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@torch.no_grad()
def put_back(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy named tensors into a module's parameters and buffers, keeping their device and memory layout."""
    for name, target in tensors_of(module).items():
        if name in tensors:
            target.copy_(tensors[name])


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix`` and a slash before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name starts with ``prefix`` and a slash, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _names(folder: Path, best: str) -> bool:
    """Return whether the checkpoint on disk already names this file of best weights."""
    try:
        return bool(read_json(folder / INDEX)["best"] == best and (folder / best).exists())
    except (OSError, KeyError, ValueError):
        return False


def _check_identity(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = [
        f"{name}: {saved.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if changed:
        raise UsageError(
            f"{folder} holds the checkpoint of another training ({'; '.join(changed)}). "
            "Delete that folder to train from the start, or choose another output folder."
        )
