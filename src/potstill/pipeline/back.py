"""What a finished student gives back: a teacher that learned from it, and labels that both models doubt.

Neither has to help. The teacher is compared, on the test split and sample by sample, with itself and with a copy that
was fine-tuned equally long on the labels alone; nothing is chosen by these numbers.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from potstill.core.files import write_json, write_text
from potstill.core.scale import TargetScale
from potstill.data.samples import Samples
from potstill.evaluation.intervals import interval, spare
from potstill.models import load_weights
from potstill.models.beside_weights import copied
from potstill.models.last_layer import answer_in_standard_units
from potstill.objective import preset
from potstill.pipeline.build import Job
from potstill.pipeline.making import Making
from potstill.pipeline.proof import Array, best_seed, predicted
from potstill.recipe.schema import BackToTeacher, Training
from potstill.tasks.delete_one import of_mean
from potstill.tasks.kinds import KINDS
from potstill.teachers import LiveTeacher, Source, TorchModel
from potstill.teachers.at_rest import copy_of
from potstill.training import Result, Spec, train

Way = Literal["helped", "by-labels"]
WAYS: dict[Way, str] = {"helped": "with the student", "by-labels": "labels only"}
"""The trainings of a teacher that go on, and what each learns from."""
FOLDER = "back"


def settings_of(job: Job) -> BackToTeacher:
    """Return the recipe's section, with its defaults where it has none."""
    return job.recipe.back_to_teacher or BackToTeacher.model_construct()


def fine_tune(made: Making, way: Way, folder: Path, *, accelerator: Accelerator) -> Result:
    """Train a copy of the teacher further: from labels and the student's answers, or from labels alone."""
    job, teacher = made.job, made.teacher()
    section = settings_of(job)
    settings = Training(
        epochs=section.epochs or 1,
        optimizer="sgd",
        learning_rate=section.learning_rate,
        schedule="cosine",
        batch_size=job.recipe.training.batch_size,
        precision=job.recipe.training.precision,
    )
    learner = copy_of(teacher)
    learn_standard_units(job, learner)
    learner.requires_grad_(True)
    helper = None
    if way == "helped":
        student = copied(made.deployed(best_seed(job, made.out), "distilled"))  # which stays laid out as it is
        helper = LiveTeacher(student, preprocess=job.student.preprocess, device=job.device)
    data = job.data.to_learn()
    spec = Spec(
        data=data,
        stream=job.stream(data),
        objective=preset("auto" if way == "helped" else "alone", data.task),
        settings=settings,
        preprocess=job.teacher_at(0).preprocess,
        seed=job.recipe.seed,
        teacher=helper,
    )
    label = f"teacher, {way.replace('-', ' ')}"
    return train(learner, spec, folder, device=job.device, label=label, accelerator=accelerator)


def learn_standard_units(job: Job, teacher: nn.Module) -> None:
    """Let a teacher that answers in the target's units answer in those that models are trained in.

    Raises:
        UsageError: it cannot.

    """
    if job.teacher_scale is not None:
        teacher.eval()
        inputs = job.teacher_at(0).preprocess(job.data.train.fetch(np.arange(min(2, len(job.data.train)))))
        answer_in_standard_units(teacher, inputs, job.teacher_scale)


def measure(made: Making) -> None:
    """Write ``back/result.json`` and, in classification, ``back/doubtful_labels.csv``."""
    job, out, teacher = made.job, made.out, made.teacher()
    section = settings_of(job)
    found: dict[str, Any] = {}
    if section.epochs is not None:
        found = _compare(job, teacher, out)
    if job.task.exclusive:
        rows = doubtful(made)
        found["doubtful_labels"] = len(rows)
        write_text(out / FOLDER / "doubtful_labels.csv", _as_csv(rows))
    write_json(out / FOLDER / "result.json", found)


def _compare(job: Job, teacher: Source, out: Path) -> dict[str, Any]:
    """Score the teacher before and after on the test split, with 95 % intervals of the paired differences."""
    test = job.data.test
    model = copy_of(teacher)
    scores = {"before": _scores(job, model, test, job.teacher_scale)}
    for way in WAYS:
        load_weights(model, out / FOLDER / way / "weights.safetensors")
        scores[way] = _scores(job, model, test)
    pairs = {f"helped-{other}": scores["helped"] - scores[other] for other in ("before", "by-labels")}
    differences = {}
    for name, values in pairs.items():
        value, deviations = of_mean(values)
        extra = spare(len(test)) if KINDS[job.task.headline].rate else 0.0
        found = interval(np.array([value]), deviations[None], extra=extra)
        differences[name] = {"value": found.value, "low": found.low, "high": found.high}
    return {
        "metric": job.task.scores.each_called,
        "num_examples": len(test),
        "scores": {name: float(values.mean()) for name, values in scores.items()},
        "differences": differences,
    }


def _scores(job: Job, model: nn.Module, samples: Samples, scale: TargetScale | None = None) -> Array:
    """Return one number a sample, more is better: 1 for a right class, or the negative squared error.

    ``scale`` is what turns the model's values into standard units, where it answers in others.
    """
    answers = predicted(job, TorchModel(model, job.teacher_at(0).preprocess), samples, scale=scale)
    return job.task.scores.each(answers, samples.targets)


def doubtful(made: Making) -> list[dict[str, Any]]:
    """Return the training samples whose label both models are sure is another, the surest first."""
    job, teacher = made.job, made.teacher()
    train_split = job.data.train
    student = made.deployed(best_seed(job, made.out), "distilled")
    answers = {
        "teacher": predicted(job, TorchModel(copy_of(teacher), teacher.preprocess), train_split),
        "student": predicted(job, TorchModel(student, job.student.preprocess), train_split),
    }
    probs = {name: torch.from_numpy(one).double().softmax(1).numpy() for name, one in answers.items()}
    named = {name: one.argmax(1) for name, one in probs.items()}
    least = np.minimum(*(one.max(1) for one in probs.values()))
    chosen = (named["teacher"] == named["student"]) & (named["teacher"] != train_split.targets)
    chosen &= least >= settings_of(job).confidence
    rows = np.flatnonzero(chosen)
    return [
        {
            "id": int(train_split.ids[row]),
            "name": train_split.called(row),
            "label": job.data.classes[int(train_split.targets[row])],
            "answer": job.data.classes[int(named["teacher"][row])],
            "teacher_confidence": round(float(probs["teacher"][row].max()), 4),
            "student_confidence": round(float(probs["student"][row].max()), 4),
        }
        for row in rows[np.argsort(-least[rows], kind="stable")]
    ]


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = ["id", "name", "label", "answer", "teacher_confidence", "student_confidence"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
