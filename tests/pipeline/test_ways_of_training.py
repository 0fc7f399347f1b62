"""The examples of ways of training run from their recipes, on real digits; and the mean teacher from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from potstill.core.errors import PotstillError
from potstill.data import Stream, channel_statistics, load
from potstill.losses import cross_entropy, forward_kl
from potstill.models import Preprocessor, build
from potstill.objective import Objective, Schedule, Term
from potstill.pipeline import plan, run
from potstill.recipe.schema import Recipe, Training
from potstill.recipe.yaml import read
from potstill.training import AverageTeacher, Spec, train

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["teacher.train.epochs=1", "training.epochs=2", "evaluation.latency=false", "export.formats=[]"]
NARROW = ["teacher.args.width=4", "student.args.width=3"]


def recipe_of(name: str, *changes: str) -> Recipe:
    return read(EXAMPLES / name / "recipe.yaml", [*QUICK, *changes])


def history(folder: Path, kind: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"seeds/0/{kind}/history.jsonl").read_text().splitlines()]


def test_stages_two_momenta_and_the_report_from_a_recipe(tmp_path: Path) -> None:
    """In the first of three epochs only two layers change; the student alone has none of it."""
    changes = ["training.epochs=3", "training.stages.0.until=0.34", "training.optimizer=dot"]
    for number in range(3):
        changes += [f"objective.{number}.weight.{moment}=0.34" for moment in ("since", "until")]
    recipe = recipe_of("progressive", *NARROW, *changes, "training.gradient_report=true", "training.schedule=constant")
    folder = run(recipe, out=tmp_path / "run").folder
    rows, alone = history(folder, "distilled"), history(folder, "alone")
    hints, hard = ([row["parts"][name] for row in rows] for name in ("hint_mse:layer2", "cross_entropy"))
    assert hints[0] > 0
    assert hints[1] < 0.1 * hints[0]
    assert hints[2] == 0
    assert hard[0] == 0
    assert hard[1] > 0
    assert rows[0]["gradient_cosine"] is None
    assert -1 <= rows[2]["gradient_cosine"] <= 1
    assert set(rows[0]["gradient_norms"]) == {"hint_mse:layer2", "cross_entropy", "forward_kl"}
    assert alone[-1]["train_loss"] < alone[0]["train_loss"]
    assert alone[0]["gradient_cosine"] is None


def test_unknown_layers_one_sided_objectives_and_cut_up_batches_fail_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"training\.stages trains 'layer4'.*Did you mean 'layer"):
        plan(recipe_of("progressive", *NARROW, "training.stages.0.train=[layer4]"), out=tmp_path)
    with pytest.raises(PotstillError, match="no term reads no teacher"):
        plan(recipe_of("progressive", *NARROW, "training.optimizer=dot", "objective=label_free"), out=tmp_path)
    with pytest.raises(PotstillError, match=r"Set training\.accumulate: 1"):
        plan(
            recipe_of("progressive", *NARROW, "training.accumulate=2", "objective.0.loss=similarity_preserving"),
            out=tmp_path,
        )


def test_input_gradients_are_planned_recorded_and_learnt(tmp_path: Path) -> None:
    recipe = recipe_of("input_gradients", *NARROW, "objective.2.weight=1")
    planned = plan(recipe, out=tmp_path / "run")
    assert planned.store is not None
    folder = run(recipe, out=tmp_path / "run").folder
    manifest = json.loads(next((tmp_path / "store").glob("*/manifest.json")).read_text())
    assert [signal for signal in manifest["signals"] if signal == "input_gradient"] or "input_gradient" in str(manifest)
    found = [row["parts"]["jacobian_matching:input_gradient"] for row in history(folder, "distilled")]
    assert all(value > 0 for value in found)


def test_blocks_run_from_a_recipe(tmp_path: Path) -> None:
    recipe = recipe_of("blocks", "training.epochs=1")
    assert "layer2(teacher.layer1) -> layer2" in plan(recipe, out=tmp_path / "run").objective[2]
    folder = run(recipe, out=tmp_path / "run").folder
    (row,) = history(folder, "distilled")
    assert len(row["parts"]) == 5
    assert row["parts"]["hint_mse:layer2(teacher.layer1)->layer2"] > 0
    weights = load_file(folder / "seeds/0/distilled/weights.safetensors")
    assert set(weights) == set(build("resnet8", {"in_channels": 1}).state_dict())


def test_blocks_of_other_shapes_fail_in_the_plan(tmp_path: Path) -> None:
    recipe = recipe_of("blocks", "objective.2.student=layer2(teacher.layer3)")
    with pytest.raises(PotstillError, match="layer 'layer2' cannot take the teacher's signal of shape"):
        plan(recipe, out=tmp_path)
    with pytest.raises(PotstillError, match="has no layer 'layer9'"):
        plan(recipe_of("blocks", "objective.2.student=layer9(teacher.layer1)"), out=tmp_path)


def test_the_average_of_the_student_teaches_it_digits(tmp_path: Path) -> None:
    data = load("digits", seed=0)
    mean, std = (np.asarray(values) for values in channel_statistics(data.train))
    student = build("cnn", {"in_channels": 1, "width": 6}, seed=0)
    objective = Objective([Term(cross_entropy), Term(forward_kl, Schedule("linear", 0.0, 1.0, until=0.3))])
    result = train(
        student,
        Spec(
            data=data,
            stream=Stream(data.train),
            objective=objective,
            settings=Training(epochs=4, batch_size=64),
            preprocess=Preprocessor(mean, std),
            teacher=AverageTeacher(0.95),
        ),
        tmp_path,
        device="cpu",
    )
    rows = [json.loads(line) for line in result.history.read_text().splitlines()]
    assert result.best_validation > 0.9
    assert all(row["parts"]["forward_kl"] > 0 for row in rows)
