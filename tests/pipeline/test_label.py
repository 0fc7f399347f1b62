"""Recording alone: in one go, in parts, with every codec; and what a run finds of it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.core.errors import PotstillWarning, TeacherError, UsageError
from potstill.core.files import read_json
from potstill.models import build, save_weights
from potstill.pipeline import Labelled, label, plan, run
from potstill.recipe.yaml import loads

RECIPE = """
task: classification
data: {train: digits, augment: {crop: 1}}
teacher: {model: cnn, args: {in_channels: 1, width: 8}, weights: teacher.safetensors}
student: {model: cnn, args: {width: 4}}
training: {epochs: 1, batch_size: 64, optimizer: sgd, learning_rate: 0.1, precision: float32}
evaluation: {latency: false}
export: {formats: []}
store: {views: 2, path: answers, shards: 2}
"""
CODECS = {
    "full": "{codec: full, dtype: int8}",
    "top_k": "{codec: top_k, k: 3}",
    "random": "{codec: random, draws: 20}",
    "threshold": "{codec: threshold, size: 4}",
    "low_rank": "{codec: low_rank, rank: 9}",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a teacher's weights."""
    save_weights(build("cnn", {"in_channels": 1, "width": 8}, seed=3), tmp_path / "teacher.safetensors")
    return tmp_path


def contents(store: Path) -> dict[str, bytes]:
    files = [path for path in store.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def test_a_run_finds_what_was_labelled(base: Path) -> None:
    labelled = label(loads(RECIPE), out=base / "run", base=base, command="potstill label digits.yaml")
    assert labelled.finished
    assert labelled.facts.num_samples == 1258
    assert labelled.facts.num_views == 2
    assert "<html" in labelled.page.read_text(encoding="utf-8")
    before = contents(labelled.store)
    run(loads(RECIPE), out=base / "run", base=base)
    assert read_json(base / "run" / "run.json")["stages"]["store"]["status"] == "skipped"
    assert contents(labelled.store) == before


def test_parts_make_the_same_bytes_and_the_page_comes_last(base: Path) -> None:
    whole = label(loads(RECIPE), out=base / "one", base=base)
    expected = contents(whole.store)
    assert len([name for name in expected if name.endswith("logits.npy")]) == 2
    recipe = loads(RECIPE.replace("answers", "other"))
    first = label(recipe, out=base / "two", base=base, part=(1, 2))
    assert not first.finished
    with pytest.raises(TeacherError, match="interrupted"):
        first.open()
    label(recipe, out=base / "three", base=base, part=(0, 2))
    last = label(recipe, out=base / "two", base=base)
    assert last.finished
    assert contents(last.store) == expected
    assert last.facts.stored["seconds"] is None  # nothing was recorded by this call


def test_more_parts_than_shards_are_refused(base: Path) -> None:
    with pytest.raises(UsageError, match=r"2 shards, too few for 3 parts\. Set store\.shards to 3"):
        label(loads(RECIPE), out=base / "run", base=base, part=(0, 3))


def test_a_teacher_that_is_trained_here_is_not_trained_by_parts(base: Path) -> None:
    recipe = loads(RECIPE.replace("weights: teacher.safetensors", "train: {epochs: 1, batch_size: 64}"))
    with pytest.raises(UsageError, match="is to be trained here first"):
        label(recipe, out=base / "run", base=base, part=(0, 2))


def test_nothing_to_record(base: Path) -> None:
    features = RECIPE.replace("width: 4}", "width: 4}, on_features: pool").replace(", augment: {crop: 1}", "")
    with pytest.raises(UsageError, match="computes features, not answers"):
        label(loads(features), out=base / "run", base=base)
    lines = [line for line in RECIPE.splitlines() if "teacher:" not in line]
    own = "\n".join([*lines, "teacher: {average_of_student: 0.9}"])
    with pytest.raises(UsageError, match="no teacher of its own"):
        label(loads(own), out=base / "run", base=base)


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_can_be_trained_from(base: Path, name: str) -> None:
    recipe = loads(RECIPE.replace("path: answers,", f"codecs: {{logits: {CODECS[name]}}}, path: answers,"))
    samples = name in ("random", "threshold")
    with pytest.warns(PotstillWarning, match=r"temperature .* bends them") if samples else nullcontext():
        labelled = label(recipe, out=base / "run", base=base)
    chosen = [row for row in labelled.facts.fidelity if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["codec"].startswith(name.replace("_", " "))
    store = labelled.open()
    store.verify()
    ids = torch.from_numpy(np.array(store.ids[:50]))
    logits = store.read("logits", ids, torch.zeros_like(ids))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (50, 10)
    if not samples:
        assert float(chosen[0]["kl"]) < 0.1
    planned = plan(recipe, out=base / "run", base=base)
    assert any("reads sampled probabilities" in text for text in planned.warnings) == samples
    if name == "low_rank":
        finished = run(recipe, out=base / "run", base=base)
    elif name == "threshold":
        with pytest.warns(PotstillWarning, match=r"temperature .* bends them"):
            finished = run(recipe, out=base / "run", base=base)
    else:  # they are read as these two are
        return
    assert finished.evaluation.models["distilled"].metrics["accuracy"] > 0.05


def test_another_codec_or_rank_is_refused_by_name(base: Path) -> None:
    label(loads(RECIPE), out=base / "run", base=base)
    other = loads(RECIPE.replace("path: answers,", f"codecs: {{logits: {CODECS['low_rank']}}}, path: answers,"))
    with pytest.raises(TeacherError, match="signal 'logits' codec: recorded full, now low_rank"):
        label(other, out=base / "run", base=base)
    wide = other.model_copy(update={"store": other.store.model_copy(update={"path": "wide"})})
    wide.store.codecs["logits"] = wide.store.codecs["logits"].model_copy(update={"rank": 1000})
    with pytest.raises(UsageError, match=r"store\.codecs\.logits\.rank is 1000, but layer"):
        label(wide, out=base / "run", base=base)


def test_the_summary_is_json(base: Path) -> None:
    labelled = label(loads(RECIPE), out=base / "run", base=base)
    summary = json.loads(json.dumps(labelled.summary()))
    assert summary["finished"] is True
    assert summary["facts"]["num_samples"] == 1258
    assert Labelled(base / "run", labelled.store, True).facts == labelled.facts
