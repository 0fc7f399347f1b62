"""Asking a chat model: OpenAI-compatible ``chat/completions``, with the log-probabilities of each token where given.

Everything here is a pure function of plain data but `ask`, which sends one request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from potstill.core.errors import UsageError, did_you_mean
from potstill.teachers.http import HttpClient, RefusedError, shown
from potstill.teachers.spend import Spend, Usage

PATH = "chat/completions"
OURS = ("model", "messages", "max_tokens", "logprobs", "top_logprobs", "stream", "n")
"""Parameters of a request that are set here, so that others must not set them."""
_MOST_TOKENS = 10**9
_BYTES_AROUND, _BYTES_PER_TOKEN = 4_000_000, 1_000
_LONGEST_TOKEN = 10_000
_SHOWN = 200
_TEMPLATE_TOKENS = 64
"""Tokens that a server may put around the messages, at most, for the worst case of a spend limit."""


class UnusableError(RefusedError):
    """An answer that came, and was paid for, but cannot be used; ``usage`` is what it cost."""

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        content: its bytes; a token need not be whole UTF-8 characters.
        logprob: its log-probability, in nats.
        top: the likeliest tokens at its place and their log-probabilities, likeliest first.

    """

    content: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class ChatAnswer:
    """What a chat model answered.

    Attributes:
        text: the answer.
        finish_reason: "stop", "length", "content_filter" or what else the server says.
        tokens: its tokens; None where the server gave no log-probabilities.
        usage: tokens of prompt and answer.
        usage_is_estimated: whether the server did not count, so that ``usage`` is an upper bound.

    """

    text: str
    finish_reason: str
    tokens: tuple[Token, ...] | None
    usage: Usage
    usage_is_estimated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain data; `answer_from_json` reads it back, equal."""
        tokens = None
        if self.tokens is not None:
            tokens = [
                [_plain(token.content), token.logprob, [[_plain(other), value] for other, value in token.top]]
                for token in self.tokens
            ]
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "tokens": tokens,
            "usage": [self.usage.tokens_in, self.usage.tokens_out],
            "usage_is_estimated": self.usage_is_estimated,
        }


def answer_from_json(value: Mapping[str, Any]) -> ChatAnswer:
    """Return the answer that `ChatAnswer.to_json` wrote."""
    tokens = value["tokens"]
    return ChatAnswer(
        value["text"],
        value["finish_reason"],
        None
        if tokens is None
        else tuple(
            Token(_content(one), logprob, tuple((_content(other), number) for other, number in top))
            for one, logprob, top in tokens
        ),
        Usage(*value["usage"]),
        value["usage_is_estimated"],
    )


def template_columns(template: str, known: Sequence[str] | None = None, *, key: str = "prompt") -> list[str]:
    """Return the names in ``{braces}``, each once.

    Args:
        template: text with ``{column}``; ``{{`` and ``}}`` stand for single braces.
        known: the columns that exist; not checked when None.
        key: what the template is called in errors.

    Raises:
        UsageError: braces that do not fit, more than a name in them, or an unknown column.

    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"{key}: {error}. Write {{{{ and }}}} for braces that are meant as such.") from None
    names: list[str] = []
    for _, name, how, conversion in parts:
        if name is None:
            continue
        if not name or how or conversion or not name.replace("_", "a").replace("-", "a").replace(" ", "a").isalnum():
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + how if how else ''}"
            raise UsageError(
                f"{key}: '{{{shown}}}' is not the name of a column. "
                "Write {{ and }} for braces that are meant as such."
            )
        if known is not None and name not in known:
            raise UsageError(f"{key}: the data has no column '{name}'.{did_you_mean(name, known)}")
        names.append(name)
    return list(dict.fromkeys(names))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return ``template`` with each ``{column}`` replaced by its value, taken as it is."""
    return "".join(text + ("" if name is None else values[name]) for text, name, _, _ in Formatter().parse(template))


def messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    """Return one user's message, after a system message if there is one."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def request_body(
    model: str,
    conversation: Sequence[Mapping[str, str]],
    *,
    max_tokens: int,
    top_logprobs: int,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is sent.

    Args:
        model: name on the server.
        conversation: messages with role and content.
        max_tokens: longest answer; called ``max_completion_tokens`` if ``parameters`` has that name.
        top_logprobs: likeliest tokens asked for at each place; 0 asks for no log-probabilities.
        parameters: sent as they are.

    Raises:
        UsageError: ``parameters`` sets what is set here.

    """
    parameters = parameters or {}
    for name in OURS:
        if name in parameters:
            instead = {"max_tokens": "max_tokens", "logprobs": "top_logprobs", "top_logprobs": "top_logprobs"}
            hint = f"; use the endpoint's {instead[name]}" if name in instead else ""
            raise UsageError(f"parameters.{name} cannot be set here{hint}.")
    longest = parameters.get("max_completion_tokens", max_tokens)
    if type(longest) is not int or longest < 1:
        raise UsageError(f"parameters.max_completion_tokens is {longest!r}; expected a whole number from 1 on.")
    body: dict[str, Any] = {"model": model, "messages": list(conversation), **parameters}
    if "max_completion_tokens" not in parameters:
        body["max_tokens"] = max_tokens
    if top_logprobs:
        body |= {"logprobs": True, "top_logprobs": top_logprobs}
    return body


def worst_case(body: Mapping[str, Any]) -> Usage:
    """Return how many tokens a request may cost at most: a token is at least one byte of the prompt."""
    prompt = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in body["messages"])
    longest = body.get("max_completion_tokens", body.get("max_tokens", 0))
    return Usage(prompt + _TEMPLATE_TOKENS, int(longest))


def _most_bytes(body: Mapping[str, Any]) -> int:
    """Return how long an answer may be: each token and each of its alternatives, generously, and what stands around."""
    longest = int(body.get("max_completion_tokens", body.get("max_tokens", 0)))
    return _BYTES_AROUND + longest * (1 + int(body.get("top_logprobs", 0))) * _BYTES_PER_TOKEN


def read_answer(payload: Any, worst: Usage) -> ChatAnswer:
    """Return the answer that a server's JSON holds.

    Args:
        payload: as it came.
        worst: upper bound of the usage, for servers that do not count.

    Raises:
        UnusableError: it is not an answer; says what is missing.

    """
    usage = _usage(payload)
    cost = usage or worst
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        text = message.get("content")
        finish = str(choice.get("finish_reason") or "unknown")[:_SHOWN]
        places = (choice.get("logprobs") or {}).get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        said = shown(payload)
        raise UnusableError(f"The answer is not a chat completion: no choices[0].message in {said}.", cost) from None
    if finish == "content_filter":
        raise UnusableError("The server's content filter stopped the answer (finish_reason content_filter).", cost)
    if not isinstance(text, str):
        said = message.get("refusal")
        words = f"The model refused: {said[:200]}" if isinstance(said, str) else "The answer has no text."
        raise UnusableError(f"{words} (finish_reason {finish})", cost)
    try:
        tokens = tuple(map(_token, places)) if places else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UnusableError(f"The answer's log-probabilities cannot be read: {shown(places)}.", cost) from None
    if usage is not None:
        return ChatAnswer(text, finish, tokens, usage)
    tokens_out = worst.tokens_out if tokens is None else len(tokens)
    return ChatAnswer(text, finish, tokens, Usage(worst.tokens_in, tokens_out), usage_is_estimated=True)


def ask(
    client: HttpClient,
    body: Mapping[str, Any],
    spend: Spend,
    *,
    on_send: Callable[[], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> ChatAnswer:
    """Send one request and return its answer, with its cost counted.

    Args:
        client: the server.
        body: of `request_body`.
        spend: what may be spent.
        on_send: called once, when there is money for the request and before any of it is sent.
        on_lost: called for each try that was sent and not answered.

    Raises:
        SpendLimitError: the request might pass the limit; nothing was sent.
        RefusedError: this request is refused.
        UnusableError: there is an answer, but it cannot be used; it was paid for all the same.
        EndpointError: as `HttpClient.post`.

    """
    worst = worst_case(body)
    guess = client.pace.guess(worst.tokens_in / 3 + worst.tokens_out / 2)

    def lost() -> None:
        if on_lost is not None:
            on_lost()
        reservation.lose()

    with spend.reserve(worst) as reservation:
        if on_send is not None:
            on_send()
        payload = client.post(PATH, body, tokens=guess, on_lost=lost, most_bytes=_most_bytes(body))
        try:
            answer = read_answer(payload, worst)
        except UnusableError as error:
            reservation.settle(error.usage)
            raise
        reservation.settle(answer.usage)
    client.pace.settle(guess, answer.usage.tokens_in + answer.usage.tokens_out)
    return answer


def _usage(payload: Any) -> Usage | None:
    """Return the tokens that the server counted, or None where it did not."""
    found = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(found, dict):
        return None
    tokens_in, tokens_out = found.get("prompt_tokens"), found.get("completion_tokens")
    # Not isinstance: True is no count; nor is a number that no answer has.
    counts = [count for count in (tokens_in, tokens_out) if type(count) is int and 0 <= count <= _MOST_TOKENS]
    return Usage(*counts) if len(counts) == 2 else None


def _token(place: Mapping[str, Any]) -> Token:
    top = [(_bytes(other), _number(other["logprob"])) for other in place.get("top_logprobs") or ()]
    return Token(_bytes(place), _number(place["logprob"]), tuple(sorted(top, key=lambda pair: -pair[1])))


def _bytes(place: Mapping[str, Any]) -> bytes:
    given = place.get("bytes")
    if given is None:
        return str(place["token"])[:_LONGEST_TOKEN].encode("utf-8", "surrogatepass")
    # Not a number: bytes(10**11) is as many zeros.
    if not isinstance(given, list) or len(given) > _LONGEST_TOKEN:
        raise ValueError("not the bytes of a token")
    return bytes(given)


def _number(value: Any) -> float:
    """Return a log-probability; servers write -9999 or null for less than they can tell."""
    number = -9999.0 if value is None else float(value)
    # Rounding may bring a certain token a little above 0, and nothing more.
    if isinstance(value, bool) or math.isnan(number) or number > 0.01:
        raise ValueError("no log-probability")
    return min(0.0, max(-9999.0, number))


def _plain(content: bytes) -> str | list[int]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return list(content)


def _content(plain: str | list[int]) -> bytes:
    return plain.encode() if isinstance(plain, str) else bytes(plain)
