"""A run folder: one lock, one ``run.json``, and which stages are finished with which inputs."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.core.errors import PotstillError
from potstill.core.explain import clear_errors
from potstill.core.files import disk_errors, read_json, write_json

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
        self.state: dict[str, Any] = read_json(self.file) if self.file.exists() else {"stages": {}}

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
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def update(self, **values: Any) -> None:
        """Merge ``values`` into ``run.json``."""
        self.state.update(values)
        write_json(self.file, self.state)

    def is_done(self, stage: str, key: str) -> bool:
        """Return whether ``stage`` finished with exactly these inputs."""
        entry = self.state["stages"].get(stage, {})
        return entry.get("status") in ("done", "skipped") and entry.get("key") == key

    @contextmanager
    def stage(self, name: str, key: str) -> Iterator[None]:
        """Record that ``name`` runs now, and then that it finished or failed."""
        started = time.monotonic()
        self._mark(name, status="running", key=key)
        try:
            yield
        except BaseException:
            self._mark(name, status="failed", key=key, seconds=round(time.monotonic() - started, 3))
            raise
        self._mark(name, status="done", key=key, seconds=round(time.monotonic() - started, 3))

    def reuse(self, name: str) -> None:
        """Record that ``name`` was finished before and is used as it is."""
        self._mark(name, **{**self.state["stages"][name], "status": "skipped"})

    def _mark(self, name: str, **entry: Any) -> None:
        self.state["stages"][name] = entry
        write_json(self.file, self.state)

    def prepare(self, subfolder: str, key: str) -> Path:
        """Return a stage's own folder, emptied first when what lies there was made from other inputs."""
        folder = self.path / subfolder
        marker = folder / "inputs.json"
        if folder.exists() and (not marker.exists() or read_json(marker)["key"] != key):
            shutil.rmtree(folder)
        if not folder.exists():
            write_json(marker, {"key": key})
        return folder


@clear_errors
def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each run in ``folder``, newest first.

    Returns:
        Dictionaries with ``name, folder, status, task, metric, teacher, alone, distilled, verdict, seeds,
        metrics, bytes, created``; ``metrics`` holds all scores by model; values that a run does not have yet are None.

    """
    rows = []
    for file in sorted(Path(folder).glob("*/run.json")):
        state = read_json(file)
        run = file.parent
        row: dict[str, Any] = {
            "name": run.name,
            "folder": str(run),
            "status": _status(state),
            "task": state.get("task"),
            "created": state.get("created"),
            **dict.fromkeys(("metric", "teacher", "alone", "distilled", "verdict", "seeds", "metrics", "bytes")),
        }
        if (run / "evaluation.json").exists():
            evaluation = read_json(run / "evaluation.json")
            metric = evaluation["headline_metric"]
            row["metric"] = metric
            for name, scores in evaluation["models"].items():
                row[name] = scores["metrics"][metric]
            row["verdict"] = evaluation["verdict"]["helped"]
            row["seeds"] = len(evaluation["seeds"])
            row["metrics"] = {name: scores["metrics"] for name, scores in evaluation["models"].items()}
            row["bytes"] = evaluation["models"]["distilled"]["bytes"]
        rows.append(row)
    return sorted(rows, key=lambda row: row["created"] or "", reverse=True)


def _status(state: dict[str, Any]) -> str:
    statuses = {entry["status"] for entry in state["stages"].values()}
    if state.get("finished"):
        return "finished"
    return "failed" if "failed" in statuses else "unfinished"
