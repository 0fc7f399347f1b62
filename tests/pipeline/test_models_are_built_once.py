"""A run with a finished teacher builds it once and reads its weights once, whatever asks it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from potstill.models import build, load_weights, save_weights
from potstill.pipeline import makers, run
from potstill.recipe.yaml import loads

TEXT = """
data: {train: digits}
teacher: {model: cnn, args: {width: 5}, weights: teacher.safetensors}
student: {model: cnn, args: {width: 3}}
training: {epochs: 1, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
export: {formats: []}
evaluation: {latency: false}
"""


def test_a_finished_teacher_is_built_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(build("cnn", {"in_channels": 1, "width": 5}, seed=1), tmp_path / "teacher.safetensors")
    counted: Counter[str] = Counter()

    def built(name: Any, args: Any, **how: Any) -> Any:
        counted[f"built, width {args['width']}"] += 1
        return build(name, args, **how)

    def read(model: Any, path: Path, **how: Any) -> None:
        counted[f"read {path.name}"] += 1
        load_weights(model, path, **how)

    monkeypatch.setattr(makers, "build", built)
    monkeypatch.setattr(makers, "load_weights", read)
    run(loads(TEXT), out=tmp_path / "run", base=tmp_path)
    assert counted["built, width 3"] > 0
    assert (counted["built, width 5"], counted["read teacher.safetensors"]) == (1, 1)
