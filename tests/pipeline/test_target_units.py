"""Regression targets as people have them: learned in standard units, shown and deployed in their own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

import potstill
from potstill import losses
from potstill.core import fingerprint
from potstill.core.errors import UsageError
from potstill.core.scale import TargetScale
from potstill.data.samples import Rows, make_samples
from potstill.models.last_layer import in_standard_units
from potstill.models.reuse import ReusedClassifier, reused_in_standard_units
from potstill.pipeline import Run, distill, stages
from potstill.pipeline.build import Given, build_job, example_batch
from potstill.recipe.schema import Recipe

X = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
CURVE = np.tanh(X[:, 0].astype(np.float64)) + 0.5 * X[:, 1]
Y = np.stack([1e9 + 3.0 * CURVE, -2e-7 * (CURVE + X[:, 2])], axis=1)
"""A far mean with a small spread, and tiny numbers: in float32 the first column has 1 value."""


class Exact(nn.Module):
    """A teacher that answers in the targets' units: with the targets themselves, in float64."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = inputs.double()
        curve = x[:, 0].tanh() + 0.5 * x[:, 1]
        return torch.stack([1e9 + 3.0 * curve, -2e-7 * (curve + x[:, 2])], dim=1)


SETTINGS: dict[str, Any] = {
    "task": "regression",
    "training": {"epochs": 12, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.01},
    "evaluation": {"latency": False},
}
STUDENT = {"model": "mlp", "args": {"hidden": [16]}}


def r2(found: Any, wanted: Any) -> Any:
    """The share of the variance of each column that is explained, in float64."""
    return 1 - ((found - wanted) ** 2).sum(0) / ((wanted - wanted.mean(0)) ** 2).sum(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run on the targets as they are, and its data."""
    out = tmp_path_factory.mktemp("units") / "run"
    run = distill(Exact(), STUDENT, (X, Y), out=out, export={"formats": ["onnx", "onnx-int8"]}, **SETTINGS)
    with np.load(out / "predictions.npz") as saved:
        predictions = {name: saved[name] for name in saved.files}
    data = potstill.load_data((X, Y), task="regression")
    return SimpleNamespace(run=run, out=out, predictions=predictions, data=data)


def test_kept_answers_are_in_the_units_of_the_targets(made: SimpleNamespace) -> None:
    rows = made.predictions["ids"]  # of arrays the ids are row numbers
    np.testing.assert_array_equal(made.predictions["targets"], Y[rows])
    assert r2(made.predictions["teacher"], Y[rows]).min() > 1 - 1e-9
    for kind in ("alone", "distilled"):
        scores = r2(made.predictions[kind][0], Y[rows])
        assert scores.min() > 0.9
        metrics = made.run.evaluation.models[kind].metrics
        assert metrics["r2"] == pytest.approx(scores.mean(), abs=1e-9)
        squares = ((made.predictions[kind][0] - Y[rows]) ** 2).mean(0)
        told = [metrics[f"rmse_{column + 1}"] for column in range(len(squares))]
        np.testing.assert_allclose(told, squares**0.5, rtol=1e-9)
        assert "rmse" not in metrics


def test_every_exported_file_answers_in_the_units_of_the_targets(made: SimpleNamespace) -> None:
    rows, exported = made.predictions["ids"], made.run.exported
    train = made.data.train.targets
    weights = load_file(exported["safetensors"])
    config = json.loads((made.out / "export" / "student.json").read_text())
    standard = (X[rows] - np.array(config["preprocess"]["mean"])) / np.array(config["preprocess"]["std"])
    names = sorted({name.rpartition(".")[0] for name in weights})
    first, last = (weights[f"{name}.weight"] for name in names)
    hidden = np.maximum(standard @ first.T + weights[f"{names[0]}.bias"], 0)
    # By hand: the network in NumPy, times the deviation over the training targets, plus their mean.
    wanted = (hidden @ last.T + weights[f"{names[1]}.bias"]) * train.std(0) + train.mean(0)
    np.testing.assert_allclose(config["scale"]["mean"], train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(config["scale"]["std"], train.std(0), rtol=1e-6)
    answers = {
        "kept": made.predictions["distilled"][0],
        "student": made.run.load_student()(torch.from_numpy(X[rows])).detach().numpy(),
        "onnx": potstill.OnnxModel(exported["onnx"])(X[rows]),
    }
    for name, found in answers.items():
        assert np.abs(found - wanted).max(axis=0) == pytest.approx([0, 0], abs=1), name
        assert (np.abs(found - wanted) / train.std(0)).max() < 1e-5, name
    assert r2(potstill.OnnxModel(exported["onnx-int8"])(X[rows]), wanted).min() > 0.97


def test_a_store_keeps_standard_units_and_reads_the_teachers(made: SimpleNamespace) -> None:
    train = made.data.train
    (folder,) = made.out.parent.glob("store/*")
    store = potstill.open_store(folder)
    ids, views = torch.from_numpy(train.ids), torch.zeros(len(train.ids), dtype=torch.int64)
    said = Y[train.ids]
    kept = store.gather("logits", store.rows(ids, views)).numpy()
    np.testing.assert_allclose(kept, (said - said.mean(0)) / said.std(0), atol=2e-3)  # float16
    batch = potstill.Batch(ids=ids, views=views, inputs=torch.zeros(len(ids), 1), targets=None)
    for read in (store.read("logits", ids, views), potstill.StoredTeacher(store)(batch)["logits"]):
        assert read.dtype == torch.float64
        assert r2(read.numpy(), said).min() > 1 - 1e-6


def test_a_parquet_file_of_a_store_has_what_the_teacher_said(made: SimpleNamespace, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from potstill.store.export import export

    (folder,) = made.out.parent.glob("store/*")
    export(folder, tmp_path / "answers.parquet")
    table = parquet.read_table(tmp_path / "answers.parquet")
    found = np.array(table["logits"].to_pylist())
    assert r2(found, Y[table["id"].to_numpy()]).min() > 1 - 1e-6


def test_weights_that_were_trained_in_standard_units_say_so(made: SimpleNamespace) -> None:
    for file in (made.run.exported["safetensors"], made.out / "seeds" / "0" / "alone" / "weights.safetensors"):
        with safe_open(file, "np") as opened:
            scale = json.loads(opened.metadata()["scale"])
        np.testing.assert_allclose(scale["mean"], made.data.train.targets.mean(0), rtol=1e-12)


def test_a_student_teaches_the_next_one_by_its_weights_alone(made: SimpleNamespace, tmp_path: Path) -> None:
    """Other data has other units: what the weights were trained in is taken back first."""
    config = json.loads((made.out / "export" / "student.json").read_text())
    teacher = {
        **STUDENT,
        "weights": str(made.run.exported["safetensors"]),
        "preprocess": {name: config["preprocess"][name] for name in ("mean", "std")},
    }
    short = {**SETTINGS, "training": {"epochs": 1}, "export": {"formats": []}}
    half = X[:200], Y[:200]
    run = distill({"members": [teacher, teacher]}, STUDENT, half, out=tmp_path / "two", **short)
    wanted = made.run.load_student()(torch.from_numpy(X)).detach().numpy()
    assert_says(run, "teacher", wanted)
    assert_says(run, "other: teacher 2", wanted)
    assert_says(distill(teacher, STUDENT, half, out=tmp_path / "one", **short), "teacher", wanted)


def assert_says(run: Run, name: str, wanted: Any) -> None:
    """Compare the kept answers of a model with rows of what is expected, in units of its spread."""
    with np.load(run.folder / "predictions.npz") as saved:
        found, rows = saved[name], saved["ids"]
    assert (np.abs(found - wanted[rows]) / wanted.std(0)).max() < 1e-4


class Line(nn.Module):
    """A teacher with a linear last layer that answers in the targets' units."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Tanh()
        self.last = nn.Linear(4, 1)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[300.0, 200.0, 0.0, 0.0]]))
            self.last.bias.fill_(22_000.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (b, 1)."""
        return self.last(self.body(inputs))


def test_everybody_who_learns_beside_the_student_is_shown_in_the_units_of_the_targets(tmp_path: Path) -> None:
    with torch.no_grad():
        y = Line()(torch.from_numpy(X)).squeeze(1).double().numpy()
    settings: dict[str, Any] = {
        **SETTINGS,
        "peers": [STUDENT],
        "mutual": 1.0,
        "chain": [STUDENT],
        "back_to_teacher": {"epochs": 1, "learning_rate": 1e-4},
        "export": {"formats": []},
    }
    run = distill(Line(), STUDENT, (X, y), out=tmp_path / "run", **settings)
    with np.load(run.folder / "predictions.npz") as saved:
        found, rows = {name: saved[name] for name in saved.files}, saved["ids"]
    for name in ("teacher", "other: peer 1", "other: assistant 1"):
        assert r2(found[name][:, 0], y[rows]) > 0.9, name
    result = json.loads((run.folder / "back" / "result.json").read_text())["scores"]
    # The teacher is exact, and a small step from there stays near: mean squared errors in squared units of the target.
    assert result["before"] == pytest.approx(0, abs=1e-3)
    assert all(-0.1 * y.var() < result[way] <= 0 for way in ("helped", "by-labels"))


def test_a_teachers_signals_are_in_standard_units() -> None:
    scale = TargetScale((22_000.0,), (100.0,))
    inputs = torch.from_numpy(X[:5])
    batch = potstill.Batch(ids=torch.arange(5), views=torch.zeros(5, dtype=torch.int64), inputs=inputs, targets=None)
    with potstill.LiveTeacher(
        Line(), preprocess=potstill.Preprocessor(), scale=scale, input_gradient=True, taps={"mid": "body"}
    ) as teacher:
        signals = teacher(batch)
        assert teacher.parts["scale"] == {"mean": [22_000.0], "std": [100.0]}
    slope = np.array([300.0, 200.0, 0.0, 0.0]) / 100.0  # by hand: the line divided by the deviation
    np.testing.assert_allclose(signals["logits"].numpy()[:, 0], np.tanh(X[:5]) @ slope, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(signals["mid"].numpy(), np.tanh(X[:5]), rtol=1e-5)
    gradient = np.abs(slope * (1 - np.tanh(X[:5]) ** 2))  # of one output: the direction is 1 or -1
    np.testing.assert_allclose(np.abs(signals["input_gradient"].numpy()), gradient, rtol=1e-4, atol=1e-6)


def test_variances_that_a_term_reads_change_units_with_the_values() -> None:
    """With the deviation 10, a variance of 400 in the target's units is one of 4."""

    class Sure(nn.Module):
        signals = ("log_variance",)

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            value = inputs[:, :1] * 10 + 3
            return {"logits": value, "log_variance": torch.full_like(value, 400.0).log()}

    spread = X[:, 0].std()
    data = (X, 10.0 / spread * X[:, 0])
    objective = potstill.Objective([potstill.Term(losses.gaussian_nll, teacher=["logits", "log_variance"])])
    recipe = Recipe.model_validate(
        {
            "task": "regression",
            "data": {"train": "python-object"},
            "teacher": {"model": "python-object"},
            "student": {"model": "mlp"},
        }
    )
    job = build_job(recipe, base=Path(), given=Given(teacher=Sure(), data=data, objective=objective))
    assert job.data.scale is not None
    with stages.live_teacher(job, job.teacher_at(0)) as teacher:
        found = teacher(example_batch(job))["log_variance"]
    np.testing.assert_allclose(found.exp().numpy(), 400 / job.data.scale.std[0] ** 2, rtol=1e-5)


def test_other_splits_and_raw_targets_are_other_work() -> None:
    y = 5_000 + 40 * CURVE
    data = potstill.load_data((X, y), task="regression")
    raw = potstill.load_data((X, y), task="regression", standardise_targets=False)
    assert raw.scale is None
    np.testing.assert_array_equal(raw.train.targets, data.train.targets)
    other = potstill.load_data((X, y), task="regression", seed=1)
    assert len({data.fingerprint, raw.fingerprint, other.fingerprint}) == 3


def test_targets_that_float32_holds_are_hashed_as_they_were_and_others_whole() -> None:
    """A store that was recorded before targets were float64 is still of the same samples."""
    ids, values = np.arange(4), np.array([0.1, 0.2, 0.3, 0.4])

    def hashed(targets: Any) -> str:
        return make_samples(ids, targets, Rows(torch.zeros(4, 1)), digests=np.zeros(4, np.uint64)).fingerprint

    before = [ids.astype(np.int64), values.astype(np.float32), np.zeros(4, np.uint64)]
    assert hashed(values) == fingerprint.of_json([fingerprint.of_array(part) for part in before])
    assert hashed(1e9 + values) != hashed(1e9 + values[::-1]), "float32 has one number for all of them"


def test_classes_have_no_units() -> None:
    with pytest.raises(ValueError, match="classes have no units"):
        Recipe.model_validate(
            {
                "data": {"train": "digits", "standardise_targets": False},
                "teacher": {"model": "cnn", "train": {}},
                "student": {"model": "cnn"},
            }
        )


def test_a_student_on_the_features_of_a_teacher_that_is_trained_here(tmp_path: Path) -> None:
    """The teacher behind its features answers in the standard units that it was trained in."""
    teacher = {"model": "mlp", "args": {"hidden": [16]}, "train": SETTINGS["training"]}
    student = {"model": "mlp", "args": {"hidden": [8]}, "on_features": "hidden"}
    settings: dict[str, Any] = {**SETTINGS, "export": {"formats": []}}
    run = distill(teacher, student, (X, 5_000 + 40 * CURVE), out=tmp_path / "run", **settings)
    metrics = run.evaluation.models
    assert metrics["teacher"].metrics["r2"] > 0.9
    assert metrics["distilled"].metrics["r2"] > 0.8


def test_a_classifier_that_was_taken_over_answers_in_standard_units() -> None:
    line = Line()
    reused = ReusedClassifier(nn.Identity(), nn.Identity(), nn.Sequential(copy.deepcopy(line)))
    turned = reused_in_standard_units(reused, TargetScale((22_000.0,), (100.0,)))
    inputs = torch.from_numpy(X[:5])
    wanted = (line(inputs).double() - 22_000) / 100
    torch.testing.assert_close(turned(inputs).double(), wanted, atol=1e-4, rtol=1e-4)
    turned.reset_parameters()
    torch.testing.assert_close(turned(inputs).double(), wanted, atol=1e-4, rtol=1e-4)


def test_low_rank_heads_answer_in_standard_units() -> None:
    scale = TargetScale((22_000.0,), (100.0,))
    weight, bias = in_standard_units(torch.tensor([[300.0, 200.0]]), torch.tensor([22_050.0]), scale)
    assert (weight.tolist(), bias.tolist()) == ([[3.0, 2.0]], [0.5])


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_the_average_error_over_columns_of_unlike_units_judges_nothing(metric: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"metric: {metric} of 2 target columns .* metric: r2"):
        distill(Exact(), STUDENT, (X, Y), out=tmp_path / "run", metric=metric, **SETTINGS)
    assert not (tmp_path / "run" / "teacher").exists()
