"""Two processes train what one trains: weights, losses and gradient norms, batch norm and adapters included."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("training_worker.py")


def worker_module(toys: ModuleType) -> ModuleType:
    sys.modules.setdefault("training_toys", toys)
    spec = importlib.util.spec_from_file_location("training_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[2, 3])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """With three processes, the last batch of two samples is smaller than their number."""
    folder = tmp_path_factory.mktemp("launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    done = subprocess.run(
        [*command, str(WORKER), "processes", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return request.param, folder


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_trajectory_does_not_depend_on_the_number_of_processes(
    launched: tuple[int, Path], toys: ModuleType, tmp_path: Path
) -> None:
    count, folder = launched
    worker = worker_module(toys)
    assert len(worker.PROCESS_VARIANTS) == 10
    for name, variant in worker.PROCESS_VARIANTS.items():
        student, _ = worker.run(variant, tmp_path / name)
        known = rows(tmp_path / name)
        found = rows(folder / name)
        assert len(known) == len(found) == 3
        for a, b in zip(found, known, strict=True):
            for key in ("train_loss", "gradient_norm", "validation_loss", "validation_metric", "learning_rate"):
                assert a[key] == pytest.approx(b[key], rel=2e-5), (name, key)
            assert a["parts"] == pytest.approx(b["parts"], rel=2e-5), name
            assert ("gradient_cosine" in a) == variant[1].get("gradient_report", False)
            for key in ("gradient_norms", "gradient_cosine"):
                assert a.get(key) == (pytest.approx(b[key], rel=2e-4) if key in b else None), (name, key)
            assert (a["epoch"], a["step"]) == (b["epoch"], b["step"])
        expected = student.state_dict()
        saved = load_file(folder / name / "weights.safetensors")
        states = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(count)]
        assert len({state["result"] for state in states}) == 1
        for state in [saved, *(state["state"] for state in states)]:
            for key, value in expected.items():
                torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


def test_rows_of_all_processes_in_order_however_many_each_has(launched: tuple[int, Path]) -> None:
    count, folder = launched
    numbers = [10 * rank + index for rank in range(count) for index in range(rank + 1)]
    for rank in range(count):
        whole, even, some = torch.load(folder / f"gathered-{rank}.pt", weights_only=True)
        assert whole.tolist() == numbers
        assert even.tolist() == [[number % 2 == 0] for number in numbers]
        assert even.dtype == torch.bool
        assert some.tolist() == [10.0]
