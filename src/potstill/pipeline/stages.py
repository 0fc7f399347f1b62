"""The stages up to trained students, one function each; each writes its result into the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from potstill.core.signals import Batch
from potstill.data import only_classes, record_batches
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.models.together import deployed
from potstill.objective import preset
from potstill.pipeline.build import Job, example_batch
from potstill.pipeline.keys import Keys, Kind
from potstill.pipeline.makers import located, preprocessor
from potstill.recipe.schema import Training
from potstill.store import Manifest, open_store, record
from potstill.teachers import LiveTeacher, MergedTeacher, StoredTeacher, Teacher, describe_recording
from potstill.training import AverageTeacher, Result, train, without_teacher


def training_settings(job: Job) -> Training:
    """Return the student's training settings with the budget's time limit in them."""
    settings = job.recipe.training
    if job.recipe.budget.minutes is None or settings.minutes is not None:
        return settings
    return settings.model_copy(update={"minutes": job.recipe.budget.minutes})


def train_teacher(job: Job, folder: Path, accelerator: Accelerator) -> Result:
    """Train the teacher on the same data, from labels alone."""
    settings = job.teacher.train or Training()
    return train(
        job.make_teacher(),
        job.data,
        objective=preset("alone", job.data.task),
        settings=settings,
        preprocess=job.teacher_preprocess,
        folder=folder,
        seed=job.recipe.seed,
        augment=job.augment,
        device=job.device,
        label="teacher",
        accelerator=accelerator,
    )


def train_member(job: Job, index: int, folder: Path, accelerator: Accelerator) -> Result:
    """Train one member of a merged teacher from labels alone, on the classes that it is to know."""
    member = job.members[index]
    return train(
        job.make_member(index),
        job.data if member.classes is None else only_classes(job.data, member.classes),
        objective=preset("alone", job.data.task),
        settings=member.train or Training(),
        preprocess=preprocessor(member.preprocess),
        folder=folder,
        seed=job.recipe.seed + index,
        augment=job.augment,
        device=job.device,
        label=f"teacher {index + 1}",
        accelerator=accelerator,
    )


def fit_merged(job: Job, merged: MergedTeacher) -> None:
    """Learn the attention weights of a merged teacher on the validation split, which no member was trained on."""
    validation, size = job.data.validation, job.recipe.evaluation.batch_size
    found = list(record_batches(validation, batch_size=size))
    merged.eval()
    targets = torch.cat([batch.targets for batch in found if batch.targets is not None])
    merged.fit([batch.inputs for batch in found], targets)


def train_student(
    job: Job,
    folder: Path,
    *,
    accelerator: Accelerator,
    seed: int,
    kind: Kind,
    teacher: Teacher | None,
    label: str | None = None,
) -> Result:
    """Train one student: alone from labels, or distilled with the job's objective; all else is equal."""
    distilled = kind == "distilled"
    decay = job.teacher.average_of_student
    stored = isinstance(teacher, StoredTeacher)
    return train(
        job.make_learner(seed) if distilled else deployed(job.make_student(seed)),
        job.data,
        objective=job.objective if distilled else preset("alone", job.data.task),
        settings=training_settings(job) if distilled else without_teacher(training_settings(job)),
        preprocess=job.student_preprocess,
        folder=folder,
        seed=seed,
        # Recorded views were made with the recipe's seed; without them every seed sees views of its own.
        augment_seed=job.recipe.seed if distilled and stored else seed,
        teacher=(teacher if decay is None else AverageTeacher(decay)) if distilled else None,
        augment=job.augment,
        views=job.recipe.store.views if distilled and stored else None,
        taps=job.student_taps if distilled else {},
        device=job.device,
        label=label or f"{kind}, seed {seed}",
        accelerator=accelerator,
    )


def live_teacher(job: Job, model: nn.Module) -> LiveTeacher:
    """Wrap a trained module as the frozen teacher of this job."""
    return LiveTeacher(
        model,
        preprocess=job.teacher_preprocess,
        taps=job.teacher_taps,
        outputs=job.objective.teacher_signals & job.teacher_outputs,
        input_gradient=INPUT_GRADIENT in job.objective.teacher_signals,
        precision=job.teacher.precision,
        device=job.device,
    )


def store_folder(job: Job, keys: Keys, out: Path, link: int = 0) -> Path:
    """Return where a store lies: the recipe's own folder, or one beside the runs named by what it depends on.

    Args:
        job: the run.
        keys: of its stages.
        out: the run folder.
        link: 0 for what the teacher says, i for what the i-th model of a chain says.

    """
    if job.recipe.store.path is not None:
        path = located(job.recipe.store.path, job.base)
        return path / f"link-{link}" if link else path
    return out.parent / "store" / keys.stores[link][:16]


def store_manifest(job: Job, teacher: LiveTeacher) -> Manifest:
    """Describe the store that this job needs: its signals and everything they depend on."""
    return describe_recording(
        teacher,
        example_batch(job),
        ids=job.data.train.ids,
        data=job.data.train.fingerprint,
        dtype=job.recipe.store.dtype,
        views=job.recipe.store.views or 1,
        augmentation=job.augment.model_dump() if job.augment else None,
        seed=job.recipe.seed,
    )


def record_teacher(job: Job, teacher: LiveTeacher, folder: Path) -> None:
    """Record what the teacher says of every training sample and view, once."""
    size = job.recipe.evaluation.batch_size

    def from_row(row: int) -> Iterator[Batch]:
        return record_batches(
            job.data.train,
            batch_size=size,
            views=job.recipe.store.views or 1,
            augment=job.augment,
            seed=job.recipe.seed,
            num_classes=job.data.num_outputs,
            start=row // size,
            workers=job.recipe.training.workers,
        )

    record(teacher, from_row, folder, store_manifest(job, teacher), job.data.train.ids)


def stored_teacher(job: Job, teacher: LiveTeacher, folder: Path) -> StoredTeacher:
    """Open the store as a teacher, refusing one that was recorded for something else."""
    return StoredTeacher(open_store(folder, store_manifest(job, teacher)))
