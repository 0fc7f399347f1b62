"""Samples that come one at a time: image files by class, and map-style datasets.

What fits is decoded once and kept in memory, which checks every sample and makes epochs fast; the rest is read when
it is asked for.

Shape legend: n samples, c channels, h height, w width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from potstill.core.errors import DataError
from potstill.core.progress import progress
from potstill.data.labels import in_order
from potstill.data.raw import Raw, Stored, as_array, stored_array
from potstill.data.samples import Array, Finding, Ints, Rows, digest_bytes, digest_rows, id_of_text

KEPT_BYTES = 2 * 1024**3
"""Sources larger than this, decoded, are read from where they are instead of being kept in memory."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_PROBE = 64 * 1024


def to_pixels(image: Image.Image, size: int | None) -> Array:
    """Return an image as (3, h, w) uint8: upright, RGB, resized to a square of ``size`` pixels when set."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


@dataclass(frozen=True)
class ImageFiles:
    """Decode one file of a folder: row number to (3, h, w) uint8."""

    root: Path
    names: tuple[str, ...]
    size: int | None

    def __call__(self, row: int) -> Array:
        """Return the pixels of one file."""
        with Image.open(self.root / self.names[row]) as image:
            return to_pixels(image, self.size)

    def probe(self, row: int) -> tuple[tuple[int, ...], int]:
        """Return shape and a hash of size, beginning and end of a file, without decoding it."""
        path = self.root / self.names[row]
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        shape = (self.size, self.size) if self.size else (width, height) if turned else (height, width)
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(_PROBE)
            file.seek(max(0, length - _PROBE))
            return (3, *shape), digest_bytes(str(length).encode(), head, file.read())


@dataclass(frozen=True)
class DatasetColumn:
    """Decode one image of a Hugging Face dataset: row number to (3, h, w) uint8."""

    dataset: Any
    column: str
    size: int | None

    def __call__(self, row: int) -> Array:
        """Return the pixels of one image."""
        return to_pixels(self.dataset[int(row)][self.column], self.size)

    def probe(self, row: int) -> tuple[tuple[int, ...], int]:
        """Return shape and content hash of one image."""
        pixels = self(row)
        return tuple(pixels.shape), int(digest_rows(pixels[None])[0])


@dataclass(frozen=True)
class DatasetItems:
    """The inputs of a map-style dataset of ``(input, target)``: row number to array."""

    dataset: Any
    size: int | None = None

    def __call__(self, row: int) -> Array:
        """Return one input."""
        return input_array(self.dataset[int(row)][0], self.size)


@dataclass(frozen=True)
class Decoded:
    """Fetch rows by decoding each of them."""

    decode: Callable[[int], Array]
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    def __call__(self, rows: Ints) -> Tensor:
        """Return the rows: (b, ...).

        Raises:
            DataError: a sample that was readable is not any more, or changed its shape.

        """
        if not len(rows):
            return torch.zeros(0, *self.shape, dtype=torch.uint8 if len(self.shape) == 3 else torch.float32)
        found = []
        for row in rows:
            name = self.names[row] if self.names else f"sample {row}"
            try:
                found.append(self.decode(int(row)))
            except Exception as error:  # whatever a decoder or a user's dataset raises
                raise DataError(f"{name} cannot be read: {describe(error)}. Repair or remove it.") from error
            if found[-1].shape != self.shape:
                raise DataError(f"{name} has shape {found[-1].shape}, expected {self.shape}.")
        return torch.from_numpy(np.stack(found))


def input_array(value: Any, size: int | None = None) -> Array:
    """Return one input of a dataset as an array: uint8 for images, float32 otherwise."""
    if isinstance(value, Image.Image):
        pixels = to_pixels(value, size)
        return pixels[:1] if value.mode in ("L", "1") else pixels
    array = as_array(value, "its inputs")
    if np.ma.is_masked(array):
        raise DataError("inputs are masked (missing)")
    array = np.ma.getdata(array)
    if array.dtype.kind not in "biuf":
        raise DataError(f"an input is {type(value).__name__} {array.dtype}, expected an image, a tensor or numbers")
    if array.dtype == np.uint8 and array.ndim in (2, 3):
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, dtype=np.float32)


def describe(error: Exception) -> str:
    """Return the kind and the text of an error, without paths of temporary objects."""
    return str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"


def read_folder(root: Path, image_size: int | None) -> Raw:
    """Read a folder with one subfolder of images for each class.

    Args:
        root: the folder; class names are the sorted names of its subfolders.
        image_size: side to resize to; may be None when all images have one size.

    Raises:
        DataError: no classes or images, or images of several sizes.

    """
    classes = in_order(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{root} has no subfolders: expected one folder of images for each class.")
    if {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"{root} holds the folders {', '.join(classes)}, which look like splits, not classes. "
            f"Set data.train to {root / classes[0]} and name the others as data.validation and data.test."
        )
    names: list[str] = []
    others = sum(1 for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    for name in classes:
        for folder, subfolders, files in os.walk(root / name, followlinks=True):
            subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
            visible = sorted(file for file in files if not file.startswith("."))
            images = [file for file in visible if Path(file).suffix.lower() in SUFFIXES]
            others += len(visible) - len(images)
            names += [(Path(folder) / file).relative_to(root).as_posix() for file in images]
    if not names:
        raise DataError(f"{root} has no images: the folders {', '.join(classes[:10])} hold no {_suffixes()} files.")
    with warnings.catch_warnings():
        # Pillow warns about harmless oddities of metadata; a file it cannot decode is an error.
        warnings.simplefilter("ignore", UserWarning)
        content, bad = read_images(ImageFiles(root, tuple(names), image_size), len(names), tuple(names), str(root))
    labels = np.array([name.split("/", 1)[0] for name in names], dtype=object)
    ids = np.array([id_of_text(name) for name in names], dtype=np.int64)
    text = f"{root}: {others} files were ignored: not in a class folder, or not {_suffixes()}."
    findings = (Finding("info", "ignored-files", text, others),) if others else ()
    return Raw(ids, labels, content, tuple(names), tuple(classes), bad=bad, findings=findings)


def read_images(
    decode: ImageFiles | DatasetColumn, count: int, names: tuple[str, ...] | None, source: str
) -> tuple[Stored, dict[int, str]]:
    """Read images that must all have one size: into memory when they fit, else only their headers.

    Returns:
        The images, and why a row cannot be read, by row number. Unreadable rows hold zeros.

    Raises:
        DataError: several sizes, or no readable image.

    """
    first = _first_shape(decode, count, source)
    keep = count * int(np.prod(first)) <= KEPT_BYTES
    digests = np.zeros(count, dtype=np.uint64)
    pixels = np.zeros((count, *first), dtype=np.uint8) if keep else None
    bad: dict[int, str] = {}
    shapes: dict[tuple[int, ...], int] = {}

    def one(row: int) -> tuple[int, tuple[int, ...] | None, str]:
        try:
            if pixels is None:
                shape, digests[row] = decode.probe(row)
                return row, shape, ""
            image = decode(row)
        except Exception as error:  # whatever a decoder raises for a damaged file
            return row, None, f"cannot be read ({describe(error)})"
        if image.shape == first:
            pixels[row] = image
        return row, tuple(image.shape), ""

    threads = min(8, os.cpu_count() or 1) if isinstance(decode, ImageFiles) else 1
    with progress("reading images", count, unit="images") as advance, ThreadPoolExecutor(threads) as pool:
        for row, shape, reason in pool.map(one, range(count)):
            advance()
            if shape is None:
                bad[row] = reason
            else:
                shapes.setdefault(shape, row)
    if len(shapes) > 1:
        found = [f"{h}x{w} ({names[row] if names else f'row {row}'})" for (_, h, w), row in list(shapes.items())[:3]]
        raise DataError(
            f"{source}: images have several sizes (height x width): {', '.join(found)}. "
            "Set data.image_size to resize them all."
        )
    if pixels is None:
        return Stored(Decoded(decode, first, names), digests, first), bad
    return Stored(Rows(torch.from_numpy(pixels)), digest_rows(pixels), first), bad


def read_dataset(dataset: Any, image_size: int | None, source: str) -> Raw:
    """Read a map-style dataset whose items are ``(input, target)``.

    Random transforms of the dataset are seen once only: use ``data.augment`` for random changes.

    Raises:
        DataError: items are not pairs of one shape, or no item can be read.

    """
    count = len(dataset)
    inputs: list[Array] = []
    labels: list[Any] = []
    digests = np.zeros(count, dtype=np.uint64)
    bad: dict[int, str] = {}
    shape: tuple[int, ...] | None = None
    keep = True
    with progress(f"reading {source}", count, unit="samples") as advance:
        for row in range(count):
            advance()
            try:
                value, label = _pair(dataset[row])
                array = input_array(value, image_size)
            except Exception as error:  # whatever a user's dataset raises
                bad[row] = f"item cannot be read ({describe(error)})"
                labels.append(None)
                continue
            labels.append(_plain(label))
            if shape is None:
                shape = array.shape
                keep = count * array.nbytes <= KEPT_BYTES
                inputs = [np.zeros_like(array)] * row
            if array.shape != shape:
                raise DataError(
                    f"{source}: inputs have several shapes: {shape} and {array.shape} (item {row}). "
                    "Set data.image_size for images, or make them equal in the dataset."
                )
            if keep:
                inputs += [np.zeros_like(array)] * (row - len(inputs)) + [array]
            elif array.dtype == np.float32 and not np.isfinite(array).all():
                bad[row] = "inputs hold NaN or infinite values"
            digests[row] = digest_rows(array[None])[0]
    if shape is None:
        raise DataError(f"{source}: no item can be read. First: {next(iter(bad.values()), 'the dataset is empty')}.")
    if keep:
        inputs += [np.zeros_like(inputs[0])] * (count - len(inputs))
        content, unusable = stored_array(np.stack(inputs))
        bad = {**unusable, **bad}
    else:
        content = Stored(Decoded(DatasetItems(dataset, image_size), shape), digests, shape)
    names = _texts(getattr(dataset, "classes", None))
    if names is not None and all(label is None or label in range(len(names)) for label in labels):
        labels = [None if label is None else names[label] for label in labels]
    else:
        names = None
    return Raw(np.arange(count, dtype=np.int64), _label_array(labels), content, label_names=names, bad=bad)


def _first_shape(decode: ImageFiles | DatasetColumn, count: int, source: str) -> tuple[int, ...]:
    reason = ""
    for row in range(count):
        try:
            return tuple(decode(row).shape)
        except Exception as error:  # whatever a decoder raises for a damaged file
            reason = reason or describe(error)
    raise DataError(f"{source}: none of {count} images can be read. First: {reason or 'there are none'}.")


def _suffixes() -> str:
    return "/".join(sorted(suffix[1:] for suffix in SUFFIXES))


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        return item[0], item[1]
    raise DataError(f"an item is {type(item).__name__}, expected a pair (input, target)")


def _plain(label: Any) -> Any:
    if np.ma.is_masked(label):
        return None
    if isinstance(label, Tensor):
        label = as_array(label, "its target")
    return label.item() if isinstance(label, np.ndarray | np.generic) and label.size == 1 else label


def _label_array(labels: list[Any]) -> Array:
    """Return numbers as numbers and anything else as objects; None stays a missing label."""
    known = [label for label in labels if label is not None]
    kinds = set(map(type, known))
    if len(kinds) == 1 and kinds <= {bool, int} and len(known) == len(labels):
        return np.array(labels)
    if float in kinds and kinds <= {int, float}:
        return np.array([np.nan if label is None else label for label in labels], dtype=np.float64)
    if known and all(isinstance(label, np.ndarray | list | tuple) for label in known):
        empty = np.full(np.shape(known[0]), np.nan)
        return np.array([empty if label is None else label for label in labels], dtype=np.float64)
    found = np.empty(len(labels), dtype=object)
    found[:] = labels
    return found


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value) else None
