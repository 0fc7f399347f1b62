"""From a job to something that teaches: its teacher with weights, live or recorded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.files import write_json
from potstill.models import load_weights
from potstill.pipeline import stages
from potstill.pipeline.build import Job
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.keys import Keys
from potstill.pipeline.makers import vote_rule
from potstill.pipeline.processes import on_main
from potstill.pipeline.racing import Attempt, settle, teacher_races
from potstill.pipeline.stage_runner import StageRunner
from potstill.recipe.schema import Training
from potstill.store import Store, open_store
from potstill.teachers import LiveTeacher, MergedTeacher, StoredTeacher, Teacher
from potstill.teachers.merged import member_model
from potstill.teachers.privacy import privacy_report


def finished_teacher(job: Job, runner: StageRunner, key: Keys) -> nn.Module | None:
    """Return the job's teacher with its weights, training what is to be trained first; None without a teacher."""
    if not job.has_teacher:
        return None
    train_teachers(job, runner, key)
    return _with_weights(job, runner.folder)


def train_teachers(job: Job, runner: StageRunner, key: Keys) -> None:
    """Train the teacher, or the members of several, where the recipe says so: rates first, then weights."""
    races = teacher_races(job)
    trainings: list[tuple[str, str, str, Training, Attempt]] = []
    fit: Attempt
    if job.teacher.train is not None:
        fit = partial(stages.train_teacher, job, accelerator=runner.accelerator)
        trainings.append(("teacher", "teacher", key.teacher, job.teacher.train, fit))
    for stage, place, index in _trained_members(job):
        fit = partial(stages.train_member, job, index, accelerator=runner.accelerator)
        trainings.append((stage, place, key.members[index], job.members[index].train or Training(), fit))
    for stage, place, of_stage, settings, fit in trainings:
        settled = settle(settings, races[stage], key.rates, runner, fit)
        runner.together(stage, of_stage, place, partial(fit, settings=settled))


def teacher_at_hand(job: Job, folder: RunFolder, key: Keys) -> nn.Module:
    """Return the job's teacher with its weights, which must be there: nothing is trained.

    Raises:
        UsageError: it still has to be trained.

    """
    trained = [("teacher", key.teacher)] if job.teacher.train is not None else []
    trained += [(stage, key.members[index]) for stage, _, index in _trained_members(job)]
    for stage, of_stage in trained:
        if not folder.is_done(stage, of_stage):
            raise UsageError(
                f"The {stage} is to be trained here first, which several parts at once cannot do. Give it weights, or "
                "record without --shard until the training is over, stop, and give the run folder to every part."
            )
    return _with_weights(job, folder)


def recorded(
    job: Job, runner: StageRunner, key: Keys, teacher: LiveTeacher | None, *, link: int, stage: str
) -> Teacher | None:
    """Return what the next model learns from: a live teacher, or its recorded answers; None where nothing reads it."""
    if teacher is None or not job.objective.needs_teacher:
        return None
    if job.teacher.live:
        return teacher
    record(job, runner, key, teacher, link=link, stage=stage)
    return stages.stored_teacher(job, teacher, stages.store_place(job, key, runner.folder.path, link))


def record(job: Job, runner: StageRunner, key: Keys, teacher: LiveTeacher, *, link: int = 0, stage: str) -> None:
    """Record a teacher with all processes; a recording that is there already is checked, and repaired if need be."""
    store = stages.store_place(job, key, runner.folder.path, link)
    unknown = not runner.folder.is_done(stage, key.stores[link]) and stages.is_recorded(store)

    def work(part: tuple[int, int]) -> None:
        stages.record_teacher(job, teacher, store, part, spare=True)
        if unknown and part[0] == 0:  # a store of somebody else's run
            stages.check_store(job, teacher, open_store(store))

    runner.checked(
        stage,
        key.stores[link],
        work,
        is_there=lambda: stages.is_recorded(store),
        shared=True,
    )
    if job.teacher.votes is not None:
        on_main(runner.accelerator, lambda: _write_privacy(job, runner.folder.path, open_store(store)))


def _write_privacy(job: Job, out: Path, store: Store) -> None:
    """Write ``privacy.json``: what the votes that were recorded cost."""
    votes = job.teacher.votes
    if votes is None:
        raise TypeError("these teachers do not vote")
    ids = torch.from_numpy(np.array(store.ids))
    logits = StoredTeacher(store, ["logits"]).read(ids, torch.zeros_like(ids))["logits"]
    answered = (logits.amax(1) > logits.amin(1)).numpy()  # a vote that was not given is the same for all classes
    report = privacy_report(vote_rule(votes), members=len(job.members), answered=answered, delta=votes.delta)
    write_json(out / "privacy.json", report)


def _trained_members(job: Job) -> Iterator[tuple[str, str, int]]:
    """Yield stage, folder and number of each member of a merged teacher that is trained here."""
    for index, member in enumerate(job.members):
        if member.train is not None:
            yield f"teacher {index + 1}", f"teacher/{index + 1}", index


def _with_weights(job: Job, folder: RunFolder) -> nn.Module:
    module = job.make_teacher()
    if job.teacher.train is not None:
        load_weights(module, folder.path / "teacher" / "weights.safetensors")
    for _, place, index in _trained_members(job):
        if isinstance(module, MergedTeacher):
            load_weights(member_model(module, index), folder.path / place / "weights.safetensors")
    if isinstance(module, MergedTeacher) and module.weighting == "attention":
        stages.fit_merged(job, module)
    return module
