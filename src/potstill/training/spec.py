"""What is trained on what, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from potstill.core import fingerprint
from potstill.data.samples import Data
from potstill.data.stream import Stream
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where
from potstill.objective import Objective
from potstill.recipe.schema import Augment, Training
from potstill.teachers.model import Model
from potstill.training.average import AverageTeacher
from potstill.training.validate import Metric

NOT_IN_WEIGHTS = ("checkpoint_every", "track", "workers", "threads")
"""Settings that say how a training is done and not what comes out of it."""


@dataclass(frozen=True)
class Spec:
    """Everything that decides a training, beside the student that is trained.

    Attributes:
        data: validation chooses the weights; train is read as ``stream``, test is not.
        stream: the training samples in the views that the student and the teacher see.
        objective: what is minimised, as a sum over samples; each step divides it once by the samples of the batch.
        settings: epochs, optimiser and the rest of the recipe's training section. What is ``auto`` there is filled in
            with the usual value for this kind of model: racing it is the pipeline's work.
        preprocess: what the student expects of its inputs; it is not changed and not part of the weights.
        seed: of sample order, dropout and adapters.
        teacher: answers each batch; may be None where the objective reads no teacher. An `AverageTeacher` is the moving
            average of the student itself.
        taps: names of signals to read from the student's layers, for terms that want more than logits.
        steps: optimiser steps in all, in the place of ``settings.epochs``; the schedule is as complete as ever.
        metric: chooses the weights that are kept; accuracy or R2 when absent.

    """

    data: Data
    stream: Stream
    objective: Objective
    settings: Training
    preprocess: Preprocessor
    seed: int = 0
    teacher: Model | AverageTeacher | None = None
    taps: Mapping[str, Where] = field(default_factory=dict)
    steps: int | None = None
    metric: Metric | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the training samples."""
        return len(self.stream.sizes(self.settings.batch_size))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps or self.settings.epochs * self.steps_per_epoch

    def identity(self, student: nn.Module) -> dict[str, Any]:
        """Describe the training as JSON-like data: equal descriptions may go on from one another's checkpoints."""
        settings = self.settings.model_dump(exclude=set(NOT_IN_WEIGHTS))
        shapes = {name: tuple(p.shape) for name, p in student.state_dict().items() if isinstance(p, torch.Tensor)}
        changes = self.stream.augment
        return {
            **{f"training.{name}": value for name, value in settings.items()},
            **{f"objective.{term.name}": term.describe() for term in self.objective.terms},
            "seed": self.seed,
            "augment_seed": self.stream.seed,
            "views": self.stream.views,
            **({} if self.stream.batches is None else {"batches of an epoch": self.stream.batches}),
            **({} if self.stream.kept is None else {"samples that are kept": fingerprint.of_array(self.stream.kept)}),
            "augment": changes and {name: getattr(changes, name) for name in Augment.model_fields},
            "data": self.data.fingerprint,
            "preprocess": [fingerprint.of_weights(self.preprocess), self.preprocess.size],
            "student": fingerprint.of_json(shapes),
            "teacher": self.teacher.fingerprint if self.teacher is not None and self.objective.needs_teacher else None,
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.metric is None else {"metric": self.metric.name}),
        }
