"""Samples as small pictures inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

LARGEST_SIDE = 80  # pixels: sharp enough to recognise, small enough for two dozen inside one page
EXACT_SIDE = 40  # up to here every pixel is kept as it is


def is_pictures(samples: np.ndarray[Any, Any] | None) -> bool:
    """Return whether ``samples`` is (n, h, w, c) uint8 with one, three or four channels."""
    return samples is not None and samples.dtype == np.uint8 and samples.ndim == 4 and samples.shape[-1] in (1, 3, 4)


def data_uri(pixels: np.ndarray[Any, Any]) -> str:
    """Return one picture (h, w, c) uint8 as a PNG data URI, made smaller when it is large."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    if max(image.size) > EXACT_SIDE and image.mode == "RGB":
        image = image.quantize(96)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
