"""Several labels per sample, from the data to the exported file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

import potstill
from potstill.core.errors import PotstillError, PotstillWarning, TeacherError
from potstill.pipeline import distill
from potstill.pipeline.any_teacher import refuse_other_answers
from potstill.recipe.schema import Recipe, Teacher
from potstill.recipe.yaml import loads
from potstill.teachers import MergedTeacher

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(500, 6)).astype(np.float32)
LABELS = (X[:, :3] + 0.4 * RANDOM.normal(size=(500, 3)) > (0.0, 0.8, -0.5)).astype(float)
HIDDEN = RANDOM.random(LABELS.shape) < (0.3, 0.3, 0.0)
GIVEN = np.where(HIDDEN, np.nan, LABELS)
QUICK = {"epochs": 6, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.01}
SETTINGS: dict[str, Any] = {
    "task": "multilabel",
    "training": QUICK,
    "evaluation": {"latency": False},
    "export": {"formats": ["onnx"], "max_accuracy_drop": 0.5},
}
STUDENT = {"model": "mlp", "args": {"hidden": [8]}}
TEACHER = {"model": "mlp", "args": {"hidden": [32]}, "train": {**QUICK, "epochs": 12}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("several")
    run = distill(TEACHER, STUDENT, {"inputs": X, "targets": GIVEN}, out=out, **SETTINGS)
    with np.load(out / "predictions.npz") as saved:
        predictions = {name: saved[name] for name in saved.files}
    return SimpleNamespace(
        out=out,
        run=run,
        found=predictions,
        evaluation=json.loads((out / "evaluation.json").read_text()),
        kept=json.loads((out / "calibration.json").read_text()),
    )


def test_scores_of_the_test_split_are_scikit_learns(made: SimpleNamespace) -> None:
    for name, outputs in (("teacher", made.found["teacher"]), ("distilled", made.found["distilled"][0])):
        known = ~np.isnan(made.found["targets"])
        columns = [(outputs[k, c], made.found["targets"][k, c], c) for c, k in enumerate(known.T)]
        scores = made.evaluation["models"][name]["metrics"]
        precision = [average_precision_score(labels, logits) for logits, labels, _ in columns]
        assert scores["map"] == pytest.approx(np.mean(precision))
        limits = made.kept[name][0]["thresholds"]
        f1 = [f1_score(labels, expit(logits) >= limits[c]) for logits, labels, c in columns]
        assert scores["macro_f1"] == pytest.approx(np.mean(f1))
        assert made.evaluation["by_class"][name]["f1"] == pytest.approx(f1)
        assert scores["map"] > 0.7
    assert made.evaluation["headline_metric"] == "map"
    assert set(made.evaluation["differences"]["distilled-alone"]) >= {"map", "macro_f1", "micro_f1", "nll"}


def test_the_checkpoint_has_the_best_mean_average_precision(made: SimpleNamespace) -> None:
    folder = made.out / "seeds/0/distilled"
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    assert result["best_validation"] == max(row["validation_metric"] for row in rows)
    assert all(0.3 < row["validation_metric"] <= 1 for row in rows)


def test_the_file_answers_and_decides_as_the_student(made: SimpleNamespace) -> None:
    session = onnxruntime.InferenceSession(made.out / "export/student.onnx")
    logits, chances = session.run(None, {"input": X[:20]})
    np.testing.assert_allclose(chances, expit(logits), atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    student = potstill.load_student(made.out / "export")
    assert json.loads(metadata["labels"]) == list(student.classes) == ["0", "1", "2"]
    thresholds = made.kept["distilled"][0]["thresholds"]
    assert json.loads(metadata["thresholds"]) == list(student.thresholds) == thresholds
    np.testing.assert_allclose(student(torch.from_numpy(X[:20])).detach(), logits, atol=1e-5)
    decided = student.decided(torch.from_numpy(X[:20])).numpy()
    np.testing.assert_array_equal(decided, chances >= np.array(thresholds, dtype=np.float32))


def test_the_report_has_a_table_of_the_classes(made: SimpleNamespace) -> None:
    page = (made.out / "report.html").read_text()
    assert "Each class" in page
    assert "average precision" in page
    assert "Confused classes" not in page
    assert "Mean average precision" in page


def test_what_is_unknown_is_not_learned(tmp_path: Path) -> None:
    """Whatever lies in unknown cells, the weights are the same: they are NaN, and nothing else can be read there."""
    always = np.where(HIDDEN, np.nan, 1.0)
    always[:, 2] = LABELS[:, 2]
    data = {"inputs": X, "targets": always}
    with pytest.warns(PotstillWarning):
        distill(TEACHER, STUDENT, data, out=tmp_path, **SETTINGS | {"export": {"formats": []}})
    with np.load(tmp_path / "predictions.npz") as saved:
        # All known cells of the first two are yes: nothing speaks for a no.
        assert (saved["alone"][0][:, :2] > 0).all()


def test_a_run_by_f1_with_several_teachers_and_recorded_logits(tmp_path: Path) -> None:
    teacher = {"members": [TEACHER, {**TEACHER, "args": {"hidden": [16]}}]}
    changes = {"metric": "macro_f1", "export": {"formats": []}}
    distill(teacher, STUDENT, {"inputs": X, "targets": GIVEN}, out=tmp_path, **SETTINGS | changes)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["headline_metric"] == "macro_f1"
    assert "macro F1" in " ".join(evaluation["verdict"]["sentences"])
    assert evaluation["models"]["teacher"]["metrics"]["macro_f1"] > 0.7


def test_boosted_trees_answer_with_sigmoids_too(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    student = {"model": "lightgbm", "args": {"rounds": 5}}
    changes = {name: value for name, value in SETTINGS.items() if name != "training"}
    distill(TEACHER, student, {"inputs": X, "targets": GIVEN}, out=tmp_path, **changes)
    session = onnxruntime.InferenceSession(tmp_path / "export/student.onnx")
    logits, chances = session.run(None, {"input": X[:20]})
    np.testing.assert_allclose(chances, expit(logits), atol=1e-6)


def test_probabilities_of_yes_are_mixed() -> None:
    first, other = (nn.Linear(6, 3) for _ in range(2))
    batch = potstill.Batch(torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.from_numpy(X[:5]))
    merged = MergedTeacher([first, other], exclusive=False, weights=[1.0, 3.0], num_classes=3)
    with torch.no_grad():
        expected = 0.25 * first(batch.tensor).sigmoid() + 0.75 * other(batch.tensor).sigmoid()
    torch.testing.assert_close(merged.teaching()(batch)["logits"].sigmoid(), expected)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"objective": "dkd"}, "dkd.*task is multilabel"),
        ({"objective": [{"loss": "cross_entropy"}]}, "Use binary_cross_entropy instead"),
        ({"objective": [{"loss": "forward_kl"}, {"loss": "binary_cross_entropy"}]}, "Use bernoulli_kl instead"),
        ({"training": {**QUICK, "label_smoothing": 0.1}}, "training.label_smoothing is for samples of one class"),
        ({"metric": "accuracy"}, "accuracy is no metric of a multilabel: use one of map"),
    ],
)
def test_what_needs_one_class_a_sample_is_refused_before_training(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    settings = {"teacher": TEACHER, **SETTINGS, **change}
    teacher = settings.pop("teacher")
    with pytest.raises((PotstillError, ValueError), match=text):
        distill(teacher, STUDENT, {"inputs": X, "targets": GIVEN}, out=tmp_path, **settings)
    assert not (tmp_path / "teacher").exists()


def test_answers_that_are_no_logits_are_refused() -> None:
    refuse_other_answers(Teacher(model="mlp", weights="w"), "multilabel", "teacher")
    refuse_other_answers(Teacher(file="big.onnx", answers="logits"), "multilabel", "teacher")
    refuse_other_answers(Teacher(file="big.onnx", answers="probabilities"), "classification", "teacher")
    for section in (Teacher(file="big.onnx"), Teacher(model="mlp", weights="w", answers="probabilities")):
        with pytest.raises(TeacherError, match="write 'answers: logits'"):
            refuse_other_answers(section, "multilabel", "teacher")


def test_recipes_that_do_not_fit_are_refused() -> None:
    data = "data: {train: x.csv, target: [a, b]}"
    text = f"task: multilabel\n{data}\nteacher: {{model: mlp, weights: w}}\nstudent: {{model: mlp}}\n"
    assert isinstance(loads(text), Recipe)
    for extra, key in (
        ("data: {train: x, labels: 9}", "data.labels"),
        ("data: {train: x, augment: {mixup: 1}}", "mixup"),
    ):
        with pytest.raises(PotstillError, match=key):
            loads(text.replace(data, extra))
