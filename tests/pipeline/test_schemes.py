"""Runs without one separate, fitting teacher: none at all, exits, peers, other classes. On the bundled digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from potstill.core import fingerprint
from potstill.core.errors import PotstillError
from potstill.core.files import read_json
from potstill.models import build, save_weights
from potstill.pipeline import Given, plan, run
from potstill.pipeline.build import build_job
from potstill.pipeline.making import Making
from potstill.pipeline.orders import main_job
from potstill.recipe.yaml import loads
from potstill.training import loop

REST = """
data: {train: digits}
training: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1, checkpoint_every: 5}
evaluation: {latency: false}
export: {formats: []}
"""
TEACHER = (
    "teacher: {model: cnn, args: {width: 8}, train: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}\n"
)
SMALL = "student: {model: cnn, args: {width: 4}}\n"
ALONE = f"{REST}{SMALL}teacher: null\nobjective: alone\n"
EXITS = f"""{REST}
teacher: null
student: {{model: cnn, args: {{width: 4}}, exits: [layer1, layer2]}}
objective:
  - {{loss: cross_entropy}}
  - {{loss: cross_entropy, student: exit1.logits}}
  - {{loss: forward_kl, student: exit2.logits, teacher: student.logits, weight: 0.5, options: {{temperature: 2}}}}
"""
PEERS = f"""{REST}{TEACHER}
student: {{model: cnn, args: {{width: 4}}, taps: {{middle: layer2}}}}
peers:
  - {{model: cnn, args: {{width: 6}}, taps: {{middle: layer2}}}}
  - {{model: cnn, args: {{width: 5}}, taps: {{middle: layer3}}}}
mutual: 0.5
objective:
  - {{loss: cross_entropy, weight: 0.5}}
  - {{loss: forward_kl}}
  - {{loss: hint_mse, student: middle, teacher: layer2}}
"""


def statuses(folder: Path) -> set[str]:
    return {entry["status"] for entry in read_json(folder / "run.json")["stages"].values()}


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("weights.safetensors"))
    return {str(file.relative_to(folder)): fingerprint.of_state(load_file(file)) for file in files}


class Killed(BaseException):
    """What a test raises in the place of a signal."""


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    taken, real = [], loop.take_step

    def step(*args, **kwargs):
        taken.append(1)
        if len(taken) > steps:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "take_step", step)


def test_a_run_without_a_teacher_is_planned_run_reported_and_reused(tmp_path):
    planned = plan(loads(ALONE), out=tmp_path / "alone")
    assert [stage.name for stage in planned.stages][:2] == ["student alone, seed 0", "student distilled, seed 0"]
    assert planned.store is None
    assert "teacher" not in planned.models
    made = run(loads(ALONE), out=tmp_path / "alone")
    assert list(made.evaluation.models) == ["alone", "distilled"]
    assert "teacher" not in " ".join(made.evaluation.verdict.sentences).lower()
    json.dumps(made.summary())
    assert "Teacher |" not in (made.folder / "export" / "README.md").read_text()
    assert made.report.stat().st_size > 10_000
    # The same labels, order and weights: an objective without a teacher is the baseline itself.
    assert made.evaluation.differences["distilled-alone"]["accuracy"].value == 0.0
    run(loads(ALONE), out=tmp_path / "alone")
    assert statuses(tmp_path / "alone") == {"skipped"}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (ALONE.replace("alone", "kd"), "reads a teacher, and there is none"),
        (ALONE.replace("objective: alone", "objective: fitnets"), "there is no teacher"),
        (ALONE + "mutual: 1.0\n", "mutual"),
        (ALONE + "peers: [{model: cnn, preprocess: {mean: [0.5], std: [0.5]}}]\n", "preprocess"),
        (EXITS.replace("layer2]", "layr2]"), "layer2"),
        (EXITS.replace("exit2.logits", "exit3.logits"), "exit3"),
    ],
)
def test_what_cannot_work_without_a_teacher_is_refused_in_the_plan(tmp_path, recipe, message):
    with pytest.raises(PotstillError, match=message):
        plan(loads(recipe), out=tmp_path / "refused")


def test_a_student_with_exits_is_deployed_and_exported_without_them(tmp_path):
    recipe = EXITS.replace("formats: []", "formats: [onnx]")
    made = run(loads(recipe), out=tmp_path / "exits")
    learned = load_file(made.folder / "seeds" / "0" / "distilled" / "weights.safetensors")
    assert any(name.startswith("exits.") for name in learned)
    exported = load_file(made.exported["safetensors"])
    assert exported
    assert not any("exits" in name for name in exported)
    assert made.exported["onnx"].is_file()
    models = made.evaluation.models
    assert models["distilled"].parameters == models["alone"].parameters
    student = made.load_student()
    assert student(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize("recipe", [EXITS, PEERS], ids=["exits", "peers"])
def test_killed_in_the_middle_of_a_joint_training_the_weights_are_the_same(tmp_path, monkeypatch, recipe):
    run(loads(recipe), out=tmp_path / "whole" / "run")
    steps = 2 * 20 * (2 if "train:" in recipe.replace("train: digits", "") else 1)
    with monkeypatch.context() as patch:
        killed_after(patch, steps + 13)
        with pytest.raises(Killed):
            run(loads(recipe), out=tmp_path / "killed" / "run")
    assert statuses(tmp_path / "killed" / "run") >= {"failed"}
    run(loads(recipe), out=tmp_path / "killed" / "run")
    assert len(weights(tmp_path / "whole" / "run")) >= 2
    assert weights(tmp_path / "killed" / "run") == weights(tmp_path / "whole" / "run")


def test_peers_learn_with_hidden_layers_of_their_own_names_and_are_shown(tmp_path):
    made = run(loads(PEERS), out=tmp_path / "peers")
    assert list(made.evaluation.models) == ["teacher", "alone", "distilled", "peer 1", "peer 2"]
    parts = json.loads((made.folder / "seeds/0/distilled/history.jsonl").read_text().splitlines()[-1])["parts"]
    assert {"peer1.cross_entropy", "peer2.forward_kl", "student from peer1", "peer2 from student"} <= set(parts)
    assert len(parts) == 3 * 3 + 3 * 2
    exported = load_file(made.exported["safetensors"])
    assert not any("peer" in name for name in exported)
    assert "Peer 1" in made.report.read_text()


def test_keys_follow_what_the_students_learn_together():
    def students(text: str):
        made = Making(build_job(loads(text), base=Path()), Path())
        found = {stage.name: stage.key().key for stage in main_job(made)}
        return found["student alone, seed 0"], found["student distilled, seed 0"]

    alone, distilled = students(PEERS)
    for changed in (
        PEERS.replace("mutual: 0.5", "mutual: 0.6"),
        PEERS.replace("width: 5", "width: 7"),
        PEERS.replace("middle: layer3", "middle: layer1"),
    ):
        assert students(changed)[0] == alone
        assert students(changed)[1] != distilled
    alone, distilled = students(EXITS)
    changed = students(EXITS.replace("[layer1, layer2]", "[layer1, layer3]"))
    assert changed[0] == alone
    assert changed[1] != distilled


def test_a_teacher_that_nothing_reads_is_measured_and_not_recorded(tmp_path):
    recipe = f"{REST}{TEACHER}{SMALL}objective: alone\n"
    made = run(loads(recipe), out=tmp_path / "unread")
    assert list(made.evaluation.models) == ["teacher", "alone", "distilled"]
    assert "store" not in read_json(made.folder / "run.json")["stages"]
    assert not (tmp_path / "store").exists()


PARITY = """
teacher:
  model: cnn
  args: {width: 8}
  weights: WEIGHTS
  class_map: {"0": even, "1": odd, "2": even, "3": odd, "4": even, "5": odd, "6": even, "7": odd, "8": even, "9": odd}
  preprocess: {mean: [0.3], std: [0.35]}
"""


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory) -> Path:
    """Weights of a teacher that knows the ten digits."""
    folder = tmp_path_factory.mktemp("ten")
    text = REST.replace("epochs: 2", "epochs: 8") + "teacher: null\nstudent: {model: cnn, args: {width: 8}, "
    made = run(loads(text + "preprocess: {mean: [0.3], std: [0.35]}}\nobjective: alone\n"), out=folder / "run")
    model = build("cnn", {"width": 8, "in_channels": 1}, seed=0)
    model.load_state_dict(load_file(made.folder / "seeds/0/distilled/weights.safetensors"))
    save_weights(model, folder / "digits.safetensors")
    return folder / "digits.safetensors"


def even_and_odd():
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)[:, None]
    return {"inputs": images, "targets": np.array(["even", "odd"])[found.target % 2]}


def test_a_teacher_of_other_classes_answers_in_those_of_the_data(tmp_path, ten_classes):
    text = REST.replace("train: digits", "train: python-object") + PARITY.replace("WEIGHTS", str(ten_classes)) + SMALL
    made = run(loads(text + "objective: label_free\n"), out=tmp_path / "map", given=Given(data=even_and_odd()))
    assert made.evaluation.models["teacher"].metrics["accuracy"] > 0.85
    assert made.evaluation.models["distilled"].metrics["accuracy"] > 0.6
    # Layers are named as in the teacher itself, not in what is around it.
    hidden = "objective:\n  - {loss: cross_entropy}\n  - {loss: hint_mse, on: layer2}\n"
    plan(loads(text + hidden), out=tmp_path / "hidden", given=Given(data=even_and_odd()))
    wrong = text.replace('"9": odd', '"9": prime')
    with pytest.raises(PotstillError, match="'9' is said to stand for 'prime'"):
        plan(loads(wrong), out=tmp_path / "wrong", given=Given(data=even_and_odd()))


def test_a_head_learns_the_projection_and_the_teacher_is_not_measured(tmp_path, ten_classes):
    teacher = PARITY.replace("WEIGHTS", str(ten_classes)).replace(
        "args: {width: 8}", "args: {width: 8, num_classes: 10}"
    )
    teacher = "\n".join(line for line in teacher.splitlines() if "class_map" not in line)
    text = REST.replace("train: digits", "train: python-object") + teacher + "\n" + SMALL
    with pytest.raises(PotstillError, match=r"answers each sample with 10 numbers.*class_map.*head: adapter"):
        plan(loads(text), out=tmp_path / "refused", given=Given(data=even_and_odd()))
    terms = "objective:\n  - {loss: cross_entropy}\n  - {loss: logit_mse, head: adapter, weight: 0.5}\n"
    made = run(loads(text + terms), out=tmp_path / "head", given=Given(data=even_and_odd()))
    assert list(made.evaluation.models) == ["alone", "distilled"]
    assert made.evaluation.models["distilled"].metrics["accuracy"] > 0.6
