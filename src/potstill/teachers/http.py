"""Asking a model over HTTP: patience with failures that pass, one clear message for those that do not.

Requests may come from several threads at once. Nothing is sent before the first request, and the API key is read
from the environment, sent, and never shown.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from potstill.core.errors import TeacherError, UsageError
from potstill.core.optional import require
from potstill.teachers.deadline import bound, until
from potstill.teachers.pace import Clock, Pace

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 409, 425, 429})
_OF_THE_SAMPLE = frozenset({400, 413, 414, 422})
_LONGEST_PAUSE = 600.0
_SHOWN = 400
MOST_BYTES = 1 << 25
"""Bytes of an answer that are read where the request does not say how long it may be."""
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


class TooLongError(RefusedError):
    """The server answered more than the answer can be; it was read no further."""


class UnreachableError(EndpointError):
    """The last of all tries failed for a reason that may pass."""


class StoppedError(EndpointError):
    """The client was stopped while the request waited; it was not sent."""


@dataclass(frozen=True)
class Response:
    """What a server answered, read whole and no longer than it may be."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The answer as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the answer as plain data.

        Raises:
            ValueError: it is no JSON, or nested without end.

        """
        try:
            return json.loads(self.content)
        except RecursionError:
            raise ValueError("nested too deeply") from None


@dataclass(frozen=True)
class Limits:
    """How much a server is asked, and how patiently.

    Attributes:
        concurrency: requests under way at once.
        requests_per_minute: rate limit, spread evenly; None for none.
        tokens_per_minute: rate limit of prompt and answer together; None for none.
        retries: further tries of a request that failed for a passing reason.
        timeout: seconds until a try counts as failed, from its beginning to the answer's last byte.
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
                headers={"Accept-Encoding": "identity", **filled},
                timeout=limits.timeout,
                limits=self._httpx.Limits(
                    max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency
                ),
            )
            bound(self._client)
        except (UnicodeError, ValueError, TypeError):
            raise UsageError("A header or the API key holds characters that HTTP headers cannot hold.") from None

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``; errors as `post`."""
        return self.request("GET", path, read=self._json)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        tokens: float = 0.0,
        on_lost: Callable[[], None] | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> Any:
        """Send ``body`` as JSON and return the JSON that comes back.

        Args:
            path: added to the base address.
            body: plain data.
            tokens: how many the request will cost, about, for the rate limit.
            on_lost: called after each try that was sent and not answered: the server may have counted it.
            most_bytes: the longest answer that is read.

        Raises:
            RefusedError: this body is refused (400, 413, 422), or its answer is too long.
            EndpointError: the server refuses everything (wrong key, model or address).
            UnreachableError: all tries failed.

        """
        return self.request(
            "POST", path, json=body, tokens=tokens, on_lost=on_lost, most_bytes=most_bytes, read=self._json
        )

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
        most_bytes: int = MOST_BYTES,
        read: Callable[[Response, str], Any] | None = None,
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
                    response = self._answer(method, address, most_bytes, headers=headers, **options)
                    if 200 <= response.status_code < 300:
                        return response if read is None else read(response, path)
                    problem = self._problem(response, address)
                    pause = _retry_after(response.headers)
                except (self._httpx.TransportError, self._httpx.DecodingError) as error:
                    problem = self._lost(error, address, on_lost)
                except (_UnreadableError, TooLongError) as error:
                    problem = str(error)
                    if on_lost is not None:
                        on_lost()
                    if isinstance(error, TooLongError):
                        raise
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

    def _answer(self, method: str, address: str, most_bytes: int, **options: Any) -> Response:
        """Send one request and read its answer, both within the time and the length that they may take."""
        with until(self.limits.timeout), self._client.stream(method, address, **options) as response:
            content = bytearray()
            for chunk in self._decoded(response, most_bytes, address):
                content += chunk
                if len(content) > most_bytes:
                    raise TooLongError(
                        f"{self._shown(address)} answered more than {most_bytes:,} bytes, which is more than the "
                        "answer to this request can be. The rest was not read."
                    )
            return Response(response.status_code, dict(response.headers), bytes(content))

    def _decoded(self, response: httpx.Response, most_bytes: int, address: str) -> Iterator[bytes]:
        """Yield a response's bytes; a compressed one is never unpacked further than it may be long."""
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed in ("identity", ""):
            yield from response.iter_raw()
            return
        if packed not in ("gzip", "deflate"):
            raise _UnreadableError(
                f"{self._shown(address)} answered in the encoding '{packed}', which was not asked for."
            )
        unpacking = zlib.decompressobj(47 if packed == "gzip" else zlib.MAX_WBITS)
        try:
            for chunk in response.iter_raw():
                yield unpacking.decompress(chunk, most_bytes + 1)
                if unpacking.unconsumed_tail:
                    yield bytes(most_bytes + 1)
        except zlib.error as error:
            raise _UnreadableError(
                f"{self._shown(address)} answered something that cannot be unpacked: {error}."
            ) from None

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

    def _problem(self, response: Response, address: str) -> str:
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

    def _json(self, response: Response, path: str) -> Any:
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


def shown(value: Any) -> str:
    """Return the beginning of what a server said, for an error."""
    try:
        return json.dumps(value, ensure_ascii=False)[:200]
    except (ValueError, RecursionError):
        return "something that is nested too deeply"


def _shown_url(url: str) -> str:
    """Return an address without user, password and query, where secrets may stand."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _said(response: Response) -> tuple[str, str]:
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
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
