"""What a codec keeps of the truth: bytes, divergence, and the gradient that a student would get from it.

Shape legend: n items, v classes, h hidden width, k kept classes of an item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.core.random import key
from potstill.store.codecs import LEAST_PROBABILITY, Codec, Keys, Sparse

Array = np.ndarray[Any, np.dtype[np.float32]]
Tail = Literal["bucket", "spread", "renormalise"]
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Fidelity:
    """How much of a teacher's logits a codec keeps, measured on a probe set.

    Attributes:
        codec: the codec.
        bytes_per_item: mean length of a record.
        missing: mean probability of the classes that were not kept.
        kl: mean KL(full ‖ stored) in nats, with the stored rest spread evenly over the classes that were not kept.
            None for samples: one sample is no estimate of one distribution, only many are.
        kl_kept: the same over the kept classes alone, both sides renormalised: the error of the number format.
        angle: degrees between the gradients of forward KL with respect to the weight of the student's head, summed
            over the items, for the stored and for the full target. The angle of samples becomes smaller with more
            items, that of a biased codec does not. None without a student.
        norm_ratio: length of the stored target's gradient over that of the full one's.

    """

    codec: Codec
    bytes_per_item: float
    missing: float
    kl: float | None
    kl_kept: float | None
    angle: float | None = None
    norm_ratio: float | None = None


@dataclass(frozen=True)
class Kept:
    """What a codec made of some logits: logits or log-probabilities (n, v), or some of the probabilities."""

    codec: Codec
    bytes_per_item: float
    answer: Tensor | Sparse


def keep(logits: Array, codec: Codec, keys: Keys | None = None) -> Kept:
    """Encode and decode logits (n, v). ``keys`` (n,) are the randomness of codecs that sample."""
    if codec.facts.reduced is not None:
        raise UsageError(f"{codec.name} keeps hidden states: pass Kept(codec, bytes, rebuild(...)) to compare().")
    records = codec.encode(logits, key(0, np.arange(len(logits))) if keys is None else keys)
    decode = getattr(codec, "decode_sparse", codec.decode)
    return Kept(codec, records.data.size / max(1, len(logits)), decode(records, logits.shape[1:]))


def fidelity(
    logits: Array,
    codec: Codec,
    *,
    student_logits: Array | None = None,
    hidden: Array | None = None,
    keys: Keys | None = None,
    tail: Tail = "bucket",
) -> Fidelity:
    """Return how much of some logits a codec keeps; see `compare`."""
    return compare(logits, [codec], student_logits=student_logits, hidden=hidden, keys=keys, tail=tail)[0]


def compare(
    logits: Array,
    codecs: Sequence[Codec | Kept],
    *,
    student_logits: Array | None = None,
    hidden: Array | None = None,
    keys: Keys | None = None,
    tail: Tail = "bucket",
) -> list[Fidelity]:
    """Return how much of some logits each codec keeps.

    When to use it: on a probe set of some hundred items or more, before or after recording; an angle is as sure as the
    number of items is large.

    With p the teacher's probabilities, q the student's, h the student's hidden states and t the stored target, the
    gradients compared are Σ (q - p) hᵀ and Σ (q - t) hᵀ, both (v, h), block by block in float64.

    Args:
        logits: (n, v) the teacher's.
        codecs: what is compared; `Kept` where the caller has encoded and decoded already.
        student_logits: (n, v) those of a student on the same items.
        hidden: (n, h) what the student's head reads.
        keys: (n,) the randomness of codecs that sample; by default from the number of the item.
        tail: what the loss does with the probability of classes that were not kept: "bucket" compares it with the
            student's for all other classes together, "spread" takes it as spread evenly, "renormalise" leaves it out
            and renormalises the target. Samples have no rest.

    Returns:
        One `Fidelity` for each codec.

    Raises:
        UsageError: only one of ``student_logits`` and ``hidden`` is given, or shapes do not fit.

    """
    if (student_logits is None) != (hidden is None):
        raise UsageError("The angle needs both student_logits and hidden, the student's hidden states.")
    kept = [entry if isinstance(entry, Kept) else keep(logits, entry, keys) for entry in codecs]
    full = _looked_through(logits)
    found = [_divergences(full, entry) for entry in kept]
    angles: list[tuple[float | None, float | None]] = [(None, None)] * len(kept)
    if student_logits is not None and hidden is not None:
        if student_logits.shape != logits.shape or len(hidden) != len(logits):
            raise UsageError(
                f"logits {logits.shape}, student_logits {student_logits.shape} and hidden {hidden.shape} must be of "
                "the same items and classes."
            )
        angles = [*_angles(full, kept, student_logits, hidden, tail)]
    return [
        Fidelity(entry.codec, entry.bytes_per_item, *numbers, *angle)
        for entry, numbers, angle in zip(kept, found, angles, strict=True)
    ]


def _parts(length: int, other: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_AT_ONCE // max(1, other))
    return (slice(start, start + step) for start in range(0, length, step))


@dataclass(frozen=True)
class _Logits:
    """The teacher's logits and what is needed of them again and again."""

    values: Array  # (n, v)
    log_sums: Tensor  # (n,) logarithm of the sum of the exponentials
    entropies: Tensor  # (n,)


def _looked_through(logits: Array) -> _Logits:
    log_sums, entropies = torch.zeros(len(logits)).double(), torch.zeros(len(logits)).double()
    for rows in _parts(*logits.shape):
        values = torch.tensor(logits[rows]).double()
        log_sums[rows] = values.logsumexp(1)
        log_p = values.sub_(log_sums[rows, None])
        entropies[rows] = -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(1)
    return _Logits(logits, log_sums, entropies)


def _divergences(logits: _Logits, kept: Kept) -> tuple[float, float | None, float | None]:
    """Return missing, kl and kl_kept."""
    n, answer = max(1, len(logits.values)), kept.answer
    if isinstance(answer, Tensor):
        across = 0.0
        for rows in _parts(*logits.values.shape):
            p = (torch.tensor(logits.values[rows]).double() - logits.log_sums[rows, None]).exp_()
            across += float(torch.where(p > 0, p * answer[rows].double().log_softmax(1), 0.0).sum())
        whole = -(float(logits.entropies.sum()) + across) / n
        return 0.0, whole, whole
    named = torch.from_numpy(np.take_along_axis(logits.values, answer.ids.numpy(), axis=1)).double()
    used = answer.probabilities > 0
    used[:, 1:] &= (answer.ids[:, 1:] != answer.ids[:, :-1]) | ~used[:, :-1]  # a class that comes twice counts once
    p = (named - logits.log_sums[:, None]).exp() * used
    missing = (1 - p.sum(1)).clamp_min(0)
    if kept.codec.facts.samples:
        return float(missing.mean()), None, None
    stored = answer.probabilities.double()
    share = (1 - stored.sum(1)).clamp_min(0) / max(1, answer.num_classes - stored.shape[1])
    log_stored, log_share = (side.clamp_min(LEAST_PROBABILITY).log() for side in (stored, share))
    kl = -logits.entropies - (p * log_stored).sum(1) - missing * log_share
    among = p / p.sum(1, keepdim=True)
    log_among = torch.where(used, among.clamp_min(LEAST_PROBABILITY).log(), 0.0)
    kl_kept = (among * (log_among - log_stored)).sum(1) + stored.sum(1).log()
    return float(missing.mean()), float(kl.mean()), float(kl_kept.mean())


@dataclass(frozen=True)
class _Target:
    """A stored target as ``sparse + spread + bucket · q``: all but the first part are dense without being stored."""

    classes: Tensor  # (entries,) ascending
    rows: Tensor  # (entries,)
    values: Tensor  # (entries,)
    spread: Tensor  # (n,)
    bucket: Tensor  # (n,)


def _target(sparse: Sparse, student_log_probs: Tensor, tail: Tail) -> _Target:
    """``student_log_probs`` (n, k) are those of the kept classes."""
    values = sparse.probabilities.double()
    spread = bucket = torch.zeros(len(values), dtype=torch.float64)
    if sparse.tail == "bucket":
        rest = (1 - values.sum(1)).clamp_min(0)
        if tail == "renormalise":
            values = values / values.sum(1, keepdim=True)
        elif tail == "spread":
            spread = rest / max(1, sparse.num_classes - values.shape[1])
            values = values - spread[:, None]
        else:
            q = student_log_probs.exp()
            bucket = rest / (1 - q.sum(1)).clamp_min(1e-12)
            values = values - bucket[:, None] * q
    order = sparse.ids.flatten().argsort(stable=True)
    return _Target(sparse.ids.flatten()[order], order // sparse.ids.shape[1], values.flatten()[order], spread, bucket)


def _angles(
    teacher: _Logits, kept: Sequence[Kept], student_logits: Array, hidden: Array, tail: Tail
) -> Iterator[tuple[float, float]]:
    """Yield the angle and the ratio of lengths for each codec."""
    h = torch.tensor(hidden).double()
    norms = [teacher.log_sums, _log_sums(student_logits)]
    targets: list[_Target | tuple[Tensor, Tensor]] = []
    for entry in kept:
        if isinstance(entry.answer, Tensor):
            targets.append((entry.answer, _log_sums(entry.answer.numpy())))
        else:
            named = np.take_along_axis(student_logits, entry.answer.ids.numpy(), axis=1)
            targets.append(_target(entry.answer, torch.from_numpy(named).double() - norms[1][:, None], tail))
    dots = torch.zeros(len(kept), 3, dtype=torch.float64)  # full · full, full · stored, stored · stored
    for columns in _parts(student_logits.shape[1], len(hidden) + 2 * hidden.shape[1]):
        p, q = (
            (torch.tensor(side[:, columns]).double() - norm[:, None]).exp_()
            for side, norm in zip((teacher.values, student_logits), norms, strict=True)
        )
        from_student = q.T @ h
        full = from_student - p.T @ h
        for place, target in enumerate(targets):
            if isinstance(target, _Target):
                stored = from_student - _pulled(target, q, h, columns.start)
            else:
                t = (target[0][:, columns].double() - target[1][:, None]).exp_()
                stored = full + (p - t).T @ h
            pairs = ((full, full), (full, stored), (stored, stored))
            dots[place] += torch.stack([(one * other).sum() for one, other in pairs])
    for own, across, other in dots.tolist():
        cosine = across / math.sqrt(own * other) if own * other > 0 else math.nan
        yield math.degrees(math.acos(max(-1.0, min(1.0, cosine)))), math.sqrt(other / own) if own > 0 else math.nan


def _log_sums(logits: Array) -> Tensor:
    """Return the logarithm (n,) of the sum of the exponentials of each row."""
    parts = [torch.tensor(logits[rows]).double().logsumexp(1) for rows in _parts(*logits.shape)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _pulled(target: _Target, q: Tensor, h: Tensor, first: int) -> Tensor:
    """Return the target's part (block, h) of the gradient: its transpose times the hidden states."""
    pulled = (target.spread @ h).expand(q.shape[1], -1).clone()
    if target.bucket.any():
        pulled += q.T @ (target.bucket[:, None] * h)
    bounds = torch.tensor([first, first + q.shape[1]])
    low, high = torch.searchsorted(target.classes, bounds).tolist()
    for part in _parts(high - low, h.shape[1]):
        entries = slice(low + part.start, min(low + part.stop, high))
        pulled.index_add_(0, target.classes[entries] - first, target.values[entries, None] * h[target.rows[entries]])
    return pulled
