"""The recipe of labelling texts with a chat model: what to ask, whom, and what is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from potstill.recipe.endpoint import Endpoint
from potstill.recipe.section import Section


class TextData(Section):
    """The texts that the prompts are made of."""

    train: str = Field(description="a JSONL, CSV or Parquet file with one row for each prompt")
    id: str | None = Field(None, description="column with a stable id; the row number when absent")
    label: str | None = Field(None, description="column with the right class, to measure the teacher by")
    limit: int | None = Field(
        None, ge=1, description="ask about this many rows, drawn with seed; raising it keeps those that were drawn"
    )
    on_bad: Literal["error", "skip"] = Field("error", description="what to do with rows that have empty texts")


class TextTeacher(Section):
    """The chat model."""

    endpoint: Endpoint


class TextStore(Section):
    """Where the answers go."""

    path: str | None = Field(None, description="a folder of its own; store, beside the answers, when absent")
    dtype: Literal["float32", "float16"] = Field("float16", description="of log-probabilities")


class TextRecipe(Section):
    """Everything that labelling texts needs."""

    task: Literal["text"]
    seed: int = Field(0, ge=0, lt=2**31, description="draws the rows that limit leaves")
    data: TextData
    teacher: TextTeacher
    classes: list[str] | None = Field(
        None, description="ask for one of these classes and record its log-probabilities; free text when absent"
    )
    class_form: Literal["letters", "names"] = Field(
        "letters", description="what the model answers for a class: a letter of a list, or the class's name"
    )
    store: TextStore = TextStore()

    @model_validator(mode="after")
    def _together(self) -> TextRecipe:
        endpoint = self.teacher.endpoint
        if endpoint.protocol != "openai":
            raise ValueError("texts are labelled by chat: teacher.endpoint.protocol must be openai")
        if self.data.label is not None and self.classes is None:
            raise ValueError("data.label is for classes: give classes, or drop it")
        return self
