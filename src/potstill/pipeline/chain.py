"""A chain: assistants, or earlier generations of the student, between the teacher and the student.

Each link learns from the one before it as a student would, and then teaches the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from potstill.core.errors import PotstillError
from potstill.models import load_weights, model_signals
from potstill.models.taps import Where
from potstill.models.together import deployed
from potstill.pipeline.build import Job, check_models
from potstill.pipeline.makers import preprocessor
from potstill.recipe import schema


@dataclass(frozen=True)
class Link:
    """One model of the chain.

    Attributes:
        name: what it is called in the report, for example ``assistant 1``.
        section: the model as the recipe describes it.
        training: how it is trained.
        make: builds it from a seed.
        taps: layers of a model that was given as a Python object.

    """

    name: str
    section: schema.Model
    training: schema.Training
    make: Callable[[int], nn.Module]
    taps: Mapping[str, Where] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its folder in the run folder."""
        return f"chain/{self.name.replace(' ', '-')}"


def links(job: Job) -> list[Link]:
    """Return the chain of a job, in the order of training; empty where the teacher teaches the student directly."""
    recipe = job.recipe
    found = [
        Link(f"assistant {number}", section, section.training or recipe.training, make)
        for number, (section, make) in enumerate(zip(recipe.chain, job.make_links, strict=True), 1)
    ]
    earlier = [
        Link(f"generation {number}", recipe.student, recipe.training, job.make_student, job.given.student_taps)
        for number in range(1, recipe.generations)
    ]
    return found + earlier


def as_student(job: Job, link: Link) -> Job:
    """Return the job in which a link of the chain is the student."""
    section = link.section
    if not isinstance(section, schema.Student):
        section = schema.Student(**{name: getattr(section, name) for name in schema.Model.model_fields})
    linked = replace(
        job,
        recipe=job.recipe.model_copy(update={"student": section, "training": link.training}),
        given=replace(job.given, student=None, student_taps=link.taps),
        make_student=link.make,
        student_preprocess=preprocessor(link.section.preprocess),
    )
    return replace(linked, student_outputs=frozenset(model_signals(linked.make_learner(job.recipe.seed))))


def as_teacher(job: Job, link: Link, out: Path | None) -> Job:
    """Return the job in which a link of the chain is the teacher, trained in a run folder, or as it begins without."""
    old = job.teacher
    teacher = schema.Teacher(model=link.section.model, taps=link.section.taps, live=old.live, precision=old.precision)
    learner = as_student(job, link)

    def trained() -> nn.Module:
        model = learner.make_learner(job.recipe.seed)
        if out is not None:
            load_weights(model, out / link.folder / "weights.safetensors")
        return deployed(model)

    return replace(
        job,
        recipe=job.recipe.model_copy(update={"teacher": teacher}),
        given=replace(job.given, teacher=None, teacher_taps=link.taps),
        make_teacher=trained,
        teacher_preprocess=preprocessor(link.section.preprocess),
        teacher_outputs=frozenset(model_signals(trained())),
        teacher_scale=None,
    )


def check_chain(job: Job) -> None:
    """Refuse a chain with a model that does not fit the data, or lacks a layer that the objective reads.

    Raises:
        PotstillError: names the link and what does not fit.

    """
    before = job
    for link in links(job):
        learner = as_student(job, link)
        learner = replace(
            learner,
            recipe=learner.recipe.model_copy(update={"teacher": before.recipe.teacher}),
            given=replace(learner.given, teacher_taps=before.given.teacher_taps),
            make_teacher=before.make_teacher,
            teacher_preprocess=before.teacher_preprocess,
            teacher_outputs=before.teacher_outputs,
        )
        try:
            check_models(learner)
        except PotstillError as error:
            raise type(error)(f"{link.name}: {error}") from error
        before = as_teacher(job, link, None)
