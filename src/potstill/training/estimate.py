"""How long one training step takes, measured on a copy of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import torch
from accelerate import Accelerator
from torch import nn

from potstill.data.augment import AugmentSettings
from potstill.data.loader import batches
from potstill.data.samples import Data
from potstill.models.beside_weights import copied
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where
from potstill.objective import Objective
from potstill.recipe.schema import Training
from potstill.teachers.protocol import Teacher
from potstill.training.average import AverageTeacher
from potstill.training.rates import starting_point
from potstill.training.schedule import peak_learning_rate
from potstill.training.setup import Task, forget, machine_for, make_accelerator
from potstill.training.step import NotFiniteError, take_step


def estimate(
    student: nn.Module,
    data: Data,
    *,
    objective: Objective,
    settings: Training,
    preprocess: Preprocessor,
    seed: int = 0,
    teacher: Teacher | AverageTeacher | None = None,
    augment: AugmentSettings | None = None,
    augment_seed: int | None = None,
    views: int | None = None,
    taps: Mapping[str, Where] | None = None,
    device: str | torch.device = "auto",
    accelerator: Accelerator | None = None,
    steps: int = 5,
) -> float:
    """Return the seconds that one training step takes, loading its batch included.

    Use it before a long training; multiply by epochs and by `data.loader.num_batches`. Validation and checkpoints are
    not in it. The arguments are those of `train`; the student is copied and stays as it is.

    Args:
        student: the model.
        data: only the first batches of train are read.
        objective: as in `train`.
        settings: as in `train`.
        preprocess: as in `train`.
        seed: as in `train`.
        teacher: as in `train`.
        augment: as in `train`.
        augment_seed: as in `train`.
        views: as in `train`.
        taps: as in `train`; layers by name or function, not the modules themselves.
        device: as in `train`.
        accelerator: as in `train`.
        steps: how many steps are timed, after one that is not; their median is returned.

    Raises:
        PotstillError: as `train` does before its first step.

    """
    given = accelerator
    accelerator = accelerator or make_accelerator(device)
    task = Task(
        data=data,
        objective=objective,
        settings=starting_point(settings, student),
        preprocess=preprocess,
        seed=seed,
        augment_seed=seed if augment_seed is None else augment_seed,
        teacher=teacher,
        augment=augment,
        views=views,
        taps=taps or {},
    )
    seconds: list[float] = []
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), machine_for(copied(student), task, accelerator) as (machine, _):
        epoch = 0
        while len(seconds) <= steps:
            began = time.monotonic()
            for batch in batches(
                data.train,
                batch_size=settings.batch_size,
                seed=task.seed,
                augment_seed=task.augment_seed,
                epoch=epoch % views if views else epoch,
                views=views,
                augment=augment,
                num_classes=data.num_outputs,
                stop=steps + 1 - len(seconds),
            ):
                try:
                    rate = peak_learning_rate(task.settings) * 1e-3
                    take_step(machine, batch, count=len(batch), whole=True, progress=0.0, rate=rate)
                except NotFiniteError:
                    pass
                if cuda:
                    torch.cuda.synchronize(accelerator.device)
                seconds.append(time.monotonic() - began)
                began = time.monotonic()
            epoch += 1
    if given is not None:
        forget(given)
    return float(median(seconds[1:]))
