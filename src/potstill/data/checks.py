"""What must hold of the data before anything is trained on it, and what is worth a remark."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from potstill.core.errors import DataError
from potstill.data.images import Decoded
from potstill.data.samples import OWN_IDS, Data, Ints, Samples, Subset, digests_of
from potstill.tasks import task_of
from potstill.tasks.base import Finding, listed

_SHIFT = 0.05


def check(data: Data) -> tuple[Finding, ...]:
    """Check the three splits against each other.

    `load` has called it already; use it for data built by hand.

    Args:
        data: the three splits.

    Returns:
        Counted findings: classes missing from a split, samples in two splits, shifted labels.

    Raises:
        DataError: an empty split, a single class or a constant target, ids that are not unique, NaN or infinite
            values, targets outside the classes.

    """
    for name, samples in data.splits.items():
        if not len(samples):
            raise DataError(
                f"The {name} split is empty. Give more data, name a source as data.{name}, or raise data.split.{name}."
                if name != "train"
                else "The train split is empty. Give more data, or lower data.split."
            )
        _check_ids(name, samples)
        _check_values(name, samples, gaps=task_of(data.task).targets.gaps)
    for first, second in combinations(data.splits, 2):
        both = np.intersect1d(data.splits[first].ids, data.splits[second].ids)
        if len(both):
            raise DataError(
                f"{len(both)} ids are in both {first} and {second}, for example {listed(both)}. An id must name one "
                "sample: remove the samples from one of the splits, or leave data.id out so that rows are numbered."
            )
    targets = {name: samples.targets for name, samples in data.splits.items() if samples.num_labelled}
    findings = task_of(data.task).targets.check(targets, data.classes, data.scale)
    return (*findings, *_shared(data), *_shifted(data))


def label_shift(data: Data) -> dict[str, float]:
    """Return how far the labels of validation and test are from those of train, 0 to 1.

    Classification: total variation distance of the class shares. Regression: Kolmogorov-Smirnov statistic, the
    largest over the target columns.
    """
    return {name: distance for name, (distance, _) in _shifts(data).items()}


def _check_ids(name: str, samples: Samples) -> None:
    ids, counts = np.unique(samples.ids, return_counts=True)
    if len(ids) < len(samples):
        twice = ids[counts > 1]
        raise DataError(
            f"{name}: {len(twice)} ids are not unique, for example {listed(twice)}. Choose another id column, or "
            "leave data.id out so that rows are numbered."
        )


def _check_values(name: str, samples: Samples, *, gaps: bool) -> None:
    values = samples.targets.astype(np.float64)
    bad = ~(np.isfinite(values) | (np.isnan(values) & gaps)).reshape(len(samples), -1).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name}: {int(bad.sum())} targets are NaN or infinite, for example {samples.called(int(bad.argmax()))}."
        )
    source = samples.fetch.fetch if isinstance(samples.fetch, Subset) else samples.fetch
    if isinstance(source, Decoded):
        return  # checked while it was read; reading it all again could take hours
    for start in range(0, len(samples), 4096):
        inputs = samples.fetch(np.arange(start, min(len(samples), start + 4096), dtype=np.int64))
        if not inputs.is_floating_point():
            return
        rows = np.flatnonzero(~inputs.isfinite().flatten(1).all(dim=1).numpy())
        if len(rows):
            first = samples.called(start + int(rows[0]))
            raise DataError(f"{name}: inputs hold NaN or infinite values, first in {first}. Repair or remove them.")


def _shared(data: Data) -> list[Finding]:
    findings = []
    digests = {
        name: digests_of(samples.fetch, np.arange(len(samples), dtype=np.int64))
        if samples.digests is None
        else samples.digests
        for name, samples in data.splits.items()
    }
    for first, second in combinations(data.splits, 2):
        rows = np.flatnonzero(np.isin(digests[second], digests[first]))
        if len(rows):
            samples = data.splits[second]
            text = (
                f"{len(rows)} of {len(samples)} {second} samples are also in {first} (equal inputs), for example "
                f"{_called(samples, rows[:3])}: results on {second} look better than they are."
            )
            findings.append(Finding("warning", "shared-samples", text, len(rows)))
    return findings


def _called(samples: Samples, rows: Ints) -> str:
    """Return what a person calls some samples."""
    if samples.names is None and samples.rows_of is not None and len(rows) > 1:
        numbers = ", ".join(str(int(number) % OWN_IDS) for number in samples.ids[rows])
        return f"rows {numbers} of {samples.rows_of} (counted from 0)"
    return ", ".join(samples.called(int(row)) for row in rows)


def _shifted(data: Data) -> list[Finding]:
    findings = []
    for name, (distance, chance) in _shifts(data).items():
        if distance > chance + _SHIFT:
            text = (
                f"the labels of {name} are distributed differently from those of train: distance {distance:.3f} "
                f"(0 is equal, 1 is disjoint), more than chance explains ({chance:.3f})."
            )
            findings.append(Finding("warning", "label-shift", text, len(data.splits[name])))
    return findings


def _shifts(data: Data) -> dict[str, tuple[float, float]]:
    """Return how far the labels of validation and test are from those of train, and what chance explains of it."""
    shift = task_of(data.task).targets.shift
    return {
        name: shift(data.train.targets, data.splits[name].targets, data.num_outputs)
        for name in ("validation", "test")
        if len(data.splits[name]) and data.train.num_labelled
    }
