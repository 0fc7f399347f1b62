"""A run is one list of stages: what `plan` prints is what `run` runs, in order."""

from __future__ import annotations

import runpy
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from potstill import models
from potstill.core.files import read_json
from potstill.pipeline import makers, plan, run
from potstill.pipeline.making import Making
from potstill.pipeline.orders import main_job
from potstill.pipeline.prepare import prepare
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import read

EXAMPLES = Path(__file__).parents[2] / "examples"
ELSEWHERE = ("endpoint", "keras_teacher")
"""They need a server, or a second Python environment."""
RECIPES = sorted(path.parent.name for path in EXAMPLES.glob("*/recipe.yaml") if path.parent.name not in ELSEWHERE)
QUICK = ["evaluation.latency=false", "budget.milliseconds=null", "export.formats=[]", "seeds=2"]
SHORT = ["teacher.train.epochs=1", "training.epochs=1", "training.learning_rate=0.1", "seeds=1"]
CHAIN = ["teacher.args.width=4", "chain.0.args.width=4", "student.args.width=3", "back_to_teacher.epochs=1"]


def recipe_of(name: str, home: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> Recipe:
    """Copy an example's folder, make what its recipe needs and return the recipe."""
    shutil.copytree(EXAMPLES / name, home)
    for script in home.glob("make_*.py"):
        with monkeypatch.context() as patch:
            patch.chdir(home)
            runpy.run_path(str(script), run_name="__main__")
    return read(home / "recipe.yaml", [*QUICK, *changes])


def planned(recipe: Recipe, home: Path) -> list[str]:
    """Return the stages that a plan shows, without the report, which is none."""
    stages = plan(recipe, out=home / "run", base=home).stages
    assert stages[-1].name == "report"
    return [stage.name for stage in stages[:-1]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_shows_the_stages_that_a_run_works_through(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / name
    recipe = recipe_of(name, home, monkeypatch)
    made = Making(prepare(recipe, out=home / "run", base=home), home / "run")
    assert planned(recipe, home) == [stage.name for stage in main_job(made)]


def test_the_recipes_are_all_examples_that_need_no_server_and_no_other_python() -> None:
    assert len(RECIPES) == 19
    assert {"chain", "dot", "features", "many_teachers", "mutual", "onnx_teacher", "regression"} <= set(RECIPES)


@pytest.mark.parametrize(("name", "changes"), [("chain", CHAIN), ("features", ["teacher.args.width=4"])])
def test_a_run_leaves_the_stages_of_its_plan_in_the_order_of_the_plan(
    name: str, changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / name
    recipe = recipe_of(name, home, monkeypatch, *SHORT, *changes)
    before = planned(recipe, home)
    stages = read_json(run(recipe, out=home / "run", base=home).folder / "run.json")["stages"]
    assert list(stages) == before
    assert planned(recipe, home) == before
    again = plan(recipe, out=home / "run", base=home)
    assert all(stage.reused for stage in again.stages[:-1])


def test_a_student_is_built_once_to_be_looked_at_and_then_for_each_training_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those are left of four times as many; one more checks that a second build is the same as the first."""
    built: list[tuple[Any, int]] = []

    def build(name: str, args: Mapping[str, Any], *, seed: int, base: Path) -> nn.Module:
        built.append((args["width"], seed))
        return models.build(name, args, seed=seed, base=base)

    recipe = read(EXAMPLES / "digits" / "recipe.yaml", [*QUICK, *SHORT, "seeds=2", "teacher.args.width=4"])
    monkeypatch.setattr(makers, "build", build)
    run(recipe, out=tmp_path / "run")
    students = Counter(seed for width, seed in built if width == 6)
    assert students == {0: 1 + 6 + 1, 1: 1 + 6}
    assert len(built) == students.total() + 1, "the teacher is built once"
    del built[:]
    run(recipe, out=tmp_path / "run")  # all is there: the weights of each are asked what they compute
    assert Counter(seed for width, seed in built if width == 6) == {0: 1 + 3 + 1, 1: 1 + 3}
