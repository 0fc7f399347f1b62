"""What a run will do and cost, found out without training anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.explain import clear_errors
from potstill.models import Preprocessor, bytes_of_weights, flops, num_parameters
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.models.measure import hides_weights
from potstill.objective import preset
from potstill.pipeline import stages
from potstill.pipeline.build import Given, Job, answer, example_batch
from potstill.pipeline.chain import as_student, check_chain, links
from potstill.pipeline.facts import describe_data
from potstill.pipeline.features import are_computed, job_for
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.keys import ANSWERS, KINDS, Keys, keys, stage_name, student_runs
from potstill.pipeline.makers import preprocessor
from potstill.pipeline.objectives import layers_of, made_for, terms_of
from potstill.pipeline.racing import teacher_stage, training_settings
from potstill.pipeline.stage_runner import Seen
from potstill.pipeline.survey import survey
from potstill.pipeline.teacher_score import TeacherScore, refuse, score_teacher
from potstill.pipeline.teaching import with_weights
from potstill.pipeline.trainings import teachers_of
from potstill.pipeline.trial import try_student
from potstill.pipeline.warnings import warnings_of
from potstill.recipe import schema
from potstill.recipe.schema import Recipe
from potstill.store import estimate as store_bytes
from potstill.store import free_bytes, open_store
from potstill.teachers import MergedTeacher
from potstill.teachers.merged import member_model
from potstill.training import Spec, estimate, without_teacher

PROBE = 512
"""Samples that a teacher without weights is timed on."""
CHECKPOINT_COPIES = 6
"""Copies of a student's weights that lie in its folder while it trains: weights, best, optimiser, average, spares."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what it does, whether its result is there already, and how long it may take."""

    name: str
    what: str
    reused: bool
    seconds: float | None
    why: str = ""
    """Why a result that is there is made again, or what was edited and makes no difference."""


@dataclass(frozen=True)
class Plan:
    """Everything `potstill plan` prints."""

    folder: Path
    stages: tuple[PlannedStage, ...]
    models: dict[str, dict[str, int | None]]
    objective: tuple[str, ...]
    terms: tuple[dict[str, Any], ...]
    """The objective as a recipe's list of terms; empty where it was given as a Python object."""
    layers: tuple[dict[str, str], ...]
    """Which layers a preset reads, by ``for``, ``student`` and ``teacher``."""
    made_for: str
    """What the settings of a preset were made for; empty where they are no reference's."""
    store: dict[str, Any] | None
    data: dict[str, Any]
    disk_free: int
    teacher: dict[str, Any] | None
    """What a finished teacher is worth: ``metric``, ``value``, ``samples``, ``split``, and a ``sentence``."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        return {**asdict(self), "folder": str(self.folder)}


@clear_errors
def plan(recipe: Recipe, *, out: Path | str, base: Path | str = ".", given: Given | None = None) -> Plan:
    """Check everything a run needs and say what it will do: a few batches through both models, no training.

    Args:
        recipe: what to distil.
        out: the run folder the plan is for; finished stages in it are reused.
        base: the folder that relative paths in the recipe start from.
        given: Python objects in place of the recipe's data and models.

    Raises:
        PotstillError: anything that would fail later: files, classes, shapes, layers, disk.

    """
    out, base = Path(out).absolute(), Path(base).absolute()
    job = job_for(recipe, out=out, base=base, given=given)
    check_chain(job)
    key = keys(job)
    seen = survey(RunFolder(out), key)
    student, teacher = job.make_student(recipe.seed), job.make_teacher() if job.has_teacher else None
    if teacher is not None and ANSWERS in key.results:  # a teacher that is trained here is finished
        teacher = with_weights(job, out)
    inputs = example_batch(job, 1).inputs
    models = {"student": _cost(student, job.student_preprocess(inputs))}
    if teacher is not None:
        models["teacher"] = _cost(teacher, job.teacher_preprocess(inputs))
    store = _store(job, key, out, teacher) if teacher is not None else None
    free = free_bytes(out)
    needed = CHECKPOINT_COPIES * (models["student"]["bytes"] or 0) * 2 * recipe.seeds
    needed += store["bytes"] if store and not store["recorded"] else 0
    if needed > free:
        raise PotstillError(
            f"The run needs about {needed / 1e6:,.0f} MB of disk in {out}, but {free / 1e6:,.0f} MB are free. "
            "Free some space, choose another folder with --out, or record fewer views (store.views)."
        )
    found = None
    if teacher is not None and (job.has_finished_teacher or ANSWERS in key.results):
        found = score_teacher(job, teacher, out)
        refuse(found)
    # Without a teacher the test split is read at about the student's rate, which is not worth measuring.
    seconds = 0.0 if teacher is None else found.seconds if found is not None else _seconds_of(job, teacher)
    return Plan(
        folder=out,
        stages=tuple(_stages(job, key, seen, store, student, teacher, seconds)),
        models=models,
        objective=tuple(job.objective.describe()),
        terms=() if job.given.objective else tuple(terms_of(job.recipe)),
        layers=tuple(layers_of(job.recipe)),
        made_for="" if job.given.objective or job.data.task != "classification" else made_for(job.recipe),
        store=store,
        data=describe_data(job.data),
        disk_free=free,
        teacher=_describe(job, found),
        warnings=(*warnings_of(job), *(found.told if found is not None else ()), *try_student(job, RunFolder(out))),
    )


def _stages(
    job: Job,
    key: Keys,
    seen: Mapping[str, Seen],
    store: dict[str, Any] | None,
    student: nn.Module,
    teacher: nn.Module | None,
    teacher_seconds: float | None,
) -> Iterator[PlannedStage]:
    samples = len(job.data.train)
    settings = training_settings(job)

    def training_seconds(model: nn.Module, preprocess: Preprocessor, settings: schema.Training) -> float:
        data = job.data.to_learn()
        spec = Spec(
            data=data,
            stream=job.stream(data),
            objective=preset("alone", data.task),
            settings=without_teacher(settings),
            preprocess=preprocess,
            seed=job.recipe.seed,
        )
        return spec.total_steps * estimate(model, spec, device=job.device)

    def planned(name: str, does: str, seconds: float | None) -> PlannedStage:
        _, look = seen[name]
        return PlannedStage(name, does, look.usable, seconds, "; ".join(look.why))

    def raced(arm: str, training: float) -> Iterator[PlannedStage]:
        """Yield the stage that chooses a training's rates, where there is one."""
        race = key.races[arm]
        if race is not None:
            tried = race.count if race.count > 1 else 0
            yield planned(race.name, race.what, training * tried * race.steps / race.total)

    if job.recipe.student.on_features is not None:
        computed = are_computed(job)
        if job.written is not None and job.written.teacher is not None and job.written.teacher.train is not None:
            what = f"train the teacher for {job.written.teacher.train.epochs} epochs"
            yield PlannedStage("teacher", what, computed, None)
        what = f"what the teacher's layer {job.recipe.student.on_features} says of every sample"
        yield PlannedStage("features", what, computed, None)
    for number in teachers_of(job):
        section = job.members[number - 1] if number else job.teacher
        if section.train is None or teacher is None:
            continue
        model = member_model(teacher, number - 1) if isinstance(teacher, MergedTeacher) and number else teacher
        seconds = training_seconds(model, preprocessor(section.preprocess), section.train)
        what = f"train {section.model if number else 'the teacher'} for {section.train.epochs} epochs"
        name = teacher_stage(number)
        yield from raced(name, seconds)
        yield planned(name, what, seconds)
    if store is not None:
        signals = ", ".join(sorted(job.objective.teacher_signals))
        signals = signals.replace("logits", "values") if job.data.task == "regression" else signals
        what = f"record {signals} of {samples * store['views']:,} views"
        yield PlannedStage("store", what, store["recorded"], _asking(samples * store["views"], teacher_seconds))
    for link in links(job):
        taught = as_student(job, link)
        seconds = training_seconds(link.make(job.recipe.seed), taught.student_preprocess, link.training)
        what = f"train {link.section.model} for {link.training.epochs} epochs, with the model before it"
        yield from raced(link.name, seconds)
        yield planned(link.name, what, seconds)
    alone = training_seconds(student, job.student_preprocess, settings)
    live = (_asking(samples * settings.epochs, teacher_seconds) or 0.0) if job.teacher.live else 0.0
    times = {"alone": alone, "distilled": alone + live}
    if settings.minutes is not None:
        times = {kind: min(seconds, 60 * settings.minutes) for kind, seconds in times.items()}
    for kind in KINDS:
        yield from raced(kind, times[kind])
    for seed, kind in student_runs(job):
        what = f"train for {settings.epochs} epochs, " + ("with the teacher" if kind == "distilled" else "labels only")
        yield planned(stage_name(seed, kind), what, times[kind])
    what = f"read the {len(job.data.test):,} test samples, once"
    yield planned("predictions", what, _asking(len(job.data.test), teacher_seconds))
    formats = ", ".join(job.recipe.export.wanted) or "safetensors only"
    yield planned("export", f"write and check {formats}", None)
    yield planned("evaluation", "intervals, latency, verdict", None)
    if job.recipe.back_to_teacher is not None:
        epochs = job.recipe.back_to_teacher.epochs
        what = "list doubtful labels" if epochs is None else f"fine-tune the teacher twice for {epochs} epochs, compare"
        yield planned("back", what, None)
    yield PlannedStage("report", "write report.html and the model card", False, None)


def _cost(model: nn.Module, example: Tensor) -> dict[str, int | None]:
    """Return what a model costs; None where it is no torch model and nobody can say."""
    hidden = hides_weights(model)
    return {
        "parameters": None if hidden else num_parameters(model),
        "flops": None if hidden else flops(model, example),
        "bytes": bytes_of_weights(model),
    }


def _store(job: Job, key: Keys, out: Path, teacher: nn.Module) -> dict[str, Any] | None:
    if not job.objective.needs_teacher or job.teacher.live:
        return None
    views, inputs = job.recipe.store.views or 1, key.store()
    # Where the teacher is trained first, its weights name the store.
    named = inputs.known or job.recipe.store.path is not None
    place = stages.store_place(job, key, out) if named else out.parent / "store"
    batch = example_batch(job)
    shapes = answer(teacher, job.teacher_preprocess, batch, job.teacher_taps)
    if INPUT_GRADIENT in job.objective.teacher_signals:
        shapes[INPUT_GRADIENT] = tuple(batch.inputs.shape[1:])
    return {
        "path": str(place),
        "views": views,
        "bytes": store_bytes(len(job.data.train), views, shapes, job.recipe.store.dtype, stages.codecs_of(job)),
        "recorded": named and _is_recorded(job, place),
    }


def _is_recorded(job: Job, place: stages.Place) -> bool:
    """Whether the store is there already; one without a signal that the objective reads is refused."""
    if not stages.is_recorded(place):
        return False
    held = open_store(place).manifest.signals
    missing = sorted(job.objective.teacher_signals - set(held))
    if missing:
        raise TeacherError(
            f"The store {place} holds the teacher's {', '.join(sorted(held))}; the objective also reads "
            f"{', '.join(missing)}. Choose another store.path, or delete that folder to record anew."
        )
    return True


def _asking(samples: int, seconds: float | None) -> float | None:
    """Return the seconds that a teacher needs for some samples; None where nobody may ask it to find out."""
    return None if seconds is None else samples * seconds


def _seconds_of(job: Job, teacher: nn.Module) -> float:
    """Return the seconds that a teacher which is still to be trained needs for one sample."""
    samples = job.data.train.take(slice(0, PROBE))
    began = time.perf_counter()
    with stages.live_teacher(job, teacher) as live:
        stages.answers_to(job, live, samples, "timing the teacher")
    return (time.perf_counter() - began) / len(samples)


def _describe(job: Job, found: TeacherScore | None) -> dict[str, Any] | None:
    if found is None:
        sentence = "The teacher's score follows its training."
        return (
            {"metric": None, "value": None, "samples": 0, "split": "", "sentence": sentence}
            if job.has_teacher
            else None
        )
    return {name: getattr(found, name) for name in ("metric", "value", "samples", "split", "sentence")}
