"""Fingerprints: short stable hashes of plain data, arrays and model weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def of_json(value: Any) -> str:
    """Return the sha256 hex digest of JSON-like ``value``, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_array(array: np.ndarray[Any, Any]) -> str:
    """Return the sha256 hex digest of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_state(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 hex digest of a state dict: every name, dtype, shape and byte, in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def of_weights(model: nn.Module) -> str:
    """Return the sha256 hex digest of a model's parameters and buffers."""
    return of_state(model.state_dict())
