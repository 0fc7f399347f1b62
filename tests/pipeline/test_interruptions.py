"""Killed runs, many processes, full disks: nothing finished is lost, and the result is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from potstill.core import fingerprint
from potstill.core.errors import PotstillError
from potstill.core.files import read_json
from potstill.pipeline import run
from potstill.recipe.yaml import loads

from .conftest import TINY

QUICK = TINY.replace("seeds: 2", "seeds: 1").replace(", milliseconds: 100", "") + "evaluation: {latency: false}\n"
UNEXPORTED = QUICK.replace("export: {", "export: {formats: [], ")


def potstill_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "potstill.cli", *map(str, arguments)]


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("weights.safetensors"))
    return {str(file.relative_to(folder)): fingerprint.of_state(load_file(file)) for file in files}


def test_killed_at_any_moment_the_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QUICK)
    run(loads(QUICK), out=tmp_path / "whole" / "run")
    chance = random.Random(7)
    command = potstill_command("run", recipe, "--out", tmp_path / "killed" / "run", "--quiet")
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            # Later attempts are given more time, so that the test ends on a slow machine as well.
            process.wait(timeout=4.0 + chance.random() * 4 + 6 * attempt)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
    assert process.returncode == 0
    assert kills > 0
    whole = weights(tmp_path / "whole" / "run")
    assert len(whole) == 3
    assert weights(tmp_path / "killed" / "run") == whole


# After one epoch the teacher knows next to nothing, and is said to.
@pytest.mark.filterwarnings("ignore:The teacher is not clearly better than guessing")
def test_two_processes_make_the_same_run_as_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    # Plain SGD, so that nothing hides a wrong scale of the gradient.
    quick = UNEXPORTED.replace("epochs: 3", "epochs: 1").replace(
        "learning_rate: 0.1", "momentum: 0, weight_decay: 0, learning_rate: 0.05"
    )
    recipe.write_text(quick)
    one = run(loads(quick), out=tmp_path / "one" / "run")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, *potstill_command("run", recipe, "--out", tmp_path / "two" / "run", "--quiet")[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with (
        np.load(one.folder / "predictions.npz") as ours,
        np.load(tmp_path / "two" / "run" / "predictions.npz") as theirs,
    ):
        for name in ("teacher", "alone", "distilled"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3 * ours[name].std(), err_msg=name)
    first, second = ((made / "seeds/0/distilled/result.json") for made in (one.folder, tmp_path / "two" / "run"))
    assert read_json(first)["steps"] == read_json(second)["steps"]


def test_a_nan_loss_names_step_and_term_and_keeps_what_is_finished(tmp_path: Path) -> None:
    recipe = UNEXPORTED.replace(
        "learning_rate: 0.1, precision: float32, check", "learning_rate: 1.0e30, precision: float32, check"
    )
    with pytest.raises(PotstillError, match=r"step.*(cross_entropy|forward_kl|gradient)"):
        run(loads(recipe), out=tmp_path / "nan")
    state = read_json(tmp_path / "nan" / "run.json")["stages"]
    assert state["teacher"]["status"] == "done"
    assert "failed" in {entry["status"] for entry in state.values()}
    again = run(loads(UNEXPORTED), out=tmp_path / "nan")
    assert read_json(again.folder / "run.json")["stages"]["teacher"]["status"] == "skipped"


def test_a_damaged_store_is_repaired_by_the_same_command(tmp_path: Path) -> None:
    made = run(loads(UNEXPORTED), out=tmp_path / "run")
    store = next((tmp_path / "store").glob("*/shards/*/logits.npy"))
    before = store.read_bytes()
    store.write_bytes(before[:200] + bytes([before[200] ^ 255]) + before[201:])
    run(loads(UNEXPORTED), out=made.folder)
    assert store.read_bytes() == before
