"""Run folders with made-up but plausible numbers: the input of every test of the report.

Run as a script to look at the pages: ``python tests/report/make_run.py FOLDER`` writes one of each kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from potstill.evaluation import Limit, Size, evaluate

HOSTILE = "<script>alert(1)</script>"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("images", "values", "partial", "unfinished")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def write_history(folder: Path, *, best: float, epochs: int, seconds: float, seed: int, loss: float) -> None:
    noise = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    with (folder / "history.jsonl").open("w", encoding="utf-8") as file:
        for epoch in range(1, epochs + 1):
            share = epoch / epochs
            score = best - 0.75 * best * np.exp(-7 * share) - 0.012 * abs(noise.normal()) * (1.15 - share)
            scores.append(float(score))
            file.write(
                json.dumps(
                    {
                        "epoch": epoch,
                        "step": epoch * 40,
                        "seconds": seconds * share,
                        "learning_rate": 0.1 * (1 - share),
                        "train_loss": float(loss * (0.12 + np.exp(-5 * share)) * (1 + 0.03 * noise.normal())),
                        "parts": {"cross_entropy": 0.1, "forward_kl": 0.9},
                        "validation_loss": float(1.2 - score) if epoch != 2 else float("nan"),
                        "validation_metric": scores[-1],
                        "gradient_norm": 1.0,
                        "images_per_second": 4200.0,
                    }
                )
                + "\n"
            )
    kept = int(np.argmax(scores))
    write_json(
        folder / "result.json",
        {
            "weights": "weights.safetensors",
            "steps": epochs * 40,
            "epochs": float(epochs),
            "seconds": seconds,
            "best_epoch": kept + 1,
            "best_validation": scores[kept],
            "stopped": "finished",
            "history": "history.jsonl",
        },
    )


def pictures(labels: Sequence[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Draw one noisy, turned digit per label, 28 pixels a side in colour."""
    noise = np.random.default_rng(seed)
    font = ImageFont.load_default(22)
    drawn = []
    for label in labels:
        image = Image.new("RGB", (28, 28), tuple(int(x) for x in noise.integers(10, 70, 3)))
        colour = tuple(int(x) for x in noise.integers(150, 255, 3))
        ImageDraw.Draw(image).text((8, 1), str(label), fill=colour, font=font)
        pixels = np.asarray(image.rotate(float(noise.normal(0, 18)), resample=Image.Resampling.BILINEAR), float)
        drawn.append(np.clip(pixels + noise.normal(0, 16, pixels.shape), 0, 255).astype(np.uint8))
    return np.stack(drawn)


def write_common(
    folder: Path, *, task: str, stages: Sequence[str], data: dict[str, Any], budget: dict[str, float], name: str
) -> None:
    write_json(
        folder / "run.json",
        {
            "name": name,
            "task": task,
            "potstill": "0.1.0",
            "created": "2026-11-20T09:12:44+00:00",
            "finished": "2026-11-20T09:31:02+00:00",
            "seconds": 1098.4,
            "stages": {
                stage: {"status": "done", "seconds": 12.5 * (position + 1), "key": f"{position:012x}"}
                for position, stage in enumerate(stages)
            },
            "recipe_hash": "9f2c41d07ab3",
            "command": f"potstill run recipe.yaml --set training.epochs=40 --out runs/{name}",
            "directory": "/home/someone/my project",
            "base": "/home/someone/my project",
            "given": [],
            "versions": {"python": "3.11.7", "potstill": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.0"},
            "machine": {"cpu": "8-core test machine", "cores": 8, "threads": 4, "device": "cpu"},
        },
    )
    limits = "".join(f"  {key}: {value}\n" for key, value in budget.items())
    (folder / "recipe.yaml").write_text(
        f"# {HOSTILE}\ntask: {task}\nseeds: 3\ndata:\n  train: '{name}'\nteacher:\n  model: resnet56\n"
        f"student:\n  model: resnet8\nbudget:{' {}' if not limits else ''}\n{limits}",
        encoding="utf-8",
    )
    write_json(folder / "data.json", data)


def write_export(folder: Path, *, score: float, refused: bool = False) -> None:
    def entry(name: str, form: str, size: int, millis: float, accuracy: float, ok: bool) -> dict[str, Any]:
        reasons = [] if ok else ["agreement 95.1 % is below the limit of 97.0 %"]
        return {
            "file": name,
            "format": form,
            "bytes": size,
            "max_abs_difference": 2.1e-5 if ok else 0.41,
            "relative_difference": 1.3e-6 if form == "onnx" else 0.021,
            "agreement": 1.0 if form == "onnx" else 0.951,
            "accuracy_torch": score,
            "accuracy_file": accuracy,
            "ok": ok,
            "reasons": reasons,
            "latency_ms": {"1": {"p50": millis, "p95": 1.3 * millis}, "32": {"p50": 19 * millis, "p95": 24 * millis}},
        }

    write_json(
        folder / "export" / "parity.json",
        {
            "files": [
                entry("student.onnx", "onnx", 331_204, 0.42, score, True),
                entry("student-int8.onnx", "onnx-int8", 112_930, 0.19, score - 0.004, not refused),
            ]
        },
    )


def sizes(with_latency: bool = True) -> dict[str, Size]:
    def timing(millis: float) -> dict[str, dict[str, float]] | None:
        both = {"1": {"p50": millis, "p95": 1.4 * millis}, "32": {"p50": 14 * millis, "p95": 17 * millis}}
        return both if with_latency else None

    student = Size(78_042, 25_200_000, 318_120, timing(1.31))
    teacher = Size(1_284_906, 251_500_000, 5_164_800, timing(11.8), onnx_latency_ms=timing(5.32))
    return {"teacher": teacher, "alone": student, "distilled": student}


def logits(labels: np.ndarray[Any, Any], hard: np.ndarray[Any, Any], skill: float, seed: int) -> np.ndarray[Any, Any]:
    """Return outputs that share their difficult samples with other models and are better with more ``skill``."""
    own = np.random.default_rng(seed).normal(0, 1.0, (len(labels), hard.shape[1]))
    return 1.9 * (skill * np.eye(hard.shape[1])[labels] + hard + own)


def image_run(
    folder: Path,
    *,
    seeds: int = 3,
    classes: Sequence[str] = DIGITS,
    gain: float = 0.55,
    exported: bool = True,
    recorded: bool = True,
    teacher_trained: bool = True,
    refused: bool = False,
    n: int = 1200,
) -> Path:
    """Write a classification run; ``gain`` is how much distillation adds to the student's skill."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(7)
    labels = noise.integers(0, len(classes), n)
    hard = noise.normal(0, 1.1, (n, len(classes)))
    skill = 5.2
    result = evaluate(
        task="classification",
        targets=labels,
        classes=classes,
        sizes=sizes(),
        teacher=logits(labels, hard, skill + 1.6, 99),
        alone={s: logits(labels, hard, skill, s) for s in range(seeds)},
        distilled={s: logits(labels, hard, skill + gain, 50 + s) for s in range(seeds)},
        names=[f"test/{classes[label]}/{row:05d}.png" for row, label in enumerate(labels)],
        limits=[
            Limit("student-int8.onnx", 0.1, 0.11293, "MB"),
            Limit("student-int8.onnx", 0.5, 0.19, "ms"),
        ]
        if exported
        else [],
    )
    write_json(folder / "evaluation.json", result.to_json())
    best = result.models["distilled"].metrics["accuracy"]
    if recorded:
        np.savez(folder / "disagreements.npz", images=pictures([d["label"] for d in result.disagreements]))
    if exported:
        write_export(folder, score=best, refused=refused)
    if teacher_trained:
        write_history(
            folder / "teacher",
            best=result.models["teacher"].metrics["accuracy"],
            epochs=60,
            seconds=412.0,
            seed=1,
            loss=1.4,
        )
    for seed in range(seeds):
        for kind, seconds, loss in (("alone", 91.0, 1.6), ("distilled", 99.0, 3.1)):
            write_history(
                folder / "seeds" / str(seed) / kind,
                best=result.models[kind].per_seed["accuracy"][seed],
                epochs=40,
                seconds=seconds + seed,
                seed=seed,
                loss=loss,
            )
    students = [f"{kind}-{seed}" for seed in range(seeds) for kind in ("alone", "distilled")]
    write_common(
        folder,
        task="classification",
        name=folder.name,
        stages=[*(["teacher"] if teacher_trained else []), "store", *students, "predictions", "export", "evaluation"],
        budget={"minutes": 2, "megabytes": 0.1, "milliseconds": 0.5} if exported else {},
        data={
            "train": 12_000,
            "validation": 1_500,
            "test": n,
            "classes": list(classes),
            "kind": "image",
            "shape": [3, 28, 28],
            "label_shift": {"validation": 0.012, "test": 0.13},
            "findings": [
                {"level": "info", "code": "skipped", "message": "2 files are no images and were skipped.", "count": 2},
                {
                    "level": "warning",
                    "code": "shift",
                    "message": "The labels of the test split differ from the "
                    "training labels (total variation distance 0.13).",
                    "count": 1,
                },
            ]
            if exported
            else [],
        },
    )
    return folder


def value_run(folder: Path, *, seeds: int = 3, n: int = 400) -> Path:
    """Write a regression run on vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(3)
    targets = noise.normal(52, 14, n)

    def answers(spread: float, seed: int) -> np.ndarray[Any, Any]:
        own = np.random.default_rng(seed).normal(0, spread, n)
        return (targets + own + np.random.default_rng(5).normal(0, 2, n))[:, None]

    result = evaluate(
        task="regression",
        targets=targets,
        sizes=sizes(),
        teacher=answers(2.5, 99),
        alone={s: answers(5.4, s) for s in range(seeds)},
        distilled={s: answers(4.1, 40 + s) for s in range(seeds)},
    )
    write_json(folder / "evaluation.json", result.to_json())
    rows = len(result.disagreements)
    np.savez(folder / "disagreements.npz", images=noise.normal(0, 1, (rows, 11)).astype(np.float32))
    write_export(folder, score=result.models["distilled"].metrics["r2"])
    write_history(folder / "teacher", best=0.94, epochs=30, seconds=20.0, seed=1, loss=0.9)
    for seed in range(seeds):
        write_history(folder / "seeds" / str(seed) / "alone", best=0.83, epochs=30, seconds=6, seed=seed, loss=0.8)
        write_history(folder / "seeds" / str(seed) / "distilled", best=0.88, epochs=30, seconds=7, seed=seed, loss=0.7)
    write_common(
        folder,
        task="regression",
        name=folder.name,
        budget={"megabytes": 0.5},
        stages=["teacher", "store", "alone-0", "distilled-0", "predictions", "export", "evaluation"],
        data={
            "train": 3200,
            "validation": 400,
            "test": n,
            "classes": [],
            "kind": "vector",
            "shape": [11],
            "label_shift": {"validation": 0.04, "test": 0.05},
            "findings": [],
        },
    )
    return folder


def partial_run(folder: Path) -> Path:
    """Write a run without export and pictures, with a loaded teacher, one seed, and no gain."""
    return image_run(folder, seeds=1, gain=-0.6, exported=False, recorded=False, teacher_trained=False)


def unfinished_run(folder: Path) -> Path:
    """Write a run that failed while its second student was trained."""
    folder.mkdir(parents=True, exist_ok=True)
    write_history(folder / "seeds" / "0" / "alone", best=0.9, epochs=12, seconds=30, seed=0, loss=1.5)
    history = folder / "seeds" / "0" / "distilled" / "history.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text('{"epoch": 1, "train_loss": 2.0, "validation_metric": 0.4}\n{"epoch": 2, "train_lo', "utf-8")
    write_common(
        folder,
        task="classification",
        name=folder.name,
        budget={},
        stages=["store", "alone-0"],
        data={
            "train": 100,
            "validation": 10,
            "test": 20,
            "classes": ["a", "b"],
            "kind": "image",
            "shape": [1, 8, 8],
            "label_shift": {},
            "findings": [],
        },
    )
    run = json.loads((folder / "run.json").read_text("utf-8"))
    run["stages"]["distilled-0"] = {"status": "failed", "key": "f", "seconds": 3.0}
    write_json(folder / "run.json", {**run, "finished": None, "seconds": None})
    return folder


def make(kind: str, folder: Path) -> Path:
    """Write the run folder of one of ``KINDS``."""
    makers = {"images": image_run, "values": value_run, "partial": partial_run, "unfinished": unfinished_run}
    return makers[kind](folder)


if __name__ == "__main__":
    from potstill.report import write

    for chosen in KINDS:
        write(make(chosen, Path(sys.argv[1]) / chosen))
