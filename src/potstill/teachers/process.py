"""A teacher in another process, with an interpreter and packages of its own.

Arrays cross through two anonymous files that both processes map into memory, messages as lines of JSON through pipes;
see `worker/serve.py`. Nothing has a name on disk, so that nothing is left behind however either process ends.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import PotstillError, TeacherError, UsageError

Array = np.ndarray[Any, Any]

SERVE = Path(__file__).parent / "worker" / "serve.py"

_KEPT_LINES = 30
_SHOWN_LINES = 8


class MissingModuleError(PotstillError):
    """The other interpreter lacks a package; ``module`` is its name."""

    def __init__(self, message: str, module: str = "") -> None:
        super().__init__(message)
        self.module = module


@dataclass(frozen=True)
class Worker:
    """A process that loads a model and answers batches: plain data, started when it is first used.

    When to use it: the model's packages do not fit into this interpreter. Equal workers of one process are the same
    running process, so this object can be copied and pickled freely. It ends with this process, however that ends.

    Args:
        loader: a Python file with ``load(options) -> (facts, ask)``, see `worker/serve.py`.
        options: JSON for the loader.
        label: what it is, for messages.
        python: the interpreter; this one when empty.
        start_timeout: seconds until loading counts as failed.
        timeout: seconds until an answer counts as failed.

    """

    loader: str
    options: str
    label: str
    python: str = ""
    start_timeout: float = 300.0
    timeout: float = 600.0

    @property
    def facts(self) -> dict[str, Any]:
        """What the loader says of the model, as plain data.

        Raises:
            TeacherError: the process did not start, see `ask`.

        """
        return dict(_running(self).facts)

    def ask(self, inputs: Array) -> dict[str, Array]:
        """Return the model's answers by name, as numeric arrays of this process' own.

        Args:
            inputs: (b, ...) numbers, in any memory order.

        Raises:
            TeacherError: the process could not start, died or hung (with its exit code and last lines; the next use
                starts a new one), or the model failed on this batch.
            MissingModuleError: its interpreter lacks a package.

        """
        return _running(self).ask(inputs)

    def close(self) -> None:
        """End the process, if it runs; the next use starts a new one."""
        with _lock:
            process = _processes.pop((os.getpid(), self), None)
        if process is not None:
            process.kill()


class _Process:
    """A running worker; one batch at a time."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._received = bytearray()
        self._inputs, self._outputs = _Shared(), _Shared()
        command = [worker.python or sys.executable, "-u", str(SERVE), worker.loader, worker.options]
        shared = (self._inputs.number, self._outputs.number)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, *map(str, shared)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=shared,
                env=_environment(worker.python),
            )
        except OSError as error:
            self._free()
            raise UsageError(
                f"{worker.label}: the interpreter {command[0]} cannot be started ({error.strerror}). "
                "Give the path of a Python executable."
            ) from error
        # Read all the time, so that the process never waits for someone to read what it prints.
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        try:
            self.facts: dict[str, Any] = self._receive(worker.start_timeout, "start_timeout", "to load")["facts"]
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, inputs: Array) -> dict[str, Array]:
        with self._lock:
            try:
                dtype = inputs.dtype.newbyteorder("=")
                np.copyto(self._inputs.view(inputs.shape, dtype), inputs)
                self._send({"shape": list(inputs.shape), "dtype": dtype.name})
                answers = self._receive(self._worker.timeout, "timeout", "to answer")["answers"]
            except _ModelError as error:
                raise TeacherError(
                    f"{self._worker.label} failed on inputs of shape {tuple(inputs.shape)} ({inputs.dtype.name}): "
                    f"{error}. Check that the data has the shape it was trained on, and its preprocessing."
                ) from error
            except BaseException:
                # Interrupted between question and answer: the answer would be taken for that to the next question.
                self.kill()
                raise
            return {name: self._outputs.view(shape, dtype, at).copy() for name, (at, shape, dtype) in answers.items()}

    def kill(self) -> None:
        """End the process and free what it shares with this one."""
        self._process.kill()
        self._process.wait()
        # Not for ever: something that the process started may hold its stderr open.
        self._reader.join(timeout=1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # the rest of a message that the process did not live to read
        self._free()

    def _free(self) -> None:
        self._inputs.close()
        self._outputs.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()
        except OSError as error:
            raise self._died() from error

    def _receive(self, timeout: float, option: str, purpose: str) -> dict[str, Any]:
        """Return the next message; kill the process if it does not come or ends the process."""
        pipe = self._process.stdout
        deadline = time.monotonic() + timeout
        if pipe is None:
            raise self._died()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                self.kill()
                raise TeacherError(
                    f"{self._worker.label} took longer than {timeout:g} s {purpose} and was ended. If it needs that "
                    f"long, raise {option}.{self._tail()}"
                )
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                raise self._died()
            self._received += part
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        if "error" not in message:
            return message
        if "missing" not in message:
            raise _ModelError(message["error"])
        self.kill()
        if message["missing"]:
            python = self._worker.python or sys.executable
            raise MissingModuleError(
                f'{self._worker.label} needs the package "{message["missing"]}", which {python} does not have.',
                message["missing"],
            )
        raise TeacherError(f"{self._worker.label} could not be loaded: {message['error']}")

    def _died(self) -> TeacherError:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # it only closed its pipe
            self._process.kill()
            code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.kill()
        return TeacherError(f"The process of {self._worker.label} ended by itself ({how}).{self._tail()}")

    def _tail(self) -> str:
        lines = [line for line in self._lines if line.strip()][-_SHOWN_LINES:]
        return "\nIts last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def _read_errors(self) -> None:
        if self._process.stderr is not None:
            with self._process.stderr as stream:
                for line in stream:
                    self._lines.append(line.decode(errors="replace").rstrip())


class _Shared:
    """An anonymous file in memory that two processes map."""

    def __init__(self) -> None:
        self.number = _anonymous_file()
        self._map: mmap.mmap | None = None

    def view(self, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> Array:
        """Return an array that lies in the file, which grows where it is too small."""
        count = int(np.prod(shape))
        if not count:
            return np.empty(shape, dtype)
        end = offset + count * np.dtype(dtype).itemsize
        if self._map is None or len(self._map) < end:
            size = os.fstat(self.number).st_size
            if size < end:
                os.ftruncate(self.number, end)
            self._map = mmap.mmap(self.number, max(size, end))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
        self.number, self._map = -1, None


class _ModelError(Exception):
    """The model failed on a batch; the process lives."""


_processes: dict[tuple[int, Worker], _Process] = {}
_lock = threading.Lock()


def _running(worker: Worker) -> _Process:
    """Return the running process of a worker, starting it if there is none. A forked child starts its own."""
    key = (os.getpid(), worker)
    with _lock:
        process = _processes.get(key)
        if process is not None and not process.alive:
            process.kill()
            process = None
        if process is None:
            process = _processes[key] = _Process(worker)
        return process


@atexit.register
def _end_all() -> None:
    # Without the lock: a thread that is still starting one may hold it.
    for (owner, _worker), process in list(_processes.items()):
        if owner == os.getpid():
            process.kill()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _anonymous_file() -> int:
    """Return the number of an open file without a name: in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("potstill")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _environment(python: str) -> dict[str, str]:
    """Return the environment, without what would lead another interpreter to this one's packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__") if python else ()
    return {name: value for name, value in os.environ.items() if name not in ours}
