"""What a run will do and cost, found out without training anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.explain import clear_errors
from potstill.models import flops
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.pipeline import stages
from potstill.pipeline.build import Given, Job, example_batch, shapes_of
from potstill.pipeline.facts import describe_data
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.making import Making
from potstill.pipeline.objectives import layers_of, made_for, terms_of
from potstill.pipeline.orders import main_job
from potstill.pipeline.prepare import prepare
from potstill.pipeline.stage import survey
from potstill.pipeline.teacher_score import TeacherScore, refuse, score_teacher
from potstill.pipeline.timing import Timing
from potstill.pipeline.trial import try_student
from potstill.pipeline.warnings import warnings_of
from potstill.recipe.schema import Recipe
from potstill.store import Place, free_bytes, open_store
from potstill.store import estimate as store_bytes
from potstill.teachers import Source, TorchModel

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
    job = prepare(recipe, out=out, base=base, given=given)
    made = Making(job, out)
    ordered = main_job(made)
    seen = survey(RunFolder(out), ordered, made.results)
    student = TorchModel(job.student.plain(recipe.seed), job.student.preprocess)
    teacher = made.teacher() if job.has_teacher else None
    inputs = example_batch(job, 1).tensor
    models = {"student": _cost(student, inputs)}
    if teacher is not None:
        models["teacher"] = _cost(teacher, inputs)
    store = _store(made, teacher) if teacher is not None else None
    free = free_bytes(out)
    needed = CHECKPOINT_COPIES * (models["student"]["bytes"] or 0) * 2 * recipe.seeds
    needed += store["bytes"] if store and not store["recorded"] else 0
    if needed > free:
        raise PotstillError(
            f"The run needs about {needed / 1e6:,.0f} MB of disk in {out}, but {free / 1e6:,.0f} MB are free. "
            "Free some space, choose another folder with --out, or record fewer views (store.views)."
        )
    score = None
    if teacher is not None and made.has_taught:
        score = score_teacher(job, teacher, out)
        refuse(score)
    timing = Timing({} if score is None else {0: score.seconds})
    planned = []
    for stage in ordered:
        _, look = seen[stage.name]
        why = "; ".join(look.why)
        planned.append(PlannedStage(stage.name, stage.does, look.usable, stage.seconds(timing), why))
    planned.append(PlannedStage("report", "write report.html and the model card", False, None))
    return Plan(
        folder=out,
        stages=tuple(planned),
        models=models,
        objective=tuple(job.objective.describe()),
        terms=() if job.given.objective else tuple(terms_of(job.recipe)),
        layers=tuple(layers_of(job.recipe)),
        made_for="" if job.given.objective or not job.task.exclusive else made_for(job.recipe),
        store=store,
        data=describe_data(job.data),
        disk_free=free,
        teacher=_describe(job, score),
        warnings=(*warnings_of(job), *(score.told if score is not None else ()), *try_student(job, RunFolder(out))),
    )


def _cost(model: Source, example: Tensor) -> dict[str, int | None]:
    """Return what a model costs; None where it is no torch model and nobody can say."""
    whole = model.whole()
    return {
        "parameters": model.facts.parameters,
        "flops": None if whole is None or model.facts.parameters is None else flops(whole, example),
        "bytes": model.facts.size_bytes,
    }


def _store(made: Making, teacher: Source) -> dict[str, Any] | None:
    job = made.job
    if not job.objective.needs_teacher or job.teacher.live:
        return None
    views = job.recipe.store.views or 1
    # Where the teacher is trained first, its weights name the store.
    named = made.has_taught or job.recipe.store.path is not None
    place = made.store(0) if named else made.out.parent / "store"
    batch = example_batch(job)
    shapes = shapes_of(teacher, job.teacher_taps, batch)
    if INPUT_GRADIENT in job.objective.teacher_signals:
        shapes[INPUT_GRADIENT] = tuple(batch.tensor.shape[1:])
    return {
        "path": str(place),
        "views": views,
        "bytes": store_bytes(len(job.data.train), views, shapes, job.recipe.store.dtype, stages.codecs_of(job)),
        "recorded": named and _is_recorded(job, place),
    }


def _is_recorded(job: Job, place: Place) -> bool:
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


def _describe(job: Job, score: TeacherScore | None) -> dict[str, Any] | None:
    if score is None:
        sentence = "The teacher's score follows its training."
        return (
            {"metric": None, "value": None, "samples": 0, "split": "", "sentence": sentence}
            if job.has_teacher
            else None
        )
    return {name: getattr(score, name) for name in ("metric", "value", "samples", "split", "sentence")}
