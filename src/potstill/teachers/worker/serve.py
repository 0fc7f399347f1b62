"""Answers batches from another process: ``python serve.py LOADER OPTIONS INPUTS OUTPUTS``.

``LOADER`` is a Python file with ``load(options) -> (facts, ask)``, where ``ask`` maps an array to arrays by name.
``OPTIONS`` is JSON for it. ``INPUTS`` and ``OUTPUTS`` are the numbers of two open anonymous files that both processes
map into their memory: arrays cross there, and one line of JSON each way says what lies in them.

    out: {"facts": {...}}                          once, when loaded; or {"error": ..., "missing": module or null}
    in:  {"shape": [...], "dtype": "float32"}      the batch lies in INPUTS
    out: {"answers": {name: [offset, shape, dtype]}}   they lie in OUTPUTS; or {"error": ...}
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Ask = Callable[[Array], dict[str, Array]]

_ALIGNMENT = 64


def main(loader: str, options: str, inputs: str, outputs: str) -> None:
    """Load, then answer line by line until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, replies = _channel()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, lines), daemon=True).start()
    try:
        # Not above: that an interpreter lacks NumPy is to be said like any other package.
        import numpy as np

        facts, ask = _load(loader)(json.loads(options))
    except Exception as error:
        traceback.print_exc()
        _say(replies, {"error": _text(error), "missing": getattr(error, "name", None) if _absent(error) else None})
        sys.exit(1)
    _say(replies, {"facts": facts})
    source = _Mapped(int(inputs))
    while True:
        request = json.loads(lines.get())
        try:
            count = int(np.prod(request["shape"])) * np.dtype(request["dtype"]).itemsize
            batch = np.frombuffer(source.bytes(count), request["dtype"]).reshape(request["shape"])
            reply: dict[str, Any] = {"answers": _write(int(outputs), ask(batch))}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": _text(error)}
        _say(replies, reply)


def _channel() -> tuple[TextIO, TextIO]:
    """Keep the two pipes for messages: what a library prints goes to stderr, what it reads is empty."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _listen(requests: TextIO, lines: queue.SimpleQueue[str]) -> None:
    """Pass on requests. The pipe ends when the parent does, however it ended: then end too, even amid an answer."""
    for line in requests:
        lines.put(line)
    os._exit(0)


def _load(path: str) -> Callable[[dict[str, Any]], tuple[dict[str, Any], Ask]]:
    spec = importlib.util.spec_from_file_location("potstill_loader", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[[dict[str, Any]], tuple[dict[str, Any], Ask]] = module.load
    return load


class _Mapped:
    """An anonymous file in memory, mapped again when the parent made it larger."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._map: mmap.mmap | None = None

    def bytes(self, count: int) -> memoryview:
        if not count:
            return memoryview(b"")
        if self._map is None or len(self._map) < count:
            self._map = mmap.mmap(self._number, os.fstat(self._number).st_size)
        return memoryview(self._map)[:count]


def _write(number: int, answers: dict[str, Array]) -> dict[str, list[Any]]:
    """Put the answers one after the other, and return where."""
    import numpy as np

    arrays = {name: _plain(values) for name, values in answers.items()}
    layout: dict[str, list[Any]] = {}
    end = 0
    for name, values in arrays.items():
        layout[name] = [end, list(values.shape), values.dtype.name]
        end += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    if os.fstat(number).st_size < end:
        os.ftruncate(number, end)
    if end:
        with mmap.mmap(number, end) as block:
            for (offset, _shape, _dtype), values in zip(layout.values(), arrays.values(), strict=True):
                if values.size:
                    np.frombuffer(block, values.dtype, values.size, offset).reshape(values.shape)[...] = values
    return layout


def _plain(values: Array) -> Array:
    """Return numbers that every NumPy knows: integers, booleans and float64 as they are, anything else float32."""
    import numpy as np

    values = np.asarray(values)
    return values if values.dtype.kind in "iub" or values.dtype == np.float64 else values.astype(np.float32)


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _absent(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
