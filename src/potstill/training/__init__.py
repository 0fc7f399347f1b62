"""Training one model: one correct optimiser step, the loop around it, checkpoints, and how long it will take."""

from potstill.training.average import AverageTeacher
from potstill.training.estimate import estimate
from potstill.training.learner import made_shapes
from potstill.training.loop import Result, train
from potstill.training.optimiser import without_teacher
from potstill.training.rates import is_open
from potstill.training.schedule import learning_rate_at
from potstill.training.setup import check_settings

__all__ = [
    "AverageTeacher",
    "Result",
    "check_settings",
    "estimate",
    "is_open",
    "learning_rate_at",
    "made_shapes",
    "train",
    "without_teacher",
]
