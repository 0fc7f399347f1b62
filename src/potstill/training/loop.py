"""Training one model, readable from top to bottom: resume, steps, validation, best weights, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from potstill.core.errors import DivergedError, UsageError
from potstill.core.progress import Advance, progress
from potstill.core.random import key
from potstill.core.signals import Batch
from potstill.recipe.schema import Training
from potstill.training import checkpoint, history
from potstill.training.average import Follower
from potstill.training.checkpoint import Counters, Stopped
from potstill.training.finite import NotFiniteError
from potstill.training.machine import Moment
from potstill.training.optimiser import update_average
from potstill.training.rates import starting_point
from potstill.training.result import Result
from potstill.training.schedule import learning_rate_at, progress_at
from potstill.training.setup import forget, machine_for, make_accelerator
from potstill.training.spec import Spec
from potstill.training.state import (
    Run,
    State,
    agreed,
    diverged,
    float_parameters,
    is_due,
    refuse_deferred,
    resume,
    save,
    start,
    total_sums,
)
from potstill.training.step import take_step
from potstill.training.threads import threads_for
from potstill.training.track import Tracker, open_trackers
from potstill.training.validate import Validation, is_better, validate

NOTE_SECONDS = 0.5


def train(
    student: nn.Module,
    spec: Spec,
    folder: Path,
    *,
    device: str | torch.device = "auto",
    label: str = "student",
    accelerator: Accelerator | None = None,
) -> Result:
    """Train ``student`` in place and leave the weights in it that were best on validation.

    Use it for students with a teacher and for any model alone (``preset("alone", ...)`` and no teacher). Call it again
    with the same arguments after a crash and it goes on from the last checkpoint: on a CPU the weights end up equal
    bit for bit to those of a training that was never interrupted, unless a time limit cuts it. Call it under
    ``torchrun`` and the processes share every batch: the trajectory is that of one process, batch norm included. With
    ``settings.accumulate`` above 1 the gradient stays that of the whole batch, but batch norm sees one micro-batch at
    a time, as it cannot know the next.

    Args:
        student: a fresh model; trained from the weights it has.
        spec: what it is trained on, and how.
        folder: history.jsonl, checkpoint/, weights.safetensors and result.json are written here by the main process.
        device: ``auto``, ``cpu`` or ``cuda``.
        label: shown beside the progress bar and in trackers.
        accelerator: one that exists already; made when absent.

    Returns:
        where the weights are and how training went; equal on all processes.

    Raises:
        UsageError: the objective, the settings or a checkpoint in ``folder`` do not fit; raised before training.
        TeacherError: the teacher does not give what the objective reads.
        DivergedError: the loss or a gradient became NaN or infinite; names step, epoch, term and last checkpoint.

    """
    given = accelerator
    accelerator = accelerator or make_accelerator(device)
    folder = Path(folder)
    spec = replace(spec, settings=starting_point(spec.settings, student))
    identity = spec.identity(student)
    if spec.settings.batch_size < accelerator.num_processes:
        raise UsageError(
            f"training.batch_size={spec.settings.batch_size} is less than the {accelerator.num_processes} processes "
            "that share each batch. Use a larger batch or fewer processes."
        )
    saved = checkpoint.load(folder / "checkpoint", identity)
    with ExitStack() as stack:
        if given is not None:
            # It outlives this training and would keep everything that it prepared.
            stack.callback(forget, given)
        stack.enter_context(torch.random.fork_rng(devices=_cuda(accelerator.device)))
        machine = stack.enter_context(machine_for(student, spec, accelerator))
        state = start(machine)
        if saved is not None:
            resume(machine, state, saved)
        finished = state.counters.stopped is not None
        threads = stack.enter_context(threads_for(spec.settings, accelerator, state.counters.threads))
        run = Run(
            spec=spec,
            machine=machine,
            folder=folder,
            identity=identity,
            trackers=_trackers(accelerator, spec.settings, folder, label) if not finished else [],
            started=time.monotonic() - state.counters.seconds,
            threads=threads,
        )
        for tracker in run.trackers:
            stack.callback(tracker.close)
        history.check(run.history, state.counters.history_bytes)
        if accelerator.is_main_process:
            history.cut(run.history, state.counters.history_bytes)
        accelerator.wait_for_everyone()
        if not finished:
            bar = progress(label, spec.total_steps, unit="step", done=state.counters.step)
            advance = stack.enter_context(bar) if accelerator.is_main_process else _silent
            _train(run, state, advance)
        checkpoint.put_back(student, state.best)
        student.eval()
    return _finish(run, state)


def _train(run: Run, state: State, advance: Advance) -> None:
    """Epochs until there is a reason to stop, then the last checkpoint."""
    while state.counters.stopped is None:
        began, first = time.monotonic(), state.counters.seen
        out_of_time = _epoch(run, state, advance)
        if state.counters.batch:
            rate = (state.counters.seen - first) / max(time.monotonic() - began, 1e-9)
            _close_epoch(run, state, rate)
        _decide(run, state, out_of_time)
        if state.counters.stopped is None and is_due(run, state):
            save(run, state)
    if not state.best:
        raise DivergedError(
            f"Validation gave no usable number in any of {state.counters.epoch} epochs: the student's outputs are NaN "
            "or infinite. Lower training.learning_rate, or set training.gradient_clip."
        )
    save(run, state)


def _epoch(run: Run, state: State, advance: Advance) -> bool:
    """Take the epoch's remaining steps; return whether time ran out."""
    settings, machine, total = run.spec.settings, run.machine, run.spec.total_steps
    per_epoch, processes = run.spec.steps_per_epoch, machine.accelerator.num_processes
    weights = float_parameters(machine.trainee.student)
    noted = time.monotonic()
    for batch, count, seed in zip(*_global_batches(run, state.counters), _step_seeds(run, state.counters), strict=True):
        counters = state.counters
        elapsed = agreed(machine, time.monotonic() - run.started) if settings.minutes else 0.0
        if settings.minutes and counters.step and elapsed >= 60.0 * settings.minutes:
            return True
        if counters.step >= total:
            return False
        share = progress_at(counters.step, total, elapsed, settings.minutes)
        _seed(machine.device, seed)
        moment = Moment(
            count=count,
            progress=share,
            rate=learning_rate_at(share, settings),
            # A batch smaller than the number of processes is given to each of them as a whole.
            whole=count < processes,
            report=settings.gradient_report and counters.batch == 0,
        )
        try:
            with run.threads.step():
                taken = take_step(machine, batch, moment)
        except NotFiniteError as error:
            raise diverged(run, state, f"in step {counters.step + 1}", error.what) from error
        state.sums += taken.sums
        state.norms += taken.norm
        state.conflict = state.conflict if taken.conflict is None else taken.conflict
        if isinstance(machine.teacher, Follower):
            machine.teacher.follow(machine.trainee.student, counters.step)
        if settings.ema is not None:
            update_average(state.average, weights, settings.ema, counters.step)
        state.counters = replace(
            counters,
            step=counters.step + 1,
            batch=counters.batch + 1,
            seen=counters.seen + count,
            threads=run.threads.number,
        )
        now = time.monotonic()
        if now - noted > NOTE_SECONDS:
            noted = now
            advance(note=f"loss {float(taken.sums[0]) / len(batch):.4f}")
        else:
            advance()
        if state.counters.batch < per_epoch and is_due(run, state):
            save(run, state)
    return False


def _close_epoch(run: Run, state: State, rate: float) -> None:
    """Validate, keep the weights if they are the best so far, and write the epoch's line of history."""
    counters, machine = state.counters, run.machine
    totals = total_sums(run, state).cpu() / counters.seen
    refuse_deferred(run, state, totals)
    with _averaged(machine.trainee.student, state.average):
        validation = validate(
            machine.trainee,
            run.spec.data.validation,
            task=run.spec.data.task,
            batch_size=run.spec.settings.batch_size,
            accelerator=machine.accelerator,
            workers=run.spec.settings.workers,
            metric=run.spec.metric,
        )
        epoch = counters.epoch + 1
        best = Validation(counters.best_loss, counters.best_metric) if counters.best_epoch else None
        if is_better(validation, best, run.spec.metric):
            state.best = _snapshot(machine.trainee.student)
            counters = replace(counters, best_epoch=epoch, best_metric=validation.metric, best_loss=validation.loss)
    names = machine.term_names
    row = {
        "epoch": epoch,
        "step": counters.step,
        "seconds": agreed(machine, time.monotonic() - run.started),
        "learning_rate": machine.optimiser.param_groups[0]["lr"],
        "train_loss": float(totals[0]),
        "parts": dict(zip(names, totals[1:].tolist(), strict=True)),
        "validation_loss": validation.loss,
        "validation_metric": validation.metric,
        "gradient_norm": float(state.norms) / counters.batch,
        "images_per_second": rate,
        "threads": torch.get_num_threads(),
    }
    if state.conflict is not None:
        *gradients, cosine = state.conflict.tolist()
        row |= {"gradient_norms": dict(zip(names, gradients, strict=True)), "gradient_cosine": cosine}
    length = history.append(run.history, row) if machine.accelerator.is_main_process else 0
    for tracker in run.trackers:
        tracker.log(counters.step, history.numbers(row))
    state.counters = replace(counters, epoch=epoch, batch=0, seen=0, history_bytes=length)
    state.sums.zero_()
    state.norms.zero_()
    state.conflict = None


def _decide(run: Run, state: State, out_of_time: bool) -> None:
    """Note why training is over, if it is."""
    counters, settings = state.counters, run.spec.settings
    waited = counters.epoch - counters.best_epoch
    stopped: Stopped | None = None
    if counters.step >= run.spec.total_steps:
        stopped = "finished"
    elif out_of_time:
        stopped = "minutes"
    elif settings.patience is not None and waited >= settings.patience:
        stopped = "patience"
    state.counters = replace(counters, stopped=stopped)


def _finish(run: Run, state: State) -> Result:
    """Write the best weights and the result; all processes return the same."""
    counters = state.counters
    if counters.stopped is None:
        raise RuntimeError("a training ended without a reason")
    result = Result(
        weights=run.folder / "weights.safetensors",
        steps=counters.step,
        epochs=counters.step / run.spec.steps_per_epoch,
        seconds=counters.seconds,
        best_epoch=counters.best_epoch,
        best_validation=counters.best_metric,
        stopped=counters.stopped,
        history=run.history,
    )
    if run.machine.accelerator.is_main_process:
        result.write(state.best, run.spec.data)
    run.machine.accelerator.wait_for_everyone()
    return result


def _global_batches(run: Run, counters: Counters) -> tuple[Iterator[Batch], Iterator[int]]:
    """Return this process's parts of the epoch's remaining batches, and how many samples each batch has in all."""
    spec, accelerator = run.spec, run.machine.accelerator
    size, per_epoch = spec.settings.batch_size, spec.steps_per_epoch
    counts = spec.stream.sizes(size)
    part_of = partial(spec.stream.epoch, counters.epoch, size, order=spec.seed, workers=spec.settings.workers)
    mine = (accelerator.process_index, accelerator.num_processes)
    split = per_epoch if counts[-1] >= accelerator.num_processes else per_epoch - 1
    parts = part_of(start=counters.batch, stop=split, part=mine)
    if split < per_epoch:
        parts = chain(parts, part_of(start=max(split, counters.batch), stop=per_epoch))
    return parts, iter(counts[counters.batch :])


def _step_seeds(run: Run, counters: Counters) -> Iterator[int]:
    """Return a seed for each remaining step of the epoch: that of dropout, a function of the step alone."""
    steps = np.arange(counters.step, counters.step + run.spec.steps_per_epoch - counters.batch)
    return iter((key(run.spec.seed, steps, run.machine.accelerator.process_index) >> np.uint64(1)).tolist())


def _seed(device: torch.device, seed: int) -> None:
    # torch.manual_seed reaches for every backend there is and takes many times as long.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _averaged(student: nn.Module, average: list[Tensor]) -> Iterator[None]:
    """Put the moving average in the place of the weights for a while; nothing happens without one."""
    if not average:
        yield
        return
    weights = float_parameters(student)
    kept = [weight.detach().clone() for weight in weights]
    try:
        _copy(weights, average)
        yield
    finally:
        _copy(weights, kept)


@torch.no_grad()
def _copy(targets: list[nn.Parameter], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _snapshot(student: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the student's state on the CPU."""
    state = student.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items() if isinstance(value, Tensor)}


def _trackers(accelerator: Accelerator, settings: Training, folder: Path, label: str) -> list[Tracker]:
    if not accelerator.is_main_process:
        return []
    return open_trackers(settings.track, folder, label=label, settings=settings.model_dump())


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _silent(_amount: int = 1, **_: Any) -> None:
    return None
