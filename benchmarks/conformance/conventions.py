"""Where a statement does not hold because a tool has another convention, not because it is wrong.

A convention is a choice that is applied throughout, is documented or usual, and leaves a caller who knows of it with
the right result. What gives a wrong result to a caller who does what the documentation says stays a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.conformance.probes import Probe


@dataclass(frozen=True)
class Convention:
    """A choice of some tools.

    Attributes:
        invariant: the statement that does not hold.
        tools: whose choice it is.
        word: the choice in a few words.
        covers: which failed probes it explains; all when absent.

    """

    invariant: str
    tools: tuple[str, ...]
    word: str
    covers: Callable[[Probe], bool] | None = None


CONVENTIONS = (
    Convention(
        "gradient_keeps_its_size_at_any_temperature",
        ("textbrewer", "trl", "liger"),
        "the factor T² is left to the caller, who multiplies the loss's weight",
    ),
    Convention(
        "jsd_has_no_jump",
        ("trl", "liger"),
        "the divergence is not scaled, as in the paper: it goes to 0 at both ends; beta = 0 and 1 are defined apart",
    ),
    Convention(
        "soft_loss_is_the_divergence",
        ("modelopt",),
        "the default reduction='mean' averages over classes too; reduction='batchmean' is the divergence",
    ),
    Convention(
        "impossible_classes_change_nothing",
        ("modelopt",),
        "the default reduction='mean' averages over classes too; reduction='batchmean' passes",
    ),
    Convention(
        "one_class_is_refused",
        ("torchdistill", "keras", "modelopt", "textbrewer"),
        "0 is the right value of one class; that it teaches nothing is not said",
        covers=lambda probe: probe.observed == "0",
    ),
)


def convention(tool: str, invariant: str, probes: Sequence[Probe]) -> str:
    """Return the choice that explains every failed probe, or an empty text."""
    failed = [probe for probe in probes if not probe.passed]
    for one in CONVENTIONS:
        if failed and one.invariant == invariant and tool in one.tools:
            explained = one.covers is None or all(map(one.covers, failed))
            return one.word if explained else ""
    return ""
