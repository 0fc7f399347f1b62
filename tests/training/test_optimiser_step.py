"""One step against an independent computation, micro-batches, and gradients that are not finite."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.core.signals import Batch
from potstill.losses import cross_entropy, forward_kl
from potstill.objective import Objective, Term
from potstill.recipe.schema import Training
from potstill.training import Spec
from potstill.training.finite import NotFiniteError
from potstill.training.machine import Machine, Moment
from potstill.training.optimiser import (
    build_optimiser,
    decay_groups,
    optimiser_tensors,
    restore_optimiser,
    update_average,
)
from potstill.training.setup import leave_to_device, machine_for, make_accelerator
from potstill.training.step import micro_batches, take_step


def task_of(toys: ModuleType, objective: Objective, **settings) -> Spec:
    values = {"optimizer": "sgd", "learning_rate": 0.1, "precision": "float32", **settings}
    return toys.spec(
        objective=objective, settings=Training(**values), teacher=toys.FormulaTeacher(), taps={"hidden": "hidden"}
    )


def batch_of(toys: ModuleType, count: int = 12) -> Batch:
    samples = toys.image_data().train
    rows = np.arange(count)
    return Batch(
        torch.from_numpy(samples.ids[rows]),
        torch.zeros(count, dtype=torch.int64),
        samples.fetch(rows),
        torch.from_numpy(samples.targets[rows]),
    )


def two_steps(toys: ModuleType, **settings):
    """Return weights, sums and norms of two SGD steps with momentum."""
    student = toys.net(norm="group")
    out = []
    with machine_for(student, task_of(toys, toys.objective(), **settings), make_accelerator("cpu")) as machine:
        for _ in range(2):
            taken = take_step(machine, batch_of(toys), Moment(count=12, progress=0.5, rate=0.1))
            out += [*taken.sums.tolist(), float(taken.norm)]
        adapters = [p.detach().reshape(-1) for p in machine.trainee.heads.parameters()]
    assert len(adapters) == 2
    return torch.cat([*(p.detach().reshape(-1) for p in student.parameters()), *adapters]), out


@pytest.mark.parametrize("accumulate", [2, 4, 5])
def test_micro_batches_leave_weights_losses_and_gradient_norms_as_they_are(toys: ModuleType, accumulate: int) -> None:
    weights, numbers = two_steps(toys)
    split_weights, split_numbers = two_steps(toys, accumulate=accumulate)
    assert len(numbers) == 10
    torch.testing.assert_close(split_weights, weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(split_numbers, numbers, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "dot"])
def test_each_term_is_divided_by_what_counts_for_it_in_the_global_batch(
    toys: ModuleType, accumulate: int, optimizer: str
) -> None:
    """The reference drops what does not count; labels stand in three of twelve samples, all in the first half."""
    labelled, where = torch.zeros(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)
    labelled[[0, 3, 4]], where[[5, 11]] = True, False
    batch = batch_of(toys)
    inputs = torch.where(where[:, None, None, None], batch.tensor, 5.0)
    masked = Batch(batch.ids, batch.views, inputs, batch.targets.where(labelled, -1), where, labelled)
    student, other = toys.net(norm="group"), toys.net(norm="group")
    objective = Objective([Term(cross_entropy, 0.3), Term(forward_kl, 0.7, temperature=2.0)])
    task = task_of(toys, objective, optimizer=optimizer, accumulate=accumulate, weight_decay=0.0)
    with machine_for(student, task, make_accelerator("cpu")) as machine:
        report = optimizer == "sgd"
        taken = take_step(machine, masked, Moment(count=12, progress=0.5, rate=0.1, report=report))
        kept = [parameter.grad.clone() for parameter in student.parameters()]
    answers, taught = other(batch.tensor), toys.FormulaTeacher()(batch)["logits"]
    hard = 0.3 * cross_entropy(answers[labelled], batch.targets[labelled]).mean()
    soft = 0.7 * forward_kl(answers[where], taught[where], temperature=2.0).mean()
    np.testing.assert_allclose(
        taken.sums.tolist(), [12 * (hard + soft).item(), 12 * hard.item(), 12 * soft.item()], 1e-5
    )
    parts = [torch.autograd.grad(part, list(other.parameters()), retain_graph=True) for part in (hard, soft)]
    gradients = [one + two for one, two in zip(*parts, strict=True)]
    for ours, theirs, got, gradient in zip(student.parameters(), other.parameters(), kept, gradients, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6)
        if report:  # the first step of momentum
            torch.testing.assert_close(ours, theirs - 0.1 * gradient, rtol=1e-5, atol=1e-6)
    if report:
        assert taken.conflict is not None
        norms = [float(torch.nn.utils.get_total_norm(part)) for part in parts]
        assert taken.conflict[:2].tolist() == pytest.approx(norms, rel=1e-4)


def test_micro_batches_are_contiguous_and_never_a_single_sample(toys: ModuleType) -> None:
    batch = batch_of(toys, 9)
    pieces = micro_batches(batch, 4, 9)
    assert [len(piece) for piece in pieces] == [2, 2, 2, 3]
    assert torch.equal(torch.cat([piece.ids for piece in pieces]), batch.ids)
    assert [len(piece) for piece in micro_batches(batch_of(toys, 3), 4, 3)] == [3]
    assert len(micro_batches(batch, 4, 4)) == 2


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(72, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1))


def test_one_step_equals_numpy(toys: ModuleType) -> None:
    """Softmax regression: mean gradient, decay on the matrix only, momentum, in float64 NumPy."""
    student = Flat()
    weight, bias = (p.detach().double().numpy().copy() for p in student.parameters())
    batch = batch_of(toys)
    x, y = batch.inputs.flatten(1).double().numpy(), batch.targets.numpy()
    task = task_of(toys, Objective([Term(cross_entropy)]), weight_decay=0.01, momentum=0.9)
    task = replace(task, taps={}, teacher=None)
    velocity_w, velocity_b, norms = 0.0, 0.0, []
    with machine_for(student, task, make_accelerator("cpu")) as machine:
        for _ in range(3):
            taken = take_step(machine, batch, Moment(count=12, progress=0.0, rate=0.1))
            z = x @ weight.T + bias
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(12), y] -= 1
            dw, db = p.T @ x / 12, p.mean(0)
            norms.append((float(taken.norm), np.sqrt((dw**2).sum() + (db**2).sum())))
            velocity_w = 0.9 * velocity_w + dw + 0.01 * weight
            velocity_b = 0.9 * velocity_b + db
            weight -= 0.1 * velocity_w
            bias -= 0.1 * velocity_b
    np.testing.assert_allclose(student.linear.weight.detach().numpy(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(student.linear.bias.detach().numpy(), bias, rtol=1e-4, atol=1e-6)
    for ours, theirs in norms:
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_clipping_scales_the_gradient_and_reports_the_norm_before(toys: ModuleType) -> None:
    student = toys.net(norm="group")
    with machine_for(student, task_of(toys, toys.objective(), gradient_clip=0.01), make_accelerator("cpu")) as machine:
        taken = take_step(machine, batch_of(toys), Moment(count=12, progress=0.5, rate=0.1))
        clipped = np.sqrt(sum(float(p.grad.double().square().sum()) for p in machine.parameters))
    assert float(taken.norm) > 0.1
    assert clipped == pytest.approx(0.01, rel=1e-3)


def poisoned(student_logits: Tensor, targets: Tensor) -> Tensor:
    return student_logits.sum(1) * float("nan")


def steep(student_logits: Tensor, targets: Tensor) -> Tensor:
    # The value is 0, the gradient 0 * inf.
    return (student_logits * 0).clamp(min=0).sum(1).sqrt()


@pytest.mark.parametrize(("loss", "what"), [(poisoned, "the term 'poisoned'"), (steep, "gradient of student.conv")])
def test_a_bad_gradient_never_reaches_the_weights(toys: ModuleType, loss, what: str) -> None:
    student = toys.net()
    objective = Objective([Term(cross_entropy), Term(cross_entropy, name="other")])
    with machine_for(student, task_of(toys, objective), make_accelerator("cpu")) as machine:
        machine = Machine(**{**vars(machine), "objective": Objective([Term(cross_entropy), Term(loss)])})
        before = copy.deepcopy([p.detach() for p in machine.parameters])
        with pytest.raises(NotFiniteError, match=what):
            take_step(machine, batch_of(toys), Moment(count=12, progress=0.0, rate=0.1))
        assert len(before) > 4
        assert all(torch.equal(a, b) for a, b in zip(before, machine.parameters, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_device_skips_bad_updates_by_itself(toys: ModuleType, optimizer: str) -> None:
    """The path of GPUs, where the host does not look at every step: fused optimisers run on a CPU as well."""
    student = toys.net()
    good, bad = Objective([Term(cross_entropy)]), Objective([Term(poisoned)])
    with machine_for(student, task_of(toys, good, optimizer=optimizer), make_accelerator("cpu")) as machine:
        machine = replace(machine, bad=leave_to_device(machine.optimiser, machine.device))

        def step(objective: Objective) -> list[Tensor]:
            now = Machine(**{**vars(machine), "objective": objective})
            take_step(now, batch_of(toys), Moment(count=12, progress=0.0, rate=0.1))
            return copy.deepcopy([p.detach() for p in machine.parameters])

        start = copy.deepcopy([p.detach() for p in machine.parameters])
        first, second, third = step(good), step(bad), step(good)
        assert not torch.equal(start[0], first[0])
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
        assert float(machine.bad) == 1


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 3, 3),
            "bn": nn.BatchNorm2d(3),
            "ln": nn.LayerNorm([3, 2]),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
            "linear": nn.Linear(4, 2),
        }
    )
    decayed, others = decay_groups(model)
    assert {id(p) for p in decayed} == {id(model["conv"].weight), id(model["linear"].weight)}
    assert len(others) == 6
    groups = build_optimiser(model, Training(optimizer="sgd", learning_rate=0.1, weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_moving_average_equals_numpy() -> None:
    average, weights = [torch.zeros(3)], [torch.tensor([1.0, 2.0, 3.0])]
    expected = np.zeros(3)
    for step in range(20):
        update_average(average, weights, 0.5, step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(average[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_restored_optimiser_goes_on_bit_for_bit_in_channels_last(optimizer: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from potstill.training.checkpoint import save_tensors

    settings = Training(optimizer=optimizer, learning_rate=None)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)

    def advance(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimiser.zero_grad()
            inputs = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(step))
            model(inputs.to(memory_format=torch.channels_last)).square().sum().backward()
            optimiser.step()

    with torch.random.fork_rng(devices=[]):
        straight = fresh()
        advance(straight, build_optimiser(straight, settings), range(6))
        first = fresh()
        optimiser = build_optimiser(first, settings)
        advance(first, optimiser, range(3))
        save_tensors(tmp_path / "o.safetensors", optimiser_tensors(optimiser))
        second = fresh()
        second.load_state_dict(first.state_dict())
        again = build_optimiser(second, settings)
        restore_optimiser(again, load_file(tmp_path / "o.safetensors"))
        advance(second, again, range(3, 6))
    assert torch.equal(straight.weight, second.weight)
    assert torch.equal(straight.bias, second.bias)
