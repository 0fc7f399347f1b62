"""Weights and options that change: they follow the progress of training, and are a part of what it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses import cross_entropy, forward_kl
from potstill.objective import Objective, Schedule, Term
from potstill.recipe.schema import Training
from potstill.training import train

SEEN: list[float] = []


def ones(student_logits: Tensor, targets: Tensor, *, factor: float) -> Tensor:
    SEEN.append(factor)
    return student_logits.sum(1) * 0 + 1


def run(toys: ModuleType, folder: Path, terms: list[Term], **settings) -> list[dict]:
    values = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01, "precision": "float32", **settings}
    train(
        toys.net(),
        toys.spec(objective=Objective(terms), settings=Training(**values), teacher=toys.FormulaTeacher()),
        folder,
        device="cpu",
    )
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_they_follow_the_progress_of_training(toys: ModuleType, tmp_path: Path) -> None:
    """16 steps of 8, 8, 8 and 2 samples: a weight that rises to the middle, an option that falls to the end."""
    terms = [
        Term(cross_entropy),
        Term(ones, Schedule("linear", 0.0, 2.0, until=0.5), factor=Schedule("cosine", 8.0, 1.0, since=0.25)),
    ]
    SEEN.clear()
    rows = run(toys, tmp_path, terms)
    progress = (np.arange(16) + 0.5) / 16
    weights = np.interp(progress, [0.0, 0.5, 1.0], [0.0, 2.0, 2.0]).reshape(4, 4)
    found = [row["parts"]["ones"] for row in rows]
    np.testing.assert_allclose(found, (weights * [8, 8, 8, 2]).sum(1) / 26, rtol=1e-6)
    share = np.clip((progress - 0.25) / 0.75, 0, 1)
    np.testing.assert_allclose(SEEN[-16:], 8 - 7 * (0.5 - 0.5 * np.cos(np.pi * share)), rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "temperature"),
    [(Schedule("linear", 0.0, 0.9), 2.0), (Schedule("cosine", 0.0, 1.0), 2.0), (1.0, Schedule("linear", 2.0, 1.0))],
)
def test_another_schedule_is_another_training(
    toys: ModuleType, tmp_path: Path, weight: float | Schedule, temperature: float | Schedule
) -> None:
    run(toys, tmp_path, [Term(forward_kl, Schedule("linear", 0.0, 1.0), temperature=2.0)], epochs=1)
    with pytest.raises(UsageError, match=r"another training \(objective.forward_kl"):
        run(toys, tmp_path, [Term(forward_kl, weight, temperature=temperature)], epochs=1)
