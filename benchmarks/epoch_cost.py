"""What a distilled step costs beside a plain cross-entropy step of the same student, from the store and live.

ResNet-20 on CIFAR-10, batch 128, crop and flip; teacher ResNet-56. The three are interleaved in one process, round by
round; a round is a short training through `potstill.training.train`, and its rate is what the history reports.
Prediction before measuring: reading 128 rows of 10 float16 logits takes about 20 microseconds and the loss two
log-softmaxes of (128, 10): well under 1 % of a step. A live ResNet-56 forward pass has 3.1 times the FLOPs of the
student's forward pass, whose backward pass costs twice that again: at equal rates 1 + 3.1 / 3 = 2.0 times a plain step.

    POTSTILL_DATA=... python benchmarks/epoch_cost.py
"""

from __future__ import annotations

import csv
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

import potstill
from potstill.data import Stream
from potstill.objective import preset
from potstill.pipeline import stages
from potstill.pipeline.build import build_job
from potstill.recipe.yaml import read
from potstill.store import record
from potstill.teachers import Model, StoredTeacher, Teacher, describe_recording
from potstill.training import Spec, train

HERE = Path(__file__).parent
ROUNDS, SAMPLES = 5, 2560


def main() -> None:
    job = build_job(read(HERE / "cifar10" / "resnet20.yaml"), base=HERE / "cifar10")
    small = job.data.train.take(slice(0, SAMPLES))
    data = job.data.__class__(
        **{**job.data.__dict__, "train": small, "validation": job.data.validation.take(slice(0, 8))}
    )
    teacher = stages.live_teacher(job, job.teacher_at(0))
    settings = job.recipe.training.model_copy(update={"epochs": 1})
    rates: dict[str, list[float]] = {"alone": [], "store": [], "live": []}
    with tempfile.TemporaryDirectory() as folder:
        store = stored(teacher, job, small, Path(folder) / "store")
        teachers: dict[str, Model | None] = {"alone": None, "store": store, "live": teacher}
        for number in range(ROUNDS + 1):
            for name, source in teachers.items():
                spec = Spec(
                    data=data,
                    stream=job.stream(data, seed=0, views=1),
                    objective=preset("alone" if source is None else "kd", "classification"),
                    settings=settings,
                    preprocess=job.student.preprocess,
                    teacher=source,
                )
                result = train(job.student.build(0, "alone"), spec, Path(folder) / f"{name}-{number}")
                # The first round warms up caches and kernels.
                if number:
                    rates[name].append(json.loads(result.history.read_text())["images_per_second"])
    rows = [
        {
            "student": "resnet20",
            "teacher": name,
            "images_per_second": round(statistics.median(values), 1),
            "time_ratio_to_alone": round(
                statistics.median(a / b for a, b in zip(rates["alone"], values, strict=True)), 3
            ),
            "rounds": ROUNDS,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "potstill": potstill.__version__,
        }
        for name, values in rates.items()
    ]
    with (HERE / "results" / "epoch_cost.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


def stored(teacher: Teacher, job: stages.Job, samples: potstill.Samples, folder: Path) -> StoredTeacher:
    def batches(ranges=None):
        return Stream(samples, job.augment, num_classes=10).recording(256, ranges=ranges)

    manifest = describe_recording(
        teacher,
        next(iter(batches())),
        ids=samples.ids,
        data=samples.fingerprint,
        augmentation=job.augment.model_dump() if job.augment else None,
    )
    return StoredTeacher(record(teacher, batches, folder, manifest, samples.ids))


if __name__ == "__main__":
    main()
