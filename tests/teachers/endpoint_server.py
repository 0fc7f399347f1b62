"""A real HTTP server in a thread, told by each test what to answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One response: ``body`` is JSON, or bytes as they are; ``drop`` closes the connection without an answer."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    number: int

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"])


class Server:
    """Where it listens, what was asked, and how much at once."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self.url = ""

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        with self._lock:
            # Names are lower case as clients write them differently.
            headers = {name.lower(): value for name, value in handler.headers.items()}
            request = Request(handler.command, handler.path, headers, body, raw, len(self.requests))
            self.requests.append(request)
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            reply = self.answer(request)
            time.sleep(reply.delay)
        finally:
            with self._lock:
                self._now -= 1
        if reply.drop:
            handler.close_connection = True
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the tests."""


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[Server]:
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet, else Nagle's algorithm waits 40 ms between them.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            server.handle(self)

        def do_POST(self) -> None:
            server.handle(self)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    listening = _Listening(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def token(text: str, logprob: float, top: list[tuple[str, float]] | None = None) -> dict[str, Any]:
    """One place of an answer as OpenAI-compatible servers write it."""

    def one(name: str, value: float) -> dict[str, Any]:
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    return {**one(text, logprob), "top_logprobs": [one(*other) for other in top or []]}


def completion(
    text: str | None,
    tokens: list[dict[str, Any]] | None = None,
    *,
    usage: tuple[int, int] | None = (10, 2),
    finish: str = "stop",
) -> dict[str, Any]:
    """A chat completion."""
    found: dict[str, Any] = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "logprobs": None if tokens is None else {"content": tokens},
            }
        ],
    }
    if usage is not None:
        found["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return found
