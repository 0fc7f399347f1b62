"""When the next request may start: rate limits and pauses, shared by the threads that ask one server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock


@dataclass(frozen=True)
class Clock:
    """Where time comes from; tests give one that does not pass by itself."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[Event, float], object] = Event.wait


class Pace:
    """Starts of requests, spread evenly so that no minute holds more than the limits.

    A token bucket that holds one request: each start moves the earliest next start by its share of a minute. Servers
    count in windows of their own, so nothing is saved up for a burst.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: prompt and answer together; None for no limit.
        clock: where time comes from.

    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Clock = Clock(),
    ) -> None:
        self._seconds_per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = Lock()
        self._next_request = self._next_token = self._paused_until = clock.now()
        self._tokens, self._settled = 0.0, 0

    def wait(self, tokens: float, stop: Event) -> None:
        """Wait until a request of about ``tokens`` tokens may start, or ``stop`` is set."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._next_request, self._next_token, self._paused_until)
            self._next_request = start + self._seconds_per_request
            self._next_token = start + tokens * self._seconds_per_token
        while not stop.is_set() and (left := max(start, self._paused_until) - self._clock.now()) > 0:
            self._clock.wait(stop, left)

    def guess(self, tokens: float) -> float:
        """Return how many tokens a request will need: the mean of those before it, or ``tokens`` for the first."""
        with self._lock:
            return self._tokens / self._settled if self._settled else tokens

    def settle(self, guessed: float, tokens: float) -> None:
        """Say how many tokens a request needed that was thought to need ``guessed``."""
        with self._lock:
            self._next_token += (tokens - guessed) * self._seconds_per_token
            self._tokens += tokens
            self._settled += 1

    def pause(self, seconds: float) -> None:
        """Let no request start for ``seconds``; the server asked for it."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock.now() + seconds)
