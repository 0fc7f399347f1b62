"""Measuring models: metrics, intervals, latency, and a verdict in words."""

from __future__ import annotations

from potstill.evaluation.calibrate import Calibration, calibrate
from potstill.evaluation.evaluate import EvaluationResult, ModelScores, Size, evaluate, with_limits
from potstill.evaluation.latency import latency
from potstill.evaluation.predict import predict
from potstill.evaluation.verdict import Difference, Limit, Verdict

__all__ = [
    "Calibration",
    "Difference",
    "EvaluationResult",
    "Limit",
    "ModelScores",
    "Size",
    "Verdict",
    "calibrate",
    "evaluate",
    "latency",
    "predict",
    "with_limits",
]
