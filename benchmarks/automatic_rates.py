"""Automatic rates against fixed ones: small trainings on real data, alone and distilled, three seeds.

For each pair of data and student, every arm is trained with each of six fixed settings (`sgd 0.1` with cosine was the
default once) and with the one that its race chose, the race being that of a run. A score is that of the test split,
of the checkpoint that validation chose. A training whose settings the race chose is the training with these settings
fixed, bit for bit, and is not done twice.

    POTSTILL_DATA=... python benchmarks/automatic_rates.py runs/rates   # goes on where it was stopped
    python benchmarks/automatic_rates.py runs/rates --table benchmarks/results/automatic_rates.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import packs
import torch
from torch import Tensor

from potstill.core.errors import DivergedError
from potstill.core.signals import Batch
from potstill.data import Data
from potstill.evaluation import metrics, predict
from potstill.models import load_weights
from potstill.objective import preset
from potstill.pipeline.build import Given, Job, build_job
from potstill.pipeline.processes import start
from potstill.pipeline.racing import FILE, run_race, student_race
from potstill.pipeline.stages import train_student
from potstill.recipe.schema import Recipe, Training
from potstill.teachers import Facts
from potstill.teachers.at_rest import copy_of
from potstill.training import Spec, train

FIXED = (("sgd", 0.03), ("sgd", 0.1), ("sgd", 0.3), ("adamw", 0.003), ("adamw", 0.01), ("adamw", 0.03))
OLD_DEFAULT = ("sgd", 0.1)
SEEDS, ARMS = (0, 1, 2), ("alone", "distilled")
Model = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Data, a student, its teacher, and how long the student trains."""

    data: Callable[[], Any]
    student: Model
    teacher: Model
    epochs: int
    batch_size: int
    task: str = "classification"
    teacher_epochs: int = 15


def part(arrays: packs.Arrays, count: int) -> packs.Arrays:
    rows = np.random.default_rng(0).permutation(len(arrays[1]))[:count]
    return arrays[0][rows], arrays[1][rows]


def fashion() -> Any:
    found = packs.fashion_mnist()
    return {"train": part(found["train"], 6000), "test": part(found["test"], 4000)}


def cifar() -> Any:
    found = packs.cifar10()
    return {"train": part(found["train"], 4000), "test": part(found["test"], 4000)}


def table(name: str, split: str, target: str) -> tuple[dict[str, list[Any]], list[Any]]:
    import pyarrow.parquet as parquet

    columns = parquet.read_table(packs.pack() / name / f"{split}.parquet").to_pydict()
    return columns, columns.pop(target)


def adult() -> Any:
    """Ten thousand rows; a category is a column of zeros and ones for each of its values."""
    splits = {split: table("adult", split, "label") for split in ("train", "test")}
    names = splits["train"][0]
    values = {name: sorted(set(column)) for name, column in names.items() if isinstance(column[0], str)}

    def rows(split: str, count: int) -> packs.Arrays:
        columns, labels = splits[split]
        parts = [
            np.array([[entry == value for value in values[name]] for entry in columns[name]], np.float32)
            if name in values
            else np.array(columns[name], np.float32)[:, None]
            for name in names
        ]
        return part((np.concatenate(parts, axis=1), np.array(labels, np.int64)), count)

    return {"train": rows("train", 10_000), "test": rows("test", 10_000)}


def housing() -> Any:
    columns, values = table("california_housing", "data", "medianHouseValue")
    inputs = np.stack([np.array(column, np.float32) for column in columns.values()], axis=1)
    return part((inputs, np.array(values, np.float32)), 12_000)


def model(name: str, **args: Any) -> Model:
    return {"model": name, "args": args}


PAIRS = {
    "cnn on digits": Pair(lambda: "digits", model("cnn", width=6), model("cnn", width=32), 40, 64),
    "mlp on digits": Pair(lambda: "digits", model("mlp", hidden=[32]), model("cnn", width=32), 40, 64),
    "mlp on adult": Pair(adult, model("mlp", hidden=[64]), model("mlp", hidden=[128, 128]), 20, 128, teacher_epochs=6),
    "mlp on housing": Pair(
        housing, model("mlp", hidden=[32]), model("mlp", hidden=[128, 128]), 30, 64, "regression", 30
    ),
    "cnn on fashion, 3 epochs": Pair(fashion, model("cnn", width=6), model("cnn", width=24), 3, 64),
    "cnn on fashion, 30 epochs": Pair(fashion, model("cnn", width=6), model("cnn", width=24), 30, 64),
    "cnn on cifar": Pair(cifar, model("cnn", width=8), model("cnn", width=32), 12, 128),
    "cnn on cifar, 100 epochs": Pair(cifar, model("cnn", width=8), model("cnn", width=32), 100, 128),
}


class Answers:
    """A trained teacher's answers to the training samples."""

    facts = Facts(frozenset({"logits"}))
    fingerprint = "answers"

    def __init__(self, ids: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> None:
        self.rows = {int(one): row for row, one in enumerate(ids)}
        self.logits = torch.from_numpy(logits)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.logits[[self.rows[int(one)] for one in batch.ids]]}


def job_of(pair: Pair) -> Job:
    source = pair.data()
    named = isinstance(source, str)
    recipe = Recipe.model_validate(
        {
            "task": pair.task,
            "data": {"train": source if named else "python-object"},
            "teacher": {**pair.teacher, "train": {}},
            "student": pair.student,
            "training": {"epochs": pair.epochs, "batch_size": pair.batch_size, "precision": "float32"},
        }
    )
    return build_job(recipe, base=Path(), given=Given(data=None if named else source))


def score(job: Job, model: torch.nn.Module, data: Data) -> float:
    """Return accuracy or R2 on the test split, in points."""
    test, preprocess = data.test, job.student.preprocess
    outputs = predict(model, test, preprocess=preprocess, batch_size=512, device=torch.device("cpu"), label="test")
    if data.task == "classification":
        return 100.0 * metrics.accuracy(outputs, test.targets)
    return 100.0 * metrics.r2(outputs.reshape(test.targets.shape), test.targets)


def taught(job: Job, pair: Pair, folder: Path) -> tuple[Answers, float]:
    """Train the teacher, or read what it answered; return it and its score."""
    data, kept = job.data.to_learn(), folder / "teacher.npz"
    if not kept.exists():
        module = copy_of(job.teacher_at(0))
        settings = Training(
            epochs=pair.teacher_epochs, batch_size=64, optimizer="adamw", learning_rate=0.005, precision="float32"
        )
        spec = Spec(data, job.stream(data), preset("alone", pair.task), settings, job.teacher_at(0).preprocess, seed=7)
        train(module, spec, folder / "teacher", label="teacher")
        logits = predict(
            module, data.train, preprocess=job.teacher_at(0).preprocess, batch_size=512, device=torch.device("cpu")
        )
        np.savez(kept, logits=logits.reshape(len(logits), -1), score=score(job, module, data))
        shutil.rmtree(folder / "teacher")
    with np.load(kept) as found:
        return Answers(data.train.ids, found["logits"]), float(found["score"])


def measure(name: str, out: Path) -> None:
    """Train everything of one pair that is not there yet."""
    pair, folder = PAIRS[name], out / name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    job = job_of(pair)
    teacher, teacher_score = taught(job, pair, folder)
    accelerator = start("cpu")

    def trained(arm: str, seed: int, settings: Training) -> None:
        kept = folder / f"{arm}-{seed}-{settings.optimizer}-{settings.learning_rate:g}.json"
        if kept.exists():
            return
        place, began = folder / "training", time.process_time()
        shutil.rmtree(place, ignore_errors=True)
        row: dict[str, Any] = {"pair": name, "arm": arm, "seed": seed, "teacher": round(teacher_score, 2)}
        row |= {"optimizer": settings.optimizer, "learning_rate": settings.learning_rate}
        try:
            result = fit((seed, arm), place, settings=settings)
            student = job.student.build(seed, "alone")
            load_weights(student, result.weights)
            row |= {"score": round(score(job, student, job.data.to_learn()), 3), "best_epoch": result.best_epoch}
        except DivergedError:
            row |= {"score": None, "best_epoch": None}
        row["seconds"] = round(time.process_time() - began, 2)
        kept.write_text(json.dumps(row))
        print(row, flush=True)

    fit = partial(train_student, job, accelerator=accelerator, teacher=teacher)
    for arm in ARMS:
        race = student_race(job, arm, job.student)
        assert race is not None
        place = folder / f"race-{arm}"
        if not (place / FILE).exists() or json.loads((place / FILE).read_text())["chosen"] is None:
            began = time.process_time()
            run_race(race, place, partial(fit, (0, arm)), accelerator)
            (place / "seconds.json").write_text(json.dumps(round(time.process_time() - began, 2)))
        chosen = race.settings[json.loads((place / FILE).read_text())["chosen"]]
        fixed = [
            job.recipe.training.model_copy(update={"optimizer": optimizer, "learning_rate": rate})
            for optimizer, rate in FIXED
        ]
        for settings in (chosen, *fixed):
            for seed in SEEDS:
                trained(arm, seed, settings)


def rows(out: Path) -> list[dict[str, Any]]:
    """Return one row for each pair and arm: what was chosen, its mean score, and those of the fixed settings."""
    found = []
    for name in PAIRS:
        folder = out / name.replace(" ", "-").replace(",", "")
        for arm in ARMS:
            file = folder / f"race-{arm}" / FILE
            if not file.exists():
                continue
            race = json.loads(file.read_text())
            each = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{arm}-*.json"))]
            scores: dict[tuple[str, float], list[float | None]] = {}
            for one in each:
                scores.setdefault((one["optimizer"], one["learning_rate"]), []).append(one["score"])
            means = {key: None if None in values else float(np.mean(values)) for key, values in scores.items()}
            if any(len(scores.get(key, ())) < len(SEEDS) for key in FIXED):
                continue  # not finished yet
            fixed = {key: means[key] for key in FIXED}
            known = {key: value for key, value in fixed.items() if value is not None}
            best = max(known, key=lambda key: known[key])
            auto = means.get((race["optimizer"], race["learning_rate"]))
            found.append(
                {
                    "pair": name,
                    "arm": arm,
                    "teacher": each[0]["teacher"],
                    "chosen": f"{race['optimizer']} {race['learning_rate']:g}",
                    "auto": rounded(auto),
                    "old_default": rounded(fixed[OLD_DEFAULT]),
                    "best_of_six": rounded(known[best]),
                    "best_setting": f"{best[0]} {best[1]:g}",
                    "auto_less_best": rounded(None if auto is None else auto - known[best]),
                    **{f"{optimizer} {rate:g}": rounded(fixed[optimizer, rate]) for optimizer, rate in FIXED},
                    "spread_of_seeds": rounded(float(np.std([s for s in scores[best] if s is not None], ddof=1))),
                    "race_steps": sum(one["steps"] for one in race["tried"]),
                    "training_steps": race["training_steps"],
                    "race_seconds": json.loads((folder / f"race-{arm}" / "seconds.json").read_text()),
                    "training_seconds": round(float(np.median([one["seconds"] for one in each])), 2),
                }
            )
    return found


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--table", type=Path, help="only write the table of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table is None:
        for name in options.pairs:
            measure(name, options.out)
        return
    found = rows(options.out)
    with options.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
