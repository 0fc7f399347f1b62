"""How long the stages of a run may take, found out by a few steps and questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from potstill.models import Preprocessor
from potstill.models.beside_weights import copied
from potstill.objective import preset
from potstill.pipeline import stages
from potstill.pipeline.build import Job
from potstill.pipeline.chain import as_teacher
from potstill.pipeline.making import Making
from potstill.recipe.schema import Training
from potstill.training import Spec, learner_of, without_teacher

PROBE = 512
"""Samples that a teacher without weights is timed on."""


@dataclass(frozen=True)
class Timing:
    """Says how long things take; each is measured once.

    Attributes:
        asking_once: seconds of one sample, by who is asked: the teacher (0) or the i-th model of the chain.

    """

    asking_once: dict[int, float | None] = field(default_factory=dict)
    _trainings: dict[str, float] = field(default_factory=dict)

    def training(self, job: Job, arm: str, training: tuple[Callable[[], nn.Module], Preprocessor, Training]) -> float:
        """Return the seconds of a training by labels alone: of a model, with a preprocessing and settings."""
        make, preprocess, settings = training
        if arm not in self._trainings:
            data = (job.data.for_teacher() if arm.startswith("teacher") else job.data).to_learn()
            spec = Spec(
                data=data,
                stream=job.stream(data),
                objective=preset("alone", data.task),
                settings=without_teacher(settings),
                preprocess=preprocess,
                seed=job.recipe.seed,
            )
            model = make()
            self._trainings[arm] = learner_of(model).seconds(model, spec, job.device)
        return self._trainings[arm]

    def asking(self, made: Making, samples: int, link: int = 0) -> float | None:
        """Return the seconds of questions to the teacher (0) or a model of the chain; None where asking costs."""
        if link not in self.asking_once:
            job = _untrained(made.job, link) if link else made.job
            self.asking_once[link] = _seconds_of(job) if job.has_teacher else 0.0
        once = self.asking_once[link]
        return None if once is None else samples * once


def _untrained(job: Job, link: int) -> Job:
    student = job.chain[link - 1]
    return as_teacher(job, student, copied(student.fresh(job.recipe.seed, "alone")))


def _seconds_of(job: Job) -> float:
    """Return the seconds that a teacher which is still to be trained needs for one sample."""
    samples = job.data.train.take(slice(0, PROBE))
    began = time.perf_counter()
    with stages.live_teacher(job, job.teacher_at(0)) as live:
        stages.answers_to(job, live, samples, "timing the teacher")
    return (time.perf_counter() - began) / len(samples)
