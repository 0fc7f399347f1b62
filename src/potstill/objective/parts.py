"""The heads of an objective's terms: building them from a probe, and applying them in a forward pass."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError, UsageError
from potstill.core.random import seed_of
from potstill.core.signals import Signals
from potstill.objective.adapters import ADAPTED, adapter, differ
from potstill.objective.probe import Probe, each
from potstill.objective.term import Term
from potstill.objective.total import read_student, read_teacher, written_by_user


def heads_for(
    terms: Sequence[Term], student_signals: Signals, teacher_signals: Signals | None, *, ids: Tensor, seed: int = 0
) -> nn.ModuleDict:
    """Build the head of every term that has one, and an adapter where two hidden signals differ in shape.

    Logits are never adapted unless the term asks for a head.

    Args:
        terms: of the objective.
        student_signals: the student's signals of some training samples, each (n, ...).
        teacher_signals: the same of the teacher; None where no term reads one.
        ids: (samples,) int64 ids of all training samples.
        seed: fixes the initial weights; the global random state is left as it is.

    Returns:
        the heads by `Term.key`; their parameters belong in the optimiser and the checkpoint, never in the export.

    Raises:
        UsageError: a signal is absent, or no head can be built for these shapes; names the term.

    """
    heads = nn.ModuleDict()
    for term in terms:
        student = each(_constant, read_student(term, student_signals))
        taught = read_teacher(term, student_signals, teacher_signals)
        teacher = None if taught is None else each(_constant, taught)
        probe = Probe(student, teacher, ids=ids.sort().values, seed=seed)
        builder: Any = term.head
        options: dict[str, Any] = {}
        if builder is None and term.teacher is not None and term.kind in ADAPTED and differ(probe):
            builder = adapter
        if builder is None:
            continue
        if getattr(builder, "func", builder) is adapter:
            options = {"parameter": term.parameters[0]}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, zlib.crc32(term.key.encode())))
            heads[term.key] = _built(term, builder, probe, options)
    return heads


def apply_heads(
    heads: nn.ModuleDict | Mapping[str, nn.Module],
    terms: Sequence[Term],
    student_signals: Signals,
    teacher_signals: Signals | None,
    ids: Tensor,
) -> dict[str, dict[str, Any]]:
    """Return what every head prepares for its term: arguments of the loss by name."""
    prepared: dict[str, dict[str, Any]] = {}
    for term in terms:
        if term.key not in heads:
            continue
        head = heads[term.key]
        student, taught = read_student(term, student_signals), read_teacher(term, student_signals, teacher_signals)
        if written_by_user(type(head)):
            student, taught = each(torch.clone, student), None if taught is None else each(torch.clone, taught)
        prepared[term.key] = head(student, taught, ids)
    return prepared


def _built(term: Term, builder: Any, probe: Probe, options: Mapping[str, Any]) -> nn.Module:
    try:
        head = builder(probe, **options)
    except PotstillError as error:
        raise UsageError(f"Term {term.name}: {error}") from error
    except TypeError as error:
        raise UsageError(f"Term {term.name}: its head could not be built: {error}. Check head_options.") from error
    if not isinstance(head, nn.Module):
        raise UsageError(f"Term {term.name}: the head's builder must return a torch module, not {type(head).__name__}.")
    return head


def _constant(signal: Tensor) -> Tensor:
    """Return a signal detached, float32 or float64, out of inference mode."""
    signal = signal.clone() if signal.is_inference() else signal.detach()
    return signal.float() if signal.dtype != torch.float64 else signal
