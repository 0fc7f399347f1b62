"""Threads that a training chooses by itself against one and all, on a machine of its own and beside a busy neighbour.

ResNet-20 on CIFAR-10 (batches of 128) and a perceptron on digits. The three settings take turns in one process; a row
is the median of rounds, in seconds of a training. The neighbour multiplies matrices with as many threads as cores.
Prediction: within a tenth of the better of the two where nothing changes, as 8 of 40 to 100 steps are spent on trying.

    env -u OMP_NUM_THREADS POTSTILL_DATA=... python benchmarks/threads.py
"""

from __future__ import annotations

import csv
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from potstill.objective import preset
from potstill.pipeline.build import build_job
from potstill.recipe.schema import Recipe
from potstill.training import Spec, history, train

HERE = Path(__file__).parent
ROUNDS = 3
BUSY = "import torch\nwhile True: torch.ones(800, 800) @ torch.ones(800, 800)"
RECIPES: dict[str, dict[str, Any]] = {
    "resnet20 on cifar": {
        "data": {"train": "packs.py:cifar10", "augment": {"crop": 4, "flip": True}},
        "student": {"model": "resnet20"},
        "training": {"epochs": 1, "batch_size": 128},
    },
    "mlp on digits": {
        "data": {"train": "digits"},
        "student": {"model": "mlp", "args": {"hidden": [64]}},
        "training": {"epochs": 6, "batch_size": 64},
    },
}


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """Let another process compute with all cores, or nobody."""
    process = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def measure(name: str, busy: bool, folder: Path) -> dict[str, Any]:
    """Return one row: seconds of a training by threads, and what was chosen."""
    recipe = {"task": "classification", "teacher": None, "objective": "alone", **RECIPES[name]}
    job = build_job(Recipe.model_validate(recipe), base=HERE)
    small = job.data.train.take(slice(0, 128 * 40))
    data = job.data.__class__(**{**job.data.__dict__, "train": small, "validation": job.data.validation.take(slice(8))})
    every = torch.get_num_threads()
    took: dict[int | str, list[float]] = {1: [], every: [], "auto": []}
    chosen: Counter[int] = Counter()
    with neighbour(busy):
        for number in range(ROUNDS + 1):
            for threads, seconds in took.items():
                fixed = {"threads": threads, "optimizer": "sgd", "learning_rate": 0.1, "precision": "float32"}
                settings = job.recipe.training.model_copy(update=fixed)
                spec = Spec(data, job.stream(data), preset("alone", "classification"), settings, job.student.preprocess)
                result = train(job.student.build(0, "alone"), spec, folder / f"{threads}-{number}")
                if number:  # the first round warms up
                    seconds.append(result.seconds)
                    if threads == "auto":
                        chosen[history.read(result.history)[-1]["threads"]] += 1
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    return {
        "training": name,
        "beside": "a busy neighbour" if busy else "nobody",
        "one": round(medians[1], 3),
        "all": round(medians[every], 3),
        "auto": round(medians["auto"], 3),
        "auto_to_better": round(medians["auto"] / min(medians[1], medians[every]), 3),
        "worse_to_better": round(max(medians[1], medians[every]) / min(medians[1], medians[every]), 3),
        "chosen": " ".join(f"{number}:{times}" for number, times in sorted(chosen.items())),
        "cores": every,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    rows = []
    for name in RECIPES:
        for busy in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, busy, Path(folder)))
            print(rows[-1], flush=True)
    with (HERE / "results" / "threads.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
