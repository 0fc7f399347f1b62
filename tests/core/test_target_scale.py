"""Standard units of regression targets, by arithmetic on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.core.scale import TargetScale, scale_of


def test_mean_and_deviation_of_each_output():
    scale = scale_of(np.array([[2, 10.0], [4, 10.0], [6, 10.0], [8, 10.0]]))
    assert scale.mean == (5.0, 10.0)
    assert scale.std == (pytest.approx(5**0.5, rel=1e-15), 1.0), "a constant output counts in its own unit"
    assert scale_of(np.array([1, 977])) == TargetScale((489.0,), (488.0,))


@pytest.mark.parametrize(("centre", "spread"), [(1e9, 1.0), (0.0, 1e-12), (-3e15, 4.0), (0.0, 1e300), (1e-30, 1e-32)])
def test_no_difference_is_lost_before_the_values_are_standard(centre, spread):
    targets = centre + spread * np.array([0.0, 1.0, 2.0])
    scale = scale_of(targets)
    # 0, 1, 2 have the mean 1 and the deviation (2/3)^(1/2).
    expected = np.array([-1.0, 0.0, 1.0]) * 1.5**0.5
    np.testing.assert_allclose(scale.standard(targets), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scale.standard_tensor(torch.tensor(targets)).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(scale.original(scale.standard(targets)), targets, rtol=1e-15, atol=1e-15 * spread)


@pytest.mark.parametrize("value", [0.1, -7.0, 1e9 / 3])
def test_a_constant_target_is_zero_in_its_own_unit(value):
    scale = scale_of(np.full(7, value))
    assert (scale.mean, scale.std) == ((value,), (1.0,))


def test_float32_holds_values_unless_it_would_round_their_spread():
    assert TargetScale((22_000.0,), (115.0,)).dtype == torch.float32
    assert TargetScale((50_000.0,), (5.0,)).dtype == torch.float64
    assert TargetScale((0.0,), (1e-40,)).dtype == torch.float64
    assert TargetScale((0.0, 0.0), (1.0, 1e35)).dtype == torch.float64


def test_logarithms_of_variances_change_their_unit_twice():
    scale = TargetScale((3.0,), (10.0,))
    found = scale.standard_tensor(torch.tensor([[400.0]]).log(), log_variance=True)
    assert found.exp().item() == pytest.approx(4.0)
    assert scale.original_tensor(found, log_variance=True).exp().item() == pytest.approx(400.0)


def test_units_of_one_scale_seen_in_another():
    own, wanted = TargetScale((10.0,), (2.0,)), TargetScale((16.0,), (4.0,))
    # 1.5 in own units is 13, which is -0.75 in the wanted ones.
    assert wanted.seen_in(own).standard(np.array([1.5])).tolist() == [-0.75]


def test_values_of_another_number_of_outputs_are_left_to_a_learned_projection():
    values = torch.ones(4, 3)
    assert TargetScale((1.0,), (2.0,)).standard_tensor(values) is values
    assert TargetScale((1.0,), (2.0,)).standard_tensor(torch.ones(4)).tolist() == [0.0] * 4
