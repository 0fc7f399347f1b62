"""What a teacher's raw answers are: logits, probabilities, labels or values; found out, confirmed, never guessed.

Shape legend: n samples, c classes, k outputs in regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import TeacherError, did_you_mean

Answers = Literal["logits", "probabilities", "labels", "values"]
Array = np.ndarray[Any, Any]

LEAST = 1e-12
"""Smallest probability that a teacher is believed: its logarithm must be finite."""
SPREAD = 1e-4
"""Share of probability that a hard label leaves to all classes together."""
_CLOSE = 1e-2
"""How far from 1 the sum of a row of probabilities may be; float16 is within."""


def likely(values: Array) -> tuple[Answers | None, str]:
    """Return what raw answers of a classifier look like, None where nothing fits well, and the evidence in words.

    Args:
        values: (n,), (n, 1) or (n, c) numbers or texts.

    """
    if values.dtype.kind in "OUSb" or values.dtype.kind in "iu":
        return "labels", f"they are {'whole numbers' if values.dtype.kind in 'iu' else 'names'}"
    if not np.isfinite(values).all():
        return None, f"{int((~np.isfinite(values)).sum())} of {values.size} numbers are NaN or infinite"
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    seen = f"they are numbers from {low:.4g} to {high:.4g}"
    if values.ndim == 1 or values.shape[1] == 1:
        if np.equal(np.mod(values, 1), 0).all():
            return "labels", f"{seen}, one whole number a sample"
        if low >= 0.0 and high <= 1.0:
            return "probabilities", f"{seen}, one a sample"
        return "logits", f"{seen}, one a sample"
    sums = values.astype(np.float64).reshape(len(values), -1).sum(1)
    if low >= -1e-6 and high <= 1.0 + 1e-3:
        if np.abs(sums - 1.0).max() <= _CLOSE:
            return "probabilities", f"{seen} and every row sums to 1"
        return None, (
            f"{seen}, but rows sum to {sums.min():.3g} up to {sums.max():.3g}, which looks like one sigmoid a class "
            "and is no distribution over the classes"
        )
    return "logits", f"{seen}, and rows do not sum to 1"


def settle(
    values: Array, declared: Answers | None, said: Answers | None, *, says: str, place: str, what: str
) -> Answers:
    """Return what a classifier's answers are, by what the recipe and its file say and the numbers agree with.

    Args:
        values: raw answers to some real samples.
        declared: what the recipe says.
        said: what the file says.
        says: where in the file.
        place: the teacher's place in the recipe.
        what: what the teacher is called in messages.

    Raises:
        TeacherError: nobody says what the answers are, or they are something else; with the evidence.

    """
    found, evidence = likely(values)
    if np.issubdtype(values.dtype, np.number) and not np.isfinite(values).all():
        raise TeacherError(f"{place}: of the answers of {what} to {len(values)} samples, {evidence}.")
    settled = declared or said
    if settled is None:
        hint = f"look like {found}: {evidence}" if found else f"could not be recognised: {evidence}"
        line = f"answers: {found}" if found else "answers: logits (or probabilities, or labels)"
        raise TeacherError(
            f"{place}: {what} does not say what it answers with. Its answers to {len(values)} samples {hint}. Check "
            f"that this is so and add '{line}' to {place}."
        )
    if settled == "values":
        raise TeacherError(f"{place}.answers: values are for regression; these look like {found or 'nothing known'}.")
    if not _fits(values, settled, found):
        source = f"{place}.answers says {settled}" if declared else f"{what} says {settled} ({says})"
        better = f" Write 'answers: {found}'" if found else " Wrap the model so that it answers with logits"
        raise TeacherError(f"{source}, but its answers to {len(values)} samples do not fit: {evidence}.{better}.")
    return settled


def _fits(values: Array, settled: Answers, found: Answers | None) -> bool:
    single = values.ndim == 1 or values.shape[1] == 1
    if settled == "labels":
        return single and found == "labels"
    if values.dtype.kind not in "f":
        return False
    if settled == "probabilities":
        inside = bool((values >= -1e-6).all() and (values <= 1.0 + 1e-3).all())
        return inside and (single or found == "probabilities")
    return found != "probabilities" or single


def as_logits(values: Tensor, answers: Answers, num_outputs: int) -> Tensor:
    """Return raw answers as logits, (n, c); values of a regression as they are, (n, k).

    Probabilities become their logarithms, never below that of 1e-12. A label becomes the logarithm of a distribution
    that gives it all but 1e-4, which all classes share equally. One column for two classes belongs to the second one.

    Args:
        values: (n,), (n, 1) or (n, c) numbers; labels are class numbers.
        answers: what they are.
        num_outputs: c, for labels and for one column.

    """
    if answers == "values":  # float64 stays: what is lost here is lost before anybody knows the values' spread
        return (values if values.is_floating_point() else values.double()).reshape(len(values), -1)
    if answers == "labels":
        hot = F.one_hot(values.reshape(len(values)).long(), num_outputs).float()
        return torch.log((1.0 - SPREAD) * hot + SPREAD / num_outputs)
    values = values.float()
    if num_outputs == 2 and values.numel() == len(values):
        second = values.reshape(len(values), 1)
        first = 1.0 - second if answers == "probabilities" else torch.zeros_like(second)
        values = torch.cat([first, second], dim=1)
    return values.clamp_min(LEAST).log() if answers == "probabilities" else values


def order_of(
    found: Sequence[str], wanted: Sequence[str], *, place: str, what: str
) -> tuple[tuple[int, ...] | None, str]:
    """Return which of a teacher's columns stands for each class, None where that is all in order, and a note.

    Args:
        found: the teacher's classes, in the order of its columns.
        wanted: the classes that its answers are to be in.
        place: the teacher's place in the recipe.
        what: what the teacher is called in messages.

    Raises:
        TeacherError: other classes; names them.

    """
    if tuple(found) == tuple(wanted):
        return None, ""
    if set(found) == set(wanted):
        columns = tuple(list(found).index(name) for name in wanted)
        return columns, (
            f"{what} has its classes in the order {_listed(found)}; they are mapped by name to {_listed(wanted)}."
        )
    numbers = [str(number) for number in range(len(wanted))]
    if list(found) == numbers and not set(found) & set(wanted):
        return None, f"{what} numbers its classes from 0; they are taken to be {_listed(wanted)}, in this order."
    unknown = [name for name in found if name not in wanted]
    absent = [name for name in wanted if name not in found]
    parts = [
        f"it has {_listed(unknown)}, which the data does not have.{did_you_mean(unknown[0], wanted)}"
        if unknown
        else "",
        f"it lacks {_listed(absent)}." if absent else "",
    ]
    raise TeacherError(
        f"{place}: the classes of {what} are not those of the data: {' '.join(filter(None, parts))} Say which class of "
        "the data each of its classes stands for (teacher.class_map), or name the classes that a member knows "
        "(members[].classes)."
    )


def label_numbers(values: Array, classes: Sequence[str], *, what: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the class number of each label: by name, or by number where the names are no numbers.

    Args:
        values: (n,) or (n, 1) names or whole numbers.
        classes: the class names in order.
        what: where the labels are from.

    Raises:
        TeacherError: a label that is no class; names it.

    """
    flat = values.reshape(-1)
    kinds, inverse = np.unique(flat.astype(str) if flat.dtype.kind in "OUS" else flat, return_inverse=True)
    by_name = kinds.dtype.kind == "U" or all(_is_whole(name) for name in classes)
    numbers = np.empty(len(kinds), dtype=np.int64)
    for row, kind in enumerate(kinds.tolist()):
        name = str(int(kind)) if isinstance(kind, float) and kind.is_integer() else str(kind)
        if by_name and name in classes:
            numbers[row] = list(classes).index(name)
        elif not by_name and isinstance(kind, int | float) and kind in range(len(classes)):
            numbers[row] = int(kind)
        else:
            known = _listed(classes) if by_name else f"numbers from 0 to {len(classes) - 1} ({_listed(classes)})"
            raise TeacherError(f"{what} answers with the label '{name}', which is no class of the data: {known}.")
    return numbers[inverse]


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(list(names)[:10]) + more
