"""How the answers of several teachers become one: weights, class maps, and one distribution over all classes.

Shape legend: m teachers, b samples, c classes of the data, k classes that one teacher knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError

Mean = Literal["probabilities", "logits"]
_ROUNDS = 50
_HALVINGS = 30
_NOISE = 1e-13
_CLOSE = 1e-7
_LARGEST = 4_000_000


def merge(logits: Sequence[Tensor], weights: Tensor, *, mean: Mean = "probabilities") -> Tensor:
    """Return the logits of the weighted mean of several distributions.

    With p_m the m-th teacher's softmax and w its weights, which sum to 1 for each sample:

        log Σ_m w_m · p_m              mean="probabilities": the mixture; keeps every teacher's alternatives
        Σ_m w_m · log p_m              mean="logits": the geometric mean; keeps what all teachers agree on

    A student's temperature divides these logits, as it does any teacher's: first merged, then softened.

    Args:
        logits: m tensors (b, c).
        weights: (m,) or (m, b), at least 0, sums of 1 over the teachers.
        mean: of what.

    Returns:
        (b, c) log-probabilities up to a constant per sample, float32 or float64.

    """
    log_probs = torch.stack(_log_probs(logits))
    weights = weights.to(log_probs).reshape(len(log_probs), -1, 1)
    if mean == "logits":
        return (weights * log_probs).sum(0)
    return torch.logsumexp(log_probs + weights.log(), dim=0)


def mixture_of_yes(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the logits of the weighted mean of several probabilities of yes: log Σ w p − log Σ w (1 − p).

    Args:
        logits: (m, b, c), each of a sigmoid.
        weights: (m,) at least 0, with sum 1.

    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shares = weights.to(wide).log().reshape(-1, *[1] * (wide.dim() - 1))
    yes, no = (torch.logsumexp(F.logsigmoid(side) + shares, dim=0) for side in (wide, -wide))
    return yes - no


def confidence_weights(logits: Sequence[Tensor], targets: Tensor | None = None) -> Tensor:
    """Return a weight for each teacher and sample: higher where a teacher is surer, or righter where labels are given.

    With labels, as Confidence-Aware Multi-teacher KD: w_m = (1 − softmax_m(cross-entropy_m)) / (m − 1). Without, the
    share of exp(−entropy). Label-aware weights need two teachers or more.

    Args:
        logits: m tensors (b, c); without targets their numbers of classes may differ.
        targets: (b,) int64 classes or (b, c) probabilities, or None.

    Returns:
        (m, b) weights that sum to 1 over the teachers. A single teacher has weight 1.

    Paper: Hailin Zhang, Defang Chen, Can Wang: Confidence-Aware Multi-teacher Knowledge Distillation, 2022,
    arXiv:2201.00007.

    """
    found = _log_probs(logits)
    count = len(found)
    if count == 1:
        return torch.ones_like(found[0][None, :, 0])
    if targets is None:
        return torch.softmax(torch.stack([(one.exp() * one).sum(-1) for one in found]), dim=0)
    log_probs = torch.stack(found)
    soft = F.one_hot(targets, log_probs.shape[-1]).to(log_probs) if targets.dim() == 1 else targets.to(log_probs)
    cross_entropy = -(soft * log_probs).sum(-1)
    return (1.0 - torch.softmax(cross_entropy, dim=0)) / (count - 1)


def unite(logits: Sequence[Tensor], known: Sequence[Tensor], weights: Tensor, *, num_classes: int) -> Tensor:
    """Return one distribution over all classes from teachers that each know only some of them.

    The distribution q that is nearest to all teachers at once: it minimises Σ_m w_m · KL(p_m ‖ q restricted to the
    classes that teacher m knows). Teachers are compared only where they overlap, so a class that one teacher alone
    knows is not punished for the others' silence. The sum is convex in log q; Newton's method finds the one minimum.

    Args:
        logits: m tensors (b, k), one for each teacher.
        known: m tensors (k,) int64: the class of the data that each output stands for.
        weights: (m,) or (m, b), at least 0.
        num_classes: c.

    Returns:
        (b, c) log-probabilities.

    Raises:
        UsageError: a class that no teacher knows, or teachers whose classes never meet, so that their probabilities
            cannot be compared.

    Paper: Jayakorn Vongkulbhisal, Phongtharin Vinayavekhin, Marco Visentini-Scarzanella: Unifying Heterogeneous
    Classifiers with Distillation, 2019, arXiv:1904.06062.

    """
    check_known(known, num_classes)
    batch, device = len(logits[0]), logits[0].device
    masks = torch.zeros(len(logits), num_classes, dtype=torch.bool, device=device)
    wins = torch.zeros(batch, num_classes, dtype=torch.float64, device=device)
    weights = weights.to(device=device, dtype=torch.float64).reshape(len(logits), -1, 1).expand(-1, batch, 1)
    for one, classes, mask, weight in zip(logits, known, masks, weights, strict=True):
        mask[classes.to(device)] = True
        wins.index_add_(1, classes.to(device), weight * torch.softmax(_lift(one).double(), dim=-1))
    # Not quite 0, so that a class every teacher rules out keeps a finite logarithm.
    wins = wins.clamp_min(1e-9)
    rows = max(1, _LARGEST // num_classes**2)
    parts = [
        _nearest(wins[start : start + rows], masks, weights[:, start : start + rows]) for start in range(0, batch, rows)
    ]
    united = torch.cat(parts) if parts else wins.log()
    return united.to(_lift(logits[0]).dtype)


def _nearest(wins: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Return log q (b, c) that minimises Σ_m w_m · log Σ_{c in m} q_c − Σ_c wins_c · log q_c, by damped Newton steps.

    Args:
        wins: (b, c) the weighted sum of the teachers' probabilities.
        masks: (m, c) the classes that each teacher knows.
        weights: (m, b, 1).

    """

    def restricted(log_q: Tensor) -> Tensor:
        return log_q.expand(len(masks), *log_q.shape).masked_fill(~masks[:, None], -torch.inf)

    def value(log_q: Tensor) -> Tensor:
        return (weights[..., 0] * torch.logsumexp(restricted(log_q), dim=-1)).sum(0) - (wins * log_q).sum(-1)

    # Each sample's wins must sum to its teachers' weights, or no shift of log q leaves the value as it is.
    wins = wins * (weights.sum((0, 2)) / wins.sum(-1))[:, None]
    log_q = wins.log()
    now = value(log_q)
    flat = torch.full((wins.shape[1],) * 2, 1.0 / wins.shape[1], dtype=wins.dtype, device=wins.device)
    for _ in range(_ROUNDS):
        q = torch.softmax(restricted(log_q), dim=-1)
        gradient = (weights * q).sum(0) - wins
        if gradient.abs().max() < _CLOSE:
            break
        hessian = torch.diag_embed((weights * q).sum(0)) - torch.einsum("mbi,mbj,mb->bij", q, q, weights[..., 0])
        step = torch.linalg.solve(hessian + flat, gradient)
        size = torch.ones_like(now)
        for _ in range(_HALVINGS):
            moved = log_q - size[:, None] * step
            worse = value(moved) > now + _NOISE
            if not worse.any():
                break
            size = torch.where(worse, 0.5 * size, size)
        moved = torch.where((value(moved) > now + _NOISE)[:, None], log_q, moved)
        if torch.equal(moved, log_q):
            break
        log_q, now = moved, value(moved)
    return torch.log_softmax(log_q, dim=-1)


def check_known(known: Sequence[Tensor], num_classes: int) -> None:
    """Refuse class maps that leave a class without a teacher, or teachers that cannot be compared."""
    sets = [set(classes.tolist()) for classes in known]
    absent = sorted(set(range(num_classes)) - set().union(*sets))
    if absent:
        raise UsageError(
            f"No teacher knows the classes {absent}. Add a teacher that does, or leave them out of the data."
        )
    reached, left = sets[0], sets[1:]
    while True:
        joined = [one for one in left if one & reached]
        if not joined:
            break
        reached = reached.union(*joined)
        left = [one for one in left if not one & reached]
    if left:
        raise UsageError(
            f"The teachers' classes fall into groups that never meet: {sorted(reached)} and {sorted(left[0])}. Their "
            "probabilities cannot be compared without a shared class; add a teacher that knows one of each."
        )


def fixed_weights(weights: Sequence[float] | None, count: int) -> Tensor:
    """Return weights (m,) that sum to 1; equal ones when absent.

    Raises:
        UsageError: another number of weights than teachers, negative ones, or none above 0.

    """
    if weights is None:
        return torch.full((count,), 1.0 / count)
    bad = len(weights) != count or any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0
    if bad:
        raise UsageError(
            f"weights={list(weights)} for {count} teachers: give one number of at least 0 for each, not all 0."
        )
    return torch.tensor(weights, dtype=torch.float32) / sum(weights)


def fit_attention(logits: Sequence[Tensor], targets: Tensor, *, decay: float = 1e-3, rounds: int = 100) -> Tensor:
    """Learn how much attention each teacher deserves on each sample, from samples with labels.

    A linear map of all teachers' log-probabilities to one score a teacher, softmax over the teachers, fitted so that
    the mixture gives the labels the most probability (L-BFGS, with weight decay towards equal weights). Use samples
    that the teachers were not trained on: on their own training data every teacher looks right.

    Args:
        logits: m tensors (b, c).
        targets: (b,) int64 classes.
        decay: strength of the pull towards equal weights.
        rounds: L-BFGS iterations.

    Returns:
        (m, m·c + 1) weights of the map, the last column its bias; see `attention_weights`.

    """
    log_probs = _log_probs([one.detach().double() for one in logits])
    features = _features(log_probs)
    stacked = torch.stack(log_probs)
    right = stacked.gather(2, targets.reshape(1, -1, 1).expand(len(stacked), -1, 1)).squeeze(2)
    gate = torch.zeros(len(stacked), features.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([gate], max_iter=rounds, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        log_weights = F.log_softmax(gate @ features.T, dim=0)
        loss = -torch.logsumexp(log_weights + right, dim=0).mean() + decay * gate.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return gate.detach().float()


def attention_weights(logits: Sequence[Tensor], gate: Tensor) -> Tensor:
    """Return the learned weights (m, b) of each teacher on each sample; see `fit_attention`."""
    features = _features(_log_probs(logits))
    return torch.softmax(gate.to(features) @ features.T, dim=0)


def _features(log_probs: Sequence[Tensor]) -> Tensor:
    """Return (b, m·c + 1): probabilities, which unlike their logarithms are bounded, and a 1 for the bias."""
    probs = torch.cat([one.exp() for one in log_probs], dim=1)
    return torch.cat([probs, torch.ones_like(probs[:, :1])], dim=1)


def _log_probs(logits: Sequence[Tensor]) -> list[Tensor]:
    return [F.log_softmax(_lift(one), dim=-1) for one in logits]


def _lift(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def regroup(logits: Tensor, groups: Tensor, num_classes: int) -> Tensor:
    """Return the distribution over the data's classes of a teacher that was trained on other, finer classes.

    The probability of a class is the sum of those of the teacher's classes that stand for it. Classes of the teacher
    that stand for nothing are left out, and the others share what is theirs.

    Args:
        logits: (b, k) of the teacher.
        groups: (k,) int64, the class of the data that each output stands for, or -1 for none.
        num_classes: c; every class must be stood for.

    Returns:
        (b, c) log-probabilities.

    """
    log_probs = F.log_softmax(_lift(logits).masked_fill((groups < 0).to(logits.device), -torch.inf), dim=-1)
    columns = [
        torch.logsumexp(log_probs[:, (groups == number).to(logits.device)], dim=1) for number in range(num_classes)
    ]
    return torch.stack(columns, dim=1)
