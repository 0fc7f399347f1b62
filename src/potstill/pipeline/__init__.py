"""The main job: prepare a recipe, turn it into one list of stages, and run, plan or repeat these in a run folder."""

from __future__ import annotations

from potstill.pipeline.build import Given
from potstill.pipeline.distilling import distill
from potstill.pipeline.label import Labelled, label
from potstill.pipeline.listing import find_runs
from potstill.pipeline.planning import Plan, PlannedStage, plan
from potstill.pipeline.repeating import evaluate, export, rewrite_report
from potstill.pipeline.running import Run, run

__all__ = [
    "Given",
    "Labelled",
    "Plan",
    "PlannedStage",
    "Run",
    "distill",
    "evaluate",
    "export",
    "find_runs",
    "label",
    "plan",
    "rewrite_report",
    "run",
]
