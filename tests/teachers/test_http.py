"""Asking over HTTP, against a real server: what is tried again, what is not, and how fast."""

from __future__ import annotations

import email.utils
import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from potstill.core.errors import UsageError
from potstill.teachers.http import EndpointError, HttpClient, Limits, RefusedError, StoppedError, UnreachableError
from potstill.teachers.pace import Clock, Pace
from potstill.teachers.spend import Prices, Spend, SpendLimitError, Usage

from .endpoint_server import Reply, Request, Server, serving

FAST = Limits(backoff=0.01, timeout=5.0)
KEY = "sk-secret-0123456789"


class FakeTime:
    """A clock that only moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.wait)


@contextmanager
def asking(*replies: Reply, limits: Limits = FAST, **options: Any) -> Iterator[tuple[HttpClient, Server]]:
    """A client and a server that gives ``replies`` in turn, then the last one again."""
    with serving(lambda request: replies[min(request.number, len(replies) - 1)]) as server:
        client = HttpClient(server.url, limits=limits, **options)
        try:
            yield client, server
        finally:
            client.close()


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_failures_that_pass_are_tried_again(status: int) -> None:
    with asking(Reply({"error": "busy"}, status), Reply({"ok": 1})) as (client, server):
        assert client.post("ask", {"x": 1}) == {"ok": 1}
        assert [request.body for request in server.requests] == [{"x": 1}, {"x": 1}]
        assert client.retried == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After": "100000"}, 600.0),
    ],
)
def test_retry_after_is_kept(headers: dict[str, str], seconds: float) -> None:
    fake = FakeTime()
    with asking(Reply({}, 429, headers), Reply([]), clock=fake.clock) as (client, _):
        client.post("ask", {})
    assert sum(fake.waits) == pytest.approx(seconds)


def test_retry_after_may_be_a_date() -> None:
    fake = FakeTime()
    header = {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}
    with asking(Reply({}, 429, header), Reply([]), clock=fake.clock) as (client, _):
        client.post("ask", {})
    assert 28.0 <= sum(fake.waits) <= 30.0


def test_pauses_grow_and_end() -> None:
    fake = FakeTime()
    limits = Limits(retries=8, backoff=1.0)
    with asking(Reply({"error": {"message": "still busy"}}, 503), limits=limits, clock=fake.clock) as (client, server):
        with pytest.raises(UnreachableError, match=r"answered 503: still busy Tried 9 times\."):
            client.post("ask", {})
        assert len(server.requests) == 9
    longest = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert len(fake.waits) == len(longest)
    assert all(most / 2 <= waited <= most for waited, most in zip(fake.waits, longest, strict=True))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "bad key"}}, "answered 401: bad key The key is missing or wrong"),
        (403, {"detail": "not yours"}, "answered 403: not yours"),
        (404, {"error": "no such model"}, r"answered 404: no such model Check url and model.*/v1"),
        (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, "answered 429: no credit"),
        (307, {}, "It points to http://else.where/v1; write that address as url"),
    ],
)
def test_what_will_not_pass_is_said_at_once(status: int, body: Any, words: str) -> None:
    headers = {"Location": "http://user:pw@else.where/v1?key=1"}
    with asking(Reply(body, status, headers)) as (client, server):
        with pytest.raises(EndpointError, match=words) as caught:
            client.post("ask", {})
        assert not isinstance(caught.value, RefusedError | UnreachableError)
        assert server.url in str(caught.value)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_told_from_a_refused_recipe(status: int) -> None:
    with asking(Reply({"error": {"message": "prompt too long"}}, status)) as (client, server):
        with pytest.raises(RefusedError, match=f"answered {status}: prompt too long"):
            client.post("ask", {})
        assert len(server.requests) == 1


def test_slow_answers_and_dropped_connections_are_tried_again_and_counted_as_lost() -> None:
    limits = Limits(backoff=0.01, timeout=0.1, retries=2)
    lost: list[int] = []
    replies = (Reply({}, delay=0.3), Reply(drop=True), Reply({"ok": 1}))
    with asking(*replies, limits=limits) as (client, server):
        assert client.post("ask", {}, on_lost=lambda: lost.append(1)) == {"ok": 1}
        assert len(server.requests) == 3
    assert len(lost) == 2
    once = Limits(timeout=0.1, retries=0)
    words = r"did not answer within 0\.1 seconds\. Tried 1 time\."
    with asking(Reply({}, delay=0.3), limits=once) as (client, _), pytest.raises(UnreachableError, match=words):
        client.post("ask", {})


def test_a_server_that_is_not_there() -> None:
    lost: list[int] = []
    client = HttpClient("http://127.0.0.1:9", limits=Limits(backoff=0.01, retries=1))
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9/ask could not be asked: .*Tried 2 times"):
        client.post("ask", {}, on_lost=lambda: lost.append(1))
    client.close()
    assert lost == []


def test_answers_that_are_not_json() -> None:
    with asking(Reply(b'{"cut'), Reply({"ok": 1})) as (client, _):
        assert client.post("ask", {}) == {"ok": 1}
    with asking(Reply(b"<html>hello", headers={"Content-Type": "text/html"})) as (client, server):
        with pytest.raises(EndpointError, match="not JSON: '<html>hello'"):
            client.post("ask", {})
        assert len(server.requests) == 1


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("TEST_TENANT", "tenant-77")
    echo = Reply({"error": {"message": f"Incorrect API key {KEY} of tenant-77"}}, 401)
    options = {"key_env": "TEST_KEY", "headers": {"X-Tenant": "id ${TEST_TENANT}"}}
    with asking(echo, **options) as (client, server):
        with pytest.raises(EndpointError, match=r"Incorrect API key \*\*\* of \*\*\*"):
            client.post("ask", {})
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert server.requests[0].headers["x-tenant"] == "id tenant-77"
    with asking(Reply({})) as (client, server):
        client.post("ask", {})
        assert "authorization" not in server.requests[0].headers


def test_a_missing_key_and_bad_addresses_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(UsageError, match=r"TEST_KEY \(key_env\) is not set"):
        HttpClient("http://localhost", key_env="TEST_KEY")
    with pytest.raises(UsageError, match=r"TEST_KEY \(in headers\) is not set"):
        HttpClient("http://localhost", headers={"A": "${TEST_KEY}"})
    with pytest.raises(UsageError, match="'localhost:8000' is not an address"):
        HttpClient("localhost:8000")
    monkeypatch.setenv("TEST_KEY", "sk-ключ")
    with pytest.raises(UsageError, match="characters that HTTP headers cannot hold") as caught:
        HttpClient("http://localhost", key_env="TEST_KEY")
    assert "ключ" not in str(caught.value)


def test_no_more_requests_at_once_than_allowed() -> None:
    limits = Limits(concurrency=3)
    with asking(Reply({}, delay=0.03), limits=limits) as (client, server), ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda number: client.post("ask", {"n": number}), range(12)))
        assert len(server.requests) == 12
        assert server.most_at_once == 3


def test_stopping_wakes_those_who_wait() -> None:
    limits = Limits(concurrency=1, requests_per_minute=0.5)
    with asking(Reply({}), limits=limits) as (client, server):
        client.post("ask", {})
        threading.Timer(0.05, client.stop).start()
        started = time.monotonic()
        with pytest.raises(StoppedError, match="stopped before the request was sent"):
            client.post("ask", {})
        assert time.monotonic() - started < 5.0
        assert len(server.requests) == 1


def test_no_minute_holds_more_requests_than_the_limit() -> None:
    fake = FakeTime()
    pace = Pace(30.0, None, fake.clock)
    starts = []
    for _ in range(100):
        pace.wait(0.0, threading.Event())
        starts.append(fake.now)
    assert starts[0] == 100.0
    most = max(sum(start <= other < start + 60.0 for other in starts) for start in starts)
    assert most == 30
    assert starts[-1] - starts[0] == pytest.approx(99 * 2.0)


def test_no_minute_holds_more_tokens_than_the_limit() -> None:
    fake = FakeTime()
    pace = Pace(None, 6000.0, fake.clock)
    starts = []
    for _ in range(60):
        guess = pace.guess(1000.0)
        pace.wait(guess, threading.Event())
        starts.append(fake.now)
        pace.settle(guess, 200.0)
    # 200 tokens each at 100 tokens a second, also where the first guess was five times too high.
    assert starts[-1] - starts[0] == pytest.approx(59 * 2.0)
    most = max(200 * sum(start <= other < start + 60.0 for other in starts) for start in starts)
    assert most <= 6000


def test_the_rate_is_kept_by_threads_of_a_real_client() -> None:
    limits = Limits(concurrency=4, requests_per_minute=1200.0)
    with asking(Reply({}), limits=limits) as (client, server), ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: client.post("ask", {}), range(9)))
        assert server.times[-1] - server.times[0] >= 8 * 0.05 - 0.03


def test_money_is_reserved_before_it_is_spent() -> None:
    spend = Spend(Prices(1.0, 2.0), limit=10e-6)
    with spend.reserve(Usage(4, 2)) as first:
        first.settle(Usage(2, 1))
    assert spend.money == pytest.approx(4e-6)
    words = r"spend limit of 1e-05 was reached: 0\.0000 is spent"
    with pytest.raises(SpendLimitError, match=words), spend.reserve(Usage(5, 1)):
        pytest.fail("reserved more than there is")
    with spend.reserve(Usage(6, 0)):
        pass
    assert spend.usage == Usage(2, 1)


def test_a_request_that_does_not_fit_waits_for_those_under_way() -> None:
    spend = Spend(Prices(1e6, 0.0), limit=10.0)

    def later() -> float:
        with spend.reserve(Usage(6, 0)) as reservation:
            reservation.settle(Usage(1, 0))
        return spend.money

    with ThreadPoolExecutor(1) as threads:
        with spend.reserve(Usage(6, 0)) as first:
            waiting = threads.submit(later)
            time.sleep(0.02)
            assert not waiting.done()
            first.settle(Usage(2, 0))
        assert waiting.result(timeout=5.0) == 3.0


def test_a_try_without_an_answer_counts_in_full() -> None:
    spend = Spend(Prices(1.0, 0.0), limit=25e-6)
    with spend.reserve(Usage(10, 0)) as reservation:
        reservation.lose()
        assert spend.money == pytest.approx(10e-6)
        with pytest.raises(SpendLimitError):
            reservation.lose()
    assert spend.money == pytest.approx(20e-6)


def test_replies_are_given_in_turn() -> None:
    seen: list[Request] = []
    with serving(lambda request: seen.append(request) or Reply({"n": request.number})) as server:  # type: ignore[func-returns-value]
        client = HttpClient(server.url + "/v1/", limits=FAST)
        assert client.get("models") == {"n": 0}
        client.close()
    assert (seen[0].method, seen[0].path) == ("GET", "/v1/models")


# ---- what a server controls

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def raw_server(pieces: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """A server that sends these pieces as they are, and whatever the client thinks of them."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    for piece in pieces():
                        connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def without_end() -> Iterator[bytes]:
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + b" " * 0x100000 + b"\r\n"


def untrue_length() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 10000000000000\r\n\r\n"
    while True:
        yield b" " * 100_000


BOMB = gzip.compress(b" " * 80_000_000, compresslevel=1)


def gzip_bomb() -> Iterator[bytes]:
    yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB


@pytest.mark.parametrize("pieces", [without_end, untrue_length, gzip_bomb])
def test_no_answer_is_read_further_than_it_can_be_long(pieces: Callable[[], Iterator[bytes]]) -> None:
    lost: list[int] = []
    with raw_server(pieces) as url:
        client = HttpClient(url, limits=FAST)
        tracemalloc.start()
        with pytest.raises(RefusedError, match="answered more than 3,000,000 bytes"):
            client.post("ask", {}, most_bytes=3_000_000, on_lost=lambda: lost.append(1))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        client.close()
    # It may have been paid for, and asking again would not help.
    assert lost == [1]
    assert most < 20_000_000


def drip_in_the_body() -> Iterator[bytes]:
    yield HEAD + b"Content-Length: 1000\r\n\r\n"
    while True:
        yield b" "
        time.sleep(0.05)


def drip_in_the_headers() -> Iterator[bytes]:
    yield HEAD
    for number in range(1000):
        yield b"X-%d: a\r\n" % number
        time.sleep(0.05)


@pytest.mark.parametrize("pieces", [drip_in_the_body, drip_in_the_headers])
def test_a_request_ends_in_its_time_however_slowly_the_bytes_come(pieces: Callable[[], Iterator[bytes]]) -> None:
    with raw_server(pieces) as url:
        client = HttpClient(url, limits=Limits(retries=1, timeout=0.3, backoff=0.01))
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.3 seconds. Tried 2 times"):
            client.post("ask", {})
        assert time.monotonic() - began < 2.0
        client.close()


def test_an_answer_that_was_packed_unasked_is_unpacked() -> None:
    packed = gzip.compress(b'{"x": 1}')
    with asking(Reply(packed, headers={"Content-Encoding": "gzip"})) as (client, server):
        assert client.post("ask", {}) == {"x": 1}
        assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"9" * 10_000])
def test_json_without_end_is_no_answer(body: bytes) -> None:
    limits = Limits(retries=0, backoff=0.01)
    words = "answered something that is not JSON"
    with asking(Reply(body), limits=limits) as (client, _), pytest.raises(UnreachableError, match=words):
        client.post("ask", {})


def test_the_key_does_not_follow_to_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with serving(lambda _: Reply({"stolen": 1})) as other:
        moved = Reply({}, 307, {"Location": f"{other.url}/ask"})
        with asking(moved, key_env="TEST_KEY") as (client, server):
            with pytest.raises(EndpointError, match="write that address as url"):
                client.post("ask", {})
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert other.requests == []
