"""Presets against a student alone: CIFAR-10 (20,000 images), ResNet-56 into ResNet-8, 20 epochs.

The teacher is recorded once, with the hidden layers that the presets read; every student trains from that store, with
the same data order, views and settings, and differs in its objective only. Each training is measured on the test split
once, at its end. Finished trainings are kept, so the command can be stopped, called again, and given more seeds.

    POTSTILL_DATA=... python benchmarks/presets.py --out runs/presets --presets alone kd dkd dist --seeds 0 1 2
    python benchmarks/presets.py --out runs/presets --table
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import potstill
from potstill.core.signals import Batch
from potstill.evaluation import predict
from potstill.evaluation.intervals import interval, spare
from potstill.objective import Objective, preset
from potstill.objective.presets import layers_read
from potstill.pipeline.build import Job, build_job
from potstill.recipe.yaml import read
from potstill.store import open_store, record
from potstill.teachers import Reads, StoredTeacher, describe_recording
from potstill.training import Spec, train

HERE = Path(__file__).parent
LAYERS = ("layer2", "layer3", "pool")


def objective(name: str) -> Objective:
    """Return a preset on layers of the two ResNets; layer1 is left out, as its maps would fill the store."""
    layers = {"layers": LAYERS[:-1], "embedding": LAYERS[-1]}
    return preset(name, "classification", **{kind: layers[kind] for kind in layers_read(name)})


def stored(job: Job, folder: Path, precision: str) -> Any:
    """Record the teacher with every layer that a preset reads, or open what was recorded."""
    teacher = job.teacher_at(0).teaching(Reads(taps={name: name for name in LAYERS}, precision=precision))
    views, size = job.recipe.store.views or 1, job.recipe.evaluation.batch_size

    def batches(ranges: Sequence[tuple[int, int]] | None = None) -> Iterator[Batch]:
        return job.stream(job.data, views=views).recording(size, ranges=ranges)

    manifest = describe_recording(
        teacher,
        next(batches()).narrow(0, 2),
        ids=job.data.train.ids,
        data=job.data.train.fingerprint,
        dtype=job.recipe.store.dtype,
        views=views,
        augmentation=job.augment.model_dump() if job.augment else None,
        seed=job.recipe.seed,
    )
    record(teacher, batches, folder, manifest, job.data.train.ids)
    return open_store(folder, manifest)


def one(job: Job, store: Any, out: Path, name: str, seed: int, epochs: int) -> None:
    """Train one student, unless it is there already, and keep which test samples it gets right."""
    folder = out / f"{epochs}-epochs" / name / str(seed)
    if (folder / "correct.npz").exists():
        return
    goal = objective(name)
    teacher = StoredTeacher(store, goal.teacher_signals) if goal.needs_teacher else None
    student = job.student.build(seed, "alone")
    began = time.monotonic()
    spec = Spec(
        data=job.data,
        stream=job.stream(job.data, views=job.recipe.store.views) if teacher else job.stream(job.data, seed),
        objective=goal,
        settings=job.recipe.training.model_copy(update={"epochs": epochs}),
        preprocess=job.student.preprocess,
        seed=seed,
        teacher=teacher,
        taps={signal: signal for signal in goal.student_signals - {"logits"}},
    )
    train(student, spec, folder, label=f"{name} {seed}")
    seconds = time.monotonic() - began
    logits = predict(
        student, job.data.test, preprocess=job.student.preprocess, batch_size=256, device=torch.device("cpu")
    )
    correct = logits.argmax(1) == job.data.test.targets
    (folder / "objective.json").write_text(json.dumps(goal.describe(), indent=1))
    np.savez_compressed(folder / "correct.npz", correct=correct, seconds=seconds)
    print(f"{name}, seed {seed}: {correct.mean():.4f} in {seconds:.0f} s", flush=True)


def table(out: Path, epochs: int) -> list[dict[str, Any]]:
    """Return one row per preset: accuracy and gain over the student alone, with 95 % intervals.

    Intervals are those of a run's report: of the method from three seeds on, else of these weights. The gain compares
    equal seeds.
    """
    found: dict[str, dict[int, Any]] = {}
    for file in sorted((out / f"{epochs}-epochs").glob("*/*/correct.npz")):
        found.setdefault(file.parent.parent.name, {})[int(file.parent.name)] = np.load(file)["correct"]
    alone = found["alone"]
    rows = []
    for name, runs in found.items():
        seeds = sorted(set(runs) & set(alone))
        own = np.stack([runs[seed] for seed in seeds]).astype(np.float64)
        gain = own - np.stack([alone[seed] for seed in seeds])
        row: dict[str, Any] = {"preset": name, "seeds": len(seeds), "epochs": epochs}
        for what, values in (("accuracy", own), ("gain", gain)):
            means = values.mean(axis=1)
            around = interval(means, values - means[:, None], extra=spare(values.shape[1]))
            row |= {what: round(around.value, 4), f"{what}_low": round(around.low, 4)}
            row |= {f"{what}_high": round(around.high, 4)}
        row["per_seed"] = " ".join(f"{value:.4f}" for value in own.mean(1))
        row |= {"torch": torch.__version__, "potstill": potstill.__version__}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    parser.add_argument("--presets", nargs="+", default=["alone", "kd"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--precision", default="float32", help="of the teacher: bfloat16 where the CPU has it")
    parser.add_argument("--table", action="store_true", help="only write benchmarks/results/presets.csv")
    given = parser.parse_args()
    if not given.table:
        job = build_job(read(HERE / "cifar10" / "resnet8.yaml"), base=HERE / "cifar10")
        store = stored(job, given.out / "store", given.precision)
        for seed in given.seeds:
            for name in given.presets:
                one(job, store, given.out, name, seed, given.epochs)
    lengths = sorted((int(folder.name.removesuffix("-epochs")) for folder in given.out.glob("*-epochs")), reverse=True)
    rows = [row for epochs in lengths for row in table(given.out, epochs)]
    with (HERE / "results" / "presets.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['preset']:24} {row['accuracy']:.4f}  gain {row['gain']:+.4f} ({row['gain_low']:+.4f} to "
              f"{row['gain_high']:+.4f}), {row['seeds']} seeds")  # fmt: skip


if __name__ == "__main__":
    main()
