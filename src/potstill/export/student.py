"""The student as it is deployed: preprocessing and network in one module that takes raw inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import DataError, UsageError
from potstill.core.scale import TargetScale
from potstill.data.columns import Column
from potstill.data.frames import encoded
from potstill.models.load import output_tensor
from potstill.tasks import TaskName, task_of


class Restore(nn.Module):
    """Values that a model learned in standard units, in the target's own: ``values * std + mean``.

    float32, or float64 where float32 would round the values, see `TargetScale.dtype`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scale: TargetScale) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(scale.mean, dtype=scale.dtype))
        self.register_buffer("std", torch.tensor(scale.std, dtype=scale.dtype))

    def forward(self, values: Tensor) -> Tensor:
        """Return values (b, k) in the target's units."""
        return values.to(self.std.dtype) * self.std + self.mean


class Calibrate(nn.Module):
    """Class probabilities of logits that are divided by a temperature."""

    def __init__(self, temperature: float, probabilities: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.temperature = temperature
        self.probabilities = probabilities

    def forward(self, logits: Tensor) -> Tensor:
        """Return probabilities (b, c)."""
        return self.probabilities(logits / self.temperature)


class Student(nn.Module):
    """A trained model behind its own preprocessing.

    Args:
        model: the trained model.
        preprocess: its preprocessing.
        task: classification or regression.
        classes: class names in output order.
        scale: the standard units that the model learned values in; it answers in the target's.
        columns: the columns of the table that the model learned on; none where it was no table.
        temperature: that makes the confidence of a classifier honest, see `potstill.tasks.calibrate`.
        thresholds: probability from which on each class is a yes, of several labels; one half where they are not given.
        shape: of one raw input; inputs of another rank are refused, and none at all are answered, where it is given.

    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: nn.Module,
        *,
        task: TaskName = "classification",
        classes: Sequence[str] = (),
        scale: TargetScale | None = None,
        columns: Sequence[Column] = (),
        temperature: float = 1.0,
        thresholds: Sequence[float] = (),
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model
        self.task = task
        self.classes = tuple(classes)
        self.columns = tuple(columns)
        self.thresholds = tuple(thresholds)
        self.shape = None if shape is None else tuple(shape)
        probabilities = task_of(task).probabilities
        self.calibrate = None if probabilities is None else Calibrate(temperature, probabilities)
        self.restore = None if scale is None else Restore(scale)

    def encode(self, frame: Any) -> Tensor:
        """Return the inputs (b, f) for named columns, as they became numbers in training.

        Args:
            frame: a DataFrame, a pyarrow table, or a mapping of names to values; further columns are ignored.

        Raises:
            UsageError: the student did not learn on a table with named columns.
            DataError: a column is missing, or has another type than in training.

        """
        if not self.columns:
            raise UsageError(
                f"The student takes tensors, not {type(frame).__name__}: it did not learn on named columns."
            )
        return torch.from_numpy(encoded(frame, self.columns))

    def probabilities(self, inputs: Tensor | Any) -> Tensor:
        """Return calibrated class probabilities (b, c), as the exported files' second output.

        Raises:
            UsageError: the student answers with values.

        """
        if self.calibrate is None:
            raise UsageError("The student answers with values, not with classes: it has no probabilities.")
        result: Tensor = self.calibrate(self(inputs))
        return result

    def decided(self, inputs: Tensor | Any) -> Tensor:
        """Return which classes each sample has, (b, c) boolean: those whose probability reaches their threshold.

        Raises:
            UsageError: the student's samples are of one class each, or have none.

        """
        task = task_of(self.task)
        if task.exclusive or not task.has_classes:
            raise UsageError(f"The student's task is {self.task}: only several labels are each decided by themselves.")
        chances = self.probabilities(inputs)
        return chances >= torch.tensor(self.thresholds or [0.5] * chances.shape[1], dtype=chances.dtype)

    def forward(self, inputs: Tensor | Any) -> Tensor:
        """Return logits or values (b, c) of raw inputs (b, ...): uint8 pixels or floats, as in the data.

        Named columns (a DataFrame, a mapping of names to values) are turned into inputs by `encode`. The answers are
        float32; values whose spread is far smaller than their size are float64.

        Raises:
            DataError: inputs of another number of dimensions, or that are masked; or as `encode`.

        """
        inputs = inputs if isinstance(inputs, Tensor) else self.encode(inputs)
        if self.shape is not None:
            inputs = _checked(inputs, self.shape)
            if len(inputs) == 0:  # many networks cannot compute on nothing
                answers: Tensor = self(inputs.new_zeros((1, *self.shape)))
                return answers[:0]
        outputs = output_tensor(self.model(self.preprocess(inputs))).to(torch.float32)
        outputs = outputs[:, None] if outputs.dim() == 1 else outputs
        return outputs if self.restore is None else self.restore(outputs)


def _checked(inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return inputs as a plain tensor, or refuse those that are masked or no batch of samples of this shape."""
    if hasattr(inputs, "get_mask"):
        masked: Any = inputs
        if not bool(masked.get_mask().all()):
            raise DataError("The inputs are masked (missing), and the student needs every number.")
        inputs = masked.get_data()
    # Pictures and token ids may have other sizes than in training, where the student can take them.
    row = len(shape) == 1 and inputs.is_floating_point()
    if inputs.dim() != 1 + len(shape) or (row and inputs.shape[1:] != shape):
        expected = ", ".join(("batch", *map(str, shape)))
        alone = " A single sample needs a batch around it: inputs[None]." if tuple(inputs.shape) == shape else ""
        raise DataError(f"The student takes inputs of shape ({expected}); got shape {tuple(inputs.shape)}.{alone}")
    return inputs
