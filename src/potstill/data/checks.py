"""What must hold of the data before anything is trained on it, and what is worth a remark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from potstill.core.errors import DataError
from potstill.data.images import Decoded
from potstill.data.samples import OWN_IDS, Array, Data, Finding, Ints, Samples, Subset, digests_of

_LISTED = 10
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
        _check_values(name, samples)
    for first, second in combinations(data.splits, 2):
        both = np.intersect1d(data.splits[first].ids, data.splits[second].ids)
        if len(both):
            raise DataError(
                f"{len(both)} ids are in both {first} and {second}, for example {_listed(both)}. An id must name one "
                "sample: remove the samples from one of the splits, or leave data.id out so that rows are numbered."
            )
    findings = _check_classes(data) if data.task == "classification" else _check_numbers(data)
    return (*findings, *_shared(data), *_shifted(data))


def label_shift(data: Data) -> dict[str, float]:
    """Return how far the labels of validation and test are from those of train, 0 to 1.

    Classification: total variation distance of the class shares. Regression: Kolmogorov-Smirnov statistic, the
    largest over the target columns.
    """
    return {
        name: _distance(data, data.train.targets, data.splits[name].targets)
        for name in ("validation", "test")
        if len(data.splits[name]) and len(data.train)
    }


def _check_ids(name: str, samples: Samples) -> None:
    ids, counts = np.unique(samples.ids, return_counts=True)
    if len(ids) < len(samples):
        twice = ids[counts > 1]
        raise DataError(
            f"{name}: {len(twice)} ids are not unique, for example {_listed(twice)}. Choose another id column, or "
            "leave data.id out so that rows are numbered."
        )


def _check_values(name: str, samples: Samples) -> None:
    bad = ~np.isfinite(samples.targets.astype(np.float64)).reshape(len(samples), -1).all(axis=1)
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


def _check_classes(data: Data) -> list[Finding]:
    counts = {
        name: np.bincount(samples.targets, minlength=data.num_outputs)
        for name, samples in data.splits.items()
        if samples.targets.min() >= 0 and samples.targets.max() < data.num_outputs
    }
    outside = sorted(set(data.splits) - set(counts))
    if outside:
        raise DataError(f"{outside[0]}: targets are outside 0 to {data.num_outputs - 1}, the numbers of the classes.")
    present = np.flatnonzero(counts["train"])
    if len(present) < 2:
        raise DataError(
            f"train has one class only, '{data.classes[present[0]]}': there is nothing to learn. "
            "Check data.target, or give samples of other classes."
        )
    findings = []
    absent = np.flatnonzero(counts["train"] == 0)
    if len(absent):
        held = int((counts["validation"] + counts["test"])[absent].sum())
        text = (
            f"{len(absent)} of {data.num_outputs} classes have no sample in train: {_names(data, absent)}; "
            f"{held} samples of validation and test are of these classes."
        )
        findings.append(Finding("warning", "class-not-in-train", text, len(absent)))
    for name in ("validation", "test"):
        gone = np.flatnonzero((counts["train"] > 0) & (counts[name] == 0))
        if len(gone):
            what = "1 class of train has" if len(gone) == 1 else f"{len(gone)} classes of train have"
            text = f"{what} no sample in {name}: {_names(data, gone)}."
            findings.append(Finding("warning", f"class-not-in-{name}", text, len(gone)))
    return findings


def _check_numbers(data: Data) -> list[Finding]:
    for name, samples in data.splits.items():
        largest = float(np.abs(samples.targets).max(initial=0.0))
        # Errors are squared: as 64-bit floats where they are measured, as 32-bit ones where targets are learned raw.
        if largest > (1e150 if data.scale is not None else 1e18):
            raise DataError(
                f"{name}: targets reach {largest:g}, and the squares of errors would overflow. Divide them by a "
                f"constant{'.' if data.scale is not None else ', or leave data.standardise_targets on.'}"
            )
    columns = data.train.targets.reshape(len(data.train), -1)
    learnt = data.to_learn().train.targets.reshape(columns.shape).astype(np.float32)
    constant = np.flatnonzero(learnt.min(axis=0) == learnt.max(axis=0))
    if len(constant):
        raise DataError(
            f"train: target column {constant[0]} has one value only, {columns[0, constant[0]]:g}"
            f"{'' if data.scale is not None else ', as a 32-bit float'}: there is nothing to learn. Check data.target."
        )
    return []


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
    for name, distance in label_shift(data).items():
        sizes = 1 / len(data.train) + 1 / len(data.splits[name])
        if data.task == "classification":
            # The distance that two samples of one population have on average, doubled.
            shares = np.bincount(data.train.targets, minlength=data.num_outputs) / len(data.train)
            chance = float(np.sqrt(2 / np.pi * shares * (1 - shares) * sizes).sum())
        else:
            chance = 1.63 * float(np.sqrt(sizes))  # the 1 % critical value
        if distance > chance + _SHIFT:
            text = (
                f"the labels of {name} are distributed differently from those of train: distance {distance:.3f} "
                f"(0 is equal, 1 is disjoint), more than chance explains ({chance:.3f})."
            )
            findings.append(Finding("warning", "label-shift", text, len(data.splits[name])))
    return findings


def _distance(data: Data, first: Array, second: Array) -> float:
    if data.task == "classification":
        shares = [np.bincount(part, minlength=data.num_outputs) / len(part) for part in (first, second)]
        return float(0.5 * np.abs(shares[0] - shares[1]).sum())
    pairs = zip(first.reshape(len(first), -1).T, second.reshape(len(second), -1).T, strict=True)
    return max(_kolmogorov_smirnov(a, b) for a, b in pairs)


def _kolmogorov_smirnov(first: Array, second: Array) -> float:
    both = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def _names(data: Data, numbers: Array) -> str:
    return _listed([data.classes[number] for number in numbers])


def _listed(values: Sequence[object] | Array) -> str:
    shown = ", ".join(str(value) for value in values[:_LISTED])
    return f"{shown} and {len(values) - _LISTED} more" if len(values) > _LISTED else shown
