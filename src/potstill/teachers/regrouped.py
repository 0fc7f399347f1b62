"""A teacher that was trained on other classes, answering in the classes of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.core.errors import TeacherError, did_you_mean
from potstill.teachers.merge import regroup


@dataclass(frozen=True)
class Regrouped:
    """What becomes of a teacher's logits: probabilities are summed over the classes that stand for each of the data's.

    When to use it: the teacher knows a hundred breeds and the student is to tell cats from dogs.

    Attributes:
        groups: (k,) for each output of the teacher the class of the data, or -1 for none.
        num_classes: classes of the data.

    """

    groups: tuple[int, ...]
    num_classes: int
    kind: ClassVar[str] = "RegroupedTeacher"

    @property
    def note(self) -> str:
        """Nothing: the recipe says it."""
        return ""

    def __call__(self, logits: Tensor) -> Tensor:
        """Return (b, c) log-probabilities of the data's classes."""
        if tuple(logits.shape[1:]) != (len(self.groups),):
            raise TeacherError(
                f"The teacher answers with {tuple(logits.shape[1:])} classes, but {len(self.groups)} were named for "
                "it. Name all of its classes, in the order of its outputs."
            )
        return regroup(logits, self.state()["groups"].to(logits.device), self.num_classes)

    def __str__(self) -> str:
        """Return nothing: its groups are tensors."""
        return ""

    def state(self) -> dict[str, Tensor]:
        """Return the groups."""
        return {"groups": torch.tensor(self.groups)}


def groups_of(class_map: Mapping[str, str | None], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the class number for each of the teacher's classes, -1 for none.

    Args:
        class_map: the teacher's class -> the data's class or None, in the order of the teacher's outputs.
        classes: the data's classes.

    Raises:
        TeacherError: a class that the data does not have, or one that no output stands for.

    """
    for own, meant in class_map.items():
        if meant is not None and meant not in classes:
            raise TeacherError(
                f"The teacher's class {own!r} is said to stand for {meant!r}, which the data does not have."
                f"{did_you_mean(meant, classes)}"
            )
    absent = [name for name in classes if name not in class_map.values()]
    if absent:
        raise TeacherError(
            f"No class of the teacher stands for {absent}. Map one to it, leave these samples out of the data, or give "
            "the soft term a head (head: adapter) that learns the projection."
        )
    return tuple(-1 if meant is None else list(classes).index(meant) for meant in class_map.values())
