"""The codecs that are taken where nobody chose one."""

from __future__ import annotations

from potstill.store.codecs.codec import Codec
from potstill.store.codecs.full import Dtype, Full
from potstill.store.codecs.threshold import ThresholdSampling
from potstill.store.codecs.top_k import TopK


def numbers(dtype: Dtype) -> Codec:
    """Return the codec that keeps every number in a format."""
    return Full(dtype)


def likeliest(classes: int, bits: int) -> TopK:
    """Return the codec for what others have kept of distributions: the likeliest classes."""
    return TopK(classes, bits)


def alternatives(classes: int) -> list[Codec]:
    """Return codecs that are worth a comparison for logits of so many classes."""
    few = [TopK(k) for k in (5, 50) if 4 * k <= classes]
    return [Full("float16"), Full("int8"), *few, *(ThresholdSampling(m) for m in (8, 16) if 4 * m <= classes)]
