"""kill -9 anywhere and call again: bit for bit the training that was never interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("training_worker.py")
TIMING = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(WORKER), "kill", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def history(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


@pytest.mark.parametrize("variant", ["sgd", "adamw", "bank", "average", "few"])
def test_weights_and_history_are_those_of_an_uninterrupted_training(killed: Path, variant: str) -> None:
    peace = killed / variant / "peace"
    expected, rows = load_file(peace / "weights.safetensors"), history(peace)
    assert len(rows) == 6
    assert len({row["validation_loss"] for row in rows}) == 6
    assert ("gradient_cosine" in rows[0]) == (variant == "bank")
    others = sorted(path for path in (killed / variant).iterdir() if path != peace)
    assert len(others) == 6
    for other in others:
        found = load_file(other / "weights.safetensors")
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected), other.name
        assert history(other) == rows, other.name
        result, known = (json.loads((f / "result.json").read_text()) for f in (other, peace))
        assert {**result, "seconds": 0} == {**known, "seconds": 0}


def test_the_processes_really_died_in_the_middle(killed: Path) -> None:
    lines = [line.split() for line in (killed / "log.txt").read_text().splitlines()]
    events = [line for line in lines if line[1] == "event"]
    assert len(events) == 25
    assert all(line[2] == "-9" for line in events)
    middle = [line for line in lines if line[1] == "random" and line[2] == "-9" and 0 < int(line[3]) < 30]
    assert middle, "no process was killed between its first and its last checkpoint"
