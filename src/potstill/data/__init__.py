"""Samples: where they come from, whether they can be trusted, how they are changed, and in which batches they come."""

from __future__ import annotations

from potstill.data.augment import AugmentSettings, augment, check_augment, mix
from potstill.data.checks import check, label_shift
from potstill.data.columns import Column
from potstill.data.load import channel_statistics, load
from potstill.data.samples import Data, Samples, make_samples, only_classes
from potstill.data.stream import Stream
from potstill.tasks.base import Finding

__all__ = [
    "AugmentSettings",
    "Column",
    "Data",
    "Finding",
    "Samples",
    "Stream",
    "augment",
    "channel_statistics",
    "check",
    "check_augment",
    "label_shift",
    "load",
    "make_samples",
    "mix",
    "only_classes",
]
