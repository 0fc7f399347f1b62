"""Whether an exported file answers like the model it came from, on the test split.

Shape legend: n examples, c classes or regression columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import ParityError, UsageError
from potstill.export.student import Task

Array = np.ndarray[Any, Any]


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
        ok: whether all limits are met.
        reasons: what is not met, with numbers.

    """

    max_abs_difference: float
    relative_difference: float
    agreement: float
    accuracy_torch: float
    accuracy_file: float
    ok: bool
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON data, the core of an entry of ``parity.json``."""
        return {
            "max_abs_difference": self.max_abs_difference,
            "relative_difference": self.relative_difference,
            "agreement": self.agreement,
            "accuracy_torch": self.accuracy_torch,
            "accuracy_file": self.accuracy_file,
            "ok": self.ok,
            "reasons": list(self.reasons),
        }


def parity(
    torch_outputs: Array,
    file_outputs: Array,
    targets: Array,
    task: Task,
    *,
    exact: bool,
    max_difference: float = 1e-2,
    min_agreement: float = 0.97,
    max_accuracy_drop: float = 0.02,
) -> Parity:
    """Compare a file's outputs with those of the model it came from.

    Args:
        torch_outputs: (n, c) the model's outputs.
        file_outputs: (n, c) the file's outputs for the same inputs.
        targets: (n,) class numbers, or (n,) or (n, c) values.
        task: classification or regression.
        exact: whether the file computes in float32 too, so that its outputs must be equal up to rounding
            (``max_difference`` counts); otherwise its answers must be (``min_agreement``, ``max_accuracy_drop``).
        max_difference: largest ``relative_difference``.
        min_agreement: least ``agreement``.
        max_accuracy_drop: largest loss of accuracy, or of R2.

    Raises:
        UsageError: arrays of different shapes.

    """
    model, file = np.asarray(torch_outputs, dtype=np.float64), np.asarray(file_outputs, dtype=np.float64)
    if model.ndim != 2 or model.shape != file.shape or len(model) == 0 or len(targets) != len(model):
        raise UsageError(
            f"Parity needs outputs of equal shape (n, c) and n targets; got {model.shape} from the model, {file.shape} "
            f"from the file and {len(targets)} targets."
        )
    bad = int(np.size(file) - np.isfinite(file).sum())
    if bad:
        reason = f"{bad} of the file's {np.size(file)} outputs are not finite"
        accuracy = _score(model, targets, task)
        return Parity(float("inf"), float("inf"), 0.0, accuracy, 0.0, False, (reason,))
    difference = np.abs(model - file)
    spread = model.std(axis=0) if task == "regression" else np.full(model.shape[1], model.std())
    # Outputs without any spread are compared in their own unit.
    relative = float((difference / np.where(spread > 0, spread, 1.0)).max())
    if task == "classification":
        agreement = float((model.argmax(axis=1) == file.argmax(axis=1)).mean())
    else:
        agreement = _r2(file, model)
    scores = _score(model, targets, task), _score(file, targets, task)
    drop, word = scores[0] - scores[1], "accuracy" if task == "classification" else "R2"
    checks = [
        (
            exact and not relative <= max_difference,
            f"its outputs differ from torch's by up to {relative:.3g} of their spread, more than {max_difference:g}",
        ),
        (
            not exact and not agreement >= min_agreement,
            f"its agreement with torch is {agreement:.4f}, less than {min_agreement:g}",
        ),
        (
            not exact and not drop <= max_accuracy_drop,
            f"its {word} is {scores[1]:.4f} where torch has {scores[0]:.4f}, a loss of {drop:.4f}, more than "
            f"{max_accuracy_drop:g}",
        ),
    ]
    reasons = tuple(reason for failed, reason in checks if failed)
    return Parity(float(difference.max()), relative, agreement, *scores, not reasons, reasons)


def refuse_unlike(path: Path, found: Parity) -> None:
    """Delete an exported file that does not answer like its model.

    Raises:
        ParityError: the file was refused; says why, with the numbers.

    """
    if found.ok:
        return
    Path(path).unlink(missing_ok=True)
    raise ParityError(
        f"{Path(path).name} was refused and deleted: {'; '.join(found.reasons)}. (Largest difference of an output "
        f"{found.max_abs_difference:.3g}, agreement {found.agreement:.4f}, score {found.accuracy_torch:.4f} in torch "
        f"and {found.accuracy_file:.4f} in the file.) Give more or more typical calibration samples "
        "(export.calibration_samples), loosen the limits under export, or remove the format from export.formats."
    )


def _score(outputs: Array, targets: Array, task: Task) -> float:
    if task == "classification":
        return float((outputs.argmax(axis=1) == np.asarray(targets)).mean())
    return _r2(outputs, np.asarray(targets, dtype=np.float64).reshape(outputs.shape))


def _r2(values: Array, targets: Array) -> float:
    left = np.square(values - targets).sum(axis=0)
    spread = np.square(targets - targets.mean(axis=0)).sum(axis=0)
    constant = spread <= 0
    return float(np.where(constant, left <= 0, 1.0 - left / np.where(constant, 1.0, spread)).mean())
