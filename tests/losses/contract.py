"""One row per loss and set of options: an independent formula, and which properties the loss promises.

The formulas are NumPy in float64, written differently from the code, and analytic in the student's numbers, so that
complex-step differentiation gives their exact gradient. A new loss needs one row here and nothing else in the tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from potstill import losses


def entropy(p):
    return -(p * np.log(p)).sum(1)


def log_normaliser(x):
    top = x.real.max(1, keepdims=True)
    return np.log(np.exp(x - top).sum(1)) + top[:, 0]


def softmax(x):
    return np.exp(x - log_normaliser(x)[:, None])


def forward_kl(s, t, temperature=1.0):
    p = softmax(t / temperature)
    cross = log_normaliser(s / temperature) - (p * s / temperature).sum(1)
    return temperature**2 * (cross - entropy(p))


def reverse_kl(s, t, temperature=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * (q * np.log(q / p)).sum(1)


def jsd(s, t, beta=0.5, temperature=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    paper = entropy(beta * p + (1 - beta) * q) - beta * entropy(p) - (1 - beta) * entropy(q)
    return temperature**2 * paper / (beta * (1 - beta))


def squared(s, t):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    return ((s * s).sum(1) - 2 * (s * t).sum(1) + (t * t).sum(1)) / s.shape[1]


def directions(s, t):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    return 2 - 2 * (s * t).sum(1) / np.sqrt((s * s).sum(1) * (t * t).sum(1))


def absolute(s, t, delta):
    error = np.where((s - t).real < 0, t - s, s - t)
    straight = np.where(error.real > delta, error - delta, 0)  # what lies beyond delta
    return (0.5 * (error - straight) ** 2 + delta * straight).sum(1) / s.shape[1]


def labels(s, y, label_smoothing=0.0):
    num_classes = s.shape[1]
    if y.ndim == 1:
        y = np.eye(num_classes)[y]
    smoothed = (1 - label_smoothing) * y + label_smoothing / num_classes
    return log_normaliser(s) - (smoothed * s).sum(1)


@dataclass(frozen=True)
class Row:
    loss: Callable[..., torch.Tensor]
    golden: Callable[..., np.ndarray]
    options: Mapping[str, Any] = field(default_factory=dict)
    golden_options: Mapping[str, Any] | None = None  # the same as options when absent
    targets: str = ""  # "classes", "probabilities" or "values" where the loss reads targets
    min_classes: int = 1  # fewer are refused
    shift_invariant: bool = False  # adding a number to all of a sample's logits changes nothing

    @property
    def parameters(self) -> list[str]:
        kinds = inspect.signature(self.loss).parameters.values()
        return [p.name for p in kinds if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    @property
    def reads_teacher(self) -> bool:
        return any(name.startswith("teacher_") for name in self.parameters)

    @property
    def zero_when_equal(self) -> bool:
        return self.targets in ("", "values")

    def arrays(self, batch: int, classes: int, seed: int = 0, scale: float = 2.0) -> list[np.ndarray]:
        """Return the loss's tensors as float64 (and int64) arrays."""
        random = np.random.default_rng([seed, batch, classes])
        made = []
        for name in self.parameters:
            if name == "targets" and self.targets == "classes":
                made.append(random.integers(0, classes, batch))
            elif name == "targets" and self.targets == "probabilities":
                made.append(random.dirichlet(np.ones(classes), batch))
            elif name.endswith("_hidden"):
                made.append(scale * random.normal(size=(batch, 3, classes)))
            else:
                made.append(scale * random.normal(size=(batch, classes)))
        return made

    def tensors(self, batch: int, classes: int, seed: int = 0, dtype=torch.float32, scale: float = 2.0):
        """Return the loss's tensors; the student's requires a gradient."""
        made = [torch.from_numpy(array) for array in self.arrays(batch, classes, seed, scale)]
        made = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in made]
        made[0].requires_grad_()
        return made

    def __call__(self, *tensors: torch.Tensor, **more: Any) -> torch.Tensor:
        return self.loss(*tensors, **self.options, **more)

    def expected(self, *arrays: np.ndarray) -> np.ndarray:
        options = self.options if self.golden_options is None else self.golden_options
        return self.golden(*arrays, **options)

    def expected_gradient(self, *arrays: np.ndarray) -> np.ndarray:
        """Return the derivative of the sum of values by the student, by complex steps."""
        student, *rest = arrays
        gradient = np.empty_like(student)
        for index in np.ndindex(student.shape):
            moved = student.astype(complex)
            moved[index] += 1e-30j
            gradient[index] = self.expected(moved, *rest).sum().imag / 1e-30
        return gradient

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.loss.__name__}({','.join(filter(None, (self.targets, options)))})"


_DIVERGENCE = {"min_classes": 2, "shift_invariant": True}
ROWS = [
    Row(losses.cross_entropy, labels, targets="classes", **_DIVERGENCE),
    Row(losses.cross_entropy, labels, {"label_smoothing": 0.1}, targets="classes", **_DIVERGENCE),
    Row(losses.cross_entropy, labels, {"label_smoothing": 0.3}, targets="probabilities", **_DIVERGENCE),
    Row(losses.forward_kl, forward_kl, **_DIVERGENCE),
    Row(losses.forward_kl, forward_kl, {"temperature": 4.0}, **_DIVERGENCE),
    Row(losses.reverse_kl, reverse_kl, **_DIVERGENCE),
    Row(losses.reverse_kl, reverse_kl, {"temperature": 3.0}, **_DIVERGENCE),
    Row(losses.jsd, jsd, **_DIVERGENCE),
    Row(losses.jsd, jsd, {"beta": 0.1, "temperature": 2.0}, **_DIVERGENCE),
    Row(losses.jsd, jsd, {"beta": 0.9}, **_DIVERGENCE),
    Row(losses.jsd, forward_kl, {"beta": 0.0}, {}, **_DIVERGENCE),
    Row(losses.jsd, reverse_kl, {"beta": 1.0, "temperature": 2.0}, {"temperature": 2.0}, **_DIVERGENCE),
    Row(losses.logit_mse, squared),
    Row(losses.hidden_mse, squared),
    Row(losses.hidden_mse, directions, {"normalize": True}, {}),
    Row(losses.mse, squared, targets="values"),
    Row(losses.huber, absolute, {}, {"delta": 1.0}, targets="values"),
    Row(losses.huber, absolute, {"delta": 3.0}, targets="values"),
    Row(losses.teacher_mse, squared),
    Row(losses.teacher_huber, absolute, {"delta": 0.5}),
]
