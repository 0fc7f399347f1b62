"""The stages after training: read the test split once, and turn the numbers into a verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from potstill.core.errors import PotstillError
from potstill.core.files import atomic_path, read_json, write_json
from potstill.core.scale import TargetScale
from potstill.data.samples import called
from potstill.evaluation import EvaluationResult, Limit, Size, calibrate, evaluate, latency, predict
from potstill.evaluation.result import ONNX_RUNTIME, Latency
from potstill.export import OnnxModel, export_onnx, recommended
from potstill.models import Preprocessor, bytes_of_weights, flops, num_parameters
from potstill.models.measure import hides_weights
from potstill.models.together import Together
from potstill.models.zoo.nested import NestedConvNet, cut
from potstill.pipeline import stages
from potstill.pipeline.any_teacher import covers
from potstill.pipeline.build import Job
from potstill.pipeline.facts import as_pictures
from potstill.pipeline.judging import higher_is_better, rises_still
from potstill.pipeline.keys import seeds
from potstill.pipeline.makers import preprocessor
from potstill.pipeline.making import Making
from potstill.pipeline.student import KINDS
from potstill.recipe.schema import Budget, Recipe
from potstill.teachers import LiveTeacher, MergedTeacher
from potstill.teachers.foreign import ForeignTeacher
from potstill.teachers.merged import member_model
from potstill.teachers.protocol import by_batch

Array = np.ndarray[Any, Any]
EXAMPLES = 32
OTHER = "other: "
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
        found["teacher"] = stages.answers_to(job, teacher, test, "teacher on the test split")
    if test.names is not None:
        found["names"] = np.array(test.names)
    found["rows_of"] = np.array(test.rows_of or "")
    held: dict[str, list[Array]] = {} if teacher is None else _held_by_teacher(job, teacher)
    for kind in KINDS:
        on_test, held[kind] = [], []
        for seed in seeds(job):
            student = Shown(made.deployed(seed, kind), job.student.preprocess)
            on_test.append(_predicted(job, student, f"{kind} {seed}"))
            if job.data.task == "classification":
                held[kind].append(_predicted(job, student, f"{kind} {seed}", "validation"))
        found[kind] = np.stack(on_test)
    for name, other in other_models(made).items():
        found[f"{OTHER}{name}"] = _predicted(job, other, name)
    if job.data.task == "classification":
        labels = job.data.validation.targets
        fitted = {name: [calibrate(logits, labels).to_json() for logits in each] for name, each in held.items()}
        write_json(out / CALIBRATION, fitted)
    with atomic_path(out / "predictions.npz") as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, **found)


def temperatures(out: Path) -> dict[str, list[float]]:
    """Return the temperatures of each model whose confidence was calibrated, in the order of the seeds.

    A folder of an older version has none.
    """
    found = read_json(out / CALIBRATION) if (out / CALIBRATION).is_file() else {}
    return {name: [each["temperature"] for each in calibrations] for name, calibrations in found.items()}


def _held_by_teacher(job: Job, teacher: LiveTeacher) -> dict[str, list[Array]]:
    """Return what the teacher answers to the validation split, where asking it about classes is free."""
    validation = job.data.validation
    costs = any(section.endpoint is not None for section in (job.teacher, *job.members))
    if job.data.task != "classification" or costs or job.teacher.votes or not covers(teacher.model, validation.ids):
        return {}
    return {"teacher": [stages.answers_to(job, teacher, validation, "teacher on the validation split")]}


@dataclass(frozen=True)
class Shown:
    """A model whose answers are shown, and what turns its values into standard units where it answers in others."""

    model: nn.Module
    preprocess: Preprocessor
    scale: TargetScale | None = None


def _predicted(job: Job, shown: Shown, name: str, split: str = "test") -> Array:
    """Return what a model answers to a split, (n, k), in the target's units."""
    values = predict(
        shown.model,
        job.data.splits[split],
        preprocess=shown.preprocess,
        batch_size=job.recipe.evaluation.batch_size,
        device=job.device,
        label=f"{name} on the {split} split",
    )
    return stages.in_target_units(job, values if shown.scale is None else shown.scale.standard(values))


def other_models(made: Making) -> dict[str, Shown]:
    """Return the models to show beside teacher and students: members that know all classes, and a chain's models."""
    job, teacher = made.job, made.measured()
    found: dict[str, Shown] = {}
    if teacher is not None and isinstance(teacher.model, MergedTeacher):
        for index, member in enumerate(job.members):
            model = member_model(teacher.model, index)
            knows_all = member.classes is None or list(member.classes) == list(job.data.classes)
            if knows_all and by_batch(model) is None:
                scale = teacher.model.scales[index]
                found[f"teacher {index + 1}"] = Shown(model, preprocessor(member.preprocess), scale)
    learner = made.learner(best_seed(job, made.out), "distilled")
    if isinstance(learner, Together):
        found |= {f"peer {number}": Shown(peer, job.student.preprocess) for number, peer in enumerate(learner.peers, 1)}
    inner = learner.student if isinstance(learner, Together) else learner
    if isinstance(inner, NestedConvNet):
        found |= {f"width {share:g}": Shown(cut(inner, share), job.student.preprocess) for share in inner.widths[:-1]}
    for link in job.chain:
        found[link.name] = Shown(made.deployed(job.recipe.seed, "distilled", link), link.preprocess)
    return found


def evaluate_models(made: Making) -> None:
    """Turn predictions, sizes and latencies into ``evaluation.json``, and keep the samples to look at."""
    job, out = made.job, made.out
    chosen = best_seed(job, out)
    sizes = {}
    if made.measured() is not None:
        sizes["teacher"] = _size(job, job.make_teacher(), job.teacher_preprocess, in_onnx=job.recipe.export.wanted)
    for kind in KINDS:
        sizes[kind] = _size(job, made.deployed(chosen, kind), job.student.preprocess)
    for name, other in other_models(made).items():
        sizes[name] = _size(job, other.model, other.preprocess)
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
    result = evaluate(
        task=recipe.task,
        targets=found["targets"],
        teacher=found.get("teacher"),
        alone=dict(zip(numbers, found["alone"], strict=True)),
        distilled=dict(zip(numbers, found["distilled"], strict=True)),
        sizes=sizes,
        classes=recipe.data.classes or (),
        ids=found["ids"],
        names=_names(found),
        shown_seed=exported["seed"],
        others={name.removeprefix(OTHER): found[name] for name in found if name.startswith(OTHER)},
        temperatures=temperatures(out),
        limits=_limits(recipe.budget, exported["files"]),
        metric=recipe.judged_by,
        warnings=still_improving(out, recipe, numbers),
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
                f"The student {kind} was still improving when its training ended, in {sum(rising)} of {len(rising)} "
                "trainings: its last epoch is its best, and clearly better than a quarter before. Train longer "
                "(training.epochs) before you compare."
            )
    return found


def _size(job: Job, model: nn.Module, preprocess: Preprocessor, *, in_onnx: object = None) -> Size:
    """Return what a model costs; None where it is no torch model, or looks its answers up.

    Where ``in_onnx`` says so it is also timed as an ONNX file, which is not kept: the student is deployed as one, and
    times of two runtimes say nothing of each other.
    """
    example = job.data.test.fetch(np.arange(min(EXAMPLES, len(job.data.test))))
    deployed, hidden = nn.Sequential(preprocess, model).cpu().eval(), hides_weights(model)
    timed = job.recipe.evaluation.latency and by_batch(model) is None
    took = latency(deployed, example, threads=job.recipe.evaluation.threads) if timed else None
    runtime, as_file = runtime_of(model), None
    if timed and in_onnx:
        as_file = took if runtime == ONNX_RUNTIME else _latency_in_onnx(job, model, preprocess, example)
    return Size(
        parameters=None if hidden else num_parameters(model),
        flops=None if hidden else flops(model, preprocess(example[:1])),
        bytes=bytes_of_weights(model),
        latency_ms=took,
        runtime=runtime,
        onnx_latency_ms=as_file,
    )


def runtime_of(model: nn.Module) -> str:
    """Return what computes a model's answers: PyTorch, or the frameworks of what is no torch model in it."""
    foreign = [module.opened.runtime for module in model.modules() if isinstance(module, ForeignTeacher)]
    return " and ".join(dict.fromkeys(foreign)) or "PyTorch"


def _latency_in_onnx(job: Job, model: nn.Module, preprocess: Preprocessor, example: Tensor) -> Latency | None:
    """Return how long a torch model takes as an ONNX file; None where it cannot be written as one."""
    if hides_weights(model):
        return None
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        try:
            path = export_onnx(model, preprocess, example, Path(folder) / "model.onnx", task=job.data.task)
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
