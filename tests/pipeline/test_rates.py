"""What a recipe leaves open of a training is raced: each arm by itself, at equal cost, on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from potstill.core.errors import DivergedError, UsageError
from potstill.core.files import read_json
from potstill.data import Stream, load
from potstill.evaluation import predict
from potstill.models import Preprocessor
from potstill.models.zoo.small import mlp
from potstill.objective import preset
from potstill.pipeline import plan, run
from potstill.pipeline.build import build_job
from potstill.pipeline.judging import chosen_by
from potstill.pipeline.making import Making
from potstill.pipeline.orders import main_job
from potstill.pipeline.processes import start
from potstill.pipeline.racing import FILE, Race, clear_others, run_race, tried_rates
from potstill.pipeline.stages import train_student
from potstill.recipe.schema import Training
from potstill.recipe.yaml import loads
from potstill.training import Result, Spec, train
from potstill.training.history import read

RECIPE = """
task: classification
metric: auc
data: {train: digits}
teacher: {model: mlp, args: {hidden: [16]}, train: {epochs: 3, batch_size: 64}}
student: {model: mlp, args: {hidden: [8]}}
training: {epochs: 6, batch_size: 64}
export: {formats: []}
evaluation: {latency: false}
"""


def fixed(rate: float) -> Training:
    return Training(optimizer="sgd", learning_rate=rate, batch_size=16, epochs=12)


class Attempts:
    """Short trainings on 200 digits; the one with ``stop_at`` is interrupted before it starts."""

    def __init__(self, stop_at: float | None = None) -> None:
        job = build_job(loads(RECIPE), base=Path())
        self.data, self.stop_at, self.rates = job.data, stop_at, []

    def __call__(self, folder: Path, *, settings: Training, steps: int, label: str) -> Result:
        self.rates.append(settings.learning_rate)
        if settings.learning_rate == self.stop_at:
            raise KeyboardInterrupt
        torch.manual_seed(0)
        return train(
            mlp(10, in_features=64, hidden=(8,)),
            Spec(
                self.data, Stream(self.data.train), preset("alone", "classification"), settings, Preprocessor(),
                steps=steps,
            ),
            folder,
            device="cpu",
        )  # fmt: skip


def race_of(*rates: float) -> Race:
    return Race("alone", tuple(map(fixed, rates)), len(rates), 20, 1000)


def test_the_better_of_two_obvious_rates_wins_and_a_diverging_one_is_listed_and_loses(tmp_path: Path) -> None:
    run_race(race_of(1e30, 1e-6, 0.1), tmp_path, Attempts(), start("cpu"))
    found = read_json(tmp_path / FILE)
    assert (found["chosen"], found["optimizer"], found["learning_rate"]) == (2, "sgd", 0.1)
    diverged, slow, good = found["tried"]
    assert (diverged["learning_rate"], diverged["validation"], diverged["loss"]) == (1e30, None, None)
    assert slow["validation"] < good["validation"]
    assert {one["steps"] for one in found["tried"]} == {20}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_race_that_was_killed_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    race, whole = race_of(0.01, 0.1, 0.03), tmp_path / "whole"
    run_race(race, whole, Attempts(), start("cpu"))
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run_race(race, killed, Attempts(stop_at=0.1), start("cpu"))
    assert read_json(killed / FILE)["chosen"] is None
    again = Attempts()
    run_race(race, killed, again, start("cpu"))
    assert again.rates == [0.1, 0.03]
    assert _without_seconds(killed / FILE) == _without_seconds(whole / FILE)


def _without_seconds(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return {**found, "tried": [{**one, "seconds": 0} for one in found["tried"]]}


def test_where_every_rate_diverges_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"sgd 1e\+30, sgd 1e\+35"):
        run_race(race_of(1e30, 1e35), tmp_path, Attempts(), start("cpu"))


def test_each_arm_is_raced_at_equal_cost_and_trained_as_if_its_choice_were_fixed(tmp_path: Path) -> None:
    recipe, out = loads(RECIPE), tmp_path / "run"
    named = [stage.name for stage in plan(recipe, out=out).stages]
    done = run(recipe, out=out)
    stages = read_json(out / "run.json")["stages"]
    assert list(stages)[:7] == named[:7]
    assert {"rates, teacher", "rates, alone", "rates, distilled"} <= set(named)
    arms = {arm: read_json(out / "rates" / arm / FILE) for arm in ("teacher", "alone", "distilled")}
    costs = {arm: sum(one["steps"] for one in found["tried"]) for arm, found in arms.items()}
    total = read_json(out / "seeds/0/alone/result.json")["steps"]
    assert costs["alone"] == costs["distilled"] > total / 3
    assert 2 * costs["alone"] <= total
    settings = [[(one["optimizer"], one["learning_rate"]) for one in arms[arm]["tried"]] for arm in arms]
    assert settings[1] == settings[2]
    job = build_job(recipe, base=Path())
    chosen = recipe.training.model_copy(update={name: arms["alone"][name] for name in ("optimizer", "learning_rate")})
    train_student(job, (0, "alone"), tmp_path / "fixed", accelerator=start("cpu"), teacher=None, settings=chosen)
    ours = load_file(out / "seeds/0/alone/weights.safetensors")
    theirs = load_file(tmp_path / "fixed" / "weights.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    job_data, model = job.data.validation, job.student.build(0, "alone")
    model.load_state_dict(ours)
    outputs = predict(model, job_data, preprocess=job.student.preprocess, batch_size=64, device=torch.device("cpu"))
    area = roc_auc_score(job_data.targets, softmax(outputs, axis=1), multi_class="ovr")
    result, history = (out / "seeds/0/alone" / name for name in ("result.json", "history.jsonl"))
    assert read_json(result)["best_validation"] == pytest.approx(area, abs=1e-6)
    scores = [row["validation_metric"] for row in read(history)]
    assert read_json(result)["best_validation"] == max(scores)
    assert read_json(result)["best_epoch"] == 1 + int(np.argmax(scores))
    assert done.evaluation.headline_metric == "auc"
    assert "Rates tried and chosen" in done.report.read_text()
    assert {one["arm"] for one in done.summary()["rates"]} == {"teacher", "alone", "distilled"}
    again = plan(recipe, out=out).stages
    assert all(stage.reused for stage in again if stage.name.startswith("rates"))
    clear_others(out, ["rates, alone"])
    assert [one["arm"] for one in tried_rates(out)] == ["alone"]


def keys_of(made: Making) -> dict[str, str]:
    return {stage.name: stage.key().key for stage in main_job(made)}


def test_the_race_is_part_of_what_a_student_depends_on_and_seeds_share_it() -> None:
    def made_of(change: str = "") -> Making:
        job = build_job(loads(RECIPE + "seeds: 2\n", overrides=[change] if change else []), base=Path())
        return Making(job, Path())

    made = made_of()
    first, longer, other = keys_of(made), keys_of(made_of("training.epochs=7")), keys_of(made_of("objective=nkd"))
    races = {name for name in first if name.startswith("rates")}
    assert races == {"rates, teacher", "rates, alone", "rates, distilled"}
    assert len({first[name] for name in races}) == 3
    assert first["rates, alone"] != longer["rates, alone"]
    assert first["rates, teacher"] == longer["rates, teacher"]
    assert first["rates, distilled"] != other["rates, distilled"]
    assert first["student alone, seed 1"] == other["student alone, seed 1"]
    settled = keys_of(made_of("training={epochs: 6, batch_size: 64, optimizer: sgd, learning_rate: 0.1}"))
    assert {name for name in settled if name.startswith("rates")} == {"rates, teacher"}
    assert settled["student alone, seed 0"] != first["student alone, seed 0"]
    made.results["rates, alone"] = "sgd 0.1"
    chosen = keys_of(made)["student alone, seed 0"]
    made.results["rates, alone"] = "sgd 0.03"
    assert keys_of(made)["student alone, seed 0"] != chosen


def test_a_training_too_short_to_try_rates_takes_the_usual_ones_and_says_so(tmp_path: Path) -> None:
    race = Race("alone", (fixed(0.1), fixed(0.2)), 1, 0, 40)
    assert "too short to try rates" in race.what
    run_race(race, tmp_path, Attempts(), start("cpu"))
    assert (read_json(tmp_path / FILE)["chosen"], read_json(tmp_path / FILE)["tried"]) == (0, [])


def test_the_metric_is_part_of_a_students_key_and_must_be_one_of_the_task() -> None:
    def student(metric: str) -> str:
        job = build_job(loads(RECIPE.replace("metric: auc", metric)), base=Path())
        return keys_of(Making(job, Path()))["student alone, seed 0"]

    assert student("metric: auc") != student("")
    assert student("metric: accuracy") == student("")
    with pytest.raises(UsageError, match=r"rmse is no metric of a classification: use one of accuracy, balanced"):
        loads(RECIPE.replace("auc", "rmse"))
    with pytest.raises(UsageError, match="expected 'accuracy'"):
        loads(RECIPE.replace("auc", "f1"))


def test_errors_of_a_regression_are_judged_in_the_targets_units_and_lower_is_better() -> None:
    random = np.random.default_rng(0)
    targets = 5e4 + 20 * random.normal(size=60).astype(np.float32)
    data = load((random.normal(size=(60, 3)).astype(np.float32), targets), task="regression")
    recipe = loads("task: regression\nmetric: rmse\ndata: {train: x.csv}\nteacher: null\nstudent: {model: mlp}\n")
    metric = chosen_by(recipe, data)
    assert metric is not None
    assert not metric.higher_is_better
    learnt = data.to_learn().validation.targets
    off = learnt + 0.5 * np.where(np.arange(len(learnt)) % 2, 1.0, -1.0)
    expected = 0.5 * data.train.targets.astype(np.float64).std()
    assert metric.score(off[:, None], learnt) == pytest.approx(expected, rel=1e-6)
    assert chosen_by(recipe.model_copy(update={"metric": "r2"}), data) is None
