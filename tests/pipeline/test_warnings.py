"""What is wrong with a job is told by every command that uses it, once, and stays in the folder and on the page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from potstill import report
from potstill.core.errors import PotstillWarning
from potstill.core.files import read_json, write_json
from potstill.pipeline import Run, label, plan, run
from potstill.pipeline.warnings import begin_telling, tell
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import loads

LEAKING = """
data: {train: train.npz, test: test.npz}
teacher: {model: mlp, args: {hidden: [8]}, train: {epochs: 1}}
student: {model: mlp, args: {hidden: [4]}}
training: {epochs: 1}
evaluation: {latency: false}
export: {formats: []}
"""
LEAK = "4 of 60 test samples are also in train"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a test file of which four rows are in the training file too."""
    folder = tmp_path_factory.mktemp("leaking")
    random = np.random.default_rng(0)
    inputs, labels = random.standard_normal((90, 4)).astype("f4"), np.arange(90) % 3
    test = random.standard_normal((60, 4)).astype("f4")
    test[:4], first = inputs[:4], labels[:4]
    np.savez(folder / "train.npz", x=inputs, label=labels)
    np.savez(folder / "test.npz", x=test, label=np.concatenate([first, np.arange(56) % 3]))
    return folder


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if issubclass(warning.category, PotstillWarning)]


def test_a_leak_is_told_by_plan_label_run_a_second_run_and_the_page(base: Path) -> None:
    recipe: Recipe = loads(LEAKING)
    assert sum(LEAK in text for text in plan(recipe, out=base / "run", base=base).warnings) == 1
    for work in (label, run, run):  # the second run finds everything finished, and its numbers are as wrong
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            work(recipe, out=base / "run", base=base)
        assert sum(LEAK in text for text in texts(caught)) == 1, work
    assert (base / "run" / "label.html").read_text(encoding="utf-8").count(LEAK) == 1
    finished = Run(base / "run")
    assert sum(LEAK in text for text in finished.warnings) == 1
    assert finished.summary()["warnings"] == list(finished.warnings)
    page = finished.report.read_text(encoding="utf-8")
    assert page.count(LEAK) == 1
    assert re.search(rf'<h2 id="warnings-title">{len(finished.warnings)} warnings?</h2>', page)


def test_samples_are_called_by_their_row_of_the_file(base: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for work in (label, run):
            work(loads(LEAKING), out=base / "run", base=base)
    evaluation, labels = (read_json(base / "run" / name) for name in ("evaluation.json", "label.json"))
    for rows, file in ((evaluation["disagreements"], "test.npz"), (labels["mistakes"], "train.npz")):
        assert rows
        for row in rows:
            number = re.fullmatch(rf"row (\d+) of {file}", row["name"])
            assert number is not None, row
            assert np.load(base / file)["label"][int(number[1])] == row["label"]
    for page in ("report.html", "label.html"):
        text = (base / "run" / page).read_text(encoding="utf-8")
        assert "Rows are counted from 0." in text
        assert "id 2199" not in text  # the id of a row of the test file


def test_each_warning_is_told_once_a_run(tmp_path: Path) -> None:
    begin_telling(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        tell(["first", "second", "first"], folder=tmp_path)
        tell(["second", "third"], folder=tmp_path)
    assert texts(caught) == ["first", "second", "third"]
    begin_telling(tmp_path)
    with pytest.warns(PotstillWarning, match="first"):
        tell(["first"], folder=tmp_path)


def test_the_page_of_a_folder_that_kept_no_warnings_shows_those_of_its_data(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"stages": {}})
    finding = {"level": "warning", "code": "shift", "message": "The labels differ.", "count": 1}
    write_json(tmp_path / "data.json", {"findings": [finding]})
    assert "The labels differ." in report.write(tmp_path).read_text(encoding="utf-8")
    assert Run(tmp_path).warnings == ()
