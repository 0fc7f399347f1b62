"""Ways of making one teacher of several, and what a student learns from each: real data, three seeds of everything.

    POTSTILL_DATA=... python benchmarks/merged_teachers.py runs/merged   # goes on where it was stopped

A seed is one of the data's split, of the members, of the head's folds and of the student. The members and the student
alone are trained once a seed and stand for every way to merge. Rows go to ``results/merged_teachers.csv``.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import packs
import torch
from torch import Tensor, nn

import potstill
from potstill.core.files import read_json
from potstill.models.zoo import cnn
from potstill.pipeline.build import Given
from potstill.recipe.schema import Recipe

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
BATCH = {"batch_size": 64, "optimizer": "adamw", "learning_rate": 0.01}


class Half(nn.Module):
    """A network that sees one half of each image."""

    def __init__(self, left: bool, width: int) -> None:
        super().__init__()
        self.left, self.network = left, cnn(10, in_channels=1, width=width)

    def forward(self, images: Tensor) -> Tensor:
        middle = images.shape[3] // 2
        half = images[..., :middle] if self.left else images[..., middle:]
        answers: Tensor = self.network(half)
        return answers


def half(left: bool = True, width: int = 16) -> nn.Module:
    return Half(left, width)


def part(arrays: packs.Arrays, count: int) -> packs.Arrays:
    rows = np.random.default_rng(0).permutation(len(arrays[1]))[:count]
    return arrays[0][rows], arrays[1][rows]


def fashion() -> Any:
    found = packs.fashion_mnist()
    return {"train": part(found["train"], 6000), "test": part(found["test"], 4000)}


def housing() -> dict[str, Any]:
    return {"train": str(packs.pack() / "california_housing" / "data.parquet"), "target": "medianHouseValue"}


def member(model: str, epochs: int, **args: Any) -> dict[str, Any]:
    training: dict[str, Any] = {} if model == "lightgbm" else {"epochs": epochs, **BATCH}
    return {"model": model, "args": args, "train": training}


ALIKE = [member("cnn", 8, width=16), member("mlp", 12, hidden=[128]), member("cnn", 8, width=8)]
HALVES = [member("merged_teachers.py:half", 8, left=left) for left in (True, False)]
VALUES = [member("mlp", 15, hidden=[64, 64]), member("lightgbm", 0, rounds=300, num_leaves=31)]
CLASSES = {
    "mean": {},
    "confidence": {"weighting": "confidence"},
    "attention": {"weighting": "attention"},
    "concatenate answers": {"concatenate": "answers"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits, three alike": {
        "data": {"train": "digits"},
        "members": ALIKE,
        "student": {"model": "cnn", "args": {"width": 6}},
        "epochs": 15,
        "merges": {**CLASSES, "concatenate layers": {"concatenate": ["pool", "hidden", "pool"]}},
    },
    "Fashion-MNIST, three alike": {
        "given": fashion,
        "members": ALIKE,
        "student": {"model": "cnn", "args": {"width": 6}},
        "epochs": 8,
        "merges": {**CLASSES, "concatenate layers": {"concatenate": ["pool", "hidden", "pool"]}},
    },
    "Fashion-MNIST, two halves": {
        "given": fashion,
        "members": HALVES,
        "student": {"model": "cnn", "args": {"width": 6}},
        "epochs": 8,
        "merges": {**CLASSES, "concatenate layers": {"concatenate": "network.pool"}},
    },
    "California housing, network and trees": {
        "task": "regression",
        "data": housing,
        "members": VALUES,
        "student": {"model": "mlp", "args": {"hidden": [32]}},
        "epochs": 15,
        "merges": {"mean": {}, "concatenate answers": {"concatenate": "answers"}},
    },
}


def main() -> None:
    out = Path(sys.argv[1])
    kept = out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["setting"], row["merge"], row["seed"]) for row in rows}
    torch.set_num_threads(1)
    for name, setting in SETTINGS.items():
        for seed in SEEDS:
            for merge, section in setting["merges"].items():
                if (name, merge, seed) in done:
                    continue
                row = {"setting": name, "merge": merge, "seed": seed, **measure(setting, section, seed, out, name)}
                rows.append(row)
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    with (HERE / "results" / "merged_teachers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(setting: dict[str, Any], merge: dict[str, Any], seed: int, out: Path, name: str) -> dict[str, Any]:
    """Return what a teacher and its student are worth on the test split, in points."""
    data = setting.get("data", {"train": "python-object"})
    recipe = Recipe.model_validate(
        {
            "task": setting.get("task", "classification"),
            "seed": seed,
            "data": data() if callable(data) else data,
            "teacher": {"members": setting["members"], "merge": merge},
            "student": setting["student"],
            "training": {"epochs": setting["epochs"], **BATCH},
            "evaluation": {"latency": False},
            "export": {"formats": []},
        }
    )
    given = Given(data=setting["given"]()) if "given" in setting else None
    folder = out / f"{name}-{seed}".replace(" ", "-").replace(",", "")
    potstill.run(recipe, out=folder, base=HERE, given=given)
    found, head = read_json(folder / "evaluation.json"), folder / "teacher" / "head.json"
    metric = "accuracy" if found["task"] == "classification" else "r2"
    scores = {model: round(100 * one["metrics"][metric], 2) for model, one in found["models"].items()}
    learned = read_json(head) if "concatenate" in merge else {}
    return {
        "metric": metric,
        **{model: scores[model] for model in ("teacher", "alone", "distilled")},
        "best_member": max(score for model, score in scores.items() if model.startswith("teacher ")),
        "validation_samples": learned.get("samples", ""),
        "head_on_validation": round(100 * learned["head"], 2) if learned else "",
        "mean_on_validation": round(100 * learned["mean"], 2) if learned else "",
        "potstill": potstill.__version__,
    }


if __name__ == "__main__":
    main()
