"""Signals that the learner makes: how the answer changes with the inputs, and blocks run on the teacher's signals."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.core.errors import TeacherError, UsageError
from potstill.core.random import uniform
from potstill.core.signals import Batch
from potstill.losses import cross_entropy, hint_mse, jacobian_matching
from potstill.models.blocks import run_block
from potstill.models.input_gradients import differentiable, input_gradient, unit_directions
from potstill.models.preprocess import Preprocessor
from potstill.objective import Objective, Term
from potstill.recipe.schema import Training
from potstill.store.writer import record
from potstill.teachers import LiveTeacher, StoredTeacher
from potstill.teachers.stored import describe_recording
from potstill.training import train

SLOPES = Objective([Term(cross_entropy), Term(jacobian_matching, on="input_gradient")])


def batch_of(toys: ModuleType, count: int = 6) -> Batch:
    samples = toys.image_data().train
    rows = np.arange(count)
    ids = torch.from_numpy(samples.ids[rows])
    return Batch(ids, ids % 2, samples.fetch(rows), torch.from_numpy(samples.targets[rows]))


def run(toys: ModuleType, folder: Path, objective: Objective, student=None, **named) -> list[dict]:
    settings = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.05,
        "precision": "float32",
        **named.pop("settings", {}),
    }
    named = {"preprocess": Preprocessor(), "teacher": toys.FormulaTeacher(), **named}
    train(
        student or toys.net(),
        toys.spec(objective=objective, settings=Training(**settings), **named),
        folder,
        device="cpu",
    )
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_input_gradient_of_a_linear_model_is_its_weights_along_the_direction(toys: ModuleType) -> None:
    weight = torch.randn(3, 72, generator=torch.Generator().manual_seed(1))
    batch = batch_of(toys)
    inputs = differentiable(batch.inputs)
    found = input_gradient(inputs.flatten(1) @ weight.T, inputs, batch.ids, batch.views)
    for row, (number, view) in enumerate(zip(batch.ids.tolist(), batch.views.tolist(), strict=True)):
        one, two = (np.array([float(uniform(number, view, k, part)) for k in range(3)]) for part in (0, 1))
        normal = np.sqrt(-2 * np.log(1 - one)) * np.cos(2 * np.pi * two)
        expected = (normal / np.sqrt((normal**2).sum())) @ weight.double().numpy()
        np.testing.assert_allclose(found[row].flatten().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_directions_are_unit_vectors_uniform_and_each_samples_own() -> None:
    ids, views = torch.arange(4000), torch.zeros(4000, dtype=torch.int64)
    directions = unit_directions(ids, views, 5)
    np.testing.assert_allclose(directions.norm(dim=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(directions.T @ directions / 4000, np.eye(5) / 5, atol=0.02)
    np.testing.assert_allclose(directions.mean(0), 0.0, atol=0.03)
    assert torch.equal(unit_directions(ids[7:9], views[7:9], 5), directions[7:9])
    assert not torch.equal(unit_directions(ids[:9], views[:9] + 1, 5), directions[:9])
    assert unit_directions(ids, views, 1).abs().unique().tolist() == [1.0]


def test_pixels_are_differentiated_on_the_unit_scale_and_tokens_not_at_all() -> None:
    whole = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    assert differentiable(whole).tolist() == [[0.0, 1.0, pytest.approx(0.2)]]
    with pytest.raises(UsageError, match=r"input_gradient.*these are torch\.int64"):
        differentiable(torch.tensor([[3, 4]]))


def test_student_and_teacher_of_equal_weights_change_alike(toys: ModuleType, tmp_path: Path) -> None:
    """The loss is 0 in the first step, each side with its own preprocessing; another teacher's is not."""
    scale = Preprocessor(torch.tensor([0.4, 0.6]), torch.tensor([0.5, 0.3]))
    for seed, same in ((0, True), (1, False)):
        teacher = LiveTeacher(toys.net(seed, norm="group"), preprocess=scale, input_gradient=True)
        rows = run(
            toys, tmp_path / str(seed), SLOPES, toys.net(norm="group"), teacher=teacher, preprocess=scale,
            settings={"learning_rate": 1e-9, "epochs": 1},
        )  # fmt: skip
        value = rows[0]["parts"]["jacobian_matching:input_gradient"]
        assert value < 1e-12 if same else value > 1e-4
        teacher.verify_unchanged()


def test_a_recorded_input_gradient_equals_a_live_one(toys: ModuleType, tmp_path: Path) -> None:
    batch = batch_of(toys, 8)
    batch = Batch(batch.ids, torch.zeros_like(batch.ids), batch.inputs, batch.targets)
    with LiveTeacher(toys.net(), preprocess=Preprocessor(), taps={"hidden": "hidden"}, input_gradient=True) as live:
        assert live.facts.signals == {"logits", "hidden", "input_gradient"}
        manifest = describe_recording(live, batch, ids=batch.ids.numpy(), data="d", dtype="float32")
        store = record(live, lambda _: [batch], tmp_path, manifest, batch.ids.numpy())
        answer = live(batch)
    stored = StoredTeacher(store)(batch)
    assert answer["input_gradient"].shape == batch.inputs.shape
    assert not answer["input_gradient"].requires_grad
    assert answer["input_gradient"].abs().max() > 1e-3
    for name in ("logits", "hidden", "input_gradient"):
        torch.testing.assert_close(stored[name], answer[name], rtol=0, atol=0)
    plain = LiveTeacher(toys.net(), preprocess=Preprocessor(), taps={"hidden": "hidden"})
    assert plain.fingerprint != live.fingerprint
    torch.testing.assert_close(plain(batch)["logits"], answer["logits"], rtol=1e-5, atol=1e-6)


def test_input_gradients_can_be_learnt(toys: ModuleType, tmp_path: Path) -> None:
    objective = Objective([Term(cross_entropy, 0.0), Term(jacobian_matching, on="input_gradient")])
    teacher = LiveTeacher(toys.net(4, norm="group"), preprocess=Preprocessor(), input_gradient=True)
    settings = {"epochs": 15, "optimizer": "adamw", "learning_rate": 0.01}
    rows = run(toys, tmp_path, objective, toys.net(norm="group"), teacher=teacher, settings=settings)
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]


def test_a_teacher_without_input_gradients_is_told_how(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="input_gradient=True"):
        run(toys, tmp_path, SLOPES)
    with pytest.raises(UsageError, match="cannot be called 'input_gradient'"):
        LiveTeacher(
            toys.net(), preprocess=Preprocessor(), taps={"input_gradient": "hidden"}, input_gradient=True
        )  # fmt: skip


def test_a_block_reads_a_signal_of_the_teacher() -> None:
    term = Term(hint_mse, student="layer2(teacher.layer1)", teacher="layer2")
    assert term.teacher_signals == {"layer1", "layer2"}
    assert term.student_signals == {"layer2(teacher.layer1)"}


class Blocks(nn.Module):
    """Two blocks of equal shape, with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs)).mean((2, 3)))


def built(seed: int) -> Blocks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Blocks()


REPLACED = Objective(
    [Term(cross_entropy), Term(hint_mse, student="second(teacher.first)", teacher="second", name="replaced")]
)


def test_a_block_runs_on_the_teachers_signal(toys: ModuleType, tmp_path: Path) -> None:
    """Against the block run by hand, in training mode; its running statistics are those of the student's own values."""
    student, model = built(0), built(1)
    inputs = toys.image_data().train.fetch(np.arange(26))
    with torch.no_grad():
        block, own = built(0), built(0)
        hidden = model.eval().first(inputs)
        expected = float((block.second(hidden) - model.second(hidden)).square().mean())
        own(inputs)
    teacher = LiveTeacher(model, preprocess=Preprocessor(), taps={"first": "first", "second": "second"})
    settings = {"learning_rate": 1e-9, "epochs": 1, "batch_size": 26, "warmup": 0.0}
    rows = run(toys, tmp_path, REPLACED, student, teacher=teacher, settings=settings)
    assert rows[0]["parts"]["replaced"] == pytest.approx(expected, rel=1e-4)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert all(norm.momentum == 0.1 for norm in student.modules() if isinstance(norm, nn.BatchNorm2d))


def test_a_blocks_gradient_reaches_the_block_alone(toys: ModuleType, tmp_path: Path) -> None:
    objective = Objective([Term(hint_mse, student="second(teacher.first)", teacher="second"), Term(cross_entropy, 0.0)])
    student = built(0)
    teacher = LiveTeacher(built(1), preprocess=Preprocessor(), taps={"first": "first", "second": "second"})
    settings = {"weight_decay": 0.0, "epochs": 30, "learning_rate": 0.1}
    rows = run(toys, tmp_path, objective, student, teacher=teacher, settings=settings)
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    known = built(0)
    for name, value in known.named_parameters():
        assert torch.equal(student.get_parameter(name), value) == (not name.startswith("second")), name


def test_blocks_that_do_not_fit_are_refused_before_training(toys: ModuleType, tmp_path: Path) -> None:
    def refused(student: str, match: str) -> None:
        objective = Objective([Term(cross_entropy), Term(hint_mse, student=student, teacher="logits")])
        with pytest.raises(UsageError, match=match):
            run(toys, tmp_path, objective)

    refused("head(teacher.hidden)", "layer 'head' cannot take the teacher's signal of shape .8,. per sample")
    refused("heat(teacher.short)", "no layer 'heat'.*Did you mean 'head'")
    with pytest.raises(TeacherError, match="reads the teacher's shrt"):
        run(toys, tmp_path, Objective([Term(hint_mse, student="head(teacher.shrt)", teacher="logits")]))
    with pytest.raises(UsageError, match="returns no tensor"):
        run_block(nn.ModuleDict({"none": Nothing()}), "none", torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())


class Nothing(nn.Module):
    def forward(self, _inputs: Tensor) -> None:
        return None
