"""What lies in a run folder already, stage by stage in their order, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from potstill.core.progress import say
from potstill.pipeline import stages
from potstill.pipeline.chain import links
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.inputs import Inputs, be
from potstill.pipeline.keys import ANSWERS, KINDS, Keys, store_name, student_runs
from potstill.pipeline.racing import chosen_rates, teacher_stage
from potstill.pipeline.stage_runner import Look, Seen, Training, look_at
from potstill.pipeline.teaching import answers_of, with_weights
from potstill.pipeline.trainings import of_link, of_race, of_student, of_teacher, teachers_of


@dataclass(frozen=True)
class _Walk:
    """Looks at stages one after the other; what is there is what the inputs of the next ones speak of."""

    folder: RunFolder
    keys: Keys
    seen: dict[str, Seen] = field(default_factory=dict)

    def look(self, stage: str, inputs: Inputs, training: Training | None = None) -> Look:
        found = look_at(self.folder, stage, inputs, training)
        self.seen[stage] = inputs, found
        if found.usable:
            self.keys.results[stage] = self.folder.result(stage) or ""
        return found

    def training(self, training: Training) -> Look:
        return self.look(training.stage, training.inputs, training)

    def race(self, arm: str) -> None:
        race, tries = self.keys.races[arm], of_race(self.keys, arm)
        if race is not None and tries is not None and self.training(tries).usable:
            self.keys.results[race.name] = chosen_rates(self.folder.path, race)

    def store(self, link: int) -> None:
        job, key = self.keys.job, self.keys
        if job.teacher.live or not job.objective.needs_teacher or not key.store(link).known:
            return
        if stages.is_recorded(stages.store_place(job, key, self.folder.path, link)):
            key.results[store_name(job, link)] = key.store(link).key


def survey(folder: RunFolder, keys: Keys) -> dict[str, Seen]:
    """Look at every stage of a job, the store aside; ``keys`` then know the results that can be used.

    Raises:
        TeacherError: a trained teacher is of other code, see `look_at`.

    """
    job, walk = keys.job, _Walk(folder, keys)
    ready = job.has_teacher
    for number in teachers_of(job):
        walk.race(teacher_stage(number))
        ready &= walk.training(of_teacher(keys, number)).usable
    if ready:
        keys.results[ANSWERS] = answers_of(job, with_weights(job, folder.path), folder.path, keep=False)
        walk.store(0)
    for number, link in enumerate(links(job), 1):
        walk.race(link.name)
        if walk.training(of_link(keys, number)).usable:
            walk.store(number)
    for kind in KINDS:
        walk.race(kind)
    for seed, kind in student_runs(job):
        walk.training(of_student(keys, seed, kind))
    walk.look("predictions", keys.predictions())
    walk.look("export", keys.export())
    walk.look("evaluation", keys.evaluation())
    if job.recipe.back_to_teacher is not None:
        walk.look("back", keys.back())
    return walk.seen


def announce(folder: RunFolder, seen: Mapping[str, Seen]) -> None:
    """Say which finished results are about to be replaced and why, and which are kept although code was edited."""
    replaced = {stage: look.why for stage, (_, look) in seen.items() if look.why and not look.usable}
    if replaced:
        say(f"Finished results in {folder.path} are replaced by new ones; choose another folder (--out) to keep them:")
    for stage, why in replaced.items():
        say(f"  {stage} {be(stage)} made again: {'; '.join(why)}")
    for stage, (_, look) in seen.items():
        if look.why and look.usable:
            say(f"{stage} {be(stage)} kept: {'; '.join(look.why)}")
