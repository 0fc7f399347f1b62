"""From a job to something that teaches: its teacher with weights, live or recorded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.core import fingerprint
from potstill.core.errors import TeacherError, UsageError
from potstill.core.files import write_json
from potstill.core.progress import say
from potstill.models import load_weights
from potstill.pipeline import probe as probes
from potstill.pipeline import stages
from potstill.pipeline.any_teacher import is_foreign
from potstill.pipeline.build import Job
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.inputs import Inputs, files_changed
from potstill.pipeline.keys import ANSWERS, Keys, store_name
from potstill.pipeline.makers import vote_rule
from potstill.pipeline.processes import on_main
from potstill.pipeline.racing import Attempt, chosen_rates, settle, teacher_stage
from potstill.pipeline.stage_runner import StageRunner, look_at
from potstill.pipeline.trainings import of_race, of_teacher, teachers_of
from potstill.recipe import schema
from potstill.store import Store, open_store
from potstill.teachers import LiveTeacher, MergedTeacher, StoredTeacher, Teacher
from potstill.teachers.merged import member_model
from potstill.teachers.privacy import privacy_report

_ANSWERS = "answers.safetensors"


def finished_teacher(job: Job, runner: StageRunner, key: Keys) -> nn.Module | None:
    """Return the job's teacher with its weights, training what is to be trained first; None without a teacher."""
    if not job.has_teacher:
        return None
    train_teachers(job, runner, key)
    module = with_weights(job, runner.folder.path)
    runner.results[ANSWERS] = on_main(
        runner.accelerator, lambda: answers_of(job, module, runner.folder.path, keep=True)
    )
    return module


def train_teachers(job: Job, runner: StageRunner, key: Keys) -> None:
    """Train the teacher, or the members of several, where the recipe says so: rates first, then weights."""
    for number in teachers_of(job):
        section = job.members[number - 1] if number else job.teacher
        fit: Attempt = partial(stages.train_teacher, job, accelerator=runner.accelerator)
        if number:
            fit = partial(stages.train_member, job, number - 1, accelerator=runner.accelerator)
        arm = teacher_stage(number)
        settled = settle(section.train or schema.Training(), key.races[arm], of_race(key, arm), runner, fit)
        runner.together(of_teacher(key, number), partial(fit, settings=settled))


def teacher_at_hand(job: Job, folder: RunFolder, key: Keys) -> nn.Module:
    """Return the job's teacher with its weights, which must be there: nothing is trained.

    Raises:
        UsageError: it still has to be trained, or is damaged.

    """
    for number in teachers_of(job):
        race = key.races[teacher_stage(number)]
        if race is not None:
            key.results[race.name] = chosen_rates(folder.path, race)
        training = of_teacher(key, number)
        look = look_at(folder, training.stage, training.inputs, training)
        if not look.usable:
            why = f" ({'; '.join(look.why)})" if look.why else ""
            raise UsageError(
                f"The {training.stage} is to be trained here first{why}, which several parts at once cannot do. Give "
                "it weights, or record without --shard until the training is over, stop, and give the run folder to "
                "every part."
            )
        key.results[training.stage] = folder.result(training.stage) or ""
    return with_weights(job, folder.path)


def answers_of(job: Job, module: nn.Module, out: Path, *, keep: bool) -> str:
    """Return a digest of what a teacher answers, the same for answers that differ by rounding from those kept before.

    Args:
        job: the run.
        module: its teacher, with its weights.
        out: the run folder.
        keep: whether to write down answers that are new.

    """
    now, file = _answers(job, module), out / "teacher-answers.safetensors"
    before = probes.read(file)
    if before is None or probes.difference(before, now) or before.keys() != now.keys():
        if keep:
            probes.write(file, now)
        before = now
    return fingerprint.of_json({name: fingerprint.of_array(value) for name, value in before.items()})


def _answers(job: Job, module: nn.Module) -> probes.Probe:
    """Return a teacher's answers to a few samples; of one that is no torch model, or votes, none: it has a digest."""
    sections: list[schema.Teacher | schema.Member] = [job.teacher, *job.members]
    if job.teacher.votes is not None or any(map(is_foreign, sections)):
        return {}
    return probes.answers(module, job.teacher_preprocess(probes.inputs_for(job.data.train)))


def recorded(job: Job, runner: StageRunner, key: Keys, teacher: LiveTeacher | None, *, link: int) -> Teacher | None:
    """Return what the next model learns from: a live teacher, or its recorded answers; None where nothing reads it."""
    if teacher is None or not job.objective.needs_teacher:
        return None
    if job.teacher.live:
        return teacher
    record(job, runner, key, teacher, link=link)
    return stages.stored_teacher(job, teacher, stages.store_place(job, key, runner.folder.path, link))


def record(job: Job, runner: StageRunner, key: Keys, teacher: LiveTeacher, *, link: int = 0) -> None:
    """Record a teacher with all processes; a recording that is there already is checked, and repaired if need be."""
    store, inputs = stages.store_place(job, key, runner.folder.path, link), key.store(link)
    on_main(runner.accelerator, lambda: check_recorded(job, teacher, store, inputs, runner.folder.path))
    known = (runner.folder.finished(store_name(key.job, link)) or {}).get("inputs") == inputs.to_json()
    unknown = not known and stages.is_recorded(store)

    def work(part: tuple[int, int]) -> None:
        stages.record_teacher(job, teacher, store, part, spare=True)
        if unknown and part[0] == 0:  # a store of somebody else's run
            stages.check_store(job, teacher, open_store(store))

    runner.checked(
        store_name(key.job, link),
        inputs,
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


def check_recorded(job: Job, teacher: LiveTeacher, store: stages.Place, inputs: Inputs, out: Path) -> None:
    """Refuse a store whose teacher answers otherwise than when it was recorded, whatever its weights say.

    What a teacher answers to a few samples lies beside the store, or for a store at an address in the run folder.

    Raises:
        TeacherError: with both ways out.

    """
    now = _answers(job, teacher.model)
    file = store / _ANSWERS if isinstance(store, Path) else out / _ANSWERS
    before, code = probes.read(file), probes.read_note(file)
    if not now:
        return
    if stages.is_recorded(store):
        stages.stored_teacher(job, teacher, store)  # what a store says of itself is told first
    elif isinstance(store, str):
        before = None
    if before is None:
        probes.write(file, now, note={"files": inputs.files})
        return
    edited = ", ".join(files_changed(code, inputs))
    other = probes.difference(before, now)
    if other:
        raise TeacherError(
            f"The teacher answers otherwise than when the store {store} was recorded: "
            f"{edited + '; ' if edited else ''}{other}. Undo that change to use what is recorded, or choose another "
            "store.path, or delete or rename that folder, to record anew."
        )
    if edited:
        say(f"the store {store} is kept: {edited}, and the teacher answers as before")
        probes.write(file, before, note={"files": inputs.files})


def with_weights(job: Job, out: Path) -> nn.Module:
    """Return the job's teacher with the weights that it was trained to in a run folder."""
    module = job.make_teacher()
    if job.teacher.train is not None:
        load_weights(module, out / "teacher" / "weights.safetensors")
    for index, member in enumerate(job.members):
        if member.train is not None and isinstance(module, MergedTeacher):
            load_weights(member_model(module, index), out / f"teacher/{index + 1}" / "weights.safetensors")
    if isinstance(module, MergedTeacher) and module.weighting == "attention":
        stages.fit_merged(job, module)
    return module
