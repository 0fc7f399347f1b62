"""Threads of a training: the faster number is chosen by its own steps, again when it slows, and kept by a resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from potstill.objective import preset
from potstill.recipe.schema import Training
from potstill.training import Spec, train
from potstill.training import threads as room
from potstill.training.threads import SLOWER, TIMED, WINDOW, Threads

Took = Callable[[int, int], float]
"""Seconds of a step, by its threads and its number."""


class Clock:
    """A clock that moves by what a step with the current threads takes; it notes the threads of each."""

    def __init__(self, took: Took) -> None:
        self.took, self.seconds, self.calls = took, 0.0, 0
        self.used: list[int] = []

    def __call__(self) -> float:
        self.calls += 1
        if self.calls % 2 == 0:
            self.seconds += self.took(torch.get_num_threads(), len(self.used))
            self.used.append(torch.get_num_threads())
        return self.seconds


@pytest.fixture
def on_two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Took], Clock]]:
    """A machine with two cores that nobody told how many threads to use, and how long its steps take."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def started(took: Took) -> Clock:
        clock = Clock(took)
        monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=clock))
        torch.set_num_threads(2)
        return clock

    yield started
    torch.set_num_threads(before)


def steps(threads: Threads, count: int) -> None:
    for _ in range(count):
        with threads.step():
            pass


@pytest.mark.parametrize(("single", "every", "chosen"), [(1.0, 0.6, 2), (1.0, 4.0, 1), (1.0, 1.0, 1)])
def test_the_faster_number_is_chosen_after_four_steps_of_each(
    on_two_cores: Callable[[Took], Clock], single: float, every: float, chosen: int
) -> None:
    clock = on_two_cores(lambda number, step: 50.0 if step < 2 else single if number == 1 else every)
    threads = Threads(2, 0, fixed=False)
    steps(threads, 2 * (TIMED + 1) + 3)
    assert clock.used == [1, 2] * (TIMED + 1) + [chosen] * 3
    assert threads.number == chosen


def test_a_training_that_slows_down_is_timed_again_and_one_that_wavers_is_not(
    on_two_cores: Callable[[Took], Clock],
) -> None:
    first = 2 * (TIMED + 1)
    wavers, falls = first + 2 * WINDOW, first + 3 * WINDOW

    def took(number: int, step: int) -> float:
        if step >= wavers:  # somebody else came
            return 1.0 if number == 1 else 2.0
        return 1.0 if number == 1 else 0.6 * (SLOWER - 0.1 if step >= first + WINDOW else 1.0)

    clock = on_two_cores(took)
    steps(Threads(2, 0, fixed=False), falls + first + 5)
    assert clock.used == [1, 2] * (first // 2) + [2] * 3 * WINDOW + [1, 2] * (first // 2) + [1] * 5


def test_a_number_that_somebody_gave_holds_and_torchs_own_comes_back(
    on_two_cores: Callable[[Took], Clock], monkeypatch: pytest.MonkeyPatch, toys: ModuleType, tmp_path: Path
) -> None:
    on_two_cores(lambda number, step: 1.0)
    said = {}
    for name, settings in {"recipe": {"threads": 1}, "variable": {}}.items():
        spec = toys.spec(
            objective=preset("alone", "classification"),
            settings=Training(epochs=1, batch_size=8, learning_rate=0.1, optimizer="sgd", **settings),
        )
        said[name] = threads_of(train(toys.net(), spec, tmp_path / name).history)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert said == {"recipe": [1], "variable": [2]}


def test_a_training_that_is_stopped_goes_on_with_its_threads_to_the_same_weights(
    on_two_cores: Callable[[Took], Clock], monkeypatch: pytest.MonkeyPatch, toys: ModuleType, tmp_path: Path
) -> None:
    on_two_cores(lambda number, step: 1.0 if number == 1 else 0.5)
    through, stopped = toys.net(), toys.net()
    train(through, spec(toys, 6), tmp_path / "through")

    class Killed(BaseException):
        pass

    def took(number: int, step: int) -> float:
        if step == 17:
            raise Killed
        return 1.0 if number == 1 else 0.5

    on_two_cores(took)
    with pytest.raises(Killed):
        train(stopped, spec(toys, 6), tmp_path / "stopped")
    saved = json.loads((tmp_path / "stopped/checkpoint/checkpoint.json").read_text())["counters"]
    assert (saved["step"], saved["threads"]) == (17, 2)

    clock = on_two_cores(lambda number, step: 1.0 if number == 1 else 5.0)  # now one would be faster
    again = toys.net(1)
    train(again, spec(toys, 6), tmp_path / "stopped")
    assert set(clock.used) == {2}
    for name, values in through.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name


def test_no_checkpoint_is_written_while_threads_are_found_out(
    on_two_cores: Callable[[Took], Clock], monkeypatch: pytest.MonkeyPatch, toys: ModuleType, tmp_path: Path
) -> None:
    on_two_cores(lambda number, step: 1.0)
    saved: list[int] = []
    real = room.Threads.step
    folder = tmp_path / "checkpoint" / "checkpoint.json"

    def watched(self: Threads) -> object:
        saved.append(json.loads(folder.read_text())["counters"]["step"] if folder.exists() else 0)
        return real(self)

    monkeypatch.setattr(room.Threads, "step", watched)
    train(toys.net(), spec(toys, 4), tmp_path)
    assert saved == [0] * (2 * (TIMED + 1)) + list(range(2 * (TIMED + 1), len(saved)))


def spec(toys: ModuleType, epochs: int, **changes: object) -> Spec:
    """Batches of 8 with a checkpoint after every step: 4 steps an epoch."""
    known = {"epochs": epochs, "batch_size": 8, "learning_rate": 0.1, "optimizer": "sgd", "checkpoint_every": 1}
    settings = Training.model_validate({**known, **changes})
    return toys.spec(objective=preset("alone", "classification"), settings=settings)


def threads_of(history: Path) -> list[int]:
    return [json.loads(line)["threads"] for line in history.read_text().splitlines()]
