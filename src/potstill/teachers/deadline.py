"""One deadline for a whole HTTP request: connecting, sending, headers and body, however slowly the bytes come.

The time-outs of HTTP clients are about the pause between two bytes, so that a server that sends one byte a second holds
a request for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

_here = local()
_PIECE = 65_536
"""Bytes that are sent before the clock is looked at again."""


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Let all that this thread does on bounded connections end within so many seconds."""
    _here.end = time.monotonic() + seconds
    try:
        yield
    finally:
        _here.end = None


def bound(client: Any) -> None:
    """Make the connections of an ``httpx.Client`` keep to `until`."""
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend)


def _left(seconds: float | None) -> float | None:
    """Return the shorter of a time-out and the time that is left; what has passed its deadline times out at once."""
    end: float | None = getattr(_here, "end", None)
    if end is None:
        return seconds
    left = max(end - time.monotonic(), 1e-3)
    return left if seconds is None else min(left, seconds)


class _Backend:
    """Opens connections that keep to the deadline."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        return _Stream(self._backend.connect_tcp(host, port, _left(timeout), local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream:
    """One connection that keeps to the deadline."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return bytes(self._stream.read(max_bytes, _left(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
