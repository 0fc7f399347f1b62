"""Members side by side in a run: the head is a stage, kept, told, and learned from validation alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from potstill.core.errors import PotstillError
from potstill.core.files import read_json
from potstill.data import load
from potstill.models import build, load_weights, tap
from potstill.pipeline import distill, label, making, plan, run
from potstill.pipeline.build import build_job
from potstill.pipeline.keys import Keys
from potstill.recipe.hash import recipe_hash
from potstill.recipe.yaml import loads
from potstill.store import open_store
from potstill.teachers import StoredTeacher

pytestmark = pytest.mark.filterwarnings("ignore:The members' head is no better than their mean")

RECIPE = """
data: {train: digits}
teacher:
  members:
    - {model: cnn, args: {width: 4}, train: {epochs: 2, batch_size: 64, optimizer: sgd, learning_rate: 0.1}}
    - {model: mlp, args: {hidden: [32]}, train: {epochs: 4, batch_size: 64, optimizer: sgd, learning_rate: 0.1},
       taps: {features: hidden}}
  merge: {concatenate: SOURCES}
student: {model: cnn, args: {width: 4}}
training: {epochs: 1, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""
MEMBERS = (("cnn", {"width": 4, "in_channels": 1}), ("mlp", {"hidden": [32], "in_features": 64}))


def recipe(sources="[layer3, features]", **changes):
    text = RECIPE.replace("SOURCES", sources)
    for old, new in changes.items():
        text = text.replace(old, new)
    return loads(text)


def stages(folder):
    return {name: entry["status"] for name, entry in read_json(folder / "run.json")["stages"].items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run(recipe(), out=tmp_path_factory.mktemp("side") / "run")


def copied(made, tmp_path):
    shutil.copytree(made.folder.parent, tmp_path / "side")
    return tmp_path / "side" / "run"


def test_the_store_holds_what_the_head_says_of_the_members_layers(made):
    folder, data = made.folder, load("digits")
    inputs = data.train.fetch(np.arange(50))
    read = []
    for number, ((name, args), layer) in enumerate(zip(MEMBERS, ("layer3", "hidden"), strict=True), 1):
        model = build(name, {"num_classes": 10, **args}).eval()
        load_weights(model, folder / "teacher" / f"{number}" / "weights.safetensors")
        preprocess = read_json_recipe(folder)["teacher"]["members"][number - 1]["preprocess"]
        with torch.no_grad(), tap(model, {"layer": layer}) as tapped:
            model((inputs.float() / 255 - preprocess["mean"][0]) / preprocess["std"][0])
            values = tapped["layer"].double().numpy()
        read.append(values.mean((2, 3)) if values.ndim == 4 else values)
    x = np.concatenate(read, axis=1)
    head = {name: value.numpy() for name, value in load_file(folder / "teacher" / "weights.safetensors").items()}
    expected = (x - head["mean"]) / head["spread"] @ head["weight"].T + head["bias"]
    (store,) = (folder.parent / "store").iterdir()
    ids = torch.from_numpy(data.train.ids[:50])
    found = StoredTeacher(open_store(store), ["logits"]).read(ids, torch.zeros_like(ids))["logits"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=2e-3)  # the store keeps float16
    assert head["weight"].shape == (10, 16 + 32)
    assert open_store(store).manifest.teacher["merge"] == {"concatenate": ["layer3", "hidden"], "members": 2}


def read_json_recipe(folder):
    return json.loads(json.dumps(loads((folder / "recipe.yaml").read_text()).model_dump()))


def test_the_head_is_a_stage_after_its_members_and_its_score_is_said(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("POTSTILL_QUIET", raising=False)
    assert list(stages(made.folder))[:4] == ["teacher 1", "teacher 2", "teacher", "store"]
    assert list(made.evaluation.models) == ["teacher", "alone", "distilled", "teacher 1", "teacher 2"]
    scores = read_json(made.folder / "teacher" / "head.json")
    assert scores["samples"] == len(load("digits").validation) == 180
    assert "ece_calibrated" not in made.evaluation.models["teacher"].metrics  # a temperature would be of the same split
    assert "ece_calibrated" in made.evaluation.models["distilled"].metrics
    assert "| Calibrated log loss | - | " in (made.folder / "export" / "README.md").read_text()
    assert scores["metric"] == "accuracy"
    assert len(scores["members"]) == 2
    told = [text for text in made.warnings if "no better than their mean" in text]
    assert bool(told) == (scores["head"] <= scores["mean"])
    capsys.readouterr()
    folder = copied(made, tmp_path)
    run(recipe(), out=folder)
    assert set(stages(folder).values()) == {"skipped"}
    assert "validation samples, which a part of it was fitted on." in capsys.readouterr().err


def test_a_head_that_is_gone_or_damaged_is_learned_again_and_nothing_else(made, tmp_path):
    folder = copied(made, tmp_path)
    file = folder / "teacher" / "weights.safetensors"
    before = file.read_bytes()
    for damage in (before[:-8] + bytes(8), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        planned = {stage.name: (stage.reused, stage.why) for stage in plan(recipe(), out=folder).stages}
        assert not planned["teacher"][0]
        run(recipe(), out=folder)
        assert file.read_bytes() == before
        found = stages(folder)
        assert found.pop("teacher") == "done"
        assert set(found.values()) == {"skipped"}


def test_killed_while_the_head_is_learned_the_members_are_kept(made, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "write_head", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(), out=folder)
    assert stages(folder) == {"teacher 1": "done", "teacher 2": "done", "teacher": "failed"}
    run(recipe(), out=folder)
    assert list(stages(folder).values())[:3] == ["skipped", "skipped", "done"]
    for name in ("teacher/weights.safetensors", "seeds/0/distilled/weights.safetensors"):
        found, expected = load_file(folder / name), load_file(made.folder / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("changes", "stays", "goes"),
    [
        ({"sources": "[pool, features]"}, ["teacher 1", "teacher 2"], ["teacher", "store"]),
        ({"sources": "answers"}, ["teacher 1", "teacher 2"], ["teacher", "store"]),
        ({"merge: {concatenate: [layer3, features]}": "merge: {}"}, ["teacher 1", "teacher 2"], ["store"]),
        ({"hidden: [32]": "hidden: [24]"}, ["teacher 1"], ["teacher 2", "teacher", "store"]),
        ({"data: {train: digits}": "data: {train: digits, split: {validation: 0.2}}"}, [], ["teacher 1", "teacher"]),
    ],
)
def test_what_the_head_depends_on_makes_it_again(made, tmp_path, changes, stays, goes):
    changes = dict(changes)
    planned = plan(recipe(changes.pop("sources", "[layer3, features]"), **changes), out=made.folder)
    reused = {stage.name: stage.reused for stage in planned.stages}
    assert all(reused[name] for name in stays)
    assert not any(reused[name] for name in (*goes, "student distilled, seed 0"))
    assert reused["student alone, seed 0"] == bool(stays)


def test_recipes_without_a_head_are_what_they_were():
    """Their hashes and the keys of their stores have nothing new in them."""
    plain = recipe(**{"{concatenate: [layer3, features]}": "{}"})
    assert list(plain.teacher.merge.model_dump()) == ["mean", "weighting", "weights"]
    assert recipe_hash(plain) != recipe_hash(recipe())
    assert recipe_hash(recipe("pool")) != recipe_hash(recipe("[pool, pool]"))
    again = loads(json.dumps(recipe().model_dump(mode="json")))
    assert again == recipe()


def save(path, ids, answers):
    parquet.write_table(pa.table({"id": ids, "answer": answers.astype(np.float32).tolist()}), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Recorded answers of a logistic regression: all of them, and those of the training samples."""
    folder, data = tmp_path_factory.mktemp("files"), load("digits")
    inputs = {
        name: split.fetch(np.arange(len(split))).numpy().reshape(len(split), -1) / 255
        for name, split in data.splits.items()
    }
    estimator = LogisticRegression(max_iter=200).fit(inputs["train"], data.train.targets)
    said = [estimator.predict_proba(part) for part in inputs.values()]
    save(folder / "train.parquet", data.train.ids, said[0])
    save(folder / "all.parquet", np.concatenate([split.ids for split in data.splits.values()]), np.concatenate(said))
    return folder


MIXED = """{members: [{model: mlp, args: {hidden: [16]}, train: {epochs: 2, optimizer: sgd, learning_rate: 0.1}},
  {file: FILE, answers: probabilities}], merge: {concatenate: SOURCES}}
"""


def mixed(file="all.parquet", sources="[hidden, answers]", **changes):
    text = RECIPE[: RECIPE.index("teacher:")] + "teacher: " + MIXED + RECIPE[RECIPE.index("student:") :]
    for old, new in {"FILE": file, "SOURCES": sources, **changes}.items():
        text = text.replace(old, new)
    return loads(text)


def test_recorded_answers_stand_beside_a_layer(files, tmp_path):
    finished = run(mixed(), out=tmp_path / "run", base=files)
    scores = read_json(tmp_path / "run" / "teacher" / "head.json")
    assert finished.evaluation.models["teacher"].metrics["accuracy"] > 0.9
    assert scores["members"][1] > 0.9
    label(mixed(), out=tmp_path / "label", base=files)
    facts = read_json(tmp_path / "label" / "label.json")
    assert list(facts["splits"]) == ["train"]  # on validation the head would only praise itself


def test_a_head_on_members_that_come_finished_depends_on_the_labels_that_it_learns_from(files):
    section = "{members: [{file: all.parquet, answers: probabilities}, {file: all.parquet, answers: probabilities}], "
    text = RECIPE[: RECIPE.index("teacher:")] + f"teacher: {section} merge: {{concatenate: answers}}}}\n"
    text += RECIPE[RECIPE.index("student:") :]
    more = text.replace("{train: digits}", "{train: digits, split: {validation: 0.2}}")
    keys = [Keys(build_job(loads(found), base=files)).head() for found in (text, text, more)]
    assert keys[0].key == keys[1].key != keys[2].key
    assert keys[0].known  # nothing of it waits for itself


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: mixed("train.parquet"), r"answers of teacher.members\[1\] lack 180 of its 180 samples. Record them"),
        (lambda: mixed(sources="hidden"), r"'hidden' of member 2, which has no layers .* such as \[hidden, answers\]"),
        (lambda: mixed(sources="[answers]"), r"1 sources for 2 members"),
        (lambda: mixed(sources="[hiden, answers]"), r"teacher.merge.concatenate: Perceptron has no layer 'hiden'"),
        (lambda: mixed(sources="[]"), r"0 sources for 2 members"),
        (
            lambda: mixed(**{"data: {train: digits}": "data: {train: digits, split: {validation: 0.01}}"}),
            r"fewer than two of its samples are of the class .*Make it larger \(data.split.validation",
        ),
        (lambda: mixed(sources="answers, weighting: attention"), r"drop mean, weighting and weights"),
        (lambda: mixed(sources="answers, weights: [1, 2]"), r"drop mean, weighting and weights"),
        (lambda: mixed(sources="3"), r"teacher.merge.concatenate: expected text or a list"),
        (lambda: mixed(concatenate="concatenat"), r"Did you mean 'concatenate'"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_the_plan(files, tmp_path, made, message):
    with pytest.raises(PotstillError, match=message):
        plan(made(), out=tmp_path / "run", base=files)
    assert not (tmp_path / "run" / "teacher").exists()


class Line(nn.Module):
    """Knows one of two inputs, in the target's units."""

    def __init__(self, column):
        super().__init__()
        self.column = column
        self.linear = nn.Linear(1, 1)
        with torch.no_grad():
            self.linear.weight.fill_(300.0)
            self.linear.bias.fill_(1000.0)

    def forward(self, x):
        return self.linear(x[:, self.column, None])


def test_values_are_put_together_in_the_units_of_the_target(tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    y = 300.0 * x[:, 0] - 200.0 * x[:, 1] + 1000.0
    made = distill(
        [Line(0), Line(1)], {"model": "mlp", "args": {"hidden": [8]}}, (x, y), task="regression",
        merge={"concatenate": "answers"}, out=tmp_path / "run", training={"epochs": 1},
        evaluation={"latency": False}, export={"formats": []},
    )  # fmt: skip
    scores = read_json(tmp_path / "run" / "teacher" / "head.json")
    assert scores["metric"] == "r2"
    assert scores["head"] > 0.999
    assert scores["mean"] < 0.9
    assert not [text for text in made.warnings if "no better" in text]
    assert made.evaluation.models["teacher"].metrics["r2"] > 0.999
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        np.testing.assert_allclose(saved["teacher"][:, 0], y[saved["ids"]], atol=2.0)
