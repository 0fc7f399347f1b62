"""The whole main job on bundled data: what is written, what is reused, what changes when the recipe changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import potstill
from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.files import read_json
from potstill.data import load
from potstill.models import build
from potstill.pipeline import Given, Run, distill, evaluate, export, find_runs, plan, run
from potstill.recipe.yaml import loads, read
from potstill.teachers import MergedTeacher
from potstill.teachers.foreign import ArrayModel, Opened, Reading

from .conftest import TINY


def stages(folder: Path) -> dict[str, str]:
    return {name: entry["status"] for name, entry in read_json(folder / "run.json")["stages"].items()}


def test_every_file_is_there_and_says_what_it_should(finished: Run) -> None:
    folder = finished.folder
    expected = """
        run.json recipe.yaml data.json evaluation.json predictions.npz disagreements.npz report.html
        teacher/weights.safetensors seeds/0/alone/history.jsonl seeds/1/distilled/weights.safetensors
        export/student.onnx export/student-int8.onnx export/student.safetensors export/README.md
    """
    assert [name for name in expected.split() if not (folder / name).is_file()] == []
    evaluation = finished.evaluation
    assert set(evaluation.models) == {"teacher", "alone", "distilled"}
    assert evaluation.num_examples == 359
    assert evaluation.verdict.fits_budget is True
    assert [entry["ok"] for entry in read_json(folder / "export" / "parity.json")["files"]] == [True, True]
    assert set(stages(folder).values()) == {"done"}
    assert len(stages(folder)) == 2 + 4 + 3


def test_accuracy_is_what_the_kept_predictions_say(finished: Run) -> None:
    with np.load(finished.folder / "predictions.npz") as saved:
        right = (saved["distilled"].argmax(axis=2) == saved["targets"]).mean()
        teacher = (saved["teacher"].argmax(axis=1) == saved["targets"]).mean()
    scores = finished.evaluation.models
    assert scores["distilled"].metrics["accuracy"] == pytest.approx(right, abs=1e-12)
    assert scores["teacher"].metrics["accuracy"] == pytest.approx(teacher, abs=1e-12)
    assert teacher > 0.5


def test_the_exported_file_and_the_loaded_student_answer_like_the_predictions(finished: Run) -> None:
    data = load("digits")
    with np.load(finished.folder / "predictions.npz") as saved:
        seed = read_json(finished.folder / "export" / "parity.json")["seed"]
        expected = saved["distilled"][saved["seeds"].tolist().index(seed)]
    inputs = data.test.fetch(np.arange(len(data.test)))
    assert inputs.dtype == torch.uint8
    file = potstill.OnnxModel(finished.exported["onnx"])(inputs.numpy())
    with torch.inference_mode():
        student = finished.load_student()(inputs).numpy()
    np.testing.assert_allclose(file, expected, atol=1e-4 * expected.std())
    np.testing.assert_allclose(student, expected, atol=1e-4 * expected.std())


def test_the_same_command_again_reuses_everything(finished: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.safetensors")}
    assert len(before) > 5
    again = run(loads(TINY), out=finished.folder)
    assert set(stages(again.folder).values()) == {"skipped"}
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.safetensors")}


def test_the_resolved_recipe_describes_the_same_run(finished: Run) -> None:
    resolved = read(finished.folder / "recipe.yaml")
    assert resolved.student.preprocess.mean is not None
    assert resolved.store.views == 2
    assert run(resolved, out=finished.folder).folder == finished.folder
    assert set(stages(finished.folder).values()) == {"skipped"}


def test_plan_knows_what_will_be_reused(finished: Run) -> None:
    planned = plan(loads(TINY), out=finished.folder)
    reused = {stage.name: stage.reused for stage in planned.stages}
    assert reused.pop("report") is False
    assert set(reused.values()) == {True}
    changed = plan(loads(TINY.replace("width: 4", "width: 5")), out=finished.folder)
    reused = {stage.name: stage.reused for stage in changed.stages}
    assert reused["teacher"]
    assert reused["store"]
    assert not reused["student alone, seed 0"]
    assert planned.store is not None
    # 1,294 training samples, 2 views, 10 logits of 2 bytes.
    assert planned.store["bytes"] == planned.data["train"] * 2 * 10 * 2
    # Three 3x3 convolutions without bias, their batch norms, and a linear layer, at width 4: 4, 8 and 16 channels.
    by_hand = 9 * (1 * 4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 16 * 10 + 10
    assert planned.models["student"]["parameters"] == by_hand
    assert json.loads(json.dumps(planned.to_json()))["folder"] == str(finished.folder)


def test_python_and_recipe_make_the_same_weights(finished: Run, tmp_path: Path) -> None:
    made = distill(
        {
            "model": "cnn",
            "args": {"width": 8},
            "train": {"epochs": 3, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1, "precision": "float32"},
        },
        {"model": "cnn", "args": {"width": 4}},
        "digits",
        budget={"megabytes": 1},
        out=tmp_path / "python",
        seeds=2,
        augment={"crop": 1},
        training={
            "epochs": 3,
            "batch_size": 64,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "precision": "float32",
            "checkpoint_every": 7,
        },
        store={"views": 2},
        export={"formats": []},
        evaluation={"latency": False},
    )
    for part in ("teacher", "seeds/0/alone", "seeds/1/distilled"):
        ours, theirs = (load_file(run.folder / part / "weights.safetensors") for run in (made, finished))
        assert fingerprint.of_state(ours) == fingerprint.of_state(theirs), part


def test_the_teacher_is_timed_in_the_student_files_runtime_too(finished: Run) -> None:
    teacher, student = (finished.evaluation.models[name] for name in ("teacher", "distilled"))
    assert (teacher.runtime, student.runtime) == ("PyTorch", "PyTorch")
    assert teacher.onnx_latency_ms is not None
    assert set(teacher.onnx_latency_ms) == {"1", "32"}
    assert student.onnx_latency_ms is None
    opened = Opened("t.skops", "0" * 64, 10, ask=lambda inputs: inputs, runtime="scikit-learn")
    foreign = ArrayModel(opened, Reading("values", 1))
    assert MergedTeacher([foreign, nn.Linear(1, 1)], regression=True).facts.runtime == "scikit-learn"


def test_python_objects_all_the_way(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(400, 6)).astype(np.float32)
    targets = (inputs[:, 0] + inputs[:, 1] > 0).astype(np.int64)
    teacher = build("mlp", {"num_classes": 2, "in_features": 6, "hidden": [16]})
    teacher.train()
    before = fingerprint.of_weights(teacher)
    student = build("mlp", {"num_classes": 2, "in_features": 6, "hidden": [2]})
    made = distill(
        teacher,
        student,
        (inputs, targets),
        seeds=2,
        out=tmp_path / "objects",
        training={"epochs": 2, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.1},
        export={"min_agreement": 0.0, "max_accuracy_drop": 0.9},
    )
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert fingerprint.of_weights(teacher) == before
    with pytest.raises(UsageError, match="Python object"):
        made.load_student()
    loaded = made.load_student(build("mlp", {"num_classes": 2, "in_features": 6, "hidden": [2]}))
    assert loaded(torch.from_numpy(inputs[:3])).shape == (3, 2)
    with pytest.raises(UsageError, match="Python objects"):
        export(made.folder, ["onnx"])


def test_evaluate_and_export_again(finished: Run) -> None:
    result = evaluate(finished.folder)
    assert result.models["distilled"].metrics == finished.evaluation.models["distilled"].metrics
    files = export(finished.folder, ["onnx"])
    assert set(files) == {"safetensors", "onnx"}
    assert not (finished.folder / "export" / "student-int8.onnx").exists()
    assert set(export(finished.folder, ["onnx", "onnx-int8"])) == {"safetensors", "onnx", "onnx-int8"}


def test_runs_are_listed_with_their_verdict(finished: Run) -> None:
    rows = find_runs(finished.folder.parent)
    assert len(rows) == 1
    assert rows[0]["status"] == "finished"
    assert rows[0]["metric"] == "accuracy"
    assert rows[0]["distilled"] == finished.evaluation.models["distilled"].metrics["accuracy"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with an untrained student and one exported file."""
    recipe = """
data: {train: digits}
teacher: {model: mlp, args: {hidden: [8]}, train: {epochs: 1}}
student: {model: mlp, args: {hidden: [6]}}
training: {epochs: 1}
evaluation: {latency: false}
export: {formats: [onnx]}
"""
    return run(loads(recipe), out=tmp_path_factory.mktemp("small") / "run")


def test_a_refused_file_leaves_the_earlier_one_and_is_told_after_everything_else_is_written(small: Run) -> None:
    file, before = small.exported["onnx"], small.exported["onnx"].read_bytes()
    strict = read(small.folder / "recipe.yaml")
    strict = strict.model_copy(update={"export": strict.export.model_copy(update={"max_difference": 1e-12})})
    again = run(strict, out=small.folder)
    assert file.read_bytes() == before
    assert "onnx" not in again.exported
    assert "spread, more than 1e-12" in again.refused["onnx"][0]
    assert re.match(r"student\.onnx was refused: .*spread.* The earlier file is still there\.", again.refused_by_name)
    assert read_json(small.folder / "run.json")["finished"]
    assert sorted(path.name for path in (small.folder / "export").iterdir()) == [
        *("README.md", "parity.json", "student.json", "student.onnx", "student.safetensors")
    ]
    assert (small.folder / "report.html").stat().st_mtime_ns > file.stat().st_mtime_ns


def test_weights_that_were_changed_are_not_exported(small: Run) -> None:
    weights = small.folder / "seeds/0/distilled/weights.safetensors"
    good = weights.read_bytes()
    held = {name: value * -1 for name, value in load_file(weights).items()}
    before = {path: path.read_bytes() for path in (small.folder / "export").iterdir()}
    save_file(held, weights)
    try:
        with pytest.raises(PotstillError, match=r"weights.safetensors is damaged: it is not what was written"):
            export(small.folder)
    finally:
        weights.write_bytes(good)
    assert before == {path: path.read_bytes() for path in (small.folder / "export").iterdir()}
    assert not list(small.folder.glob(".export*"))


def test_a_store_of_another_teacher_is_refused(tmp_path: Path) -> None:
    recipe = TINY.replace("seeds: 2", "seeds: 1").replace("epochs: 3", "epochs: 1")
    recipe = recipe.replace("views: 2", f"views: 2, path: {tmp_path / 'mine'}")
    first = loads(recipe.replace("export: {", "export: {formats: [], "))
    run(first, out=tmp_path / "first")
    other = first.model_copy(update={"teacher": first.teacher.model_copy(update={"args": {"width": 9}})})
    with pytest.raises(TeacherError, match=r"teacher weights: recorded \w+…, now \w+…"):
        run(other, out=tmp_path / "second")


def test_a_second_process_on_the_folder_is_refused(finished: Run) -> None:
    from potstill.pipeline.folder import RunFolder

    with RunFolder(finished.folder).locked(), pytest.raises(PotstillError, match="Another process"):
        run(loads(TINY), out=finished.folder)


def test_a_hidden_layer_is_taught_through_an_adapter_that_is_not_exported(tmp_path: Path) -> None:
    recipe = TINY.replace("seeds: 2", "seeds: 1").replace("epochs: 3", "epochs: 1") + (
        "objective:\n  - {loss: cross_entropy, weight: 0.1}\n  - {loss: hint_mse, weight: 1, on: layer2}\n"
    )
    made = run(loads(recipe), out=tmp_path / "hidden")
    manifest = read_json(next((tmp_path / "store").glob("*/manifest.json")))
    assert manifest["signals"]["layer2"]["shape"][0] == 2 * 8
    history = [json.loads(line) for line in (made.folder / "seeds/0/distilled/history.jsonl").read_text().splitlines()]
    assert history[0]["parts"]["hint_mse:layer2"] > 0
    assert not any("term" in name for name in load_file(made.exported["safetensors"]))


def test_stored_and_live_teachers_train_the_same_student(tmp_path: Path) -> None:
    recipe = TINY.replace("seeds: 2", "seeds: 1").replace("epochs: 3", "epochs: 2")
    recipe = recipe.replace("augment: {crop: 1}", "split: {test: 0.2}").replace("views: 2", "dtype: float32")
    recipe = recipe.replace("export: {", "export: {formats: [], ")
    stored = run(loads(recipe), out=tmp_path / "stored")
    live = run(loads(recipe.replace("teacher:\n", "teacher:\n  live: true\n")), out=tmp_path / "live")
    assert "store" not in stages(live.folder)
    ours, theirs = (load_file(made.folder / "seeds/0/distilled/weights.safetensors") for made in (stored, live))
    assert ours.keys() == theirs.keys()
    # The teacher is recorded in other batches than it answers live, so its logits differ in the last bit or two.
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)


def test_a_given_teacher_must_fit_the_classes(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="7 numbers, but the data has 10 classes"):
        run(loads(TINY), out=tmp_path / "x", given=Given(teacher=build("cnn", {"num_classes": 7, "in_channels": 1})))
    with pytest.raises(PotstillError, match=r"7 numbers, but the data has 10 classes.*num_classes: 10"):
        run(loads(TINY.replace("width: 4", "width: 4, num_classes: 7")), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
