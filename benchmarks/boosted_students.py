"""Students of boosted trees, alone and distilled, from two teachers, on two tables: three seeds, intervals of the run.

    python benchmarks/boosted_students.py runs/boosted

Needs POTSTILL_DATA. Rows go to ``results/boosted_students.csv``.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

import lightgbm

import potstill
from potstill.core.files import read_json
from potstill.recipe.schema import Recipe

HERE, DATA = Path(__file__).parent, Path(os.environ["POTSTILL_DATA"])
TABLES: dict[str, dict[str, Any]] = {
    "adult": {
        "task": "classification",
        "data": {
            "train": str(DATA / "adult" / "train.parquet"),
            "test": str(DATA / "adult" / "test.parquet"),
            "target": "label",
        },
    },
    "california_housing": {
        "task": "regression",
        "data": {"train": str(DATA / "california_housing" / "data.parquet"), "target": "medianHouseValue"},
    },
}
TEACHERS = {
    "mlp 128-128": {
        "model": "mlp",
        "args": {"hidden": [128, 128]},
        "train": {"epochs": 20, "optimizer": "adamw", "learning_rate": 0.003},
    },
    "600 rounds of 63 leaves": {
        "model": "lightgbm",
        "args": {"rounds": 600, "num_leaves": 63, "learning_rate": 0.05},
        "train": {},
    },
}
STUDENTS = {"20 rounds of 8 leaves": (20, 8), "200 rounds of 31 leaves": (200, 31)}


def main() -> None:
    out, rows = Path(sys.argv[1]), []
    for table, settings in TABLES.items():
        for taught_by, teacher in TEACHERS.items():
            for name, (rounds, leaves) in STUDENTS.items():
                recipe = Recipe.model_validate(
                    {
                        **settings,
                        "teacher": teacher,
                        "student": {"model": "lightgbm", "args": {"rounds": rounds, "num_leaves": leaves}},
                        "seeds": 3,
                        "export": {"formats": ["onnx"]},
                    }
                )
                folder = out / f"{table}-{taught_by}-{name}".replace(" ", "-")
                potstill.run(recipe, out=folder)
                rows.append({"table": table, "taught_by": taught_by, "student_is": name, **read(folder)})
                print(rows[-1], flush=True)
    with (HERE / "results" / "boosted_students.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(folder: Path) -> dict[str, Any]:
    """Return the numbers of a finished run."""
    found = read_json(folder / "evaluation.json")
    metric = "accuracy" if found["task"] == "classification" else "r2"
    scores = {name: found["models"][name]["metrics"][metric] for name in ("teacher", "alone", "distilled")}
    gain = found["differences"]["distilled-alone"][metric]
    file = read_json(folder / "export" / "parity.json")["files"][0]
    return {
        "metric": metric,
        **{name: round(100 * value, 2) for name, value in scores.items()},
        **{
            f"gain{end}": round(100 * gain[part], 2)
            for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
        },
        "onnx_bytes": file["bytes"],
        "onnx_ms": round(file["latency_ms"]["1"]["p50"], 4),
        "lightgbm": lightgbm.__version__,
        "potstill": potstill.__version__,
    }


if __name__ == "__main__":
    main()
