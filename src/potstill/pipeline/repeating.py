"""Doing the last stages of a finished run again: its numbers, or its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from potstill import report
from potstill.core.errors import ParityError, PotstillError, UsageError
from potstill.core.explain import clear_errors
from potstill.core.files import read_json, write_text
from potstill.evaluation import EvaluationResult, Size
from potstill.pipeline import exporting, proof
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.inputs import settings_of
from potstill.pipeline.keys import stage_name, student_runs
from potstill.pipeline.making import Making
from potstill.pipeline.prepare import prepare
from potstill.pipeline.running import Run, write_documents
from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import dump, read


@clear_errors
def evaluate(run_folder: Path | str) -> EvaluationResult:
    """Compute a run's numbers and verdict again from its kept predictions; the test split is not read again.

    Args:
        run_folder: the folder of a run that was evaluated before.

    Returns:
        The result, also written to ``evaluation.json`` and the report.

    Raises:
        UsageError: the run has not come as far as its predictions.

    """
    folder, recipe = _opened(run_folder, "evaluation.json")
    with folder.locked():
        before = EvaluationResult.from_json(read_json(folder.path / "evaluation.json"))
        sizes = {
            name: Size(**{field.name: getattr(scores, field.name) for field in fields(Size)})
            for name, scores in before.models.items()
        }
        _refuse_damage(folder, "predictions", "export", "evaluation")
        result = proof.score(folder.path, recipe, sizes)
        folder.sign("evaluation", proof.RESULTS["evaluation"])
        write_documents(folder.path)
    return result


@clear_errors
def export(run_folder: Path | str, formats: Sequence[str] | None = None) -> dict[str, Path]:
    """Write the files of a run's best student again, in other formats if wanted, and check them.

    Args:
        run_folder: the folder of a finished run.
        formats: ``"onnx"``, ``"onnx-int8"`` or both; those of the recipe when absent.

    Returns:
        The files by format, ``safetensors`` included.

    Raises:
        UsageError: an unfinished run, or one whose student was a Python object.
        ParityError: a file in a format that was named does not answer like the student; the others are written.

    """
    folder, recipe = _opened(run_folder, "evaluation.json")
    if formats is not None:
        recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"formats": list(formats)})})
    job = prepare(recipe, out=folder.path, base=Path(folder.state["base"]))
    with folder.locked():
        _refuse_damage(folder, *(stage_name(*one) for one in student_runs(job)), "predictions")
        exporting.export_student(Making(job, folder.path))
        write_text(folder.path / "recipe.yaml", dump(recipe))
        folder.sign("export", proof.RESULTS["export"], settings_of(recipe.export, "export"))
    evaluate(folder.path)
    finished = Run(folder.path)
    if finished.refused_by_name:
        raise ParityError(finished.refused_by_name)
    return finished.exported


@clear_errors
def rewrite_report(run_folder: Path | str) -> Path:
    """Write a run's page again from the files in its folder, and return its path.

    Raises:
        UsageError: no run folder, or one that has not come as far as its evaluation.
        PotstillError: the results that it would show are not what was written.

    """
    folder = RunFolder(Path(run_folder))
    _refuse_damage(folder, "predictions", "export", "evaluation")
    return report.write(folder.path)


def _refuse_damage(folder: RunFolder, *stages: str) -> None:
    """Refuse to make anything of results that are not what was written."""
    damaged = [text for stage in stages for text in folder.damaged(stage).values()]
    if damaged:
        raise PotstillError(f"{folder.path}: {'; '.join(damaged)}. Give its `potstill run` command again to repair it.")


def _opened(run_folder: Path | str, needed: str) -> tuple[RunFolder, Recipe]:
    path = Path(run_folder)
    if not (path / "run.json").is_file():
        raise UsageError(f"{path} is not a run folder: it has no run.json. Pass the folder that a run wrote.")
    if not (path / needed).is_file():
        raise UsageError(f"{path} is not finished: it has no {needed}. Give its `potstill run` command again first.")
    return RunFolder(path), read(path / "recipe.yaml")
