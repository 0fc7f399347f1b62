"""An epoch from the store beside a plain epoch, a live teacher, and torchdistill with its live teacher.

CIFAR-10, ResNet-56 into ResNet-20, batch 128, crop and flip, SGD with momentum, temperature 4. All take turns, a short
epoch each in every round. torchdistill runs in an environment of its own (see `conformance/environments.py`) with the
same modules and weights, with its usual Pillow pipeline (``pictures``) and with images that are tensors already and not
changed (``tensors``): the least it can cost. One thread for all.

The ratios are of steps; no training is run to its end here. Both sides see the teacher in float32, as torchdistill has
no other precision on a CPU; ``store, bfloat16`` is what potstill does by default.

Predicted: a stored answer costs 20 µs and the loss 200 µs beside a step of 150 ms: ratio 1.00. A live ResNet-56 adds
125 million multiplications beside 3 x 41: ratio 2.0. torchdistill does the same arithmetic without channels-last
memory, and 128 images of Pillow a batch at 100 µs each: 13 ms, 4 %.

    POTSTILL_DATA=... python benchmarks/cached_epoch.py [--clock wall]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conformance.environments import TOOLS, interpreter
from epoch_cost import stored

import potstill
from potstill.objective import preset
from potstill.pipeline import stages
from potstill.pipeline.build import build_job
from potstill.recipe.yaml import read
from potstill.training import Spec, loop, train

HERE = Path(__file__).parent


class Rival:
    """torchdistill in another process, which waits until it is asked."""

    def __init__(self, job: Any, samples: Any, batch: int, folder: Path) -> None:
        tool = next(tool for tool in TOOLS if tool.name == "torchdistill")
        images = samples.fetch(np.arange(len(samples)))  # uint8, as packs.py gives them
        np.savez(folder / "images.npz", images=images.numpy(), labels=samples.targets)
        torch.save(job.teacher_at(0).state_dict(), folder / "teacher.pt")
        self.process = subprocess.Popen(
            [interpreter(tool), HERE / "cached_epoch_torchdistill.py", folder / "images.npz", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TEACHER_WEIGHTS": str(folder / "teacher.pt"), "PYTHONWARNINGS": "ignore"},
        )
        self.version = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"torchdistill's process ended with {self.process.wait()}.")
        return dict(json.loads(line))

    def seconds(self, case: str, clock: str) -> float:
        if self.process.stdin:
            print(case, file=self.process.stdin, flush=True)
        return float(self._answer()[clock])

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="of an epoch")
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor", help="wall on a quiet machine")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.clock == "processor":
        # The loop's own rate, in processor time: neighbours on the core then count little.
        loop.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    job = build_job(read(HERE / "cifar10" / "resnet20.yaml"), base=HERE / "cifar10")
    batch = job.recipe.training.batch_size
    small = job.data.train.take(slice(0, given.batches * batch))
    data = job.data.__class__(
        **{**job.data.__dict__, "train": small, "validation": job.data.validation.take(slice(0, 8))}
    )
    teacher = stages.live_teacher(job, job.teacher_at(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = stored(teacher, job, small, folder / "store")
        rival = Rival(job, small, batch, folder)
        live = job.teacher_at(0).teaching()

        def epoch(case: str, source: Any, precision: str, number: int) -> float:
            spec = Spec(
                data=data,
                stream=job.stream(data, seed=0, views=1),
                objective=preset("alone" if source is None else "kd", "classification"),
                settings=job.recipe.training.model_copy(update={"epochs": 1, "precision": precision}),
                preprocess=job.student.preprocess,
                teacher=source,
            )
            result = train(job.student.build(0, "alone"), spec, folder / f"{case}-{number}".replace(" ", "-"))
            return len(small) / float(json.loads(result.history.read_text())["images_per_second"])

        cases: dict[str, tuple[str, str, Callable[[int], float]]] = {
            "alone": ("potstill", "float32", lambda number: epoch("alone", None, "float32", number)),
            "store": ("potstill", "float32", lambda number: epoch("store", recorded, "float32", number)),
            "live": ("potstill", "float32", lambda number: epoch("live", live, "float32", number)),
            "pictures": ("torchdistill", "float32", lambda _: rival.seconds("pictures", given.clock)),
            "tensors": ("torchdistill", "float32", lambda _: rival.seconds("tensors", given.clock)),
            "alone, bfloat16": ("potstill", "bfloat16", lambda number: epoch("alone16", None, "bfloat16", number)),
            "store, bfloat16": ("potstill", "bfloat16", lambda number: epoch("store16", recorded, "bfloat16", number)),
        }
        seen: dict[str, list[float]] = {case: [] for case in cases}
        for number in range(given.rounds + 1):
            for case, (_, _, run) in cases.items():
                seconds = run(number)
                if number:  # the first round warms up
                    seen[case].append(seconds)
            print(number, {case: round(times[-1], 2) for case, times in seen.items() if times}, flush=True)
        rival.close()
    rows = [
        {
            "package": f"{package} {rival.version if package == 'torchdistill' else potstill.__version__}",
            "case": case,
            "precision": precision,
            "images_per_second": round(len(small) / statistics.median(seen[case]), 1),
            **{
                f"time_ratio_to_{other}": round(
                    statistics.median(a / b for a, b in zip(seen[case], seen[base], strict=True)), 3
                )
                for other, base in (("alone", alone(precision)), ("store", alone(precision).replace("alone", "store")))
            },
            "rounds": given.rounds,
            "batches": given.batches,
            "clock": given.clock,
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1),
            "torch": torch.__version__,
        }
        for case, (package, precision, _) in cases.items()
    ]
    with (HERE / "results" / "cached_epoch.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


def alone(precision: str) -> str:
    return "alone" if precision == "float32" else "alone, bfloat16"


if __name__ == "__main__":
    main()
