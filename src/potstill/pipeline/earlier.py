"""A student of an earlier run as a teacher: it is a model like any other."""

from __future__ import annotations

from pathlib import Path

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError
from potstill.export import load_student
from potstill.export.weights import CONFIG
from potstill.recipe import schema
from potstill.teachers.foreign import Opened, Wanted


def exported_in(path: Path) -> Path | None:
    """Return the folder of an exported student: a run folder's, or the folder itself; None where there is none."""
    return next((folder for folder in (path, path / "export") if (folder / CONFIG).is_file()), None)


def open_student(
    path: Path, folder: Path, section: schema.Teacher | schema.Member, wanted: Wanted, *, place: str
) -> Opened:
    """Open an exported student as a teacher; it has its own preprocessing and knows its classes.

    Args:
        path: what the recipe names.
        folder: where the student lies, see `exported_in`.
        section: the teacher.
        wanted: what the teacher is asked to do.
        place: the section's place in the recipe.

    Raises:
        PotstillError: files that are damaged, a student of other data, or settings that say nothing to it.

    """
    if section.preprocess != schema.Preprocess() or section.args:
        name = "args" if section.args else "preprocess"
        raise TeacherError(f"{place}.{name}: the student in {path} has its own preprocessing and no options. Drop it.")
    try:
        student = load_student(folder)
    except PotstillError as error:
        raise type(error)(f"{place}.file: {error}") from error
    told = [
        ("task", student.task, wanted.task),
        ("samples of shape", student.shape, wanted.shape),
        ("columns", [column.to_json() for column in student.columns], [column.to_json() for column in wanted.columns]),
    ]
    for name, own, given in told:
        if own != given:
            raise TeacherError(
                f"{place}.file: the student in {path} was trained on {name} {own}; the data has {given}. Give the data "
                "that it was trained on, or another teacher."
            )
    files = sorted(one for one in folder.glob("student*") if one.suffix in (".json", ".safetensors"))
    return Opened(
        name=path.name,
        digest=fingerprint.of_json([fingerprint.of_file(one) for one in files]),
        size_bytes=sum(one.stat().st_size for one in files),
        module=student,
        answers="values" if wanted.values else "logits",
        says="it is a student that potstill trained",
        classes=student.classes or None,
    )
