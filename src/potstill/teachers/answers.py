"""What a teacher's raw answers are: logits, probabilities, labels or values; found out, confirmed, never guessed.

Shape legend: n samples, c classes, k outputs in regression.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import TeacherError, did_you_mean

Answers = Literal["logits", "probabilities", "percentages", "labels", "values"]
Array = np.ndarray[Any, Any]

LEAST = 1e-12
"""Smallest probability that a teacher is believed: its logarithm must be finite."""
SPREAD = 1e-4
"""Share of probability that a hard label leaves to all classes together."""
_CLOSE = 1e-2
"""How far from 1 the sum of a row of probabilities may be; float16 is within."""


_FEW = 20
"""Numbers below which a range says nothing: so few real logits can lie between 0 and 1 by chance."""
_PART = 0.05
"""Share of rows that look like distributions from which logits are taken for a mixture of both."""
_PERCENT = 50.0
"""Answers from 0 to 100 without a negative number are taken for percentages if one is above this."""


def likely(values: Array) -> tuple[Answers | None, str]:
    """Return what raw answers of a classifier look like, None where nothing fits well, and the evidence in words.

    Args:
        values: (n,), (n, 1) or (n, c) numbers or texts.

    """
    if values.dtype.kind in "OUSb" or values.dtype.kind in "iu":
        return "labels", f"they are {'whole numbers' if values.dtype.kind in 'iu' else 'names'}"
    if not np.isfinite(values).all():
        return None, f"{int((~np.isfinite(values)).sum())} of {values.size} numbers are NaN or infinite"
    if not values.size:
        return None, "there are none"
    low, high = float(values.min()), float(values.max())
    seen = f"they are numbers from {low:.4g} to {high:.4g}"
    if values.ndim == 1 or values.shape[1] == 1:
        if low >= 0.0 and np.equal(np.mod(values, 1), 0).all():
            return "labels", f"{seen}, one whole number a sample"
        if low >= 0.0 and high <= 1.0:
            return "probabilities", f"{seen}, one a sample, like the outputs of a sigmoid"
        if low >= 0.0 and high <= 100.0:
            return "percentages" if high > _PERCENT else None, f"{seen}, one a sample and none negative"
        return "logits", f"{seen}, one a sample"
    sums = values.astype(np.float64).reshape(len(values), -1).sum(1)
    if low >= -1e-6 and high <= 1.0 + 1e-3:
        if np.abs(sums - 1.0).max() <= _CLOSE:
            return "probabilities", f"{seen} and every row sums to 1"
        return None, (
            f"{seen}, but rows sum to {sums.min():.3g} up to {sums.max():.3g}, which looks like one sigmoid a class "
            "and is no distribution over the classes"
        )
    if low >= -1e-4 and high <= 100.0 + 0.1:
        if np.abs(sums - 100.0).max() <= 100.0 * _CLOSE:
            return "percentages", f"{seen} and every row sums to 100, which looks like percentages"
        if high > _PERCENT:
            return None, (
                f"{seen} and none is negative, but rows sum to {sums.min():.3g} up to {sums.max():.3g}, which looks "
                "like one percentage a class and is no distribution over the classes"
            )
    return "logits", f"{seen}, and rows do not sum to 1"


def no_logits(values: Array) -> str:
    """Return why answers that are read as logits are probably none, with what to do; an empty text where they may be.

    Args:
        values: (n, c) or (n, 1) numbers.

    """
    found, evidence = likely(values)
    if not values.size or not np.isfinite(values).all():
        return ""
    if found == "logits":
        return _some_are_none(values)
    if not _is_seen(values, found):
        return ""
    if found in ("probabilities", "percentages"):
        better = f"Write 'answers: {found}', or let the model answer with logits: what comes before its last function"
    else:
        better = "Let the model answer with logits: what comes before its last function"
    return f"{evidence}. {better}. If they are logits all the same, write 'answers: logits, answers_checked: true'."


def _some_are_none(values: Array) -> str:
    """Return that some rows are distributions and the others are not, in words; an empty text where hardly any are."""
    if values.ndim == 1 or values.shape[1] == 1:
        return ""
    fits = _fitting(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)), "probabilities")
    count = int(fits.sum())
    if count < max(_FEW, _PART * len(values)):
        return ""
    first = int(fits.nonzero()[0])
    return (
        f"{count:,} of {len(values):,} rows are from 0 to 1 and sum to 1, like probabilities, and the others are not: "
        f"the first is row {first}. Record all of them in one way. If they are logits all the same, write "
        "'answers: logits, answers_checked: true'."
    )


def _is_seen(values: Array, found: Answers | None) -> bool:
    """Return whether there are enough numbers to say that these are no logits."""
    single = values.ndim == 1 or values.shape[1] == 1
    return values.size >= _FEW or (not single and found in ("probabilities", "percentages"))


def settle(
    values: Array,
    declared: Answers | None,
    said: Answers | None,
    *,
    says: str,
    place: str,
    what: str,
    checked: bool = False,
) -> Answers:
    """Return what a classifier's answers are, by what the recipe and its file say and the numbers agree with.

    Args:
        values: raw answers to real samples.
        declared: what the recipe says.
        said: what the file says.
        says: where in the file.
        place: the teacher's place in the recipe.
        what: what the teacher is called in messages.
        checked: whether the user has confirmed that they are logits, whatever they look like.

    Raises:
        TeacherError: nobody says what the answers are, or they are something else; with the evidence.

    """
    found, evidence = likely(values)
    if np.issubdtype(values.dtype, np.number) and not np.isfinite(values).all():
        raise TeacherError(f"{place}: of the answers of {what} to {len(values):,} samples, {evidence}.")
    settled = declared or said
    if settled is None:
        hint = f"look like {found}: {evidence}" if found else f"could not be recognised: {evidence}"
        line = f"answers: {found}" if found else "answers: logits (or probabilities, or labels)"
        raise TeacherError(
            f"{place}: {what} does not say what it answers with. Its answers to {len(values):,} samples {hint}. Check "
            f"that this is so and add '{line}' to {place}."
        )
    if settled == "values":
        raise TeacherError(f"{place}.answers: values are for regression; these look like {found or 'nothing known'}.")
    problem = _misfit(values, settled, found, evidence, checked=checked)
    if problem:
        source = f"{place}.answers says {settled}" if declared else f"{what} says {settled} ({says})"
        raise TeacherError(f"{source}, but the answers of {what} to {len(values):,} samples do not fit: {problem}")
    return settled


def _misfit(values: Array, settled: Answers, found: Answers | None, evidence: str, *, checked: bool) -> str:
    """Return why answers are not what they are said to be, with what to do; an empty text where they may be."""
    better = f"Write 'answers: {found}'." if found else "Wrap the model so that it answers with logits."
    single = values.ndim == 1 or values.shape[1] == 1
    if settled == "labels":
        return "" if single and found == "labels" else f"{evidence}. {better}"
    if values.dtype.kind not in "f":
        return f"{evidence}. {better}"
    if settled == "logits":
        return "" if checked else no_logits(values)
    rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    bad = misfits(rows, settled)
    if bad is not None and bool(_fitting(rows, settled).any()):
        better = "Answer, or record, all of them in one way."
    return "" if bad is None else f"{evidence}; {bad}. {better}"


def misfits(values: Tensor, answers: Answers) -> str | None:
    """Return which rows are no probabilities, or no percentages, in words; None where all are.

    Args:
        values: (n,), (n, 1) or (n, c) numbers.
        answers: ``"probabilities"`` or ``"percentages"``; of anything else every row is right.

    """
    if answers not in ("probabilities", "percentages"):
        return None
    fits = _fitting(values, answers)
    if bool(fits.all()):
        return None
    first = int((~fits).nonzero()[0])
    row = values[first].double().reshape(-1)
    count = int((~fits).sum())
    return (
        f"{count:,} of {len(values):,} rows are no {answers}, the first is row {first}: from {float(row.min()):.4g} to "
        f"{float(row.max()):.4g}, with a sum of {float(row.sum()):.4g}"
    )


def _fitting(values: Tensor, answers: Answers) -> Tensor:
    """Return which rows are probabilities, or percentages: (n,) booleans."""
    rows = values.detach().reshape(len(values), -1).double() / (100.0 if answers == "percentages" else 1.0)
    fits = ((rows >= -1e-6) & (rows <= 1.0 + 1e-3)).all(1)
    return fits & ((rows.sum(1) - 1.0).abs() <= _CLOSE) if rows.shape[1] > 1 else fits


def as_logits(values: Tensor, answers: Answers, num_outputs: int) -> Tensor:
    """Return raw answers as logits, (n, c); values of a regression as they are, (n, k).

    Probabilities become their logarithms, never below that of 1e-12; percentages are divided by 100 first. A label
    becomes the logarithm of a distribution that gives it all but 1e-4, which all classes share equally. One column for
    two classes belongs to the second one.

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
    if answers == "percentages":
        values, answers = values / 100.0, "probabilities"
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
    found = matched(found, wanted) or found
    if tuple(found) == tuple(wanted):
        return None, ""
    if set(found) == set(wanted):
        columns = tuple(list(found).index(name) for name in wanted)
        return columns, (
            f"{what} has its classes in the order {_listed(found)}; they are mapped by name to {_listed(wanted)}."
        )
    numbers = [str(number) for number in range(len(wanted))]
    if sorted(found) == sorted(numbers) and not set(found) & set(wanted):
        note = f"{what} numbers its classes from 0; they are taken to be {_listed(wanted)}, in this order."
        return (None if list(found) == numbers else tuple(list(found).index(one) for one in numbers)), note
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


def are_names(values: Array, classes: Sequence[str]) -> bool:
    """Return whether labels are to be read as names of classes, and not as their numbers, counted from 0.

    They are where they are texts, where all classes are called by whole numbers, and where every label is the name of
    a class. So judge all labels of a source at once: a few of them may be names by accident.

    Args:
        values: (n,) or (n, 1) names or whole numbers.
        classes: the class names in order.

    """
    if values.dtype.kind in "OUS" or all(map(_is_whole, classes)):
        return True
    return bool(values.size) and matched(list(map(class_text, np.unique(values).tolist())), classes) is not None


def label_numbers(
    values: Array, classes: Sequence[str], *, what: str, by_name: bool | None = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the class number of each label.

    Args:
        values: (n,) or (n, 1) names or whole numbers.
        classes: the class names in order.
        what: where the labels are from.
        by_name: what `are_names` said of all labels of their source; of these when absent.

    Raises:
        TeacherError: a label that is no class; names it.

    """
    flat = values.reshape(-1)
    kinds, inverse = np.unique(flat.astype(str) if flat.dtype.kind in "OUS" else flat, return_inverse=True)
    by_name = are_names(flat, classes) if by_name is None else by_name
    place = {name if by_name else str(number): number for number, name in enumerate(classes)}
    names = [class_text(kind) for kind in kinds.tolist()]
    names = (matched(names, classes) or names) if by_name else names
    unknown = next((name for name in names if name not in place), None)
    if unknown is not None:
        known = _listed(classes) if by_name else f"numbers from 0 to {len(classes) - 1} ({_listed(classes)})"
        raise TeacherError(f"{what} answers with the label '{unknown}', which is no class of the data: {known}.")
    return np.array([place[name] for name in names], dtype=np.int64)[inverse]


def class_text(value: Any) -> str:
    """Return the name of a class as people write it: whole numbers without a point, texts as they are."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def matched(found: Sequence[str], wanted: Sequence[str]) -> list[str] | None:
    """Return the class that each name stands for, None where one stands for none.

    Names are equal as texts, or else as numbers, with True and False as 1 and 0: ``0.0``, ``False`` and ``0``.
    """
    if set(found) <= set(wanted):
        return list(found)
    own = {_value(name): name for name in wanted}
    values = [_value(name) for name in found]
    if len(own) < len(wanted) or len(set(values)) < len(set(found)) or not set(values) <= set(own):
        return None
    return [own[value] for value in values]


def _value(name: str) -> str | float:
    if name in ("True", "False"):
        return float(name == "True")
    return float(name) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", name) else name


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(list(names)[:10]) + more
