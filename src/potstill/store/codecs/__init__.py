"""How numbers are kept: every codec turns items into bytes and back, and the store knows bytes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from potstill.core.errors import UsageError, did_you_mean
from potstill.store.codecs.choices import alternatives, likeliest, numbers
from potstill.store.codecs.codec import Codec, Facts
from potstill.store.codecs.full import Dtype, Full
from potstill.store.codecs.low_rank import Basis, LowRank, fit_basis, project, rebuild, reduced_head
from potstill.store.codecs.random_sampling import RandomSampling
from potstill.store.codecs.records import LEAST_PROBABILITY, BadItem, Keys, Records, Sparse
from potstill.store.codecs.threshold import ThresholdSampling
from potstill.store.codecs.top_k import TopK

_EVERY: tuple[type[Codec], ...] = (Full, TopK, RandomSampling, ThresholdSampling, LowRank)
CODECS = {codec.name: codec for codec in _EVERY}


def from_json(data: Mapping[str, Any]) -> Codec:
    """Return the codec that ``to_json`` wrote as ``data``, or that a recipe asks for.

    Raises:
        UsageError: no codec has this name, or it has other settings.

    """
    settings = dict(data)
    name = str(settings.pop("codec", None))
    if name not in CODECS:
        raise UsageError(f"There is no codec {name!r}.{did_you_mean(name, CODECS)}")
    known = {field.name: field for field in fields(CODECS[name])}
    hints = get_type_hints(CODECS[name])
    for setting, value in settings.items():
        if setting not in known:
            raise UsageError(f"The codec {name} does not take {setting}, but {' and '.join(known)}.")
        try:
            TypeAdapter(hints[setting]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UsageError(f"The codec {name}: {setting} is {value!r}. {error.errors()[0]['msg']}.") from error
    for setting, field in known.items():
        if field.default is MISSING and setting not in settings:
            raise UsageError(f"The codec {name} needs {setting}, such as {setting}: 20.")
    return CODECS[name](**settings)


__all__ = [
    "CODECS",
    "LEAST_PROBABILITY",
    "BadItem",
    "Basis",
    "Codec",
    "Dtype",
    "Facts",
    "Full",
    "Keys",
    "LowRank",
    "RandomSampling",
    "Records",
    "Sparse",
    "ThresholdSampling",
    "TopK",
    "alternatives",
    "fit_basis",
    "from_json",
    "likeliest",
    "numbers",
    "project",
    "rebuild",
    "reduced_head",
]
