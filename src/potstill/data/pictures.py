"""One picture: what its header says, and how its pixels become numbers whatever its mode.

Shape legend: c channels, h height, w width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps

from potstill.core.errors import DataError, UsageError
from potstill.data.files import not_a_file
from potstill.data.samples import Array

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
"""What is opened; other formats of Pillow start programs or hold no pictures."""

_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_SIXTEEN_BITS = 65535.0


@dataclass(frozen=True)
class Form:
    """What pictures become.

    Attributes:
        size: side in pixels that they are resized to; None for their own.
        channels: 1 for grey, 3 for colours; None for what they are.
        background: the colour behind transparent pixels.
        deep: whether pixels are floats from 0 to 1, because some picture has more than 8 bits.

    """

    size: int | None = None
    channels: Literal[1, 3] | None = None
    background: str = "white"
    deep: bool = False


@dataclass(frozen=True)
class Head:
    """What a picture is, by its header.

    Attributes:
        mode: Pillow's name of its pixels.
        shape: (h, w), upright.
        channels: 1 when it is grey.
        deep: whether it has more than 8 bits.
        transparent: whether pixels may be transparent.
        frames: how many pictures its file holds.

    """

    mode: str
    shape: tuple[int, int]
    channels: Literal[1, 3]
    deep: bool
    transparent: bool
    frames: int


def check_background(name: str) -> None:
    """Refuse what is no colour.

    Raises:
        UsageError: the colour is unknown.

    """
    try:
        ImageColor.getrgb(name)
    except ValueError as error:
        raise UsageError(f"data.background: '{name}' is no colour; expected one such as white or #20c0ff.") from error


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of a known format.

    Raises:
        DataError: the path is no regular file.

    """
    strange = not_a_file(path)
    if strange:
        raise DataError(f"is {strange}, no file")
    with Image.open(path, formats=FORMATS) as image:
        yield image


@contextmanager
def quietly() -> Iterator[None]:
    """Keep Pillow from warning of oddities and of large pictures; what it cannot decode is an error all the same."""
    Image.init()  # not by several threads at once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def head_of(image: Image.Image) -> Head:
    """Return what a picture is, by its header alone."""
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    deep = _is_deep(image.mode)
    grey = deep or image.mode in ("1", "L", "LA", "La") or (image.mode == "P" and _grey_palette(image))
    return Head(
        mode=image.mode,
        shape=(width, height) if turned else (height, width),
        channels=1 if grey else 3,
        deep=deep,
        transparent=not deep and _is_transparent(image),
        # The second picture of a camera's file is a preview.
        frames=1 if image.format == "MPO" else getattr(image, "n_frames", 1),
    )


def settled(form: Form, heads: Iterable[Head]) -> Form:
    """Return one form for all pictures: in colours when one of them is, deep when one of them is."""
    heads = list(heads)
    channels = form.channels or (3 if any(head.channels == 3 for head in heads) else 1)
    return replace(form, channels=channels, deep=any(head.deep for head in heads))


def to_pixels(image: Image.Image, form: Form) -> Array:
    """Return a picture as (c, h, w): uint8, or floats from 0 to 1 in a deep form; upright, and resized where asked.

    Raises:
        DataError: its pixels have no known range, or nothing would be seen of it.

    """
    if form.channels is None:
        form = settled(form, [head_of(image)])
    image = ImageOps.exif_transpose(image)
    if _is_deep(image.mode):
        image = Image.fromarray(_levels(image))
    elif _is_transparent(image):
        image = _on_background(image, form.background)
    if image.mode != "F":
        image = image.convert("L" if form.channels == 1 else "RGB")
    if form.size is not None and image.size != (form.size, form.size):
        image = image.resize((form.size, form.size), Image.Resampling.BILINEAR)
    pixels: Array = np.asarray(image)
    if form.deep and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if len(pixels) != form.channels:
        pixels = np.repeat(pixels, 3, axis=0)
    found: Array = np.ascontiguousarray(pixels)
    return found


def _is_deep(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _grey_palette(image: Image.Image) -> bool:
    colours = np.array(image.getpalette("RGB") or [0, 0, 1]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _levels(image: Image.Image) -> Array:
    """Return the levels of a picture of more than 8 bits as float32 from 0 to 1: (h, w)."""
    levels: Any = np.asarray(image)
    low, high = (float(levels.min()), float(levels.max())) if levels.size else (0.0, 0.0)
    if image.mode == "F":
        if not -1e-3 <= low <= high <= 1.001:
            raise DataError(
                f"its pixels are floats from {low:g} to {high:g}, expected 0 to 1. Scale them, or read the files in a "
                "data function and give arrays"
            )
        return np.asarray(levels.clip(0, 1), dtype=np.float32)
    if not 0 <= low <= high <= _SIXTEEN_BITS:
        raise DataError(
            f"its pixels are 32-bit whole numbers from {low:g} to {high:g}, of which nobody knows what is white. Save "
            "16 bits or floats from 0 to 1, or give arrays"
        )
    return np.asarray(levels.astype(np.float64) / _SIXTEEN_BITS, dtype=np.float32)


def _is_plain(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[:1, :1]).all())


def _on_background(image: Image.Image, background: str) -> Image.Image:
    """Return a picture with a colour behind its transparent pixels."""
    image = image.convert("RGBA")
    behind = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
    seen = Image.alpha_composite(behind, image).convert("RGB")
    alpha = np.asarray(image.getchannel("A"))
    hidden = alpha.min() < alpha.max() or (alpha.max() < 255 and not _is_plain(image.convert("RGB")))
    if hidden and _is_plain(seen):
        raise DataError(
            f"nothing is seen of it on {background}: its shape is in the transparency. Set data.background to another "
            "colour"
        )
    return seen
