"""Tiny data and models, shared by the tests and by the scripts they start."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.signals import Batch
from potstill.data.few import hide_labels
from potstill.data.samples import Data, Rows, make_samples
from potstill.data.stream import Stream
from potstill.losses import (
    contrastive,
    contrastive_bank,
    cross_entropy,
    forward_kl,
    hint_mse,
    relational_distance,
    similarity_preserving,
)
from potstill.models import Preprocessor
from potstill.objective import Objective, Schedule, Term
from potstill.teachers import Facts
from potstill.training import Spec


def split(inputs: Tensor, targets: Tensor, first: int):
    return make_samples(np.arange(first, first + len(inputs)), targets.numpy(), Rows(inputs))


def image_data(train: int = 26, validation: int = 12, classes: int = 3) -> Data:
    """Images whose brightest third tells the class, with noise."""
    generator = torch.Generator().manual_seed(7)
    total = train + validation + 6
    targets = torch.arange(total) % classes
    inputs = torch.rand(total, 2, 6, 6, generator=generator) * 0.6
    for row, target in enumerate(targets.tolist()):
        inputs[row, :, 2 * target : 2 * target + 2] += 0.4
    bounds = [0, train, train + validation, total]
    splits = [split(inputs[a:b], targets[a:b], a) for a, b in pairwise(bounds)]
    return Data(*splits, "classification", tuple("abc")[:classes], "image", (2, 6, 6), classes)


def few_data(labels: int = 6) -> Data:
    """The same images, of which students see the labels of some."""
    return hide_labels(image_data(), labels, 0)


def vector_data(train: int = 60, validation: int = 20, columns: int = 1) -> Data:
    """A noisy linear function of four numbers."""
    generator = torch.Generator().manual_seed(3)
    total = train + validation + 6
    inputs = torch.randn(total, 4, generator=generator)
    targets = inputs @ torch.randn(4, columns, generator=generator) + 0.01 * torch.randn(
        total, columns, generator=generator
    )
    targets = targets.squeeze(1) if columns == 1 else targets
    bounds = [0, train, train + validation, total]
    splits = [split(inputs[a:b], targets[a:b], a) for a, b in pairwise(bounds)]
    return Data(*splits, "regression", (), "vector", (4,), columns)


def spec(**changes: Any) -> Spec:
    """What a training is of, with the images above where nothing else is given; augmentation is named by its parts."""
    data = changes.pop("data", None) or image_data()
    augment, views = changes.pop("augment", None), changes.pop("views", None)
    seed = changes.pop("augment_seed", None)
    seed = changes.get("seed", 0) if seed is None else seed
    return Spec(
        **{
            "data": data,
            "stream": Stream(data.train, augment, seed, views, data.num_outputs),
            "preprocess": Preprocessor(),
            **changes,
        }
    )


class Net(nn.Module):
    """Convolution, norm (batch, group or none), optional dropout, a hidden vector, logits."""

    def __init__(self, norm: str = "batch", dropout: float = 0.0, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "group": lambda n: nn.GroupNorm(2, n), "none": lambda n: nn.Identity()}
        self.conv = nn.Conv2d(2, width, 3)
        self.norm = norms[norm](width)
        self.hidden = nn.Linear(width * 16, 5)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(5, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(self.norm(self.conv(inputs)).relu().flatten(1))
        return self.head(self.drop(hidden.tanh()))


def net(seed: int = 0, **options) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**options)


class FormulaTeacher:
    """Signals that are a fixed function of the inputs: logits, a hidden layer of eight numbers and one of five."""

    facts = Facts(frozenset({"logits", "hidden", "short"}))
    fingerprint = "formula"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self.project = torch.randn(72, 8, generator=generator) * 0.3
        self.calls = 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        hidden = (batch.inputs.flatten(1) @ self.project).tanh()
        return {"logits": 2 * hidden[:, :3], "hidden": hidden, "short": hidden[:, 3:]}


def objective() -> Objective:
    return Objective(
        [
            Term(cross_entropy, 0.3),
            Term(forward_kl, 0.7, temperature=2.0),
            Term(hint_mse, 0.5, on="hidden"),
        ]
    )


def few() -> Objective:
    """Hard terms, soft ones and one on relations, where labels are few."""
    return Objective([*few_apart().terms, Term(similarity_preserving, 5.0, on="hidden")])


def few_apart() -> Objective:
    return Objective([Term(cross_entropy, 0.3), Term(forward_kl, 0.7, temperature=2.0)])


def relations() -> Objective:
    """Losses that read the whole batch, one of them behind an adapter, and one that does not."""
    return Objective(
        [
            Term(cross_entropy, 0.3),
            Term(similarity_preserving, 5.0, on="hidden"),
            Term(relational_distance, 0.5, on="hidden"),
            Term(contrastive, 0.1, on="hidden", critic_temperature=0.5),
            Term(hint_mse, 0.5, on="hidden"),
        ]
    )


def products(student_features: tuple[Tensor, Tensor], teacher_features: tuple[Tensor, Tensor]) -> Tensor:
    """Read two layers at once."""
    ours, theirs = (one.square().mean(1) * other.square().sum(1) for one, other in (student_features, teacher_features))
    return (ours - theirs).square()


def bank() -> Objective:
    """A memory, several layers at once, a warm-up and a temperature that falls."""
    return Objective(
        [
            Term(cross_entropy, 0.3),
            Term(forward_kl, Schedule("linear", 0.0, 0.7, until=0.4), temperature=Schedule("cosine", 4.0, 1.0)),
            Term(
                contrastive_bank, 0.02, on="hidden", head_options={"dimensions": 4, "negatives": 9},
                critic_temperature=0.5,
            ),
            Term(products, 0.1, on=("hidden", "logits")),
        ]
    )  # fmt: skip


def own_average() -> Objective:
    """What the student's own average says: its logits, a hidden layer, and how they change with the inputs."""
    return Objective(
        [
            Term(cross_entropy, 0.3),
            Term(forward_kl, 0.7, temperature=2.0),
            Term(hint_mse, 0.5, on="hidden"),
            Term(hint_mse, 3.0, on="input_gradient", name="slopes"),
        ]
    )


def blocks() -> Objective:
    """The student's head on the teacher's hidden layer."""
    return Objective([Term(cross_entropy, 0.3), Term(forward_kl, 0.7, student="head(teacher.short)", teacher="logits")])
