"""What each stage's result depends on, as one hash a stage: equal key, equal result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from potstill.core import fingerprint
from potstill.models.together import deployed
from potstill.pipeline.build import Job
from potstill.pipeline.chain import as_student, links
from potstill.pipeline.racing import Race, student_race, teacher_races
from potstill.recipe.schema import Member, Teacher
from potstill.teachers import MergedTeacher
from potstill.teachers.merged import member_model

Kind = Literal["alone", "distilled"]
KINDS: tuple[Kind, ...] = ("alone", "distilled")


@dataclass(frozen=True)
class Keys:
    """The inputs of every stage, hashed.

    ``students`` maps ``(seed, kind)`` to a key; ``stores`` are what the teacher and then each model of a chain says.
    ``rates`` maps the stages that choose what a recipe leaves open of a training to their keys.
    """

    teacher: str
    members: tuple[str, ...]
    stores: tuple[str, ...]
    links: tuple[str, ...]
    students: dict[tuple[int, Kind], str]
    predictions: str
    export: str
    evaluation: str
    back: str
    rates: dict[str, str]


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
    rates: dict[str, str] = {}

    def raced(base: str, race: Race | None) -> str:
        """Return the key of a training whose rates may be raced; the first of an arm decides the race's own key."""
        if race is None:
            return base
        rates.setdefault(race.name, fingerprint.of_json(["rates", base, race.describe()]))
        return fingerprint.of_json([base, rates[race.name]])

    def trained(section: Teacher | Member, model: nn.Module, seed: int, race: Race | None) -> str:
        learnt = [section.train.model_dump(), data, augment, seed] if section.train else None
        return raced(fingerprint.of_json([model_identity(model), section.preprocess.model_dump(), learnt]), race)

    model = job.make_teacher() if job.has_teacher else None
    races = teacher_races(job) if job.has_teacher else {}
    teacher = "none" if model is None else trained(job.teacher, model, recipe.seed, races.get("teacher"))
    members: tuple[str, ...] = ()
    if isinstance(model, MergedTeacher):
        members = tuple(
            fingerprint.of_json([trained(member, made, recipe.seed + index, races.get(name)), member.classes])
            for index, member in enumerate(job.members)
            for made, name in [(member_model(model, index), f"teacher {index + 1}")]
        )
        teacher = fingerprint.of_json([teacher, members, job.teacher.merge.model_dump()])
    signals = sorted(job.objective.teacher_signals)

    def recorded(teacher: str) -> str:
        stored = recipe.store.model_dump(exclude={"path", "accept_loss"})
        return fingerprint.of_json([teacher, data, augment, recipe.seed, stored, signals, job.teacher.taps])

    def trained_student(job: Job, seed: int, learns: Any) -> str:
        common = [data, augment, recipe.seed, _training(job), job.recipe.student.preprocess.model_dump()]
        if learns == "alone":
            return fingerprint.of_json([common, seed, model_identity(deployed(job.make_student(seed))), learns])
        taps = [job.recipe.student.taps, *(peer.taps for peer in job.recipe.peers)]
        return fingerprint.of_json([common, seed, model_identity(job.make_learner(seed)), learns, taps])

    def distilled(teacher: str) -> list[Any]:
        source: Any = [teacher, "live"] if job.teacher.live else recorded(teacher)
        if job.teacher.average_of_student is not None:
            source = ["average of the student", job.teacher.average_of_student]
        return [job.objective.describe(), source, job.teacher.precision]

    sources = [teacher]
    for link in links(job):
        linked = as_student(job, link)
        base = trained_student(linked, recipe.seed, distilled(sources[-1]))
        sources.append(raced(base, student_race(linked, link.name)))
    arms = {kind: student_race(job, kind) for kind in KINDS}
    students = {
        (seed, kind): raced(
            trained_student(job, seed, distilled(sources[-1]) if kind == "distilled" else kind), arms[kind]
        )
        for seed, kind in student_runs(job)
    }
    predictions = fingerprint.of_json([teacher, sources[1:], job.teacher.precision, sorted(students.values())])
    export = fingerprint.of_json([predictions, recipe.export.model_dump(), recipe.evaluation.threads])
    evaluation = fingerprint.of_json(
        [predictions, export, recipe.evaluation.model_dump(), recipe.budget.model_dump(), list(job.data.classes)]
    )
    stores = tuple(map(recorded, sources))
    section = recipe.back_to_teacher
    back = fingerprint.of_json([evaluation, _training(job), section.model_dump() if section else None])
    return Keys(teacher, members, stores, tuple(sources[1:]), students, predictions, export, evaluation, back, rates)


def _training(job: Job) -> dict[str, Any]:
    """Settings that change a student's weights; how often it is saved or logged does not."""
    settings = job.recipe.training.model_dump(exclude={"checkpoint_every", "track", "workers"})
    return {**settings, "minutes": settings["minutes"] or job.recipe.budget.minutes}
