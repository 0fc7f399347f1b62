"""How long one training step takes, measured on a copy of the model."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch
from accelerate import Accelerator
from torch import nn

from potstill.models.beside_weights import copied
from potstill.training.finite import NotFiniteError
from potstill.training.machine import Moment
from potstill.training.rates import starting_point
from potstill.training.schedule import peak_learning_rate
from potstill.training.setup import forget, machine_for, make_accelerator
from potstill.training.spec import Spec
from potstill.training.step import take_step


def estimate(
    student: nn.Module,
    spec: Spec,
    *,
    device: str | torch.device = "auto",
    accelerator: Accelerator | None = None,
    steps: int = 5,
) -> float:
    """Return the seconds that one training step takes, loading its batch included.

    Use it before a long training; multiply by ``spec.total_steps``. Validation and checkpoints are not in it.

    Args:
        student: the model; it is copied and stays as it is.
        spec: as in `train`; only the first batches are read, and taps are names or functions, not modules.
        device: as in `train`.
        accelerator: as in `train`.
        steps: how many steps are timed, after one that is not; their median is returned.

    Raises:
        PotstillError: as `train` does before its first step.

    """
    given = accelerator
    accelerator = accelerator or make_accelerator(device)
    spec = replace(spec, settings=starting_point(spec.settings, student))
    rate = peak_learning_rate(spec.settings) * 1e-3
    seconds: list[float] = []
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), machine_for(copied(student), spec, accelerator) as machine:
        epoch = 0
        while len(seconds) <= steps:
            began = time.monotonic()
            stop = steps + 1 - len(seconds)
            for batch in spec.stream.epoch(epoch, spec.settings.batch_size, order=spec.seed, stop=stop):
                try:
                    take_step(machine, batch, Moment(count=len(batch), progress=0.0, rate=rate, whole=True))
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
