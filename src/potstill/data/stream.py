"""Samples as models see them: batch by batch, a pure function of seed, epoch and batch number.

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
from potstill.data.samples import Array, Flags, Ints, Samples


@dataclass(frozen=True)
class Stream:
    """The samples of a split in the views that models see; recording and training both come here.

    Attributes:
        samples: the split.
        augment: which random changes are on.
        seed: of the augmentation: that of the store where recorded views are replayed.
        views: how many views of each sample there are: epoch e sees view ``e % views``, a recording has them all.
            When absent, each epoch sees a new view and a recording has one. Without augmentation there is view 0 only.
        num_classes: classes of integer targets; needed for mixup and cutmix.
        batches: of an epoch in random order, where the samples are gone through again and again; one pass when absent.
        kept: (n,) boolean, which samples a random order has; the number of batches stays. All when absent.

    Where labels are known of some samples only, every batch of a random order but the last has the same number of
    labelled ones, see `labelled_in_batch`; an epoch is one pass over the others (over the labelled ones where these are
    nearly all), and the labelled ones are gone through again and again. Each pass over them sees the next view.

    Raises:
        UsageError: less than one view, or images mixed of samples with and without a label.

    """

    samples: Samples
    augment: AugmentSettings | None = None
    seed: int = 0
    views: int | None = None
    num_classes: int = 0
    batches: int | None = None
    kept: Flags | None = None

    def __post_init__(self) -> None:
        if self.samples.labelled is not None and self.augment is not None and mixes(self.augment):
            raise UsageError(
                "data.augment: mixup and cutmix mix samples, and one without a label makes the mixture one without. "
                "Turn them off, or give every sample a label."
            )
        if self.views is not None and self.views < 1:
            raise UsageError(f"views={self.views}: expected at least 1, or None for a new view each epoch.")

    def batch(self, rows: Ints, views: Ints) -> Batch:
        """Return the given views (b,) of the rows with the given numbers (b,)."""
        samples, augment, seed = self.samples, self.augment, self.seed
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
                num_classes=self.num_classes,
            )
        known = None if samples.labelled is None else torch.from_numpy(samples.labelled[rows])
        if samples.gaps is not None:
            known, targets = torch.from_numpy(~samples.gaps[rows]), targets.nan_to_num()
        return Batch(torch.from_numpy(ids), torch.from_numpy(views.copy()), inputs, targets, labelled=known)

    def first(self, count: int) -> Batch:
        """Return the first samples, as the first epoch sees them."""
        rows = np.arange(min(count, len(self.samples)), dtype=np.int64)
        return self.batch(rows, np.zeros_like(rows))

    def every(self) -> Batch:
        """Return all samples that a random order has, as the first epoch sees them."""
        rows = np.arange(len(self.samples), dtype=np.int64) if self.kept is None else np.flatnonzero(self.kept)
        return self.batch(rows, np.zeros_like(rows))

    def epoch(
        self,
        number: int,
        batch_size: int,
        *,
        order: int | None,
        start: int = 0,
        stop: int | None = None,
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Args:
            number: of the epoch, from 0; decides the order and, with augmentation, the view.
            batch_size: samples of a global batch, over all parts.
            order: seed of a random order, in which a last batch of one sample is joined to the one before it, because
                batch norm cannot train on one sample. None for that of the split.
            start: number of the first batch to yield; earlier ones are not loaded.
            stop: number of the batch to stop before; the end of the epoch when absent.
            part: ``(k, parts)``: yield the k-th contiguous slice of every global batch. A slice is empty where the
                global batch has fewer samples than parts.
            workers: processes that load batches; the batches are the same.

        Raises:
            UsageError: impossible numbers, or image changes for samples that are not images.
            DataError: a sample cannot be read any more.

        """
        index, parts = part
        if not 0 <= index < parts:
            raise UsageError(f"part=({index}, {parts}): expected (k, parts) with 0 <= k < parts.")
        count = len(self.samples)
        if order is None:
            rows, passes, bounds = np.arange(count), np.full(count, number), _bounds(count, batch_size, join_last=False)
        else:
            (rows, passes), bounds = self._shuffled(number, batch_size, order), self._batch_bounds(batch_size)
        views = (passes % self.views if self.views else passes) if is_on(self.augment) else np.zeros_like(passes)
        slices = tuple(
            (low + index * (high - low) // parts, low + (index + 1) * (high - low) // parts)
            for low, high in pairwise(bounds)
        )
        return _run(_Batches(self, rows, views, slices), start, stop, workers)

    def sizes(self, batch_size: int) -> list[int]:
        """Return how many samples each batch of an epoch in random order has."""
        return [high - low for low, high in pairwise(self._batch_bounds(batch_size))]

    def labelled_in_batch(self, batch_size: int) -> int:
        """Return how many samples of a batch have a label: their share of all samples, and at least one of any.

        Raises:
            UsageError: a batch of one sample, which cannot hold one with and one without a label.

        """
        known, count = self.samples.num_labelled, len(self.samples)
        if known in (0, count):
            return batch_size if known else 0
        if batch_size < 2:
            raise UsageError("training.batch_size: 1 cannot hold samples with and without a label. Use 2 or more.")
        return min(max(1, round(batch_size * known / count)), batch_size - 1)

    def _batch_bounds(self, batch_size: int) -> list[int]:
        if self.batches is not None:
            return [number * batch_size for number in range(self.batches + 1)]
        known = self.samples.num_labelled
        unknown = len(self.samples) - known
        if not unknown or not known:
            return _bounds(len(self.samples), batch_size, join_last=True)
        few = self.labelled_in_batch(batch_size)
        batches = -(-unknown // (batch_size - few))
        if few == batch_size - 1 and known > batches * few:  # a few samples without a label do not make epochs short
            return [number * batch_size for number in range(-(-known // few) + 1)]
        return [*(number * batch_size for number in range(batches)), unknown + batches * few]

    def _shuffled(self, number: int, batch_size: int, seed: int) -> tuple[Ints, Ints]:
        """Return the rows of an epoch, batch after batch, and which pass over its samples each is of."""
        count, known = len(self.samples), self.samples.num_labelled
        if self.batches is None and self.kept is None and known in (0, count):
            return random.permutation(count, seed, number), np.full(count, number, dtype=np.int64)
        bounds, few = self._batch_bounds(batch_size), self.labelled_in_batch(batch_size)
        first = np.arange(bounds[-1]) % batch_size < few
        labelled = np.ones(count, dtype=bool) if self.samples.labelled is None else self.samples.labelled
        kept = np.ones(count, dtype=bool) if self.kept is None else self.kept
        rows, passes = np.empty(bounds[-1], dtype=np.int64), np.empty(bounds[-1], dtype=np.int64)
        for places, group in ((first, labelled), (~first, ~labelled)):
            members, drawn = np.flatnonzero(group & kept), int(places.sum()) * number + np.arange(places.sum())
            if not len(drawn):
                continue
            passes[places] = drawn // len(members)
            turns = range(drawn[0] // len(members), drawn[-1] // len(members) + 1)
            orders = [members[random.permutation(len(members), seed, turn)] for turn in turns]
            rows[places] = np.concatenate(orders)[drawn - turns[0] * len(members)]
        return rows, passes

    def recording(
        self, batch_size: int, *, ranges: Sequence[tuple[int, int]] | None = None, workers: int = 0
    ) -> Iterator[Batch]:
        """Yield every ``(id, view)`` once: view 0 of rows 0 to n-1, then view 1, and so on.

        Use it to record a teacher or to predict. Batches may reach over the end of a view, but not over that of a
        range.

        Args:
            batch_size: samples of a batch; the last batch of a range may have fewer.
            ranges: (first, last + 1) of the numbers, counted over all views, to yield; all when absent.
            workers: processes that load batches; the batches are the same.

        Raises:
            UsageError: several views without augmentation, or impossible numbers.
            DataError: a sample cannot be read any more.

        """
        count, views = len(self.samples), self.views or 1
        if views > 1 and not is_on(self.augment):
            raise UsageError(f"views={views}, but data.augment is off, so all views are equal: set views to 1.")
        slices = []
        for first, stop in [(0, count * views)] if ranges is None else ranges:
            if not 0 <= first <= stop <= count * views:
                raise UsageError(f"Rows {first} to {stop} were asked for, but there are {count * views}.")
            bounds = _bounds(stop - first, batch_size, join_last=False)
            slices += [(first + low, first + high) for low, high in pairwise(bounds)]
        rows = np.tile(np.arange(count, dtype=np.int64), views)
        numbers = np.repeat(np.arange(views, dtype=np.int64), count)
        return _run(_Batches(self, rows, numbers, tuple(slices)), 0, None, workers)


def _tensor(targets: Array) -> Tensor:
    """Return classes as int64, and values as float32."""
    return torch.from_numpy(targets if targets.dtype.kind != "f" else targets.astype(np.float32))


@dataclass(frozen=True)
class _Batches(Dataset[Batch | PotstillError]):
    """Batches by number: batch i holds positions ``slices[i]`` of ``rows`` and ``views``."""

    stream: Stream
    rows: Ints
    views: Ints
    slices: tuple[tuple[int, int], ...]

    def load(self, number: int) -> Batch:
        low, high = self.slices[number]
        return self.stream.batch(self.rows[low:high], self.views[low:high])

    def __getitem__(self, number: int) -> Batch | PotstillError:
        """Return the batch, or the error as a value: a worker would wrap a raised one in its own traceback."""
        try:
            return self.load(number)
        except PotstillError as error:
            return error


def _run(batches: _Batches, start: int, stop: int | None, workers: int) -> Iterator[Batch]:
    """Check now, load when iterated."""
    stop = len(batches.slices) if stop is None else min(stop, len(batches.slices))
    if start < 0 or workers < 0:
        raise UsageError(f"start={start}, workers={workers}: expected 0 or more.")
    augment, samples = batches.stream.augment, batches.stream.samples
    if changes_images(augment) and len(samples):
        check_augment(augment, tuple(samples.fetch(np.zeros(1, dtype=np.int64)).shape[1:]))
    numbers = range(start, max(start, stop))
    return map(batches.load, numbers) if workers == 0 else _from_workers(batches, numbers, workers)


def _from_workers(batches: _Batches, numbers: range, workers: int) -> Iterator[Batch]:
    # The loader draws a base seed from its generator: from ours, so that the caller's random state stays as it is.
    loader: DataLoader[Batch | PotstillError] = DataLoader(
        batches,
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


def _bounds(count: int, batch_size: int, *, join_last: bool) -> list[int]:
    """Return where each batch starts, and the end of the last."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: expected at least 1.")
    bounds = [*range(0, count, batch_size), count] if count else [0]
    if join_last and len(bounds) > 2 and bounds[-1] - bounds[-2] < 2 <= batch_size:
        return [*bounds[:-2], bounds[-1]]
    return bounds
