"""What an evaluation found: plain frozen data that goes to ``evaluation.json`` and comes back equal.

Shape legend: n test examples, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.evaluation.verdict import Difference, Verdict
from potstill.tasks import TaskName

ONNX_RUNTIME = "ONNX Runtime"
Latency = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Size:
    """What a model costs.

    Attributes:
        parameters: number of trainable numbers; None where the model is no torch model.
        flops: operations of one forward pass of one example, or None.
        bytes: of the stored weights, or None.
        latency_ms: milliseconds a call by batch size, ``{"1": {"p50": .., "p95": .., "per_second": ..}, ...}``.
        runtime: what the time is of, such as ``"PyTorch"`` or ``"scikit-learn"``; times of two are not compared.
        onnx_latency_ms: the same of the model as an ONNX file in ONNX Runtime, where it was written as one.

    """

    parameters: int | None
    flops: int | None
    bytes: int | None
    latency_ms: Latency | None = None
    runtime: str = "PyTorch"
    onnx_latency_ms: Latency | None = None


def plain(number: float | None) -> float | None:
    """Return a number as JSON has it: an end of an interval that is infinite (one test example) becomes None."""
    return number if number is not None and math.isfinite(number) else None


def bounds(low: float | None, high: float | None) -> tuple[float, float]:
    """Return the ends of an interval that `plain` wrote."""
    return -math.inf if low is None else low, math.inf if high is None else high


def difference(value: Mapping[str, Any]) -> Difference:
    """Return the difference that was written as JSON data."""
    low, high = bounds(value["low"], value["high"])
    return Difference(value["value"], low, high, value.get("with_seeds"), value.get("with_examples"))


@dataclass(frozen=True)
class ModelScores:
    """One model's scores on the test split; a student's are averages over its seeds.

    Attributes:
        name: ``"teacher"``, ``"alone"``, ``"distilled"``, or that of a further model.
        metrics: metric name -> value.
        intervals: metric name -> 95 % interval.
        per_seed: metric name -> one value per seed (one value for the teacher).
        parameters: number of trainable numbers; None where the model is no torch model.
        flops: operations of one forward pass of one example, or None.
        bytes: of the stored weights, or None.
        latency_ms: as in `Size`.
        runtime: as in `Size`.
        onnx_latency_ms: as in `Size`.

    """

    name: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    per_seed: Mapping[str, tuple[float, ...]]
    parameters: int | None
    flops: int | None
    bytes: int | None
    latency_ms: Latency | None = None
    runtime: str = "PyTorch"
    onnx_latency_ms: Latency | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON data."""
        return {
            "name": self.name,
            "metrics": dict(self.metrics),
            "intervals": {name: [plain(low), plain(high)] for name, (low, high) in self.intervals.items()},
            "per_seed": {name: list(values) for name, values in self.per_seed.items()},
            "parameters": self.parameters,
            "flops": self.flops,
            "bytes": self.bytes,
            "latency_ms": None if self.latency_ms is None else {k: dict(v) for k, v in self.latency_ms.items()},
            "runtime": self.runtime,
            "onnx_latency_ms": (
                None if self.onnx_latency_ms is None else {k: dict(v) for k, v in self.onnx_latency_ms.items()}
            ),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ModelScores:
        """Return the scores that `to_json` wrote."""
        return ModelScores(
            name=value["name"],
            metrics=dict(value["metrics"]),
            intervals={name: bounds(low, high) for name, (low, high) in value["intervals"].items()},
            per_seed={name: tuple(values) for name, values in value["per_seed"].items()},
            parameters=value["parameters"],
            flops=value["flops"],
            bytes=value["bytes"],
            latency_ms=value["latency_ms"],
            runtime=value.get("runtime", "PyTorch"),
            onnx_latency_ms=value.get("onnx_latency_ms"),
        )


@dataclass(frozen=True)
class EvaluationResult:
    """Everything measured on the test split.

    Attributes:
        task: classification or regression.
        headline_metric: the metric the verdict is about: ``"accuracy"``, ``"r2"``, or what was asked for.
        classes: class names, empty for regression.
        num_examples: test examples.
        seeds: the students' seeds, in the order of every ``per_seed`` list.
        models: ``"teacher"``, ``"alone"``, ``"distilled"`` and further models -> scores.
        differences: ``"distilled-alone"``, ``"distilled-teacher"`` and, with further models, the teacher against the
            best of them -> metric -> difference.
        verdict: the result in words.
        reliability: model -> ``{"low", "high", "count", "confidence", "accuracy"}``, lists over bins, all seeds
            together; confidence and accuracy are None in an empty bin. Empty for regression.
        confusion: model -> c lists of c numbers, rows are true classes, averaged over seeds. Empty for regression
            and beyond 100 classes.
        disagreements: test examples on which teacher and distilled student differ most, worst first, of a
            classification only those that they answer with different classes, each
            ``{"id", "row", "name", "label", "teacher", "distilled", "teacher_confidence", "student_confidence"}``;
            ``row`` counts in the test split; label, teacher and distilled are class numbers, or lists of values with
            confidences None for regression.
        by_class: model -> column -> a number of each class or None, of the exported student's seed; empty where
            samples are of one class each.
        remarks: what to know of the numbers, such as classes without test examples; part of the verdict's sentences.
        warnings: what makes the numbers worth less; the verdict's warnings.
        split: the split the numbers are from.
        chosen_on: the split that chose the checkpoints.

    """

    task: TaskName
    headline_metric: str
    classes: tuple[str, ...]
    num_examples: int
    seeds: tuple[int, ...]
    models: Mapping[str, ModelScores]
    differences: Mapping[str, Mapping[str, Difference]]
    verdict: Verdict
    reliability: Mapping[str, Mapping[str, list[Any]]]
    confusion: Mapping[str, list[list[float]]]
    disagreements: tuple[Mapping[str, Any], ...]
    by_class: Mapping[str, Mapping[str, list[float | None]]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    split: str = "test"
    chosen_on: str = "validation"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data, the content of ``evaluation.json``."""
        return {
            "task": self.task,
            "split": self.split,
            "chosen_on": self.chosen_on,
            "headline_metric": self.headline_metric,
            "classes": list(self.classes),
            "num_examples": self.num_examples,
            "seeds": list(self.seeds),
            "verdict": self.verdict.to_json(),
            "models": {name: scores.to_json() for name, scores in self.models.items()},
            "differences": {
                pair: {name: {key: plain(number) for key, number in asdict(d).items()} for name, d in metrics.items()}
                for pair, metrics in self.differences.items()
            },
            "reliability": {name: dict(table) for name, table in self.reliability.items()},
            "confusion": {name: [list(row) for row in table] for name, table in self.confusion.items()},
            "disagreements": [dict(row) for row in self.disagreements],
            **({"by_class": {name: dict(each) for name, each in self.by_class.items()}} if self.by_class else {}),
            "remarks": list(self.remarks),
            "warnings": list(self.warnings),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EvaluationResult:
        """Return the result that `to_json` wrote."""
        return EvaluationResult(
            task=value["task"],
            split=value["split"],
            chosen_on=value["chosen_on"],
            headline_metric=value["headline_metric"],
            classes=tuple(value["classes"]),
            num_examples=value["num_examples"],
            seeds=tuple(value["seeds"]),
            verdict=Verdict.from_json(value["verdict"]),
            models={name: ModelScores.from_json(scores) for name, scores in value["models"].items()},
            differences={
                pair: {name: difference(numbers) for name, numbers in metrics.items()}
                for pair, metrics in value["differences"].items()
            },
            reliability={name: dict(table) for name, table in value["reliability"].items()},
            confusion={name: [list(row) for row in table] for name, table in value["confusion"].items()},
            disagreements=tuple(dict(row) for row in value["disagreements"]),
            by_class=dict(value.get("by_class", {})),
            remarks=tuple(value.get("remarks", ())),
            warnings=tuple(value.get("warnings", ())),
        )
