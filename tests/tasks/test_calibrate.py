"""One temperature: the right one, kept only where it helps, the same in evaluation, torch and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from potstill.core.errors import UsageError
from potstill.evaluation import Size, calibrate, evaluate
from potstill.export import OnnxModel, export_onnx, load_student, quantize, save_student
from potstill.models import Preprocessor, build
from potstill.tasks import metrics
from potstill.tasks.calibrate import fit_temperature


def answers(count: int, classes: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are honest once they are divided by a temperature, and classes drawn from them."""
    generator = np.random.default_rng(seed)
    honest = 2 * generator.normal(size=(count, classes))
    targets = (softmax(honest, axis=1).cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    return honest * temperature, targets.clip(0, classes - 1)


@pytest.mark.parametrize(("count", "classes", "temperature"), [(4000, 10, 3.0), (4000, 2, 0.4), (3000, 100, 1.0)])
def test_the_temperature_is_the_one_with_the_smallest_log_loss(count: int, classes: int, temperature: float) -> None:
    logits, targets = answers(count, classes, temperature)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(count), targets].mean())

    best = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    # The one further example that counts as wrong moves it by about 1 / n.
    assert fit_temperature(logits, targets) == pytest.approx(best, rel=20 / count)
    assert best == pytest.approx(temperature, rel=0.1)
    assert fit_temperature(logits + 1e4, targets) == pytest.approx(fit_temperature(logits, targets), rel=1e-6)


def test_it_is_kept_where_it_lowers_the_log_loss_of_examples_it_was_not_fitted_on() -> None:
    logits, targets = answers(500, 5, 3.0)
    found = calibrate(logits, targets)
    assert found.temperature == found.fitted == pytest.approx(3.0, rel=0.15)
    assert found.log_loss_calibrated < found.log_loss - 0.3
    honest, targets = answers(200, 5, 1.0, seed=3)
    assert calibrate(honest / fit_temperature(honest, targets), targets).temperature == 1.0
    # Nothing is fitted to a handful, and where every answer is right no confidence becomes certainty.
    assert calibrate(logits[:10], np.arange(10) % 5).temperature == 1.0
    right = 5.0 * np.eye(3)[np.arange(60) % 3]
    assert calibrate(right, np.arange(60) % 3).temperature > 0.5
    masked = np.where(right > 0, 5.0, -np.inf)
    masked[:, 0] = 1.0
    assert np.isfinite(fit_temperature(masked, np.zeros(60, dtype=np.int64)))


def test_evaluation_measures_log_loss_and_calibration_error_of_the_divided_logits() -> None:
    logits, targets = answers(400, 4, 2.5)
    given: dict[str, Any] = {
        "task": "classification",
        "targets": targets,
        "teacher": None,
        "alone": {0: logits},
        "distilled": {0: logits[:, ::-1]},
        "sizes": dict.fromkeys(("alone", "distilled"), Size(1, 1, 1)),
    }
    found = evaluate(**given, temperatures={"alone": [2.5], "distilled": [1.0]})
    scores = found.models["alone"].metrics
    by_hand = -log_softmax(logits / 2.5, axis=1)[np.arange(400), targets].mean()
    assert scores["nll_calibrated"] == pytest.approx(by_hand)
    assert scores["ece_calibrated"] < 0.1 < scores["ece"]
    low, high = found.models["alone"].intervals["nll_calibrated"]
    assert low < by_hand < high
    other = found.models["distilled"].metrics
    assert (other["nll_calibrated"], other["ece_calibrated"]) == (pytest.approx(other["nll"]), other["ece"])
    assert "nll_calibrated" in found.differences["distilled-alone"]
    places = list(scores)  # what is compared stands side by side
    assert places[places.index("nll") + 1] == "nll_calibrated"
    assert places[places.index("ece") + 1] == "ece_calibrated"
    assert "nll_calibrated" not in evaluate(**given).models["alone"].metrics


def test_the_verdict_tells_the_temperature_of_the_exported_student() -> None:
    logits, targets = answers(400, 4, 2.5)
    given: dict[str, Any] = {
        "task": "classification",
        "targets": targets,
        "teacher": None,
        "alone": {0: logits, 7: logits},
        "distilled": {0: logits, 7: logits / 2.0},
        "sizes": dict.fromkeys(("alone", "distilled"), Size(1, 1, 1)),
        "temperatures": {"alone": [2.5, 2.5], "distilled": [2.5, 1.0]},
    }

    def said(seed: int) -> str:
        return next(text for text in evaluate(**given, shown_seed=seed).verdict.sentences if "exported" in text)

    confident, honest, own = (metrics.ece(logits / by, targets) for by in (1.0, 2.5, 2.0))
    assert "seed 0" in said(0)
    assert said(0).endswith(
        f"temperature 2.5, fitted on validation: calibration error {honest:.3f}, without it {confident:.3f}."
    )
    assert "seed 7" in said(7)
    assert said(7).endswith(f"no temperature lowered log loss on validation. Their calibration error is {own:.3f}.")
    assert not any("exported" in text for text in evaluate(**given).verdict.sentences)


def test_student_and_files_answer_logits_and_the_same_calibrated_probabilities(tmp_path: Path) -> None:
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    args = {"num_classes": 3, "in_features": 6, "hidden": [8]}
    model = build("mlp", args).eval()
    given: dict[str, Any] = {"preprocess": Preprocessor(), "task": "classification", "temperature": 0.25}
    save_student(model, tmp_path, shape=(6,), dtype="float32", model_name="mlp", args=args, **given)
    student = load_student(tmp_path)
    exact = export_onnx(model, example_inputs=inputs[:2], path=tmp_path / "student.onnx", **given)
    int8 = quantize(exact, tmp_path / "int8.onnx", [inputs.numpy()])
    with torch.no_grad():
        logits = model(inputs).numpy()
        expected = softmax(logits.astype(np.float64) / 0.25, axis=1)
        np.testing.assert_allclose(student(inputs).numpy(), logits, atol=1e-6)
        np.testing.assert_allclose(student.probabilities(inputs).numpy(), expected, atol=1e-6)
    for file in (exact, int8):
        first, second = onnxruntime.InferenceSession(str(file)).run(None, {"input": inputs.numpy()})
        np.testing.assert_allclose(second, softmax(first.astype(np.float64) / 0.25, axis=1), atol=1e-6)
        np.testing.assert_allclose(OnnxModel(file).probabilities(inputs), second, atol=1e-6)
        assert OnnxModel(file).metadata["temperature"] == "0.25"
    np.testing.assert_allclose(OnnxModel(exact).probabilities(inputs), expected, atol=1e-5)
    save_student(model, tmp_path, shape=(6,), model_name="mlp", args=args, preprocess=Preprocessor(), task="regression")
    with pytest.raises(UsageError, match="answers with values, not with classes"):
        load_student(tmp_path).probabilities(inputs)
