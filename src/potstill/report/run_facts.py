"""The facts of a run: exported files, data, stages, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report import numbers
from potstill.report.files import RunFiles
from potstill.report.headline import good_files
from potstill.tasks import headline

STATUS = {"done": "done", "skipped": "reused", "failed": "failed", "running": "not finished"}
LARGE_SHIFT = 0.1


@dataclass(frozen=True)
class FileRow:
    """One exported file and how alike it answers."""

    name: str
    format: str
    size: str
    latency: str
    agreement: str
    difference: str
    score: str
    ok: bool
    reasons: tuple[str, ...]
    recommended: bool = False


@dataclass(frozen=True)
class SplitRow:
    """One split, its size and its role."""

    name: str
    count: str
    role: str
    shift: str
    shift_note: str


@dataclass(frozen=True)
class FindingRow:
    """One remark about the data."""

    level: str
    message: str


@dataclass(frozen=True)
class StageRow:
    """One stage of the run."""

    name: str
    status: str
    failed: bool
    time: str
    reused_from: str


def file_rows(files: RunFiles) -> list[FileRow]:
    """Return one row per exported file."""
    name = headline(files.task)
    best = next(iter(good_files(files)), None)
    return [
        FileRow(
            name=str(file.get("file", "")),
            format=str(file.get("format", "")),
            size=numbers.megabytes(numbers.finite(file.get("bytes"))),
            latency=numbers.milliseconds(_median(file)),
            agreement=numbers.score("agreement", numbers.finite(file.get("agreement"))),
            difference=numbers.significant(numbers.finite(file.get("relative_difference")), 2),
            score=numbers.score(name, numbers.finite(file.get("accuracy_file"))),
            ok=bool(file.get("ok")),
            reasons=tuple(str(reason) for reason in (*(file.get("reasons") or ()), *(file.get("remarks") or ()))),
            recommended=file is best,
        )
        for file in files.exported
    ]


def _median(file: Mapping[str, Any]) -> float | None:
    return numbers.finite(((file.get("latency_ms") or {}).get("1") or {}).get("p50"))


def split_rows(files: RunFiles) -> list[SplitRow]:
    """Return the splits: how many samples, what each decided, and how its labels differ from the training labels."""
    data = files.data or {}
    split = files.evaluation.split if files.evaluation else "test"
    chosen_on = files.evaluation.chosen_on if files.evaluation else "validation"
    roles = {"train": "Fits the weights."}
    roles[chosen_on] = "Chooses which epoch of each model is kept."
    roles[split] = "Read once, for every number on this page that is not marked as validation."
    shifts = data.get("label_shift") or {}
    found = []
    for name in ("train", "validation", "test"):
        shift = numbers.finite(shifts.get(name))
        note = "" if shift is None else "clear" if shift >= LARGE_SHIFT else "small"
        found.append(
            SplitRow(
                name.capitalize(), _count(data.get(name)), roles.get(name, ""), numbers.significant(shift, 2), note
            )
        )
    return found


def _count(value: Any) -> str:
    number = numbers.finite(value)
    return numbers.DASH if number is None else f"{number:,.0f}"


def data_summary(files: RunFiles) -> str:
    """Return the data's kind, shape and classes in one sentence."""
    data = files.data or {}
    shape = f" {numbers.TIMES} ".join(str(side) for side in data.get("shape") or ())
    classes = data.get("classes") or ()
    kind = "Images" if data.get("kind") == "image" else "Vectors"
    answer = f", {len(classes)} classes" if classes else ", one or more values to predict"
    return f"{kind} of shape {shape}{answer}.{_units(data.get('scale'))}" if shape else ""


def _units(scale: Mapping[str, Sequence[float]] | None) -> str:
    """Return what a target of one column was learned in; nothing for classes and for several columns."""
    if scale is None or len(scale["mean"]) != 1:
        return "" if scale is None else " Each is learned in units of its own mean and standard deviation over train."
    mean, deviation = numbers.significant(scale["mean"][0]), numbers.significant(scale["std"][0])
    return f" They are learned in units of their standard deviation over train, {deviation}, from their mean, {mean}."


def finding_rows(files: RunFiles) -> list[FindingRow]:
    """Return the remarks of the data check, warnings first; those that the run warned of are not said again."""
    findings = (files.data or {}).get("findings") or ()
    found = [FindingRow(str(one.get("level", "info")), str(one.get("message", ""))) for one in findings]
    rest = [finding for finding in found if finding.message not in (files.warnings or ())]
    return sorted(rest, key=lambda finding: finding.level != "warning")


def stage_rows(files: RunFiles) -> list[StageRow]:
    """Return the stages in the order they ran."""
    stages = files.run.get("stages") or {}
    return [
        StageRow(
            name=str(name).replace("_", " "),
            status=STATUS.get(str(stage.get("status")), str(stage.get("status"))),
            failed=stage.get("status") == "failed",
            time=numbers.seconds(numbers.finite(stage.get("seconds"))),
            reused_from=str(stage.get("reused_from") or ""),
        )
        for name, stage in stages.items()
    ]


def failed_stages(files: RunFiles) -> str:
    """Return which stages failed, in one sentence, or an empty text."""
    failed = [stage.name for stage in stage_rows(files) if stage.failed]
    return f"Failed: {', '.join(failed)}." if failed else ""


def teacher_was_given(files: RunFiles) -> bool:
    """Return whether the teacher came with its weights."""
    section = files.recipe.get("teacher") or {}
    wanted = section.get("train") or next(
        (one["train"] for one in section.get("members") or () if one.get("train")), None
    )
    return wanted is None and all(one.model != "teacher" for one in files.trained)


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """Return what identifies the run: label and text."""
    run = files.run
    machine = run.get("machine") or {}
    parts = [
        {"cpu": str(machine[name]), "device": f"device {machine[name]}"}.get(name, f"{machine[name]} {name}")
        for name in ("cpu", "cores", "threads", "device")
        if machine.get(name) not in (None, "", "cpu")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())
    found = [
        ("Objective", _objective(files.recipe.get("objective"))),
        ("Layers", _layers(files.recipe.get("objective"))),
        ("Recipe hash", str(run.get("recipe_hash") or "")),
        ("Started", timestamp(run.get("created"))),
        ("Finished", timestamp(run.get("finished"))),
        ("Time in all", numbers.seconds(numbers.finite(run.get("seconds"))) if run.get("seconds") else ""),
        ("Machine", ", ".join(parts)),
        ("Versions", versions or str(run.get("potstill") or "")),
    ]
    return [(label, text) for label, text in found if text]


@dataclass(frozen=True)
class Again:
    """How to do the run again: a sentence, and lines to type."""

    how: str
    lines: tuple[str, ...]


def again(files: RunFiles) -> Again:
    """Return what gives this run again: commands where that is so, else which objects only Python has."""
    run = files.run
    command, given = str(run.get("command") or ""), [str(name) for name in run.get("given") or ()]
    if given:
        return Again(
            f"This run was started from Python with objects that no recipe holds: {', '.join(given)}. Give the same "
            "objects again; the settings are those of the recipe below.",
            (f"potstill.distill({_arguments(given)}, ...)",),
        )
    folder = files.folder.absolute()
    if command.startswith("potstill run"):
        place = [f"cd {shlex.quote(str(run['directory']))}"] if run.get("directory") else []
        return Again(
            "These commands give this run again, with the values that were set on the command line. Stages that are "
            "finished are kept; with another folder behind --out everything is done anew.",
            (*place, command),
        )
    if not run.get("base"):
        return Again("The recipe below is complete.", (command,) if command else ())
    return Again(
        "This run was started from Python, and its recipe is complete: these commands do the same anew.",
        (
            f"cd {shlex.quote(str(run['base']))}",
            f"cp {shlex.quote(str(folder / 'recipe.yaml'))} again.yaml",
            f"potstill run again.yaml --out {shlex.quote(str(folder) + '-again')}",
        ),
    )


def _arguments(given: Sequence[str]) -> str:
    """Return the call's first arguments: the names of objects, and dots where the recipe has the value."""
    shown = [name if name in given else "..." for name in ("teacher", "student", "data")]
    return ", ".join([*shown, *(["objective=objective"] if "objective" in given else [])])


def _objective(section: Any) -> str:
    """Return the objective's preset, or the losses of its terms."""
    if isinstance(section, Mapping):
        return str(section.get("preset") or "")
    if isinstance(section, list):
        return ", ".join(str(term.get("loss")) for term in section if isinstance(term, Mapping))
    return str(section or "")


def _layers(section: Any) -> str:
    """Return which layers of the student a preset makes learn from which of the teacher."""
    if not isinstance(section, Mapping):
        return ""
    kinds = [section.get(kind) for kind in ("layers", "embedding", "projections")]
    pairs = [pair for kind in kinds if isinstance(kind, Mapping) for pair in kind.items()]
    return ", ".join(f"{student} from {teacher}" for student, teacher in pairs)


def timestamp(value: Any) -> str:
    """Return an ISO time as ``2026-01-31 14:05``, with its zone when it has one."""
    text = str(value or "")
    if len(text) < 16 or text[10] not in "T ":
        return text
    zone = " UTC" if text.endswith(("Z", "+00:00")) else text[19:] if text[19:20] in ("+", "-") else ""
    return f"{text[:10]} {text[11:16]}{zone}"
