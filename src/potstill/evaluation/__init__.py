"""Measuring models: metrics, intervals, latency, and a verdict in words."""

from __future__ import annotations

from potstill.evaluation.evaluate import EvaluationResult, ModelScores, Size, evaluate, with_limits
from potstill.evaluation.latency import latency
from potstill.evaluation.predict import predict
from potstill.evaluation.verdict import Difference, Limit, Verdict
from potstill.tasks import metrics
from potstill.tasks.calibrate import Calibration, calibrate

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
    "metrics",
    "predict",
    "with_limits",
]
