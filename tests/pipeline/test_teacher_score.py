"""What a finished teacher is worth is said before anything is trained; what nobody may learn from is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from potstill.core.errors import PotstillWarning, TeacherError, UsageError
from potstill.core.files import read_json
from potstill.pipeline import Run, distill, plan, run
from potstill.pipeline.any_teacher import _questioned
from potstill.pipeline.build import IN_MEMORY, Given
from potstill.pipeline.teacher_score import FILE
from potstill.recipe.yaml import loads
from potstill.teachers.foreign import Opened

FAST = {
    "training": {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1},
    "evaluation": {"latency": False},
    "export": {"formats": []},
}
MLP = {"model": "mlp", "args": {"hidden": [4]}}
LABELS = np.arange(300) % 3
INPUTS = (np.random.default_rng(0).normal(size=(300, 4)) * 0.3 + np.eye(4)[LABELS] * 4).astype("float32")
NAMES = np.array(["ant", "bee", "cat"])[LABELS]


class Teacher(nn.Module):
    """Perfect where its classes are in order; counts the samples that it was asked about."""

    def __init__(self, order=(0, 1, 2), noise: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.noise, self.asked = noise, 0
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(4)[list(order)] * 2)

    def forward(self, inputs):
        self.asked += len(inputs)
        logits = self.layer(inputs)
        if self.noise == "dropout":
            return F.dropout(logits, 0.5)
        if self.noise == "noise":
            return logits + 0.05 * torch.randn_like(logits)
        if self.noise == "batch":
            return logits - logits.mean(0)
        if self.noise == "first":
            return logits + inputs[:1, :1]
        if self.noise == "size":
            return logits + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(logits)))
        if self.noise == "rounding":
            return logits * (1 + 1e-6 * torch.rand_like(logits))
        return logits

    def answer(self, batch):
        """Answer something else: a method of this name means nothing here."""
        return {"logits": -self.layer(batch.inputs)}


def planned(teacher: nn.Module, labels: object = NAMES, section: str = "", data: str = "", **given: object):
    text = f"data: {{train: {IN_MEMORY}{data}}}\nteacher: {{model: {IN_MEMORY}{section}}}\nstudent: {json.dumps(MLP)}"
    return plan(loads(text), out="nowhere", given=Given(teacher=teacher, data=(INPUTS, labels), **given))


def test_a_teacher_in_another_order_stops_plan_and_distill_and_the_order_is_named(tmp_path: Path) -> None:
    wrong = Teacher((1, 2, 0))
    line = r"in the order bee, cat, ant .*'data.classes: \[\"bee\", \"cat\", \"ant\"\]'"
    with pytest.raises(TeacherError, match=line):
        planned(wrong)
    with (
        pytest.raises(TeacherError, match=line),
    ):
        distill(wrong, MLP, (INPUTS, NAMES), out=tmp_path / "run", **FAST)
    asked = wrong.asked
    with pytest.raises(TeacherError, match=line):  # and again, without asking 240 samples once more
        distill(wrong, MLP, (INPUTS, NAMES), out=tmp_path / "run", **FAST)
    assert wrong.asked - asked < 240
    assert not (tmp_path / "run" / "seeds").exists()
    right = distill(wrong, MLP, (INPUTS, NAMES), out=tmp_path / "run", classes=["bee", "cat", "ant"], **FAST)
    assert right.evaluation.models["teacher"].metrics["accuracy"] == 1.0
    assert right.warnings == ()


def test_an_order_that_the_user_wrote_is_only_doubted_aloud() -> None:
    told = planned(Teacher((1, 2, 0)), data=", classes: [ant, bee, cat]").warnings
    assert any("in the order bee, cat, ant" in text and "the present order is right" in text for text in told)
    swapped = planned(Teacher((1, 0, 2)), section=", class_map: {ant: ant, bee: bee, cat: cat}").warnings
    assert any("'ant' and 'bee' exchanged" in text for text in swapped)


def test_the_score_is_shown_before_and_kept_and_a_finished_run_asks_no_more(tmp_path: Path) -> None:
    teacher = Teacher()
    before = planned(teacher)
    assert before.teacher == {
        "metric": "accuracy",
        "value": 1.0,
        "samples": 30,
        "split": "validation",
        "sentence": "The teacher is right on 100.0 % of 30 validation samples.",
    }
    assert before.warnings == ()
    done = distill(teacher, MLP, (INPUTS, NAMES), out=tmp_path / "run", **FAST)
    assert read_json(done.folder / FILE)["value"] == 1.0
    # forward was asked, and not the method called answer
    assert done.evaluation.models["teacher"].metrics["accuracy"] == 1.0
    asked = teacher.asked
    distill(teacher, MLP, (INPUTS, NAMES), out=tmp_path / "run", **FAST)
    assert teacher.asked - asked < 240  # what every job asks to see that it fits, and not the 240 once more


def test_a_teacher_that_is_no_better_than_guessing_is_a_warning_of_the_run(tmp_path: Path) -> None:
    random = np.random.default_rng(1).integers(0, 3, 300)
    with pytest.warns(PotstillWarning, match=r"not clearly better than guessing: on 30 validation samples"):
        done = distill(Teacher(), MLP, (INPUTS, np.array(["ant", "bee", "cat"])[random]), out=tmp_path / "run", **FAST)
    assert any("not clearly better than guessing" in text for text in done.warnings)


def test_the_score_of_a_teacher_that_is_trained_here_follows_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTSTILL_QUIET", raising=False)  # a command with --quiet in this process leaves it behind
    recipe = loads(
        f"data: {{train: {IN_MEMORY}}}\nteacher: {{model: mlp, args: {{hidden: [8]}}, train: {{epochs: 3}}}}\n"
        f"student: {json.dumps(MLP)}\ntraining: {json.dumps(FAST['training'])}\n"
        f"evaluation: {json.dumps(FAST['evaluation'])}\nexport: {{formats: []}}"
    )
    given = Given(data=(INPUTS, NAMES))
    assert plan(recipe, out=tmp_path / "run", given=given).teacher["sentence"].endswith("follows its training.")
    done: Run = run(recipe, out=tmp_path / "run", given=given)
    score = read_json(done.folder / FILE)
    assert score["samples"] == 30
    assert f"The teacher is right on {100 * score['value']:.1f} % of 30 validation" in capsys.readouterr().err


@pytest.mark.parametrize("noise", ["dropout", "noise"])
def test_a_torch_teacher_that_answers_at_random_is_refused(noise: str) -> None:
    with pytest.raises(TeacherError, match=r"the model Teacher answers at random: the same 64 samples asked twice"):
        planned(Teacher(noise=noise))


@pytest.mark.parametrize("noise", ["batch", "first", "size"])
def test_a_torch_teacher_whose_answers_depend_on_the_batch_is_refused(noise: str) -> None:
    with pytest.raises(TeacherError, match=r"Teacher answers the same samples differently"):
        planned(Teacher(noise=noise))


def test_a_torch_teacher_that_rounds_is_taken() -> None:
    assert planned(Teacher(noise="rounding")).teacher["value"] == 1.0


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.05, True)])
def test_a_file_whose_answers_depend_a_little_on_the_batch_is_a_doubt(share: float, told: bool) -> None:
    def ask(inputs: np.ndarray, *_: object) -> np.ndarray:
        return inputs + share * inputs.mean(0)

    opened = Opened(name="m.onnx", digest="0", size_bytes=1, ask=ask)
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) + 1
    raw, doubt = _questioned(opened, inputs, np.arange(64), "teacher")
    assert raw.shape == (64, 3)
    assert bool(re.search(r"m.onnx answers the same samples up to \d\.\d% of their spread differently", doubt)) == told


class Sigmoids(Teacher):
    def forward(self, inputs):
        return super().forward(inputs - 2).sigmoid()


def test_one_sigmoid_a_class_is_not_taken_for_logits() -> None:
    for section in ("", ", answers: logits"):
        with pytest.raises(TeacherError, match=r"one sigmoid a class"):
            planned(Sigmoids(), section=section)
    assert planned(Sigmoids(), section=", answers: logits, answers_checked: true").teacher["value"] == 1.0
    with pytest.raises(UsageError, match=r"answers_checked confirms 'answers: logits'"):
        loads(f"data: {{train: digits}}\nteacher: {{model: cnn, answers_checked: true}}\nstudent: {json.dumps(MLP)}")


class Narrow(Teacher):
    """Real logits, which are from 0 to 1 where the last column is small."""

    def forward(self, inputs):
        logits = super().forward(inputs).sigmoid()
        return torch.where(inputs[:, 3:] > 3, 3 * logits, logits)


def test_logits_that_are_small_in_the_first_samples_are_logits() -> None:
    inputs = INPUTS.copy()
    inputs[:, 3] = np.where(np.arange(300) < 80, 0, 5)
    splits = {"train": slice(0, 200), "validation": slice(200, 250), "test": slice(250, 300)}
    data = {name: (inputs[rows], NAMES[rows]) for name, rows in splits.items()}
    text = f"data: {{train: {IN_MEMORY}}}\nteacher: {{model: {IN_MEMORY}, answers: logits}}\nstudent: {json.dumps(MLP)}"
    assert plan(loads(text), out="nowhere", given=Given(teacher=Narrow(), data=data)).teacher["value"] == 1.0


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[2.0, -1.0, 0.5, 0.0]]))
            self.layer.bias.zero_()

    def forward(self, inputs):
        return self.layer(inputs).squeeze()  # of one sample: no dimension at all


def test_a_regression_that_answers_one_number_a_sample_teaches_and_learns(tmp_path: Path) -> None:
    targets = INPUTS @ np.array([2, -1, 0.5, 0], "float32")
    done = distill(Flat(), Flat(), (INPUTS, targets), task="regression", out=tmp_path / "run", **FAST)
    assert done.evaluation.models["teacher"].metrics["r2"] > 0.99
    assert done.evaluation.models["distilled"].metrics["r2"] > 0.8


def test_an_estimator_fitted_on_floats_knows_the_same_classes(tmp_path: Path) -> None:
    for name, labels in (("floats", LABELS.astype(float)), ("bools", LABELS > 0)):
        skops.io.dump(LogisticRegression().fit(INPUTS, labels), tmp_path / f"{name}.skops")
    text = f"data: {{train: {IN_MEMORY}}}\nteacher: {{file: NAME.skops}}\nstudent: {json.dumps(MLP)}"
    for name, labels in (("floats", LABELS), ("bools", (LABELS > 0).astype(int))):
        found = plan(loads(text.replace("NAME", name)), out="x", base=tmp_path, given=Given(data=(INPUTS, labels)))
        assert found.teacher["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: (20 * w).round().to(torch.int8), r"0\.weight is int8, codes of a quantised model"),
        (lambda w: w * float("nan"), r"0\.weight holds 12 NaN"),
        (lambda w: w / 0.0, r"0\.weight holds 12 infinite numbers|holds .* NaN"),
        (lambda w: w.double() + 1e300, r"0\.weight holds numbers up to 1e\+300, too large for float32"),
    ],
)
def test_weights_of_another_kind_are_refused_in_the_plan(tmp_path: Path, change, message: str) -> None:
    (tmp_path / "nets.py").write_text("import torch\ndef big(): return torch.nn.Sequential(torch.nn.Linear(4, 3))\n")
    save_file({"0.weight": change(torch.rand(3, 4) + 0.1), "0.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    text = f"data: {{train: {IN_MEMORY}}}\nteacher: {{model: 'nets.py:big', weights: w.safetensors}}"
    recipe = loads(f"{text}\nstudent: {json.dumps(MLP)}")
    with pytest.raises(UsageError, match=rf"w\.safetensors .*{message}"):
        plan(recipe, out=tmp_path / "run", base=tmp_path, given=Given(data=(INPUTS, NAMES)))


def test_a_member_in_another_order_is_named_although_the_merged_teacher_may_be_right(tmp_path: Path) -> None:
    members = (Teacher(), Teacher(), Teacher((1, 2, 0)))
    section = f"{{members: [{', '.join(['{model: ' + IN_MEMORY + '}'] * 3)}]}}"
    text = f"data: {{train: {IN_MEMORY}}}\nteacher: {section}\nstudent: {json.dumps(MLP)}"
    given = Given(teacher=members, data=(INPUTS, NAMES))
    with pytest.raises(TeacherError, match=r"'teacher\.members\[2\]\.classes: \[\"bee\", \"cat\", \"ant\"\]'"):
        plan(loads(text), out=tmp_path, given=given)
    last = "{model: " + IN_MEMORY + "}]"
    fixed = text.replace(last, "{model: " + IN_MEMORY + ", classes: [bee, cat, ant]}]")
    assert plan(loads(fixed), out=tmp_path, given=given).warnings == ()


def test_recorded_labels_by_name_have_no_order_to_doubt(tmp_path: Path) -> None:
    wrong = np.array(["bee", "cat", "ant"])[LABELS]  # labels that are wrong, not in another order
    lines = [f"{row},{name}" for row, name in enumerate(wrong)]
    (tmp_path / "answers.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    text = f"data: {{train: {IN_MEMORY}}}\nteacher: {{file: answers.csv}}\nstudent: {json.dumps(MLP)}"
    planned = plan(loads(text), out=tmp_path / "run", base=tmp_path, given=Given(data=(INPUTS, NAMES)))
    assert any("matched by name: check the names, and the labels" in text for text in planned.warnings)
