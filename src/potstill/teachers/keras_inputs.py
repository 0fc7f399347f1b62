"""From potstill's batches to what a Keras model takes: its layout, its range of pixels, its type.

Shape legend: b samples, c channels, h/w height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from potstill.core.errors import TeacherError, UsageError

Array = np.ndarray[Any, Any]
Layout = Literal["nhwc", "nchw"]
Shape = tuple[int | None, ...]

_LARGEST_PIXEL = 255.0
_SMALL_FACTOR = 0.1
"""A layer that scales pixels by less than this divides pixels from 0 to 255; potstill's are from 0 to 1."""


def prepared(
    inputs: Array,
    takes: Shape | None,
    dtype: np.dtype[Any],
    *,
    layout: Layout | None = None,
    scale: float | None = None,
    rescaling: float | None = None,
    label: str = "The model",
) -> Array:
    """Return samples in the layout, range and type that a model takes.

    Args:
        inputs: images (b, c, h, w), with pixels from 0 to 1 or uint8, or other samples (b, ...).
        takes: shape of the model's input, the batch first; None where it does not say it.
        dtype: of the model's input.
        layout: of the images that it takes; found by comparing shapes when absent.
        scale: what a pixel of full brightness is for it; 1 when absent, 255 if it takes uint8.
        rescaling: factor of a layer of its own that scales pixels.
        label: what to call it in messages.

    Raises:
        UsageError: layout or scale has to be said.
        TeacherError: samples of another shape or range.

    """
    if inputs.ndim == 4:
        inputs = _scaled(_arranged(inputs, takes, layout, label), dtype == np.uint8, scale, rescaling, label)
    elif takes is not None and not _fits(inputs.shape, takes):
        raise TeacherError(_misfit(inputs.shape[1:], takes, label))
    if dtype.kind in "iu" and inputs.dtype.kind == "f":
        whole = np.rint(inputs)
        if not np.array_equal(whole, inputs):
            raise TeacherError(f"{label} takes whole numbers ({dtype}), but its inputs are not whole.")
    return inputs.astype(dtype, copy=False)


def _arranged(images: Array, takes: Shape | None, layout: Layout | None, label: str) -> Array:
    """Return a view of images (b, c, h, w) with the axes that the model takes."""
    channels_last = images.transpose(0, 2, 3, 1)
    if takes is None:
        if layout is None:
            raise UsageError(
                f"{label} does not say which inputs it takes. Say how it takes images: 'args: {{layout: nhwc}}' "
                "(channels last, usual in Keras) or 'args: {layout: nchw}'."
            )
        return channels_last if layout == "nhwc" else images
    if len(takes) == 3 and images.shape[1] == 1 and _fits(images[:, 0].shape, takes):
        return images[:, 0]
    flat = len(takes) == 2
    both: dict[Layout, Array] = {"nhwc": channels_last, "nchw": images}
    fitting = {
        name: view
        for name, view in both.items()
        if _fits((len(view), int(np.prod(view.shape[1:]))) if flat else view.shape, takes)
    }
    if not fitting:
        raise TeacherError(_misfit(images.shape[1:], takes, label))
    one_order = len(fitting) == 1 or (flat and images.shape[1] == 1)
    if layout is None and not one_order:
        raise UsageError(
            f"{label} takes {_sizes(takes[1:])}, and images of shape {_sizes(images.shape[1:])} (channels, height, "
            "width) fit in two ways. Say which: 'args: {layout: nhwc}' (channels last, usual in Keras) or "
            "'args: {layout: nchw}'."
        )
    if layout is not None and layout not in fitting:
        raise UsageError(
            f"args.layout: {layout} does not fit: {label} takes {_sizes(takes[1:])}, and the images have "
            f"{_sizes(images.shape[1:])} (channels, height, width)."
        )
    view = fitting[next(iter(fitting)) if layout is None else layout]
    return view.reshape(len(view), -1) if flat else view


def _scaled(images: Array, to_bytes: bool, scale: float | None, rescaling: float | None, label: str) -> Array:
    """Return images whose brightest pixels are ``scale``."""
    if scale is None and rescaling is not None and rescaling < _SMALL_FACTOR:
        raise UsageError(
            f"{label} multiplies its inputs by {rescaling:.4g}, so it seems to want pixels from 0 to 255, and "
            "here they are from 0 to 1. If so, add 'args: {scale: 255}'; if not, 'args: {scale: 1}'."
        )
    scale = scale or (_LARGEST_PIXEL if to_bytes else 1.0)
    factor = scale / _LARGEST_PIXEL if images.dtype == np.uint8 else scale
    scaled: Array = images if factor == 1.0 else images * np.float32(factor)
    if not to_bytes or scaled.dtype == np.uint8:
        return scaled
    scaled = np.rint(scaled)
    if scaled.min(initial=0.0) < 0.0 or scaled.max(initial=0.0) > _LARGEST_PIXEL:
        raise TeacherError(
            f"{label} takes uint8 pixels, but its inputs are from {images.min():.4g} to {images.max():.4g}. Drop the "
            "teacher's preprocess.mean and std: the model does that itself."
        )
    return scaled


def likely_layout(shape: Shape | None) -> Layout | None:
    """Return the layout of images that a model takes by its input's shape alone, None where it could be either."""
    if shape is None or len(shape) != 4:
        return None
    last, first = shape[3] in (1, 3, 4), shape[1] in (1, 3, 4)
    return None if last == first else ("nhwc" if last else "nchw")


def _fits(shape: Sequence[int], takes: Shape) -> bool:
    return len(shape) == len(takes) and all(
        size is None or size == own for own, size in zip(shape[1:], takes[1:], strict=True)
    )


def _misfit(shape: Sequence[int], takes: Shape, label: str) -> str:
    return (
        f"{label} takes samples of shape {_sizes(takes[1:])}, but they have {_sizes(shape)} behind the teacher's "
        "preprocessing. Resize images with preprocess.size, choose the right columns with data.inputs, or take the "
        "teacher that belongs to this data."
    )


def _sizes(sizes: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in sizes) or "one number"
