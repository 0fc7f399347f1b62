"""The section of a teacher that answers over HTTP."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from potstill.recipe.section import Positive, Section


class Endpoint(Section):
    """A model behind a web address."""

    url: str = Field(description="base address, such as http://localhost:8000/v1 or http://localhost:8080")
    model: str = Field(description="name of the model there")
    protocol: Literal["openai", "open-inference"] = Field(
        "openai", description="OpenAI-compatible chat/completions, or Open Inference Protocol v2"
    )
    key_env: str | None = Field(None, description="environment variable that holds the API key; none is sent if absent")
    headers: dict[str, str] = Field(
        default_factory=dict, description="more headers; ${NAME} is read from the environment"
    )
    input: str | None = Field(None, description="open-inference: name of the input tensor; the only one when absent")
    output: str | None = Field(
        None, description="open-inference: name of the output tensor to read; all of them when absent"
    )
    batch_size: int = Field(32, ge=1, description="open-inference: most samples in one request")
    prompt: str | None = Field(
        None, description="openai: the user's message, with {column} in it for each input column"
    )
    system: str | None = Field(None, description="openai: the system message, which may hold {column} too")
    top_logprobs: int = Field(
        20, ge=0, le=1000, description="openai: likeliest tokens asked for at each position; 0 records text only"
    )
    max_tokens: int | None = Field(
        None, ge=1, description="openai: longest answer in tokens; 512, or 8 where classes are asked for, when absent"
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="openai: further parameters of each request, such as {temperature: 0.7}"
    )
    concurrency: int = Field(4, ge=1, le=1024, description="requests under way at once")
    requests_per_minute: Positive | None = Field(None, description="rate limit")
    tokens_per_minute: Positive | None = Field(None, description="openai: rate limit, prompt and answer together")
    retries: int = Field(6, ge=0, description="further tries of a request that failed for a passing reason")
    timeout: Positive = Field(120.0, description="seconds for the whole answer, then the try counts as failed")
    price_in: float = Field(0.0, ge=0, description="openai: money for a million prompt tokens")
    price_out: float = Field(0.0, ge=0, description="openai: money for a million answer tokens")
    spend_limit: Positive | None = Field(
        None, description="openai: stop, keeping what is there, before this much money is spent"
    )

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        # The address is written into files and messages.
        if "@" in url.partition("://")[2].partition("/")[0] or "?" in url:
            raise ValueError("an address with a user, password or query; send secrets with key_env or headers")
        return url

    @model_validator(mode="after")
    def _of_the_protocol(self) -> Endpoint:
        other = "open-inference" if self.protocol == "openai" else "openai"
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if str(field.description).startswith(f"{other}:") and getattr(self, name) != default:
                raise ValueError(f"{name} is for protocol: {other}, and this one is {self.protocol}")
        if self.spend_limit is not None and not (self.price_in or self.price_out):
            raise ValueError("spend_limit needs price_in and price_out, the money for a million tokens")
        return self
