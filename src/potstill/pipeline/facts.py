"""What the report says about the data and the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from potstill.data import Data


def describe_data(data: Data) -> dict[str, Any]:
    """Return the content of ``data.json``."""
    return {
        **{name: len(samples) for name, samples in data.splits.items()},
        **({} if data.train.labelled is None else {"labelled": data.train.num_labelled}),
        "classes": list(data.classes),
        "kind": data.kind,
        "shape": list(data.shape),
        "findings": [
            {"level": found.level, "code": found.code, "message": found.message, "count": found.count}
            for found in data.findings
        ],
        "label_shift": dict(data.label_shift),
        "scale": None if data.scale is None else data.scale.to_json(),
        "fingerprint": data.fingerprint,
    }


def as_pictures(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return images (n, c, h, w), uint8 or in the range 0 to 1, as a page shows them: (n, h, w, c) uint8."""
    pixels = images if images.dtype == np.uint8 else (255 * images.clip(0, 1)).round().astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers of a run were measured on."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
