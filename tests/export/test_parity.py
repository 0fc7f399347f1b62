"""Comparing a file with its model: the numbers, what is refused, and that a refused file is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.core.errors import ParityError, UsageError
from potstill.export import OnnxModel, parity, refuse_unlike


def test_numbers_by_hand() -> None:
    model = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    file = np.array([[1.5, 0.0], [0.0, 2.0], [2.0, 2.5], [0.0, 2.0]])
    found = parity(model, file, np.array([0, 1, 0, 0]), "classification", exact=True, max_difference=3.0)
    assert found.max_abs_difference == 2.5
    assert found.relative_difference == 2.5  # the model's outputs have standard deviation 1
    assert found.agreement == 0.75
    assert found.accuracy_torch == 0.75
    assert found.accuracy_file == 0.5
    assert found.ok
    assert found.reasons == ()
    assert found.to_json()["agreement"] == 0.75


def test_regression_by_hand() -> None:
    model = np.array([[1.0, 100.0], [3.0, 300.0]])
    file = np.array([[1.0, 100.0], [3.0, 200.0]])
    found = parity(model, file, model, "regression", exact=False, min_agreement=0.7, max_accuracy_drop=0.3)
    assert found.max_abs_difference == 100.0
    assert found.relative_difference == 1.0  # of the second column's standard deviation, 100
    assert found.agreement == pytest.approx((1 + 1 - 10000 / 20000) / 2)
    assert found.accuracy_torch == 1.0
    assert found.ok
    flat = parity(model[:, :1], file[:, :1], model[:, 0], "regression", exact=True)
    assert flat.accuracy_file == 1.0


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ({"exact": True, "max_difference": 0.1}, ["up to 2.5 of their spread, more than 0.1"]),
        ({"exact": True, "max_difference": 2.6, "min_agreement": 0.99, "max_accuracy_drop": 0.0}, []),
        ({"exact": False, "max_difference": 0.1, "min_agreement": 0.7, "max_accuracy_drop": 0.3}, []),
        ({"exact": False, "min_agreement": 0.8, "max_accuracy_drop": 0.3}, ["agreement with torch is 0.7500"]),
        (
            {"exact": False, "min_agreement": 0.8, "max_accuracy_drop": 0.02},
            ["agreement with torch", "accuracy is 0.5000 where torch has 0.7500, a loss of 0.2500, more than 0.02"],
        ),
    ],
)
def test_limits(limits: dict[str, Any], reasons: list[str]) -> None:
    model = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    file = np.array([[1.5, 0.0], [0.0, 2.0], [2.0, 2.5], [0.0, 2.0]])
    found = parity(model, file, np.array([0, 1, 0, 0]), "classification", **limits)
    assert found.ok is (not reasons)
    assert len(found.reasons) == len(reasons)
    for reason, expected in zip(found.reasons, reasons, strict=True):
        assert expected in reason


def test_outputs_that_are_not_numbers_are_refused() -> None:
    model = np.zeros((2, 2)) + np.array([0.0, 1.0])
    file = model.copy()
    file[0, 0] = np.nan
    found = parity(model, file, np.array([1, 1]), "classification", exact=False)
    assert not found.ok
    assert "1 of the file's 4 outputs are not finite" in found.reasons[0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 2\) from the model, \(2, 3\) from the file"):
        parity(np.zeros((2, 2)), np.zeros((2, 3)), np.zeros(2), "classification", exact=True)


def test_real_files_pass_and_a_spoilt_one_is_deleted_with_the_numbers(digits: Any, curve: Any, tmp_path: Path) -> None:
    for given, task in ((digits, "classification"), (curve, "regression")):
        for path, exact in ((given.exact, True), (given.int8, False)):
            found = parity(given.outputs, OnnxModel(path)(given.test), given.targets, task, exact=exact)
            assert found.ok, (task, path.name, found)
            refuse_unlike(path, found)
            assert path.exists()
        strict = parity(
            given.outputs, OnnxModel(given.int8)(given.test), given.targets, task, exact=True, max_difference=1e-3
        )
        copy = tmp_path / "student-int8.onnx"
        copy.write_bytes(given.int8.read_bytes())
        with pytest.raises(ParityError, match=r"student-int8\.onnx was refused and deleted: its outputs .*Largest"):
            refuse_unlike(copy, strict)
        assert not copy.exists()
