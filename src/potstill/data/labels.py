"""From labels as they were found to targets: class numbers or float values.

Shape legend: n samples, k regression columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from potstill.core.errors import DataError
from potstill.data.samples import Array, Finding, Ints

_LISTED = 12


def named(labels: Array, role: str) -> tuple[list[str], Ints, bool]:
    """Return the different labels as texts in order, which of them each sample has, and whether they are numbers.

    Numbers are ordered by value, texts by the alphabet.

    Raises:
        DataError: labels that cannot be classes.

    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{role}: targets have shape {labels.shape}; classification expects one class for each sample, (n,). "
            "Use the index of the largest value of one-hot targets, or set task: regression."
        )
    if labels.dtype.kind == "f":
        fractional = labels[labels != np.round(labels)]
        if len(fractional):
            raise DataError(
                f"{role}: labels are fractional numbers such as {fractional[0]:g}, not classes. "
                "For predicting numbers set task: regression."
            )
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "O":
        labels = np.array([str(label) for label in labels], dtype=str)
    if labels.dtype.kind not in "biuU":
        raise DataError(f"{role}: labels have dtype {labels.dtype}; expected texts or whole numbers.")
    values, codes = np.unique(labels, return_inverse=True)
    return [str(value) for value in values], codes.reshape(-1).astype(np.int64), labels.dtype.kind in "iu"


def number(
    labels: Mapping[str, Array], *, classes: Sequence[str] | None, label_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Ints], tuple[Finding, ...]]:
    """Number the labels of all splits by one list of classes.

    Args:
        labels: role to (n,) labels; ``"train"`` is among them.
        classes: the names given by the user, in the teacher's order. Whole-number labels that are not among the
            names are taken as positions in this list.
        label_names: the names given by the source, in its order.

    Returns:
        The class names, (n,) int64 targets for each role, and findings.

    Raises:
        DataError: labels that are not among the classes.

    """
    found = {role: named(array, role) for role, array in labels.items()}
    if classes is not None and len(set(classes)) != len(classes):
        raise DataError(f"data.classes lists a name twice: {_listed(classes)}.")
    if classes is not None and not _all_known(found, classes) and _are_positions(found, len(classes)):
        by_position = {
            role: np.array([int(name) for name in names], dtype=np.int64)[codes]
            for role, (names, codes, _) in found.items()
        }
        return tuple(classes), by_position, ()
    order = tuple(classes or label_names or found["train"][0])
    place = {name: index for index, name in enumerate(order)}
    for role, (names, codes, _) in found.items():
        unknown = [name for name in names if name not in place]
        if not unknown:
            continue
        count = int(np.isin(codes, [names.index(name) for name in unknown]).sum())
        if classes is not None:
            raise DataError(
                f"{role}: {count} samples have labels that data.classes does not list: {_listed(unknown)}. "
                f"Given: {_listed(classes)}. Found: {_listed(names)}."
            )
        raise DataError(
            f"{role}: {count} samples are of classes that train does not have: {_listed(unknown)}. Classes of train: "
            f"{_listed(order)}. Put samples of them into train, or list all classes in data.classes if it is intended."
        )
    findings: tuple[Finding, ...] = ()
    if classes is None and label_names is None and found["train"][2] and order != tuple(map(str, range(len(order)))):
        text = (
            f"labels are the numbers {_listed(order)}; they become classes 0 to {len(order) - 1} in this order. "
            "List data.classes if the teacher numbers them differently."
        )
        findings = (Finding("warning", "renumbered-classes", text, len(order)),)
    targets = {
        role: np.array([place[name] for name in names], dtype=np.int64)[codes]
        for role, (names, codes, _) in found.items()
    }
    return order, targets, findings


def values_of(labels: Array, role: str) -> Array:
    """Return regression targets: (n,) or (n, k) float64, so that no difference is lost before they are standardised.

    Raises:
        DataError: the labels are not numbers.

    """
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise DataError(
            f"{role}: targets are {labels.dtype} of shape {labels.shape}; regression expects numbers, (n,) or (n, k). "
            "For classes set task: classification."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return np.ascontiguousarray(labels, dtype=np.float64)


def _all_known(found: Mapping[str, tuple[list[str], Ints, bool]], classes: Sequence[str]) -> bool:
    return all(set(names) <= set(classes) for names, _, _ in found.values())


def _are_positions(found: Mapping[str, tuple[list[str], Ints, bool]], count: int) -> bool:
    return all(numbers and all(0 <= int(name) < count for name in names) for names, _, numbers in found.values())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
