"""What a training keeps from step to step, and how it is saved and put back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from potstill.core.errors import DivergedError
from potstill.objective import first_bad
from potstill.training import checkpoint
from potstill.training.average import Follower
from potstill.training.checkpoint import Checkpoint, Counters
from potstill.training.machine import Machine
from potstill.training.optimiser import optimiser_tensors, restore_optimiser
from potstill.training.spec import Spec
from potstill.training.threads import Threads
from potstill.training.track import Tracker


@dataclass
class State:
    """What changes from step to step.

    ``sums`` are this epoch's sums of the objective and its terms in this process, ``norms`` the sum of the gradient
    norms of its steps, ``average`` the moving average of the student's weights, ``conflict`` what was seen of the
    terms' gradients in this epoch.
    """

    counters: Counters
    sums: Tensor
    norms: Tensor
    average: list[Tensor]
    conflict: Tensor | None = None
    best: Mapping[str, Tensor] = field(default_factory=dict)
    saved_step: int = 0


@dataclass(frozen=True)
class Run:
    """What stays the same during one training."""

    spec: Spec
    machine: Machine
    folder: Path
    identity: Mapping[str, Any]
    trackers: list[Tracker]
    started: float
    threads: Threads

    @property
    def history(self) -> Path:
        """One line per epoch."""
        return self.folder / "history.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest checkpoint."""
        return self.folder / "checkpoint"


def save(run: Run, state: State) -> None:
    """Write a checkpoint on the main process; once training is over, the best weights are all that is needed."""
    machine = run.machine
    totals = total_sums(run, state)
    refuse_deferred(run, state, totals.cpu())
    seconds = agreed(machine, time.monotonic() - run.started)
    state.counters = replace(state.counters, seconds=seconds)
    state.saved_step = state.counters.step
    if not machine.accelerator.is_main_process:
        return
    tensors: dict[str, Tensor] = {}
    teacher = machine.teacher
    if state.counters.stopped is None:
        tensors = {
            **checkpoint.with_prefix("student", checkpoint.tensors_of(machine.trainee.student)),
            **checkpoint.with_prefix("heads", checkpoint.tensors_of(machine.trainee.heads)),
            **checkpoint.with_prefix("optimiser", optimiser_tensors(machine.optimiser)),
            **checkpoint.with_prefix("average", {str(i): tensor for i, tensor in enumerate(state.average)}),
            **checkpoint.with_prefix("epoch", {"sums": totals, "norms": state.norms}),
            **({} if state.conflict is None else {"epoch/conflict": state.conflict}),
            **(checkpoint.with_prefix("teacher", teacher.tensors()) if isinstance(teacher, Follower) else {}),
        }
    checkpoint.save(run.checkpoints, Checkpoint(state.counters, tensors, state.best), run.identity)


def start(machine: Machine) -> State:
    """Return the state before the first step."""
    wide = torch.float32 if machine.device.type == "mps" else torch.float64
    terms = len(machine.objective.terms)
    weights = float_parameters(machine.trainee.student) if machine.settings.ema is not None else []
    return State(
        counters=Counters(),
        sums=torch.zeros(1 + terms, dtype=wide, device=machine.device),
        norms=torch.zeros((), dtype=wide, device=machine.device),
        average=[weight.detach().clone() for weight in weights],
    )


def resume(machine: Machine, state: State, found: Checkpoint) -> None:
    """Put everything back as it was when the checkpoint was written."""
    state.counters, state.best, state.saved_step = found.counters, found.best, found.counters.step
    if found.counters.stopped is not None:
        return
    checkpoint.put_back(machine.trainee.student, checkpoint.without_prefix("student", found.tensors))
    checkpoint.put_back(machine.trainee.heads, checkpoint.without_prefix("heads", found.tensors))
    restore_optimiser(machine.optimiser, checkpoint.without_prefix("optimiser", found.tensors))
    for index, tensor in enumerate(state.average):
        tensor.copy_(found.tensors[f"average/{index}"])
    state.norms.copy_(found.tensors["epoch/norms"])
    state.conflict = found.tensors.get("epoch/conflict")
    if isinstance(machine.teacher, Follower):
        machine.teacher.put_back(checkpoint.without_prefix("teacher", found.tensors))
    if machine.accelerator.is_main_process:
        state.sums.copy_(found.tensors["epoch/sums"])


def total_sums(run: Run, state: State) -> Tensor:
    """Return the epoch's sums over all processes, and keep them on the main one."""
    accelerator = run.machine.accelerator
    if accelerator.num_processes == 1:
        return state.sums
    total: Tensor = accelerator.reduce(state.sums, reduction="sum")
    state.sums = total.clone() if accelerator.is_main_process else torch.zeros_like(total)
    return total


def refuse_deferred(run: Run, state: State, totals: Tensor) -> None:
    """Stop if an earlier step was not finite: the sums keep it, and the device skipped every update since."""
    if bool(totals.isfinite().all()) and not (run.machine.bad is not None and float(run.machine.bad)):
        return
    bad = first_bad(dict(zip(run.machine.term_names, totals[1:], strict=True)))
    what = f"the term {bad!r} is not finite" if bad else "a gradient is not finite"
    raise diverged(run, state, f"between steps {state.saved_step + 1} and {state.counters.step}", what)


def diverged(run: Run, state: State, when: str, what: str) -> DivergedError:
    """Return the error that says when and where training left the finite numbers, and what is still there."""
    saved = f"{run.checkpoints} (step {state.saved_step})" if state.saved_step else "none was written yet"
    return DivergedError(
        f"Training stopped {when}, epoch {state.counters.epoch + 1}: {what}. No weight was updated with it. "
        f"Last good checkpoint: {saved}. Lower training.learning_rate, set training.gradient_clip, or use "
        "training.precision: float32; then delete that checkpoint folder to train from the start."
    )


def agreed(machine: Machine, value: float) -> float:
    """Return the main process's value on every process."""
    if machine.accelerator.num_processes == 1:
        return value
    return float(broadcast(torch.tensor(value, dtype=torch.float64, device=machine.device)))


def is_due(run: Run, state: State) -> bool:
    """Return whether a checkpoint is to be written; not amid steps whose threads are being found out."""
    unsaved = state.counters.step - state.saved_step
    return unsaved >= run.spec.settings.checkpoint_every and run.threads.number > 0


def float_parameters(student: nn.Module) -> list[nn.Parameter]:
    """Return the weights that a moving average follows."""
    return [parameter for parameter in student.parameters() if parameter.is_floating_point()]
