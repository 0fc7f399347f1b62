"""What each stage's result depends on, as one hash a stage: equal key, equal result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from potstill.core import fingerprint
from potstill.pipeline.build import Job

Kind = Literal["alone", "distilled"]
KINDS: tuple[Kind, ...] = ("alone", "distilled")


@dataclass(frozen=True)
class Keys:
    """The inputs of every stage, hashed. ``students`` maps ``(seed, kind)`` to a key."""

    teacher: str
    store: str
    students: dict[tuple[int, Kind], str]
    predictions: str
    export: str
    evaluation: str


def seeds(job: Job) -> tuple[int, ...]:
    """Return the seeds of the students."""
    return tuple(job.recipe.seed + offset for offset in range(job.recipe.seeds))


def student_runs(job: Job) -> Iterator[tuple[int, Kind]]:
    """Yield every student to train, in order."""
    for seed in seeds(job):
        for kind in KINDS:
            yield seed, kind


def stage_name(seed: int, kind: Kind) -> str:
    """Return the name of a student's stage, for example ``student alone, seed 0``."""
    return f"student {kind}, seed {seed}"


def stage_folder(seed: int, kind: Kind) -> str:
    """Return a student's folder in the run folder."""
    return f"seeds/{seed}/{kind}"


def model_identity(model: nn.Module) -> list[str]:
    """Return what a model is (its modules) and what it starts from (its weights and buffers)."""
    return [str(model), fingerprint.of_weights(model)]


def keys(job: Job) -> Keys:
    """Return the key of every stage of ``job``, without running any."""
    recipe, data = job.recipe, job.data.fingerprint
    augment = recipe.data.augment.model_dump()
    teacher = fingerprint.of_json(
        [
            model_identity(job.make_teacher()),
            recipe.teacher.preprocess.model_dump(),
            [recipe.teacher.train.model_dump(), data, augment, recipe.seed] if recipe.teacher.train else None,
        ]
    )
    signals = sorted(job.objective.teacher_signals)
    store = fingerprint.of_json(
        [teacher, data, augment, recipe.seed, recipe.store.model_dump(exclude={"path"}), signals]
    )
    common: list[Any] = [data, augment, recipe.seed, _training(job), recipe.student.preprocess.model_dump()]
    distilled = [
        job.objective.describe(),
        store if not recipe.teacher.live else [teacher, "live"],
        recipe.teacher.precision,
    ]
    models = {seed: model_identity(job.make_student(seed)) for seed in seeds(job)}
    students = {
        (seed, kind): fingerprint.of_json([common, seed, models[seed], distilled if kind == "distilled" else kind])
        for seed, kind in student_runs(job)
    }
    predictions = fingerprint.of_json([teacher, recipe.teacher.precision, sorted(students.values())])
    export = fingerprint.of_json([predictions, recipe.export.model_dump(), recipe.evaluation.threads])
    evaluation = fingerprint.of_json(
        [predictions, export, recipe.evaluation.model_dump(), recipe.budget.model_dump(), list(job.data.classes)]
    )
    return Keys(teacher, store, students, predictions, export, evaluation)


def _training(job: Job) -> dict[str, Any]:
    """Settings that change a student's weights; how often it is saved or logged does not."""
    settings = job.recipe.training.model_dump(exclude={"checkpoint_every", "track", "workers"})
    return {**settings, "minutes": settings["minutes"] or job.recipe.budget.minutes}
