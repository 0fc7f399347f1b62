"""Choosing what a recipe leaves open of a training: a few short trainings of that very model, judged on validation.

Each arm is raced by itself, with its own objective and teacher, on the first seed; all arms get the same candidates
and the same number of steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from potstill.core.errors import DivergedError
from potstill.core.files import read_json, write_json
from potstill.data import Data, Stream, only_classes
from potstill.pipeline.build import Job
from potstill.pipeline.judging import higher_is_better, is_share
from potstill.pipeline.processes import on_main
from potstill.pipeline.student import Student
from potstill.recipe.schema import Member, Recipe, Training
from potstill.teachers.at_rest import copy_of
from potstill.training import Result, history, learner_of, without_teacher
from potstill.training.rates import Tried, best, candidates, is_open, short, steps_of_each
from potstill.training.schedule import peak_learning_rate

FILE = "rates.json"
Attempt = Callable[..., Result]
"""Train the model that is raced; called with a folder, ``settings``, ``steps`` and ``label``."""


@dataclass(frozen=True)
class Race:
    """What one arm tries.

    Attributes:
        arm: what it is for: ``alone``, ``distilled``, ``teacher``, ``teacher 2``, ``assistant 1``.
        settings: the candidates, the likeliest first.
        count: how many of them are tried; fewer than two where the training is too short to try any.
        steps: of each candidate that is tried.
        total: steps of the training that they are for.
        higher_is_better: which way the metric is good.
        judged_on: validation samples of which the metric is a share; None for a metric of another kind.

    """

    arm: str
    settings: tuple[Training, ...]
    count: int
    steps: int
    total: int
    higher_is_better: bool = True
    judged_on: int | None = None

    @property
    def name(self) -> str:
        """The stage's name."""
        return f"rates, {self.arm}"

    @property
    def folder(self) -> str:
        """The stage's folder in the run folder."""
        return f"rates/{self.arm.replace(' ', '-')}"

    @property
    def what(self) -> str:
        """What the stage does, for a plan."""
        if self.count < 2:
            return "too short to try rates: the usual ones for this kind of model"
        said = ", ".join(f"{one.optimizer} {peak_learning_rate(one):g}" for one in self.settings[: self.count])
        return f"try {said}, {self.steps} steps each, and choose on validation"

    def describe(self) -> list[Any]:
        """Return what a key has to know of it, as JSON data."""
        tried = [[one.optimizer, one.learning_rate] for one in self.settings[: max(1, self.count)]]
        return [tried, self.steps]


def race(
    arm: str, settings: Training, make: Callable[[], nn.Module], *, recipe: Recipe, trained: bool, data: Data
) -> Race | None:
    """Return the race of one training, or None where the recipe leaves nothing open.

    Args:
        arm: what it is for.
        settings: of the recipe.
        make: gives the model that is to be trained.
        recipe: whose metric decides.
        trained: whether it comes with weights.
        data: it is trained on.

    """
    if not is_open(settings):
        return None
    model = make()
    if not learner_of(model).has_rates:
        return None
    total = settings.epochs * len(Stream(data.train).sizes(settings.batch_size))
    found = candidates(settings, model, trained=trained, steps=total)
    count, steps = steps_of_each(len(found), total)
    judged_on = len(data.validation) if is_share(recipe) else None
    return Race(arm, found, count, steps, total, higher_is_better(recipe), judged_on)


def training_settings(job: Job, student: Student, kind: str = "distilled") -> Training:
    """Return a student's settings with the budget's time limit, without what needs a teacher where it has none."""
    settings = without_teacher(student.training) if kind in ("alone", "pseudo") else student.training
    if job.recipe.budget.minutes is None or settings.minutes is not None:
        return settings
    return settings.model_copy(update={"minutes": job.recipe.budget.minutes})


def student_race(job: Job, arm: str, student: Student) -> Race | None:
    """Return the race of the student, ``alone`` or ``distilled``, or of a model of the chain, by its name.

    Both arms try the same; where the optimiser is one for two gradients, the student alone tries it with one.
    """
    settings = training_settings(job, student, arm)
    trained = student.section.weights is not None
    make = partial(student.plain, job.recipe.seed)
    return race(arm, settings, make, recipe=job.recipe, trained=trained, data=job.data)


def teacher_stage(number: int) -> str:
    """Return the stage that trains the teacher (0), or the i-th of several."""
    return f"teacher {number}" if number else "teacher"


def teacher_race(job: Job, number: int) -> Race | None:
    """Return the race of the teacher (0), or of the i-th of several, that is trained here."""
    section, model = job.part_of_teacher(number)
    known, data = section.classes if isinstance(section, Member) else None, job.data.for_teacher()
    data = data if known is None else only_classes(data, known)
    settings, trained = section.train or Training(), section.weights is not None
    return race(teacher_stage(number), settings, partial(copy_of, model), recipe=job.recipe, trained=trained, data=data)


def settled(race: Race | None, settings: Training, out: Path) -> Training:
    """Return a training's settings with nothing left open: the recipe's, or what its race in a run folder chose."""
    if race is None:
        return settings
    chosen: int = read_json(out / race.folder / FILE)["chosen"]
    return race.settings[chosen]


def chosen_rates(out: Path, race: Race) -> str:
    """Return what a race in a run folder chose, in words; of one that is not finished what it would begin with."""
    file = out / race.folder / FILE
    chosen = read_json(file) if file.is_file() else {}
    return f"{chosen.get('optimizer')} {chosen.get('learning_rate')}"


def run_race(race: Race, folder: Path, attempt: Attempt, accelerator: Accelerator) -> None:
    """Try the candidates one after the other and write which won; what was tried before a kill is not tried again."""
    file = folder / FILE
    tried: list[dict[str, Any]] = on_main(accelerator, lambda: read_json(file)["tried"] if file.exists() else [])
    number = len(tried)
    while race.count > 1 and number < race.count:
        settings, place = race.settings[number], folder / str(number + 1)
        label = f"{race.name}: {settings.optimizer} {peak_learning_rate(settings):g}"
        result: Result | None = None
        try:
            tried_settings = short(settings, race.steps, race.total)
            result = attempt(place, settings=tried_settings, steps=race.steps, label=label)
        except DivergedError:
            pass
        note = partial(_note, race, settings, result, place)
        tried.append(on_main(accelerator, note))
        on_main(accelerator, partial(_write, race, tried, file))
        on_main(accelerator, partial(shutil.rmtree, place, ignore_errors=True))
        number += 1
    ended = [Tried(**one) for one in tried]
    chosen = best(ended, higher_is_better=race.higher_is_better, samples=race.judged_on) if ended else 0
    on_main(accelerator, partial(_write, race, tried, file, chosen))


def tried_rates(out: Path) -> list[dict[str, Any]]:
    """Return what each arm of a run tried and chose, as its stages wrote it; empty where every rate was fixed."""
    return [read_json(path) for path in sorted((out / "rates").glob(f"*/{FILE}"))]


def clear_others(out: Path, names: Iterable[str]) -> None:
    """Remove the races that an earlier recipe had in the same run folder, all but those of the stages named."""
    kept = {name.removeprefix("rates, ").replace(" ", "-") for name in names if name.startswith("rates, ")}
    for folder in (out / "rates").glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def _note(race: Race, settings: Training, result: Result | None, place: Path) -> dict[str, Any]:
    """Return how a candidate ended, as JSON data."""
    rows = history.read(place / "history.jsonl") if result else []
    last = rows[-1] if rows else {}
    score, loss = last.get("validation_metric"), last.get("validation_loss")
    found = Tried(
        optimizer=settings.optimizer,
        learning_rate=peak_learning_rate(settings),
        steps=race.steps if result is None else result.steps,
        validation=score if loss is not None else None,
        loss=loss if score is not None else None,
        seconds=round(result.seconds, 3) if result is not None else 0.0,
    )
    return found.to_json()


def _write(race: Race, tried: list[dict[str, Any]], file: Path, chosen: int | None = None) -> None:
    settings = race.settings[chosen or 0]
    write_json(
        file,
        {
            "arm": race.arm,
            "tried": tried,
            "chosen": chosen,
            "optimizer": settings.optimizer,
            "learning_rate": peak_learning_rate(settings),
            "training_steps": race.total,
        },
    )
