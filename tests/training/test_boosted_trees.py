"""Trees as students: LightGBM's own answers, derivatives as NumPy says, refusals, files, and a run from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import PotstillError, UsageError
from potstill.data.stream import Stream
from potstill.export import OnnxModel, export_onnx, quantize
from potstill.losses import cross_entropy, forward_kl, hint_mse, mse, similarity_preserving, teacher_mse
from potstill.models import Preprocessor, build
from potstill.models.together import Together
from potstill.models.zoo.trees import Trees
from potstill.objective import Objective, Term, preset
from potstill.recipe.schema import Augment, Training
from potstill.training import Metric, Spec, learner_of
from potstill.training.boosted import _Booster, boost, check_boosted


class Linear:
    """A teacher: a fixed linear function of the inputs."""

    provides = frozenset({"logits"})
    fingerprint = "linear"

    def __init__(self, outputs: int) -> None:
        self.weight = torch.randn(outputs, 4, generator=torch.Generator().manual_seed(5))

    def __call__(self, batch) -> dict[str, torch.Tensor]:
        return {"logits": batch.tensor @ self.weight.T}


def trees(outputs: int = 1, **args) -> Trees:
    args = {"rounds": 5, "num_leaves": 4, "min_data_in_leaf": 3, **args}
    model = build("lightgbm", {"num_classes": outputs, "in_features": 4, **args})
    assert isinstance(model, Trees)
    return model


def in_classes(toys: ModuleType):
    """The vectors of the regression in three classes, by their target."""
    data = toys.vector_data()
    bounds = np.quantile(data.train.targets, [0.3, 0.6])
    splits = [replace(part, targets=np.digitize(part.targets, bounds)) for part in data.splits.values()]
    return replace(data, train=splits[0], validation=splits[1], test=splits[2], task="classification",
                   classes=("a", "b", "c"), num_outputs=3)  # fmt: skip


def spec_of(toys: ModuleType, task: str = "regression", **changes) -> Spec:
    data = toys.vector_data() if task == "regression" else in_classes(toys)
    return toys.spec(**{"data": data, "objective": preset("alone", task), "settings": Training(), **changes})


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_grown_model_answers_as_lightgbm_does(toys: ModuleType, tmp_path: Path, task: str) -> None:
    spec = spec_of(toys, task)
    student = trees(spec.data.num_outputs, rounds=12)
    result = boost(student, spec, tmp_path, device="cpu")
    again = _Booster(student, spec)
    for _ in range(result.best_epoch):
        again.round(0.0)
    inputs = spec.data.test.fetch(np.arange(6)).repeat(50, 1) + torch.linspace(-2, 2, 300)[:, None]
    expected = again.booster.predict(inputs.numpy(), raw_score=True).reshape(300, -1)
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(student(inputs).numpy(), expected, atol=1e-5)
    rows = [json.loads(line) for line in result.history.read_text().splitlines()]
    assert len(rows) == 12 == result.steps
    assert rows[result.best_epoch - 1]["validation_metric"] == max(row["validation_metric"] for row in rows)
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]


def test_a_round_without_a_split_leaves_the_answers_as_they_are(toys: ModuleType, tmp_path: Path) -> None:
    """Leaves of half of the samples cannot be split in every round: LightGBM then counts fewer rounds."""
    seen: list[int] = []

    def score(*_: object) -> float:
        seen.append(1)
        return -abs(len(seen) - 20.0)

    student = trees(rounds=40, min_data_in_leaf=29, rows=0.97)
    spec = spec_of(toys, metric=Metric("the 20th round", score))
    result = boost(student, spec, tmp_path, device="cpu")
    assert result.best_epoch == 20
    again = _Booster(student, spec)
    for _ in range(result.best_epoch):
        again.round(0.0)
    assert 1 < again.booster.current_iteration() < result.best_epoch
    inputs = spec.data.train.fetch(np.arange(60))
    expected = again.booster.predict(inputs.numpy(), raw_score=True)
    np.testing.assert_allclose(student(inputs)[:, 0].numpy(), expected, atol=1e-5)
    with pytest.raises(UsageError, match=r"cannot grow trees on these 60 samples.*min_data_in_leaf=61"):
        boost(trees(min_data_in_leaf=61), spec, tmp_path / "other", device="cpu")


def test_a_threshold_between_two_32_bit_numbers_sends_both_to_their_sides() -> None:
    model = trees(rounds=1)
    below = np.float32(0.1)
    above = np.nextafter(below, np.float32(1))
    model.grown([([(2, (float(below) + float(above)) / 2, -1, -2)], [1.0, 2.0])])
    inputs = torch.zeros(2, 4)
    inputs[:, 2] = torch.tensor([below, above])
    assert model(inputs).flatten().tolist() == [1.0, 2.0]


def test_derivatives_are_those_of_the_objective(toys: ModuleType) -> None:
    """Cross entropy and softened divergence in closed form, and the squares of a regression."""
    scores = np.random.default_rng(0).normal(size=(60, 3))
    objective = Objective([Term(cross_entropy, 0.3), Term(forward_kl, 0.7, temperature=2.0)])
    booster = _Booster(trees(3), spec_of(toys, "classification", objective=objective, teacher=Linear(3)))
    first, second, _ = booster._derivatives(scores, 0.0)

    def softmax(values):
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    hard, soft = softmax(scores), softmax(scores / 2)
    taught = softmax(booster.taught["logits"].double().numpy() / 2)
    labels = np.eye(3)[booster.batch.targets.numpy()]
    np.testing.assert_allclose(first, 0.3 * (hard - labels) + 0.7 * 2 * (soft - taught), atol=1e-5)
    np.testing.assert_allclose(second, 0.3 * hard * (1 - hard) + 0.7 * soft * (1 - soft), atol=1e-5)

    objective = Objective([Term(mse, 0.4), Term(teacher_mse, 0.6)])
    booster = _Booster(trees(1), spec_of(toys, objective=objective, teacher=Linear(1)))
    first, second, _ = booster._derivatives(scores[:, 0], 0.0)
    targets, said = booster.batch.targets.double().numpy(), booster.taught["logits"][:, 0].double().numpy()
    np.testing.assert_allclose(first, 2 * (scores[:, 0] - 0.4 * targets - 0.6 * said), atol=1e-4)
    np.testing.assert_allclose(second, np.full(60, 2.0), atol=1e-5)


def test_the_objective_decides_what_is_learned(toys: ModuleType, tmp_path: Path) -> None:
    """With the teacher's term alone the trees follow the teacher, who knows nothing of the targets."""
    args = {"rounds": 60, "learning_rate": 0.3, "rows": 1.0, "columns": 1.0}
    objective = Objective([Term(teacher_mse)])
    metric_free = spec_of(toys, objective=objective, teacher=Linear(1))
    student = trees(**args)
    booster = _Booster(student, metric_free)
    for _ in range(60):
        booster.round(0.0)
    student.grown(booster.trees(60))
    said = booster.taught["logits"][:, 0]
    answers = student(booster.batch.tensor)[:, 0]
    assert float(((answers - said) ** 2).mean()) < 0.05 * float(said.var())
    assert not torch.allclose(booster.batch.targets, said, atol=0.5)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"optimizer": "sgd"}, "optimizer"),
        ({"precision": "bfloat16"}, "precision"),
        ({"epochs": 5}, "epochs"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"ema": 0.9}, "ema"),
    ],
)
def test_settings_of_networks_are_refused_by_name(toys: ModuleType, settings: dict, option: str) -> None:
    spec = spec_of(toys)
    with pytest.raises(UsageError, match=rf"training.{option} says nothing to trees.*student.args"):
        check_boosted(trees(), spec.objective, Training(**settings), spec.stream)


def test_what_trees_cannot_do_is_refused(toys: ModuleType, tmp_path: Path) -> None:
    spec = spec_of(toys)
    refused = [
        (Objective([Term(hint_mse, on="layer")]), spec.stream, "has no layers|have no layers"),
        (Objective([Term(similarity_preserving, on="logits")]), spec.stream, "more than the student's answers"),
        (spec.objective, Stream(spec.data.train, Augment(mixup=0.4)), "data.augment"),
        (spec.objective, Stream(toys.image_data().train), r"a sample has shape \(2, 6, 6\)"),
    ]
    for objective, stream, text in refused:
        with pytest.raises(UsageError, match=text):
            check_boosted(trees(), objective, Training(), stream)
    with pytest.raises(UsageError, match="exits and no batches"):
        check_boosted(Together(trees(), [nn.Linear(4, 1)]), spec.objective, Training(), spec.stream)
    with pytest.raises(UsageError, match="reads a teacher"):
        boost(trees(), replace(spec, objective=Objective([Term(teacher_mse)])), tmp_path, device="cpu")
    for args, text in [({"num_leaves": 1}, "2 or more"), ({"rows": 1.5}, "at most 1"), ({"rounds": 0}, "rounds=0")]:
        with pytest.raises(UsageError, match=text):
            trees(**args)
    assert not list(tmp_path.iterdir())


def test_networks_and_trees_have_their_own_learners() -> None:
    assert not learner_of(trees()).has_rates
    assert learner_of(nn.Linear(2, 2)).has_rates
    assert learner_of(trees()).length(trees(rounds=7), Training()) == "7 rounds"
    assert learner_of(nn.Linear(2, 2)).length(nn.Linear(2, 2), Training(epochs=3)) == "3 epochs"


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_onnx_file_sends_every_sample_to_the_same_leaves(toys: ModuleType, tmp_path: Path, task: str) -> None:
    spec = spec_of(toys, task, preprocess=Preprocessor(torch.tensor([0.1, 0, 0.2, -1]), torch.tensor([1, 2.0, 0.5, 3])))
    student = trees(spec.data.num_outputs, rounds=12)
    boost(student, spec, tmp_path, device="cpu")
    inputs = spec.data.train.fetch(np.arange(60))
    file = export_onnx(
        student, spec.preprocess, inputs[:2], tmp_path / "m.onnx", task=spec.data.task, classes=spec.data.classes,
        temperature=2.0,
    )  # fmt: skip
    model, expected = OnnxModel(file), student(spec.preprocess(inputs))
    assert float(expected.std(0).min()) > 0.1
    np.testing.assert_allclose(model(inputs), expected.numpy(), atol=1e-5)
    if task == "classification":
        np.testing.assert_allclose(model.probabilities(inputs), (expected / 2).softmax(1).numpy(), atol=1e-6)
    with pytest.raises(PotstillError, match="sum of trees"):
        quantize(file, tmp_path / "int8.onnx", [inputs.numpy()])
