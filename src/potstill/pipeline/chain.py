"""A chain: assistants, or earlier generations of the student, between the teacher and the student.

Each link learns from the one before it as a student would, and then teaches the next.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from potstill.core.errors import PotstillError
from potstill.models.beside_weights import copied
from potstill.pipeline.build import Job, check_models
from potstill.pipeline.student import Student
from potstill.recipe import schema
from potstill.teachers import TorchModel


def as_teacher(job: Job, link: Student, module: nn.Module) -> Job:
    """Return the job in which a model of the chain, with the weights of ``module``, is the teacher."""
    old, section = job.teacher, link.section
    teacher = schema.Teacher(model=section.model, taps=section.taps, live=old.live, precision=old.precision)
    return replace(
        job,
        recipe=job.recipe.model_copy(update={"teacher": teacher}),
        given=replace(job.given, teacher=None, teacher_taps=link.layers),
        teacher_model=TorchModel(module, link.preprocess),
        teacher_scale=None,
    )


def check_chain(job: Job) -> None:
    """Refuse a chain with a model that does not fit the data, or lacks a layer that the objective reads.

    Raises:
        PotstillError: names the link and what does not fit.

    """
    before = job
    for link in job.chain:
        try:
            check_models(replace(before, student=link))
        except PotstillError as error:
            raise type(error)(f"{link.name}: {error}") from error
        before = as_teacher(job, link, copied(link.fresh(job.recipe.seed, "alone")))
