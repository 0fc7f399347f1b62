"""When a model is trained in bfloat16, and that losses stay float32."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from potstill.models.preprocess import Preprocessor
from potstill.objective import preset
from potstill.training import precision
from potstill.training.precision import autocast_dtype, has_images_inside
from potstill.training.trainee import Trainee

CPU = torch.device("cpu")


def test_auto_needs_the_instructions_and_a_model_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    big, small, linear = nn.Conv2d(64, 128, 3), nn.Conv2d(3, 4, 3), nn.Linear(500, 500)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert autocast_dtype("auto", CPU, big) is torch.bfloat16
    assert autocast_dtype("auto", CPU, nn.MultiheadAttention(256, 4)) is torch.bfloat16
    assert autocast_dtype("auto", CPU, small) is None
    assert autocast_dtype("auto", CPU, linear) is None
    assert autocast_dtype("float32", CPU, big) is None
    assert autocast_dtype("bfloat16", CPU, small) is torch.bfloat16
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    assert autocast_dtype("auto", CPU, big) is None


def test_learner_computes_in_bfloat16_and_answers_in_float32(toys: ModuleType) -> None:
    net, seen = toys.net(), []
    net.head.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    objective = preset("alone", "classification")
    learner = Trainee(
        net, Preprocessor(), nn.ModuleDict(), objective=objective, tapped={}, dtype=torch.bfloat16, device=CPU,
        images=True,
    )  # fmt: skip
    ids = torch.arange(4)
    signals, prepared = learner(torch.rand(4, 2, 6, 6), None, ids, ids)
    assert signals["logits"].dtype == torch.float32
    assert prepared == {}
    assert seen == [torch.bfloat16]


def test_channels_last_only_for_two_dimensional_convolutions(toys: ModuleType) -> None:
    assert has_images_inside(toys.net())
    assert not has_images_inside(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))
