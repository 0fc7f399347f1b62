"""Timing a step leaves everything as it was."""

from __future__ import annotations

import time
from types import ModuleType

import torch

from potstill.core.fingerprint import of_weights
from potstill.recipe.schema import Training
from potstill.training import estimate


def test_estimate_times_steps_on_a_copy(toys: ModuleType) -> None:
    class Slow(toys.FormulaTeacher):
        def __call__(self, batch):
            time.sleep(0.02)
            return super().__call__(batch)

    student, state = toys.net(dropout=0.5), torch.random.get_rng_state()
    before = of_weights(student)
    teacher = Slow()
    seconds = estimate(
        student,
        toys.spec(
            objective=toys.objective(), settings=Training(batch_size=10), teacher=teacher, taps={"hidden": "hidden"}
        ),
        device="cpu",
        steps=4,
    )
    assert 0.02 < seconds < 1
    assert teacher.calls == 1 + 5
    assert of_weights(student) == before
    assert torch.equal(torch.random.get_rng_state(), state)
