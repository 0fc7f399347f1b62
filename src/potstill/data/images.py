"""Samples that come one at a time: image files by class, and map-style datasets.

What fits is decoded once and kept in memory, which checks every sample and makes epochs fast; the rest is read when
it is asked for.

Shape legend: n samples, c channels, h height, w width.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from potstill.core.errors import DataError
from potstill.core.progress import progress
from potstill.core.text import counted
from potstill.data.folders import Listing, list_files
from potstill.data.pictures import Form, Head, head_of, opened, quietly, settled, to_pixels
from potstill.data.raw import Raw, Stored, as_array, stored_array
from potstill.data.samples import Array, Ints, Rows, digest_bytes, digest_rows, id_of_text
from potstill.tasks.base import Finding

KEPT_BYTES = 2 * 1024**3
"""Sources larger than this, decoded, are read from where they are instead of being kept in memory."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_PROBE = 64 * 1024
_LOOKED_AT = 64
_DARK = 4095 / 65535 + 1e-6


@dataclass(frozen=True)
class ImageFiles:
    """Decode one file of a folder: row number to (c, h, w)."""

    root: Path
    names: tuple[str, ...]
    form: Form

    def __call__(self, row: int) -> Array:
        """Return the pixels of one file."""
        with opened(self.root / self.names[row]) as image:
            return to_pixels(image, self.form)

    def head(self, row: int) -> Head:
        """Return what the header of one file says."""
        with opened(self.root / self.names[row]) as image:
            return head_of(image)

    def digest(self, row: int, head: Head) -> int:
        """Return a hash of size, beginning and end of a file, and of what its pixels become; nothing is decoded."""
        path = self.root / self.names[row]
        form = replace(self.form, background=self.form.background if head.transparent else "")
        usual = Form(None, 3, "")
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(_PROBE)
            file.seek(max(0, length - _PROBE))
            parts = (str(length).encode(), start, file.read())
        return digest_bytes(*parts, *([] if form == usual else [repr(form).encode()]))


@dataclass(frozen=True)
class DatasetColumn:
    """Decode one image of a Hugging Face dataset: row number to (c, h, w)."""

    dataset: Any
    column: str
    form: Form

    def __call__(self, row: int) -> Array:
        """Return the pixels of one image."""
        return to_pixels(self.dataset[int(row)][self.column], self.form)

    def head(self, row: int) -> Head:
        """Return what one image is."""
        return head_of(self.dataset[int(row)][self.column])

    def digest(self, row: int, head: Head) -> int:  # noqa: ARG002
        """Return a hash of the pixels of one image."""
        return int(digest_rows(self(row)[None])[0])


@dataclass(frozen=True)
class DatasetItems:
    """The inputs of a map-style dataset of ``(input, target)``: row number to array."""

    dataset: Any
    form: Form

    def __call__(self, row: int) -> Array:
        """Return one input."""
        return input_array(self.dataset[int(row)][0], self.form)


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


def input_array(value: Any, form: Form) -> Array:
    """Return one input of a dataset as an array: uint8 for images, float32 otherwise."""
    if isinstance(value, Image.Image):
        return to_pixels(value, replace(form, deep=head_of(value).deep))
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


def read_folder(root: Path, form: Form, *, classless: bool = False) -> Raw:
    """Read a folder with one subfolder of images for each class; without classes, all images at any depth.

    Args:
        root: the folder; class names are the names of its subfolders, numbers by value.
        form: what pictures become; its size may be None when all images have one.
        classless: whether subfolders mean nothing.

    Raises:
        DataError: no classes or images, or images of several sizes.

    """
    called, only = str(root), None
    if classless:
        root = Path(os.path.realpath(root))
        root, only = root.parent, root.name
    listed = list_files(root, SUFFIXES, only)
    classes, names = listed.classes, listed.names
    if not classes:
        raise DataError(f"{root} has no subfolders: expected one folder of images for each class.")
    if not classless and {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"{root} holds the folders {', '.join(classes)}, which look like splits, not classes. "
            f"Set data.train to {root / classes[0]} and name the others as data.validation and data.test."
        )
    if not names:
        raise DataError(f"{root} has no images: the folders {', '.join(classes[:10])} hold no {_suffixes()} files.")
    content, bad, findings = read_images(ImageFiles(root, names, form), len(names), names, called)
    labels = np.array([name.split("/", 1)[0] for name in names], dtype=object)
    ids = np.array([id_of_text(name) for name in names], dtype=np.int64)
    others = counted(listed.others, "file was", "files were")
    text = f"{root}: {others} ignored: not in a class folder, or not {_suffixes()}."
    ignored = [Finding("info", "ignored-files", text, listed.others)] if listed.others else []
    found = (*ignored, *listed.findings, *findings)
    return Raw(ids, labels, content, names, classes, bad={**bad, **_strange(listed, names)}, findings=found)


def _strange(listed: Listing, names: Sequence[str]) -> dict[int, str]:
    """Return a sentence for each row that is no regular file."""
    return {row: f"is {listed.strange[name]}, no file" for row, name in enumerate(names) if name in listed.strange}


def read_images(
    decode: ImageFiles | DatasetColumn, count: int, names: tuple[str, ...] | None, source: str
) -> tuple[Stored, dict[int, str], tuple[Finding, ...]]:
    """Read images that must all have one size: into memory when they fit, else only their headers.

    Returns:
        The images; why a row cannot be read, by row number; findings. Unreadable rows hold zeros.

    Raises:
        DataError: several sizes, or no readable image.

    """
    bad: dict[int, str] = {}
    threads = min(8, os.cpu_count() or 1) if isinstance(decode, ImageFiles) else 1

    def first_bad() -> str:
        return f"{names[min(bad)] if names else f'row {min(bad)}'} {bad[min(bad)]}" if bad else "there are none"

    def each(step: Callable[[int], Any], rows: Sequence[int], what: str) -> dict[int, Any]:
        def guarded(row: int) -> tuple[int, Any, str]:
            try:
                return row, step(row), ""
            except Exception as error:  # whatever a decoder raises for a damaged file
                text = describe(error)
                return row, None, text if text.startswith("is ") else f"cannot be read ({text})"

        found: dict[int, Any] = {}
        with quietly(), progress(what, len(rows), unit="images") as advance, ThreadPoolExecutor(threads) as pool:
            for row, value, reason in pool.map(guarded, rows):
                advance()
                if reason:
                    bad[row] = reason
                else:
                    found[row] = value
        return found

    heads: dict[int, Head] = each(decode.head, range(count), "looking at images")
    if not heads:
        raise DataError(f"{source}: none of {count} images can be read. First: {first_bad()}.")
    form = settled(decode.form, heads.values())
    decode = replace(decode, form=form)
    shapes: dict[tuple[int, int], int] = {}
    for row, head in heads.items():
        shapes.setdefault(head.shape, row)
    if len(shapes) > 1 and form.size is None:
        found = [f"{h}x{w} ({names[row] if names else f'row {row}'})" for (h, w), row in list(shapes.items())[:3]]
        raise DataError(
            f"{source}: images have several sizes (height x width): {', '.join(found)}. "
            "Set data.image_size to resize them all."
        )
    side = (form.size, form.size) if form.size else next(iter(shapes))
    shape = (form.channels or 3, *side)
    kind = np.dtype(np.float32 if form.deep else np.uint8)
    if count * int(np.prod(shape)) * kind.itemsize <= KEPT_BYTES:
        pixels = np.zeros((count, *shape), dtype=kind)

        def keep(row: int) -> None:
            pixels[row] = decode(row)

        each(keep, list(heads), "reading images")
        if len(bad) == count:
            raise DataError(f"{source}: none of {count} images can be read. First: {first_bad()}.")
        content = Stored(Rows(torch.from_numpy(pixels)), digest_rows(pixels), shape)
        brightest = float(pixels.max()) if form.deep else 1.0
    else:
        digests = np.zeros(count, dtype=np.uint64)
        for row, digest in each(lambda row: decode.digest(row, heads[row]), list(heads), "reading images").items():
            digests[row] = digest
        content = Stored(Decoded(decode, shape, names), digests, shape)
        some = [row for row in heads if row not in bad][:_LOOKED_AT] if form.deep else []
        brightest = max((float(level.max()) for level in each(decode, some, "reading images").values()), default=1.0)
    return content, bad, _remarks(heads, form, brightest, names, source)


def _remarks(
    heads: Mapping[int, Head], form: Form, brightest: float, names: Sequence[str] | None, source: str
) -> tuple[Finding, ...]:
    """Say what kinds of pictures there are, and what was done to them."""
    modes = Counter(head.mode for head in heads.values())
    findings = []
    if set(modes) != {"RGB"}:
        counts = ", ".join(f"{number:,} {'1-bit' if mode == '1' else mode}" for mode, number in modes.most_common())
        become = f"{'grey' if form.channels == 1 else 'RGB'}, {'floats from 0 to 1' if form.deep else '8 bits'}"
        text = f"{source}: images are {counts}; they become {become}."
        findings.append(Finding("info", "image-modes", text, len(heads)))

    def named(rows: Sequence[int]) -> str:
        return ", ".join(names[row] if names else f"row {row}" for row in rows[:3])

    clear = [row for row, head in heads.items() if head.transparent]
    if clear:
        text = (
            f"{source}: {counted(len(clear), 'image')} may have transparent pixels ({named(clear)}); "
            f"{form.background} lies behind them. data.background sets another colour."
        )
        findings.append(Finding("info", "transparent-images", text, len(clear)))
    several = [row for row, head in heads.items() if head.frames > 1]
    if several:
        hold = counted(len(several), "file holds", "files hold")
        text = f"{source}: {hold} several pictures ({named(several)}): the first is used."
        findings.append(Finding("warning", "first-frames", text, len(several)))
    if 0 < brightest <= _DARK and any(mode.startswith("I") for mode in modes):
        text = (
            f"{source}: the brightest pixel of images with 16 bits is {brightest * 65535:.0f} of 65535: they are dark, "
            "which often means 12 bits stored in 16. A student's own mean and spread make up for that; changes of "
            "colour and weights of published models expect the range from 0 to 1."
        )
        findings.append(Finding("warning", "pixel-range", text, len(heads)))
    return tuple(findings)


def read_dataset(dataset: Any, form: Form, source: str) -> Raw:
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
                array = input_array(value, form)
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
                    "Set data.image_size and data.channels for images, or make them equal in the dataset."
                )
            if keep and inputs and array.dtype != inputs[-1].dtype:
                raise DataError(
                    f"{source}: inputs are of several types: {inputs[-1].dtype} and {array.dtype} (item {row}). Make "
                    "them equal in the dataset."
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
        content = Stored(Decoded(DatasetItems(dataset, form), shape), digests, shape)
    findings = pixel_range(content, source) if keep else ()
    names = _texts(getattr(dataset, "classes", None))
    if names is not None and all(label is None or label in range(len(names)) for label in labels):
        labels = [None if label is None else names[label] for label in labels]
    else:
        names = None
    return Raw(
        np.arange(count, dtype=np.int64), _label_array(labels), content, label_names=names, bad=bad, findings=findings
    )


def pixel_range(content: Stored, source: str) -> tuple[Finding, ...]:
    """Say that floats that are images go beyond 0 to 1; for images in memory."""
    if len(content.shape) != 3 or not isinstance(content.fetch, Rows) or not content.fetch.inputs.is_floating_point():
        return ()
    pixels = content.fetch.inputs.numpy()
    finite = pixels[np.isfinite(pixels)]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    if low >= 0 and high <= 1:
        return ()
    text = (
        f"{source}: images are floats from {low:g} to {high:g}; expected 0 to 1, or uint8 from 0 to 255. "
        "Changes of colour, erasing and the normalisation of published models assume that range."
    )
    return (Finding("warning", "pixel-range", text, len(pixels)),)


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
