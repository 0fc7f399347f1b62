"""The section about what the teacher said, on disk."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from potstill.recipe.section import Section

_SETTINGS = {
    "full": ("dtype",),
    "top_k": ("k", "bits"),
    "random": ("draws", "systematic"),
    "threshold": ("size", "bits"),
    "low_rank": ("rank", "dtype", "layer"),
}
_NEEDED = {"top_k": "k", "low_rank": "rank"}


class CodecSection(Section):
    """How a signal is kept."""

    codec: Literal["full", "top_k", "random", "threshold", "low_rank"] = Field(
        "full", description="every number, the likeliest classes, samples, or the last layer's input reduced"
    )
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = Field(
        None, description="full and low_rank: the number format; float16 when absent"
    )
    k: int | None = Field(None, ge=1, description="top_k: classes kept")
    size: int | None = Field(None, ge=1, description="threshold: classes kept; 16 when absent")
    bits: int | None = Field(
        None, ge=4, le=16, description="top_k and threshold: bits of a log-probability; 8 when absent"
    )
    draws: int | None = Field(None, ge=1, le=4096, description="random: classes drawn; 50 when absent")
    systematic: bool | None = Field(
        None, description="random: draws at even distances from one random start, which is less noisy"
    )
    rank: int | None = Field(None, ge=1, description="low_rank: numbers kept")
    layer: str | None = Field(None, description="low_rank: the teacher's last linear layer; found when absent")

    @model_validator(mode="after")
    def _of_one_codec(self) -> CodecSection:
        takes, needs = _SETTINGS[self.codec], _NEEDED.get(self.codec)
        given = [name for name in type(self).model_fields if name != "codec" and getattr(self, name) is not None]
        wrong = [name for name in given if name not in takes]
        if wrong:
            raise ValueError(f"the codec {self.codec} takes {' and '.join(takes)}, not {wrong[0]}")
        if needs is not None and getattr(self, needs) is None:
            raise ValueError(f"the codec {self.codec} needs {needs}, such as {needs}: 20")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the codec as plain data: its name and what was set."""
        return self.model_dump(exclude={"layer"}, exclude_none=True)


class Store(Section):
    """What the teacher said, on disk."""

    path: str | None = Field(
        None, description="a folder of its own, or an address such as s3://bucket/store; beside the run when absent"
    )
    dtype: Literal["float32", "float16"] = Field("float16", description="of signals without a codec of their own")
    codecs: dict[str, CodecSection] = Field(
        default_factory=dict, description="how a signal is kept, such as {logits: {codec: top_k, k: 50}}"
    )
    accept_loss: bool = Field(
        False, description="record even where the number format or codec loses much of what the teacher says"
    )
    shards: int | None = Field(None, ge=1, description="parts that processes can record alone; by size when absent")
    views: int | None = Field(
        None,
        ge=1,
        description="augmented views recorded of each training sample; when absent "
        "1 without augmentation, else one for each epoch and at most 10",
    )
