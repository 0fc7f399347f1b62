"""The student's own average as its teacher: what it is, what it answers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.core.errors import TeacherError, UsageError
from potstill.losses import cross_entropy, forward_kl, hint_mse
from potstill.objective import Objective, Term
from potstill.recipe.schema import Training
from potstill.training import AverageTeacher, average, train

OWN = Objective([Term(cross_entropy), Term(forward_kl), Term(hint_mse, on="hidden")])


def run(toys: ModuleType, folder: Path, *, decay: float = 0.6, objective: Objective = OWN, **named):
    student = toys.net(dropout=0.4)
    train(
        student,
        toys.spec(
            objective=objective,
            settings=Training(epochs=3, batch_size=8, learning_rate=0.1, precision="float32"),
            teacher=AverageTeacher(decay),
            **{"taps": {"hidden": "hidden"}, **named},
        ),
        folder,
        device="cpu",
    )
    return student


def test_it_follows_the_student_as_numpy_says(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and the statistics of batch norm are averaged, counters copied; every answer is that of the average."""
    expected = {name: value.numpy().astype(np.float64) for name, value in toys.net().state_dict().items()}
    checked: list[int] = []
    follow, answer = average.Follower.follow, average.Follower.__call__

    def watched(self, student, step: int) -> None:
        follow(self, student, step)
        kept = min(0.6, (1 + step) / (10 + step))
        for name, value in student.state_dict().items():
            now = value.detach().double().numpy()
            expected[name] = kept * expected[name] + (1 - kept) * now if value.is_floating_point() else now
        for name, value in self.model.state_dict().items():
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-6)
        checked.append(step)

    def asked(self, batch) -> dict[str, Tensor]:
        signals = answer(self, batch)
        assert not any(module.training for module in self.model.modules())
        copy = toys.net()
        copy.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(signals["logits"], copy.eval()(batch.inputs), rtol=1e-4, atol=1e-6)
        return signals

    monkeypatch.setattr(average.Follower, "follow", watched)
    monkeypatch.setattr(average.Follower, "__call__", asked)
    student = run(toys, tmp_path)
    assert checked == list(range(12))
    assert all(p.requires_grad for p in student.parameters())


def test_the_first_step_has_nothing_to_learn_from_it(toys: ModuleType, tmp_path: Path) -> None:
    """Without dropout and batch norm, the average begins as the student itself."""
    student = toys.net(norm="none")
    train(
        student,
        toys.spec(
            objective=OWN,
            settings=Training(epochs=1, batch_size=26, learning_rate=0.1, precision="float32"),
            teacher=AverageTeacher(0.9),
            taps={"hidden": "hidden"},
        ),
        tmp_path,
        device="cpu",
    )
    row = json.loads((tmp_path / "history.jsonl").read_text())
    assert row["parts"]["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert row["parts"]["hint_mse:hidden"] == 0


def test_other_decays_are_other_trainings(toys: ModuleType, tmp_path: Path) -> None:
    run(toys, tmp_path)
    with pytest.raises(UsageError, match=r"holds the checkpoint of another training \(teacher"):
        run(toys, tmp_path, decay=0.7)


def test_what_cannot_work_is_refused(toys: ModuleType, tmp_path: Path) -> None:
    for decay in (-0.1, 1.0):
        with pytest.raises(UsageError, match="at least 0 and below 1"):
            AverageTeacher(decay)
    with pytest.raises(TeacherError, match="reads the teacher's hidden"):
        run(toys, tmp_path, taps={})
    student = toys.net()
    with pytest.raises(UsageError, match="needs the layer's name, or a function"):
        train(
            student,
            toys.spec(objective=OWN, settings=Training(), teacher=AverageTeacher(0.9), taps={"hidden": student.hidden}),
            tmp_path,
            device="cpu",
        )
    assert not list(tmp_path.iterdir())
