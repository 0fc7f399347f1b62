"""Comparing a file with its model: the numbers, what is refused, what is only remarked, and which file to deploy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potstill.core.errors import UsageError
from potstill.export import Loss, OnnxModel, parity, recommended
from potstill.recipe.schema import Export


def test_numbers_by_hand() -> None:
    model = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    file = np.array([[1.5, 0.0], [0.0, 2.0], [2.0, 2.5], [0.0, 2.0]])
    found = parity(model, file, np.array([0, 1, 0, 0]), "classification", exact=True, limits=Export(max_difference=3.0))
    assert found.max_abs_difference == 2.5
    assert found.relative_difference == 2.5  # the model's outputs have standard deviation 1
    assert found.agreement == 0.75
    assert found.accuracy_torch == 0.75
    assert found.accuracy_file == 0.5
    assert found.ok
    assert found.reasons == ()
    assert found.numbers()["agreement"] == 0.75


def test_regression_by_hand() -> None:
    model = np.array([[1.0, 100.0], [3.0, 300.0]])
    file = np.array([[1.0, 100.0], [3.0, 200.0]])
    found = parity(
        model, file, model, "regression", exact=False, limits=Export(min_agreement=0.7, max_accuracy_drop=0.3)
    )
    assert found.max_abs_difference == 100.0
    assert found.relative_difference == 1.0  # of the second column's standard deviation, 100
    assert found.agreement == pytest.approx((1 + 1 - 10000 / 20000) / 2)
    assert found.accuracy_torch == 1.0
    assert found.ok
    flat = parity(model[:, :1], file[:, :1], model[:, 0], "regression", exact=True)
    assert flat.accuracy_file == 1.0


@pytest.mark.parametrize(
    ("exact", "limits", "reasons"),
    [
        (True, {"max_difference": 0.1}, ["up to 2.5 of their spread, more than 0.1"]),
        (True, {"max_difference": 2.6, "min_agreement": 0.99, "max_accuracy_drop": 0.0}, []),
        (False, {"max_difference": 0.1, "max_accuracy_drop": 0.3}, []),
        (False, {"min_agreement": 0.8, "max_accuracy_drop": 0.3}, ["agreement with torch is 0.7500"]),
    ],
)
def test_limits(exact: bool, limits: dict[str, Any], reasons: list[str]) -> None:
    model = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    file = np.array([[1.5, 0.0], [0.0, 2.0], [2.0, 2.5], [0.0, 2.0]])
    found = parity(model, file, np.array([0, 1, 0, 0]), "classification", exact=exact, limits=Export(**limits))
    assert found.ok is (not reasons)
    assert len(found.reasons) == len(reasons)
    for reason, expected in zip(found.reasons, reasons, strict=True):
        assert expected in reason


def answers(targets: np.ndarray, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a model and its file say of two classes: the file loses some right answers and wins others."""
    model, file = np.eye(2)[targets], np.eye(2)[targets]
    file[:lost] = file[:lost, ::-1]
    model[lost : lost + won] = model[lost : lost + won, ::-1]
    return model, file


def test_a_loss_of_score_refuses_only_where_it_is_certain() -> None:
    targets = np.arange(100) % 2
    # 3 of 100 answers lost: (0.5 + 3 - 0.5)/102 = 0.0294, half-width 1.96 * sqrt(4 - 9/102)/102 = 0.0380.
    unsure = parity(*answers(targets, 3, 0), targets, "classification", exact=False)
    assert unsure.drop == pytest.approx((3 / 102 - 0.0380, 3 / 102 + 0.0380), abs=1e-4)
    assert unsure.ok
    assert "its accuracy is 0.9700 where torch has 1.0000, a loss of 0.0300 (95 % interval -0.0086" in unsure.remarks[0]
    assert "100 samples cannot tell it from none" in unsure.remarks[0]
    certain = parity(*answers(targets, 10, 0), targets, "classification", exact=False)
    assert not certain.ok
    assert "a loss of 0.1000" in certain.reasons[0]
    # Many other answers and no loss: agreement 0.6, and nothing to say.
    moved = parity(*answers(targets, 20, 20), targets, "classification", exact=False)
    assert (moved.agreement, moved.ok, moved.remarks) == (0.6, True, ())
    # The same gates on values: R2 falls from 1 to 0.75, on 4 values and on 400.
    values = np.tile([[0.0], [1.0], [2.0], [3.0]], (100, 1))
    spoilt = values + np.where(np.arange(400) % 4 == 1, 1.118, 0.0)[:, None]
    few = parity(values[:4], spoilt[:4], values[:4, 0], "regression", exact=False)
    many = parity(values, spoilt, values[:, 0], "regression", exact=False)
    assert (few.ok, len(few.remarks), many.ok) == (True, 1, False)
    assert many.accuracy_torch - many.accuracy_file == pytest.approx(0.25, abs=1e-3)
    assert sum(many.drop) / 2 == pytest.approx(0.25, abs=1e-3)


def test_the_score_that_is_judged_can_be_another_one() -> None:
    targets = np.arange(100) % 2
    auc = Loss("AUC", 0.95, 0.90, 0.03, 0.07)
    kept = parity(*answers(targets, 0, 0), targets, "classification", exact=False, loss=auc)
    assert kept.reasons == (
        "its AUC is 0.9000 where torch has 0.9500, a loss of 0.0500 (95 % interval 0.0300 to 0.0700), more than 0.02",
    )
    lost = parity(*answers(targets, 10, 0), targets, "classification", exact=False, loss=replace(auc, file=0.94))
    assert (lost.ok, lost.accuracy_file) == (True, 0.9)


def file(name: str, size: int, took: float | None, *, ok: bool = True) -> dict[str, Any]:
    latency = None if took is None else {"1": {"p50": took}}
    return {"file": name, "format": name, "bytes": size, "ok": ok, "latency_ms": latency}


def test_the_recommended_file_is_small_but_not_slower() -> None:
    assert recommended([file("onnx", 400, 1.0), file("onnx-int8", 100, 0.9)]) == "onnx-int8"
    slow = [file("onnx", 400, 1.0), file("onnx-int8", 100, 1.1)]
    assert recommended(slow) == "onnx"
    assert recommended(slow, megabytes=2e-4) == "onnx-int8"
    assert recommended(slow, megabytes=2e-4, milliseconds=1.05) == "onnx"
    assert recommended([file("onnx", 400, None), file("onnx-int8", 100, None)]) == "onnx-int8"
    assert recommended([file("onnx", 400, 1.0, ok=False), file("onnx-int8", 100, 2.0)]) == "onnx-int8"
    assert recommended([file("onnx", 400, 1.0, ok=False)]) is None


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


def test_real_files_pass_and_a_limit_without_rounding_refuses(digits: Any, curve: Any) -> None:
    for given, task in ((digits, "classification"), (curve, "regression")):
        for path, exact in ((given.exact, True), (given.int8, False)):
            found = parity(given.outputs, OnnxModel(path)(given.test), given.targets, task, exact=exact)
            assert found.ok, (task, path.name, found)
            assert found.remarks == ()
        outputs = OnnxModel(given.int8)(given.test)
        assert not parity(
            given.outputs, outputs, given.targets, task, exact=True, limits=Export(max_difference=1e-3)
        ).ok
