"""Doing a thing once although several processes run the same program."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from potstill.core.errors import PotstillError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for another: recording a large teacher takes as long as it takes."""


def start(device: str) -> Accelerator:
    """Join the other processes of this run, if there are any, until this process ends."""
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if accelerator.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """Take leave of the other processes while Python still works: a group that it takes down itself may abort.

    Wrappers of models hold the group in reference cycles, which have to go first.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run ``work`` on the main process and return its result, or raise its error, on every process."""
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [work(), None]
        except PotstillError as error:
            outcome = [None, error]
        except BaseException as error:
            broadcast_object_list([None, PotstillError(f"The main process stopped: {error!r}")])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def in_parts(accelerator: Accelerator, work: Callable[[tuple[int, int]], object]) -> None:
    """Let every process do ``work((i, n))``, its part of n; where one fails, its error is raised on all."""
    if accelerator.num_processes == 1:
        work((0, 1))
        return
    error: PotstillError | None = None
    try:
        work((accelerator.process_index, accelerator.num_processes))
    except PotstillError as caught:
        error = caught
    except BaseException as caught:
        gather_object([PotstillError(f"Process {accelerator.process_index} stopped: {caught!r}")])
        raise
    failed = [found for found in gather_object([error]) if found is not None]
    if failed:
        raise failed[0]
