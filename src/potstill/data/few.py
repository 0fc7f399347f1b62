"""Few labels: samples that only a teacher answers, and labels that are hidden from students.

Shape legend: n samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from potstill.core import random
from potstill.core.errors import DataError, UsageError
from potstill.data.samples import Data, Digests, Fetch, Ints, Samples, digests_of, make_samples
from potstill.tasks.base import Finding

UNKNOWN = -1
"""The class of a sample whose label is not known."""
_HIDDEN = 211


def hide_labels(data: Data, labels: int, seed: int) -> Data:
    """Return classification data in which students see the labels of some training samples only.

    Which ones depends on their own ``(seed, id)`` within their class; every class keeps its share, at least one sample.

    Args:
        data: whose train split is labelled; a pool without labels may be there already.
        labels: how many labels students see.
        seed: of the choice.

    Raises:
        UsageError: there are not that many labels, or fewer than classes.

    """
    train = data.train
    known = np.flatnonzero(np.ones(len(train), dtype=bool) if train.labelled is None else train.labelled)
    counts = np.bincount(train.targets[known], minlength=data.num_outputs)
    present = int((counts > 0).sum())
    if labels and not present <= labels <= len(known):
        raise UsageError(
            f"data.labels={labels}: students can see the labels of {present} (one of each class) to {len(known)} "
            "training samples, or of none."
        )
    quota = counts * labels / len(known)
    takes = np.maximum(np.floor(quota).astype(np.int64), min(1, labels) * (counts > 0))
    for place in np.lexsort((np.arange(len(counts)), takes - quota)):
        takes[place] += int(takes.sum() < labels and takes[place] < counts[place])
    while takes.sum() > labels:  # classes with less than one sample's share have taken from the others
        takes[int(takes.argmax())] -= 1
    order = known[np.argsort(random.key(train.ids[known], seed, _HIDDEN), kind="stable")]
    chosen = [order[train.targets[order] == number][:count] for number, count in enumerate(takes)]
    labelled = np.zeros(len(train), dtype=bool)
    labelled[np.concatenate(chosen)] = True
    hidden = make_samples(
        train.ids,
        np.where(labelled, train.targets, UNKNOWN),
        train.fetch,
        digests=train.digests,
        names=train.names,
        rows_of=train.rows_of,
        labelled=labelled,
    )
    return replace(data, train=hidden, every_label=train)


def with_pool(data: Data, pool: Samples) -> Data:
    """Return the data with samples of unknown label beside the labelled ones of train."""
    train = data.train
    known = np.ones(len(train), dtype=bool) if train.labelled is None else train.labelled
    labelled = np.concatenate([known, np.zeros(len(pool), dtype=bool)])
    both = make_samples(
        np.concatenate([train.ids, pool.ids]),
        np.concatenate([train.targets, np.full(len(pool), UNKNOWN, dtype=np.int64)]),
        Joined(train.fetch, pool.fetch, len(train)),
        digests=np.concatenate([_digests(train), _digests(pool)]),
        names=tuple(samples.called(row) for samples in (train, pool) for row in range(len(samples))),
        labelled=labelled,
    )
    return replace(data, train=both)


@dataclass(frozen=True)
class Joined:
    """Fetch rows of two fetches, the second after the ``count`` rows of the first."""

    first: Fetch
    second: Fetch
    count: int

    def __call__(self, rows: Ints) -> Tensor:
        """Return the rows: (b, ...)."""
        late = rows >= self.count
        if late.all() or not late.any():
            return self.second(rows - self.count) if late.any() else self.first(rows)
        parts = torch.cat([self.first(rows[~late]), self.second(rows[late] - self.count)])
        places = np.argsort(np.concatenate([np.flatnonzero(~late), np.flatnonzero(late)]))
        return parts[torch.from_numpy(places)]


def told(data: Data) -> tuple[Finding, ...]:
    """Return what students see of the labels, as a remark; none where they see all of them."""
    train = data.train
    if train.labelled is None:
        return ()
    counts = np.bincount(train.targets[train.labelled], minlength=data.num_outputs)
    each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
    text = (
        f"students see the labels of {train.num_labelled:,} of {len(train):,} training samples ({each} of a class); "
        "what they learn of the others comes from the teacher."
    )
    if not train.num_labelled:
        text = f"students see no label of {len(train):,} training samples; what they learn comes from the teacher."
    beside = " beside these" if train.num_labelled else ""
    text += f" Checkpoints are chosen with the labels of {len(data.validation):,} validation samples{beside}."
    if data.every_label is not None:
        text += f" A teacher that is trained here sees the labels of {data.every_label.num_labelled:,}."
    return (Finding("info", "few-labels", text, train.num_labelled),)


def check_pool(data: Data, pool: Samples) -> tuple[Finding, ...]:
    """Refuse a pool whose ids are those of other samples, and say which of its samples are in another split.

    Raises:
        DataError: ids that are not unique.

    """
    findings = []
    for name, samples in data.splits.items():
        both = np.intersect1d(samples.ids, pool.ids)
        if len(both):
            raise DataError(
                f"{len(both)} ids are in both {name} and data.unlabelled, for example {both[0]}. An id must name one "
                "sample: remove the samples from one of the two, or leave data.id out so that rows are numbered."
            )
        rows = np.flatnonzero(np.isin(_digests(pool), _digests(samples)))
        if len(rows):
            means = "are learned with their label already" if name == "train" else "let students learn from its inputs"
            text = (
                f"{len(rows)} of {len(pool)} samples of data.unlabelled are also in {name} (equal inputs), for example "
                f"{pool.called(int(rows[0]))}: they {means}."
            )
            findings.append(Finding("info" if name == "train" else "warning", "shared-samples", text, len(rows)))
    if len(np.unique(pool.ids)) < len(pool):
        raise DataError("data.unlabelled: ids are not unique. Choose another id column, or leave data.id out.")
    return tuple(findings)


def _digests(samples: Samples) -> Digests:
    rows = np.arange(len(samples), dtype=np.int64)
    return digests_of(samples.fetch, rows) if samples.digests is None else samples.digests
