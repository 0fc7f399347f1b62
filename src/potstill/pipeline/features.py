"""Students on a teacher's features: the samples are replaced by what one of its layers says of them, once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.files import atomic_path, write_json
from potstill.core.progress import progress
from potstill.data import Data
from potstill.data.samples import Ints, Rows, Samples, make_samples
from potstill.models import tap
from potstill.pipeline.build import Job
from potstill.pipeline.folder import read_or_none

FOLDER = "features"
_MARKER = "features.json"


def compute(whole: Job, out: Path, layer: str, model: nn.Module) -> None:
    """Write the features of every split into the run folder."""
    model = model.eval().to(whole.device)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    size = whole.recipe.evaluation.batch_size
    for name, samples in whole.data.splits.items():
        found = []
        with progress(f"features of {name}", len(samples), unit="samples") as advance:
            for start in range(0, len(samples), size):
                rows = np.arange(start, min(start + size, len(samples)))
                found.append(_features(whole, model, layer, samples, rows))
                advance(len(rows))
        with atomic_path(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, torch.cat(found).numpy(), allow_pickle=False)
    write_json(folder / _MARKER, {"key": _key(whole, layer, model)})


def features_of(whole: Job, out: Path, layer: str, model: nn.Module) -> Data:
    """Return the data with features as inputs; those that are not in the run folder are made as they are asked for."""
    key = _key(whole, layer, model)
    return _on_disk(whole.data, out / FOLDER, key) or _as_asked_for(whole, model.eval(), layer, key)


def is_computed(whole: Job, out: Path, layer: str, model: nn.Module) -> bool:
    """Return whether the features in the run folder are those of this teacher."""
    return _on_disk(whole.data, out / FOLDER, _key(whole, layer, model)) is not None


def _key(whole: Job, layer: str, model: nn.Module) -> str:
    """Return a hash of everything that the features depend on."""
    preprocess = whole.recipe.teacher and whole.recipe.teacher.preprocess.model_dump()
    return fingerprint.of_json([layer, fingerprint.of_weights(model), str(model), preprocess, whole.data.fingerprint])


def _features(whole: Job, model: nn.Module, layer: str, samples: Samples, rows: Ints) -> Tensor:
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    inputs = whole.teacher_at(0).preprocess.to(device)(samples.fetch(np.asarray(rows)).to(device))
    with torch.no_grad(), tap(model, {"features": layer}) as tapped:
        model(inputs)
        return tapped["features"].detach().float().cpu().clone()


def _as_asked_for(whole: Job, model: nn.Module, layer: str, key: str) -> Data:
    """Return the data with features that the teacher computes whenever they are fetched."""
    splits = {
        name: replace(
            samples,
            fetch=partial(_features, whole, model, layer, samples),
            fingerprint=fingerprint.of_json([samples.fingerprint, key]),
            digests=None,
        )
        for name, samples in whole.data.splits.items()
    }
    return _with_features(whole.data, splits)


def _on_disk(data: Data, folder: Path, key: str) -> Data | None:
    """Return the data with the features in a folder, or None where there are none with this key."""
    marker = folder / _MARKER
    if (read_or_none(marker) or {}).get("key") != key:
        return None
    found: dict[str, Samples] = {}
    for name, samples in data.splits.items():
        inputs = torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False))
        found[name] = make_samples(
            samples.ids, samples.targets, Rows(inputs), names=samples.names, rows_of=samples.rows_of
        )
    return _with_features(data, found)


def _with_features(data: Data, splits: dict[str, Samples]) -> Data:
    shape = tuple(splits["train"].fetch(np.arange(1)).shape[1:])
    changed: dict[str, Any] = {**splits, "shape": shape, "kind": "image" if len(shape) == 3 else "vector"}
    return replace(data, **changed, columns=())
