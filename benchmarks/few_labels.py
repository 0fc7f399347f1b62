"""Few labels and a pool that only the teacher answers: four ways to train a student, three seeds, paired intervals.

    python benchmarks/few_labels.py runs/few-labels

Alone on the labels, on the teacher's likeliest classes too, distilled on the labelled samples only, distilled on all
samples at temperature 4 and 1, and with those left out of which the teacher is less than 90 % sure. Every arm makes as
many steps, at rates of its own; the teacher sees all labels. Needs POTSTILL_DATA. Rows: ``results/few_labels.csv``.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import potstill
from potstill.core.files import read_json
from potstill.evaluation import Size, evaluate
from potstill.pipeline.prepare import prepare
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import read

HERE = Path(__file__).parent
SEEDS = 3
CASES: dict[str, dict[str, Any]] = {
    "digits, cnn": {
        "data": {"train": "digits", "labels": 100, "augment": {"crop": 1}},
        "teacher": {"model": "cnn", "args": {"width": 32}, "train": {"epochs": 20, "batch_size": 64}},
        "student": {"model": "cnn", "args": {"width": 6}},
        "training": {"epochs": 40, "batch_size": 64},
    },
    "digits, mlp": {
        "data": {"train": "digits", "labels": 100, "augment": {"crop": 1}},
        "teacher": {"model": "cnn", "args": {"width": 32}, "train": {"epochs": 20, "batch_size": 64}},
        "student": {"model": "mlp", "args": {"hidden": [32]}},
        "training": {"epochs": 40, "batch_size": 64},
    },
    "Fashion-MNIST, cnn": {
        "data": {"train": "packs.py:small_fashion_mnist", "labels": 600, "augment": {"crop": 1, "flip": True}},
        "teacher": {"model": "cnn", "args": {"width": 32}, "train": {"epochs": 8, "batch_size": 128}},
        "student": {"model": "cnn", "args": {"width": 8}},
        "training": {"epochs": 8, "batch_size": 128},
        "store": {"views": 4},
    },
}
CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    ", T = 1": {"objective": {"preset": "kd", "options": {"temperature": 1.0}}},
    ", sure by 90 %": {"data": {"min_confidence": 0.9}},
}


def main() -> None:
    out, rows = Path(sys.argv[1]).resolve(), []
    for case, settings in CASES.items():
        arms: dict[str, Mapping[int, Any]] = {}
        for change, more in CHANGES.items():
            written = {**settings, **more, "data": {**settings["data"], **more.get("data", {})}}
            recipe = Recipe.model_validate(
                {"task": "classification", "seeds": SEEDS, "export": {"formats": []}, **written}
                | {"evaluation": {"latency": False}}
            )
            folder = out / f"{case}{change}".replace(" ", "-").replace(",", "")
            potstill.run(recipe, out=folder, base=HERE)
            kinds = ("alone", "pseudo", "distilled") if not change else ("distilled",)
            kinds += ("pseudo",) if "min_confidence" in written["data"] else ()
            arms |= {f"{kind}{change}": answers(folder, kind) for kind in kinds}
            if not change:
                first, steps = folder, read_json(folder / "seeds/0/distilled/result.json")["steps"]
        arms["distilled on labels only"] = on_labels_only(first, out / f"{case}-only".replace(" ", "-"), steps)
        rows += [row(case, name, arms, first) for name in arms]
        for line in rows[-len(arms) :]:
            print(line, flush=True)
    with (HERE / "results" / "few_labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def on_labels_only(first: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Return the answers of students that are distilled on the labelled samples only, by the same teacher."""
    recipe = read(first / "recipe.yaml")
    data = prepare(recipe, out=first, base=HERE).data.with_labels()
    splits = {
        name: (samples.fetch(np.arange(len(samples))).numpy(), samples.targets) for name, samples in data.splits.items()
    }
    batch = recipe.training.batch_size
    teacher = recipe.teacher.model_dump(include={"model", "args", "preprocess"})
    potstill.distill(
        {**teacher, "weights": str(first / "teacher" / "weights.safetensors")},
        recipe.student.model_dump(include={"model", "args", "preprocess"}),
        splits,
        out=folder,
        seeds=SEEDS,
        training={"epochs": max(1, round(steps / -(-len(data.train) // batch))), "batch_size": batch},
        augment=recipe.data.augment.model_dump(exclude_defaults=True),
        export={"formats": []},
        evaluation={"latency": False},
    )
    return answers(folder, "distilled")


def answers(folder: Path, kind: str) -> dict[str, Any]:
    """Return what students answered to the test split, by seed, and how they were trained."""
    with np.load(folder / "predictions.npz") as saved:
        logits = dict(enumerate(saved[kind]))
        targets = saved["targets"]
    rates = read_json(folder / "rates" / kind / "rates.json")
    steps = read_json(folder / f"seeds/0/{kind}/result.json")["steps"]
    return {
        "logits": logits,
        "targets": targets,
        "steps": steps,
        **{k: rates[k] for k in ("optimizer", "learning_rate")},
    }


def row(case: str, name: str, arms: Mapping[str, Mapping[str, Any]], first: Path) -> dict[str, Any]:
    """Return an arm's accuracy and log loss, and its differences from others in points with 95 % intervals."""
    arm, pool = arms[name], read_json(first / "pool.json")
    teacher = read_json(first / "evaluation.json")["models"]["teacher"]["metrics"]
    found: dict[str, Any] = {"case": case, "labels": pool["labels"], "pool": pool["samples"], "arm": name}
    none = Size(None, None, None)
    for other in ("alone", "pseudo", "distilled"):
        result = evaluate(
            task="classification",
            targets=arm["targets"],
            teacher=None,
            alone=arms[other]["logits"],
            distilled=arm["logits"],
            sizes={"alone": none, "distilled": none},
            classes=[str(number) for number in range(10)],
        )
        scores = result.models["distilled"].metrics
        found |= {"accuracy": round(100 * scores["accuracy"], 2), "log_loss": round(scores["nll"], 4)}
        gain = result.differences["distilled-alone"]["accuracy"]
        ends = (("", gain.value), ("_low", gain.low), ("_high", gain.high))
        found |= {f"over_{other}{end}": round(100 * value, 2) for end, value in ends}
    return found | {
        "optimizer": arm["optimizer"],
        "learning_rate": arm["learning_rate"],
        "steps": arm["steps"],
        "teacher": round(100 * teacher["accuracy"], 2),
        "teacher_sure_of_pool": round(100 * pool["confidence"], 1),
        "potstill": potstill.__version__,
    }


if __name__ == "__main__":
    main()
