"""By what an int8 file is judged, and what is said of one that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from potstill.core.errors import PotstillError
from potstill.core.files import write_json
from potstill.export import export_onnx, grouped_convolutions
from potstill.models import Preprocessor
from potstill.pipeline import exporting
from potstill.pipeline.exporting import refusals, remarks
from potstill.pipeline.judging import loss_of
from potstill.recipe.schema import Recipe

LOST = "its accuracy is 0.2220 where torch has 0.5560"


class Nobody:
    """A job of which only the validation split and the student's preprocess are asked for."""

    class data:  # noqa: N801
        validation = None

    class student:  # noqa: N801
        preprocess = nn.Identity()


@pytest.mark.parametrize("grouped", [3, 0])
def test_a_refused_int8_file_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grouped: int) -> None:
    entry = {"file": "student-int8.onnx", "format": "onnx-int8", "optional": True, "ok": False, "reasons": [LOST]}
    monkeypatch.setattr(exporting, "quantize", lambda *_: None)
    monkeypatch.setattr(exporting, "grouped_convolutions", lambda _: grouped)
    monkeypatch.setattr(exporting, "_checked", lambda *_: {**entry, "remarks": []})
    monkeypatch.setattr(exporting, "predicted", lambda *_: None)
    monkeypatch.setattr(exporting, "_calibration", lambda _: ())
    nothing: Any = None
    job: Any = Nobody()
    paths = tmp_path / "student.onnx", tmp_path / "student-int8.onnx"
    found = exporting._int8(job, nn.Identity(), *paths, nothing)
    write_json(tmp_path / "export" / "parity.json", {"files": [found]})
    (told,) = refusals(tmp_path, optional=True)
    assert f"was refused: {LOST}. Deploy the float32 file, or give more" in told
    assert ("The student has 3 depthwise or grouped convolutions" in told) == bool(grouped)
    assert refusals(tmp_path, optional=False) == remarks(tmp_path) == []


def test_what_onnxruntime_cannot_quantise_is_a_refused_file_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any) -> None:
        raise PotstillError("onnxruntime could not make an int8 version")

    monkeypatch.setattr(exporting, "quantize", fails)
    monkeypatch.setattr(exporting, "_calibration", lambda _: ())
    monkeypatch.setattr(exporting, "_unmeasured", lambda *_: {"file": "student-int8.onnx", "optional": False})
    nothing: Any = None
    found = exporting._int8(nothing, nn.Identity(), tmp_path, tmp_path, nothing)
    assert (found["ok"], found["reasons"]) == (False, ["onnxruntime could not make an int8 version"])


def test_an_int8_file_is_judged_by_the_metric_of_the_recipe() -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1], [380, 20])
    good = generator.normal(size=(400, 2)) + 3.0 * np.eye(2)[targets]
    rare = np.where((targets == 1)[:, None], good[:, ::-1], good)  # the rare class is lost, 5 % of the samples
    recipe = Recipe(
        data={"train": "digits"}, teacher={"model": "mlp"}, student={"model": "mlp"}, metric="balanced_accuracy"
    )
    found = loss_of(recipe, good, rare, targets)
    assert found is not None
    assert (found.torch, found.file) == tuple(
        pytest.approx(balanced_accuracy_score(targets, each.argmax(1))) for each in (good, rare)
    )
    assert found.metric == "balanced accuracy"
    assert 0.2 < found.low < found.torch - found.file < found.high
    for metric in (None, "accuracy", "nll"):  # the task's own, and errors, which have no limit in shares
        assert loss_of(recipe.model_copy(update={"metric": metric}), good, rare, targets) is None


def test_grouped_convolutions_are_counted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()).eval()
    inputs = torch.zeros(2, 1, 8, 8)
    exact = export_onnx(model, Preprocessor(), inputs, tmp_path / "student.onnx", task="classification")
    assert grouped_convolutions(exact) == 1
