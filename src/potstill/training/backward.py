"""How the gradient of a step comes from its losses. A step knows none of these ways by name.

Each way lives for one step: it is given the loss of every micro-batch, and leaves the gradient in ``.grad``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from potstill.objective import Loss
from potstill.training.dot import Dot
from potstill.training.gradients import Gradients, conflict, hard_and_soft
from potstill.training.machine import Machine, Moment
from potstill.training.stages import Stage, set_modes, stage_at


class Backward(Protocol):
    """One way to a gradient."""

    def add(self, loss: Loss) -> None:
        """Add the gradient of one micro-batch's loss."""

    def finish(self) -> Tensor | None:
        """Leave the gradient of the global batch in ``.grad``; return what a report says of it, where there is one."""


def begin(machine: Machine, moment: Moment) -> Backward:
    """Return how this step comes to its gradient; before its first forward pass."""
    way: Backward = Together(machine, moment)
    if isinstance(machine.optimiser, Dot):
        way = TwoSides(machine, machine.optimiser, moment)
    stage = stage_at(machine.stages, moment.progress)
    if stage is not None:
        way = OfStage(machine, stage, way)
    return Reported(machine, stage, moment, way) if moment.report else way


class Together:
    """The gradient of the sum, by way of Accelerate and the distributed wrapper."""

    def __init__(self, machine: Machine, moment: Moment) -> None:
        self._accelerator = machine.accelerator
        # Distributed wrappers average gradients over processes, Accelerate divides by its own count of micro-batches.
        processes: int = 1 if moment.whole else machine.accelerator.num_processes
        self._scale: float = processes * machine.accelerator.gradient_accumulation_steps / moment.count

    def add(self, loss: Loss) -> None:
        """Add the gradient of one micro-batch's loss."""
        self._accelerator.backward(loss.total * self._scale)

    def finish(self) -> None:
        """Nothing is left to do."""


class TwoSides:
    """The hard and the soft gradient apart, for an optimiser that wants both.

    They are summed over processes by hand: a distributed wrapper knows of one gradient only.
    """

    def __init__(self, machine: Machine, optimiser: Dot, moment: Moment) -> None:
        self._machine, self._optimiser, self._moment = machine, optimiser, moment
        self._sums = Gradients(machine.parameters, 2)

    def add(self, loss: Loss) -> None:
        """Add both gradients of one micro-batch's loss."""
        self._sums.add(hard_and_soft(self._machine.objective, loss), keep_graph=False)

    def finish(self) -> None:
        """Give both to the optimiser, and their sum to everybody."""
        sums, alone = self._sums, is_alone(self._machine, self._moment)
        hard, soft = map(sums.split, sums.mean(self._moment.count, alone=alone))
        self._optimiser.parts = dict(zip(sums.parameters, zip(hard, soft, strict=True), strict=True))
        for parameter, left, right, used in zip(sums.parameters, hard, soft, sums.used, strict=True):
            parameter.grad = left + right if used else None


class OfStage:
    """A gradient for the layers that learn in this stage only."""

    def __init__(self, machine: Machine, stage: Stage, way: Backward) -> None:
        self._stage, self._way, self.add = stage, way, way.add
        set_modes(machine.trainee, stage)

    def finish(self) -> Tensor | None:
        """Leave no gradient in what is frozen, so that the optimiser passes it by."""
        said = self._way.finish()
        for parameter in self._stage.frozen:
            parameter.grad = None
        return said


class Reported:
    """Another way, with the gradient of each term looked at beside it."""

    def __init__(self, machine: Machine, stage: Stage | None, moment: Moment, way: Backward) -> None:
        self._machine, self._moment, self._way = machine, moment, way
        frozen = {id(parameter) for parameter in stage.frozen} if stage is not None else set()
        student = machine.trainee.student.parameters()
        trained = [p for p in student if p.requires_grad and id(p) not in frozen]
        self._terms = Gradients(trained, len(machine.objective.terms))

    def add(self, loss: Loss) -> None:
        """Add the gradient of each term, and the other way's."""
        self._terms.add(loss.summands, keep_graph=True)
        self._way.add(loss)

    def finish(self) -> Tensor:
        """Return (t + 1,) what `conflict` says of the gradients of the t terms."""
        self._way.finish()
        gradients = self._terms.mean(self._moment.count, alone=is_alone(self._machine, self._moment))
        return conflict(self._machine.objective, gradients)


def is_alone(machine: Machine, moment: Moment) -> bool:
    """Return whether this process sees the whole global batch."""
    return moment.whole or machine.accelerator.num_processes == 1
