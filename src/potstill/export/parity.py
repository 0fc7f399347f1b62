"""Whether an exported file answers like the model it came from.

Shape legend: n examples, c classes or regression columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.recipe.schema import Export
from potstill.tasks import TaskName, headline, task_of
from potstill.tasks.kinds import word

Array = np.ndarray[Any, Any]
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Loss:
    """What a file loses of a score of its model.

    Attributes:
        metric: the score, in words.
        torch: the model's.
        file: the file's.
        low: lower end of the 95 % interval of torch - file, paired over the examples.
        high: upper end.

    """

    metric: str
    torch: float
    file: float
    low: float
    high: float


@dataclass(frozen=True)
class Parity:
    """How alike a file and its model answer.

    Attributes:
        max_abs_difference: largest absolute difference of an output.
        relative_difference: largest difference over the standard deviation of the model's outputs (all logits
            together, each regression column by itself).
        agreement: share of equal predictions; for regression the share of the variance of the model's values that the
            file reproduces.
        accuracy_torch: the model's accuracy, or R2.
        accuracy_file: the file's accuracy, or R2.
        drop: 95 % interval of what the file loses of it, (low, high), paired over the examples.
        ok: whether all limits are met.
        reasons: what is not met, with numbers.
        remarks: what is worth knowing and refuses nothing.

    """

    max_abs_difference: float
    relative_difference: float
    agreement: float
    accuracy_torch: float
    accuracy_file: float
    drop: tuple[float, float]
    ok: bool
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """Return what was measured as JSON data, the core of an entry of ``parity.json``."""
        return {
            "max_abs_difference": self.max_abs_difference,
            "relative_difference": self.relative_difference,
            "agreement": self.agreement,
            "accuracy_torch": self.accuracy_torch,
            "accuracy_file": self.accuracy_file,
            "accuracy_drop": {
                "value": self.accuracy_torch - self.accuracy_file,
                "low": self.drop[0],
                "high": self.drop[1],
            },
        }


def parity(
    torch_outputs: Array,
    file_outputs: Array,
    targets: Array,
    task: TaskName,
    *,
    exact: bool,
    limits: Export | None = None,
    loss: Loss | None = None,
) -> Parity:
    """Compare a file's outputs with those of the model it came from.

    A file that computes in float32 has the same outputs up to rounding, or something is wrong with it. One that
    computes in int8 has others, and what counts is its score: it is refused when it loses more than allowed and the
    interval of the loss excludes 0. A loss that the examples cannot tell from none is a remark.

    Args:
        torch_outputs: (n, c) the model's outputs.
        file_outputs: (n, c) the file's outputs for the same inputs.
        targets: (n,) class numbers, or (n,) or (n, c) values.
        task: classification or regression.
        exact: whether the file computes in float32 too: ``max_difference`` counts; otherwise the others.
        limits: of a recipe's export section; the defaults when absent.
        loss: of the score that an int8 file is judged by; of accuracy or R2 when absent.

    Raises:
        UsageError: arrays of different shapes.

    """
    model, file = np.asarray(torch_outputs, dtype=np.float64), np.asarray(file_outputs, dtype=np.float64)
    if model.ndim != 2 or model.shape != file.shape or len(model) == 0 or len(targets) != len(model):
        raise UsageError(
            f"Parity needs outputs of equal shape (n, c) and n targets; got {model.shape} from the model, {file.shape} "
            f"from the file and {len(targets)} targets."
        )
    of, bad = task_of(task).scores, int(np.size(file) - np.isfinite(file).sum())
    if bad:
        reason = f"{bad} of the file's {np.size(file)} outputs are not finite"
        score = of.score(model, targets)
        return Parity(float("inf"), float("inf"), 0.0, score, 0.0, (score, score), False, (reason,))
    difference = np.abs(model - file)
    spread = of.unit(model)
    # Outputs without any spread are compared in their own unit.
    relative = float((difference / np.where(spread > 0, spread, 1.0)).max())
    agreement = of.same(model, file)
    limits = limits or Export()
    scores = of.score(model, targets), of.score(file, targets)
    mean, error = of.loss(model, file, targets)
    drop = mean - _TWO_SIDED * error, mean + _TWO_SIDED * error
    judged = loss or Loss(word(headline(task)), *scores, *drop)
    lost = (
        f"its {judged.metric} is {judged.file:.4f} where torch has {judged.torch:.4f}, a loss of "
        f"{judged.torch - judged.file:.4f} (95 % interval {judged.low:.4f} to {judged.high:.4f}), more than "
        f"{limits.max_accuracy_drop:g}"
    )
    too_much = not exact and not judged.torch - judged.file <= limits.max_accuracy_drop
    certain = not judged.low <= 0
    checks = [
        (
            exact and not relative <= limits.max_difference,
            f"its outputs differ from torch's by up to {relative:.3g} of their spread, more than "
            f"{limits.max_difference:g}",
        ),
        (
            not exact and limits.min_agreement is not None and not agreement >= limits.min_agreement,
            f"its agreement with torch is {agreement:.4f}, less than {limits.min_agreement}",
        ),
        (too_much and certain, lost),
    ]
    reasons = tuple(reason for failed, reason in checks if failed)
    remarks = (f"{lost}; {len(model):,} samples cannot tell it from none",) if too_much and not certain else ()
    return Parity(float(difference.max()), relative, agreement, *scores, drop, not reasons, reasons, remarks)


def recommended(
    files: Sequence[Mapping[str, Any]], *, megabytes: float | None = None, milliseconds: float | None = None
) -> str | None:
    """Return the name of the file to deploy: the one that meets most limits, then the smallest.

    An int8 file that was measured and is slower than the float32 one is only chosen where it meets more limits.

    Args:
        files: entries of ``parity.json``.
        megabytes: the budget's largest file.
        milliseconds: the budget's median latency of one sample.

    """
    accepted = [entry for entry in files if entry["ok"]]
    exact = next((_milliseconds(entry) for entry in accepted if entry["format"] == "onnx"), None)

    def merit(entry: Mapping[str, Any]) -> tuple[int, bool, int]:
        took = _milliseconds(entry)
        met = (
            megabytes is None or entry["bytes"] / 1e6 <= megabytes,
            milliseconds is None or (took is not None and took <= milliseconds),
        )
        return sum(met), took is None or exact is None or took <= exact, -entry["bytes"]

    return max(accepted, key=merit)["file"] if accepted else None


def _milliseconds(entry: Mapping[str, Any]) -> float | None:
    took: float | None = ((entry["latency_ms"] or {}).get("1") or {}).get("p50")
    return took
