"""Few labels: the arms of a run, what each learns from, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.pipeline.conftest import TINY

import potstill
from potstill.core.errors import DataError, UsageError
from potstill.core.files import read_json
from potstill.pipeline import Run, plan, run
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.keys import kinds
from potstill.pipeline.making import Making
from potstill.pipeline.orders import main_job
from potstill.pipeline.pool import lesson
from potstill.pipeline.prepare import prepare
from potstill.pipeline.stage import survey
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import loads

FEW = TINY.replace("  train: digits\n", "  train: digits\n  labels: 40\n")
ARMS = ("alone", "pseudo", "distilled")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(loads(FEW), out=tmp_path_factory.mktemp("few") / "run")


def test_three_students_of_each_seed_make_the_same_number_of_steps(few: Run) -> None:
    for arm in ARMS:
        result = read_json(few.folder / f"seeds/1/{arm}/result.json")
        assert (result["steps"], result["epochs"]) == (3 * 20, 3)  # 62 samples without a label and 2 with one a step
    assert read_json(few.folder / "teacher/result.json")["steps"] == 3 * 20  # of 1,258 samples, all with their label


def test_the_verdict_compares_with_the_teachers_labels(few: Run) -> None:
    evaluation = few.evaluation
    assert list(evaluation.models) == ["teacher", *ARMS]
    assert {"distilled-alone", "distilled-pseudo", "pseudo-alone"} <= set(evaluation.differences)
    assert len(evaluation.models["pseudo"].per_seed["accuracy"]) == 2
    said = " ".join(evaluation.verdict.sentences)
    assert "the same student that learned the teacher's likeliest classes of the samples without a label" in said
    assert "Students see the labels of 40 of 1,258 training samples (4 of a class)" in said
    assert "A teacher that is trained here sees the labels of 1,258." in said
    assert "On the 1,218 training samples without a label the teacher is" in said
    for file, name in (("report.html", "On teacher&#39;s labels"), ("export/README.md", "Student on teacher's labels")):
        assert name in (few.folder / file).read_text(encoding="utf-8")


def test_labels_of_the_pool_are_the_teachers_likeliest_classes(few: Run) -> None:
    """Computed again from the teacher's recorded answers, view by view."""
    job = prepare(loads(FEW), out=few.folder, base=Path())
    made = Making(job, few.folder)
    survey(RunFolder(few.folder), main_job(made), made.results)
    stored, ids = made.source(0), torch.from_numpy(job.data.train.ids)
    views = [stored.read(ids, torch.full_like(ids, view))["logits"].double().softmax(1).numpy() for view in (0, 1)]
    expected = (views[0] + views[1]) / 2
    with np.load(few.folder / "pool.npz") as saved:
        np.testing.assert_allclose(saved["confidence"], expected.max(1), rtol=1e-6)
    learned, known = lesson(job, "pseudo", few.folder, 64), job.data.train.labelled
    train = learned.data.train
    assert (learned.batches, learned.kept) == (20, None)
    assert train.labelled is None
    np.testing.assert_array_equal(train.targets[~known], expected.argmax(1)[~known])
    np.testing.assert_array_equal(train.targets[known], job.data.train.targets[known])
    pool = read_json(few.folder / "pool.json")
    assert (pool["samples"], pool["labels"]) == (1218, 40)
    assert pool["confidence"] == pytest.approx(expected.max(1)[~known].mean())
    assert pool["below_90"] == pytest.approx((expected.max(1)[~known] < 0.9).mean())
    shares = [
        np.bincount(part, minlength=10) / len(part) for part in (expected.argmax(1)[~known], train.targets[known])
    ]
    assert pool["class_shift"] == pytest.approx(0.5 * np.abs(shares[0] - shares[1]).sum())


def test_the_hard_term_is_a_mean_over_labelled_samples(few: Run) -> None:
    """It begins near 0.1 times log 10, of which a mean over all samples would be a thirtieth."""
    first = json.loads((few.folder / "seeds/0/distilled/history.jsonl").read_text().splitlines()[0])
    assert 0.1 < first["parts"]["cross_entropy"] < 0.35


def test_a_finished_run_is_kept_and_so_is_the_teacher_when_labels_change(few: Run) -> None:
    assert all(stage.reused for stage in plan(loads(FEW), out=few.folder).stages[:-1])
    other = plan(loads(FEW.replace("labels: 40", "labels: 41")), out=few.folder)
    assert [stage.name for stage in other.stages if stage.reused] == ["teacher", "store"]
    every = plan(loads(TINY), out=few.folder)
    assert [stage.name for stage in every.stages if stage.reused] == ["teacher", "store"]


def test_samples_of_which_the_teacher_is_not_sure_may_be_left_out(few: Run, tmp_path: Path) -> None:
    """Three epochs of teaching leave it unsure; students make as many steps on what is left."""
    with np.load(few.folder / "pool.npz") as saved:
        sure = dict(zip(saved["ids"].tolist(), saved["confidence"].tolist(), strict=True))
    least = round(float(np.median(list(sure.values()))), 3)
    recipe = loads(FEW.replace("labels: 40", f"labels: 40\n  min_confidence: {least}").replace("seeds: 2", "seeds: 1"))
    out = few.folder.with_name("sure")
    shutil.copytree(few.folder, out)
    stages = {stage.name: stage for stage in plan(recipe, out=out).stages}
    assert [name for name, stage in stages.items() if stage.reused] == ["teacher", "store", "student alone, seed 0"]
    assert stages["pool"].what.endswith(f"; students learn those of which it is at least {100 * least:g} % sure")
    done = run(recipe, out=out)
    job = prepare(recipe, out=out, base=Path())
    for kind in ("pseudo", "distilled"):
        learned = lesson(job, kind, out, 64)
        drawn = [learned.stream(learned.data, 0).epoch(number, 64, order=0) for number in (0, 1)]
        ids = np.concatenate([batch.ids.numpy() for epoch in drawn for batch in epoch])
        kept = {number for number, value in sure.items() if value >= least}
        assert set(ids.tolist()) <= kept | set(job.data.train.ids[job.data.train.labelled].tolist())
        assert set(ids.tolist()) >= kept
        result = read_json(out / f"seeds/0/{kind}/result.json")
        assert (result["steps"], len(ids)) == (3 * 20, 2 * 20 * 64)
    facts = read_json(out / "pool.json")
    unknown = job.data.train.ids[~job.data.train.labelled].tolist()
    assert facts["kept"] == sum(sure[number] >= least for number in unknown)
    assert f"Students learn the {facts['kept']:,} of them of which" in " ".join(done.evaluation.verdict.sentences)
    with pytest.raises(UsageError, match=r"data\.min_confidence: 1 leaves nothing"):
        run(loads(FEW.replace("labels: 40", "labels: 40\n  min_confidence: 1")), out=out)


def test_the_plan_says_what_each_student_learns_from(tmp_path: Path) -> None:
    does = {stage.name: stage.what for stage in plan(loads(FEW), out=tmp_path / "run").stages}
    assert does["pool"] == "the teacher's classes of 1,218 samples without a label, and how sure it is"
    assert does["student alone, seed 0"] == "train for 3 epochs, 40 labels only, as many steps"
    assert does["student pseudo, seed 0"] == "train for 3 epochs, 40 labels and the teacher's for 1,218 samples"
    assert does["student distilled, seed 0"] == "train for 3 epochs, with the teacher, 40 labels (2 of 64 in a batch)"


def test_trees_have_no_batches_to_share_and_learn_from_what_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    random = np.random.default_rng(0)
    inputs, pool = (random.normal(size=(count, 2)).astype(np.float32) for count in (60, 200))
    table = [*inputs, *pool]
    (tmp_path / "train.csv").write_text(
        "a,b,label\n" + "\n".join(f"{a},{b},{int(a + b > 0)}" for a, b in table[:60]), encoding="utf-8"
    )
    (tmp_path / "pool.csv").write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in table[60:]), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "task": "classification",
            "data": {"train": "train.csv", "unlabelled": "pool.csv", "min_confidence": 0.9},
            "teacher": {"model": "mlp", "train": {"epochs": 60, "optimizer": "sgd", "learning_rate": 0.1}},
            "student": {"model": "lightgbm", "args": {"rounds": 3, "num_leaves": 3}},
            "export": {"formats": []},
            "evaluation": {"latency": False},
        }
    )
    out = tmp_path / "run"
    does = {stage.name: stage.what for stage in plan(recipe, out=out, base=tmp_path).stages}
    assert does["student alone, seed 0"].endswith(", 42 labels only")
    assert does["student distilled, seed 0"].endswith(", with the teacher, 42 labels")
    run(recipe, out=out, base=tmp_path)
    kept = read_json(out / "pool.json")["kept"]
    learned = lesson(prepare(recipe, out=out, base=tmp_path), "distilled", out, 64)
    assert 0 < kept < 200
    assert len(learned.stream(learned.data).every()) == 42 + kept


@pytest.mark.parametrize("labels", [None, 10])
def test_a_pool_in_memory_and_a_finished_teacher(tmp_path: Path, labels: int | None) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 2)).astype(np.float32) + np.array([2, 0], np.float32)
    pool = 3 * random.normal(size=(200, 2)).astype(np.float32)
    teacher = torch.nn.Linear(2, 2)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[-4.0, -4.0], [4.0, 4.0]]))
        teacher.bias.copy_(torch.tensor([8.0, -8.0]))
    done = potstill.distill(
        teacher,
        {"model": "mlp", "args": {"hidden": [8]}},
        (inputs, (inputs.sum(1) > 2).astype(np.int64)),
        unlabelled=pool,
        labels=labels,
        out=tmp_path / "run",
        training={"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "optimizer": "sgd"},
        export={"formats": []},
        evaluation={"latency": False},
    )
    facts = read_json(done.folder / "data.json")
    assert facts["train"] - 200 == 42
    assert facts["labelled"] == (labels or 42)
    assert set(done.evaluation.models) == {"teacher", *ARMS}
    with np.load(done.folder / "pool.npz") as saved:
        np.testing.assert_array_equal(saved["classes"][-200:], pool.sum(1) > 2)


def without_labels(out: Path, seeds: int) -> Run:
    """A teacher that knows the line, 300 points that nobody has labelled, and labelled ones beside them."""
    random = np.random.default_rng(0)
    points = [random.normal(size=(count, 2)).astype(np.float32) for count in (300, 60, 200)]
    labels = [(part.sum(1) > 0).astype(np.int64) for part in points]
    teacher = torch.nn.Linear(2, 2)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[-4.0, -4.0], [4.0, 4.0]]))
        teacher.bias.zero_()
    return potstill.distill(
        teacher,
        {"model": "mlp", "args": {"hidden": [8]}},
        {"train": points[0], "validation": (points[1], labels[1]), "test": (points[2], labels[2])},
        labels=0,
        out=out,
        seeds=seeds,
        training={"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "optimizer": "sgd"},
        export={"formats": []},
        evaluation={"latency": False},
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_any_label_in_train_the_teachers_labels_are_the_baseline(tmp_path: Path, seeds: int) -> None:
    done = without_labels(tmp_path / "run", seeds)
    assert list(done.evaluation.models) == ["teacher", "pseudo", "distilled"]
    assert {"distilled-pseudo", "distilled-teacher", "teacher-pseudo"} == set(done.evaluation.differences)
    assert not list((tmp_path / "run").glob("seeds/*/alone"))
    steps = {read_json(tmp_path / f"run/seeds/0/{kind}/result.json")["steps"] for kind in ("pseudo", "distilled")}
    assert steps == {2 * 15}
    said = " ".join([done.evaluation.verdict.headline, *done.evaluation.verdict.sentences])
    assert "the same student trained on the teacher's labels" in said
    assert "trained alone" not in said
    assert "Students see no label of 300 training samples" in said
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Distilled \N{MINUS SIGN} teacher&#39;s labels" in page
    assert "distilled minus alone" not in page.lower()


def test_a_teacher_cannot_be_trained_where_nothing_has_a_label(tmp_path: Path) -> None:
    pool, held = np.zeros((20, 2), np.float32), (np.eye(2, dtype=np.float32), np.arange(2))
    with pytest.raises(UsageError, match="The teacher is to be trained here, and train has no label"):
        potstill.distill(
            {"model": "mlp", "train": {"epochs": 1}},
            {"model": "mlp"},
            {"train": pool, "validation": held, "test": held},
            labels=0,
            out=tmp_path / "run",
        )


def test_what_an_earlier_recipe_left_of_other_students_is_removed(few: Run) -> None:
    out = few.folder.with_name("earlier")
    shutil.copytree(few.folder, out)
    run(loads(TINY), out=out)
    assert not list(out.glob("seeds/*/pseudo"))
    assert not list(out.glob("pool.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "regression"}, "data.labels is for task: classification"),
        ({"teacher": None}, "without a teacher nobody answers"),
        ({"back_to_teacher": {}}, "data.labels and back_to_teacher do not go together"),
        (
            {"data": {"train": "digits", "unlabelled": "x.npz", "augment": {"mixup": 0.2}}},
            "data.unlabelled and data.augment.mixup",
        ),
    ],
)
def test_what_does_not_go_with_few_labels_is_refused(change: dict, message: str) -> None:
    written = {"data": {"train": "digits", "labels": 40}, "student": {"model": "cnn"}}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({**written, "teacher": {"model": "cnn", "train": {}}, **change})


def test_an_average_of_the_student_labels_nothing_beforehand(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**yaml.safe_load(FEW), "teacher": {"average_of_student": 0.9}})
    assert kinds(prepare(recipe, out=tmp_path, base=Path())) == ("alone", "distilled")
    assert kinds(prepare(loads(TINY), out=tmp_path, base=Path())) == ("alone", "distilled")


def test_an_unlabelled_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = loads(TINY.replace("  train: digits\n", "  train: digits\n  unlabelled: nothing.npz\n"))
    with pytest.raises(DataError, match=r"'nothing\.npz' does not exist"):
        prepare(missing, out=tmp_path, base=tmp_path)
