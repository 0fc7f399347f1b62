"""One temperature for each student: calibration error and log loss on the test split, before and after.

6,000 Fashion-MNIST images (5,400 to train, 600 for validation, where the temperature is fitted), 5,000 test images,
8 epochs, three seeds; the numbers are those of a run's own evaluation.

    POTSTILL_DATA=... python benchmarks/calibration.py runs/calibration --table benchmarks/results/calibration.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import packs

import potstill

MEASURES = ("accuracy", "ece", "ece_calibrated", "nll", "nll_calibrated")
SGD = {"optimizer": "sgd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    rng, data = np.random.default_rng(0), packs.fashion_mnist()
    rows = {"train": rng.permutation(60_000)[:6_000], "test": rng.permutation(10_000)[:5_000]}
    run = potstill.distill(
        teacher={"model": "cnn", "args": {"width": 24}, "train": {"epochs": 6, "learning_rate": 0.05, **SGD}},
        student={"model": "cnn", "args": {"width": 8}},
        data={role: (data[role][0][rows[role]], data[role][1][rows[role]]) for role in rows},
        objective="kd",
        seeds=3,
        training={"epochs": 8, "batch_size": 64, "learning_rate": 0.02, **SGD},
        evaluation={"latency": False},
        export={"formats": []},
        out=given.out,
    )
    table = [["model", *MEASURES]]
    for name, scores in run.evaluation.models.items():
        table.append([name, *(f"{scores.metrics[measure]:.4f}" for measure in MEASURES)])
    for row in table:
        print(*row, sep=", ")
    if given.table is not None:
        with given.table.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
