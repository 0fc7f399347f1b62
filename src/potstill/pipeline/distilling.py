"""The main job for Python users: the same stages, the same run folder, from objects in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from potstill.core.errors import UsageError
from potstill.objective import Objective
from potstill.pipeline.build import IN_MEMORY, Given
from potstill.pipeline.running import Run, run
from potstill.recipe.problems import explain
from potstill.recipe.schema import Recipe


def distill(
    teacher: nn.Module | str | Mapping[str, Any],
    student: nn.Module | Callable[[], nn.Module] | str | Mapping[str, Any],
    data: Any,
    *,
    objective: Objective | str = "auto",
    budget: float | Mapping[str, float] | None = None,
    out: Path | str = "runs/distilled",
    **settings: Any,
) -> Run:
    """Distil ``teacher`` into ``student`` on ``data``, prove it against the student alone, export and report.

    Args:
        teacher: a trained module (its inputs are the samples as they are, see ``settings``), a zoo name that is
            trained first, or a recipe's teacher section.
        student: a module, a function that makes one, a zoo name, or a recipe's student section.
        data: ``(inputs, targets)``, a dictionary of these by split, a map-style dataset, a path, or a recipe's data
            section such as ``{"train": "photos/", "augment": {"flip": True}}``.
        objective: a preset's name or an `Objective`.
        budget: training minutes of each student, or a dictionary with ``minutes``, ``megabytes``, ``milliseconds``.
        out: the run folder.
        **settings: any other section of a recipe, for example ``task="regression"``, ``seeds=3``,
            ``training={"epochs": 20}``, ``augment={"flip": True}``, ``teacher_preprocess={"mean": ..., "std": ...}``.

    Returns:
        The run: ``run.evaluation``, ``run.exported["onnx"]``, ``run.report``, ``run.load_student()``.

    Raises:
        UsageError: a setting that no recipe has.
        PotstillError: data or models that do not fit.

    """
    recipe = _recipe(_sections(teacher, student, data, objective, budget, settings))
    given = Given(
        teacher=teacher if isinstance(teacher, nn.Module) else None,
        student=student if isinstance(student, nn.Module) or callable(student) else None,
        data=None if isinstance(data, str | Path) or _is_section(data) else data,
        objective=objective if isinstance(objective, Objective) else None,
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
    sections["teacher"] = _model(teacher, {"train": {}} if isinstance(teacher, str) else {})
    sections["student"] = _model(student, {})
    sections["objective"] = objective if isinstance(objective, str) else IN_MEMORY
    if budget is not None:
        sections["budget"] = dict(budget) if isinstance(budget, Mapping) else {"minutes": budget}
    for name, place in (("augment", "data"), ("teacher_preprocess", "teacher"), ("student_preprocess", "student")):
        if name in sections:
            sections[place] = {**sections[place], name.removeprefix(f"{place}_"): sections.pop(name)}
    return sections


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
        lines = [f"{'.'.join(map(str, place))}: {message}" for place, message in explain(error)]
        raise UsageError("distill() was called with settings that no recipe has:\n" + "\n".join(lines)) from error
