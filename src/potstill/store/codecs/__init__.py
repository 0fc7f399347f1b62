"""How numbers are kept: every codec turns items into bytes and back, and the store knows bytes only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.core.errors import UsageError, did_you_mean
from potstill.store.codecs.full import Full
from potstill.store.codecs.low_rank import Basis, LowRank, fit_basis, project, rebuild, reduced_head
from potstill.store.codecs.random_sampling import RandomSampling
from potstill.store.codecs.records import LEAST_PROBABILITY, BadItem, Keys, Records, Sparse
from potstill.store.codecs.threshold import ThresholdSampling
from potstill.store.codecs.top_k import TopK

SparseCodec = TopK | RandomSampling | ThresholdSampling
Codec = Full | LowRank | SparseCodec

CODECS: Mapping[str, type[Codec]] = {
    codec.name: codec for codec in (Full, TopK, RandomSampling, ThresholdSampling, LowRank)
}


def from_json(data: Mapping[str, Any]) -> Codec:
    """Return the codec that ``to_json`` wrote as ``data``.

    Raises:
        UsageError: no codec has this name, or it has other settings.

    """
    settings = dict(data)
    name = str(settings.pop("codec", None))
    if name not in CODECS:
        raise UsageError(f"There is no codec {name!r}.{did_you_mean(name, CODECS)}")
    try:
        return CODECS[name](**settings)
    except TypeError as error:
        raise UsageError(f"The codec {name} does not take {settings}: {error}.") from error


__all__ = [
    "CODECS",
    "LEAST_PROBABILITY",
    "BadItem",
    "Basis",
    "Codec",
    "Full",
    "Keys",
    "LowRank",
    "RandomSampling",
    "Records",
    "Sparse",
    "SparseCodec",
    "ThresholdSampling",
    "TopK",
    "fit_basis",
    "from_json",
    "project",
    "rebuild",
    "reduced_head",
]
