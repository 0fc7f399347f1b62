"""Teachers: whatever answers a batch with signals. A live model and a store of its answers look the same."""

from __future__ import annotations

from potstill.teachers.at_rest import TorchModel
from potstill.teachers.concatenated import ConcatenatedTeacher
from potstill.teachers.live import LiveTeacher
from potstill.teachers.merged import MergedTeacher
from potstill.teachers.model import Facts, Model, Reads, Source, Teacher, signal_shapes
from potstill.teachers.stored import StoredTeacher, describe_recording
from potstill.teachers.voting import Votes, VotingTeacher

__all__ = [
    "ConcatenatedTeacher",
    "Facts",
    "LiveTeacher",
    "MergedTeacher",
    "Model",
    "Reads",
    "Source",
    "StoredTeacher",
    "Teacher",
    "TorchModel",
    "Votes",
    "VotingTeacher",
    "describe_recording",
    "signal_shapes",
]
