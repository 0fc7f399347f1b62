"""How many threads the steps of a training use on a CPU: one or all, timed on its first steps, and when it slows down.

All are faster for all but small models where the machine is quiet, and can be many times slower where others use it.
Sums in another order differ in their last bits, so a checkpoint keeps the number, and a training goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from accelerate import Accelerator

from potstill.recipe.schema import Training

TIMED = 3
"""Steps that are timed with either number, after one that is not."""
WINDOW = 32
"""Steps over which a training's speed is watched."""
SLOWER = 1.5
"""How much slower a window is than the fastest before it when the threads are timed again."""


class Threads:
    """The number of threads of each step.

    Attributes:
        number: of the steps to come; 0 while it is being found out.

    """

    def __init__(self, most: int, number: int, *, fixed: bool) -> None:
        self._most, self._fixed, self.number = most, fixed, number
        self._trial: list[float] = []
        self._window: list[float] = []
        self._fastest = float("inf")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Give torch the threads of one step, and take its time."""
        if self._fixed:
            yield
            return
        torch.set_num_threads(self.number or (1, self._most)[len(self._trial) % 2])
        began = time.perf_counter()
        yield
        self._took(time.perf_counter() - began)

    def _took(self, seconds: float) -> None:
        if self.number == 0:
            self._trial.append(seconds)
            if len(self._trial) == 2 * (TIMED + 1):
                single, every = median(self._trial[2::2]), median(self._trial[3::2])
                self.number = 1 if single <= every else self._most
                self._trial, self._fastest = [], float("inf")
            return
        self._window.append(seconds)
        if len(self._window) == WINDOW:
            usual = median(self._window)
            self._window, self._fastest = [], min(self._fastest, usual)
            if usual > SLOWER * self._fastest:
                self.number = 0


@contextmanager
def threads_for(settings: Training, accelerator: Accelerator, number: int) -> Iterator[Threads]:
    """Choose the threads of a training; torch's former number is set back at its end.

    A number in the settings holds, then one in ``OMP_NUM_THREADS``; several processes, and devices, are left alone.

    Args:
        settings: of the training.
        accelerator: of all processes.
        number: that the training goes on with, from its checkpoint; 0 where it begins.

    """
    before = torch.get_num_threads()
    if isinstance(settings.threads, int):
        threads = Threads(before, settings.threads, fixed=True)
    elif before == 1 or os.environ.get("OMP_NUM_THREADS") or not _alone_on_cpu(accelerator):
        threads = Threads(before, before, fixed=True)
    else:
        threads = Threads(before, number, fixed=False)
    torch.set_num_threads(threads.number or before)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def _alone_on_cpu(accelerator: Accelerator) -> bool:
    return bool(accelerator.device.type == "cpu" and accelerator.num_processes == 1)
