"""Whether a teacher numbers its classes as the data does, and what to write into the recipe where it does not.

Shape legend: n samples, c classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.evaluation.class_order import likely_order
from potstill.pipeline.build import Job
from potstill.teachers import Source
from potstill.teachers.answers import Array, matched


@dataclass(frozen=True)
class Numbered:
    """A model whose outputs are numbered as some classes are.

    Attributes:
        title: what to call it in messages.
        signal: its answers among those of the teacher.
        classes: that its outputs stand for, in order.
        line: the place in the recipe where the order is written.
        written: whether the user wrote it.
        named: whether its own file names the classes, so that writing an order changes nothing.

    """

    title: str
    signal: str
    classes: tuple[str, ...]
    line: str
    written: bool
    named: bool


def numbered(job: Job, model: Source) -> list[Numbered]:
    """Return the teacher, or the members of several, that come finished; what is trained here has learned its order."""
    if not model.members:
        named = _names_its_classes(model, job.data.classes)
        teacher = Numbered("The teacher", "logits", job.data.classes, "data.classes", job.order_is_written, named)
        return [teacher] if job.has_finished_teacher else []
    return [
        Numbered(
            f"The teacher teacher.members[{index}]",
            f"member{index + 1}.logits",
            tuple(member.classes or job.data.classes),
            f"teacher.members[{index}].classes",
            member.classes is not None,
            _names_its_classes(model.members[index], job.data.classes),
        )
        for index, member in enumerate(job.members)
        if member.train is None
    ]


@dataclass(frozen=True)
class Doubt:
    """That a model numbers its classes in another order, in words, and whether nothing may be learned from it so."""

    text: str
    stops: bool


def order_doubt(model: Numbered, answers: Array, labels: Array, job: Job) -> Doubt | None:
    """Return what another order of a model's classes would do; None where chance explains it.

    Args:
        model: of which these are the answers.
        answers: (n, c) what it says of some samples.
        labels: (n,) their classes in the data.
        job: the job.

    """
    places = np.array([model.classes.index(name) if name in model.classes else -1 for name in job.data.classes])[labels]
    rows = np.flatnonzero(places >= 0)
    if not len(rows) or answers.shape[1] != len(model.classes):
        return None
    order = likely_order(answers[rows].argmax(1), places[rows], len(model.classes), seed=job.recipe.seed)
    if order is None:
        return None
    names = [model.classes[label] for label in order.classes]
    if len(order.moved) == 2:
        first, second = (model.classes[output] for output in order.moved)
        how = f"with the classes '{first}' and '{second}' exchanged"
    else:
        how = f"if its outputs stand for the classes in the order {', '.join(names)}"
    evidence = (
        f"{model.title} seems to number the classes in another order than the data: it is right on "
        f"{100 * order.given:.1f} % of the samples, and would be on {100 * order.ordered:.1f} % {how} (found on one "
        f"half of {len(rows):,} labelled samples, measured on the other)."
    )
    line = f"{model.line}: {_listed(names)}"
    other = ", or name the class of each output in teacher.class_map" if model.line == "data.classes" else ""
    if model.named:
        advice = "Its file names its classes itself and they were matched by name: check the names, and the labels."
    elif model.written:
        advice = "The recipe says that the present order is right."
    elif not order.certain:
        advice = f"That is not certain. If it is so, write '{line}'{other}."
    else:
        advice = (
            f"Write the order into the recipe: '{line}'{other}. If the present order is right and the teacher is wrong "
            "for another reason (its preprocessing, an inverted image), write that, "
            f"'{model.line}: {_listed(model.classes)}', and this is a warning only."
        )
    return Doubt(f"{evidence} {advice}", stops=order.certain and not model.named and not model.written)


def _names_its_classes(model: Source, classes: Sequence[str]) -> bool:
    """Return whether a teacher's own names, or its labels, say what its outputs stand for, so that no order counts."""
    own = model.facts.classes
    return model.facts.by_name or (own is not None and matched(own, classes) is not None)


def _listed(names: Sequence[str]) -> str:
    return json.dumps(list(names), ensure_ascii=False)
