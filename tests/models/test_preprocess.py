"""The preprocessor against NumPy and hand computation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from potstill.core.errors import UsageError
from potstill.models.preprocess import Preprocessor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_uint8_and_float_images_give_the_same_normalised_values():
    raw = pixels(2, 3, 4, 5)
    expected = (raw.astype(np.float64) / 255 - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(STD, (1, 3, 1, 1))
    module = Preprocessor(torch.tensor(MEAN), torch.tensor(STD))
    for inputs in (torch.from_numpy(raw), torch.from_numpy(raw / 255), torch.from_numpy(raw / 255).float()):
        output = module(inputs)
        assert output.dtype == torch.float32
        np.testing.assert_allclose(output.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4, 2, 2, 2, 3)])
def test_vectors_of_any_rank_are_normalised_along_the_last_axis(shape):
    values = np.random.default_rng(1).normal(size=shape)
    output = Preprocessor(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 4.0]))(torch.from_numpy(values))
    np.testing.assert_allclose(output.numpy(), (values - [1, 2, 3]) / [0.5, 2, 4], atol=1e-6)


def test_one_number_serves_all_channels():
    raw = pixels(2, 3, 4, 4)
    output = Preprocessor(torch.tensor([0.5]), torch.tensor([0.25]))(torch.from_numpy(raw))
    np.testing.assert_allclose(output.numpy(), (raw / 255 - 0.5) / 0.25, atol=2e-6)


def test_without_mean_floats_and_integer_codes_are_left_alone():
    values = torch.tensor([[1.5, -2.0]])
    assert torch.equal(Preprocessor()(values), values)
    codes = torch.tensor([[7, 300]])
    assert torch.equal(Preprocessor()(codes), codes)
    assert Preprocessor(torch.tensor([0.0]), torch.tensor([1.0]))(codes).dtype == torch.float32
    assert Preprocessor()(values.double()).dtype == torch.float32


def test_halving_is_the_antialiased_triangle_filter():
    # Antialiased bilinear from 8 to 4: output i weighs inputs 2i-1 .. 2i+2 by 1, 3, 3, 1; renormalised at the border.
    row = np.array([0.0, 10, 20, 80, 5, 60, 70, 255])
    weights = np.zeros((4, 8))
    for i in range(4):
        for offset, weight in zip((-1, 0, 1, 2), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * i + offset < 8:
                weights[i, 2 * i + offset] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    image = np.broadcast_to(row, (1, 1, 8, 8)).astype(np.uint8).copy()
    output = Preprocessor(size=4)(torch.from_numpy(image))
    assert output.shape == (1, 1, 4, 4)
    np.testing.assert_allclose(output[0, 0, 2].numpy(), weights @ row / 255, atol=1e-6)


def test_the_right_size_is_not_touched_and_others_come_out_square():
    image = torch.rand(1, 3, 6, 6)
    assert torch.equal(Preprocessor(size=6)(image), image)
    assert Preprocessor(size=6)(torch.rand(2, 3, 5, 9)).shape == (2, 3, 6, 6)
    assert Preprocessor(size=6)(torch.rand(2, 9)).shape == (2, 9)


def test_mean_and_std_are_buffers_that_travel_with_the_state():
    module = Preprocessor(torch.tensor(MEAN), torch.tensor(STD))
    assert sorted(module.state_dict()) == ["mean", "std"]
    assert not list(module.parameters())
    assert not Preprocessor().state_dict()
    image = torch.rand(1, 3, 4, 4)
    assert torch.equal(copy.deepcopy(module)(image), module(image))
    assert "size=None" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": torch.zeros(3)}, "only one of mean and std"),
        ({"mean": torch.zeros(3), "std": torch.ones(2)}, "3 means and 2 stds"),
        ({"mean": torch.zeros(2), "std": torch.tensor([1.0, 0.0])}, "not above zero"),
        ({"mean": torch.tensor([float("nan")]), "std": torch.ones(1)}, "not finite"),
        ({"size": 0}, "size=0"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Preprocessor(**arguments)


def test_another_number_of_channels_is_named():
    module = Preprocessor(torch.tensor(MEAN), torch.tensor(STD))
    with pytest.raises(UsageError, match=r"3 channels, but the inputs have 1 "):
        module(torch.rand(2, 1, 4, 4))
    with pytest.raises(UsageError, match=r"3 columns, but the inputs have 5 "):
        module(torch.rand(2, 5))
