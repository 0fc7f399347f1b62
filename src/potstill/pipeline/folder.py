"""A run folder: one lock, one ``run.json``, and which stages are finished with which inputs."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.core import fingerprint
from potstill.core.errors import DamagedFileError, PotstillError
from potstill.core.files import TEMPORARY, disk_errors, read_json, write_json
from potstill.pipeline.inputs import Inputs

MARKER = "inputs.json"
_NOTES = ("result.json", "history.jsonl")
"""Files of a training that say how long it took: equal results differ in them."""
PACKAGES = ("potstill", "torch", "numpy", "accelerate", "onnxruntime")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the current UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """The state of one run on disk; the only writer of ``run.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "run.json"
        self.state: dict[str, Any] = read_state(self.file) or {"stages": _stages_found(path)}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; a second process on the same folder is refused at once."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        owner = self.path / ".lock-owner"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = owner.read_text().strip() if owner.exists() else "unknown"
            raise PotstillError(
                f"Another process (process id {pid}) is working on the run folder {self.path}. "
                "Wait for it, stop it, or choose another folder with --out."
            ) from None
        try:
            owner.write_text(str(os.getpid()))
            remove_temporary(self.path)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def update(self, **values: Any) -> None:
        """Merge ``values`` into ``run.json``."""
        self.state.update(values)
        write_json(self.file, self.state)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """Return what is known of a stage that has its result, or None."""
        entry = self.state["stages"].get(stage, {})
        return entry if entry.get("status") in ("done", "skipped") else None

    def damaged(self, stage: str) -> dict[str, str]:
        """Return the files of a finished stage that are not what was written, each with what is wrong in words."""
        found = {}
        for name, digest in (self.finished(stage) or {}).get("results", {}).items():
            file = self.path / name
            if not file.is_file():
                found[name] = f"{name} is gone"
            elif fingerprint.of_file(file) != digest:
                found[name] = f"{name} is damaged: it is not what was written"
        return found

    def result(self, stage: str) -> str | None:
        """Return a digest of what later stages read of a finished stage's result, or None."""
        entry = self.finished(stage)
        if entry is None:
            return None
        files = entry.get("results", {})
        return fingerprint.of_json({name: digest for name, digest in files.items() if not name.endswith(_NOTES)})

    @contextmanager
    def stage(self, name: str, inputs: Inputs, results: Callable[[], Iterable[Path]] = list) -> Iterator[None]:
        """Record that ``name`` runs now, and then that it finished, with what, or failed."""
        started = time.monotonic()
        described = {"inputs": inputs.to_json()}
        self._mark(name, status="running", **described)
        try:
            yield
        except BaseException:
            self._mark(name, status="failed", **described, seconds=round(time.monotonic() - started, 3))
            raise
        seconds = round(time.monotonic() - started, 3)
        self._mark(name, status="done", **described, seconds=seconds, results=self.digests(results()))

    def matching(self, patterns: Iterable[str]) -> list[Path]:
        """Return the files in the run folder that fit one of some patterns."""
        return [file for pattern in patterns for file in self.path.glob(pattern) if file.is_file()]

    def digests(self, files: Iterable[Path]) -> dict[str, str]:
        """Return the digest of each file by its path in the run folder."""
        return {file.relative_to(self.path).as_posix(): fingerprint.of_file(file) for file in sorted(files)}

    def sign(self, name: str, patterns: Iterable[str], settings: Mapping[str, Any] | None = None) -> None:
        """Take the files of a finished stage as they are now for its result, made with some other settings."""
        entry = self.finished(name)
        if entry is None:
            return
        inputs = entry.get("inputs", {})
        changed = {**inputs, "settings": {**inputs.get("settings", {}), **(settings or {})}} if inputs else inputs
        self._mark(name, **{**entry, "inputs": changed, "results": self.digests(self.matching(patterns))})

    def reuse(self, name: str, inputs: Inputs) -> None:
        """Record that ``name`` was finished before and is used as it is."""
        self._mark(name, **{**self.state["stages"][name], "inputs": inputs.to_json(), "status": "skipped"})

    def _mark(self, name: str, **entry: Any) -> None:
        self.state["stages"][name] = entry
        write_json(self.file, self.state)

    def prepare(self, subfolder: str, stage: str, inputs: Inputs, *, fresh: bool) -> Path:
        """Return a stage's own folder, emptied first when what lies there was made from other inputs.

        Args:
            subfolder: the stage's folder in the run folder.
            stage: its name.
            inputs: what it is made from now.
            fresh: whether to empty it in any case.

        """
        folder = self.path / subfolder
        marker = folder / MARKER
        described = inputs.to_json()
        if folder.exists() and (fresh or (read_or_none(marker) or {}).get("inputs") != described):
            shutil.rmtree(folder)
        if not folder.exists():
            write_json(marker, {"stage": stage, "inputs": described})
        return folder

    def note(self, subfolder: str, stage: str) -> None:
        """Keep what is known of a finished stage in its own folder too, should ``run.json`` be lost."""
        write_json(self.path / subfolder / MARKER, {"stage": stage, **self.state["stages"][stage]})


def read_or_none(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is none that can be read."""
    try:
        value = read_json(file)
    except (OSError, DamagedFileError):
        return None
    return value if isinstance(value, dict) else None


def read_state(file: Path) -> dict[str, Any] | None:
    """Return what ``run.json`` says, or None where it is absent or damaged."""
    state = read_or_none(file)
    stages = (state or {}).get("stages")
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        return None
    return state


def _stages_found(path: Path) -> dict[str, Any]:
    """Return the finished stages that their own folders tell of."""
    found = [read_or_none(file) or {} for file in sorted(path.glob(f"**/{MARKER}"))]
    return {str(entry.pop("stage")): entry for entry in found if entry.get("stage") and "results" in entry}


def remove_temporary(folder: Path) -> None:
    """Remove what writers that were killed left in a folder that nobody else writes to."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)
