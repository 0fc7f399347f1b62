"""Heads on a teacher's features, the way back to the teacher, nested widths, an average of the student as teacher."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import potstill
from potstill.core.errors import PotstillError, UsageError
from potstill.core.files import read_json
from potstill.models import build
from potstill.pipeline import Given, export, plan, run
from potstill.recipe.yaml import loads

REST = """
data: {train: digits}
training: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""
TEACHER = (
    "teacher: {model: cnn, args: {width: 8}, train: {epochs: 3, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}\n"
)
SMALL = "student: {model: cnn, args: {width: 4}}\n"
FEATURES = f"{REST}{TEACHER}student: {{model: mlp, args: {{hidden: []}}, on_features: pool}}\n"
NESTED = f"""{REST}teacher: null
student: {{model: nested_cnn, args: {{width: 8, widths: [0.5, 1.0]}}}}
objective:
  - {{loss: cross_entropy}}
  - {{loss: forward_kl, student: width_0.5.logits, teacher: student.logits}}
"""
AVERAGE = f"""{REST}teacher: {{average_of_student: 0.9}}
{SMALL}objective:
  - {{loss: cross_entropy}}
  - {{loss: forward_kl, weight: 0.5}}
  - {{loss: hint_mse, on: layer3, weight: 0.1}}
"""


def stages(folder: Path) -> dict[str, str]:
    return {name: entry["status"] for name, entry in read_json(folder / "run.json")["stages"].items()}


def test_a_head_on_features_is_trained_alone_and_distilled_and_exported_as_it_is(tmp_path):
    recipe = loads(FEATURES.replace("formats: []", "formats: [onnx]"))
    assert [stage.name for stage in plan(recipe, out=tmp_path / "run").stages][:3] == ["teacher", "features", "store"]
    made = run(recipe, out=tmp_path / "run")
    models = made.evaluation.models
    assert models["distilled"].parameters == 32 * 10 + 10
    assert models["alone"].metrics["accuracy"] > 0.8
    # What the features folder holds is what the trained teacher's layer says, for every split.
    model = build("cnn", {"width": 8, "in_channels": 1}, seed=0).eval()
    model.load_state_dict(load_file(made.folder / "teacher" / "weights.safetensors"))
    found = {name: np.load(made.folder / "features" / f"{name}.npy") for name in ("train", "validation", "test")}
    assert [value.shape[1:] for value in found.values()] == [(32,)] * 3
    with np.load(made.folder / "predictions.npz") as saved:
        answers = model.linear(torch.from_numpy(found["test"])).detach().numpy()
        np.testing.assert_allclose(saved["teacher"], answers, atol=1e-4)
    assert made.load_student()(torch.from_numpy(found["test"][:3])).shape == (3, 10)
    assert "the signal of the teacher's layer `pool`" in (made.folder / "export" / "README.md").read_text()
    # The same command again does nothing, the files can be written again, another layer begins with its features.
    run(recipe, out=tmp_path / "run")
    assert set(stages(made.folder).values()) == {"skipped"}
    export(made.folder, ["onnx"])
    planned = plan(loads(FEATURES.replace("pool", "layer3")), out=tmp_path / "run").stages
    reused = {stage.name: stage.reused for stage in planned}
    assert not reused["features"]
    assert not reused["student alone, seed 0"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (FEATURES.replace("pool", "layer1.0"), None),
        (FEATURES.replace("on_features: pool", "on_features: pol"), "Did you mean 'pool'"),
        (FEATURES.replace("train: digits", "train: digits, augment: {crop: 1}"), "drop data.augment"),
        (FEATURES.replace(TEACHER, "teacher: null\n"), "needs one teacher"),
        (FEATURES + "back_to_teacher: {}\n", "drop student.on_features"),
        (AVERAGE + "back_to_teacher: {}\n", "needs one teacher"),
        (AVERAGE + "generations: 2\n", "drop chain and generations"),
        (AVERAGE.replace("0.9}", "0.9, model: cnn}"), "stands alone"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, recipe, message):
    if message is None:
        plan(loads(recipe), out=tmp_path / "run")
        return
    with pytest.raises(PotstillError, match=message):
        plan(loads(recipe), out=tmp_path / "run")


def noisy_digits() -> tuple[dict[str, object], set[int]]:
    """The digits with one label in ten changed, and the ids of those samples."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)[:, None]
    generator = np.random.default_rng(0)
    ids = np.arange(len(images))
    flipped = generator.choice(ids, len(ids) // 10, replace=False)
    labels = found.target.copy()
    labels[flipped] = (labels[flipped] + generator.integers(1, 10, len(flipped))) % 10
    return {"inputs": images, "targets": labels, "ids": ids}, set(flipped.tolist())


def test_doubtful_labels_are_mostly_wrong_ones_and_the_teacher_is_compared_with_itself(tmp_path):
    data, flipped = noisy_digits()
    text = REST.replace("train: digits", "train: python-object").replace("epochs: 2", "epochs: 6")
    recipe = loads(
        text + TEACHER.replace("epochs: 3", "epochs: 8") + SMALL + "back_to_teacher: {epochs: 1, confidence: 0.3}\n"
    )
    made = run(recipe, out=tmp_path / "back", given=Given(data=data))
    with (made.folder / "back" / "doubtful_labels.csv").open() as file:
        listed = [int(row["id"]) for row in csv.DictReader(file)]
    result = read_json(made.folder / "back" / "result.json")
    assert result["doubtful_labels"] == len(listed) > 50
    # One in ten is wrong; of those that are listed at least eight in ten.
    assert np.mean([number in flipped for number in listed]) > 0.8
    assert set(result["scores"]) == {"before", "helped", "by-labels"}
    gain = result["differences"]["helped-before"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(result["scores"]["helped"] - result["scores"]["before"])
    with np.load(made.folder / "predictions.npz") as saved:
        right = (saved["teacher"].argmax(1) == saved["targets"]).mean()
    assert result["scores"]["before"] == pytest.approx(right)
    run(recipe, out=tmp_path / "back", given=Given(data=data))
    assert set(stages(made.folder).values()) == {"skipped"}


def test_nested_widths_are_trained_together_measured_each_and_deployed_whole(tmp_path):
    made = run(loads(NESTED.replace("formats: []", "formats: [onnx]")), out=tmp_path / "nested")
    models = made.evaluation.models
    assert list(models) == ["alone", "distilled", "width 0.5"]
    plain = {"in_channels": 1, "num_classes": 10}
    for name, width in (("distilled", 8), ("alone", 8), ("width 0.5", 4)):
        assert models[name].parameters == sum(p.numel() for p in build("cnn", {**plain, "width": width}).parameters())
    assert made.load_student()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


def test_an_average_of_the_student_teaches_it_and_nothing_is_recorded(tmp_path):
    made = run(loads(AVERAGE), out=tmp_path / "average")
    assert list(made.evaluation.models) == ["alone", "distilled"]
    assert set(stages(made.folder)) == {
        "student alone, seed 0", "student distilled, seed 0", "predictions", "export", "evaluation",
    }  # fmt: skip
    again = {
        stage.name: stage.reused for stage in plan(loads(AVERAGE.replace("0.9}", "0.95}")), out=made.folder).stages
    }
    assert again["student alone, seed 0"]
    assert not again["student distilled, seed 0"]
    run(loads(AVERAGE), out=tmp_path / "average")
    assert set(stages(made.folder).values()) == {"skipped"}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8)[:, None], found.target


SETTINGS = {
    "training": {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1},
    "evaluation": {"latency": False},
    "export": {"formats": []},
}


def small(seed: int) -> nn.Module:
    return build("cnn", {"width": 4, "in_channels": 1}, seed=seed)


def test_distill_takes_no_teacher_or_several(tmp_path):
    alone = potstill.distill(None, small(0), arrays(), objective="alone", out=tmp_path / "none", **SETTINGS)
    assert list(alone.evaluation.models) == ["alone", "distilled"]
    section = {"model": "mlp", "args": {"hidden": [16]}, "train": {"epochs": 1}}
    several = potstill.distill(
        [small(1), small(2), section],
        small(0),
        arrays(),
        out=tmp_path / "several",
        merge={"weighting": "confidence"},
        teacher_preprocess={"mean": [0.3], "std": [0.35]},
        **SETTINGS,
    )
    assert list(several.evaluation.models)[3:] == ["teacher 1", "teacher 2", "teacher 3"]
    members = several.folder.joinpath("recipe.yaml").read_text()
    assert members.count("python-object") == 4  # the data, two teachers, the student


def test_distill_puts_a_head_on_the_features_of_a_module(tmp_path):
    head = {"model": "mlp", "args": {"hidden": []}, "on_features": "pool"}
    made = potstill.distill(small(1), head, arrays(), out=tmp_path / "head", **SETTINGS)
    assert made.evaluation.models["distilled"].parameters == 16 * 10 + 10
    assert "teacher" not in stages(made.folder)


def test_distill_refuses_settings_of_a_teacher_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="teacher_preprocess and without a teacher"):
        potstill.distill(
            None,
            small(0),
            arrays(),
            objective="alone",
            out=tmp_path / "x",
            teacher_preprocess={"mean": [0.3], "std": [1]},
        )
