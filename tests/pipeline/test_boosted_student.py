"""A student of boosted trees from a recipe: every stage as for a network, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill import load_student, plan, run
from potstill.core.errors import PotstillError, UsageError
from potstill.export import OnnxModel
from potstill.pipeline.build import IN_MEMORY, Given
from potstill.recipe.schema import Recipe


def table() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32)
    return inputs, inputs[:, 0] * inputs[:, 1] + np.abs(inputs[:, 2])


def recipe(task: str = "classification", **changes) -> Recipe:
    sections = {
        "task": task,
        "data": {"train": IN_MEMORY},
        "teacher": {"model": "mlp", "train": {"epochs": 4, "optimizer": "adamw", "learning_rate": 0.01}},
        "student": {"model": "lightgbm", "args": {"rounds": 40, "num_leaves": 6, "learning_rate": 0.2}},
        "evaluation": {"latency": False},
        "export": {"formats": ["onnx"]},
    }
    return Recipe.model_validate({**sections, **changes})


def given(task: str = "classification") -> Given:
    inputs, values = table()
    return Given(data=(inputs, values if task == "regression" else (values > 1).astype(np.int64)))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_is_trained_proven_and_exported_like_any_student(tmp_path: Path, task: str) -> None:
    out = tmp_path / "run"
    planned = plan(recipe(task), out=out, given=given(task))
    assert "train for 40 rounds, with the teacher" in str(planned)
    finished = run(recipe(task), out=out, given=given(task))
    assert [stage.name for stage in planned.stages if stage.name != "report"] == [
        name for name in json.loads((out / "run.json").read_text())["stages"] if name != "report"
    ]
    scores = json.loads((out / "evaluation.json").read_text())["models"]
    metric, least = ("accuracy", 0.75) if task == "classification" else ("r2", 0.4)
    assert min(scores[arm]["metrics"][metric] for arm in ("alone", "distilled")) > least
    assert scores["alone"]["metrics"] != scores["distilled"]["metrics"]
    assert scores["distilled"]["parameters"] is scores["distilled"]["flops"] is None
    inputs = torch.from_numpy(table()[0][:50])
    student, file = load_student(out / "export"), OnnxModel(finished.exported["onnx"])
    np.testing.assert_allclose(file(inputs), student(inputs).numpy(), rtol=1e-4, atol=1e-4)
    before = (out / "seeds/0/distilled/weights.safetensors").stat().st_mtime_ns
    run(recipe(task), out=out, given=given(task))
    assert (out / "seeds/0/distilled/weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"training": {"optimizer": "sgd"}}, "training.optimizer says nothing to trees"),
        ({"training": {"precision": "bfloat16"}}, "training.precision says nothing to trees"),
        ({"data": {"train": IN_MEMORY, "augment": {"mixup": 0.2}}}, "data.augment shows a student other samples"),
        ({"objective": [{"loss": "hint_mse", "on": "logits"}]}, "trees have no layers"),
        ({"peers": [{"model": "mlp"}], "mutual": 1.0}, "no batches to share with peers"),
        ({"student": {"model": "lightgbm", "args": {"depth": 3}}}, "It accepts.*num_leaves"),
        ({"student": {"model": "lightgbm", "on_features": "hidden"}}, "student.on_features says nothing to a student"),
        ({"student": {"model": "lightgbm", "taps": {"mid": "x"}}}, "student.taps says nothing to a student"),
    ],
)
def test_what_says_nothing_to_trees_is_refused_by_name_before_any_work(
    tmp_path: Path, changes: dict, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        plan(recipe(**changes), out=tmp_path / "run", given=given())


def test_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="reads rows of numbers"):
        plan(recipe(data={"train": "digits"}, teacher={"model": "cnn", "train": {}}), out=tmp_path / "run")
