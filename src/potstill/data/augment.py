"""Random changes to training images that depend on ``(seed, id, view)`` and on nothing else.

Every sample is changed by operations that never look at its neighbours: the same ``(seed, id, view)`` gives the same
pixels bit for bit in any batch, order, worker or process. So what a teacher said about a view while it was recorded
is still true when a student sees that view.

Shape legend: b samples, c channels or classes, h height, w width, ``...`` the shape of one sample.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn import functional

from potstill.core import random
from potstill.core.errors import UsageError
from potstill.data.samples import Array, Ints

# Which random number a key is for: one stream a decision, so that switching one change on leaves the others alone.
_TOP, _LEFT, _FLIP, _ANGLE, _BRIGHTNESS, _CONTRAST, _SATURATION, _ERASE = range(101, 109)
_ERASE_AREA, _ERASE_ASPECT, _ERASE_TOP, _ERASE_LEFT = range(109, 113)
_PARTNER, _WHICH_MIX, _SHARE_RADIUS, _SHARE_ANGLE, _BOX_TOP, _BOX_LEFT = range(113, 119)
_ERASED = 0.5
_LUMA = (0.299, 0.587, 0.114)


class AugmentSettings(Protocol):
    """What `augment` and `mix` read; the recipe's ``data.augment`` section has this form."""

    @property
    def crop(self) -> int:
        """Pad by this many black pixels, then crop at a random place."""

    @property
    def flip(self) -> bool:
        """Mirror left-right with probability 1/2."""

    @property
    def rotate(self) -> float:
        """Largest rotation in degrees, either way."""

    @property
    def colour(self) -> float:
        """Largest relative change of brightness, contrast and saturation."""

    @property
    def erase(self) -> float:
        """Probability of erasing one random rectangle."""

    @property
    def mixup(self) -> float:
        """Beta parameter of mixup; 0 is off."""

    @property
    def cutmix(self) -> float:
        """Beta parameter of cutmix; 0 is off."""


def changes_images(settings: AugmentSettings | None) -> bool:
    """Return whether any change is on that needs images."""
    return settings is not None and bool(
        settings.crop or settings.flip or settings.rotate or settings.colour or settings.erase or settings.cutmix
    )


def mixes(settings: AugmentSettings | None) -> bool:
    """Return whether samples are mixed with others, so that targets become probabilities."""
    return settings is not None and bool(settings.mixup or settings.cutmix)


def is_on(settings: AugmentSettings | None) -> bool:
    """Return whether anything is changed at all."""
    return changes_images(settings) or mixes(settings)


def check_augment(settings: AugmentSettings | None, shape: tuple[int, ...]) -> None:
    """Refuse changes that the samples cannot have.

    Args:
        settings: which changes are on.
        shape: shape of one sample.

    Raises:
        UsageError: image changes asked for samples that are not (C, H, W) images.

    """
    if changes_images(settings) and len(shape) != 3:
        raise UsageError(
            f"data.augment: crop, flip, rotate, colour, erase and cutmix need images of shape (C, H, W), "
            f"but a sample has shape {shape}. Remove them; mixup works for any samples."
        )


def augment(
    pixels: Tensor, ids: Array | Tensor, views: Array | Tensor, *, settings: AugmentSettings, seed: int
) -> Tensor:
    """Return one view of each image.

    Use it wherever a view is needed: recording and training must both come here. Mixing is `mix`.

    Args:
        pixels: (b, c, h, w) uint8, or float in the range 0 to 1; float samples of any shape when only mixing is on.
        ids: (b,) sample ids.
        views: (b,) which view of each sample.
        settings: which changes are on and how strong.
        seed: of the whole augmentation.

    Returns:
        (b, c, h, w) float32 in the range 0 to 1, never sharing memory with ``pixels``.

    Raises:
        UsageError: image changes asked for samples that are not images.

    """
    check_augment(settings, tuple(pixels.shape[1:]))
    keys = (np.asarray(ids, dtype=np.int64), np.asarray(views, dtype=np.int64))

    def draw(stream: int) -> Array:
        return random.uniform(seed, stream, *keys)

    values = pixels.numpy()
    if settings.crop:
        places = 2 * settings.crop + 1
        values = _crop(values, settings.crop, _floor(draw(_TOP), places), _floor(draw(_LEFT), places))
    if settings.flip:
        values = _flip(values, draw(_FLIP) < 0.5)
    images = as_float(torch.from_numpy(values))
    if images.data_ptr() == pixels.data_ptr():
        images = images.clone()
    if settings.rotate:
        images = _rotate(images, (2 * draw(_ANGLE) - 1) * settings.rotate)
    if settings.colour:
        images = _colour(images, *(_factors(draw(s), settings.colour) for s in (_BRIGHTNESS, _CONTRAST, _SATURATION)))
    if settings.erase:
        _erase(
            images,
            draw(_ERASE) < settings.erase,
            np.stack([draw(s) for s in (_ERASE_AREA, _ERASE_ASPECT, _ERASE_TOP, _ERASE_LEFT)]),
        )
    return images


def as_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in the range 0 to 1; anything else as float32."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def partner_rows(ids: Array, views: Array, num_samples: int, *, seed: int) -> Ints:
    """Return the row of the same split that each ``(id, view)`` is mixed with: (b,)."""
    return _floor(random.uniform(seed, _PARTNER, ids, views), num_samples)


def mix(
    inputs: Tensor,
    targets: Tensor,
    partner_inputs: Tensor,
    partner_targets: Tensor,
    ids: Array | Tensor,
    views: Array | Tensor,
    *,
    settings: AugmentSettings,
    seed: int,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Mix each sample with its partner, by mixup or cutmix.

    With both on, each ``(id, view)`` takes one of them with probability 1/2. Mixup: Zhang et al., mixup: Beyond
    Empirical Risk Minimization, 2018, arXiv 1710.09412. CutMix: Yun et al., 2019, arXiv 1905.04899.

    Args:
        inputs: (b, ...) float32, already augmented.
        targets: (b,) int64 classes, or (b,) or (b, k) float values.
        partner_inputs: (b, ...) float32, already augmented, of the rows `partner_rows` gives.
        partner_targets: as ``targets``, of the partners.
        ids: (b,) sample ids.
        views: (b,) which view of each sample.
        settings: which mixing is on and how strong.
        seed: of the whole augmentation.
        num_classes: classes of integer targets.

    Returns:
        Mixed inputs and targets; integer targets become (b, num_classes) probabilities.

    Raises:
        UsageError: ``num_classes`` is missing for integer targets.

    """
    keys = (np.asarray(ids, dtype=np.int64), np.asarray(views, dtype=np.int64))
    use_cutmix = random.uniform(seed, _WHICH_MIX, *keys) < (0.5 if settings.mixup else 1.0)
    if not settings.cutmix:
        use_cutmix[:] = False
    radius, angle = (random.uniform(seed, stream, *keys) for stream in (_SHARE_RADIUS, _SHARE_ANGLE))
    shares = np.array(
        [
            symmetric_beta(float(r), float(a), settings.cutmix if cut else settings.mixup)
            for r, a, cut in zip(radius, angle, use_cutmix, strict=True)
        ],
        dtype=np.float64,
    )
    tops, lefts = (random.uniform(seed, stream, *keys) for stream in (_BOX_TOP, _BOX_LEFT))
    blend = np.where(use_cutmix, 1.0, shares)
    mixed = _weighted(inputs, partner_inputs, blend)
    for row in np.flatnonzero(use_cutmix):
        height, width = inputs.shape[-2:]
        top, bottom = _span(float(tops[row]), height, math.sqrt(1.0 - shares[row]))
        left, right = _span(float(lefts[row]), width, math.sqrt(1.0 - shares[row]))
        mixed[row, :, top:bottom, left:right] = partner_inputs[row, :, top:bottom, left:right]
        shares[row] = 1.0 - (bottom - top) * (right - left) / (height * width)
    return mixed, _weighted(_soft(targets, num_classes), _soft(partner_targets, num_classes), shares)


def symmetric_beta(radius: float, angle: float, strength: float) -> float:
    """Turn two uniform numbers into one of Beta(strength, strength).

    Student's t by Bailey's polar method, mapped to the symmetric beta distribution (Devroye, Random variate generation
    in one line of code, 1996). Python floats, so that a sample's number cannot depend on its place in a vector.
    """
    cosine = math.cos(2 * math.pi * angle)
    log_power = -math.log(1.0 - radius) / strength
    spread = math.inf if log_power > 700 else math.expm1(log_power)
    size = spread * cosine * cosine
    return 0.5 * (1.0 + math.copysign(0.0 if size == 0 else 1.0 / math.sqrt(1.0 + 1.0 / size), cosine))


def _floor(uniform: Array, count: int) -> Ints:
    return np.minimum((uniform * count).astype(np.int64), count - 1)


def _factors(uniform: Array, strength: float) -> Tensor:
    return torch.from_numpy((1.0 + (2 * uniform - 1) * strength).astype(np.float32)).view(-1, 1, 1, 1)


def _crop(values: Array, pad: int, tops: Ints, lefts: Ints) -> Array:
    count, channels, height, width = values.shape
    padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), dtype=values.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = values
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(count), :, tops, lefts])


def _flip(values: Array, flipped: Array) -> Array:
    return np.where(flipped[:, None, None, None], values[..., ::-1], values)


def _rotate(images: Tensor, degrees: Array) -> Tensor:
    height, width = images.shape[-2:]
    turns = [math.radians(float(degree)) for degree in degrees]
    cosine = torch.tensor([math.cos(turn) for turn in turns], dtype=torch.float32).view(-1, 1, 1)
    sine = torch.tensor([math.sin(turn) for turn in turns], dtype=torch.float32).view(-1, 1, 1)
    y = ((torch.arange(height, dtype=torch.float32) * 2 + 1) / height - 1).view(1, -1, 1)
    x = ((torch.arange(width, dtype=torch.float32) * 2 + 1) / width - 1).view(1, 1, -1)
    # Written out instead of affine_grid: its matrix product may round differently for another batch size.
    grid = torch.stack([x * cosine - y * (sine * (height / width)), x * (sine * (width / height)) + y * cosine], dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _colour(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    images = (images * brightness).clamp_(0, 1)
    # Summed as integers: a sum of floats would depend on how it is cut into vectors and threads.
    fixed = (_grey(images) * 65536).round_().to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)
    mean = (fixed.double() / (65536 * images.shape[-2] * images.shape[-1])).float()
    images = ((images - mean) * contrast + mean).clamp_(0, 1)
    if images.shape[1] != 3:
        return images
    grey = _grey(images)
    return ((images - grey) * saturation + grey).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    channels = images.shape[1]
    weights = _LUMA if channels == 3 else (1.0 / channels,) * channels
    total = images[:, 0:1] * weights[0]
    for channel in range(1, channels):
        total = total + images[:, channel : channel + 1] * weights[channel]
    return total


def _erase(images: Tensor, erased: Array, draws: Array) -> None:
    """Fill a rectangle of 2 to 33 % of the area, aspect 0.3 to 3.3, with grey (Zhong et al. 2017, arXiv 1708.04896)."""
    height, width = images.shape[-2:]
    for row in np.flatnonzero(erased):
        area, aspect, top, left = (float(value) for value in draws[:, row])
        pixels = (0.02 + area * (0.33 - 0.02)) * height * width
        ratio = math.exp(math.log(0.3) + aspect * (math.log(3.3) - math.log(0.3)))
        tall = min(height, max(1, round(math.sqrt(pixels * ratio))))
        wide = min(width, max(1, round(math.sqrt(pixels / ratio))))
        y, x = int(top * (height - tall + 1)), int(left * (width - wide + 1))
        images[row, :, y : y + tall, x : x + wide] = _ERASED


def _span(uniform: float, size: int, share: float) -> tuple[int, int]:
    centre, length = int(uniform * size), int(size * share)
    return max(0, centre - length // 2), min(size, centre + length - length // 2)


def _weighted(first: Tensor, second: Tensor, shares: Array) -> Tensor:
    share = torch.from_numpy(shares.astype(np.float32)).view(-1, *[1] * (first.dim() - 1))
    return first * share + second * (1.0 - share)


def _soft(targets: Tensor, num_classes: int) -> Tensor:
    if targets.dtype != torch.int64:
        return targets
    if num_classes < 1:
        raise UsageError("mixup and cutmix turn classes into probabilities: pass num_classes, the number of classes.")
    return functional.one_hot(targets, num_classes).float()
