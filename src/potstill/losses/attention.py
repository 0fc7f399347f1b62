"""Losses between the attention of two transformers: what each query looks at.

Shape legend: b samples, h heads, t query tokens, u key tokens (in self-attention u = t).
"""

from __future__ import annotations

from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._shared import check_mask, constant, lift, refuse_if
from potstill.losses._tokens import divergence, mean_of_parts, pairs_of, part_mask

_MASKED = -100.0
_SMALL = 1e-7


def attention_mse(
    student_attention: Tensor,
    teacher_attention: Tensor,
    *,
    average_heads: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of two attention maps, before or after the softmax.

    To teach a smaller transformer what to attend to, layer by layer; TinyBERT's attention term, which reads the scores
    before the softmax. After it the numbers are small and the loss all but silent; there use `attention_kl`. Where the
    two models have different numbers of heads, `value_relation` and `qkv_relation` are the better choice.

        (1 / (h · t · u)) · Σ (student − teacher)²

    Args:
        student_attention: (b, h, t, u) the student's scores or weights, queries before keys; any floating type.
        teacher_attention: (b, h, t, u) the teacher's; a constant, no gradient reaches it. Scores of at most −100, which
            models put on padding, count as 0 on either side.
        average_heads: compare the means over the heads, whose number may then differ.
        where: boolean, True for what to keep: (b,) samples, or (b, t) tokens of self-attention, as queries and as keys.
            What is left out gives 0 and no gradient, whatever it holds.

    Returns:
        (b,) the mean over a sample's heads and pairs of tokens, 0 where both maps are equal. float32, or float64 for
        float64 maps. A batch of 1 is an ordinary case; classes play no part.

    Raises:
        UsageError: shapes differ or are not (b, h, t, u), other heads than the teacher's without ``average_heads``, or
            a mask that is not boolean of shape (b,) or (b, t).

    Relations: without masks, scores on padding and ``average_heads`` it is `hint_mse`. Adding a number to all scores of
    a query changes it, though not the attention; `attention_kl` after a softmax ignores it.

    Example:
        >>> import torch
        >>> from potstill.losses import attention_mse
        >>> student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 5.0]]]])
        >>> attention_mse(student, teacher).tolist()
        [4.5]
        >>> attention_mse(student, teacher.repeat(1, 3, 1, 1), average_heads=True).tolist()
        [4.5]

    Paper: Xiaoqi Jiao, Yichun Yin, Lifeng Shang, Xin Jiang, Xiao Chen, Linlin Li, Fang Wang, Qun Liu: TinyBERT:
    Distilling BERT for Natural Language Understanding, 2019, arXiv:1909.10351.

    Deviations: none without padding. With it, the authors' code counts padding as equal pairs, so that the value
    depends on how long the longest text of a batch is; with ``where`` each sample is the mean over its own tokens.

    """
    student, teacher, kept = _attention_pair(student_attention, teacher_attention, average_heads, where)
    student, teacher = (side.masked_fill(side <= _MASKED, 0) for side in (student, teacher))
    student, teacher = _heads(student, average_heads), _heads(teacher, average_heads)
    return mean_of_parts((student - teacher).square().mean(dim=1), kept)


def attention_kl(
    student_attention: Tensor,
    teacher_attention: Tensor,
    *,
    average_heads: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's attention weights to the student's.

    MiniLM's attention term, for the last layer, beside `value_relation`. It reads weights, after the softmax, as most
    models return them. For scores give the term a softmax:
    ``Term(attention_kl, transform=functools.partial(torch.softmax, dim=-1))``.

    With p the teacher's and q the student's weights of a head and query, over the keys:

        (1 / (h · t)) · Σ_heads Σ_queries Σ_keys p · (log p − log q)

    Args:
        student_attention: (b, h, t, u) the student's weights, queries before keys, at least 0; any floating type.
        teacher_attention: (b, h, t, u) the teacher's; a constant, no gradient reaches it.
        average_heads: compare the means over the heads, whose number may then differ.
        where: boolean, True for what to keep: (b,) samples, or (b, t) tokens of self-attention, as queries and as keys.
            What is left out gives 0 and no gradient, whatever it holds.

    Returns:
        (b,) nats, the mean over a sample's heads and queries, at least 0, and 0 where both are equal. float32, or
        float64 for float64 weights. A batch of 1 is an ordinary case; classes play no part.

    Raises:
        UsageError: shapes differ or are not (b, h, t, u), other heads than the teacher's without ``average_heads``,
            weights below 0 (on the CPU), or a mask that is not boolean of shape (b,) or (b, t).

    Relations: `forward_kl` of every query's scores, at temperature 1. Multiplying the weights of a query by a positive
    number changes next to nothing, as they are brought to a sum of 1 over the keys that are kept.

    Example:
        >>> import torch
        >>> from potstill.losses import attention_kl
        >>> student, teacher = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[0.25, 0.75]]]])
        >>> round(attention_kl(student, teacher).item(), 4)
        0.1308

    Paper: Wenhui Wang, Furu Wei, Li Dong, Hangbo Bao, Nan Yang, Ming Zhou: MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers, 2020, arXiv:2002.10957.

    Deviations: every weight is raised by 1e-7 before it is divided by the sum, so that weights of 0, as causal
    attention has, are fine; by that a student's weight of 0 costs at most 16 nats. ``average_heads`` is not in the
    paper, which asks for equal heads.

    """
    student, teacher, kept = _attention_pair(student_attention, teacher_attention, average_heads, where)
    for side, weights in (("student", student), ("teacher", teacher)):
        refuse_if(
            weights < 0,
            f"{side}_attention has negative weights: these are scores before the softmax. Give the term "
            "transform=functools.partial(torch.softmax, dim=-1), or use attention_mse.",
        )
    pairs = None if kept is None else kept[:, None]
    log_q, log_p = (_log_weights(_heads(side, average_heads), pairs) for side in (student, teacher))
    # A query that is left out has no key either, and gives 0 here.
    values = divergence(log_p, log_q).mean(dim=1)
    return mean_of_parts(values, None if kept is None else kept.any(dim=2))


def _attention_pair(
    student: Tensor, teacher: Tensor, average_heads: bool, where: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return both sides' maps, checked, lifted and masked, the teacher's as a constant, and the pairs (b, t, u)."""
    shapes = f"student_attention has shape {tuple(student.shape)} and teacher_attention {tuple(teacher.shape)}"
    if student.dim() != 4 or teacher.dim() != 4:
        raise UsageError(f"{shapes}: expected (batch, heads, query tokens, key tokens).")
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise UsageError(f"{shapes}: both must have the same samples and tokens; use the same tokenizer and padding.")
    if student.shape[1] != teacher.shape[1] and not average_heads:
        raise UsageError(
            f"{shapes}: the numbers of heads differ. Set average_heads=True, or use value_relation or qkv_relation, "
            "which need no equal heads."
        )
    lifted = lift(student, "student_attention")
    taught = lift(constant(teacher), "teacher_attention").to(lifted.dtype)
    if where is None:
        return lifted, taught, None
    samples, _, queries, keys = student.shape
    if queries == keys:
        pairs = pairs_of(part_mask(where, samples, queries))
    else:  # a mask of tokens has a meaning in self-attention only
        check_mask(where, student.shape[:1])
        pairs = where[:, None, None].expand(samples, queries, keys)
    lifted, taught = (side.masked_fill(~pairs[:, None], 0) for side in (lifted, taught))
    return lifted, taught, pairs


def _heads(maps: Tensor, average: bool) -> Tensor:
    return maps.mean(dim=1, keepdim=True) if average else maps


def _log_weights(weights: Tensor, kept: Tensor | None) -> Tensor:
    """Return the logarithms of weights over the last dimension, raised a little and brought to a sum of 1.

    Weights that are left out hold 0, in the sense of `divergence`.
    """
    raised = weights + _SMALL
    if kept is None:
        return raised.log() - raised.sum(dim=-1, keepdim=True).log()
    total = raised.masked_fill(~kept, 0).sum(dim=-1, keepdim=True).clamp_min(_SMALL)  # 0 where nothing is kept
    return (raised.log() - total.log()).masked_fill(~kept, 0)
