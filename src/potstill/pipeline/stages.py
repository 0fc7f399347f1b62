"""The stages up to trained students, one function each; each writes its result into the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from potstill.core.errors import TeacherError
from potstill.core.progress import progress
from potstill.core.signals import Batch
from potstill.data import Stream, only_classes
from potstill.data.samples import Samples
from potstill.losses import gaussian_nll
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.objective import preset
from potstill.objective.sampling import biased_terms
from potstill.pipeline import coefficients
from potstill.pipeline.build import Job, example_batch
from potstill.pipeline.judging import chosen_by
from potstill.pipeline.keys import Keys
from potstill.pipeline.makers import located
from potstill.pipeline.racing import teacher_stage
from potstill.pipeline.store_loss import encoded, read_back, refuse_lossy
from potstill.pipeline.student import Arm
from potstill.recipe.schema import Training
from potstill.store import Manifest, Place, Store, codecs, is_remote, local_folder, open_store, record_part
from potstill.store.codecs import Codec
from potstill.store.heads import read_head
from potstill.store.size import in_words
from potstill.store.writer import Answer
from potstill.teachers import Model, Reads, Source, StoredTeacher, Teacher, describe_recording
from potstill.teachers.at_rest import copy_of
from potstill.training import AverageTeacher, Result, Spec, learner_of


def train_teacher(
    job: Job,
    number: int,
    folder: Path,
    *,
    accelerator: Accelerator,
    settings: Training,
    steps: int | None = None,
    label: str | None = None,
) -> Result:
    """Train the teacher (0), or its i-th member on the classes that it is to know, from labels alone."""
    model, seed = job.teacher_at(number), job.recipe.seed + max(0, number - 1)
    classes, data = job.members[number - 1].classes if number else None, job.data.for_teacher()
    data = data.to_learn() if classes is None else only_classes(data, classes)
    spec = Spec(
        data=data,
        stream=job.stream(data, seed),
        objective=preset("alone", data.task),
        settings=settings,
        preprocess=model.preprocess,
        seed=seed,
        steps=steps,
        metric=chosen_by(job.recipe, job.data),
    )
    label, module = label or teacher_stage(number), copy_of(model)
    return learner_of(module).fit(module, spec, folder, device=job.device, label=label, accelerator=accelerator)


def train_student(
    job: Job,
    arm: Arm,
    folder: Path,
    *,
    accelerator: Accelerator,
    teacher: Model | None,
    settings: Training,
    label: str | None = None,
    steps: int | None = None,
) -> Result:
    """Train one student: alone from labels, or distilled with the job's objective; all else is equal.

    Where labels are few, the job is one of `pool.lesson`. ``settings`` are those of the recipe with nothing left open;
    ``steps`` as in `train`.
    """
    seed, kind = arm
    distilled = kind == "distilled"
    decay = job.teacher.average_of_student
    views = teacher.facts.views if distilled and teacher is not None else None
    data = job.data.to_learn()
    if not distilled and data.train.labelled is not None:
        raise TypeError("a student that learns from labels alone needs all of them: see pool.lesson")
    spec = Spec(
        data=data,
        # Recorded views were made with the recipe's seed; without them every seed sees views of its own.
        stream=job.stream(data, seed) if views is None else job.stream(data, views=views),
        objective=job.objective if distilled else preset("alone", data.task),
        settings=settings,
        preprocess=job.student.preprocess,
        seed=seed,
        teacher=(teacher if decay is None else AverageTeacher(decay)) if distilled else None,
        taps=job.student_taps if distilled else {},
        steps=steps,
        metric=chosen_by(job.recipe, job.data),
    )
    label = label or f"{kind}, seed {seed}"
    student = job.student.build(*arm)
    return learner_of(student).fit(student, spec, folder, device=job.device, label=label, accelerator=accelerator)


def live_teacher(job: Job, model: Source) -> Teacher:
    """Return a model with its weights as the frozen teacher of this job."""
    return model.teaching(
        Reads(
            taps=job.teacher_taps,
            outputs=(job.objective.teacher_signals & model.facts.signals) - {"logits"},
            input_gradient=INPUT_GRADIENT in job.objective.teacher_signals,
            precision=job.teacher.precision,
            device=job.device,
            scale=job.teacher_scale,
            log_variances=_log_variances(job),
        )
    )


def _log_variances(job: Job) -> set[str]:
    """Return the teacher's signals that the objective reads as logarithms of variances of its values."""
    terms = [term for term in job.objective.terms if term.loss is gaussian_nll]
    return {term.teacher[1] for term in terms if isinstance(term.teacher, tuple) and len(term.teacher) == 2}


def in_target_units(job: Job, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what a model answered, (n, k), as people read it: values in the target's units, logits as they are."""
    return values if job.data.scale is None else job.data.scale.original(values)


def answers_to(job: Job, teacher: Teacher, samples: Samples, label: str) -> np.ndarray[Any, Any]:
    """Return what the teacher says of a split, (n, c), in the target's units; ``label`` is for the progress bar.

    It is asked without targets: a teacher that is merged by labels would see the answers.
    """
    answers = []
    with progress(label, len(samples), unit="samples") as advance:
        for batch in Stream(samples).recording(job.recipe.evaluation.batch_size):
            answers.append(teacher(replace(batch, targets=None))["logits"].cpu().numpy())
            advance(len(batch))
    return in_target_units(job, np.concatenate(answers))


def store_place(job: Job, keys: Keys, out: Path, link: int = 0) -> Place:
    """Return where a store lies: the recipe's own folder or address, or beside the runs by what it depends on.

    Args:
        job: the run.
        keys: of its stages.
        out: the run folder.
        link: 0 for what the teacher says, i for what the i-th model of a chain says.

    """
    if job.recipe.store.path is not None and is_remote(job.recipe.store.path):
        return f"{job.recipe.store.path.rstrip('/')}/link-{link}" if link else job.recipe.store.path
    if job.recipe.store.path is not None:
        path = located(job.recipe.store.path, job.base)
        return path / f"link-{link}" if link else path
    return out.parent / "store" / keys.store(link).key[:16]


def is_recorded(place: Place) -> bool:
    """Return whether a finished store lies at a place."""
    if isinstance(place, Path):
        return (place / "manifest.json").is_file()
    try:
        open_store(place)
    except TeacherError:
        return False
    return True


def store_manifest(job: Job, teacher: Teacher) -> Manifest:
    """Describe the store that this job needs: its signals and everything they depend on."""
    store = job.recipe.store
    return describe_recording(
        teacher,
        example_batch(job),
        ids=job.data.train.ids,
        data=job.data.with_every_label().train.fingerprint,
        dtype=store.dtype,
        codecs=codecs_of(job),
        views=store.views or 1,
        augmentation=job.augment.model_dump() if job.augment else None,
        seed=job.recipe.seed,
        shards=store.shards,
        units=job.data.scale,
    )


def codecs_of(job: Job) -> dict[str, Codec]:
    """Return the codec of every signal that the recipe gives one."""
    sections = job.recipe.store.codecs.items()
    return {name: codecs.from_json(section.settings()) for name, section in sections}


def sampling_warnings(job: Job) -> list[str]:
    """Return, in words, which terms of the objective sampled probabilities make biased."""
    if job.teacher.live:
        return []
    return biased_terms(job.objective, [name for name, codec in codecs_of(job).items() if codec.facts.samples])


def recording_batches(job: Job, ranges: Sequence[tuple[int, int]] | None = None) -> Iterator[Batch]:
    """Yield the training samples in the views that are recorded, row after row."""
    recipe, stream = job.recipe, job.stream(job.data, views=job.recipe.store.views)
    return stream.recording(recipe.evaluation.batch_size, ranges=ranges, workers=recipe.training.workers)


def record_teacher(
    job: Job, teacher: Teacher, place: Place, part: tuple[int, int] = (0, 1), *, spare: bool = False
) -> Store | None:
    """Record what the teacher says of every training sample and view, once; or one of several parts of that.

    With ``spare`` there may be more parts than shards: the last ones then have nothing to do.
    """
    manifest = store_manifest(job, teacher)
    if spare:
        part = part[0], min(part[1], manifest.num_shards)
        if part[0] >= part[1]:
            return None
    answer: Answer = teacher
    if manifest.signals["logits"].head is not None:
        manifest, answer = _reduced(job, teacher, manifest, local_folder(place, manifest))
    if not was_begun(place) and job.teacher.votes is None:  # every question about votes costs privacy
        answer = _checked(job, teacher, answer, manifest, place)
    batches, ids = partial(recording_batches, job), job.data.train.ids
    what = f"recording the teacher, {in_words(manifest.num_bytes)}"
    return record_part(answer, batches, place, manifest, ids, part=part, description=what)


def was_begun(place: Place) -> bool:
    """Return whether a recording lies in a place, finished or not; at an address only a finished one shows."""
    return is_recorded(place) if isinstance(place, str) else any(place.glob("manifest*.json"))


def _checked(job: Job, teacher: Teacher, answer: Answer, manifest: Manifest, place: Place) -> Answer:
    """Refuse a store that would lose what the teacher says, by its first batch; return who knows that batch's answer.

    Raises:
        UsageError: too much is lost.

    """
    probe = next(recording_batches(job))
    said = teacher(probe)
    answers = said if answer is teacher else {k: v for k, v in answer(probe).items() if isinstance(v, torch.Tensor)}
    head = None if answer is teacher else read_head(local_folder(place, manifest), manifest.signals["logits"].file)
    refuse_lossy(job, manifest, said, encoded(manifest, answers, head))

    def remembering(batch: Batch) -> Any:
        known = torch.equal(batch.ids, probe.ids) and torch.equal(batch.views, probe.views)
        return answers if known else answer(batch)

    return remembering


def check_store(job: Job, teacher: Teacher, store: Store) -> None:
    """Refuse a store that is there already and has lost what the teacher says; one batch is read and asked.

    Raises:
        UsageError: too much is lost.

    """
    if job.teacher.votes is None:
        probe = next(recording_batches(job))
        refuse_lossy(job, store.manifest, teacher(probe), read_back(store, probe))


def _reduced(job: Job, teacher: Teacher, manifest: Manifest, folder: Path) -> tuple[Manifest, Answer]:
    """Return what to record and who answers where the codec reduces what the teacher's last layer reads."""
    inputs = job.teacher_at(0).preprocess(example_batch(job).tensor)
    layer = coefficients.find_layer(teacher.module, manifest.signals["logits"].codec, inputs)
    rows = min(max(coefficients.PROBE, 4 * layer.in_features), manifest.num_rows)
    probe = recording_batches(job, [(0, rows)])
    return coefficients.with_head(teacher, layer, manifest, folder, probe, scale=job.teacher_scale)


def stored_teacher(job: Job, teacher: Teacher, place: Place) -> StoredTeacher:
    """Open the store as a teacher, refusing one that was recorded for something else."""
    return StoredTeacher(open_store(place, store_manifest(job, teacher)), standard=True)
