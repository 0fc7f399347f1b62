"""history.jsonl: one line per epoch, cut back to the checkpoint when a training goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.errors import TrainingError
from potstill.core.files import disk_errors


def append(path: Path, row: Mapping[str, Any]) -> int:
    """Add one line, on disk when this returns; return the file's length."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(_json(row)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


def cut(path: Path, length: int) -> None:
    """Drop the lines that were written after the checkpoint; they will be written again."""
    if path.exists():
        with disk_errors(path):
            os.truncate(path, length)


def check(path: Path, length: int) -> None:
    """Refuse a history that is shorter than the checkpoint knows it."""
    size = path.stat().st_size if path.exists() else 0
    if size < length:
        raise TrainingError(
            f"{path} has {size} bytes, but the checkpoint beside it was written when it had {length}. "
            f"Restore the file, or delete {path.parent / 'checkpoint'} to train from the start."
        )


def _json(value: Any) -> Any:
    """Return JSON data without NaN and infinities, which JSON does not have: they become null."""
    if isinstance(value, Mapping):
        return {name: _json(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a line of history as flat numbers for trackers; ``parts`` of one become ``parts/<term>``."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{part}": float(number) for part, number in value.items()}
        elif name != "step":
            flat[name] = float(value)
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a finished training."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def still_rises(
    scores: Sequence[float | None], *, higher_is_better: bool = True, perfect: float = 1.0, samples: int | None = None
) -> bool:
    """Return whether a training ended too early: its last epoch is its best, and clearly better than a quarter before.

    Clearly is a twentieth of what there is left to gain, and one standard error for a share of samples.

    Args:
        scores: the validation metric of each epoch; None where it was not finite.
        higher_is_better: which way the metric is good.
        perfect: the best value there is.
        samples: validation samples that a share is of; None for a metric of another kind.

    """
    quarter = max(1, len(scores) // 4)
    known = [score for score in scores if score is not None]
    if len(known) < max(2, len(scores)) or len(scores) < 2 * quarter:
        return False
    sign = 1.0 if higher_is_better else -1.0
    last = known[-1]
    if sign * last < max(sign * score for score in known):
        return False
    before = sum(known[-2 * quarter : -quarter]) / quarter
    noise = math.sqrt(max(0.0, last * (1.0 - last)) / samples) if samples else 0.0
    return sign * (last - before) > max(noise, abs(perfect - last) / 20)
