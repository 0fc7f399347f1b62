"""What each preset costs beside plain cross entropy: a ResNet-20 step on CIFAR-10 shapes, batch 128.

The teacher's signals are given, as the store gives them; everything in the student's step is counted: forward pass,
heads, losses, backward pass, optimiser. A preset's step is compared with a plain step taken right before it in the same
process; the ratio is the median over rounds. Extra memory is the difference of the high-water marks of two fresh
processes.

Prediction before measuring: a ResNet-20 step is 3 x 82 MFLOP x 128 = 31 GFLOP. Losses on (128, 10) logits take
microseconds: 1.00. Attention maps and similarity matrices are below 0.1 GFLOP, but reading layer1 (128 x 16 x 32 x 32,
8 MB) a few times costs some milliseconds: 1.01 to 1.05. ReviewKD's fusion convolves 3x3 at three resolutions with 64 to
128 channels, about 8 GFLOP with its backward pass: 1.25 or more. A bank of 16,384 negatives of 64 numbers is
128 x 16,384 x 64 x 2 x 3 = 0.8 GFLOP: 1.05.

    python benchmarks/loss_overhead.py [--rounds 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import potstill
from potstill.core.signals import Batch
from potstill.models import build, tap
from potstill.objective import Objective, apply_heads, heads_for, preset
from potstill.objective.presets import layers_read

HERE = Path(__file__).parent
BATCH, IMAGES = 128, 20_000
SHAPES = {"logits": (10,), "layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8), "pool": (64,)}
NAMES = (
    "alone", "kd", "kd_standardised", "dkd", "nkd", "dist", "wsld", "mlkd", "reverse", "jsd", "label_smoothing",
    "fitnets", "at", "nst", "fsp", "vid", "ab", "ofd", "ft", "reviewkd", "cwd", "mgd", "sp", "rkd", "pkt", "cc", "crd",
    "crd_bank",
)  # fmt: skip


def objective(name: str) -> Objective:
    read = layers_read(name)
    return preset(
        name,
        "classification",
        layers=["layer1", "layer2", "layer3"] if "layers" in read else None,
        embedding=["pool"] if "embedding" in read else None,
    )


def stepper(name: str) -> Callable[[], float]:
    """Return a function that takes one training step and returns its seconds."""
    torch.manual_seed(0)
    goal = objective(name)
    student = build("resnet20", {"num_classes": 10}, seed=0).to(memory_format=torch.channels_last)
    teacher = {key: torch.randn(BATCH, *shape) for key, shape in SHAPES.items() if key in goal.teacher_signals}
    teacher = {key: value.relu() if value.dim() > 2 else value for key, value in teacher.items()}
    inputs = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch = Batch(torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64), inputs, torch.randint(0, 10, (BATCH,)))
    taps = {signal: signal for signal in sorted(goal.student_signals - {"logits"})}

    def signals() -> dict[str, torch.Tensor]:
        with tap(student, taps) as tapped:
            logits = student(inputs)
            return {"logits": logits, **tapped}

    with torch.no_grad():
        heads = heads_for(goal.terms, signals(), teacher, ids=torch.arange(IMAGES))
    optimiser = torch.optim.SGD([*student.parameters(), *heads.parameters()], lr=1e-4, momentum=0.9, fused=True)

    def step() -> float:
        began = time.perf_counter()
        optimiser.zero_grad()
        found = signals()
        prepared = apply_heads(heads, goal.terms, found, teacher, batch.ids)
        loss = goal(found, teacher, batch, progress=0.5, arguments=prepared)
        (loss.total / BATCH).backward()
        optimiser.step()
        for head in heads.values():
            if hasattr(head, "commit"):
                head.commit(lambda tensor: tensor)
        return time.perf_counter() - began

    return step


def peak_megabytes(name: str) -> float:
    """Return the high-water mark of a fresh process that takes three steps."""
    child = subprocess.run(
        [sys.executable, __file__, "--peak", name], check=True, capture_output=True, text=True, cwd=HERE.parent
    )
    return float(json.loads(child.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--presets", nargs="+", default=list(NAMES))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        step = stepper(given.peak)
        for _ in range(3):
            step()
        # Not getrusage: its mark survives from the process that started this one.
        status = Path("/proc/self/status").read_text().split()
        print(json.dumps(int(status[status.index("VmHWM:") + 1]) / 1024))
        return
    names = list(dict.fromkeys(["alone", *given.presets]))
    steps = {name: stepper(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(given.rounds + 2):
        for name in names:
            # The plain step is taken right before each preset's, so that both see the same machine.
            plain = steps["alone"]()
            taken = steps[name]()
            if number >= 2:  # the first rounds warm up caches and kernels
                seconds[name].append(taken / plain)
                seconds.setdefault("plain", []).append(plain)
    plain_memory = peak_megabytes("alone")
    rows = [
        {
            "preset": name,
            "ratio_to_cross_entropy": round(statistics.median(seconds[name]), 3),
            "quarter": round(statistics.quantiles(seconds[name], n=4)[0], 3),
            "three_quarters": round(statistics.quantiles(seconds[name], n=4)[2], 3),
            "extra_peak_megabytes": round(peak_megabytes(name) - plain_memory, 1),
            "plain_step_milliseconds": round(1e3 * statistics.median(seconds["plain"]), 1),
            "rounds": given.rounds,
            "threads": given.threads,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "potstill": potstill.__version__,
        }
        for name in names
    ]
    path = HERE / "results" / "loss_overhead.csv"
    if path.exists():  # presets that were not measured now keep their rows
        with path.open(newline="") as file:
            old = {row["preset"]: row for row in csv.DictReader(file)}
        new = {row["preset"]: row for row in rows}
        rows = [new.get(name) or old[name] for name in dict.fromkeys([*old, *new])]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        ratio, extra = float(row["ratio_to_cross_entropy"]), float(row["extra_peak_megabytes"])
        print(f"{row['preset']:18} {ratio:.3f}  {extra:+8.1f} MB")


if __name__ == "__main__":
    main()
