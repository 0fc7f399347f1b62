"""The hard and the soft gradient apart: DOT's two momenta, and the report of norms and conflict, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.losses import cross_entropy, forward_kl
from potstill.objective import Objective, Term, preset
from potstill.recipe.schema import Training
from potstill.training import Spec, history, train
from potstill.training.dot import Dot
from potstill.training.machine import Moment
from potstill.training.setup import machine_for, make_accelerator
from potstill.training.step import take_step

BOTH = Objective([Term(cross_entropy, 0.3), Term(forward_kl, 0.7, temperature=2.0)])


class Flat(nn.Module):
    """Softmax regression without bias, of 72 numbers, in 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(72, 3, bias=False)
        nn.init.normal_(self.linear.weight, std=0.1, generator=torch.Generator().manual_seed(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1))


def task_of(toys: ModuleType, objective: Objective = BOTH, **settings) -> Spec:
    return toys.spec(
        objective=objective,
        settings=Training(**{"optimizer": "sgd", "learning_rate": 0.1, "precision": "float32", **settings}),
        teacher=toys.FormulaTeacher(),
    )


def batch_of(toys: ModuleType) -> Batch:
    samples = toys.image_data().train
    rows = np.arange(12)
    ids = torch.from_numpy(samples.ids[rows])
    return Batch(ids, torch.zeros_like(ids), samples.fetch(rows), torch.from_numpy(samples.targets[rows]))


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def by_hand(toys: ModuleType, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of 0.3 CE and of 0.7 T² KL at T = 2, averaged over the batch."""
    batch = batch_of(toys)
    x, y = batch.inputs.flatten(1).double().numpy(), np.eye(3)[batch.targets.numpy()]
    teacher = toys.FormulaTeacher()(batch)["logits"].double().numpy()
    z = x @ weight.T
    hard = 0.3 * (softmax(z) - y).T @ x / 12
    soft = 0.7 * 4 * 0.5 * (softmax(z / 2) - softmax(teacher / 2)).T @ x / 12
    return hard, soft


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_dot_equals_numpy(toys: ModuleType, accumulate: int, clip: float | None) -> None:
    student = Flat()
    weight = student.linear.weight.detach().double().numpy().copy()
    hard_momentum, soft_momentum, norms = 0.0, 0.0, []
    task = task_of(
        toys, optimizer="dot", momentum=0.8, momentum_gap=0.1, weight_decay=0.02, accumulate=accumulate,
        gradient_clip=clip,
    )  # fmt: skip
    with machine_for(student, task, make_accelerator("cpu")) as machine:
        for _ in range(4):
            taken = take_step(machine, batch_of(toys), Moment(count=12, progress=0.0, rate=0.2))
            hard, soft = by_hand(toys, weight)
            norm = np.linalg.norm(hard + soft)
            norms.append((float(taken.norm), norm))
            scale = 1.0 if clip is None else min(1.0, clip / norm)
            assert clip is None or scale < 1
            hard_momentum = 0.7 * hard_momentum + scale * hard + 0.02 * weight
            soft_momentum = 0.9 * soft_momentum + scale * soft
            weight -= 0.2 * (hard_momentum + soft_momentum)
    np.testing.assert_allclose(student.linear.weight.detach().numpy(), weight, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(*zip(*norms, strict=True), rtol=1e-4)


def test_without_a_gap_dot_is_gradient_descent() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,))]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    dot = Dot(ours, lr=0.1, momentum=0.9, gap=0.0, weight_decay=0.01)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        pairs = [[torch.randn(p.shape, generator=generator, dtype=torch.float64) for _ in range(2)] for p in ours]
        dot.parts = dict(zip(ours, map(tuple, pairs), strict=True))
        for one, other, (hard, soft) in zip(ours, theirs, pairs, strict=True):
            one.grad, other.grad = hard + soft, hard + soft
        dot.step()
        sgd.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_whole_training_without_a_gap_is_that_of_gradient_descent(toys: ModuleType, tmp_path: Path) -> None:
    def run(name: str, **settings) -> nn.Module:
        student = toys.net()
        train(
            student,
            toys.spec(
                objective=toys.objective(),
                settings=Training(epochs=3, batch_size=8, learning_rate=0.05, precision="float32", **settings),
                teacher=toys.FormulaTeacher(),
                taps={"hidden": "hidden"},
            ),
            tmp_path / name,
            device="cpu",
        )
        return student

    known = run("sgd").state_dict()
    same, other = run("dot", optimizer="dot", momentum_gap=0.0), run("gap", optimizer="dot").state_dict()
    for name, value in same.state_dict().items():
        torch.testing.assert_close(value, known[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other["conv.weight"], known["conv.weight"], rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "absent"), [("alone", "reads a teacher"), ("label_free", "reads no teacher .such as cross_entropy")]
)
def test_dot_needs_both_sides(toys: ModuleType, tmp_path: Path, name: str, absent: str) -> None:
    with pytest.raises(UsageError, match=f"no term {absent}.*optimizer: sgd"):
        train(
            toys.net(),
            toys.spec(
                objective=preset(name, "classification"),
                settings=Training(optimizer="dot"),
                teacher=toys.FormulaTeacher(),
            ),
            tmp_path,
            device="cpu",
        )


def test_momenta_stay_between_0_and_1() -> None:
    for momentum, gap in ((0.95, 0.05), (0.05, 0.1), (0.9, 0.2)):
        with pytest.raises(ValidationError, match="from 0 up to 1"):
            Training(optimizer="dot", momentum=momentum, momentum_gap=gap)
    assert Training(momentum=0.95).momentum_gap == 0.075


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_report_equals_numpy_and_changes_nothing(toys: ModuleType, accumulate: int) -> None:
    weights = []
    for report in (False, True):
        student = Flat()
        hard, soft = by_hand(toys, student.linear.weight.detach().double().numpy())
        with machine_for(student, task_of(toys, accumulate=accumulate), make_accelerator("cpu")) as machine:
            taken = take_step(machine, batch_of(toys), Moment(count=12, progress=0.0, rate=0.2, report=report))
        weights.append(student.linear.weight.detach().clone())
        if not report:
            assert taken.conflict is None
            continue
        cosine = (hard * soft).sum() / np.linalg.norm(hard) / np.linalg.norm(soft)
        np.testing.assert_allclose(taken.conflict, [np.linalg.norm(hard), np.linalg.norm(soft), cosine], rtol=1e-4)
    assert torch.equal(*weights)


def test_the_report_is_one_of_each_epoch_and_reaches_trackers(toys: ModuleType, tmp_path: Path) -> None:
    def run(folder: Path, name: str, **settings) -> list[dict]:
        train(
            toys.net(),
            toys.spec(
                objective=preset(name, "classification"),
                settings=Training(epochs=2, batch_size=8, precision="float32", **settings),
                teacher=toys.FormulaTeacher(),
            ),
            folder,
            device="cpu",
        )
        return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]

    rows = run(tmp_path / "kd", "kd", gradient_report=True)
    assert [set(row["gradient_norms"]) for row in rows] == [{"cross_entropy", "forward_kl"}] * 2
    assert all(-1 <= row["gradient_cosine"] <= 1 for row in rows)
    assert rows[0]["gradient_cosine"] != rows[1]["gradient_cosine"]
    flat = history.numbers(rows[0])
    assert flat["gradient_norms/forward_kl"] == rows[0]["gradient_norms"]["forward_kl"]
    assert flat["gradient_cosine"] == rows[0]["gradient_cosine"]
    assert flat["parts/forward_kl"] == rows[0]["parts"]["forward_kl"]
    alone = run(tmp_path / "alone", "alone", gradient_report=True)
    assert alone[0]["gradient_cosine"] is None
    assert alone[0]["gradient_norms"]["cross_entropy"] > 0
    assert "gradient_norms" not in run(tmp_path / "quiet", "kd")[0]
