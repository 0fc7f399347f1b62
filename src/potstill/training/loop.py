"""Training one model, readable from top to bottom: resume, steps, validation, best weights, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from potstill.core.errors import DivergedError, UsageError
from potstill.core.files import write_json
from potstill.core.progress import Advance, progress
from potstill.core.random import key
from potstill.core.signals import Batch
from potstill.data.augment import AugmentSettings
from potstill.data.loader import batches, num_batches
from potstill.data.samples import Data
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where
from potstill.objective import Objective
from potstill.recipe.schema import Training
from potstill.teachers.protocol import Teacher
from potstill.training import checkpoint, history
from potstill.training.average import AverageTeacher, Follower
from potstill.training.checkpoint import Counters, Stopped
from potstill.training.optimiser import update_average
from potstill.training.rates import starting_point
from potstill.training.schedule import learning_rate_at, progress_at
from potstill.training.setup import Task, forget, identity, machine_for, make_accelerator
from potstill.training.state import (
    Run,
    State,
    agreed,
    diverged,
    float_parameters,
    refuse_deferred,
    resume,
    save,
    start,
    total_sums,
    unsaved,
)
from potstill.training.step import NotFiniteError, take_step
from potstill.training.track import Tracker, open_trackers
from potstill.training.validate import Metric, Validation, validate

NOTE_SECONDS = 0.5


@dataclass(frozen=True)
class Result:
    """What came out of a training.

    Attributes:
        weights: the weights that were best on validation, a safetensors file.
        steps: optimiser steps taken.
        epochs: passes over the training data.
        seconds: time spent, interrupted runs included.
        best_epoch: the epoch, counted from 1, that the weights are from.
        best_validation: its validation metric: the one asked for, else accuracy, or R2 for regression.
        stopped: why training ended.
        history: one JSON object per epoch.

    """

    weights: Path
    steps: int
    epochs: float
    seconds: float
    best_epoch: int
    best_validation: float
    stopped: Stopped
    history: Path


def train(
    student: nn.Module,
    data: Data,
    *,
    objective: Objective,
    settings: Training,
    preprocess: Preprocessor,
    folder: Path,
    seed: int,
    teacher: Teacher | AverageTeacher | None = None,
    augment: AugmentSettings | None = None,
    augment_seed: int | None = None,
    views: int | None = None,
    taps: Mapping[str, Where] | None = None,
    device: str | torch.device = "auto",
    label: str = "student",
    accelerator: Accelerator | None = None,
    steps: int | None = None,
    metric: Metric | None = None,
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
        data: train and validation are read, test is not.
        objective: what is minimised, as a sum over samples; each step divides it once by the samples of the batch.
        settings: epochs, optimiser and the rest of the recipe's training section. What is ``auto`` there is filled in
            with the usual value for this kind of model: racing it is the pipeline's work.
        preprocess: what the student expects of its inputs; it is not changed and not part of the weights.
        folder: history.jsonl, checkpoint/, weights.safetensors and result.json are written here by the main process.
        seed: of sample order, dropout and adapters.
        teacher: answers each batch; may be None where the objective reads no teacher. An `AverageTeacher` is the moving
            average of the student itself.
        augment: random changes to training samples.
        augment_seed: of those changes, that of the store when the teacher is a recorded one; ``seed`` when absent.
        views: how many views of each sample there are; epoch e sees view e modulo views. A new view each epoch when
            absent.
        taps: names of signals to read from the student's layers, for terms that want more than logits.
        device: ``auto``, ``cpu`` or ``cuda``.
        label: shown beside the progress bar and in trackers.
        accelerator: one that exists already; made when absent.
        steps: optimiser steps in all, in the place of ``settings.epochs``; the schedule is as complete as ever.
        metric: chooses the weights that are kept; accuracy or R2 when absent.

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
        steps=steps,
        metric=metric,
    )
    described = identity(student, task)
    if settings.batch_size < accelerator.num_processes:
        raise UsageError(
            f"training.batch_size={settings.batch_size} is less than the {accelerator.num_processes} processes that "
            "share each batch. Use a larger batch or fewer processes."
        )
    found = checkpoint.load(folder / "checkpoint", described)
    with ExitStack() as stack:
        if given is not None:
            # It outlives this training and would keep everything that it prepared.
            stack.callback(forget, given)
        stack.enter_context(torch.random.fork_rng(devices=_cuda(accelerator.device)))
        machine, switch = stack.enter_context(machine_for(student, task, accelerator))
        per_epoch = num_batches(len(data.train), settings.batch_size)
        state = start(machine, task.settings)
        if found is not None:
            resume(machine, state, found)
        finished = state.counters.stopped is not None
        run = Run(
            task=task,
            machine=machine,
            switch=switch,
            folder=folder,
            identity=described,
            weights=float_parameters(machine.learner.student),
            trackers=_trackers(accelerator, task.settings, folder, label) if not finished else [],
            started=time.monotonic() - state.counters.seconds,
            per_epoch=per_epoch,
        )
        for tracker in run.trackers:
            stack.callback(tracker.close)
        history.check(run.history, state.counters.history_bytes)
        if accelerator.is_main_process:
            history.cut(run.history, state.counters.history_bytes)
        accelerator.wait_for_everyone()
        if not finished:
            bar = progress(label, run.total, unit="step", done=state.counters.step)
            advance = stack.enter_context(bar) if accelerator.is_main_process else _silent
            _train(run, state, advance)
        checkpoint.put_back(student, state.best)
        student.eval()
    return _finish(run, state)


def _train(run: Run, state: State, advance: Advance) -> None:
    """Epochs until there is a reason to stop, then the last checkpoint."""
    while state.counters.stopped is None:
        out_of_time = _epoch(run, state, advance)
        if state.counters.batch:
            _close_epoch(run, state)
        _decide(run, state, out_of_time)
        if state.counters.stopped is None and run.task.settings.checkpoint_every <= unsaved(state):
            save(run, state)
    if not state.best:
        raise DivergedError(
            f"Validation gave no usable number in any of {state.counters.epoch} epochs: the student's outputs are NaN "
            "or infinite. Lower training.learning_rate, or set training.gradient_clip."
        )
    save(run, state)


def _epoch(run: Run, state: State, advance: Advance) -> bool:
    """Take the epoch's remaining steps; return whether time ran out."""
    settings, machine, total = run.task.settings, run.machine, run.total
    processes: int = machine.accelerator.num_processes
    noted = state.began = time.monotonic()
    state.first = state.counters.seen
    for batch, count, seed in zip(*_global_batches(run, state.counters), _step_seeds(run, state.counters), strict=True):
        counters = state.counters
        elapsed = agreed(machine, time.monotonic() - run.started) if settings.minutes else 0.0
        if settings.minutes and counters.step and elapsed >= 60.0 * settings.minutes:
            return True
        if counters.step >= total:
            return False
        share = progress_at(counters.step, total, elapsed, settings.minutes)
        _seed(machine.device, seed)
        # A batch smaller than the number of processes is given to each of them as a whole.
        whole = count < processes
        run.switch.on = not whole
        try:
            rate = learning_rate_at(share, settings)
            report = settings.gradient_report and counters.batch == 0
            taken = take_step(machine, batch, count=count, whole=whole, progress=share, rate=rate, report=report)
        except NotFiniteError as error:
            raise diverged(run, state, f"in step {counters.step + 1}", error.what) from error
        state.sums += taken.sums
        state.norms += taken.norm
        state.conflict = taken.conflict if report else state.conflict
        if isinstance(machine.teacher, Follower):
            machine.teacher.follow(machine.learner.student, counters.step)
        if settings.ema is not None:
            update_average(state.average, run.weights, settings.ema, counters.step)
        state.counters = replace(counters, step=counters.step + 1, batch=counters.batch + 1, seen=counters.seen + count)
        now = time.monotonic()
        if now - noted > NOTE_SECONDS:
            noted = now
            advance(note=f"loss {float(taken.sums[0]) / len(batch):.4f}")
        else:
            advance()
        if state.counters.batch < run.per_epoch and unsaved(state) >= settings.checkpoint_every:
            save(run, state)
    return False


def _close_epoch(run: Run, state: State) -> None:
    """Validate, keep the weights if they are the best so far, and write the epoch's line of history."""
    counters, machine = state.counters, run.machine
    seconds_training = time.monotonic() - state.began
    totals = total_sums(run, state).cpu() / counters.seen
    refuse_deferred(run, state, totals)
    with _averaged(run.weights, state.average):
        validation = validate(
            machine.learner,
            run.task.data.validation,
            task=run.task.data.task,
            batch_size=run.task.settings.batch_size,
            accelerator=machine.accelerator,
            workers=run.task.settings.workers,
            metric=run.task.metric,
        )
        epoch = counters.epoch + 1
        if _is_better(validation, counters, run.task.metric):
            state.best = _snapshot(machine.learner.student)
            counters = replace(counters, best_epoch=epoch, best_metric=validation.metric, best_loss=validation.loss)
    names = [term.name for term in machine.objective.terms]
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
        "images_per_second": (counters.seen - state.first) / max(seconds_training, 1e-9),
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
    counters, settings = state.counters, run.task.settings
    waited = counters.epoch - counters.best_epoch
    stopped: Stopped | None = None
    if counters.step >= run.total:
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
    weights = run.folder / "weights.safetensors"
    result = Result(
        weights=weights,
        steps=counters.step,
        epochs=counters.step / run.per_epoch,
        seconds=counters.seconds,
        best_epoch=counters.best_epoch,
        best_validation=counters.best_metric,
        stopped=counters.stopped,
        history=run.history,
    )
    if run.machine.accelerator.is_main_process:
        data = run.task.data
        units = {"scale": json.dumps(data.scale.to_json())} if data.standardised and data.scale else None
        checkpoint.save_tensors(weights, state.best, units)
        paths = {"weights": weights.name, "history": run.history.name}
        write_json(run.folder / "result.json", {**asdict(result), **paths})
    run.machine.accelerator.wait_for_everyone()
    return result


def _global_batches(run: Run, counters: Counters) -> tuple[Iterator[Batch], Iterator[int]]:
    """Return this process's parts of the epoch's remaining batches, and how many samples each batch has in all."""
    task, accelerator = run.task, run.machine.accelerator
    size, count = task.settings.batch_size, len(task.data.train)
    last = count - (run.per_epoch - 1) * size

    def part_of(start: int, stop: int, part: tuple[int, int]) -> Iterator[Batch]:
        return batches(
            task.data.train,
            batch_size=size,
            seed=task.seed,
            augment_seed=task.augment_seed,
            epoch=counters.epoch,
            views=task.views,
            augment=task.augment,
            num_classes=task.data.num_outputs,
            start=start,
            stop=stop,
            part=part,
            workers=task.settings.workers,
        )

    mine = (accelerator.process_index, accelerator.num_processes)
    split = run.per_epoch if last >= accelerator.num_processes else run.per_epoch - 1
    counts = [size] * (run.per_epoch - 1) + [last]
    parts = part_of(counters.batch, split, mine)
    if split < run.per_epoch:
        parts = chain(parts, part_of(max(split, counters.batch), run.per_epoch, (0, 1)))
    return parts, iter(counts[counters.batch :])


def _step_seeds(run: Run, counters: Counters) -> Iterator[int]:
    """Return a seed for each remaining step of the epoch: that of dropout, a function of the step alone."""
    steps = np.arange(counters.step, counters.step + run.per_epoch - counters.batch)
    return iter((key(run.task.seed, steps, run.machine.accelerator.process_index) >> np.uint64(1)).tolist())


def _seed(device: torch.device, seed: int) -> None:
    # torch.manual_seed reaches for every backend there is and takes many times as long.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _is_better(validation: Validation, counters: Counters, metric: Metric | None) -> bool:
    if not math.isfinite(validation.metric) or math.isnan(validation.loss):
        return False
    if not counters.best_epoch:
        return True
    sign = 1.0 if metric is None or metric.higher_is_better else -1.0
    gain = sign * (validation.metric - counters.best_metric)
    return gain > 0 or (gain == 0 and validation.loss < counters.best_loss)


@contextmanager
def _averaged(weights: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """Put the moving average in the place of the weights for a while; nothing happens without one."""
    if not average:
        yield
        return
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
