"""The main job for Python users: the same stages, the same run folder, from objects in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.explain import clear_errors
from potstill.objective import Objective
from potstill.pipeline.build import IN_MEMORY, Given
from potstill.pipeline.makers import AnyModel
from potstill.pipeline.running import Run, run
from potstill.recipe.problems import explain
from potstill.recipe.schema import Recipe
from potstill.teachers import Source
from potstill.teachers.files import SUFFIXES

AnyTeacher = nn.Module | Source | Path | str | Mapping[str, Any]
"""What one teacher may be given as."""


@clear_errors
def distill(
    teacher: AnyTeacher | Sequence[AnyTeacher] | None,
    student: nn.Module | Callable[[], nn.Module] | str | Mapping[str, Any],
    data: Any,
    *,
    objective: Objective | str | Mapping[str, Any] = "auto",
    budget: float | Mapping[str, float] | None = None,
    out: Path | str = "runs/distilled",
    **settings: Any,
) -> Run:
    """Distil ``teacher`` into ``student`` on ``data``, prove it against the student alone, export and report.

    Args:
        teacher: a trained module (its inputs are the samples as they are, see ``settings``), a model at rest
            (`potstill.teachers.Source`, such as `MergedTeacher`), the path of a trained model of any framework or of
            recorded answers (``"model.onnx"``), a zoo name that is trained first, or a recipe's teacher section.
            Several of these, as a list, are merged (``merge={...}``); None where the student learns from itself, its
            peers or the labels.
        student: a module, a function that makes one, a zoo name, or a recipe's student section.
        data: ``(inputs, targets)``, a dictionary of these by split, a map-style dataset, a path, or a recipe's data
            section such as ``{"train": "photos/", "augment": {"flip": True}}``.
        objective: a preset's name, a preset with layers and options (``{"preset": "at", "layers": "last"}``), or an
            `Objective`.
        budget: training minutes of each student, or a dictionary with ``minutes``, ``megabytes``, ``milliseconds``.
        out: the run folder.
        **settings: any other section of a recipe, for example ``task="regression"``, ``seeds=3``,
            ``training={"epochs": 20}``, ``augment={"flip": True}``, ``teacher_preprocess={"mean": ..., "std": ...}``,
            ``answers="probabilities"`` for what the teacher answers with where that has to be said,
            ``classes=["cat", "dog"]`` for the order in which the teacher numbers the classes, ``unlabelled=images`` for
            samples that only the teacher answers, ``labels=100`` for how many labels the student sees.

    Returns:
        The run: ``run.evaluation``, ``run.exported["onnx"]``, ``run.report``, ``run.load_student()``.

    Raises:
        UsageError: a setting that no recipe has.
        PotstillError: data or models that do not fit.

    """
    pool = settings.get("unlabelled")
    if pool is not None and not _is_path(pool):
        settings["unlabelled"] = IN_MEMORY
    recipe = _recipe(_sections(teacher, student, data, objective, budget, settings))
    given = Given(
        teacher=_given_teacher(teacher),
        student=student if isinstance(student, nn.Module) or callable(student) else None,
        data=None if isinstance(data, str | Path) or _is_section(data) else data,
        objective=objective if isinstance(objective, Objective) else None,
        unlabelled=None if _is_path(pool) else pool,
    )
    return run(recipe, out=out, given=given, command="potstill.distill(...)")


def _is_section(data: Any) -> bool:
    """Whether ``data`` is a recipe's data section (its ``train`` is a text) and not the samples themselves."""
    return isinstance(data, Mapping) and isinstance(data.get("train"), str | Path)


def _sections(
    teacher: Any, student: Any, data: Any, objective: Any, budget: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the recipe that the arguments describe, as plain data."""
    sections: dict[str, Any] = dict(settings)
    sections["data"] = dict(data) if _is_section(data) else {"train": str(data) if _is_path(data) else IN_MEMORY}
    sections["teacher"] = _teacher(teacher, sections)
    sections["student"] = _model(student, {})
    sections["objective"] = IN_MEMORY if isinstance(objective, Objective) else objective
    if budget is not None:
        sections["budget"] = dict(budget) if isinstance(budget, Mapping) else {"minutes": budget}
    for name, place in (
        ("augment", "data"),
        ("classes", "data"),
        ("labels", "data"),
        ("unlabelled", "data"),
        ("teacher_preprocess", "teacher"),
        ("answers", "teacher"),
        ("answers_checked", "teacher"),
        ("class_map", "teacher"),
        ("student_preprocess", "student"),
    ):
        if name in sections:
            if sections[place] is None:
                raise UsageError(f"distill() was called with {name} and without a {place}. Drop {name}.")
            sections[place] = {**sections[place], name.removeprefix(f"{place}_"): sections.pop(name)}
    return sections


def _teacher(teacher: Any, sections: dict[str, Any]) -> dict[str, Any] | None:
    """Return the teacher's section; settings that are about several teachers are taken out of ``sections``."""
    if teacher is None:
        return None
    if not _are_several(teacher):
        return _one_teacher(teacher)
    members = [_one_teacher(one) for one in teacher]
    for name in ("teacher_preprocess", "answers", "answers_checked"):  # of every teacher
        if name in sections:
            members = [{name.removeprefix("teacher_"): sections[name], **member} for member in members]
            del sections[name]
    return {"members": members, **({"merge": sections.pop("merge")} if "merge" in sections else {})}


def _one_teacher(teacher: Any) -> dict[str, Any]:
    if isinstance(teacher, Path) or (isinstance(teacher, str) and Path(teacher).suffix.lower() in SUFFIXES):
        return {"file": str(teacher)}
    return _model(teacher, {"train": {}} if isinstance(teacher, str) else {})


def _are_several(teacher: Any) -> bool:
    return isinstance(teacher, Sequence) and not isinstance(teacher, str | Path | nn.Module)


def _given_teacher(teacher: Any) -> AnyModel | tuple[AnyModel | None, ...] | None:
    """Return the models among the teachers, in place of what a recipe would describe."""
    if _are_several(teacher):
        return tuple(map(_given_model, teacher))
    return _given_model(teacher)


def _given_model(teacher: Any) -> AnyModel | None:
    return None if isinstance(teacher, str | Path | Mapping) else teacher


def _is_path(data: Any) -> bool:
    return isinstance(data, str | Path)


def _model(model: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, str):
        return {"model": model, **extra}
    return {"model": IN_MEMORY}


def _recipe(sections: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, place)) or 'recipe'}: {message}" for place, message in explain(error)]
        raise UsageError("distill() was called with settings that no recipe has:\n" + "\n".join(lines)) from error
