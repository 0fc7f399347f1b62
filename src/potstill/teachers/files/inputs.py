"""From potstill's batches to what a file takes: another layout, another type, a fixed number of samples.

Shape legend: b samples, c channels, h/w height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from potstill.core.errors import TeacherError, UsageError, did_you_mean
from potstill.teachers.answers import Array

LAYOUTS = ("nchw", "nhwc")


def options_of(args: Mapping[str, Any], known: Sequence[str], *, place: str, kind: str) -> dict[str, Any]:
    """Return the options of a file, refusing ones that its kind does not have.

    Raises:
        UsageError: an unknown option, or a layout that does not exist.

    """
    for name in args:
        if name not in known:
            raise UsageError(f"{place}.args.{name}: {kind} has no such option.{did_you_mean(name, known)}")
    if args.get("layout") not in (None, *LAYOUTS):
        raise UsageError(f"{place}.args.layout: {args['layout']!r}: expected nchw or nhwc.")
    return dict(args)


def layout_for(
    shape: Sequence[int], takes: Sequence[Any] | None, layout: str | None, *, place: str, what: str
) -> tuple[str, bool]:
    """Return the layout a file wants samples of ``shape`` in, and whether it wants them flat.

    Args:
        shape: of one sample: (c, h, w) for images.
        takes: the sizes of the file's input without the batch, not numbers where any size is taken; None where the
            file does not say it.
        layout: what the recipe says.
        place: the teacher's place in the recipe.
        what: what to call the file.

    Raises:
        TeacherError: samples of another shape, or a layout that has to be said.

    """
    if takes is None:
        return layout or "nchw", False
    flat = len(takes) == 1 and len(shape) > 1
    if len(shape) == 3 and shape[0] > 1 and flat and layout is None:
        raise TeacherError(
            f"{place}: {what} takes flat rows of numbers and the data has images of {shape[0]} channels. Say in which "
            "order its rows hold the pixels: 'args: {layout: nchw}' (one channel after the other) or "
            "'args: {layout: nhwc}' (all channels of a pixel together)."
        )
    chosen = layout or "nchw"
    if not flat and len(shape) == 3 and layout is None and not _fits(shape, takes):
        channels_last = (shape[1], shape[2], shape[0])
        if _fits(channels_last, takes):
            raise TeacherError(
                f"{place}: {what} takes samples of shape {_sizes(takes)} and the data has {_sizes(shape)}: it wants "
                "the channels last. If so, add 'args: {layout: nhwc}'."
            )
    own = (shape[1], shape[2], shape[0]) if chosen == "nhwc" and len(shape) == 3 else tuple(shape)
    own = (int(np.prod(own)),) if flat else own
    if not _fits(own, takes):
        raise TeacherError(
            f"{place}: {what} takes samples of shape {_sizes(takes)}, but the data has {_sizes(shape)} behind the "
            "teacher's preprocessing. Resize images with preprocess.size, choose the right columns with data.inputs, "
            "or take the teacher that belongs to this data."
        )
    return chosen, flat


def arranged(inputs: Array, layout: str, flat: bool) -> Array:
    """Return inputs (b, c, h, w) as a file wants them; samples that are no images stay as they are."""
    if layout == "nhwc" and inputs.ndim == 4:
        inputs = inputs.transpose(0, 2, 3, 1)
    if flat:
        inputs = inputs.reshape(len(inputs), -1)
    return np.ascontiguousarray(inputs)


def as_type(inputs: Array, dtype: np.dtype[Any], *, what: str) -> Array:
    """Return inputs in the type that a file takes; pixels from 0 to 1 become whole numbers from 0 to 255.

    Raises:
        TeacherError: numbers that are no pixels, or not whole, for a file that takes whole numbers.

    """
    if dtype.kind == "f" or inputs.dtype == dtype:
        return inputs.astype(dtype, copy=False)
    if dtype == np.uint8:
        scaled = np.rint(inputs * 255.0)
        if scaled.min(initial=0.0) < 0.0 or scaled.max(initial=0.0) > 255.0:
            raise TeacherError(
                f"{what} takes uint8 pixels, but its inputs are from {inputs.min():.4g} to {inputs.max():.4g}. Drop "
                "the teacher's preprocess.mean and std: the file does that itself."
            )
        return scaled.astype(np.uint8)
    whole = np.rint(inputs)
    if not np.array_equal(whole, inputs):
        raise TeacherError(f"{what} takes whole numbers ({dtype}), but its inputs are not whole.")
    return whole.astype(dtype)


def in_batches_of(size: int | None, ask: Callable[[Array], dict[str, Array]], inputs: Array) -> dict[str, Array]:
    """Return the answers to inputs of any number, from a file that takes exactly ``size`` at once, or any number."""
    if size is None or len(inputs) == size:
        return ask(inputs)
    parts: list[dict[str, Array]] = []
    for start in range(0, max(len(inputs), 1), size):
        part = inputs[start : start + size]
        fill = np.resize(part[-1:], (size - len(part), *part.shape[1:])) if len(part) < size else part[:0]
        found = ask(np.concatenate([part, fill]))
        parts.append({name: values[: len(part)] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _fits(shape: Sequence[int], takes: Sequence[Any]) -> bool:
    return len(shape) == len(takes) and all(
        not isinstance(size, int) or size < 1 or size == own for own, size in zip(shape, takes, strict=True)
    )


def _sizes(sizes: Sequence[Any]) -> str:
    return " x ".join(str(size) if isinstance(size, int) and size > 0 else "any" for size in sizes)
