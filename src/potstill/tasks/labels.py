"""From labels to class numbers. Shape legend: n samples."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from potstill.core.errors import DataError
from potstill.tasks.arrays import Array, Ints
from potstill.tasks.base import Finding
from potstill.tasks.texts import NUMBER

_LISTED = 12
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


def named(labels: Array) -> tuple[list[str], Ints, bool]:
    """Return the different labels in order, which of them each sample has, and whether all are whole numbers.

    Args:
        labels: (n,) texts.

    """
    names = in_order(set(labels))
    place = {name: index for index, name in enumerate(names)}
    codes = np.array([place[label] for label in labels], dtype=np.int64)
    return names, codes, all(_WHOLE.fullmatch(name) for name in names)


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names in their order: by value where all are numbers, by the alphabet otherwise."""
    names = list(names)
    if all(NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (Decimal(name), name))
    return sorted(names)


def number(
    labels: Mapping[str, Array], *, classes: Sequence[str] | None, label_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Ints], tuple[Finding, ...]]:
    """Number the labels of all splits by one list of classes.

    Args:
        labels: role to (n,) texts; the first has all classes: ``"train"`` where that has labels.
        classes: the names given by the user, in the teacher's order. Whole-number labels that are not among the
            names are taken as positions in this list, unless the names are numbers or truth values themselves.
        label_names: the names given by the source, in its order.

    Returns:
        The class names, (n,) int64 targets for each role, and findings.

    Raises:
        DataError: labels that are not among the classes.

    """
    found, first = {role: named(array) for role, array in labels.items()}, next(iter(labels))
    if classes is not None and len(set(classes)) != len(classes):
        raise DataError(f"data.classes lists a name twice: {_listed(classes)}.")
    if classes is not None and _name_by_position(found, classes):
        by_position = {
            role: np.array([int(name) for name in names], dtype=np.int64)[codes]
            for role, (names, codes, _) in found.items()
        }
        return tuple(classes), by_position, ()
    if classes is None and label_names is None:
        _refuse_fractions(found[first][0])
    order = tuple(classes or label_names or found[first][0])
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
            f"{role}: {count} samples are of classes that {first} does not have: {_listed(unknown)}. Classes of "
            f"{first}: {_listed(order)}. Put samples of them into {first}, or list all classes in data.classes if it "
            "is intended."
        )
    findings = _alike(order)
    if classes is None and label_names is None and found[first][2] and order != tuple(map(str, range(len(order)))):
        text = (
            f"labels are the numbers {_listed(order)}; they become classes 0 to {len(order) - 1} in this order. "
            "List data.classes if the teacher numbers them differently."
        )
        findings = (*findings, Finding("warning", "renumbered-classes", text, len(order)))
    targets = {
        role: np.array([place[name] for name in names], dtype=np.int64)[codes]
        for role, (names, codes, _) in found.items()
    }
    return order, targets, findings


def _refuse_fractions(names: Sequence[str]) -> None:
    if all(NUMBER.fullmatch(name) for name in names):
        fractions = [name for name in names if Decimal(name) != Decimal(name).to_integral_value()]
        if fractions:
            raise DataError(
                f"train: labels are fractional numbers such as {fractions[0]}, not classes. For predicting numbers set "
                "task: regression; where they are names, list them in data.classes."
            )


def _alike(names: Sequence[str]) -> tuple[Finding, ...]:
    """Say which names of classes differ only in case, spaces, the spelling of letters or of numbers."""
    groups: dict[str | Decimal, list[str]] = defaultdict(list)
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups[Decimal(plain) if NUMBER.fullmatch(plain) else plain].append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return ()
    shown = "; ".join(" and ".join(repr(name) for name in group[:4]) for group in alike[:4])
    text = (
        f"{sum(map(len, alike))} classes look alike but are different: {shown}. Make the labels equal if they mean "
        "the same."
    )
    return (Finding("warning", "classes-alike", text, sum(map(len, alike))),)


def _name_by_position(found: Mapping[str, tuple[list[str], Ints, bool]], classes: Sequence[str]) -> bool:
    """Whether labels are places in the list of classes: whole numbers, of classes whose names say no number."""
    if all(set(names) <= set(classes) for names, _, _ in found.values()):
        return False
    if all(NUMBER.fullmatch(name) or name.casefold() in ("true", "false") for name in classes):
        return False
    count = len(classes)
    return all(numbers and all(0 <= int(name) < count for name in names) for names, _, numbers in found.values())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown
