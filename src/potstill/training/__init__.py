"""Training one model: one correct optimiser step, the loop around it, checkpoints, and how long it will take."""

from potstill.training.average import AverageTeacher
from potstill.training.estimate import estimate
from potstill.training.history import still_rises
from potstill.training.learner import Learner, learner_of
from potstill.training.loop import train
from potstill.training.optimiser import without_teacher
from potstill.training.rates import is_open
from potstill.training.result import Result
from potstill.training.schedule import learning_rate_at
from potstill.training.setup import check_settings
from potstill.training.spec import Spec
from potstill.training.trainee import made_shapes
from potstill.training.validate import Metric

__all__ = [
    "AverageTeacher",
    "Learner",
    "Metric",
    "Result",
    "Spec",
    "check_settings",
    "estimate",
    "is_open",
    "learner_of",
    "learning_rate_at",
    "made_shapes",
    "still_rises",
    "train",
    "without_teacher",
]
