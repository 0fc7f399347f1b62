"""The stages after training: read the test split once, and turn the numbers into a verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError
from potstill.core.files import atomic_path, read_json, write_json
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.data.samples import Samples, called
from potstill.evaluation import EvaluationResult, Limit, Size, evaluate, latency, predict
from potstill.evaluation.result import ONNX_RUNTIME, Latency
from potstill.export import OnnxModel, export_onnx, recommended
from potstill.models import Preprocessor, flops
from potstill.models.beside_weights import copied
from potstill.models.together import other_students
from potstill.pipeline import pool, stages
from potstill.pipeline.build import Job
from potstill.pipeline.facts import as_pictures
from potstill.pipeline.judging import higher_is_better, rises_still
from potstill.pipeline.keys import kinds, seeds
from potstill.pipeline.makers import answers_in
from potstill.pipeline.making import Making
from potstill.pipeline.student import KINDS
from potstill.recipe.schema import Budget, Recipe
from potstill.tasks import task_of
from potstill.teachers import Reads, Source, TorchModel
from potstill.teachers.at_rest import contiguous

Array = np.ndarray[Any, Any]
EXAMPLES = 32
OTHER = "other: "
LEARNS = {"alone": "alone", "pseudo": "on the teacher's labels", "distilled": "distilled"}
CALIBRATION = "calibration.json"
RESULTS = {
    "predictions": ("predictions.npz", CALIBRATION),
    "export": ("export/*.json", "export/*.safetensors", "export/*.onnx"),
    "evaluation": ("evaluation.json", "disagreements.npz"),
}
"""The files that each of these stages leaves in the run folder, as patterns."""


def best_seed(job: Job, out: Path) -> int:
    """Return the seed whose distilled student is best on validation: the one that is exported."""
    results = {seed: read_json(out / job.student.folder(seed, "distilled") / "result.json") for seed in seeds(job)}
    sign = 1.0 if higher_is_better(job.recipe) else -1.0
    return max(results, key=lambda seed: (sign * results[seed]["best_validation"], -seed))


def predict_test(made: Making) -> None:
    """Read the test split, once: what teacher and students answer is kept in ``predictions.npz``."""
    job, out, teacher = made.job, made.out, made.measured()
    test = job.data.test
    found: dict[str, Array] = {"ids": test.ids, "targets": test.targets, "seeds": np.array(seeds(job))}
    if teacher is not None:
        found["teacher"] = _asked(job, teacher, test, "teacher on the test split")
    if test.names is not None:
        found["names"] = np.array(test.names)
    found["rows_of"] = np.array(test.rows_of or "")
    held = held_by_teacher(job, teacher)
    for kind in kinds(job):
        on_test, held[kind] = [], []
        for seed in seeds(job):
            student = TorchModel(made.deployed(seed, kind), job.student.preprocess)
            on_test.append(predicted(job, student, test, f"{kind} {seed} on the test split"))
            if job.task.calibrate is not None:
                label = f"{kind} {seed} on the validation split"
                held[kind].append(predicted(job, student, job.data.validation, label))
        found[kind] = np.stack(on_test)
    for name, (other, scale) in other_models(made).items():
        found[f"{OTHER}{name}"] = predicted(job, other, test, f"{name} on the test split", scale)
    calibrate = job.task.calibrate
    if calibrate is not None:
        labels = job.data.validation.targets
        fitted = {name: [calibrate(logits, labels).to_json() for logits in each] for name, each in held.items()}
        write_json(out / CALIBRATION, fitted)
    with atomic_path(out / "predictions.npz") as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **found)


def kept_beside(out: Path, task: str) -> dict[str, list[Any]]:
    """Return the temperatures, or the thresholds, of each model that was calibrated, in the order of the seeds.

    A folder of an older version has none.
    """
    found = read_json(out / CALIBRATION) if (out / CALIBRATION).is_file() else {}
    return {name: [each[task_of(task).keeps] for each in calibrations] for name, calibrations in found.items()}


def held_by_teacher(job: Job, teacher: Source | None) -> dict[str, list[Array]]:
    """Return what the teacher answers to the validation split, where asking is free and it was not fitted on that."""
    if teacher is None or teacher.facts.fitted:
        return {}
    validation = job.data.validation
    costs = any(section.endpoint is not None for section in (job.teacher, *job.members))
    if job.task.calibrate is None or costs or not teacher.facts.measurable(validation.ids):
        return {}
    return {"teacher": [_asked(job, teacher, validation, "teacher on the validation split")]}


def _asked(job: Job, teacher: Source, samples: Samples, label: str) -> Array:
    """Return what the teacher answers to a split, (n, c), in the target's units."""
    with teacher.teaching(Reads(precision=job.teacher.precision, device=job.device, scale=job.teacher_scale)) as asked:
        return stages.answers_to(job, asked, samples, label)


def predicted(
    job: Job, model: Source, samples: Samples, label: str = "predict", scale: TargetScale | None = None
) -> Array:
    """Return what a model answers to a split, (n, k), in the target's units; ``scale`` where it answers in others."""
    whole, size = model.whole(), job.recipe.evaluation.batch_size
    if whole is None:
        with model.teaching(Reads(device=job.device, scale=scale)) as asked:
            return stages.answers_to(job, asked, samples, label)
    values = predict(whole, samples, preprocess=nn.Identity(), batch_size=size, device=job.device, label=label)
    return stages.in_target_units(job, values if scale is None else scale.standard(values))


def other_models(made: Making) -> dict[str, tuple[Source, TargetScale | None]]:
    """Return the models to show beside teacher and students, and the units of their values.

    These are members that know all classes, peers, narrower students, and a chain's models.
    """
    job, teacher = made.job, made.measured()
    found: dict[str, tuple[Source, TargetScale | None]] = {}
    members = () if teacher is None else zip(job.members, teacher.members, strict=True)
    for number, (section, model) in enumerate(members, 1):
        knows_all = section.classes is None or list(section.classes) == list(job.data.classes)
        if knows_all and not model.facts.by_id:
            found[f"teacher {number}"] = model, answers_in(section, job.data, job.base)
    students = other_students(made.learner(best_seed(job, made.out), "distilled"))
    found |= {name: (TorchModel(student, job.student.preprocess), None) for name, student in students.items()}
    for link in job.chain:
        found[link.name] = TorchModel(made.deployed(job.recipe.seed, "distilled", link), link.preprocess), None
    return found


def evaluate_models(made: Making) -> None:
    """Turn predictions, sizes and latencies into ``evaluation.json``, and keep the samples to look at."""
    job, out = made.job, made.out
    chosen = best_seed(job, out)
    sizes = {}
    teacher = made.measured()
    if teacher is not None:
        sizes["teacher"] = size_of(job, teacher, in_onnx=job.recipe.export.wanted)
    for kind in kinds(job):
        sizes[kind] = size_of(job, TorchModel(made.deployed(chosen, kind), job.student.preprocess))
    for name, (other, _) in other_models(made).items():
        sizes[name] = size_of(job, other)
    result = score(out, job.recipe, sizes)
    rows = np.array([entry["row"] for entry in result.disagreements], dtype=np.int64)
    samples = job.data.test.fetch(rows).numpy() if len(rows) else np.zeros((0, *job.data.shape), np.float32)
    if job.data.kind == "image":
        samples = as_pictures(samples)
    with atomic_path(out / "disagreements.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, images=samples)


def score(out: Path, recipe: Recipe, sizes: Mapping[str, Size]) -> EvaluationResult:
    """Compute every number from the kept predictions and write ``evaluation.json``."""
    exported = read_json(out / "export" / "parity.json")
    with np.load(out / "predictions.npz") as saved:
        found = {name: saved[name] for name in saved.files}
    numbers = [int(seed) for seed in found["seeds"]]
    students = {kind: dict(zip(numbers, found[kind], strict=True)) for kind in KINDS if kind in found}
    result = evaluate(
        task=recipe.task,
        targets=found["targets"],
        teacher=found.get("teacher"),
        alone=students.get("alone"),
        pseudo=students.get("pseudo"),
        distilled=students["distilled"],
        sizes=sizes,
        classes=recipe.data.classes or (),
        ids=found["ids"],
        names=_names(found),
        shown_seed=exported["seed"],
        others={name.removeprefix(OTHER): found[name] for name in found if name.startswith(OTHER)},
        temperatures=kept_beside(out, recipe.task),
        limits=_limits(recipe.budget, exported["files"]),
        metric=recipe.judged_by,
        warnings=still_improving(out, recipe, numbers),
        remarks=pool.in_words(out),
    )
    write_json(out / "evaluation.json", result.to_json())
    return result


def _names(found: Mapping[str, Array]) -> list[str] | None:
    """Return what a person calls each test sample; None in a folder of an older version, which does not say it."""
    if "names" in found or "rows_of" not in found:
        return found["names"].tolist() if "names" in found else None
    rows_of = str(found["rows_of"]) or None
    return [called(number, rows_of) for number in found["ids"].tolist()]


def still_improving(out: Path, recipe: Recipe, numbers: Sequence[int]) -> list[str]:
    """Return, in words, which students might be better after a longer training: those of most seeds ended rising."""
    validation = read_json(out / "data.json")["validation"]
    found = []
    for kind in KINDS:
        files = [out / f"seeds/{seed}/{kind}/history.jsonl" for seed in numbers]
        rising = [rises_still(recipe, file, validation) for file in files if file.exists()]
        if rising and 2 * sum(rising) > len(rising):
            found.append(
                f"The student {LEARNS[kind]} was still improving when its training ended, in {sum(rising)} of "
                f"{len(rising)} trainings: its last epoch is its best, and clearly better than a quarter before. Train "
                "longer (training.epochs) before you compare."
            )
    return found


def size_of(job: Job, model: Source, *, in_onnx: object = None) -> Size:
    """Return what a model costs; None where it is no torch model, or looks its answers up.

    Where ``in_onnx`` says so it is also timed as an ONNX file, which is not kept: the student is deployed as one, and
    times of two runtimes say nothing of each other.
    """
    example = job.data.test.fetch(np.arange(min(EXAMPLES, len(job.data.test))))
    made = model.whole()
    whole = None if made is None else contiguous(copied(made)).cpu().eval()
    took = None
    if job.recipe.evaluation.latency and not model.facts.by_id:
        took = _latency(whole or model, example, job.recipe.evaluation.threads)
    as_file = None
    if took is not None and in_onnx:
        as_file = took if model.facts.runtime == ONNX_RUNTIME else _latency_in_onnx(job, whole, example)
    return Size(
        parameters=model.facts.parameters,
        flops=None if whole is None or model.facts.parameters is None else flops(whole, example[:1]),
        bytes=model.facts.size_bytes,
        latency_ms=took,
        runtime=model.facts.runtime,
        onnx_latency_ms=as_file,
    )


def _latency(model: Source | nn.Module, example: Tensor, threads: int) -> Latency:
    if isinstance(model, nn.Module):
        return latency(model, example, threads=threads)
    with model.teaching() as teacher:

        def answer(inputs: Tensor) -> Any:
            ids = torch.arange(len(inputs))
            return teacher(Batch(ids, torch.zeros_like(ids), inputs))

        return latency(answer, example, threads=threads)


def _latency_in_onnx(job: Job, whole: nn.Module | None, example: Tensor) -> Latency | None:
    """Return how long a torch model takes as an ONNX file; None where it cannot be written as one."""
    if whole is None:
        return None
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        try:
            path = export_onnx(whole, Preprocessor(), example, Path(folder) / "model.onnx", task=job.data.task)
        except PotstillError:
            return None
        return latency(OnnxModel(path, threads=job.recipe.evaluation.threads), example.numpy())


def _limits(budget: Budget, exported: Sequence[Mapping[str, Any]]) -> list[Limit]:
    """Return the budget's limits beside what the file to deploy measures; None where that was not measured."""
    chosen = recommended(exported, megabytes=budget.megabytes, milliseconds=budget.milliseconds)
    entry = next((entry for entry in exported if entry["file"] == chosen), None)
    name = "an exported file (there is none)" if entry is None else entry["file"]
    measured = [
        (budget.megabytes, None if entry is None else entry["bytes"] / 1e6, "MB"),
        (budget.milliseconds, ((entry or {}).get("latency_ms") or {}).get("1", {}).get("p50"), "ms"),
    ]
    return [Limit(name, limit, value, unit) for limit, value, unit in measured if limit]
