"""What finished results belong to: the user's code, settings, data and bytes; what is made again, and what is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.files import TEMPORARY, read_json
from potstill.objective import Objective, Term
from potstill.pipeline import Run, distill, evaluate, find_runs, label, plan, rewrite_report, run
from potstill.pipeline.build import Given, build_job
from potstill.pipeline.making import Making
from potstill.pipeline.orders import main_job
from potstill.pipeline.probe import difference
from potstill.pipeline.stage import Trained
from potstill.recipe.yaml import loads

FILES = {
    "data.py": "import numpy as np\ndef make():\n    y = np.arange(90) % 3\n    noise = np.random.default_rng(0)\n"
    "    x = noise.normal(size=(90, 4)) * 0.3 + np.eye(4)[y] * 4\n    return x.astype('float32'), y\n",
    "big.py": "import torch\nclass Big(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.a, self.b = torch.nn.Linear(4, 16), torch.nn.Linear(16, 3)\n    def forward(self, x):\n"
    "        return 1 * self.b(self.a(x).relu())\n",
    "helper.py": "def act(x): return x.relu()\n",
    "small.py": "import torch\nimport helper\nclass Small(torch.nn.Module):\n    def __init__(self):\n"
    "        super().__init__()\n        self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)\n"
    "    def forward(self, x):\n        return self.b(helper.act(self.a(x)))\n",
    "losses.py": "def mine(student_logits, teacher_logits):\n"
    "    return 1 * (student_logits - teacher_logits).square().mean(1)\n",
}
RECIPE = """
data: {train: "data.py:make"}
teacher: {model: "big.py:Big", train: {epochs: 2, batch_size: 30, optimizer: sgd, learning_rate: 0.05}}
student: {model: "small.py:Small"}
objective:
  - {loss: cross_entropy, weight: 0.5}
  - {loss: "losses.py:mine", weight: 0.5}
training: {epochs: 2, batch_size: 30, optimizer: sgd, learning_rate: 0.05}
evaluation: {latency: false}
export: {formats: []}
"""
pytestmark = pytest.mark.filterwarnings("ignore::potstill.core.errors.PotstillWarning")  # small, poor teachers
STUDENTS = {"student alone, seed 0", "student distilled, seed 0"}
AFTER = {"predictions", "export", "evaluation"}


@pytest.fixture(scope="module", autouse=True)
def _without_pages() -> Iterator[None]:
    """The report and the page of a label take ten times as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.pipeline.running.write_documents", lambda folder: None)
        patch.setattr("potstill.report.write_label_page", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the user's with a recipe's files and its finished run."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    run(loads(RECIPE), out=folder / "runs/one", base=folder)
    return folder


@pytest.fixture
def user(first: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to edit."""
    return Path(shutil.copytree(first, tmp_path / "user"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def again(user: Path, *changes: str) -> set[str]:
    """Run the recipe again; return the stages that were made again."""
    made = run(loads(RECIPE, overrides=changes), out=user / "runs/one", base=user)
    stages = read_json(made.folder / "run.json")["stages"]
    return {name for name, entry in stages.items() if entry["status"] == "done"}


def test_comments_docstrings_and_layout_change_nothing(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        file = user / name
        file.write_text('"""Says what it is."""\n\n' + file.read_text().replace("\n", "  # why\n", 1))
    assert again(user) == set()
    assert_silent(capsys)


def assert_silent(capsys: pytest.CaptureFixture[str]) -> None:
    said = capsys.readouterr().err
    assert not [line for line in said.splitlines() if "made again" in line or "kept" in line or "replaced" in line]


@pytest.mark.parametrize(
    ("name", "old", "new", "made"),
    [
        ("small.py", "self.b(helper", "0 * self.b(helper", STUDENTS | AFTER),
        ("helper.py", "x.relu()", "x.tanh()", STUDENTS | AFTER),
        ("losses.py", "return 1 *", "return 2 *", {"student distilled, seed 0"} | AFTER),
    ],
)
def test_students_of_edited_code_are_trained_again_and_the_file_is_named(
    user: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str, made: set[str]
) -> None:
    before = Run(user / "runs/one").evaluation.models
    edit(user / name, old, new)
    planned = {stage.name: stage for stage in plan(loads(RECIPE), out=user / "runs/one", base=user).stages}
    assert planned["teacher"].reused
    assert planned["student distilled, seed 0"].why == f"{name} changed"
    assert {stage for stage, found in planned.items() if not found.reused} == made | {"report"}
    capsys.readouterr()
    assert again(user) == made
    said = capsys.readouterr().err
    assert "are replaced by new ones; choose another folder (--out)" in said
    assert f"student distilled, seed 0 is made again: {name} changed" in said
    assert "predictions are made again: student" in said
    assert Run(user / "runs/one").evaluation.models["distilled"] != before["distilled"]
    assert again(user) == set()


def test_the_same_teacher_written_in_another_way_is_kept_with_its_store_and_that_is_said(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(user / "big.py", "1 * self.b(self.a(x).relu())", "self.b(torch.relu(self.a(x)))")
    assert again(user) == set()
    said = capsys.readouterr().err
    assert "teacher is kept: big.py changed; it computes the same" in said
    assert "is kept: big.py changed, and the teacher answers as before" in said
    assert again(user) == set()
    assert_silent(capsys)


def test_a_teacher_of_other_code_is_refused_with_both_ways_out_and_nothing_is_deleted(user: Path) -> None:
    edit(user / "big.py", "return 1 *", "return -1 *")
    files = {file: file.read_bytes() for file in user.rglob("*.safetensors")}
    for step in (plan, run):
        with pytest.raises(TeacherError, match=r"big\.py changed.*Undo that change.*delete or rename .*teacher"):
            step(loads(RECIPE), out=user / "runs/one", base=user)
    assert files == {file: file.read_bytes() for file in user.rglob("*.safetensors")}
    assert Run(user / "runs/one").evaluation.models
    edit(user / "big.py", "return -1 *", "return 1 *")
    assert again(user) == set()
    # Deleting the folder, as the message says, trains anew; what learned from the old one follows.
    edit(user / "big.py", "return 1 *", "return -1 *")
    shutil.rmtree(user / "runs/one/teacher")
    assert again(user) == {"teacher", "store", "student distilled, seed 0"} | AFTER
    assert len(list((user / "runs/store").iterdir())) == 2


def test_a_store_is_refused_when_a_teacher_with_these_very_weights_answers_otherwise(user: Path) -> None:
    weights = user / "runs/one/teacher/weights.safetensors"
    recipe = RECIPE.replace(
        "train: {epochs: 2, batch_size: 30, optimizer: sgd, learning_rate: 0.05}}", f"weights: {weights}}}"
    )
    run(loads(recipe), out=user / "runs/two", base=user)
    edit(user / "big.py", "return 1 *", "return 2 *")
    with pytest.raises(TeacherError, match=r"answers otherwise.*big\.py changed.*Undo.*store\.path"):
        run(loads(recipe), out=user / "runs/three", base=user)
    live = loads(recipe, overrides=["teacher.live=true"])
    assert run(live, out=user / "runs/three", base=user)
    edit(user / "big.py", "return 2 *", "return 3 *")
    run(live, out=user / "runs/three", base=user)
    stages = read_json(user / "runs/three/run.json")["stages"]
    assert {name for name, entry in stages.items() if entry["status"] == "done"} == {
        "student distilled, seed 0"
    } | AFTER


def test_a_data_function_counts_by_the_data_it_returns(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(user / "data.py", "y = np.arange(90) % 3", "y = np.tile(np.arange(3), 30)")
    assert again(user) == set()
    edit(user / "data.py", "* 0.3", "* 0.4")
    assert again(user) == {"teacher", "store"} | STUDENTS | AFTER
    assert "teacher is made again: the data changed" in capsys.readouterr().err


def net(scale: float) -> Any:
    """A class that was typed into a notebook: it has no file."""
    space: dict[str, Any] = {"torch": torch, "__name__": "notebook", "scale": scale}
    exec(FILES["big.py"].replace("1 * ", "scale * "), space)
    return space["Big"]


def test_objects_without_source_are_judged_by_what_they_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def distilled(teacher: float, student: float) -> set[str]:
        torch.manual_seed(0)
        models = net(teacher)(), net(student)()
        space: dict[str, Any] = {}
        exec(FILES["data.py"], space)
        settings = {"epochs": 1, "batch_size": 30, "optimizer": "sgd", "learning_rate": 0.01}
        more: dict[str, Any] = {"evaluation": {"latency": False}, "export": {"formats": []}, "training": settings}
        made = distill(*models, space["make"](), out=tmp_path / "runs/one", **more)
        stages = read_json(made.folder / "run.json")["stages"]
        return {name for name, entry in stages.items() if entry["status"] == "done"}

    distilled(1.0, 1.0)
    assert distilled(1.0, 1.0) == set()
    assert distilled(1.0, 2.0) == STUDENTS | AFTER
    said = capsys.readouterr().err
    assert "student alone, seed 0 is made again: it computes something else now: its answers differ by up to" in said
    with pytest.raises(TeacherError, match="answers otherwise than when the store"):
        distilled(2.0, 2.0)


def test_a_changed_setting_is_named_before_anything_is_replaced(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = "training.epochs=1"
    planned = plan(loads(RECIPE, overrides=[change]), out=user / "runs/one", base=user)
    assert {stage.why for stage in planned.stages if stage.name in STUDENTS} == {"training.epochs 2 -> 1"}
    assert next(one for one in planned.to_json()["stages"] if one["name"] == "predictions")["why"]
    assert again(user, change) == STUDENTS | AFTER
    assert "student alone, seed 0 is made again: training.epochs 2 -> 1" in capsys.readouterr().err
    assert again(user, change, "training.checkpoint_every=9", "training.workers=0", "training.threads=1") == set()


@pytest.mark.parametrize(
    ("name", "stage", "damage"),
    [
        ("teacher/weights.safetensors", "teacher", "flipped"),
        ("teacher/probe.safetensors", "teacher", "flipped"),
        ("seeds/0/alone/weights.safetensors", "student alone, seed 0", "flipped"),
        ("seeds/0/distilled/history.jsonl", "student distilled, seed 0", "flipped"),
        ("predictions.npz", "predictions", "flipped"),
        ("export/student.safetensors", "export", "flipped"),
        ("export/parity.json", "export", "flipped"),
        ("evaluation.json", "evaluation", "flipped"),
        ("teacher/weights.safetensors", "teacher", "gone"),
        ("predictions.npz", "predictions", "gone"),
        ("export/student.json", "export", "gone"),
    ],
)
def test_a_damaged_result_is_made_again_as_it_was_and_that_is_said(
    user: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str, damage: str
) -> None:
    file = user / "runs/one" / name
    good = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(good[:-3] + bytes([good[-3] ^ 0x30]) + good[-2:])
    assert again(user) == {stage}
    assert f"{stage} {'are' if stage == 'predictions' else 'is'} made again: {name} is" in capsys.readouterr().err
    if not name.endswith(".jsonl"):  # which says how long it took
        assert file.read_bytes() == good


def test_a_damaged_run_json_is_rebuilt_and_no_training_is_lost(user: Path) -> None:
    file = user / "runs/one/run.json"
    for content in (file.read_text()[:500], "[]", '{"stages": 3}', ""):
        file.write_text(content)
        assert again(user) == AFTER
        assert read_json(file)["finished"]


def test_runs_are_listed_beside_a_damaged_one_with_what_differs(user: Path) -> None:
    shutil.copytree(user / "runs/one", user / "runs/two")
    shutil.copytree(user / "runs/one", user / "runs/broken")
    edit(
        user / "runs/two/recipe.yaml",
        "  epochs: 2\n  minutes: null\n  batch_size: 30",
        "  epochs: 5\n  minutes: null\n  batch_size: 30",
    )
    (user / "runs/broken/run.json").write_text('{"name": ')
    (user / "runs/broken/evaluation.json").write_text("{")
    (user / "runs/broken/recipe.yaml").write_text("a: [")
    rows = {row["name"]: row for row in find_runs(user / "runs")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "one": "finished",
        "two": "finished",
        "broken": "damaged",
    }
    assert rows["two"]["differs"] == {"training.epochs": 5}
    assert rows["one"]["differs"] == {"training.epochs": 2}
    assert rows["broken"]["distilled"] is None


def test_numbers_that_nobody_measured_are_not_shown(user: Path) -> None:
    file = user / "runs/one/evaluation.json"
    written = json.loads(file.read_text())
    written["models"]["distilled"]["metrics"]["accuracy"] = 0.999
    file.write_text(json.dumps(written))
    (row,) = find_runs(user / "runs")
    assert (row["status"], row["distilled"]) == ("damaged", None)
    for show in (rewrite_report, evaluate):
        with pytest.raises(PotstillError, match=r"evaluation.json is damaged.*potstill run"):
            show(user / "runs/one")
    assert not (user / "runs/one/report.html").exists()
    assert again(user) == {"evaluation"}
    assert find_runs(user / "runs")[0]["distilled"] != 0.999


DIGITS = "data: {train: digits}\nteacher: {model: cnn, train: {epochs: 1}}\nstudent: {model: mlp}"


def test_a_loss_that_reads_a_setting_from_elsewhere_counts_by_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def scaled(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        return (student_logits - teacher_logits).square().mean(1) * float(os.environ["SCALE"])

    said = []
    for scale in ("1", "1", "0.05"):
        monkeypatch.setenv("SCALE", scale)
        given = Given(objective=Objective([Term(scaled)]))
        job = build_job(loads(DIGITS), base=Path(), given=given)
        stages = {stage.name: stage for stage in main_job(Making(job, tmp_path))}
        student = stages["student distilled, seed 0"].result
        assert isinstance(student, Trained)
        assert student.probe is not None
        said.append(student.probe(None))
    assert difference(said[0], said[1]) == ""
    assert "numbers of scaled differ" in difference(said[0], said[2])


def test_a_label_in_a_finished_run_leaves_it_finished_and_one_of_another_recipe_says_so(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = user / "runs/one"
    before = read_json(folder / "run.json")
    label(loads(RECIPE), out=folder, base=user, command="potstill label")
    after = read_json(folder / "run.json")
    assert {name: after[name] for name in ("finished", "command", "recipe_hash")} == {
        name: before[name] for name in ("finished", "command", "recipe_hash")
    }
    label(loads(RECIPE, overrides=["training.epochs=1"]), out=folder, base=user)
    assert "counts as unfinished from now on: training.epochs 2 -> 1" in capsys.readouterr().err
    assert find_runs(user / "runs")[0]["status"] == "unfinished"


def test_what_killed_writers_left_is_removed_and_nothing_else(user: Path) -> None:
    folder = user / "runs/one"
    ours = [folder / f".run.json.abc{TEMPORARY}", folder / f"seeds/0/alone/.weights.safetensors.x{TEMPORARY}"]
    theirs = [folder / ".notes.txt.mine", folder / "seeds/.gitignore"]
    for file in (*ours, *theirs):
        file.write_text("x")
    assert again(user) == set()
    assert [file.exists() for file in (*ours, *theirs)] == [False, False, True, True]


def test_a_training_that_was_stopped_starts_anew_when_its_code_was_edited(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = user / "whole"
    edit(user / "small.py", "self.b(helper", "2 * self.b(helper")
    run(loads(RECIPE), out=expected / "one", base=user)
    edit(user / "small.py", "2 * self.b(helper", "3 * self.b(helper")
    recipe = loads(RECIPE, overrides=["training.checkpoint_every=1"])
    stop(monkeypatch, after=3)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=user / "runs/one", base=user)
    monkeypatch.undo()
    edit(user / "small.py", "3 * self.b(helper", "2 * self.b(helper")
    monkeypatch.setattr("potstill.pipeline.running.write_documents", lambda folder: None)
    run(recipe, out=user / "runs/one", base=user)
    name = "seeds/0/alone/weights.safetensors"
    assert (user / "runs/one" / name).read_bytes() == (expected / "one" / name).read_bytes()


def stop(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Interrupt the training after some steps."""
    from potstill.training import loop

    steps, step = [0], loop.take_step

    def interrupted(*args: Any, **options: Any) -> Any:
        steps[0] += 1
        if steps[0] > after:
            raise KeyboardInterrupt
        return step(*args, **options)

    monkeypatch.setattr(loop, "take_step", interrupted)
