"""A chat server that needs no model: it counts kind and unkind words, and speaks as OpenAI-compatible servers do."""

from __future__ import annotations

import argparse
import json
import math
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KIND = {"love", "great", "quick", "quiet", "lovely", "perfect", "sturdy", "recommend", "best", "happy", "easy", "good"}
UNKIND = {"broke", "leaks", "loud", "slow", "smells", "poor", "rust", "refund", "worst", "never", "cheap", "bad"}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return a chat completion of one letter, with log-probabilities if they were asked for."""
    prompt = request["messages"][-1]["content"]
    question, _, options = prompt.partition("\n\nA. ")
    classes = [line.split(". ")[-1] for line in options.split("\n\n")[0].splitlines()]
    words = re.findall(r"[a-z]+", question.split("\n\n", 1)[-1].lower())
    mood = sum((word in KIND) - (word in UNKIND) for word in words)
    good = 1 / (1 + math.exp(-1.5 * mood))
    chances = {"AB"[number]: good if name == "good" else 1 - good for number, name in enumerate(classes)}
    ranked = sorted(chances, key=lambda letter: -chances[letter])
    places = [{"token": letter, "logprob": math.log(0.98 * chances[letter]), "bytes": None} for letter in ranked]
    logprobs = {"content": [{**places[0], "top_logprobs": places[: request.get("top_logprobs", 0)]}]}
    return {
        "object": "chat.completion",
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ranked[0]},
                "finish_reason": "stop",
                "logprobs": logprobs if request.get("logprobs") else None,
            }
        ],
        "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 1},
    }


class Handler(BaseHTTPRequestHandler):
    """Answers ``POST /v1/chat/completions``."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        """Answer one request."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = self.path == "/v1/chat/completions"
        content = json.dumps(answer(request) if found else {"error": {"message": f"no {self.path}"}}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing for each request."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler) as server:
        print(f"listening on http://localhost:{server.server_address[1]}/v1", flush=True)
        server.serve_forever()
