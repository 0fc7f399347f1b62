"""Members side by side: what their head reads, checked before anything is trained."""

from __future__ import annotations

import numpy as np

from potstill.core.errors import DataError, PotstillError, TeacherError
from potstill.data import Data, Stream
from potstill.recipe import schema
from potstill.teachers import ConcatenatedTeacher, MergedTeacher, Source
from potstill.teachers.head import too_few

_PLACE = "teacher.merge.concatenate"


def side_by_side(mean: MergedTeacher, section: schema.Teacher, data: Data, seed: int) -> Source:
    """Return the members with a head on what they say, which has learned nothing yet.

    Args:
        mean: the members, merged by their mean.
        section: the teacher.
        data: on whose validation split the head will be learned.
        seed: of its folds.

    Raises:
        PotstillError: a layer that is not there or says no vector, recorded answers without the validation split, or a
            validation split that is too small.

    """
    named = section.merge.concatenate
    sources = [named] * len(section.members) if isinstance(named, str) else list(named or ())
    taps = dict(enumerate(member.taps for member in section.members))
    layers = tuple(taps.get(index, {}).get(name, name) for index, name in enumerate(sources))
    few = too_few(data.validation.targets, data.classes)
    if few:
        raise DataError(
            f"{_PLACE}: the head is learned from the labels of the validation split, and {few}. Make it larger "
            "(data.split.validation, or data.validation), or drop teacher.merge: the plain mean needs no labels."
        )
    _check_covered(mean, data)
    try:
        return ConcatenatedTeacher(mean, layers, seed=seed).begun(Stream(data.train).first(2))
    except PotstillError as error:
        raise type(error)(f"{_PLACE}: {error}") from error


def _check_covered(mean: MergedTeacher, data: Data) -> None:
    """Refuse recorded answers that lack validation samples."""
    ids = data.validation.ids
    for index, member in enumerate(mean.members):
        covers = member.facts.covers
        missing = 0 if covers is None else int((~covers(ids, np.zeros(len(ids), np.int64))).sum())
        if missing:
            raise TeacherError(
                f"{_PLACE}: the head is learned from what every member says of the validation split, and the recorded "
                f"answers of teacher.members[{index}] lack {missing:,} of its {len(ids):,} samples. Record them too, "
                "or drop teacher.merge: the plain mean reads the training samples only."
            )
