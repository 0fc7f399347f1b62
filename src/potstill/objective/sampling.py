"""Terms whose gradient is no longer right on average when the teacher's probabilities were sampled."""

from __future__ import annotations

from collections.abc import Collection

from potstill.objective.term import Term
from potstill.objective.total import Objective


def biased_terms(objective: Objective, sampled: Collection[str]) -> list[str]:
    """Return, in words, the terms that read sampled signals and are not linear in the teacher's probabilities.

    When to use it: before training from a store whose codec samples. For a loss that is linear in the teacher's
    probabilities, at temperature 1, the gradient of samples is on average that of the whole distribution. Any other
    function of them is biased, however many samples there are.

    Args:
        objective: the terms.
        sampled: names of the teacher's signals that were sampled.

    """
    found = []
    for term in objective.terms:
        if not term.teacher_signals & set(sampled):
            continue
        reason = _bias(term)
        if reason:
            found.append(
                f"Term {term.name} reads sampled probabilities, and {reason}, so its gradient is biased. Use "
                "forward_kl or soft_cross_entropy at temperature 1, or a codec that does not sample."
            )
    return found


def _bias(term: Term) -> str:
    if not getattr(term.loss, "unbiased_under_sampling", False):
        return f"{getattr(term.loss, '__name__', 'its loss')} is not linear in them"
    temperature = term.options.get("temperature", 1.0)
    if temperature != 1.0:
        return f"a temperature ({'a schedule' if callable(temperature) else temperature}) other than 1 bends them"
    if term.head is not None or term.transform is not None:
        return "its head or transform bends them"
    return ""
