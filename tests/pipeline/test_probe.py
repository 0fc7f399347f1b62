"""What a model computes in a few numbers: rounding is no change, and the model is left as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.tensors import write_tensors
from potstill.pipeline.inputs import Inputs, changes, files_changed
from potstill.pipeline.probe import difference, probe, read, write

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Batch norm, dropout, a counting buffer, and a change to try."""

    def __init__(self, change: Callable[[Tensor, bool], Tensor] = lambda x, training: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.head(self.change(self.body(x), self.training))


def test_equal_models_have_equal_numbers_and_are_left_as_they_were() -> None:
    model = Net().train()
    model.head.requires_grad_(False)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    found = probe(model, INPUTS)
    assert set(found) == {"answers", "answers while training", "gradient"}
    assert difference(found, probe(Net(), INPUTS)) == ""
    assert fingerprint.of_weights(model) == fingerprint.of_weights(before)
    assert float(model.calls) == 0
    assert model.training
    assert not model.head.weight.requires_grad
    assert model.body[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x, training: 0 * x, "answers"),
        (lambda x, training: x if training else x.clamp(max=0.2), "answers"),
        (lambda x, training: 1.1 * x if training else x, "answers while training"),
        (lambda x, training: x.detach() + 0 * x, "gradient"),
        (lambda x, training: x + 0.5 * (x - x.detach()), "gradient"),
        (lambda x, training: torch.full_like(x, torch.nan), "NaN"),
    ],
)
def test_every_other_way_to_compute_is_a_change(change: Callable[[Tensor, bool], Tensor], what: str) -> None:
    found = difference(probe(Net(), INPUTS), probe(Net(change), INPUTS))
    assert what in found


def test_rounding_is_no_change() -> None:
    def rounded(x: Tensor, training: bool) -> Tensor:
        return ((x.double() * 3).float() / 3) * (1 + 2e-7)

    assert difference(probe(Net(), INPUTS), probe(Net(rounded), INPUTS)) == ""


def test_numbers_that_are_other_ones_every_time_are_not_compared_and_failures_are_none() -> None:
    draws = np.random.default_rng()
    found = probe(Net(lambda x, training: x if training else x + float(draws.normal())), INPUTS)
    assert set(found) == {"answers while training", "gradient"}

    def fails(x: Tensor, training: bool) -> Tensor:
        raise RuntimeError

    assert probe(Net(fails), INPUTS) == {}


def test_a_probe_is_read_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    found = probe(Net(), INPUTS)
    write(tmp_path / "probe", found)
    again = read(tmp_path / "probe")
    assert again is not None
    assert difference(found, again) == ""
    (tmp_path / "probe").write_bytes(b"\0")
    assert read(tmp_path / "probe") is None


def test_equal_tensors_and_texts_make_equal_bytes_in_the_order_of_the_names(tmp_path: Path) -> None:
    texts = {
        name: f'text of {name} \u00e9\n"' for name in ("task", "recipe_hash", "potstill_version", "b", "a", "\u00e9")
    }
    contents = set()
    for number in range(6):
        path = tmp_path / str(number)
        write_tensors(path, {"w": torch.arange(6.0)}, dict(sorted(texts.items(), reverse=bool(number % 2))))
        contents.add(path.read_bytes())
        with safe_open(path, "pt") as file:
            assert file.metadata() == texts
            assert torch.equal(file.get_tensor("w"), torch.arange(6.0))
    assert len(contents) == 1
    content = contents.pop()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(texts)


def test_differences_between_inputs_are_said_in_words() -> None:
    before = Inputs(
        {"training.epochs": 2, "objective": ["1 x a", "1 x b"], "student.preprocess.mean": [0.1]},
        {"the data": "1"},
        {"teacher": "x", "rates, alone": "sgd 0.1"},
        {"nets.py": "1", "old.py": "2"},
    )
    assert changes(before.to_json(), before) == files_changed(before.to_json(), before) == []
    now = Inputs(
        {"training.epochs": 3, "objective": ["1 x a", "2 x b"], "student.preprocess.mean": [0.2], "metric": "auc"},
        {"the data": "2"},
        {"teacher": None, "rates, alone": "adamw 0.002", "predictions": "y"},
        {"nets.py": "3", "new.py": "4"},
    )
    assert changes(before.to_json(), now) == [
        *("the data changed", "training.epochs 2 -> 3", "objective 1 x b -> 2 x b", "metric null -> auc"),
        *("teacher is trained again", "rates, alone: sgd 0.1 -> adamw 0.002", "predictions were made again"),
    ]
    assert files_changed(before.to_json(), now) == [
        *("nets.py changed", "old.py is no longer read", "new.py is read now"),
    ]
    moved = Inputs(before.settings, before.parts, before.stages, {"lib/nets.py": "1", "lib/old.py": "2"})
    assert files_changed(before.to_json(), moved) == []
    assert changes({"key": "of old"}, now) == ["made by an earlier version of potstill"]
