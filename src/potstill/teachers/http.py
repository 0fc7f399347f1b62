"""Asking a model over HTTP: patience with failures that pass, one clear message for those that do not.

Requests may come from several threads at once. Nothing is sent before the first request, and the API key is read
from the environment, sent, and never shown.
"""

from __future__ import annotations

import email.utils
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from potstill.core.errors import TeacherError, UsageError
from potstill.core.optional import require
from potstill.teachers.pace import Clock, Pace

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 409, 425, 429})
_OF_THE_SAMPLE = frozenset({400, 413, 414, 422})
_LONGEST_PAUSE = 600.0
_SHOWN = 400
_JITTER = random.SystemRandom()
_HINTS = {
    401: "The key is missing or wrong: name the environment variable that holds it as key_env.",
    403: "The key may not use this model or address.",
    404: "Check url and model; the url of OpenAI-compatible servers usually ends in /v1.",
    405: "Check url and protocol.",
}


class EndpointError(TeacherError):
    """The server cannot be used as the recipe says: asking again, or asking something else, would not help."""


class RefusedError(EndpointError):
    """The server refuses this request, or its answer cannot be used; others may be answered."""


class UnreachableError(EndpointError):
    """The last of all tries failed for a reason that may pass."""


class StoppedError(EndpointError):
    """The client was stopped while the request waited; it was not sent."""


@dataclass(frozen=True)
class Limits:
    """How much a server is asked, and how patiently.

    Attributes:
        concurrency: requests under way at once.
        requests_per_minute: rate limit, spread evenly; None for none.
        tokens_per_minute: rate limit of prompt and answer together; None for none.
        retries: further tries of a request that failed for a passing reason.
        timeout: seconds without a byte until a try counts as failed.
        backoff: seconds before the first further try; doubled each time, up to a minute, and shortened by chance.

    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    retries: int = 6
    timeout: float = 120.0
    backoff: float = 1.0


class HttpClient:
    """One server, asked by any number of threads.

    Args:
        url: base address; request paths are added to it.
        headers: sent with each request; ``${NAME}`` is replaced by the environment variable.
        key_env: environment variable that holds the API key, sent as bearer token.
        limits: how much and how patiently to ask.
        clock: where time comes from.

    Raises:
        UsageError: an environment variable is not set, or ``url`` is not an address.
        PotstillError: httpx is not installed.

    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        key_env: str | None = None,
        limits: Limits = Limits(),
        clock: Clock = Clock(),  # noqa: B008 - frozen
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{_shown_url(url)}' is not an address; expected one such as http://localhost:8000/v1.")
        self._httpx = require("httpx", feature="a teacher behind a web address", extra="endpoints")
        self._secrets: set[str] = {parts.password} if parts.password else set()
        filled = {name: self._filled(value) for name, value in (headers or {}).items()}
        if key_env is not None:
            filled["Authorization"] = f"Bearer {self._secret(key_env, 'key_env')}"
        self.url = url.rstrip("/")
        self.limits = limits
        self.pace = Pace(limits.requests_per_minute, limits.tokens_per_minute, clock)
        self.retried = 0
        self._clock = clock
        self._stop = Event()
        self._slots = BoundedSemaphore(limits.concurrency)
        try:
            self._client: httpx.Client = self._httpx.Client(
                headers=filled,
                timeout=limits.timeout,
                limits=self._httpx.Limits(
                    max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency
                ),
            )
        except (UnicodeError, ValueError, TypeError):
            raise UsageError("A header or the API key holds characters that HTTP headers cannot hold.") from None

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``; errors as `post`."""
        return self.request("GET", path, read=self._json)

    def post(
        self, path: str, body: Mapping[str, Any], *, tokens: float = 0.0, on_lost: Callable[[], None] | None = None
    ) -> Any:
        """Send ``body`` as JSON and return the JSON that comes back.

        Args:
            path: added to the base address.
            body: plain data.
            tokens: how many the request will cost, about, for the rate limit.
            on_lost: called after each try that was sent and not answered: the server may have counted it.

        Raises:
            RefusedError: this body is refused (400, 413, 422).
            EndpointError: the server refuses everything (wrong key, model or address).
            UnreachableError: all tries failed.

        """
        return self.request("POST", path, json=body, tokens=tokens, on_lost=on_lost, read=self._json)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        tokens: float = 0.0,
        on_lost: Callable[[], None] | None = None,
        read: Callable[[Any, str], Any] | None = None,
    ) -> Any:
        """Send one request, again where that may help, and return the response or what ``read`` makes of it."""
        address = f"{self.url}/{path.lstrip('/')}"
        options: dict[str, Any] = {"json": json} if json is not None else {"content": content}
        for attempt in range(self.limits.retries + 1):
            pause = None
            with self._slots:
                self.pace.wait(tokens, self._stop)
                if self._stop.is_set():
                    raise StoppedError(f"{self._shown(address)}: stopped before the request was sent.")
                try:
                    response = self._client.request(method, address, headers=headers, **options)
                    if 200 <= response.status_code < 300:
                        return response if read is None else read(response, path)
                    problem = self._problem(response, address)
                    pause = _retry_after(response.headers)
                except (self._httpx.TransportError, self._httpx.DecodingError) as error:
                    problem = self._lost(error, address, on_lost)
                except _UnreadableError as error:
                    problem = str(error)
                    if on_lost is not None:
                        on_lost()
                except (self._httpx.HTTPError, self._httpx.InvalidURL, UnicodeError) as error:
                    raise EndpointError(f"{self._shown(address)}: {type(error).__name__}.") from None
            if attempt == self.limits.retries:
                break
            self.retried += 1
            if pause is not None:
                self.pace.pause(min(pause, _LONGEST_PAUSE))
            else:
                longest = min(60.0, self.limits.backoff * 2.0**attempt)
                self._clock.wait(self._stop, longest * _JITTER.uniform(0.5, 1.0))
        tries = self.limits.retries + 1
        raise UnreachableError(f"{problem} Tried {tries} {'time' if tries == 1 else 'times'}.")

    def stop(self) -> None:
        """Send nothing more; requests that wait raise `StoppedError`, those under way end as they would."""
        self._stop.set()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def hide(self, text: str) -> str:
        """Return ``text`` without the API key and other secrets, should the server have repeated them."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _secret(self, name: str, asked_by: str) -> str:
        value = os.environ.get(name, "").strip()
        if not value:
            raise UsageError(f"The environment variable {name} ({asked_by}) is not set. Set it to the API key.")
        self._secrets.add(value)
        return value

    def _filled(self, value: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda found: self._secret(found[1], "in headers"), value)

    def _shown(self, address: str) -> str:
        return self.hide(_shown_url(address))

    def _problem(self, response: httpx.Response, address: str) -> str:
        """Return what is wrong if it may pass; raise if it will not."""
        status = response.status_code
        said, code = _said(response)
        problem = f"{self._shown(address)} answered {status}" + (f": {self.hide(said)}" if said else ".")
        if status in _OF_THE_SAMPLE:
            raise RefusedError(problem)
        if (status in _PASSING and code != "insufficient_quota") or status >= 500:
            return problem
        if 300 <= status < 400:
            moved = self._shown(response.headers.get("location", "another address"))
            raise EndpointError(f"{problem} It points to {moved}; write that address as url.")
        hint = _HINTS.get(status, "")
        raise EndpointError(f"{problem} {hint}".rstrip())

    def _lost(self, error: Exception, address: str, on_lost: Callable[[], None] | None) -> str:
        httpx = self._httpx
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            raise EndpointError(f"{self._shown(address)}: the request could not be made ({type(error).__name__}).")
        never_sent = httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError
        if on_lost is not None and not isinstance(error, never_sent):
            on_lost()
        if isinstance(error, httpx.TimeoutException):
            return f"{self._shown(address)} did not answer within {self.limits.timeout:g} seconds."
        words = self.hide(str(error)) or type(error).__name__
        return f"{self._shown(address)} could not be asked: {words}."

    def _json(self, response: httpx.Response, path: str) -> Any:
        try:
            return response.json()
        except (ValueError, UnicodeError):
            text = self.hide(" ".join(response.text[:_SHOWN].split()))
            problem = f"{self._shown(f'{self.url}/{path}')} answered something that is not JSON: '{text[:120]}'."
            if "html" in response.headers.get("content-type", ""):
                raise EndpointError(f"{problem} {_HINTS[404]}") from None
            raise _UnreadableError(problem) from None


class _UnreadableError(EndpointError):
    """The answer is not JSON; perhaps it was cut."""


def _shown_url(url: str) -> str:
    """Return an address without user, password and query, where secrets may stand."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _said(response: httpx.Response) -> tuple[str, str]:
    """Return the server's message and its error code, as OpenAI-compatible and inference servers write them."""
    try:
        body = response.json()
    except (ValueError, UnicodeError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    code = str(error.get("code") or "") if isinstance(error, dict) else ""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    text = response.text if error is None else error if isinstance(error, str) else str(error)
    return " ".join(text.split())[:_SHOWN], code


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, from either form of Retry-After."""
    value = headers.get("retry-after-ms") or headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value) / (1000.0 if headers.get("retry-after-ms") else 1.0)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
