"""The example with private teachers, end to end: what was asked is what is paid for, and no secret is left behind."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from potstill.core.errors import UsageError
from potstill.core.files import read_json
from potstill.models import build, save_weights
from potstill.pipeline import label
from potstill.recipe.yaml import loads

EXAMPLE = Path(__file__).parents[2] / "examples/private_votes/private_votes.py"


def test_the_example_runs_and_pays_for_every_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLE))
    example["main"](epochs=8, formats=())
    run = tmp_path / "runs/private_votes"
    privacy = read_json(run / "privacy.json")
    assert privacy["queries"] == 1258 - example["PRIVATE"]
    assert 0 < privacy["answered"] < privacy["queries"]
    assert 8 < privacy["epsilon_of_answered"] < privacy["epsilon"] < 12
    assert "Not the samples" in capsys.readouterr().out
    # The teacher was asked about the public samples alone, not measured on the test split.
    with np.load(run / "predictions.npz") as predictions:
        assert "teacher" not in predictions
    assert read_json(run / "evaluation.json")["models"]["distilled"]["metrics"]["accuracy"] > 0.5
    secret = json.loads((tmp_path / "noise.secret.json").read_text())["secret"]
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [
        path for path in files if secret.encode() in (text := path.read_bytes()) or bytes.fromhex(secret) in text
    ]


VOTES = """
task: classification
data: {train: digits, augment: {crop: 1}}
teacher:
  members: [MEMBERS]
  votes: {noise: 2.0, check_noise: 3.0, threshold: 4.0, secret: noise.secret.json}
student: {model: cnn, args: {width: 4}}
store: {path: answers}
"""


def test_a_recipe_of_votes_says_what_they_cost(tmp_path: Path) -> None:
    for number in range(9):
        save_weights(build("cnn", {"in_channels": 1, "width": 4}, seed=number), tmp_path / f"{number}.safetensors")
    members = ", ".join(f"{{model: cnn, args: {{width: 4}}, weights: {number}.safetensors}}" for number in range(9))
    recipe = loads(VOTES.replace("MEMBERS", members))
    labelled = label(recipe, out=tmp_path / "run", base=tmp_path)
    report = read_json(tmp_path / "run" / "privacy.json")
    assert report["members"] == 9
    assert report["queries"] == 1258  # one view, although images are augmented
    assert 0 < report["answered"] < 1258
    assert report["answered"] + report["abstained"] == 1258
    assert report["epsilon"] > report["epsilon_of_answered"] > 0
    assert (tmp_path / "noise.secret.json").stat().st_mode & 0o777 == 0o600
    secret = json.loads((tmp_path / "noise.secret.json").read_text())["secret"].encode()
    files = [path for path in [*(tmp_path / "answers").rglob("*"), *(tmp_path / "run").rglob("*")] if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if secret in path.read_bytes()]
    assert "validation" not in labelled.facts.splits  # a measurement would cost more questions


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("votes: {noise: 2.0, ", "live: true\n  votes: {noise: 2.0, "), "drop merge and live"),
        (("width: 4}, weights: 0", "width: 4}, classes: ['1'], weights: 0"), "know all classes"),
    ],
)
def test_votes_that_make_no_sense(tmp_path: Path, change: tuple[str, str], part: str) -> None:
    text = VOTES.replace("MEMBERS", "{model: cnn, args: {width: 4}, weights: 0.safetensors}")
    with pytest.raises(UsageError, match=part):
        loads(text.replace(*change))
