"""A trained student teaches the next one: named by its run folder, with its own preprocessing and its own classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.signals import Batch
from potstill.pipeline import Run, plan, run
from potstill.pipeline.build import build_job
from potstill.recipe.yaml import loads

TEXT = """
data: {train: digits}
teacher: {file: TEACHER}
student: {model: cnn, args: {width: 3}}
training: {epochs: 1, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
export: {formats: []}
evaluation: {latency: false}
"""


def recipe(folder: Path, more: str = "") -> str:
    return TEXT.replace("TEACHER", f"'{folder}'{more}")


@pytest.mark.parametrize("part", ["", "export"])
def test_its_answers_are_those_of_the_student(finished: Run, part: str) -> None:
    job = build_job(loads(recipe(finished.folder / part)), base=Path())
    inputs = job.data.test.fetch(np.arange(20))
    ids = torch.arange(20)
    with job.teacher_at(0).teaching() as teacher:
        answers = teacher(Batch(ids, torch.zeros_like(ids), inputs))["logits"]
    with torch.no_grad():
        torch.testing.assert_close(answers, finished.load_student()(inputs), rtol=1e-4, atol=1e-5)
    assert job.comparable
    # Its file names its classes, so that data in another order is mapped by name.
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    turned = recipe(finished.folder / part).replace("digits}", f"digits, classes: {[str(digit) for digit in order]}}}")
    other = build_job(loads(turned), base=Path())
    with other.teacher_at(0).teaching() as teacher:
        moved = teacher(Batch(ids, torch.zeros_like(ids), inputs))["logits"]
    torch.testing.assert_close(moved, answers[:, order])
    assert job.teacher_at(0).facts.parameters == finished.evaluation.models["distilled"].parameters


def test_it_teaches_a_smaller_one_from_end_to_end(finished: Run, tmp_path: Path) -> None:
    chosen = loads(recipe(finished.folder))
    planned = plan(chosen, out=tmp_path / "run", base=tmp_path)
    assert [stage.name for stage in planned.stages][:2] == ["store", "student alone, seed 0"]
    made = run(chosen, out=tmp_path / "run", base=tmp_path)
    taught = finished.evaluation.models["distilled"].metrics["accuracy"]
    assert made.evaluation.models["teacher"].metrics["accuracy"] == pytest.approx(taught, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("'}", "', preprocess: {mean: [0.1], std: [0.3]}}"), r"teacher.preprocess: .*its own preprocessing"),
        (("'}", "', args: {output: x}}"), r"teacher.args: .*no options"),
        (("data: {train: digits}", "data: {train: 'wide.py:samples'}"), r"samples of shape \(1, 8, 8\)"),
    ],
)
def test_a_student_of_other_data_and_settings_that_say_nothing_are_refused(
    finished: Run, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "wide.py").write_text(
        "import numpy as np\ndef samples():\n    return np.zeros((80, 1, 9, 9), np.float32) + "
        "np.arange(80)[:, None, None, None], np.arange(80) % 10\n"
    )
    with pytest.raises(PotstillError, match=message):
        build_job(loads(recipe(finished.folder).replace(*change)), base=tmp_path)


def test_damaged_files_are_refused(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "export", tmp_path / "export")
    weights = tmp_path / "export" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(PotstillError, match=r"teacher.file: .*student.safetensors"):
        build_job(loads(recipe(tmp_path)), base=tmp_path)


def test_a_folder_without_a_student_is_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises((TeacherError, PotstillError), match="nothing"):
        build_job(loads(recipe(tmp_path / "nothing")), base=tmp_path)
