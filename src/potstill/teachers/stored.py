"""A store as a teacher, and what a store of a live teacher's answers is described by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from potstill.core.errors import TeacherError, did_you_mean
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch, Ragged, Signals
from potstill.store.codecs import Codec
from potstill.store.description import Dtype, describe
from potstill.store.manifest import Manifest
from potstill.store.reader import Store
from potstill.teachers.model import Facts, Teacher, signal_shapes


class StoredTeacher:
    """Answers batches by looking up what a teacher said when it was recorded.

    When to use it: in training, always when a store exists: a look-up costs microseconds, the teacher milliseconds.

    Args:
        store: a finished store.
        signals: the ones to read; all that were recorded when absent.
        standard: whether to answer with values of a regression in the standard units they are kept in, as students
            learn them, and not in the target's.

    Raises:
        TeacherError: the store lacks one of ``signals``.

    """

    def __init__(self, store: Store, signals: Iterable[str] | None = None, *, standard: bool = False) -> None:
        self._store = store
        self._standard = standard
        self._names = sorted(store.signals if signals is None else set(signals))
        for name in self._names:
            if name not in store.signals:
                raise TeacherError(
                    f"The store {store.folder} has no signal '{name}'.{did_you_mean(name, store.signals)} "
                    "Record it again with that layer tapped."
                )

    @property
    def facts(self) -> Facts:
        """What is known of it; the signals are those in every answer."""
        return Facts(signals=frozenset(self._names), runtime="", by_id=True, views=self._store.manifest.views)

    @property
    def fingerprint(self) -> str:
        """Hash of everything the recorded answers depend on."""
        return self._store.manifest.fingerprint

    def __call__(self, batch: Batch) -> Signals:
        """Answer a batch.

        Returns:
            float32 signals, (b, ...), on the device of ``batch.tensor``; values of a regression in float64 where
            float32 would round them.

        Raises:
            TeacherError: an (id, view) was not recorded, or a signal has items; the message names it.
            PotstillError: the store's files are damaged.

        """
        device = batch.tensor.device
        answers = self.read(batch.ids, batch.views)
        return {name: values.to(device, non_blocking=True) for name, values in answers.items()}

    def read(self, ids: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Return what was said of (b,) ids in (b,) views, float32 (b, ...), on the CPU; raises what a call does."""
        rows = self._store.rows(ids, views)
        found = {name: self._dense(name, self._store.gather(name, rows)) for name in self._names}
        if self._standard:
            return found
        return {name: self._store.in_target_units(name, values) for name, values in found.items()}

    def _dense(self, name: str, values: Tensor | Ragged) -> Tensor:
        if isinstance(values, Ragged):
            raise TeacherError(
                f"Signal '{name}' of the store {self._store.folder} has items of each sample, which no loss reads as "
                f"they are: read it with potstill.open_store({str(self._store.folder)!r}).read()."
            )
        return values


def describe_recording(
    teacher: Teacher,
    example: Batch,
    *,
    ids: np.ndarray[Any, Any],
    data: str,
    dtype: Dtype = "float16",
    codecs: Mapping[str, Codec] | None = None,
    views: int = 1,
    augmentation: Mapping[str, Any] | None = None,
    seed: int = 0,
    shards: int | None = None,
    units: TargetScale | None = None,
) -> Manifest:
    """Return the manifest of a store with all of a teacher's signals.

    Args:
        teacher: will be asked about the first sample of ``example``, for the shapes of its signals.
        example: any samples of the data.
        ids: (n,) int64 sample ids in row order.
        data: fingerprint of the samples.
        dtype: number format of signals without a codec of their own.
        codecs: how a signal's numbers are kept.
        views: augmented views of each sample.
        augmentation: settings of the augmentation as plain data.
        seed: seed of the augmentation and of codecs that sample.
        shards: in how many parts the store is recorded; by size when absent.
        units: the standard units of a regression that the teacher answers in.

    """
    return describe(
        ids=ids,
        data=data,
        teacher=teacher.parts | ({} if units is None else {"units": units.to_json()}),
        shapes=signal_shapes(teacher, example),
        sources=teacher.sources,
        dtype=dtype,
        codecs=codecs,
        views=views,
        augmentation=augmentation,
        seed=seed,
        shards=shards,
    )
