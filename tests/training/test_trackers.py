"""Trackers for real: files appear, numbers are in them, and a resumed training goes on in the same run."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

import pytest

from potstill.core.errors import UsageError
from potstill.training.track import open_trackers

ROW = {"train_loss": 0.5, "validation_metric": 0.75}


def use(name: str, folder: Path, step: int) -> None:
    (tracker,) = open_trackers([name], folder, label="student", settings={"epochs": 3})
    tracker.log(step, ROW)
    tracker.close()


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use("tensorboard", tmp_path, 4)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    (event,) = events.Scalars("train_loss")
    assert (event.step, event.value) == (4, 0.5)


def test_mlflow_writes_a_database_and_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use("mlflow", tmp_path / "run", 4)
        use("mlflow", tmp_path / "run", 8)
    connection = sqlite3.connect(tmp_path / "run" / "mlflow.db")
    rows = connection.execute("select step, value from metrics where key = 'train_loss' order by step").fetchall()
    runs = connection.execute("select name, status from runs").fetchall()
    connection.close()
    assert rows == [(4, 0.5), (8, 0.5)]
    assert runs == [("student", "FINISHED")]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use("wandb", tmp_path, 4)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_unknown_tracker_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        open_trackers(["tensorbord"], tmp_path, label="x", settings={})
