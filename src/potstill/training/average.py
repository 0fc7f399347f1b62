"""The student's own past as its teacher: a moving average of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import UsageError
from potstill.core.signals import Batch, Signals
from potstill.models.beside_weights import copied
from potstill.models.load import model_signals
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where
from potstill.teachers.live import LiveTeacher
from potstill.teachers.model import Facts
from potstill.training.checkpoint import put_back, tensors_of
from potstill.training.optimiser import update_average


@dataclass(frozen=True)
class AverageTeacher:
    """A teacher that is the moving average of the student's weights: the mean teacher.

    When to use it: without any trained teacher, most of all where labels are few or noisy; the average is better than
    the student at any moment of training, and its answers change slowly. Give it to `potstill.training.train` in the
    place of a teacher. It answers in eval mode with logits and the signals that the student is tapped for.

    Weights and the averages of batch norm follow the student after every step:
    ``average = decay * average + (1 - decay) * student``, where the decay of step n is
    ``min(decay, (1 + n) / (10 + n))``. Counters and other whole numbers are the student's.

    Args:
        decay: share of the average that is kept each step, at least 0 and below 1; 0.99 to 0.999 are usual.

    Raises:
        UsageError: a decay outside that.

    Antti Tarvainen, Harri Valpola: Mean teachers are better role models, 2017, arXiv:1703.01780. Deviations: the paper
    ramps the decay up as 1 - 1 / (n + 1), and runs the average with batch norm in training mode.

    """

    decay: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise UsageError(f"AverageTeacher: decay={self.decay!r} must be at least 0 and below 1, for example 0.99.")

    @property
    def fingerprint(self) -> str:
        """Hash of the decay: with the student and the data, everything that the answers depend on."""
        return fingerprint.of_json({"average_of_student": self.decay})


class Follower:
    """The average itself, during one training: a teacher with weights of its own."""

    def __init__(
        self,
        settings: AverageTeacher,
        student: nn.Module,
        preprocess: Preprocessor,
        *,
        taps: Mapping[str, Where],
        dtype: torch.dtype | None,
        device: torch.device,
        input_gradient: bool,
    ) -> None:
        modules = [name for name, where in taps.items() if isinstance(where, nn.Module)]
        if modules:
            raise UsageError(
                f"The tap {modules[0]!r} is a module; an AverageTeacher needs the layer's name, or a function."
            )
        self.decay = settings.decay
        self.fingerprint = settings.fingerprint
        self.model = copied(student)
        self._live = LiveTeacher(
            self.model,
            preprocess=preprocess,
            taps=taps,
            outputs=model_signals(student),
            precision="float32" if dtype is None else "bfloat16",
            device=device,
            input_gradient=input_gradient,
        )

    @property
    def facts(self) -> Facts:
        """What is known of it."""
        return self._live.facts

    def __call__(self, batch: Batch) -> Signals:
        """Answer a batch."""
        return self._live(batch)

    def follow(self, student: nn.Module, step: int) -> None:
        """Move one step towards the student.

        Args:
            student: after its update.
            step: number of steps taken before this one.

        """
        now, past = tensors_of(student), tensors_of(self.model)
        moving = [name for name, value in past.items() if value.is_floating_point()]
        update_average([past[name] for name in moving], [now[name] for name in moving], self.decay, step)
        for name in set(past) - set(moving):
            past[name].copy_(now[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to keep."""
        return tensors_of(self.model)

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        put_back(self.model, tensors)
