"""Training layer by layer: what is not named does not change, in any way, until it is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.objective import preset
from potstill.recipe.schema import Stage, Training
from potstill.training import loop, train
from potstill.training.stages import build_stages, stage_at


def trained(toys: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings) -> list[dict[str, np.ndarray]]:
    """Return the student's whole state before the first step and after each."""
    seen: list[dict[str, np.ndarray]] = []
    original = loop.take_step

    def watched(machine, *arguments, **named):
        if not seen:
            seen.append(state(machine.trainee.student))
        taken = original(machine, *arguments, **named)
        seen.append(state(machine.trainee.student))
        return taken

    def state(student: nn.Module) -> dict[str, np.ndarray]:
        return {name: value.detach().numpy().copy() for name, value in student.state_dict().items()}

    monkeypatch.setattr(loop, "take_step", watched)
    values = {"epochs": 3, "batch_size": 7, "learning_rate": 0.1, "precision": "float32", **settings}
    train(
        toys.net(),
        toys.spec(objective=preset("alone", "classification"), settings=Training(**values)),
        folder,
        device="cpu",
    )
    return seen


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


STAGES = [{"until": 0.25, "train": ["hidden", "head.bias"]}, {"until": 0.5, "train": ["conv", "norm"]}, {"until": 1}]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_the_named_layers_change(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """With decay and momentum, in which a frozen weight would drift; and with the statistics of batch norm."""
    seen = trained(
        toys, tmp_path, monkeypatch, stages=STAGES, optimizer=optimizer, weight_decay=0.1, momentum=0.9, ema=0.5
    )
    assert len(seen) == 13
    steps = [changed(before, after) for before, after in pairwise(seen)]
    second = {"hidden.weight", "hidden.bias", "head.bias"}
    first = {"conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    norms = {"norm.num_batches_tracked"}
    for step in steps[:3]:
        assert step == second
    for step in steps[3:6]:
        assert step - {"conv.bias"} == first | norms
    for step in steps[6:]:
        assert step - {"conv.bias"} == set(seen[0]) - {"conv.bias"}
    row = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert row["gradient_norm"] > 0


def test_one_stage_of_everything_is_ordinary_training(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = trained(toys, tmp_path / "a", monkeypatch, stages=[{"until": 0.5}, {"until": 1}])
    plain = trained(toys, tmp_path / "b", monkeypatch)
    assert not changed(staged[-1], plain[-1])


def test_stages_follow_one_another(toys: ModuleType) -> None:
    stages = build_stages(toys.net(), [Stage(until=0.3, train=["conv"]), Stage(until=1.0)])
    assert stage_at((), 0.2) is None
    assert [len(stage_at(stages, progress).frozen) for progress in (0.0, 0.29, 0.3, 0.99, 1.0)] == [6, 6, 0, 0, 0]
    assert [type(module) for module in stages[0].still] == [nn.BatchNorm2d]
    assert build_stages(toys.net(), [Stage(until=1.0, train=["norm", "head"])])[0].still == ()


def test_unknown_layers_are_refused_before_training(toys: ModuleType, tmp_path: Path) -> None:
    for layer, hint in (
        ("hiden", "Did you mean 'hidden'"),
        ("drop", "no layer of that name with weights"),
        ("hea", ""),
    ):
        with pytest.raises(UsageError, match=f"training.stages trains '{layer}', but Net has.*{hint}"):
            train(
                toys.net(),
                toys.spec(
                    objective=preset("alone", "classification"),
                    settings=Training(stages=[{"until": 1, "train": [layer]}]),
                ),
                tmp_path,
                device="cpu",
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ends", [[0.5], [0.5, 0.5, 1.0], [0.6, 0.4, 1.0], [1.0, 1.0]])
def test_stages_that_do_not_fill_training_are_refused(ends: list[float]) -> None:
    with pytest.raises(ValidationError, match="each must end after the one before, and the last one at 1"):
        Training(stages=[{"until": end} for end in ends])


def test_the_part_of_the_user_stays_frozen(toys: ModuleType) -> None:
    student = toys.net()
    student.conv.requires_grad_(False)
    before: Tensor = student.conv.weight.detach().clone()
    from potstill.training.machine import Moment
    from potstill.training.setup import machine_for, make_accelerator
    from potstill.training.step import take_step

    task = toys.spec(
        objective=preset("alone", "classification"),
        settings=Training(
            optimizer="sgd", learning_rate=0.1, stages=[{"until": 1, "train": ["conv", "head"]}], precision="float32"
        ),
    )

    with machine_for(student, task, make_accelerator("cpu")) as machine:
        batch = next(task.stream.epoch(0, 8, order=0))
        take_step(machine, batch, Moment(count=8, progress=0.5, rate=0.1))
    assert torch.equal(student.conv.weight, before)
