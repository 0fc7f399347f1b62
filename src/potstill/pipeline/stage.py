"""A stage of a run: what it is called, what it depends on, what it leaves, how it is done and how it is described.

An order (see `pipeline.orders`) is one list of stages. `survey` looks at what lies in a run folder already, `plan`
describes the list, and a `StageRunner` runs it: each stage once, and not again while its result is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from potstill.core.errors import TeacherError
from potstill.core.progress import say
from potstill.pipeline import probe as probes
from potstill.pipeline.folder import MARKER, RunFolder, read_or_none
from potstill.pipeline.inputs import Inputs, be, changes, files_changed
from potstill.pipeline.probe import Probe
from potstill.pipeline.processes import in_parts, on_main
from potstill.pipeline.timing import Timing

PROBE, START = "probe.safetensors", "start.safetensors"
"""What a training's model computes when it is finished, and what it computed before."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves: files in a folder of its own; every process calls ``work(folder, accelerator=)``.

    Attributes:
        folder: in the run folder.
        probe: what the model computes, with the weights of a file or, without one, those that it starts from; None
            where the stage leaves no model behind.
        keeps: whether a finished result is kept when only the code is another and the model answers as before; a
            model that answers otherwise is then refused. Others are trained again.
        says: the result in words, for the inputs of later stages; None for a digest of its files.

    """

    folder: str
    probe: Callable[[Path | None], Probe] | None = None
    keeps: bool = False
    says: Callable[[], str] | None = None


@dataclass(frozen=True)
class Files:
    """Files in the run folder, as patterns; the main process calls ``work()`` while the others wait."""

    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """What says by itself what it belongs to: ``work((i, n), own)`` is called in any case, to check or repair it.

    ``own`` says whether this very run made what is there.

    Attributes:
        is_there: whether it is there.
        check: refuses what is there where it does not fit; called first, by the main process.
        shared: whether each of the n processes does its part; otherwise the main one does everything.

    """

    is_there: Callable[[], bool]
    check: Callable[[], object] | None = None
    shared: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage of an order.

    Attributes:
        name: its name.
        key: what its result depends on; asked for when the stages before it have their results.
        result: what it leaves, which also says who works.
        work: does it.
        does: what that is, in words.
        seconds: says how long it takes; None where nobody can say.

    """

    name: str
    key: Callable[[], Inputs]
    result: Trained | Files | Held
    work: Callable[..., Any]
    does: str
    seconds: Callable[[Timing], float | None] = lambda _: None


@dataclass(frozen=True)
class Look:
    """What is there of a stage: whether its result can be used, and why not, or what may be told about it."""

    usable: bool
    why: tuple[str, ...] = ()


Seen = tuple[Inputs, Look]
"""What was seen of a stage, and for which inputs."""


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one run folder; every process calls it alike.

    Attributes:
        folder: the run folder.
        accelerator: of all processes.
        results: what later stages know of each that is finished; the keys of the stages read it.
        seen: what was seen of stages before they began, on the main process; it was told already.

    """

    folder: RunFolder
    accelerator: Accelerator
    results: dict[str, str] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)

    def run(self, stages: Iterable[Stage]) -> None:
        """Run every stage that is not finished yet, in order."""
        for stage in stages:
            if isinstance(stage.result, Trained):
                self._together(stage, stage.result)
            elif isinstance(stage.result, Files):
                on_main(self.accelerator, partial(self._alone, stage, stage.result.patterns))
            else:
                self._held(stage, stage.result)
            self.results[stage.name] = on_main(self.accelerator, partial(_told, self.folder, stage))

    def _together(self, stage: Stage, result: Trained) -> None:
        """Let every process take part in a training."""
        path = on_main(self.accelerator, partial(self._prepared, stage, result))
        if path is None:
            return
        if not self.accelerator.is_main_process:
            stage.work(path, accelerator=self.accelerator)
            return
        with self.folder.stage(stage.name, stage.key(), partial(_kept, path)):
            stage.work(path, accelerator=self.accelerator)
            if result.probe is not None:
                probes.write(path / PROBE, result.probe(path / "weights.safetensors"))
        self.folder.note(result.folder, stage.name)

    def _alone(self, stage: Stage, patterns: tuple[str, ...]) -> None:
        inputs = stage.key()
        if self._look(stage, inputs).usable:
            self.folder.reuse(stage.name, inputs)
            return
        for name in self.folder.damaged(stage.name):
            (self.folder.path / name).unlink(missing_ok=True)
        with self.folder.stage(stage.name, inputs, lambda: self.folder.matching(patterns)):
            stage.work()

    def _held(self, stage: Stage, held: Held) -> None:
        def begin() -> tuple[bool, bool]:
            if held.check is not None:
                held.check()
            inputs, entry, is_there = stage.key(), self.folder.finished(stage.name), held.is_there()
            if entry is not None and not is_there:
                tell(stage.name, Look(usable=False, why=_reasons(entry, inputs) or ("its result is gone",)))
            return is_there, entry is not None and entry.get("inputs") == inputs.to_json()

        is_there, own = on_main(self.accelerator, begin)

        def work() -> None:
            if held.shared:
                in_parts(self.accelerator, lambda part: stage.work(part, own))
            else:
                on_main(self.accelerator, lambda: stage.work((0, 1), own))

        if not self.accelerator.is_main_process:
            work()
            return
        inputs = stage.key()
        with self.folder.stage(stage.name, inputs):
            work()
        if is_there:
            self.folder.reuse(stage.name, inputs)

    def _prepared(self, stage: Stage, result: Trained) -> Path | None:
        """Return the folder to train in, or None where the result is there."""
        name, inputs, own = stage.name, stage.key(), self.folder.path / result.folder
        if self._look(stage, inputs).usable:
            self.folder.reuse(name, inputs)
            self.folder.note(result.folder, name)
            return None
        start, begun = None if result.probe is None else result.probe(None), probes.read(own / START)
        goes_on = (
            self.folder.finished(name) is None and (read_or_none(own / MARKER) or {}).get("inputs") == inputs.to_json()
        )
        other = probes.difference(begun, start) if goes_on and start is not None and begun is not None else ""
        if other:
            tell(name, Look(usable=False, why=(f"what it begins with computes something else now: {other}",)))
        fresh = not goes_on or bool(other)
        path = self.folder.prepare(result.folder, name, inputs, fresh=fresh)
        if start is not None and not (path / START).exists():
            probes.write(path / START, start)
        return path

    def _look(self, stage: Stage, inputs: Inputs) -> Look:
        """Return what is there of a stage, and say what is to be said of it that was not said before."""
        before, look = self.seen.get(stage.name, (None, Look(usable=False)))
        if before == inputs:
            return look
        told = bool(look.why)
        look = look_at(self.folder, stage, inputs)
        if not told:
            tell(stage.name, look)
        return look


def look_at(folder: RunFolder, stage: Stage, inputs: Inputs) -> Look:
    """Return whether a stage's result can be used.

    Args:
        folder: the run folder.
        stage: the stage.
        inputs: what its result would be made from now.

    Raises:
        TeacherError: a result that is not to be made again without being asked for belongs to other code.

    """
    if isinstance(stage.result, Held):
        return Look(usable=inputs.known and stage.result.is_there())
    entry = folder.finished(stage.name)
    if entry is None:
        return Look(usable=False)
    reasons = _reasons(entry, inputs)
    code = files_changed(entry.get("inputs", {}), inputs)
    damaged = folder.damaged(stage.name)
    if reasons or damaged or not inputs.known:
        return Look(usable=False, why=(*reasons, *code, *damaged.values()))
    if isinstance(stage.result, Files):
        return Look(usable=not code, why=tuple(code))
    result = stage.result
    if code and not result.keeps:
        return Look(usable=False, why=tuple(code))
    path = folder.path / result.folder
    if result.probe is None:
        return Look(usable=True, why=tuple(code))
    before = probes.read(path / PROBE) or {}
    other = probes.difference(before, result.probe(path / "weights.safetensors")) if before else ""
    if not other:
        return Look(usable=True, why=(*code, "it computes the same") if code else ())
    if not result.keeps:
        return Look(usable=False, why=(f"it computes something else now: {other}",))
    edited = f"{', '.join(code)}, and " if code else ""
    raise TeacherError(
        f"{stage.name}: {edited}with the weights in {path} it computes something else than when it was trained: "
        f"{other}. Undo that change to use these weights, or delete or rename {path} (or choose another --out) to "
        "train it anew."
    )


def survey(folder: RunFolder, stages: Iterable[Stage], results: dict[str, str]) -> dict[str, Seen]:
    """Look at every stage of a list before anything is run.

    Args:
        folder: the run folder.
        stages: in order.
        results: of finished stages, which the stages' keys read; filled with those that can be used.

    Raises:
        TeacherError: a trained teacher is of other code, see `look_at`.

    """
    seen = {}
    for stage in stages:
        inputs = stage.key()
        look = look_at(folder, stage, inputs)
        seen[stage.name] = inputs, look
        if look.usable:
            results[stage.name] = _told(folder, stage)
    return seen


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


def _told(folder: RunFolder, stage: Stage) -> str:
    """Return what later stages know of a finished stage's result."""
    if isinstance(stage.result, Held):
        return stage.key().key
    says = stage.result.says if isinstance(stage.result, Trained) else None
    return folder.result(stage.name) or "" if says is None else says()


def _reasons(entry: dict[str, Any], inputs: Inputs) -> tuple[str, ...]:
    return tuple(changes(entry.get("inputs", {}), inputs))


def tell(stage: str, look: Look) -> None:
    """Say why a finished result is made again, or what was edited and makes no difference."""
    if look.why:
        then = "kept" if look.usable else "made again, the earlier result is replaced"
        say(f"{stage} {be(stage)} {then}: {'; '.join(look.why)}")


def _kept(folder: Path) -> list[Path]:
    """Return the files of a training that are its result."""
    return [file for file in folder.iterdir() if file.is_file() and file.name not in (MARKER, START)]
