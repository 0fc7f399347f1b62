"""Several labels for each sample: teacher, student alone and student distilled; three seeds, intervals of the run.

    python benchmarks/several_labels.py runs/several

Needs POTSTILL_DATA. Rows go to ``results/several_labels.csv``. The labels are made of real columns: of `adult`
seven yes-or-no questions about a person, asked of the other columns (unknown workplaces and countries are unknown
labels; ``relationship`` and both columns of education are no inputs, because they give labels away); of scikit-learn's
digits four properties of the digit, as they are and with 70 % of the cells of train unknown, drawn with a fixed seed
(a sample without any known label is skipped): with a teacher that learns from the same cells, and with one that had
all of them.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import yaml
from sklearn.datasets import load_digits

import potstill
from potstill.core.files import read_json
from potstill.recipe.schema import Recipe

HERE = Path(__file__).parent
INPUTS = ("age", "fnlwgt", "occupation", "capital_gain", "capital_loss", "hours_per_week")
ASKED = ("rich", "married", "male", "degree", "private", "american", "white")
PROPERTIES = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "high": (5, 6, 7, 8, 9), "round": (0, 6, 8, 9)}
KNOWING = "digits, 4 labels, 70 % unknown to students"
SETTINGS: dict[str, Any] = {"batch_size": 128, "optimizer": "auto", "learning_rate": "auto"}


def adult(part: str, folder: Path) -> str:
    """Write one part of `adult` with its labels as columns; return the file's path."""
    table = parquet.read_table(Path(os.environ["POTSTILL_DATA"]) / "adult" / f"{part}.parquet").to_pydict()
    unknown = (None, "", "?")
    labels = {
        "rich": [int(value) for value in table["label"]],
        "married": [int(value.startswith("Married")) for value in table["marital_status"]],
        "male": [int(value == "Male") for value in table["sex"]],
        "degree": [int(value >= 13) for value in table["education_num"]],
        "private": [None if value in unknown else int(value == "Private") for value in table["workclass"]],
        "american": [None if value in unknown else int(value == "United-States") for value in table["native_country"]],
        "white": [int(value == "White") for value in table["race"]],
    }
    inputs = {name: [value if value is not None else "?" for value in table[name]] for name in INPUTS}
    path = folder / f"adult-{part}.parquet"
    parquet.write_table(arrow.table({**inputs, **labels}), path)
    return str(path)


def digits(part: str, folder: Path, hidden: float = 0.0) -> str:
    """Write a part of the digits, a third of which is test, with four labels each; return the file's path."""
    found = load_digits()
    rows = (np.arange(len(found.target)) % 3 == 0) == (part == "test")
    labels = np.stack([np.isin(found.target[rows], members) for members in PROPERTIES.values()], 1).astype(np.float64)
    labels[np.random.default_rng(0).random(labels.shape) < hidden] = np.nan
    path = folder / f"digits-{part}-{hidden:g}.npz"
    np.savez(path, pixels=(found.data[rows] / 16).astype(np.float32), **dict(zip(PROPERTIES, labels.T, strict=True)))
    return str(path)


def cases(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Return the recipes without what is the same for all."""
    test = digits("test", folder)
    return {
        "adult, 7 labels": {
            "data": {"train": adult("train", folder), "test": adult("test", folder), "target": list(ASKED)},
            "teacher": {"model": "mlp", "args": {"hidden": [256, 256]}, "train": {"epochs": 15, **SETTINGS}},
            "student": {"model": "mlp", "args": {"hidden": [8]}},
            "training": {"epochs": 15, **SETTINGS},
        },
        **{
            name: {
                "data": {
                    "train": digits("train", folder, hidden),
                    "test": test,
                    "target": list(PROPERTIES),
                    "on_bad": "skip",
                },
                "teacher": {"model": "mlp", "args": {"hidden": [256, 256]}, "train": {"epochs": 40, **SETTINGS}},
                "student": {"model": "mlp", "args": {"hidden": [8]}},
                "training": {"epochs": 40, **SETTINGS},
            }
            for name, hidden in (("digits, 4 labels", 0.0), ("digits, 4 labels, 70 % unknown", 0.7), (KNOWING, 0.7))
        },
    }


def taught_by(folder: Path) -> dict[str, Any]:
    """Return the teacher that a finished run has trained, as a teacher with weights."""
    section = yaml.safe_load((folder / "recipe.yaml").read_text())["teacher"]
    kept = {name: section[name] for name in ("model", "args", "preprocess")}
    return {**kept, "weights": str((folder / "teacher" / "weights.safetensors").absolute())}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, settings in cases(folder).items():
        if name == KNOWING:
            settings["teacher"] = taught_by(folder / "digits-4-labels")
        recipe = Recipe.model_validate({"task": "multilabel", **settings, "seeds": 3, "export": {"formats": ["onnx"]}})
        out = folder / name.replace(" ", "-").replace(",", "").replace("%", "percent")
        potstill.run(recipe, out=out)
        rows.append({"data": name, **read(out)})
        print(rows[-1], flush=True)
    with (HERE / "results" / "several_labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(folder: Path) -> dict[str, Any]:
    """Return the numbers of a finished run, in hundredths."""
    found = read_json(folder / "evaluation.json")
    numbers: dict[str, Any] = {}
    for metric in ("map", "macro_f1"):
        for name in ("teacher", "alone", "distilled"):
            numbers[f"{name}_{metric}"] = round(100 * found["models"][name]["metrics"][metric], 2)
        gain = found["differences"]["distilled-alone"][metric]
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            numbers[f"gain_{metric}{end}"] = round(100 * gain[part], 2)
    return {
        **numbers,
        "helped": found["verdict"]["helped"],
        "onnx": read_json(folder / "export" / "parity.json")["files"][0]["ok"],
        "potstill": potstill.__version__,
    }


if __name__ == "__main__":
    main()
