"""The student as files to deploy: written beside the earlier ones, compared with the model, and only then in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import PotstillError
from potstill.core.files import read_json, write_json
from potstill.core.progress import progress
from potstill.data import Stream
from potstill.data.columns import Column
from potstill.data.samples import Samples
from potstill.evaluation import latency
from potstill.export import (
    OnnxModel,
    Parity,
    export_onnx,
    grouped_convolutions,
    parity,
    quantize,
    recommended,
    save_student,
)
from potstill.export.weights import CONFIG, UNSAVED, WEIGHTS
from potstill.pipeline.build import Job
from potstill.pipeline.judging import loss_of
from potstill.pipeline.keys import seeds
from potstill.pipeline.makers import zoo_arguments
from potstill.pipeline.making import Making
from potstill.pipeline.proof import EXAMPLES, Array, best_seed, kept_beside, predicted
from potstill.recipe.hash import recipe_hash
from potstill.tasks import headline
from potstill.tasks.kinds import word
from potstill.teachers import TorchModel

FILES = {"onnx": "student.onnx", "onnx-int8": "student-int8.onnx"}
PARITY = "parity.json"
_BESIDE = ".export"
_ADVICE = (
    "Deploy the float32 file, or give more or more typical calibration samples (export.calibration_samples): the "
    "ranges of int8 come from them"
)
_ADVICE_GROUPED = (
    ". The student has {} depthwise or grouped convolutions, the layers that lose most: int8 has one range for all "
    "channels of an output, and theirs differ. One whose layers see all channels (cnn, resnet) loses less"
)
_SAME = 1e-4
"""Largest difference of a probability that is rounding."""


@dataclass(frozen=True)
class _Answers:
    """What the student answers on one split, in torch."""

    samples: Samples
    outputs: Array


def export_student(made: Making) -> None:
    """Write the best distilled student as files to deploy, and compare each file's answers with the student's.

    Everything is written into a folder beside the earlier files first: what is refused or fails leaves them untouched.

    Raises:
        PotstillError: the student cannot be exported, or its weights no longer answer as they did when they were
            measured; nothing is changed then.

    """
    job, out = made.job, made.out
    seed = best_seed(job, out)
    model, folder, beside = made.deployed(seed, "distilled"), out / "export", out / _BESIDE
    test = _Answers(job.data.test, _measured(out, seed))
    _check_unchanged(job, model, test, out)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        entries = _write(job, model, beside, test, seed, _kept(job, out, seed))
        _replace(job, folder, beside, entries, {"seed": seed, "student": fingerprint.of_weights(model)})
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refusals(out: Path, *, optional: bool) -> list[str]:
    """Return, in words, which exported files were refused: those that the recipe named, or those that it did not."""
    entries = read_json(out / "export" / PARITY)["files"]
    return [
        " ".join(
            [f"{entry['file']} was refused: {'; '.join(entry['reasons'])}.", *map(_sentence, entry.get("remarks", ()))]
        )
        + (" The earlier file is still there." if entry.get("kept") else "")
        for entry in entries
        if not entry["ok"] and entry.get("optional", False) == optional
    ]


def _kept(job: Job, out: Path, seed: int) -> dict[str, Any]:
    """Return the exported student's temperature or thresholds, by name; nothing in a folder of an older version."""
    found = dict(zip(seeds(job), kept_beside(out, job.task.name).get("distilled", ()), strict=False))
    return {job.task.keeps: found[seed]} if seed in found else {}


def _sentence(remark: str) -> str:
    return f"{remark[:1].upper()}{remark[1:]}."


def remarks(out: Path) -> list[str]:
    """Return, in words, what is worth knowing of accepted files."""
    entries = read_json(out / "export" / PARITY)["files"]
    return [f"{entry['file']}: {remark}." for entry in entries if entry["ok"] for remark in entry.get("remarks", ())]


def _measured(out: Path, seed: int) -> Array:
    """Return what the student of one seed answered on the test split when it was measured."""
    with np.load(out / "predictions.npz") as saved:
        answers: Array = saved["distilled"][saved["seeds"].tolist().index(seed)]
    return answers


def _check_unchanged(job: Job, model: nn.Module, test: _Answers, out: Path) -> None:
    """Refuse weights that answer otherwise than they did when the test split was read."""
    first = test.samples.take(slice(0, EXAMPLES))
    again = predicted(job, TorchModel(model, job.student.preprocess), first)
    if not parity(test.outputs[: len(first)], again, first.targets, job.data.task, exact=True).ok:
        raise PotstillError(
            f"The weights of the student in {out} do not answer as they did when they were measured: they were changed "
            "or damaged since. Nothing was exported. Give the `potstill run` command of this folder again."
        )


def _write(
    job: Job, model: nn.Module, folder: Path, test: _Answers, seed: int, kept: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write and check every file in a folder of its own; return an entry of ``parity.json`` for each."""
    examples = job.data.train.fetch(np.arange(2))
    by_name = job.student.given is None
    built_as = job.student.section
    if built_as.model == "nested_cnn":  # what is deployed is its full width, an ordinary model
        args = {name: value for name, value in built_as.args.items() if name != "widths"}
        built_as = built_as.model_copy(update={"model": "cnn", "args": args})
    save_student(
        model,
        folder,
        preprocess=job.student.preprocess,
        task=job.data.task,
        shape=job.data.shape,
        dtype=examples.dtype,
        model_name=built_as.model if by_name else None,
        args=zoo_arguments(built_as, job.data) if by_name else {},
        base=job.base,
        classes=job.data.classes,
        recipe_hash=recipe_hash(job.written),
        scale=job.data.scale,
        columns=_columns(job),
        seed=seed,
        **kept,
    )
    wanted = job.recipe.export.wanted
    if not wanted:
        return []
    exact = folder / FILES["onnx"]
    write_onnx(job, model, exact, examples, kept)
    entries = [_checked(job, exact, "onnx", [test])] if "onnx" in wanted else []
    if "onnx-int8" in wanted:
        entries.append(_int8(job, model, exact, folder / FILES["onnx-int8"], test))
    return entries


def _int8(job: Job, model: nn.Module, exact: Path, path: Path, test: _Answers) -> dict[str, Any]:
    """Write and check an int8 file; where it is refused, say what can be done."""
    try:
        quantize(exact, path, _calibration(job))
    except PotstillError as error:
        return {**_unmeasured(job, path, "onnx-int8"), "ok": False, "reasons": [str(error)]}
    validation = job.data.validation
    student = TorchModel(model, job.student.preprocess)
    answers = predicted(job, student, validation, "distilled on the validation split")
    splits = [test, _Answers(validation, answers)]
    entry = _checked(job, path, "onnx-int8", splits)
    if not entry["ok"]:
        grouped = grouped_convolutions(exact)
        entry["remarks"].append(_ADVICE + (_ADVICE_GROUPED.format(grouped) if grouped else ""))
    return entry


def _columns(job: Job) -> tuple[Column, ...]:
    """Return the columns that the student's inputs are made of; none where it reads images or another model's layer."""
    columns = job.data.columns
    return columns if (sum(column.width for column in columns),) == tuple(job.data.shape) else ()


def write_onnx(job: Job, model: nn.Module, path: Path, examples: Tensor, kept: Mapping[str, Any] | None = None) -> None:
    """Write the student as a float32 file."""
    export_onnx(
        model,
        job.student.preprocess,
        examples,
        path,
        task=job.data.task,
        classes=job.data.classes,
        recipe_hash=recipe_hash(job.written),
        scale=job.data.scale,
        columns=_columns(job),
        **(kept or {}),
    )


def _calibration(job: Job) -> Iterator[Array]:
    """Yield training inputs, in an order that does not follow the classes."""
    train = job.data.train
    count = min(job.recipe.export.calibration_samples, len(train))
    rows = np.random.default_rng(job.recipe.seed).permutation(len(train))[:count]
    for start in range(0, count, EXAMPLES):
        yield train.fetch(rows[start : start + EXAMPLES]).numpy()


def _checked(job: Job, path: Path, name: str, splits: Sequence[_Answers]) -> dict[str, Any]:
    """Compare one file with the student it was made of, and measure it.

    A float32 file is judged by its numbers. An int8 file is judged by its score on the validation split, like every
    other choice; what the test split says of it is reported.
    """
    model, exact = OnnxModel(path, threads=job.recipe.evaluation.threads), len(splits) == 1
    results = [
        _compared(job, split, _answers(job, model, split.samples, f"{path.name} on the {where} split"), exact=exact)
        for split, where in zip(splits, ("test", "validation"), strict=False)
    ]
    on_test, judged = results[0], results[-1]
    unusable = () if np.isfinite(on_test.max_abs_difference) else on_test.reasons
    reasons = tuple(dict.fromkeys((*judged.reasons, *unusable, *_wrong_probabilities(job, model))))
    entry = {
        **_unmeasured(job, path, name),
        "bytes": path.stat().st_size,
        **on_test.numbers(),
        "judged_on": "test" if exact else "validation",
        "validation": None if exact else judged.numbers(),
        "ok": not reasons,
        "reasons": list(reasons),
        "remarks": list(judged.remarks),
    }
    if not reasons and job.recipe.evaluation.latency:
        entry["latency_ms"] = latency(model, job.data.test.fetch(np.arange(min(EXAMPLES, len(job.data.test)))).numpy())
    return entry


def _compared(job: Job, split: _Answers, answers: Array, *, exact: bool) -> Parity:
    """Compare a file's answers to one split with the student's; what counts of an int8 file is the recipe's metric."""
    recipe, targets = job.recipe, split.samples.targets
    loss = None if exact or not np.isfinite(answers).all() else loss_of(recipe, split.outputs, answers, targets)
    found = parity(split.outputs, answers, targets, recipe.task, exact=exact, limits=recipe.export, loss=loss)
    if exact or loss is not None or recipe.other_metric is None:
        return found
    remark = f"it was judged by its {word(headline(recipe.task))}, not by {word(recipe.other_metric)}"
    return replace(found, remarks=(*found.remarks, remark))


def _wrong_probabilities(job: Job, model: OnnxModel) -> tuple[str, ...]:
    """Return what is wrong with a classifier's second output: the first one at the temperature in the metadata."""
    probabilities = job.task.probabilities
    if probabilities is None:
        return ()
    inputs = job.data.test.fetch(np.arange(min(EXAMPLES, len(job.data.test)))).numpy()
    scaled = model(inputs).astype(np.float64) / float(model.metadata["temperature"])
    wanted = probabilities(torch.from_numpy(scaled)).numpy()
    difference = float(np.abs(model.probabilities(inputs) - wanted).max())
    return () if difference <= _SAME else (f"its probabilities are {difference:.2g} off those of its logits",)


def _unmeasured(job: Job, path: Path, name: str) -> dict[str, Any]:
    """Return the entry of a file before anything is known of it."""
    return {
        "file": path.name,
        "format": name,
        "optional": job.recipe.export.formats is None,
        "bytes": None,
        "latency_ms": None,
        "remarks": [],
    }


def _answers(job: Job, model: OnnxModel, samples: Samples, label: str) -> Array:
    parts = []
    with progress(label, len(samples), unit="samples") as advance:
        for batch in Stream(samples).recording(job.recipe.evaluation.batch_size):
            parts.append(model(batch.tensor))
            advance(len(batch))
    return np.concatenate(parts)


def _replace(
    job: Job, folder: Path, beside: Path, entries: Sequence[dict[str, Any]], made_from: dict[str, Any]
) -> None:
    """Put accepted files in the place of earlier ones; where one is refused, nothing that was there goes away."""
    before = read_json(folder / PARITY) if (folder / PARITY).is_file() else {}
    refused = any(not entry["ok"] for entry in entries)
    written = {entry["format"] for entry in entries}
    kept = [
        entry
        for entry in before.get("files", ())
        if refused and before.get("student") == made_from["student"] and entry["format"] not in written
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARITY).unlink(missing_ok=True)  # until the last file is in place, the folder says nothing
    (folder / UNSAVED).unlink(missing_ok=True)
    for name in (CONFIG, WEIGHTS, UNSAVED):
        if (beside / name).is_file():
            (beside / name).replace(folder / name)
    for entry in entries:
        if entry["ok"]:
            (beside / entry["file"]).replace(folder / entry["file"])
        elif (folder / entry["file"]).is_file():
            entry["kept"] = True
    for name in () if refused else set(FILES.values()) - {entry["file"] for entry in entries}:
        (folder / name).unlink(missing_ok=True)
    for entry in entries:
        if entry["ok"]:
            entry["sha256"] = fingerprint.of_file(folder / entry["file"])
    files = [entry for name in FILES for entry in (*entries, *kept) if entry["format"] == name]
    budget = job.recipe.budget
    chosen = recommended(files, megabytes=budget.megabytes, milliseconds=budget.milliseconds)
    write_json(folder / PARITY, {**made_from, "recommended": chosen, "files": files})
