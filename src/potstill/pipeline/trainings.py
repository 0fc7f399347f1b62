"""Every stage that trains a model: where it lies, what it depends on, and how to ask what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from potstill.models import Preprocessor, load_weights
from potstill.models.beside_weights import copied
from potstill.models.together import deployed
from potstill.pipeline import probe as probes
from potstill.pipeline.build import Job
from potstill.pipeline.chain import as_student, links
from potstill.pipeline.keys import Keys, Kind, stage_folder, stage_name
from potstill.pipeline.makers import preprocessor
from potstill.pipeline.probe import Probe
from potstill.pipeline.racing import teacher_stage
from potstill.pipeline.stage_runner import Training


def teachers_of(job: Job) -> list[int]:
    """Return the teachers that are trained here: 0 for the teacher, the number of a member among several."""
    own = [0] if job.has_teacher and job.teacher.train is not None else []
    return own + [number for number, member in enumerate(job.members, 1) if member.train is not None]


def of_teacher(keys: Keys, number: int) -> Training:
    """Return the training of a teacher, see `teachers_of`."""
    job = keys.job
    if not number:
        probe = _probe_of(job, job.make_teacher, job.teacher_preprocess)
        return Training("teacher", "teacher", keys.teacher(), probe, keeps=True)
    preprocess = preprocessor(job.members[number - 1].preprocess)
    probe = _probe_of(job, partial(job.make_member, number - 1), preprocess)
    return Training(teacher_stage(number), f"teacher/{number}", keys.teacher(number), probe, keeps=True)


def of_race(keys: Keys, arm: str) -> Training | None:
    """Return the stage that chooses what a recipe leaves open of an arm's trainings, or None where that is nothing."""
    race = keys.races[arm]
    if race is None:
        return None
    return Training(race.name, race.folder, keys.rates(arm), None, keeps=arm.startswith("teacher"))


def of_link(keys: Keys, number: int) -> Training:
    """Return the training of a model of the chain, counted from 1."""
    job = keys.job
    link = links(job)[number - 1]
    learner = as_student(job, link)
    probe = _probe_of(job, partial(learner.make_learner, job.recipe.seed), learner.student_preprocess, taught=True)
    return Training(link.name, link.folder, keys.link(number), probe)


def of_student(keys: Keys, seed: int, kind: Kind) -> Training:
    """Return the training of one student."""
    job = keys.job
    make = partial(job.make_learner, seed) if kind == "distilled" else lambda: deployed(job.make_student(seed))
    probe = _probe_of(job, make, job.student_preprocess, taught=kind == "distilled")
    return Training(stage_name(seed, kind), stage_folder(seed, kind), keys.student(seed, kind), probe)


def of_helped_teacher(keys: Keys, way: str, folder: str) -> Training:
    """Return the training of a teacher that learns on, in one of two ways."""
    job = keys.job
    probe = _probe_of(job, lambda: copied(job.make_teacher()), job.teacher_preprocess)
    return Training(f"teacher {way.replace('-', ' ')}", f"{folder}/{way}", keys.back(), probe)


def _probe_of(
    job: Job, make: Callable[[], nn.Module], preprocess: Preprocessor, *, taught: bool = False
) -> Callable[[Path | None], Probe]:
    """Return what asks a model with some weights; one that is taught also depends on what the losses say."""
    said = {f"numbers of {name}": values.float().cpu().numpy() for name, values in job.losses_say.items() if taught}

    def probe(weights: Path | None) -> Probe:
        model = make()
        if weights is not None:
            load_weights(model, weights)
        return {**probes.probe(model, preprocess(probes.inputs_for(job.data.train))), **said}

    return probe
