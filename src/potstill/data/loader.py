"""The batches of an epoch: a pure function of seed, epoch and batch number.

Nothing here keeps state: batch 7 of epoch 3 is the same whether the run came there by training or by resuming, in one
process or in four, with worker processes or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from potstill.core import random
from potstill.core.errors import PotstillError, UsageError
from potstill.core.signals import Batch
from potstill.data.augment import AugmentSettings, changes_images, check_augment, is_on, mix, mixes, partner_rows
from potstill.data.augment import augment as change
from potstill.data.samples import Array, Ints, Samples


def load_batch(
    samples: Samples,
    rows: Ints,
    views: Ints,
    *,
    augment: AugmentSettings | None = None,
    seed: int = 0,
    num_classes: int = 0,
) -> Batch:
    """Return the given views of the given rows; recording and training both come here.

    Args:
        samples: the split.
        rows: (b,) row numbers.
        views: (b,) which view of each row.
        augment: which random changes are on.
        seed: of the augmentation.
        num_classes: classes of integer targets; needed for mixup and cutmix.

    """
    ids = samples.ids[rows]

    def changed(chosen: Ints) -> Tensor:
        inputs = samples.fetch(chosen)
        if augment is None or not is_on(augment):
            return inputs
        return change(inputs, samples.ids[chosen], views, settings=augment, seed=seed)

    inputs, targets = changed(rows), _tensor(samples.targets[rows])
    if augment is not None and mixes(augment):
        partners = partner_rows(ids, views, len(samples), seed=seed)
        inputs, targets = mix(
            inputs,
            targets,
            changed(partners),
            _tensor(samples.targets[partners]),
            ids,
            views,
            settings=augment,
            seed=seed,
            num_classes=num_classes,
        )
    return Batch(torch.from_numpy(ids), torch.from_numpy(views.copy()), inputs, targets)


def _tensor(targets: Array) -> Tensor:
    """Return classes as int64, and values as float32."""
    return torch.from_numpy(targets if targets.dtype.kind != "f" else targets.astype(np.float32))


def num_batches(num_samples: int, batch_size: int, *, shuffle: bool = True, drop_last: bool = False) -> int:
    """Return how many batches an epoch of `batches` has."""
    return len(_bounds(num_samples, batch_size, shuffle=shuffle, drop_last=drop_last)) - 1


def batches(
    samples: Samples,
    *,
    batch_size: int,
    seed: int = 0,
    augment_seed: int | None = None,
    epoch: int = 0,
    shuffle: bool = True,
    views: int | None = None,
    augment: AugmentSettings | None = None,
    num_classes: int = 0,
    start: int = 0,
    stop: int | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of one epoch.

    Args:
        samples: the split.
        batch_size: samples of a global batch, over all parts.
        seed: of the order.
        augment_seed: of the augmentation: that of the store when recorded views are replayed; ``seed`` when absent.
        epoch: counted from 0; decides the order and, with augmentation, the view.
        shuffle: whether the order is random. A last batch of one sample is then joined to the one before it,
            because batch norm cannot train on one sample.
        views: how many views of each sample there are: epoch e sees view ``e % views``; a new view each epoch when
            absent. Without augmentation there is view 0 only.
        augment: which random changes are on.
        num_classes: classes of integer targets; needed for mixup and cutmix.
        start: number of the first batch to yield; earlier ones are not loaded.
        stop: number of the batch to stop before; the end of the epoch when absent.
        part: ``(k, parts)``: yield the k-th contiguous slice of every global batch. A slice is empty where the
            global batch has fewer samples than parts.
        workers: processes that load batches; the batches are the same.
        drop_last: leave out a last batch that is not full, unless it is the only one.

    Raises:
        UsageError: impossible numbers, or image changes for samples that are not images.
        DataError: a sample cannot be read any more.

    """
    index, parts = part
    if not 0 <= index < parts:
        raise UsageError(f"part=({index}, {parts}): expected (k, parts) with 0 <= k < parts.")
    if views is not None and views < 1:
        raise UsageError(f"views={views}: expected at least 1, or None for a new view each epoch.")
    count = len(samples)
    order = random.permutation(count, seed, epoch) if shuffle else np.arange(count, dtype=np.int64)
    view = 0 if not is_on(augment) else epoch % views if views else epoch
    bounds = _bounds(count, batch_size, shuffle=shuffle, drop_last=drop_last)
    slices = [
        (low + index * (high - low) // parts, low + (index + 1) * (high - low) // parts)
        for low, high in pairwise(bounds)
    ]
    pixels = seed if augment_seed is None else augment_seed
    job = _Job(samples, order, np.full(count, view, dtype=np.int64), tuple(slices), augment, pixels, num_classes)
    return _run(job, start, stop, workers)


def record_batches(
    samples: Samples,
    *,
    batch_size: int,
    views: int = 1,
    augment: AugmentSettings | None = None,
    seed: int = 0,
    num_classes: int = 0,
    ranges: Sequence[tuple[int, int]] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield every ``(id, view)`` once: view 0 of rows 0 to n-1, then view 1, and so on.

    Use it to record a teacher or to predict. Batches may reach over the end of a view, but not over that of a range.

    Args:
        samples: the split.
        batch_size: samples of a batch; the last batch of a range may have fewer.
        views: how many views of each sample.
        augment: which random changes are on.
        seed: of the augmentation.
        num_classes: classes of integer targets; needed for mixup and cutmix.
        ranges: (first, last + 1) of the numbers, counted over all views, to yield; all when absent.
        workers: processes that load batches; the batches are the same.

    Raises:
        UsageError: several views without augmentation, or impossible numbers.
        DataError: a sample cannot be read any more.

    """
    if views < 1:
        raise UsageError(f"views={views}: expected at least 1.")
    if views > 1 and not is_on(augment):
        raise UsageError(f"views={views}, but data.augment is off, so all views are equal: set views to 1.")
    count = len(samples)
    slices = []
    for first, stop in [(0, count * views)] if ranges is None else ranges:
        if not 0 <= first <= stop <= count * views:
            raise UsageError(f"Rows {first} to {stop} were asked for, but there are {count * views}.")
        bounds = _bounds(stop - first, batch_size, shuffle=False, drop_last=False)
        slices += [(first + low, first + high) for low, high in pairwise(bounds)]
    job = _Job(
        samples,
        np.tile(np.arange(count, dtype=np.int64), views),
        np.repeat(np.arange(views, dtype=np.int64), count),
        tuple(slices),
        augment,
        seed,
        num_classes,
    )
    return _run(job, 0, None, workers)


@dataclass(frozen=True)
class _Job(Dataset[Batch | PotstillError]):
    """Batches by number: batch i holds positions ``slices[i]`` of ``rows`` and ``views``."""

    samples: Samples
    rows: Ints
    views: Ints
    slices: tuple[tuple[int, int], ...]
    augment: AugmentSettings | None
    seed: int
    num_classes: int

    def load(self, number: int) -> Batch:
        low, high = self.slices[number]
        return load_batch(
            self.samples,
            self.rows[low:high],
            self.views[low:high],
            augment=self.augment,
            seed=self.seed,
            num_classes=self.num_classes,
        )

    def __getitem__(self, number: int) -> Batch | PotstillError:
        """Return the batch, or the error as a value: a worker would wrap a raised one in its own traceback."""
        try:
            return self.load(number)
        except PotstillError as error:
            return error


def _run(job: _Job, start: int, stop: int | None, workers: int) -> Iterator[Batch]:
    """Check now, load when iterated."""
    stop = len(job.slices) if stop is None else min(stop, len(job.slices))
    if start < 0 or workers < 0:
        raise UsageError(f"start={start}, workers={workers}: expected 0 or more.")
    if changes_images(job.augment) and len(job.samples):
        check_augment(job.augment, tuple(job.samples.fetch(np.zeros(1, dtype=np.int64)).shape[1:]))
    numbers = range(start, max(start, stop))
    return map(job.load, numbers) if workers == 0 else _from_workers(job, numbers, workers)


def _from_workers(job: _Job, numbers: range, workers: int) -> Iterator[Batch]:
    # The loader draws a base seed from its generator: from ours, so that the caller's random state stays as it is.
    loader: DataLoader[Batch | PotstillError] = DataLoader(
        job,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, PotstillError):
            raise batch
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch


def _bounds(count: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> list[int]:
    """Return where each batch starts, and the end of the last."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: expected at least 1.")
    bounds = [*range(0, count, batch_size), count] if count else [0]
    if len(bounds) > 2:
        rest = bounds[-1] - bounds[-2]
        if drop_last and rest < batch_size:
            return bounds[:-1]
        if shuffle and rest < 2 <= batch_size:
            return [*bounds[:-2], bounds[-1]]
    return bounds
