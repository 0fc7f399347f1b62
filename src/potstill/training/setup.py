"""Everything between the caller's objects and the first step: devices, adapters, checks, the distributed wrapper."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from potstill import losses
from potstill.core import fingerprint
from potstill.core.errors import TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.data.augment import AugmentSettings
from potstill.data.loader import batches
from potstill.data.samples import Data
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where, tap
from potstill.objective import Objective, Term, adapters_for, check
from potstill.recipe.schema import Augment, Training
from potstill.teachers.protocol import Teacher
from potstill.training.optimiser import build_optimiser
from potstill.training.precision import autocast_dtype, has_images_inside
from potstill.training.step import Learner, Machine
from potstill.training.synchronise import Switch, synchronised_batch_norm


@dataclass(frozen=True)
class Task:
    """What is trained on what: the arguments of `train` that decide the result."""

    data: Data
    objective: Objective
    settings: Training
    preprocess: Preprocessor
    seed: int
    augment_seed: int
    teacher: Teacher | None
    augment: AugmentSettings | None
    views: int | None
    taps: Mapping[str, Where]


def make_accelerator(device: str | torch.device) -> Accelerator:
    """Return an Accelerator for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: another name, no such device, or this process already works on another device.

    """
    kind = torch.device(device).type if device != "auto" else "auto"
    if kind not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device={str(device)!r}: expected 'auto', 'cpu' or 'cuda'.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device='cuda', but torch sees no CUDA device. Use 'auto' or 'cpu'.")
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision="no")
    if kind != "auto" and accelerator.device.type != kind:
        raise UsageError(
            f"device={kind!r}, but this process already works on {accelerator.device.type!r}, which Accelerate cannot "
            "change. Start another process, or use device='auto'."
        )
    return accelerator


@contextmanager
def machine_for(student: nn.Module, task: Task, accelerator: Accelerator) -> Iterator[tuple[Machine, Switch]]:
    """Put everything together that a step works with; the student gets its own form and place back afterwards.

    Yields:
        the machine, and the switch of the batch norm that is shared between processes.

    Raises:
        UsageError: the objective does not fit the signals; nothing to train.
        TeacherError: the teacher does not fit the objective.

    """
    home = next((p.device for p in student.parameters()), torch.device("cpu"))
    device: torch.device = accelerator.device
    images = has_images_inside(student)
    objective = smoothed(task.objective, task.settings.label_smoothing, task.data.task)
    dtype = autocast_dtype(task.settings.precision, device, student)
    student.to(device)
    if images:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    switch = Switch()
    try:
        with tap(student, task.taps) as tapped:
            learner = Learner(
                student,
                copy.deepcopy(task.preprocess).to(device),
                nn.ModuleDict(),
                tapped=tapped,
                dtype=dtype,
                device=device,
                images=images,
            )
            learner.adapters = build_adapters(learner, objective, task).to(device)
            optimiser = build_optimiser(learner, task.settings)
            learner.train()
            deferred = device.type == "cuda" and bool(optimiser.defaults.get("fused"))
            prepared = accelerator.prepare_model(learner)
            machine = Machine(
                accelerator=accelerator,
                learner=learner,
                model=prepared,
                # Accelerate's wrapper adds a search for installed packages to every step, and nothing that is used.
                optimiser=optimiser,
                parameters=tuple(p for p in learner.parameters() if p.requires_grad),
                objective=objective,
                teacher=task.teacher,
                accumulate=task.settings.accumulate,
                clip=task.settings.gradient_clip,
                deferred=deferred,
                bad=torch.zeros((), device=device),
            )
            if deferred:
                leave_to_device(machine)
            if accelerator.num_processes > 1:
                with synchronised_batch_norm(student) as switch:
                    yield machine, switch
            else:
                yield machine, switch
    finally:
        if images:
            student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        student.to(home)
        student.zero_grad(set_to_none=True)


def leave_to_device(machine: Machine) -> None:
    """Let the fused optimiser skip its update where ``machine.bad`` is 1: the way torch's GradScaler talks to it."""
    optimiser: Any = machine.optimiser
    optimiser.grad_scale = None
    optimiser.found_inf = machine.bad


def build_adapters(learner: Learner, objective: Objective, task: Task) -> nn.ModuleDict:
    """Run two samples through student and teacher, check the objective on their shapes, and build its adapters."""
    if objective.needs_teacher and task.teacher is None:
        raise TeacherError(
            f"The objective reads the teacher's {', '.join(sorted(objective.teacher_signals))}, but teacher is None. "
            "Pass a teacher, or train with preset('alone', ...)."
        )
    batch = probe_batch(task)
    learner.eval()
    with torch.no_grad():
        signals = learner(batch.inputs.to(learner._device))
    student_shapes = {name: tuple(signal.shape[1:]) for name, signal in signals.items()}
    teacher_shapes = None
    if task.teacher is not None and objective.needs_teacher:
        missing = sorted(objective.teacher_signals - task.teacher.provides)
        if missing:
            raise TeacherError(
                f"The objective reads the teacher's {', '.join(missing)}, but the teacher provides "
                f"{', '.join(sorted(task.teacher.provides))}. Tap those layers of the teacher, or record them."
            )
        teacher_shapes = {name: tuple(signal.shape[1:]) for name, signal in task.teacher(batch).items()}
    check(objective, student_shapes, teacher_shapes, task.data.num_outputs, task.data.task)
    return adapters_for(objective, student_shapes, teacher_shapes, seed=task.seed)


def probe_batch(task: Task) -> Batch:
    """Return the first two training samples in the view of the first epoch."""
    return next(
        batches(
            task.data.train,
            batch_size=2,
            seed=task.augment_seed,
            shuffle=False,
            views=task.views,
            augment=task.augment,
            num_classes=task.data.num_outputs,
        )
    )


def smoothed(objective: Objective, label_smoothing: float, task: str) -> Objective:
    """Return the objective with label smoothing in its cross-entropy terms that have none of their own."""
    if not label_smoothing:
        return objective
    if task == "regression":
        raise UsageError(f"training.label_smoothing={label_smoothing} has no meaning in regression. Set it to 0.")
    return Objective([_smoothed(term, label_smoothing) for term in objective.terms])


def _smoothed(term: Term, label_smoothing: float) -> Term:
    if term.loss is not losses.cross_entropy or term.options.get("label_smoothing"):
        return term
    options = {**term.options, "label_smoothing": label_smoothing}
    return Term(term.loss, term.weight, student=term.student, name=term.name, **options)


def identity(student: nn.Module, task: Task) -> dict[str, Any]:
    """Describe a training as JSON-like data: equal descriptions may go on from one another's checkpoints."""
    settings = task.settings.model_dump(exclude={"checkpoint_every", "track", "workers"})
    shapes = {name: tuple(p.shape) for name, p in student.state_dict().items() if isinstance(p, torch.Tensor)}
    augment = task.augment and {name: getattr(task.augment, name) for name in Augment.model_fields}
    return {
        **{f"training.{name}": value for name, value in settings.items()},
        **{f"objective.{term.name}": term.describe() for term in task.objective.terms},
        "seed": task.seed,
        "augment_seed": task.augment_seed,
        "views": task.views,
        "augment": augment,
        "data": task.data.fingerprint,
        "preprocess": [fingerprint.of_weights(task.preprocess), task.preprocess.size],
        "student": fingerprint.of_json(shapes),
        "teacher": task.teacher.fingerprint if task.teacher is not None and task.objective.needs_teacher else None,
    }
