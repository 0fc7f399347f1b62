"""A teacher in another process: its numbers arrive as they are, and whatever goes wrong there is told here."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from potstill.core.errors import TeacherError, UsageError
from potstill.teachers.process import MissingModuleError, Worker

LOADER = Path(__file__).parent / "numpy_loader.py"


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(options: dict[str, Any] | None = None, **settings: Any) -> Worker:
        made.append(Worker(str(LOADER), json.dumps(options or {}), "The model of the test", **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    one = Worker(str(LOADER), json.dumps({"wide": 3}), "The model of the test")
    yield one
    one.close()


def gone(number: int) -> bool:
    """Whether a process ended, with all of its threads; one that nobody has waited for yet did."""
    try:
        ended = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return ended and len(list(Path(f"/proc/{number}/task").iterdir())) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 3, 4, 5), (0, 3)])
def test_every_type_and_shape_arrives_as_it_was_sent(shared: Worker, dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    answers = shared.ask(sent)
    assert list(answers) == ["double", "sum", "rows", "wide"]
    np.testing.assert_array_equal(answers["double"], sent * 2)
    np.testing.assert_array_equal(answers["rows"], np.arange(len(sent)))
    assert answers["double"].dtype == (np.float32 if dtype in ("float16", "float32") else (sent * 2).dtype)
    assert answers["wide"].shape == (len(sent), 3)


def test_views_are_sent_and_answers_are_kept(shared: Worker) -> None:
    base = np.random.default_rng(0).random((4, 3, 5, 6), dtype=np.float32)
    for view in (base.transpose(0, 2, 3, 1), base[:, ::-1], base[::2, :, 1:4]):
        answer = shared.ask(view)["double"]
        shared.ask(np.zeros_like(base))  # a later batch lies in the same memory
        np.testing.assert_array_equal(answer, view * 2)


def test_batches_of_any_size_follow_each_other(shared: Worker) -> None:
    for size in (3, 50_000, 1, 400_000, 7):
        sent = np.arange(1, size + 1, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(shared.ask(sent)["sum"], sent[:, 0])


def test_the_process_is_another_and_has_no_stdin(shared: Worker) -> None:
    assert shared.facts["process"] != os.getpid()
    assert shared.facts["stdin"] == ""


def test_equal_workers_are_one_process_and_others_are_not(shared: Worker, worker: Callable[..., Worker]) -> None:
    again = pickle.loads(pickle.dumps(copy.deepcopy(shared)))
    assert again is not shared
    assert again.facts["process"] == shared.facts["process"]
    assert worker({"wide": 4}).facts["process"] != shared.facts["process"]


def test_threads_take_turns(shared: Worker) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(10):
            if not (shared.ask(np.full((number, 2), number, np.float32))["double"] == 2 * number).all():
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 20, 300)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_an_error_of_the_model_is_told_and_the_process_goes_on(shared: Worker) -> None:
    before = shared.facts["process"]
    with pytest.raises(TeacherError, match=r"model of the test failed on inputs of shape \(1, 2\).*minus one is too"):
        shared.ask(np.full((1, 2), -1, np.float32))
    np.testing.assert_array_equal(shared.ask(np.ones((1, 2)))["double"], [[2, 2]])
    assert shared.facts["process"] == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (-2, r"(?s)ended by itself \(exit code 7\).*last lines:.*out of everything"),
        (-4, r"ended by itself \(signal 9\)"),
    ],
)
def test_a_process_that_ends_is_told_and_replaced(shared: Worker, flag: int, message: str) -> None:
    before = shared.facts["process"]
    with pytest.raises(TeacherError, match=message):
        shared.ask(np.full((1, 1), flag, np.float32))
    assert gone(before)
    assert shared.ask(np.ones((1, 1)))["sum"] == [1]
    assert shared.facts["process"] != before


def test_a_process_that_hangs_is_ended_and_replaced(worker: Callable[..., Worker]) -> None:
    one = worker(timeout=1.0)
    before = one.facts["process"]
    with pytest.raises(TeacherError, match=r"took longer than 1 s to answer and was ended\. .*raise timeout\."):
        one.ask(np.full((1, 1), -3.0))
    assert gone(before)
    assert one.facts["process"] != before


def test_a_process_that_was_killed_between_batches_is_replaced(shared: Worker) -> None:
    shared.ask(np.ones((1, 1)))  # what is shared is mapped with the first question
    before = shared.facts["process"]
    descriptors = open_files()
    os.kill(before, signal.SIGKILL)
    assert wait_until(lambda: gone(before))
    assert shared.ask(np.ones((1, 1)))["sum"] == [1]
    assert open_files() == descriptors


def test_an_interrupted_question_does_not_shift_the_answers(shared: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.ask(np.ones((1, 1)))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.teachers.process.select.poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shared.ask(np.full((1, 1), 5.0))
    np.testing.assert_array_equal(shared.ask(np.full((2, 1), 6.0))["sum"], [6, 6])


@pytest.mark.parametrize(
    ("options", "settings", "error", "message"),
    [
        ({"broken": "no such weights"}, {}, TeacherError, "could not be loaded: ValueError: no such weights"),
        ({"die": 3}, {}, TeacherError, r"(?s)exit code 3\).*a last word"),
        ({"sleep": 60}, {"start_timeout": 1.0}, TeacherError, "longer than 1 s to load and was ended.*start_timeout"),
        ({"module": "no_such_package.part"}, {}, MissingModuleError, 'needs the package "no_such_package"'),
        ({}, {"python": "/no/such/python"}, UsageError, "/no/such/python cannot be started"),
    ],
)
def test_a_process_that_does_not_start_says_why(
    worker: Callable[..., Worker], options: dict[str, Any], settings: dict[str, Any], error: type, message: str
) -> None:
    before = open_files()
    with pytest.raises(error, match=message):
        worker(options, **settings).ask(np.ones(1))
    assert open_files() == before


def test_an_interrupted_start_leaves_nothing_behind(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before, children = open_files(), len(psutil.Process().children())
    with monkeypatch.context() as patch:
        patch.setattr("potstill.teachers.process.select.poll", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker({"interrupted": True}).ask(np.ones(1))
    assert (open_files(), len(psutil.Process().children())) == (before, children)


def test_a_closed_process_is_gone_and_comes_back_when_asked(worker: Callable[..., Worker]) -> None:
    one = worker({"closed": True})
    before = one.facts["process"]
    one.close()
    assert gone(before)
    one.close()
    assert one.facts["process"] != before


# One process imports once and forks those that end: each says which worker it started, on a line of its own.
SCRIPT = """
import json, os, signal, sys, threading, time
import numpy as np
from potstill.teachers.process import Worker

def amid_an_answer():
    threading.Thread(target=worker.ask, args=(np.full(1, -3.0),), daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

ENDINGS = {
    "exit": lambda: sys.exit(4),
    "error": lambda: 1 / 0,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "kill amid an answer": amid_an_answer,
}
worker = Worker(sys.argv[1], "{}", "The model")
processes = {}
for name, end in ENDINGS.items():
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(worker.facts["process"]).encode())
        end()
    processes[name] = int(os.read(read, 20))
    os.wait()

first = worker.facts["process"]
child = os.fork()
if child == 0:
    right = worker.facts["process"] != first and worker.ask(np.full(2, 4.0))["double"].tolist() == [8, 8]
    worker.close()
    os._exit(0 if right else 1)
forked = os.waitpid(child, 0)[1]
right = worker.ask(np.full(2, 3.0))["double"].tolist() == [6, 6] and worker.facts["process"] == first
print(json.dumps({"processes": {**processes, "end": first}, "forked": forked, "right": right}))
"""


def test_it_ends_with_its_parent_however_that_ends_and_is_not_shared_with_forks() -> None:
    blocks = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-c", SCRIPT, str(LOADER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(set(found["processes"].values())) == 6
    left = {name for name, number in found["processes"].items() if not wait_until(lambda n=number: gone(n))}
    assert left == set()
    assert (found["forked"], found["right"]) == (0, True)
    assert set(Path("/dev/shm").iterdir()) <= blocks


def test_packages_of_this_interpreter_are_kept_from_another(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert worker({"module": "only_here"}).facts["process"]
    with pytest.raises(MissingModuleError, match="only_here"):
        worker({"module": "only_here"}, python=sys.executable).ask(np.ones(1))
