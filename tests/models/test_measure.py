"""Parameters, operations and bytes against hand formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill.models import zoo
from potstill.models.measure import bytes_of_weights, flops, num_parameters


class Product(nn.Module):
    def forward(self, a, b):
        return a @ b


def test_parameters_and_bytes_of_a_tiny_model_by_hand():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    assert num_parameters(model) == (3 * 5 + 5) + (5 + 5) + (5 * 2 + 2)
    # float32 parameters, float32 running mean and variance, one int64 counter
    assert bytes_of_weights(model) == 42 * 4 + 10 * 4 + 8
    assert bytes_of_weights(nn.Linear(4, 4).half()) == 20 * 2


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert num_parameters(model) == 16 + 4 + 4
    assert bytes_of_weights(model) == 24 * 4


def test_flops_of_resnet20_by_hand():
    # multiply-adds = output pixels * inputs per output * output channels; shortcut A costs nothing
    stem = 32 * 32 * 27 * 16
    first = 6 * 32 * 32 * 144 * 16
    second = 16 * 16 * 32 * (144 + 5 * 288)
    third = 8 * 8 * 64 * (288 + 5 * 576)
    plain = stem + first + second + third + 64 * 10
    assert plain == 40_551_040
    assert flops(zoo.resnet20(), torch.zeros(1, 3, 32, 32)) == 2 * plain
    assert flops(zoo.resnet20(), torch.zeros(3, 3, 32, 32)) == 6 * plain
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    assert flops(zoo.resnet20(100, shortcut="B"), torch.zeros(1, 3, 32, 32)) == 2 * (plain + shortcuts + 64 * 90)


def test_flops_of_a_perceptron_and_of_several_inputs():
    assert flops(zoo.mlp(3, in_features=7, hidden=(5, 4)), torch.zeros(2, 7)) == 2 * 2 * (7 * 5 + 5 * 4 + 4 * 3)
    assert flops(Product(), (torch.zeros(2, 3), torch.zeros(3, 5))) == 2 * 2 * 3 * 5


def test_the_model_is_left_as_it_was():
    model = zoo.cnn(4, in_channels=1, width=4)
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flops(model, torch.rand(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        flops(model, torch.rand(2, 5, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
