"""The section about what the teacher said, on disk."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_serializer, model_validator

from potstill.core.errors import UsageError
from potstill.recipe.section import Section

_KEYS = ("dtype", "k", "size", "bits", "draws", "systematic", "rank", "layer")
"""Settings that are written out as null where they are not given: the keys of results of before name them."""


class CodecSection(Section):
    """How a signal is kept: the name of a codec, and its settings, which only that codec knows."""

    model_config = ConfigDict(extra="allow")

    codec: str = Field("full", description="how; the guide to codecs names them all with their settings")

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _is_known(self) -> CodecSection:
        from potstill.store import codecs  # loads torch, which a recipe without codecs is checked without

        try:
            codecs.from_json(self.settings())
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {"codec": self.codec, **dict.fromkeys(_KEYS), **self.settings()}

    def settings(self) -> dict[str, Any]:
        """Return the codec as plain data: its name and what was set."""
        return {"codec": self.codec, **(self.model_extra or {})}


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
