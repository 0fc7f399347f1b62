"""A teacher that was trained on other classes, answering in the classes of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from potstill.core.errors import TeacherError, did_you_mean
from potstill.core.signals import Batch
from potstill.models.load import output_tensor
from potstill.teachers.merge import regroup
from potstill.teachers.protocol import AskedByBatch, by_batch


class RegroupedTeacher(AskedByBatch, nn.Module):
    """Sums a teacher's probabilities over the classes that stand for each class of the data.

    When to use it: the teacher knows a hundred breeds and the student is to tell cats from dogs.

    Args:
        model: the teacher; its layers can be tapped as ``model.<layer>``.
        groups: (k,) for each output of the teacher the class of the data, or -1 for none.
        num_classes: classes of the data.

    """

    def __init__(self, model: nn.Module, groups: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.groups: Tensor
        self.register_buffer("groups", torch.tensor(list(groups)))

    @property
    def answer(self) -> Callable[[Batch], dict[str, Tensor]] | None:
        """How it is asked where its teacher answers by id; see `potstill.teachers.protocol.by_batch`."""
        return None if by_batch(self.model) is None else self._answer_batch

    def _answer_batch(self, batch: Batch) -> dict[str, Tensor]:
        ask = by_batch(self.model)
        return {"logits": self._regrouped(ask(batch)["logits"] if ask else output_tensor(self.model(batch.tensor)))}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (b, c) log-probabilities of the data's classes."""
        return self._regrouped(output_tensor(self.model(inputs)))

    def _regrouped(self, logits: Tensor) -> Tensor:
        if logits.shape[1:] != self.groups.shape:
            raise TeacherError(
                f"The teacher answers with {tuple(logits.shape[1:])} classes, but {len(self.groups)} were named for "
                "it. Name all of its classes, in the order of its outputs."
            )
        return regroup(logits, self.groups, self.num_classes)


def groups_of(class_map: Mapping[str, str | None], classes: Sequence[str]) -> list[int]:
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
    return [-1 if meant is None else list(classes).index(meant) for meant in class_map.values()]
