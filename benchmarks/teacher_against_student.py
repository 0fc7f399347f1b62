"""The int8 student against the float32 teacher, both as ONNX files in ONNX Runtime, one thread, interleaved.

python benchmarks/teacher_against_student.py runs/cifar10-resnet8 [more runs]   (POTSTILL_DATA set, the runs finished)
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from potstill import OnnxModel
from potstill.evaluation import latency
from potstill.export import export_onnx
from potstill.pipeline.build import build_job
from potstill.recipe.yaml import read
from potstill.teachers.at_rest import copy_of

HERE = Path(__file__).parent
ROUNDS = 5


def rows_of(folder: Path) -> list[dict[str, Any]]:
    job = build_job(read(HERE / "cifar10" / f"{folder.name.rpartition('-')[2]}.yaml"), base=HERE / "cifar10")
    inputs = job.data.test.fetch(np.arange(32)).numpy()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    parity = {entry["file"]: entry for entry in json.loads((folder / "export" / "parity.json").read_text())["files"]}
    with tempfile.TemporaryDirectory() as temporary:
        teacher = Path(temporary) / "teacher.onnx"
        export_onnx(
            copy_of(job.teacher_at(0)),
            job.teacher_at(0).preprocess,
            job.data.train.fetch(np.arange(2)),
            teacher,
            task="classification",
        )
        files = {"teacher.onnx": teacher} | {name: folder / "export" / name for name in parity}
        models = {name: OnnxModel(path, threads=1) for name, path in files.items()}
        times: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                times[name].append(latency(model, inputs, seconds=0.2))
        sizes = {name: path.stat().st_size for name, path in files.items()}
    medians = {
        name: {size: statistics.median(time[size]["p50"] for time in found) for size in ("1", "32")}
        for name, found in times.items()
    }
    first = "teacher.onnx"
    accuracy = {name: entry["accuracy_file"] for name, entry in parity.items()}
    accuracy[first] = evaluation["models"]["teacher"]["metrics"]["accuracy"]
    return [
        {
            "run": folder.name,
            "file": name,
            "bytes": sizes[name],
            "times_smaller": round(sizes[first] / sizes[name], 1),
            "p50_ms_batch_1": round(medians[name]["1"], 4),
            "times_faster_batch_1": round(medians[first]["1"] / medians[name]["1"], 2),
            "p50_ms_batch_32": round(medians[name]["32"], 3),
            "times_faster_batch_32": round(medians[first]["32"] / medians[name]["32"], 2),
            "accuracy": round(accuracy[name], 4),
            "accuracy_change": round(accuracy[name] - accuracy[first], 4),
            "onnxruntime": onnxruntime.__version__,
        }
        for name in models
    ]


def main(folders: list[str]) -> None:
    rows = [row for folder in folders for row in rows_of(Path(folder))]
    with (HERE / "results" / "teacher_against_student.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(sys.argv[1:])
