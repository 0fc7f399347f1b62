"""Several teachers, and models between teacher and student, on the bundled digits."""

from __future__ import annotations

import pytest

from potstill.core.errors import PotstillError
from potstill.core.files import read_json
from potstill.pipeline import plan, run
from potstill.recipe.yaml import loads

MANY = """
data: {train: digits}
teacher:
  members:
    - {model: cnn, args: {width: 8}, train: {epochs: 3, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}
    - {model: mlp, args: {hidden: [32]}, train: {epochs: 6, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}
  merge: {weighting: WEIGHTING}
student: {model: cnn, args: {width: 4}}
training: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""
PARTIAL = """
data: {train: digits}
teacher:
  members:
    - {model: cnn, args: {width: 12}, train: {epochs: 10, batch_size: 32, optimizer: sgd, learning_rate: 0.1},
       classes: ["0", "1", "2", "3", "4", "5"]}
    - {model: cnn, args: {width: 12}, train: {epochs: 10, batch_size: 32, optimizer: sgd, learning_rate: 0.1},
       classes: ["9", "8", "7", "6", "5", "4"]}
student: {model: cnn, args: {width: 6}}
objective: label_free
training: {epochs: 20, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""
CHAIN = """
data: {train: digits}
teacher: {model: cnn, args: {width: 8}, train: {epochs: 3, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}
chain:
  - {model: cnn, args: {width: 6}, training: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}
student: {model: cnn, args: {width: 4}}
generations: 2
training: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""


@pytest.mark.parametrize("weighting", ["fixed", "confidence", "attention"])
def test_a_merged_teacher_is_recorded_measured_and_compared_with_its_members(tmp_path, weighting):
    recipe = loads(MANY.replace("WEIGHTING", weighting))
    finished = run(recipe, out=tmp_path / "many")
    models = finished.evaluation.models
    assert list(models) == ["teacher", "alone", "distilled", "teacher 1", "teacher 2"]
    members = [models[name].metrics["accuracy"] for name in ("teacher 1", "teacher 2")]
    assert models["teacher"].metrics["accuracy"] >= max(members) - 0.02
    assert models["teacher"].parameters == sum(models[name].parameters for name in ("teacher 1", "teacher 2"))
    best = max(("teacher 1", "teacher 2"), key=lambda name: models[name].metrics["accuracy"])
    assert f"teacher-{best}" in finished.evaluation.differences
    assert any("The merged teacher is" in sentence for sentence in finished.evaluation.verdict.sentences)
    page = finished.report.read_text()
    assert "Teacher 2" in page
    run(recipe, out=tmp_path / "many")
    stages = read_json(tmp_path / "many" / "run.json")["stages"]
    assert {entry["status"] for entry in stages.values()} == {"skipped"}


def test_another_way_to_merge_keeps_the_members_and_records_again(tmp_path):
    run(loads(MANY.replace("WEIGHTING", "fixed")), out=tmp_path / "many")
    planned = plan(loads(MANY.replace("WEIGHTING", "confidence")), out=tmp_path / "many")
    reused = {stage.name: stage.reused for stage in planned.stages}
    assert reused["teacher 1"]
    assert reused["teacher 2"]
    assert reused["student alone, seed 0"]
    assert not reused["store"]
    assert not reused["student distilled, seed 0"]


def test_teachers_that_know_six_classes_each_teach_all_ten_without_labels(tmp_path):
    found = run(loads(PARTIAL), out=tmp_path / "partial").evaluation.models
    assert list(found) == ["teacher", "alone", "distilled"]
    assert found["teacher"].metrics["accuracy"] > 0.8
    assert found["distilled"].metrics["accuracy"] > 0.75


def test_a_class_that_no_teacher_knows_is_refused_in_the_plan(tmp_path):
    with pytest.raises(PotstillError, match=r"No teacher knows the classes \[6\]"):
        plan(loads(PARTIAL.replace('"7", "6", "5"', '"7", "5"')), out=tmp_path / "partial")
    with pytest.raises(PotstillError, match=r"members\[1\].classes names \['ten'\]"):
        plan(loads(PARTIAL.replace('"6", "5"', '"ten", "5"')), out=tmp_path / "partial")


def test_assistants_and_generations_each_teach_the_next(tmp_path):
    recipe = loads(CHAIN)
    finished = run(recipe, out=tmp_path / "chain")
    assert list(finished.evaluation.models)[3:] == ["assistant 1", "generation 1"]
    stages = read_json(tmp_path / "chain" / "run.json")["stages"]
    order = list(stages)
    assert order[: order.index("student alone, seed 0")] == [
        "teacher", "store", "assistant 1", "store of assistant 1", "generation 1", "store of generation 1",
    ]  # fmt: skip
    run(recipe, out=tmp_path / "chain")
    again = read_json(tmp_path / "chain" / "run.json")["stages"]
    assert {entry["status"] for entry in again.values()} == {"skipped"}
    # A change of the assistant is a change of everything after it, and of nothing before.
    planned = plan(loads(CHAIN.replace("width: 6", "width: 5")), out=tmp_path / "chain")
    reused = {stage.name: stage.reused for stage in planned.stages}
    assert reused["teacher"]
    assert reused["student alone, seed 0"]
    assert not reused["assistant 1"]
    assert not reused["generation 1"]
    assert not reused["student distilled, seed 0"]


def test_an_assistant_that_does_not_fit_is_refused_in_the_plan(tmp_path):
    with pytest.raises(PotstillError, match="assistant 1: The student answers each sample with 7 numbers"):
        plan(loads(CHAIN.replace("width: 6", "num_classes: 7")), out=tmp_path / "chain")
