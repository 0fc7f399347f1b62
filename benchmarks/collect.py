"""Turn finished runs into CSV rows: accuracy with intervals, and the exported files' size, latency and accuracy.

python benchmarks/collect.py runs/cifar10-resnet8 runs/cifar10-resnet20
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def rows_of(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    evaluation = json.loads((folder / "evaluation.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    files = json.loads((folder / "export" / "parity.json").read_text())["files"]
    metric = evaluation["headline_metric"]
    common = {"run": folder.name, "torch": run["versions"]["torch"], "cpu": run["machine"]["cpu"]}
    accuracy = [
        {
            "run": folder.name,
            "model": name,
            metric: round(scores["metrics"][metric], 4),
            "low": round(scores["intervals"][metric][0], 4),
            "high": round(scores["intervals"][metric][1], 4),
            "per_seed": " ".join(f"{value:.4f}" for value in scores["per_seed"][metric]),
            "ece": round(scores["metrics"].get("ece", float("nan")), 4),
            "parameters": scores["parameters"],
            **{key: common[key] for key in ("torch", "cpu")},
        }
        for name, scores in evaluation["models"].items()
    ]
    gain = evaluation["differences"]["distilled-alone"][metric]
    accuracy.append(
        {
            "run": folder.name,
            "model": "distilled-alone",
            metric: round(gain["value"], 4),
            "low": round(gain["low"], 4),
            "high": round(gain["high"], 4),
            **{key: common[key] for key in ("torch", "cpu")},
        }
    )
    teacher = evaluation["models"]["teacher"]
    exported = [
        {
            "run": folder.name,
            "file": entry["file"],
            "bytes": entry["bytes"],
            "accuracy": round(entry["accuracy_file"], 4),
            "agreement_with_torch": round(entry["agreement"], 4),
            "p50_ms_batch_1": round(entry["latency_ms"]["1"]["p50"], 4),
            "p50_ms_batch_32": round(entry["latency_ms"]["32"]["p50"], 3),
            "teacher_torch_p50_ms_batch_1": round(teacher["latency_ms"]["1"]["p50"], 3),
            **{key: common[key] for key in ("torch", "cpu")},
        }
        for entry in files
        if entry["ok"]
    ]
    return accuracy, exported


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in place of those of the same runs; the rows of other runs stay."""
    with path.open(newline="") as file:
        kept = [row for row in csv.DictReader(file) if row["run"] not in {new["run"] for new in rows}]
    rows = [*kept, *rows]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(folders: list[str]) -> None:
    found = [rows_of(Path(folder)) for folder in folders]
    write(RESULTS / "accuracy.csv", [row for accuracy, _ in found for row in accuracy])
    write(RESULTS / "exported.csv", [row for _, exported in found for row in exported])


if __name__ == "__main__":
    main(sys.argv[1:])
