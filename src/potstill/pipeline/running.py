"""The main job: prepare, look at what is there, run the stages, write the documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from potstill import report
from potstill.core.explain import clear_errors
from potstill.core.files import read_json, write_json, write_text
from potstill.evaluation import EvaluationResult
from potstill.export import load_student, write_card
from potstill.pipeline import back, exporting
from potstill.pipeline.build import Given, Job
from potstill.pipeline.facts import describe_data, describe_machine
from potstill.pipeline.folder import RunFolder, now, package_versions
from potstill.pipeline.keys import kinds
from potstill.pipeline.making import Making, answers_of
from potstill.pipeline.orders import after_teachers, features_job, teachers
from potstill.pipeline.pool import clear_other_students
from potstill.pipeline.prepare import prepare
from potstill.pipeline.processes import on_main, start
from potstill.pipeline.racing import clear_others, tried_rates
from potstill.pipeline.stage import Stage, StageRunner, announce, survey
from potstill.pipeline.teacher_score import check_teacher
from potstill.pipeline.trial import try_student
from potstill.pipeline.warnings import FILE, begin_telling, tell, warnings_of
from potstill.recipe.hash import recipe_hash
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import dump
from potstill.teachers.at_rest import copy_of


@dataclass(frozen=True)
class Run:
    """A finished run: a folder with everything in it."""

    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"

    @property
    def evaluation(self) -> EvaluationResult:
        """The numbers and the verdict."""
        return EvaluationResult.from_json(read_json(self.folder / "evaluation.json"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was warned of at its start and while it went on; none in a folder of an older version."""
        file = self.folder / FILE
        return tuple(read_json(file)) if file.is_file() else ()

    @property
    def exported(self) -> dict[str, Path]:
        """The files to deploy, by format: ``safetensors``, ``onnx``, ``onnx-int8``."""
        files = {"safetensors": self.folder / "export" / "student.safetensors"}
        for entry in read_json(self.folder / "export" / "parity.json")["files"]:
            if entry["ok"]:
                files[entry["format"]] = self.folder / "export" / entry["file"]
        return files

    @property
    def refused(self) -> dict[str, tuple[str, ...]]:
        """The formats whose files were refused, and why."""
        entries = read_json(self.folder / "export" / "parity.json")["files"]
        return {entry["format"]: tuple(entry["reasons"]) for entry in entries if not entry["ok"]}

    @property
    def refused_by_name(self) -> str:
        """Why files were refused that the recipe names, in words, or an empty text: the command line then exits 1."""
        return " ".join(exporting.refusals(self.folder, optional=False))

    def load_student(self, model: nn.Module | None = None) -> nn.Module:
        """Return the distilled student with its preprocessing in front, in eval mode.

        Args:
            model: the student's architecture, needed when it was given as a Python object and not by name.

        """
        return load_student(self.folder / "export", model=model)

    def summary(self) -> dict[str, Any]:
        """Return what a script wants to know of the run, as JSON-like data."""
        evaluation = self.evaluation.to_json()
        return {
            "folder": str(self.folder),
            "task": evaluation["task"],
            "models": evaluation["models"],
            "differences": evaluation["differences"],
            "verdict": evaluation["verdict"],
            "warnings": list(self.warnings),
            "rates": tried_rates(self.folder),
            "exported": read_json(self.folder / "export" / "parity.json")["files"],
            "files": {"report": str(self.report), **{name: str(path) for name, path in self.exported.items()}},
            "seconds": read_json(self.folder / "run.json")["seconds"],
        }


@clear_errors
def run(
    recipe: Recipe,
    *,
    out: Path | str,
    base: Path | str = ".",
    given: Given | None = None,
    command: str = "",
) -> Run:
    """Do the whole main job in one folder; what is finished there already is kept, what was killed goes on.

    Args:
        recipe: what to distil; see `potstill.read_recipe`.
        out: the run folder.
        base: the folder that relative paths in the recipe start from.
        given: Python objects that take the place of the recipe's data and models; see `potstill.distill`.
        command: how a person repeats this run; written into the report.

    Raises:
        PotstillError: what is wrong and how to fix it. Finished stages stay finished. Exported files that were refused
            are no error here: see ``Run.refused``.

    """
    out, base = Path(out).absolute(), Path(base).absolute()
    job = prepare(recipe, out=out, base=base, given=given)
    if job.recipe.back_to_teacher is not None and job.teacher_scale is not None:
        back.learn_standard_units(job, copy_of(job.teacher_at(0)))  # what cannot be done shows now
    accelerator = start(job.device.type)
    folder = RunFolder(out)
    if not accelerator.is_main_process:
        made = Making(_on_features(job, recipe, folder, accelerator, given), out)
        _run_stages(made, (teachers(made), after_teachers(made)), StageRunner(folder, accelerator, made.results))
        return Run(out)
    with folder.locked():
        begin_telling(out)
        tell(warnings_of(job), folder=out)
        job = _on_features(job, recipe, folder, accelerator, given)
        made = Making(job, out)
        if job.has_finished_teacher:
            check_teacher(job, made.teacher(), out)
        first, then = teachers(made), after_teachers(made)
        seen = survey(folder, [*first, *then], made.results)
        announce(folder, seen)
        clear_others(out, [stage.name for stage in (*features_job(made), *first, *then)])
        clear_other_students(out, kinds(job))
        begin(job, folder, command)
        tell(try_student(job, folder), folder=out)
        _run_stages(made, (first, then), StageRunner(folder, accelerator, made.results, seen))
        seconds = sum(stage.get("seconds", 0.0) for stage in folder.state["stages"].values())
        folder.update(finished=now(), seconds=round(seconds, 1))
        tell((*exporting.refusals(out, optional=True), *exporting.remarks(out)), folder=out)
        write_documents(out)
    return Run(out)


def begin(job: Job, folder: RunFolder, command: str) -> None:
    """Write what a run is: the resolved recipe, the data's findings, versions and machine."""
    recipe = job.written
    text = dump(recipe)
    write_text(folder.path / "recipe.yaml", text)
    write_json(folder.path / "data.json", describe_data(job.data))
    folder.update(
        name=folder.path.name,
        task=job.recipe.task,
        created=folder.state.get("created") or now(),
        finished=None,
        recipe_hash=recipe_hash(recipe),
        command=command,
        base=str(job.base.absolute()),
        directory=str(Path.cwd()),
        given=[name for name in ("teacher", "student", "data", "objective") if getattr(job.given, name) is not None],
        versions=package_versions(),
        machine=describe_machine(job.device),
    )


def _on_features(job: Job, recipe: Recipe, folder: RunFolder, accelerator: Accelerator, given: Given | None) -> Job:
    """Return the job, where its student learns on features: with these, once its teacher is trained."""
    if job.before is None:
        return job
    made = Making(job, folder.path)
    StageRunner(folder, accelerator, made.results).run(features_job(made))
    return prepare(recipe, out=folder.path, base=job.base, given=given)


def _run_stages(made: Making, stages: tuple[list[Stage], list[Stage]], runner: StageRunner) -> None:
    """Run every stage that is not finished yet, and judge the teacher when its stages, the first ones, are."""
    job, out = made.job, made.out
    with made.verified():
        runner.run(stages[0])
        if job.has_teacher:
            on_main(runner.accelerator, lambda: answers_of(job, made.teacher(), out, keep=True))
            if not job.has_finished_teacher:
                on_main(runner.accelerator, lambda: check_teacher(job, made.teacher(), out))
        runner.run(stages[1])


def write_documents(folder: Path) -> None:
    """Write the model card and the report; both only read the run folder."""
    write_card(
        folder / "export", evaluation=read_json(folder / "evaluation.json"), recipe=(folder / "recipe.yaml").read_text()
    )
    report.write(folder)
