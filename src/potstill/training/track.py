"""Trackers: TensorBoard, MLflow and Weights & Biases, written to files beside the training, nothing over a network."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.files import read_json, write_json
from potstill.core.optional import require

PROJECT = "potstill"
IDENTITIES = "tracking.json"


@dataclass(frozen=True)
class Tracker:
    """``log(step, numbers)`` writes some numbers; ``close()`` ends the run."""

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def open_trackers(names: Sequence[str], folder: Path, *, label: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open trackers by name.

    Use it on the main process only. A training that is resumed goes on in the same MLflow and W&B run.

    Args:
        names: of ``tensorboard``, ``mlflow`` and ``wandb``.
        folder: the training's folder: ``tensorboard/``, ``mlflow.db`` and ``wandb/`` are made in it. W&B runs offline
            unless the environment variable WANDB_MODE says otherwise.
        label: what the run is called.
        settings: flat settings to keep with the run.

    Raises:
        UsageError: unknown name.
        PotstillError: the package is not installed; says how to install it.

    """
    for name in names:
        if name not in _OPENERS:
            raise UsageError(f"training.track: there is no tracker {name!r}.{did_you_mean(name, _OPENERS)}")
    if names:
        folder.mkdir(parents=True, exist_ok=True)
    return [_OPENERS[name](folder, label, settings) for name in names]


def _tensorboard(folder: Path, label: str, settings: Mapping[str, Any]) -> Tracker:
    require("tensorboard", feature="training.track: tensorboard", extra="track")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("settings", "\n\n".join(f"{k}: {v}" for k, v in settings.items()), 0)
    writer.add_text("label", label, 0)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _mlflow(folder: Path, label: str, settings: Mapping[str, Any]) -> Tracker:
    require("mlflow", feature="training.track: mlflow", extra="track")
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    folder = folder.resolve()
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PROJECT)
    number = (
        experiment.experiment_id
        if experiment is not None
        else client.create_experiment(PROJECT, artifact_location=(folder / "mlruns").as_uri())
    )
    run = _identity(folder, "mlflow")
    if run is None:
        run = client.create_run(number, run_name=label).info.run_id
        client.log_batch(run, params=[Param(name, str(value)) for name, value in settings.items()])
        _remember(folder, "mlflow", run)
    else:
        client.update_run(run, status="RUNNING")

    def log(step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    return Tracker(log, lambda: client.set_terminated(run))


def _wandb(folder: Path, label: str, settings: Mapping[str, Any]) -> Tracker:
    wandb = require("wandb", feature="training.track: wandb", extra="track")
    identity = _identity(folder, "wandb") or secrets.token_hex(4)
    run = wandb.init(
        project=PROJECT,
        name=label,
        id=identity,
        resume="allow",
        dir=str(folder),
        config=dict(settings),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(silent=True),
        reinit="finish_previous",
    )
    _remember(folder, "wandb", identity)
    return Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)


def _identity(folder: Path, name: str) -> str | None:
    path = folder / IDENTITIES
    return read_json(path).get(name) if path.exists() else None


def _remember(folder: Path, name: str, identity: str) -> None:
    path = folder / IDENTITIES
    write_json(path, {**(read_json(path) if path.exists() else {}), name: identity})


_OPENERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
