"""Measuring the student on the validation split, on which checkpoints are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from potstill.data.samples import Array, Samples
from potstill.data.stream import Stream
from potstill.tasks import TaskName, task_of
from potstill.training.trainee import Trainee

SMALLEST_BATCH = 256


@dataclass(frozen=True)
class Metric:
    """What checkpoints are chosen by, where it is neither accuracy nor R2.

    Attributes:
        name: of the metric.
        score: a function of outputs (n, c) and targets, as the model learns them.
        higher_is_better: which way is good.

    """

    name: str
    score: Callable[[Array, Array], float]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Validation:
    """``loss``: mean cross-entropy or squared error; ``metric``: the one asked for, else accuracy or mean R2."""

    loss: float
    metric: float


def validate(
    trainee: Trainee,
    samples: Samples,
    *,
    task: TaskName,
    batch_size: int,
    accelerator: Accelerator,
    workers: int = 0,
    metric: Metric | None = None,
) -> Validation:
    """Measure the trainee's student, in eval mode and in the precision of training.

    The processes share the samples; all get the same numbers.

    Args:
        trainee: left in the mode it came in.
        samples: the validation split.
        task: decides loss and metric.
        batch_size: of training; validation uses at least 256.
        accelerator: of the training.
        workers: processes that load samples.
        metric: in the place of accuracy or R2.

    """
    training, scores = trainee.training, task_of(task).scores
    trainee.eval()
    of_all = scores.whole if metric is None else metric.score
    sums: Tensor | None = None
    kept: list[tuple[Array, Array]] = []
    part = (accelerator.process_index, accelerator.num_processes)
    size = max(batch_size, SMALLEST_BATCH)
    with torch.no_grad():
        for batch in Stream(samples).epoch(0, size, order=None, part=part, workers=workers):
            # A part is empty where there are fewer samples than processes.
            if len(batch) and batch.targets is not None:
                outputs = trainee.signals(batch.tensor.to(accelerator.device))["logits"]
                targets = batch.targets.to(accelerator.device)
                if batch.labelled is not None:
                    targets = targets.masked_fill(~batch.labelled.to(accelerator.device), math.nan)
                part_sums = scores.sums(outputs, targets)
                sums = part_sums if sums is None else sums + part_sums
                if of_all is not None:
                    kept.append((outputs.float().cpu().numpy(), targets.cpu().numpy()))
    trainee.train(training)
    if accelerator.num_processes > 1:
        if sums is None:
            targets = torch.from_numpy(samples.targets[:0])
            sums = scores.sums(torch.zeros(0, math.prod(targets.shape[1:])), targets).to(accelerator.device)
        sums = accelerator.reduce(sums, reduction="sum")
    if sums is None:
        return Validation(float("nan"), float("nan"))
    loss, value = scores.validation(sums.cpu().numpy(), samples.targets)
    if of_all is None:
        return Validation(loss, value)
    return Validation(loss, _scored(of_all, gather_object(kept) if accelerator.num_processes > 1 else kept))


def validation_of(outputs: Tensor, samples: Samples, task: TaskName, metric: Metric | None = None) -> Validation:
    """Return the same of a model's outputs (n, c) to all samples, as `validate` does while it asks for them."""
    scores = task_of(task).scores
    sums = scores.sums(outputs, torch.from_numpy(samples.targets)).numpy()
    loss, value = scores.validation(sums, samples.targets)
    of_all = scores.whole if metric is None else metric.score
    return Validation(loss, value if of_all is None else _scored(of_all, [(outputs.numpy(), samples.targets)]))


def is_better(new: Validation, best: Validation | None, metric: Metric | None) -> bool:
    """Return whether a validation beats the best before, if any: by the metric, and between equals by the loss."""
    if not math.isfinite(new.metric) or math.isnan(new.loss):
        return False
    if best is None:
        return True
    sign = 1.0 if metric is None or metric.higher_is_better else -1.0
    gain = sign * (new.metric - best.metric)
    return gain > 0 or (gain == 0 and new.loss < best.loss)


def _scored(of_all: Callable[[Array, Array], float], kept: list[tuple[Array, Array]]) -> float:
    """Return the metric of all parts together; NaN where an output is not finite."""
    outputs, targets = (np.concatenate(each) for each in zip(*kept, strict=True))
    return of_all(outputs, targets) if np.isfinite(outputs).all() else float("nan")
