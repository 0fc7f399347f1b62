"""The orders: what a run, or a labelling, does, as one list of stages; nothing else knows the order.

`run` and `label` run such a list and `plan` describes it. A new stage is a function here that returns it, and a method
of `Keys` that says what it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from potstill.models import Preprocessor, load_weights
from potstill.pipeline import back, exporting, features, pool, proof, stages
from potstill.pipeline import probe as probes
from potstill.pipeline.build import Job
from potstill.pipeline.inputs import Inputs
from potstill.pipeline.keys import kinds, stage_name, store_name, student_runs, teacher_folder, teachers_of
from potstill.pipeline.making import HEAD, Making, check_recorded, learn_head, write_privacy
from potstill.pipeline.probe import Probe
from potstill.pipeline.racing import (
    Attempt,
    Race,
    chosen_rates,
    run_race,
    settled,
    student_race,
    teacher_race,
    teacher_stage,
    training_settings,
)
from potstill.pipeline.stage import Files, Held, Stage, Trained
from potstill.pipeline.student import Arm, Kind, Student
from potstill.pipeline.timing import Timing
from potstill.recipe.schema import Training
from potstill.store import open_store
from potstill.teachers import Source
from potstill.teachers.at_rest import copy_of
from potstill.training import Result, learner_of


def after_teachers(made: Making) -> list[Stage]:
    """Return the stages of a run after its teachers: what they say, a chain, students, proof, and what goes back."""
    job = made.job
    records = job.has_teacher and job.objective.needs_teacher and not job.teacher.live
    found = [*(recording(made) if records else []), *_pool(made)]
    for number in range(1, len(job.chain) + 1):
        found += [*_link(made, number), *([_store(made, number)] if records else [])]
    found += [*_students(made), *_proof(made)]
    return found + (list(_back(made)) if job.has_teacher and job.recipe.back_to_teacher is not None else [])


def main_job(made: Making) -> list[Stage]:
    """Return all stages of a run: features that its student learns on, teachers, and what follows."""
    return [*features_job(made), *teachers(made), *after_teachers(made)]


def features_job(run: Making) -> list[Stage]:
    """Return the first stages of a run whose student learns on one of the teacher's layers; none of any other."""
    job, layer = run.job.before, str(run.job.recipe.student.on_features)
    if job is None:
        return []
    made = Making(job, run.out, run.results)

    def computed() -> bool:
        return features.is_computed(job, made.out, layer, copy_of(made.teacher()))

    def work(*_: object) -> None:
        if not computed():
            features.compute(job, made.out, layer, copy_of(made.teacher()))

    key, does = partial(made.key.features, layer), f"what the teacher's layer {layer} says of every sample"
    return [*teachers(made), Stage("features", key, Held(computed), work, does)]


def teachers(made: Making) -> list[Stage]:
    """Return the stages that train the teacher, or members of several: rates first, then weights."""
    job, found = made.job, []
    for number in teachers_of(job):
        if number == 0 and job.members:
            found.append(_head(made))
            continue
        section, model = job.part_of_teacher(number)
        settings, name = section.train or Training(), teacher_stage(number)
        arm = _Arm(
            made,
            name,
            settings,
            teacher_race(job, number),
            partial(made.key.teacher, number),
            partial(stages.train_teacher, job, number),
            partial(_probe_teacher, job, model),
            partial(_seconds, made, name, (partial(copy_of, model), model.preprocess, settings), False),
        )
        does = f"train {section.model if number else 'the teacher'} for {_length(copy_of(model), settings)}"
        result = Trained(teacher_folder(number), arm.probe, keeps=True)
        found += [*arm.rates(), arm.stage(name, result, does)]
    return found


def _head(made: Making) -> Stage:
    """Return the stage that learns a head on what the teacher's members say, side by side."""
    return Stage(
        teacher_stage(0),
        made.key.head,
        Files(HEAD),
        partial(learn_head, made.job, made.out),
        f"ask the members about the {len(made.job.data.validation):,} validation samples, and learn a head on that",
    )


def recording(made: Making) -> list[Stage]:
    """Return the stages that record the teacher, and say what its votes cost."""

    def work() -> None:
        write_privacy(made.job, made.out, open_store(made.store(0)))

    privacy = Stage("privacy", made.key.privacy, Files(("privacy.json",)), work, "what the votes cost")
    return [_store(made), *([] if made.job.teacher.votes is None else [privacy])]


def _store(made: Making, link: int = 0) -> Stage:
    """Return the stage that records what the teacher, or the i-th model of the chain, says; kept and repaired."""
    key = partial(made.key.store, link)

    def check() -> None:
        check_recorded(made.taught_by(link), made.teacher(link), made.live(link), made.store(link), key(), made.out)

    def work(part: tuple[int, int], own: bool) -> None:
        job, teacher, place = made.taught_by(link), made.live(link), made.store(link)
        theirs = not own and stages.is_recorded(place)
        stages.record_teacher(job, teacher, place, part, spare=True)
        if part[0] == 0 and theirs:  # a store of somebody else's run
            stages.check_store(job, teacher, open_store(place))

    views = len(made.job.data.train) * (made.job.recipe.store.views or 1)
    signals = ", ".join(sorted(made.job.objective.teacher_signals))
    signals = signals.replace("logits", made.job.task.signal)
    return Stage(
        store_name(made.job, link),
        key,
        Held(lambda: stages.is_recorded(made.store(link)), check, shared=True),
        work,
        f"record {signals} of {views:,} views",
        lambda timing: timing.asking(made, views, link),
    )


def _pool(made: Making) -> list[Stage]:
    """Return the stage that keeps what the teacher calls the samples without a label, where there are such."""
    job, out, train = made.job, made.out, made.job.data.train
    if "pseudo" not in kinds(job):
        return []

    def work() -> None:
        held = proof.held_by_teacher(job, made.measured()).get("teacher", [None])
        pool.write_pool(job, made.source(0) or made.live(), held[0], out)

    does = f"the teacher's classes of {len(train) - train.num_labelled:,} samples without a label, and how sure it is"
    least = job.recipe.data.min_confidence
    does += "" if least is None else f"; students learn those of which it is at least {100 * least:g} % sure"
    return [Stage("pool", made.key.pool, Files((pool.FILE, pool.FACTS)), work, does)]


def _link(made: Making, number: int) -> Iterator[Stage]:
    """Yield the stages that train the i-th model of the chain, counted from 1, with the model before it."""
    link, seed = made.job.chain[number - 1], made.job.recipe.seed
    arm = _student_arm(made, link.name, (seed, "distilled"), link, number - 1)
    length = _length(link.fresh(seed, "alone"), link.training)
    does = f"train {link.section.model} for {length}, with the model before it"
    yield from arm.rates()
    yield arm.stage(link.name, Trained(link.folder(seed, "distilled"), arm.probe), does)


def _students(made: Making) -> Iterator[Stage]:
    """Yield the stages that train the students, alone and distilled: rates first, then every seed."""
    job = made.job
    for kind in kinds(job):
        yield from _student_arm(made, kind, (job.recipe.seed, kind), job.student, len(job.chain)).rates()
    for seed, kind in student_runs(job):
        arm = _student_arm(made, kind, (seed, kind), job.student, len(job.chain))
        length, learns = _length(job.student.fresh(seed, "alone"), arm.settings), _learns(job, arm.settings, kind)
        result = Trained(job.student.folder(seed, kind), arm.probe)
        yield arm.stage(stage_name(seed, kind), result, f"train for {length}, {learns}")


def _learns(job: Job, settings: Training, kind: Kind) -> str:
    """Return what a student learns from, for a plan."""
    train = job.data.train
    if train.labelled is None:
        return "with the teacher" if kind == "distilled" else "labels only"
    few, unknown = train.num_labelled, len(train) - train.num_labelled
    in_batches = learner_of(job.student.fresh(job.recipe.seed, "alone")).has_rates
    if kind == "alone":
        return f"{few:,} labels only{', as many steps' if in_batches else ''}"
    if kind == "pseudo":
        return f"{f'{few:,} labels and ' if few else ''}the teacher's for {unknown:,} samples"
    share = f"{job.stream(job.data).labelled_in_batch(settings.batch_size)} of {settings.batch_size} in a batch"
    return f"with the teacher, {few:,} labels{f' ({share})' if few and in_batches else ''}"


def _proof(made: Making) -> list[Stage]:
    """Return the stages after the training: the test split is read once, files are written, numbers are judged."""
    job, key = made.job, made.key
    count = len(job.data.test)
    formats = ", ".join(job.recipe.export.wanted) or "safetensors only"
    return [
        Stage(
            "predictions",
            key.predictions,
            Files(proof.RESULTS["predictions"]),
            partial(proof.predict_test, made),
            f"read the {count:,} test samples, once",
            lambda timing: timing.asking(made, count),
        ),
        Stage(
            "export",
            key.export,
            Files(proof.RESULTS["export"]),
            partial(exporting.export_student, made),
            f"write and check {formats}",
        ),
        Stage(
            "evaluation",
            key.evaluation,
            Files(proof.RESULTS["evaluation"]),
            partial(proof.evaluate_models, made),
            "intervals, latency, verdict",
        ),
    ]


def _back(made: Making) -> Iterator[Stage]:
    """Yield the stages that give something back to the teacher: trainings that go on, and labels that both doubt."""
    job, epochs = made.job, back.settings_of(made.job).epochs
    probe = partial(_probe_teacher, job, job.teacher_at(0))
    for way, learns in back.WAYS.items() if epochs is not None else ():
        name, result = f"teacher {way.replace('-', ' ')}", Trained(f"{back.FOLDER}/{way}", probe)
        does = f"train the teacher for {epochs} more epochs, {learns}"
        yield Stage(name, made.key.back, result, partial(back.fine_tune, made, way), does)
    does = "list doubtful labels" + ("" if epochs is None else ", compare the teachers")
    yield Stage("back", made.key.back, Files((f"{back.FOLDER}/*",)), partial(back.measure, made), does)


@dataclass(frozen=True)
class _Arm:
    """A training: what it depends on, how its rates are chosen, how it is done and what the model computes."""

    made: Making
    name: str
    settings: Training
    race: Race | None
    inputs: Callable[[], Inputs]
    fit: Attempt
    probe: Callable[[Path | None], Probe]
    seconds: Callable[[Timing], float]

    def rates(self) -> Iterator[Stage]:
        """Yield the stage that chooses what the recipe leaves open of the training, where it does."""
        race = self.race
        if race is None:
            return
        share = race.count * race.steps / race.total if race.count > 1 else 0.0
        says, keeps = partial(chosen_rates, self.made.out, race), self.name.startswith("teacher")

        def work(folder: Path, *, accelerator: Accelerator) -> None:
            run_race(race, folder, partial(self.fit, accelerator=accelerator), accelerator)

        yield Stage(
            race.name,
            lambda: self.inputs() | Inputs({"rates that are tried": race.describe()}),
            Trained(race.folder, keeps=keeps, says=says),
            work,
            race.what,
            lambda timing: self.seconds(timing) * share,
        )

    def stage(self, name: str, result: Trained, does: str) -> Stage:
        """Return the stage that trains the model, with the rates that were chosen."""
        race, made = self.race, self.made

        def key() -> Inputs:
            return self.inputs() | (Inputs() if race is None else made.key.after(race.name))

        def work(folder: Path, *, accelerator: Accelerator) -> Result:
            settings, label = settled(race, self.settings, made.out), name.removeprefix("student ")
            return self.fit(folder, accelerator=accelerator, settings=settings, label=label)

        return Stage(name, key, result, work, does, self.seconds)


def _length(model: nn.Module, settings: Training) -> str:
    """Return how long a training is, in words."""
    return learner_of(model).length(model, settings)


def _student_arm(made: Making, name: str, arm: Arm, student: Student, link: int) -> _Arm:
    """Return the training of a student, or of a model of the chain, that the i-th model of the chain teaches."""
    job, (seed, kind) = replace(made.job, student=student), arm
    settings = training_settings(job, student, kind)
    asks = kind == "distilled" and job.teacher.live and student is made.job.student
    timed = partial(student.fresh, seed, "alone"), student.preprocess, settings

    def fit(folder: Path, **how: Any) -> Result:
        teacher = made.source(link) if kind == "distilled" else None
        lesson = pool.lesson(job, kind, made.out, settings.batch_size)
        return stages.train_student(lesson, arm, folder, teacher=teacher, **how)

    return _Arm(
        made,
        name,
        settings,
        student_race(job, name, student),
        partial(made.key.student, student, arm, link),
        fit,
        partial(_probe_student, made, arm, student),
        partial(_seconds, made, student.name, timed, asks),
    )


def _seconds(
    made: Making,
    name: str,
    training: tuple[Callable[[], nn.Module], Preprocessor, Training],
    asks: bool,
    timing: Timing,
) -> float:
    """Return how long a training takes; where it asks a live teacher in every step, with that."""
    settings = training[-1]
    seconds = timing.training(made.job, name, training)
    if asks:
        seconds += timing.asking(made, len(made.job.data.train) * settings.epochs) or 0.0
    return seconds if settings.minutes is None else min(seconds, 60 * settings.minutes)


def _probe_student(made: Making, arm: Arm, student: Student, weights: Path | None) -> Probe:
    """Return what a student computes, trained or not yet; one that is taught also depends on what the losses say."""
    taught = made.job.losses_say.items() if arm[1] == "distilled" else ()
    said = {f"numbers of {name}": values.float().cpu().numpy() for name, values in taught}
    model = student.fresh(*arm) if weights is None else made.learner(*arm, student)
    return {**_probe(made.job, model, student.preprocess), **said}


def _probe_teacher(job: Job, model: Source, weights: Path | None) -> Probe:
    """Return what a teacher computes, with the weights of a file or those that it begins with."""
    module = copy_of(model)
    if weights is not None:
        load_weights(module, weights)
    return _probe(job, module, model.preprocess)


def _probe(job: Job, model: nn.Module, preprocess: Preprocessor) -> Probe:
    return probes.probe(model, preprocess(probes.inputs_for(job.data.train)))
