"""Invariants of losses over vocabularies: different sizes on the two sides, and logits that never exist as a whole.

The fused losses take hidden states and the weight of the output layer. Shape legend: b rows, c tokens, h hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.conformance import reference
from benchmarks.conformance.adapter import Adapter
from benchmarks.conformance.probes import Judged, Loss, Probe, ask, close, for_each_loss, shown

EXACT = 1e-4
HALF = 5e-2


def case(**changes: Any) -> dict[str, Any]:
    """Return hidden states and heads of both sides: 7 rows, 11 tokens, 4 and 6 numbers, all exact in bfloat16."""
    names = {"student_hidden": (7, 4, 1), "student_head": (11, 4, 2), "teacher_hidden": (7, 6, 3),
             "teacher_head": (11, 6, 4)}  # fmt: skip
    arrays = {name: (reference.logits(*shape) / 4).tolist() for name, shape in names.items()}
    return {**arrays, **changes}


def padded_vocabulary_is_not_invented(tool: Adapter) -> Iterator[Probe]:
    """A teacher with two more tokens than the student is refused, or compared on the shared tokens, renormalised.

    Padding the student's logits with 0 gives tokens that it does not have as much probability as a likely one, and
    every other token pays for it.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = reference.logits(6, 10, 1), reference.logits(6, 12, 2)
        observed = ask(tool, loss, student, teacher)["value"]
        expected = float(reference.forward_kl(student, teacher[:, :10]).mean())
        return observed, f"{expected:.6g}, or a refusal", close(observed, expected, EXACT)

    on = "student 6 x 10 and teacher 6 x 12 logits"
    return for_each_loss(tool, judge, "soft", on=on, may_refuse=True)


def fused_is_the_plain_loss(tool: Adapter) -> Iterator[Probe]:
    """A fused loss has the value and the gradients of the plain one, in float64.

    It exists to save memory; a formula of its own would be a second loss under the same name.
    """
    yield from _fused(tool, case(), "7 rows, 11 tokens")


def fused_honours_the_mask(tool: Adapter) -> Iterator[Probe]:
    """A fused loss is the mean over the kept rows.

    Prompt and padding are most rows of many batches.
    """
    keep = [True, False, True, True, False, False, True]
    yield from _fused(tool, case(keep=keep), "7 rows, 3 of them masked")


def fused_honours_the_bias(tool: Adapter) -> Iterator[Probe]:
    """A fused loss adds the bias of either output layer.

    Left out, the two sides are compared at logits that neither model has.
    """
    bias = {
        "student_bias": reference.logits(1, 11, 5)[0].tolist(),
        "teacher_bias": reference.logits(1, 11, 6)[0].tolist(),
    }
    yield from _fused(tool, case(**bias), "output layers with bias")


def fused_honours_the_softcap(tool: Adapter) -> Iterator[Probe]:
    """A fused loss applies the model's logit soft-cap, cap · tanh(logit / cap), and its derivative.

    Gemma's logits pass through it; a loss that skips it trains another model.
    """
    yield from _fused(tool, case(softcap=2.0), "logits capped at ±2")


def fused_half_precision_is_enough(tool: Adapter) -> Iterator[Probe]:
    """A fused loss in bfloat16 has the value and the gradients of float64, to 5 per cent.

    bfloat16 is what it will be used in.
    """
    yield from _fused(tool, case(dtype="bfloat16"), "bfloat16", tolerance=HALF)


def _fused(tool: Adapter, arguments: dict[str, Any], on: str, tolerance: float = EXACT) -> Iterator[Probe]:
    answer = tool.call("fused", **arguments)
    value, hidden, head = reference.fused(arguments)
    for name, observed, expected in (
        ("value", answer["value"], value),
        ("gradient of the hidden states", answer["hidden"], hidden),
        ("gradient of the output layer", answer["head"], head),
    ):
        passed = close(observed, np.asarray(expected), tolerance)
        yield Probe(f"{answer['call']} on {on}, {name}", answer["link"], shown(observed), shown(expected), passed)


CHECKS = (
    padded_vocabulary_is_not_invented,
    fused_is_the_plain_loss,
    fused_honours_the_mask,
    fused_honours_the_bias,
    fused_honours_the_softcap,
    fused_half_precision_is_enough,
)
