"""How a stage is run: once, by every process or by the main one, and not again while its result is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from potstill.pipeline.folder import RunFolder
from potstill.pipeline.processes import in_parts, on_main


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one run folder; every process calls it alike."""

    folder: RunFolder
    accelerator: Accelerator

    def together(
        self, stage: str, key: str, subfolder: str, work: Callable[[Path], Any], *, result: str = "weights.safetensors"
    ) -> None:
        """Run a stage in which every process takes part, and which leaves its result in a folder of its own."""
        if self._skip(stage, key, self.folder.path / subfolder / result):
            return
        path = on_main(self.accelerator, lambda: self.folder.prepare(subfolder, key))
        if not self.accelerator.is_main_process:
            work(path)
            return
        with self.folder.stage(stage, key):
            work(path)

    def alone(self, stage: str, key: str, work: Callable[[], Any], *, result: Path) -> None:
        """Run a stage that the main process does while the others wait."""

        def once() -> None:
            with self.folder.stage(stage, key):
                work()

        if not self._skip(stage, key, result):
            on_main(self.accelerator, once)

    def checked(
        self,
        stage: str,
        key: str,
        work: Callable[[tuple[int, int]], Any],
        *,
        is_there: Callable[[], bool],
        shared: bool = False,
    ) -> None:
        """Run a stage whose result says by itself what it belongs to.

        ``work((i, n))`` is called in any case, so that it can check or repair what is there: by the main process, or
        where the work is ``shared`` by each of the n processes for its part.
        """
        reused = on_main(self.accelerator, is_there)

        def every() -> None:
            if shared:
                in_parts(self.accelerator, work)
            else:
                on_main(self.accelerator, lambda: work((0, 1)))

        if not self.accelerator.is_main_process:
            every()
            return
        with self.folder.stage(stage, key):
            every()
        if reused:
            self.folder.reuse(stage)

    def _skip(self, stage: str, key: str, result: Path) -> bool:
        def decide() -> bool:
            done = self.folder.is_done(stage, key) and result.exists()
            if done:
                self.folder.reuse(stage)
            return done

        return on_main(self.accelerator, decide)
