"""The objective of a training: terms, what they read, their schedules and heads, and objectives by name."""

from __future__ import annotations

from potstill.losses._shared import over_batch
from potstill.objective.check import check
from potstill.objective.document import as_section, term_from
from potstill.objective.find import find_loss
from potstill.objective.parts import apply_heads, heads_for
from potstill.objective.presets import preset
from potstill.objective.probe import Probe
from potstill.objective.schedules import Schedule
from potstill.objective.term import Term
from potstill.objective.total import Loss, Objective, Shared, factors_of, first_bad

__all__ = [
    "Loss",
    "Objective",
    "Probe",
    "Schedule",
    "Shared",
    "Term",
    "apply_heads",
    "as_section",
    "check",
    "factors_of",
    "find_loss",
    "first_bad",
    "heads_for",
    "over_batch",
    "preset",
    "term_from",
]
