"""From what a caller passes to what the fused losses compute with: checks, the rows that take part, one vocabulary.

Shape legend: b rows (tokens), h hidden width, v vocabulary, k teacher's ids of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._distributions import at_least_zero
from potstill.losses._fused import Head, Task, fused
from potstill.losses._fused_matmul import project
from potstill.losses._fused_tiles import (
    Divergence,
    Mix,
    cap_,
    compare_bucket,
    compare_dense,
    compare_renormalised,
    compare_samples,
    multiply_,
)
from potstill.losses._related import put_back
from potstill.losses._shared import check_mask, positive, refuse_if

WORKSPACE_BYTES = 256 * 2**20


class Options(NamedTuple):
    """The options that all fused losses share, as the caller gave them."""

    student_head: Head | Tensor
    targets: Tensor | None
    temperature: float
    soft_weight: float
    hard_weight: float
    shared_vocabulary: int | Tensor | None
    workspace_bytes: int
    where: Tensor | None


class Student(NamedTuple):
    """The checked student: rows that take part, and the vocabulary that all terms are over."""

    hidden: Tensor
    head: Head
    num_tokens: int  # the first rows of the head that take part
    ids: Tensor | None  # where the vocabulary was picked by ids, not by count
    targets: Tensor | None


def compare_with_hidden(
    divergence: Divergence,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Head | Tensor,
    options: Options,
) -> Tensor:
    """Return the values (b,) of a divergence from the teacher's hidden states (b, ht) and its head."""
    own = _checked_head(student_hidden, options.student_head, "student")
    head = _checked_head(teacher_hidden, teacher_head, "teacher")
    _check_rows(student_hidden, teacher_hidden, "teacher_hidden")
    if options.shared_vocabulary is None and len(own.weight) != len(head.weight):
        raise UsageError(
            f"student_head has {len(own.weight)} tokens and teacher_head {len(head.weight)}. If both use one tokenizer "
            "and differ in padding, pass shared_vocabulary=len(tokenizer); else a tensor of the ids that they share."
        )
    student = _prepared(student_hidden, own, options, limit=min(len(own.weight), len(head.weight)))
    if student.ids is not None:
        head = _picked(head, student.ids)
    weight = head.weight.detach()[: student.num_tokens]
    bias = None if head.bias is None else head.bias.detach()[: student.num_tokens]
    hidden = _kept(teacher_hidden.detach(), options.where)
    masked = _may_rule_out(head) or _may_rule_out(student.head)

    def teacher_rows(rows: slice, tile: Tensor | None) -> tuple[Tensor, ...]:
        if tile is None:  # only for the type checker: num_tiles below is 2
            return ()
        project(hidden[rows], weight, tile)
        return (tile,)

    def compare(logits: Tensor, products: Tensor) -> Tensor:
        cap_(products, bias, head.scale, head.softcap)
        multiply_(products, 1 / options.temperature)
        return compare_dense(logits, products, divergence, masked=masked)

    return _values(student, options, compare, teacher_rows, num_tiles=2)


def compare_with_sparse(
    divergence: Divergence,
    student_hidden: Tensor,
    teacher_ids: Tensor,
    teacher_probabilities: Tensor,
    tail: str,
    options: Options,
    *,
    allow_samples: bool = False,
) -> Tensor:
    """Return the values (b,) of a divergence from some of the teacher's probabilities (b, k)."""
    own = _checked_head(student_hidden, options.student_head, "student")
    _check_rows(student_hidden, teacher_probabilities, "teacher_probabilities")
    if teacher_ids.shape != teacher_probabilities.shape or teacher_ids.dim() != 2 or not _hold_ids(teacher_ids):
        raise UsageError(
            f"teacher_ids must hold integers and teacher_probabilities numbers, both of shape (rows, k), not "
            f"{teacher_ids.dtype} {tuple(teacher_ids.shape)} and {tuple(teacher_probabilities.shape)}."
        )
    if tail not in ("bucket", "renormalise", "none") or (tail == "none" and not allow_samples):
        known = '"bucket", "renormalise" or "none"' if allow_samples else '"bucket" or "renormalise"'
        more = ' Only sparse_linear_forward_kl is right for samples, tail="none".' if tail == "none" else ""
        raise UsageError(f"tail={tail!r} must be {known}.{more}")
    student = _prepared(student_hidden, own, options, limit=len(own.weight))
    ids = _positions(_kept(teacher_ids, options.where).long(), student, "teacher_ids")
    probabilities = _kept(teacher_probabilities.detach(), options.where)
    probabilities = probabilities.to(torch.float64 if student.hidden.dtype == torch.float64 else torch.float32)
    _check_probabilities(ids, probabilities, tail)

    def compare(logits: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
        if tail == "none":
            return compare_samples(logits, ids, probabilities)
        over = compare_bucket if tail == "bucket" else compare_renormalised
        return over(logits, ids, probabilities, divergence)

    return _values(student, options, compare, lambda rows, _: (ids[rows], probabilities[rows]), num_tiles=1)


def targets_only(student_hidden: Tensor, options: Options) -> Tensor:
    """Return the cross-entropy (b,) of the targets."""
    own = _checked_head(student_hidden, options.student_head, "student")
    student = _prepared(student_hidden, own, options, limit=len(own.weight))
    return _values(student, options, None, lambda rows, _: (), num_tiles=1)  # noqa: ARG005


def _values(
    student: Student,
    options: Options,
    compare: Callable[..., Tensor] | None,
    teacher_rows: Callable[[slice, Tensor | None], tuple[Tensor, ...]],
    *,
    num_tiles: int,
) -> Tensor:
    mix = Mix(
        compare,
        temperature=options.temperature,
        soft_weight=options.soft_weight,
        hard_weight=options.hard_weight,
        scale=student.head.scale,
        softcap=student.head.softcap,
    )
    task = Task(mix, teacher_rows, num_tiles, student.targets, student.num_tokens, options.workspace_bytes)
    values = fused(student.hidden, student.head.weight, student.head.bias, task)
    return put_back(values, options.where)


def _prepared(hidden: Tensor, head: Head, options: Options, *, limit: int) -> Student:
    """Check what is left of the student's side, and keep the rows and the tokens that take part."""
    positive(options.temperature, "temperature")
    at_least_zero(options.soft_weight, "soft_weight")
    at_least_zero(options.hard_weight, "hard_weight")
    if options.workspace_bytes < 1:
        raise UsageError(f"workspace_bytes={options.workspace_bytes!r} must be at least 1; it is a number of bytes.")
    check_mask(options.where, hidden.shape[:1])
    count, ids = _vocabulary(options.shared_vocabulary, limit, hidden.device)
    if ids is not None:
        head = _picked(head, ids)
    student = Student(_kept(hidden, options.where), head, count, ids, None)
    if not options.hard_weight:
        return student
    targets = options.targets
    if targets is None or targets.shape != hidden.shape[:1] or not _hold_ids(targets):
        got = "None" if targets is None else f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise UsageError(
            f"targets must be integer token ids of shape ({len(hidden)},) where hard_weight is above 0, not {got}."
        )
    return Student(
        student.hidden, head, count, ids, _positions(_kept(targets, options.where).long(), student, "targets")
    )


def _kept(rows: Tensor, where: Tensor | None) -> Tensor:
    return rows if where is None else rows[where]


def _checked_head(hidden: Tensor, head: Head | Tensor, side: str) -> Head:
    """Refuse hidden states and a head that do not fit each other."""
    head = Head(head) if isinstance(head, Tensor) else head
    if hidden.dim() != 2:
        raise UsageError(
            f"{side}_hidden must have shape (rows, width), not {tuple(hidden.shape)}. Make one row per token: "
            "hidden.flatten(0, 1), and the same for targets and where."
        )
    if head.weight.dim() != 2 or head.weight.shape[1] != hidden.shape[1]:
        raise UsageError(
            f"{side}_head's weight must have shape (tokens, {hidden.shape[1]}) for {side}_hidden "
            f"{tuple(hidden.shape)}, not {tuple(head.weight.shape)}."
        )
    if not (hidden.is_floating_point() and head.weight.is_floating_point()):
        raise UsageError(
            f"{side}_hidden and {side}_head must hold floating point numbers, not {hidden.dtype} and "
            f"{head.weight.dtype}."
        )
    if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
        raise UsageError(
            f"{side}_head's bias must have shape ({len(head.weight)},), one per token, not {tuple(head.bias.shape)}."
        )
    if head.softcap is not None:
        positive(head.softcap, f"{side}_head's softcap")
    positive(head.scale, f"{side}_head's scale")
    return head


def _may_rule_out(head: Head) -> bool:
    """Whether logits of a head may be −inf: its bias is; looked at on the CPU only, elsewhere any bias counts."""
    return head.bias is not None and (head.bias.device.type != "cpu" or bool((head.bias == -torch.inf).any()))


def _check_rows(student_hidden: Tensor, teacher: Tensor, name: str) -> None:
    if student_hidden.shape[:1] != teacher.shape[:1]:
        raise UsageError(
            f"student_hidden has shape {tuple(student_hidden.shape)} and {name} {tuple(teacher.shape)}: both need one "
            "row for the same tokens."
        )
    if not teacher.is_floating_point():
        raise UsageError(f"{name} must hold floating point numbers, not {teacher.dtype}.")


def _vocabulary(shared: int | Tensor | None, limit: int, device: torch.device) -> tuple[int, Tensor | None]:
    """Return how many tokens take part, and their ids where they are not the first ones."""
    if isinstance(shared, Tensor):
        if shared.dim() != 1 or not _hold_ids(shared):
            raise UsageError(
                f"shared_vocabulary must be a number of tokens or integer ids of shape (tokens,), not {shared.dtype} "
                f"of shape {tuple(shared.shape)}."
            )
        ids = shared.to(device).long()
        outside = (ids < 0) | (ids >= limit)
        refuse_if(outside, f"shared_vocabulary must hold ids from 0 to {limit - 1}, which both heads have.")
        places = torch.arange(len(ids), device=device)
        refuse_if(_places(ids, limit)[ids] != places, "shared_vocabulary must hold every id once.")
        count = len(ids)
    else:
        ids, count = None, limit if shared is None else shared
    if not 2 <= count <= limit:
        raise UsageError(
            f"There are {count} tokens to compare, and there must be from 2 to {limit}, the size of the smaller head."
        )
    return count, ids


def _places(ids: Tensor, limit: int) -> Tensor:
    """Return (limit,): where each token stands among the ids, and -1 for those that are not there."""
    places = torch.full((limit,), -1, device=ids.device)
    places[ids] = torch.arange(len(ids), device=ids.device)
    return places


def _picked(head: Head, ids: Tensor) -> Head:
    return head._replace(weight=head.weight[ids], bias=None if head.bias is None else head.bias[ids])


def _positions(tokens: Tensor, student: Student, name: str) -> Tensor:
    """Return token ids as places in the vocabulary that takes part."""
    message = (
        f"{name} must be token ids of the vocabulary that is compared, of {student.num_tokens} tokens; some are "
        "outside. Leave rows without one out with where=."
    )
    if student.ids is None:
        refuse_if((tokens < 0) | (tokens >= student.num_tokens), message)
        return tokens
    limit = int(student.ids.max()) + 1
    known = (tokens >= 0) & (tokens < limit)
    places = torch.where(known, _places(student.ids, limit)[tokens.clamp(0, limit - 1)], -1)
    refuse_if(places < 0, message)
    return places


def _hold_ids(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)


def _check_probabilities(ids: Tensor, probabilities: Tensor, tail: str) -> None:
    total = probabilities.sum(1)
    refuse_if(
        ~((probabilities >= 0).all(1) & (total > 0) & (total <= 1.01)),
        "teacher_probabilities must be at least 0, with a sum above 0 and at most 1 in every row: probabilities, not "
        "logits or logarithms.",
    )
    if tail == "none":
        refuse_if((total - 1).abs() > 0.01, 'With tail="none" the teacher_probabilities of a row must sum to 1.')
        return
    if ids.device.type == "cpu":
        ordered = ids.sort(1).values
        refuse_if(
            ordered[:, 1:] == ordered[:, :-1],
            f'teacher_ids must be different within a row for tail="{tail}". Sampled ids that come more than once are '
            'for sparse_linear_forward_kl with tail="none".',
        )
