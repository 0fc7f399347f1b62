"""How a stage is run: once, by every process or by the main one, and not again while its result is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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

PROBE, START = "probe.safetensors", "start.safetensors"
"""What a training's model computes when it is finished, and what it computed before."""


@dataclass(frozen=True)
class Training:
    """A stage that trains a model in a folder of its own.

    Attributes:
        stage: its name.
        folder: its folder in the run folder.
        inputs: what it depends on.
        probe: what the model computes, with the weights of a file or, without one, those that it starts from; None
            where the stage leaves no model behind.
        keeps: whether a finished result is kept when only the code is another and the model answers as before; a
            model that answers otherwise is then refused. Others are trained again.

    """

    stage: str
    folder: str
    inputs: Inputs
    probe: Callable[[Path | None], Probe] | None
    keeps: bool = False


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
        results: a digest of the result of each stage that is finished, for the inputs of those that follow.
        seen: what was seen of stages before they began, on the main process; it was told already.

    """

    folder: RunFolder
    accelerator: Accelerator
    results: dict[str, str] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)

    def together(self, training: Training, work: Callable[[Path], Any]) -> None:
        """Run a stage in which every process takes part, and which leaves weights in a folder of its own."""
        stage, inputs = training.stage, training.inputs
        path = on_main(self.accelerator, lambda: self._prepared(training))
        if path is not None:
            if not self.accelerator.is_main_process:
                work(path)
            else:
                with self.folder.stage(stage, inputs, lambda: _kept(path)):
                    work(path)
                    if training.probe is not None:
                        probes.write(path / PROBE, training.probe(path / "weights.safetensors"))
                self.folder.note(training.folder, stage)
        self._finished(stage)

    def alone(self, stage: str, inputs: Inputs, work: Callable[[], Any], *, results: Iterable[str]) -> None:
        """Run a stage that the main process does while the others wait.

        Args:
            stage: its name.
            inputs: what it depends on.
            work: does it.
            results: the files that it leaves in the run folder, as patterns.

        """

        def once() -> None:
            if self._look(stage, inputs).usable:
                self.folder.reuse(stage, inputs)
                return
            for name in self.folder.damaged(stage):
                (self.folder.path / name).unlink(missing_ok=True)
            with self.folder.stage(stage, inputs, lambda: self.folder.matching(results)):
                work()

        on_main(self.accelerator, once)
        self._finished(stage)

    def checked(
        self,
        stage: str,
        inputs: Inputs,
        work: Callable[[tuple[int, int]], Any],
        *,
        is_there: Callable[[], bool],
        shared: bool = False,
    ) -> None:
        """Run a stage whose result says by itself what it belongs to.

        ``work((i, n))`` is called in any case, so that it can check or repair what is there: by the main process, or
        where the work is ``shared`` by each of the n processes for its part.
        """

        def begin() -> bool:
            entry = self.folder.finished(stage)
            if entry is not None and not is_there():
                tell(stage, Look(usable=False, why=_reasons(entry, inputs) or ("its result is gone",)))
            return is_there()

        reused = on_main(self.accelerator, begin)

        def every() -> None:
            if shared:
                in_parts(self.accelerator, work)
            else:
                on_main(self.accelerator, lambda: work((0, 1)))

        if not self.accelerator.is_main_process:
            every()
        else:
            with self.folder.stage(stage, inputs):
                every()
            if reused:
                self.folder.reuse(stage, inputs)
        self.results[stage] = inputs.key

    def _prepared(self, training: Training) -> Path | None:
        """Return the folder to train in, or None where the result is there."""
        stage, inputs, own = training.stage, training.inputs, self.folder.path / training.folder
        if self._look(stage, inputs, training).usable:
            self.folder.reuse(stage, inputs)
            self.folder.note(training.folder, stage)
            return None
        start, begun = None if training.probe is None else training.probe(None), probes.read(own / START)
        goes_on = (
            self.folder.finished(stage) is None and (read_or_none(own / MARKER) or {}).get("inputs") == inputs.to_json()
        )
        other = probes.difference(begun, start) if goes_on and start is not None and begun is not None else ""
        if other:
            tell(stage, Look(usable=False, why=(f"what it begins with computes something else now: {other}",)))
        fresh = not goes_on or bool(other)
        path = self.folder.prepare(training.folder, stage, inputs, fresh=fresh)
        if start is not None and not (path / START).exists():
            probes.write(path / START, start)
        return path

    def _look(self, stage: str, inputs: Inputs, training: Training | None = None) -> Look:
        """Return what is there of a stage, and say what is to be said of it that was not said before."""
        before, look = self.seen.get(stage, (None, Look(usable=False)))
        if before == inputs:
            return look
        told = bool(look.why)
        look = look_at(self.folder, stage, inputs, training)
        if not told:
            tell(stage, look)
        return look

    def _finished(self, stage: str) -> None:
        result = on_main(self.accelerator, lambda: self.folder.result(stage))
        if result is not None:
            self.results[stage] = result


def look_at(folder: RunFolder, stage: str, inputs: Inputs, training: Training | None = None) -> Look:
    """Return whether a stage's result can be used.

    Args:
        folder: the run folder.
        stage: the stage's name.
        inputs: what its result would be made from now.
        training: of a stage that trains a model.

    Raises:
        TeacherError: a result that is not to be made again without being asked for belongs to other code.

    """
    entry = folder.finished(stage)
    if entry is None:
        return Look(usable=False)
    reasons = _reasons(entry, inputs)
    code = files_changed(entry.get("inputs", {}), inputs)
    damaged = folder.damaged(stage)
    if reasons or damaged or not inputs.known:
        return Look(usable=False, why=(*reasons, *code, *damaged.values()))
    if training is None:
        return Look(usable=not code, why=tuple(code))
    if code and not training.keeps:
        return Look(usable=False, why=tuple(code))
    path = folder.path / training.folder
    if training.probe is None:
        return Look(usable=True, why=tuple(code))
    before = probes.read(path / PROBE) or {}
    other = probes.difference(before, training.probe(path / "weights.safetensors")) if before else ""
    if not other:
        return Look(usable=True, why=(*code, "it computes the same") if code else ())
    if not training.keeps:
        return Look(usable=False, why=(f"it computes something else now: {other}",))
    edited = f"{', '.join(code)}, and " if code else ""
    raise TeacherError(
        f"{stage}: {edited}with the weights in {path} it computes something else than when it was trained: {other}. "
        f"Undo that change to use these weights, or delete or rename {path} (or choose another --out) to train it anew."
    )


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
