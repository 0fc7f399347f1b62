"""Recipes of others: with ``untrusted``, nothing in them can run code, ask a server or reach beyond their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.core.errors import UsageError
from potstill.recipe.problems import schema_keys
from potstill.recipe.schema import Recipe
from potstill.recipe.text import TextRecipe
from potstill.recipe.untrusted import offences
from potstill.recipe.yaml import read, read_for_label

GOOD = """
data: {train: data/table.csv, test: ./more.npz, args: {x: "y:z"}}
teacher: {model: resnet20, weights: teacher.safetensors, taps: {hidden: layer3}}
student: {model: resnet8, args: {width: 4}}
objective: [{loss: cross_entropy, on: logits}, {loss: forward_kl, head: adapter}]
training: {track: [tensorboard]}
store: {path: store}
"""
BAD = {
    "student.model=nets.py:small": "student.model: 'nets.py:small' is Python code to run",
    "student.model=os:system": "student.model: 'os:system' is Python code",
    "teacher.model=package.module:Net": "teacher.model: ",
    "peers=[{model: 'nets.py:small'}]": "peers.0.model: ",
    "chain=[{model: 'nets.py:small'}]": "chain.0.model: ",
    "objective.0.loss=losses.py:mine": "objective.0.loss: ",
    "objective.1.head=losses.py:head": "objective.1.head: ",
    "objective.1.transform=losses.py:head": "objective.1.transform: ",
    "objective=losses.py:mine": "objective: ",
    "data.train=load.py:read": "data.train: ",
    "data.test=package.data:read": "data.test: ",
    "data.validation=/etc/passwd": "data.validation: '/etc/passwd' is outside the recipe's folder",
    "data.train=../elsewhere.csv": "data.train: ",
    "data.train=data/../../elsewhere.csv": "data.train: ",
    "data.train=~/table.csv": "data.train: ",
    "data.train=$HOME/table.csv": "data.train: ",
    "data.train=link/table.csv": "data.train: ",
    "teacher.weights=/elsewhere/teacher.safetensors": "teacher.weights: ",
    "teacher.allow_pickle=true": "teacher.allow_pickle: pickles run code",
    "teacher={file: model.onnx, answers: logits}": "teacher.file: 'model.onnx' is a program to run",
    "teacher={file: model.keras, python: /bin/sh, args: {code: x.py}}": "teacher.python: '/bin/sh' is a program",
    "teacher={endpoint: {url: 'http://localhost:1', model: m, key_env: SECRET}}": "teacher.endpoint: an endpoint",
    "teacher={members: [{file: a.joblib}, {file: b.npz}]}": "teacher.members.0.file: ",
    "store.path=s3://bucket/store": "store.path: ",
    "training.track=[wandb]": "training.track: mlflow and wandb send",
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "recipe.yaml").write_text(GOOD)
    return folder / "recipe.yaml"


def test_models_of_the_zoo_and_data_files_are_all_it_needs(recipe: Path) -> None:
    assert read(recipe, untrusted=True) == read(recipe)
    assert read(recipe, ["teacher={file: answers.npz, answers: logits}"], untrusted=True).teacher is not None


@pytest.mark.parametrize("change", BAD)
def test_everything_that_runs_or_reaches_further_is_refused_by_name(recipe: Path, change: str) -> None:
    read(recipe, [change])
    for reader in (read, read_for_label):
        with pytest.raises(UsageError) as caught:
            reader(recipe, [change], untrusted=True)
        assert BAD[change] in str(caught.value)
        assert "models of the zoo and data files beside it only" in str(caught.value)


def test_all_of_it_is_named_at_once_with_its_lines(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("resnet8", "'nets.py:small'").replace("data/table.csv", "/data/table.csv"))
    with pytest.raises(UsageError, match=r"2 problems in(?s:.*)yaml:2: data\.train(?s:.*)yaml:4: student\.model"):
        read(recipe, untrusted=True)


def test_recipes_of_texts_always_ask_a_server(recipe: Path) -> None:
    recipe.write_text(
        "task: text\ndata: {train: q.jsonl}\nteacher: {endpoint: {url: 'http://localhost:1', model: m}}\n"
    )
    assert isinstance(read_for_label(recipe), TextRecipe)
    with pytest.raises(UsageError, match=r"teacher\.endpoint: an endpoint would be sent the data"):
        read_for_label(recipe, untrusted=True)


def test_every_key_that_takes_a_function_is_looked_at() -> None:
    takes = {str(place[-1]) for place, section in schema_keys(Recipe) if "file.py:name" in str(
        section.model_fields[str(place[-1])].description
    )}  # fmt: skip
    assert takes == {"train", "model", "loss", "head", "transform"}
    for key in takes:
        assert list(offences({key: "file.py:name"}, Path()))
