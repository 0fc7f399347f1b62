"""Everything between the caller's objects and the first step: devices, heads, checks, the distributed wrapper."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from potstill import losses
from potstill.core.errors import TeacherError, UsageError
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.models.taps import tap
from potstill.objective import Objective, Term, check, heads_for
from potstill.recipe.schema import Training
from potstill.tasks import task_of
from potstill.teachers.model import Model
from potstill.training.average import AverageTeacher, Follower
from potstill.training.dot import Dot
from potstill.training.machine import Machine
from potstill.training.optimiser import build_optimiser
from potstill.training.precision import autocast_dtype, has_images_inside
from potstill.training.relations import check_batches
from potstill.training.spec import Spec
from potstill.training.stages import Stage, build_stages
from potstill.training.synchronise import synchronised_batch_norm
from potstill.training.trainee import Trainee

PROBE = 256
"""Training samples that heads are built from."""


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


def forget(accelerator: Accelerator) -> None:
    """Let an accelerator go of the model that a training prepared with it.

    Its own way collects garbage too, which takes longer than a short training. It is needed for the memory of a GPU,
    and with several processes, whose group the wrappers of models hold in reference cycles.
    """
    if accelerator.device.type == "cuda" or accelerator.num_processes > 1:
        accelerator.free_memory()
    else:
        accelerator._models.clear()


@contextmanager
def machine_for(student: nn.Module, spec: Spec, accelerator: Accelerator) -> Iterator[Machine]:
    """Put everything together that a step works with; the student gets its own form and place back afterwards.

    Yields:
        the machine.

    Raises:
        UsageError: the objective does not fit the signals; nothing to train.
        TeacherError: the teacher does not fit the objective.

    """
    home = next((p.device for p in student.parameters()), torch.device("cpu"))
    device: torch.device = accelerator.device
    images = has_images_inside(student)
    objective = smoothed(spec.objective, spec.settings.label_smoothing, spec.data.task)
    dtype = autocast_dtype(spec.settings.precision, device, student)
    samples = sum(spec.stream.sizes(spec.settings.batch_size))
    stages = check_settings(student, objective, spec.settings, samples=samples)
    teacher = _teacher(student, spec, objective, dtype=dtype, device=device)
    student.to(device)
    if images:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with tap(student, spec.taps) as tapped:
            trainee = Trainee(
                student,
                copy.deepcopy(spec.preprocess).to(device),
                nn.ModuleDict(),
                objective=objective,
                tapped=tapped,
                dtype=dtype,
                device=device,
                images=images,
            )
            trainee.heads = build_heads(trainee, objective, spec, teacher).to(device)
            optimiser = build_optimiser(trainee, spec.settings)
            fused = bool(optimiser.defaults.get("fused"))
            trainee.train()
            _share_heads(trainee, accelerator)
            prepared = accelerator.prepare_model(trainee)
            with synchronised_batch_norm(trainee, accelerator.num_processes) as switch:
                machine = Machine(
                    accelerator=accelerator,
                    trainee=trainee,
                    # Two gradients are summed over processes by hand: a distributed wrapper knows of one only.
                    model=trainee if isinstance(optimiser, Dot) else prepared,
                    # Accelerate's wrapper adds a search for installed packages to every step, and nothing that is used.
                    optimiser=optimiser,
                    parameters=tuple(p for p in trainee.parameters() if p.requires_grad),
                    objective=objective,
                    teacher=teacher,
                    settings=spec.settings,
                    stages=stages,
                    switch=switch,
                    bad=leave_to_device(optimiser, device) if device.type == "cuda" and fused else None,
                )
                yield machine
    finally:
        if images:
            student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        student.to(home)
        student.zero_grad(set_to_none=True)


def leave_to_device(optimiser: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    """Let a fused optimiser skip its update where the returned number is 1: the way torch's GradScaler talks to it."""
    fused: Any = optimiser
    fused.grad_scale = None
    fused.found_inf = torch.zeros((), device=device)
    bad: torch.Tensor = fused.found_inf
    return bad


def _teacher(
    student: nn.Module, spec: Spec, objective: Objective, *, dtype: torch.dtype | None, device: torch.device
) -> Model | None:
    """Return who answers in each step: for an average of the student, that average as it is in the beginning."""
    if not isinstance(spec.teacher, AverageTeacher):
        return spec.teacher
    return Follower(
        spec.teacher,
        student,
        spec.preprocess,
        taps=spec.taps,
        dtype=dtype,
        device=device,
        input_gradient=INPUT_GRADIENT in objective.teacher_signals,
    )


def _share_heads(trainee: Trainee, accelerator: Accelerator) -> None:
    """Make the heads' buffers equal on all processes, and leave them alone from then on.

    They change in the same way everywhere. A distributed wrapper would send them round in every step, which for a
    memory bank takes longer than the step.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in trainee.heads.buffers():
        dist.broadcast(buffer, 0)
    names = [f"heads.{name}" for name, _ in trainee.heads.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trainee, names)  # type: ignore[no-untyped-call]


def check_settings(student: nn.Module, objective: Objective, settings: Training, *, samples: int) -> tuple[Stage, ...]:
    """Refuse settings that do not fit the objective or the student, before anything is trained.

    Args:
        student: whose layers the stages name.
        objective: what is minimised.
        settings: of the training.
        samples: number of training samples.

    Returns:
        the stages.

    Raises:
        UsageError: relations between samples and batches that are cut up, one gradient where the optimiser wants two,
            or a stage with an unknown layer.

    """
    check_batches(objective, settings, samples)
    check_sides(objective, settings)
    return build_stages(student, settings.stages)


def check_sides(objective: Objective, settings: Training) -> None:
    """Refuse an optimiser for two gradients where the objective has one.

    Raises:
        UsageError: says which side is absent.

    """
    sides = {term.teacher is not None for term in objective.terms}
    if settings.optimizer == "dot" and len(sides) < 2:
        absent = "reads no teacher (such as cross_entropy)" if True in sides else "reads a teacher"
        raise UsageError(
            "training.optimizer: dot has one momentum for terms that read a teacher and one for those that read none, "
            f"but no term {absent}. Add one, or use training.optimizer: sgd."
        )


def build_heads(trainee: Trainee, objective: Objective, spec: Spec, teacher: Model | None) -> nn.ModuleDict:
    """Run some samples through student and teacher, check the objective on their signals, and build its heads."""
    if objective.needs_teacher and teacher is None:
        raise TeacherError(
            f"The objective reads the teacher's {', '.join(sorted(objective.teacher_signals))}, but teacher is None. "
            "Pass a teacher, or train with preset('alone', ...)."
        )
    fitted = any(term.head is not None for term in objective.terms)
    batch = spec.stream.first(PROBE if fitted else 2)
    taught = None
    if teacher is not None and objective.needs_teacher:
        missing = sorted(objective.teacher_signals - teacher.facts.signals)
        if missing:
            how = "Tap those layers of the teacher, or record them."
            if INPUT_GRADIENT in missing:
                how = f"For {INPUT_GRADIENT}, make the LiveTeacher with input_gradient=True. {how}"
            raise TeacherError(
                f"The objective reads the teacher's {', '.join(missing)}, but the teacher provides "
                f"{', '.join(sorted(teacher.facts.signals))}. {how}"
            )
        taught = {name: signal.to(trainee.device) for name, signal in teacher(batch).items()}
    trainee.eval()
    with torch.no_grad():
        signals = trainee.all_signals(batch.tensor.to(trainee.device), taught, batch.ids, batch.views)
    shapes = [
        None if one is None else {name: tuple(signal.shape[1:]) for name, signal in one.items()}
        for one in (signals, taught)
    ]
    check(objective, shapes[0] or {}, shapes[1], spec.data.num_outputs, spec.data.task)
    ids = torch.from_numpy(spec.stream.samples.ids)
    return heads_for(objective.terms, signals, taught, ids=ids, seed=spec.seed)


def smoothed(objective: Objective, label_smoothing: float, task: str) -> Objective:
    """Return the objective with label smoothing in its cross-entropy terms that have none of their own."""
    if not label_smoothing:
        return objective
    if not task_of(task).exclusive:
        raise UsageError(f"training.label_smoothing={label_smoothing} has no meaning in {task}. Set it to 0.")
    return Objective([_smoothed(term, label_smoothing) for term in objective.terms])


def _smoothed(term: Term, label_smoothing: float) -> Term:
    if term.loss is not losses.cross_entropy or term.options.get("label_smoothing"):
        return term
    return term.changed(options={**term.options, "label_smoothing": label_smoothing})
