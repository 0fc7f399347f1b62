"""Taps: the right values, one forward, and no hook left behind."""

from __future__ import annotations

import doctest
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.models import taps
from potstill.models.taps import first_tensor, resolve, tap


class Net(nn.Module):
    """Counts its forwards; runs one layer twice, one never."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.block = nn.Sequential(OrderedDict(inner=nn.Linear(4, 4), relu=nn.ReLU()))
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.runs = 0

    def forward(self, x, fail=False):
        self.runs += 1
        x = self.block(self.first(x))
        if fail:
            raise RuntimeError("planned")
        return self.last(self.shared(self.shared(x)))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_values_are_the_layers_outputs_in_one_forward(net):
    with tap(net, {"a": "first", "b": lambda m: m.block.inner, "c": net.last, "d": "block"}) as tapped:
        output = net(X)
    assert net.runs == 1
    assert list(tapped) == ["a", "b", "c", "d"]
    assert len(tapped) == 4
    first = X @ net.first.weight.T + net.first.bias
    inner = first @ net.block.inner.weight.T + net.block.inner.bias
    assert torch.allclose(tapped["a"], first)
    assert torch.allclose(tapped["b"], inner)
    assert torch.equal(tapped["c"], output)
    assert torch.allclose(tapped["d"], inner.clamp(min=0))
    assert "a" in tapped
    assert "z" not in tapped
    assert hooks(net) == 0


def test_gradients_flow_through_a_tap(net):
    with tap(net, {"a": "first"}) as tapped:
        net(X)
    tapped["a"].sum().backward()
    assert torch.allclose(net.first.bias.grad, torch.full((4,), 5.0))


def test_hooks_are_gone_after_errors_everywhere(net):
    with pytest.raises(RuntimeError, match="planned"), tap(net, {"a": "first"}):  # noqa: PT012
        assert hooks(net) == 2
        net(X, fail=True)
    assert hooks(net) == 0
    with pytest.raises(ValueError, match="outside"), tap(net, {"a": "first"}) as tapped:  # noqa: PT012
        net(X)
        raise ValueError("outside")
    assert hooks(net) == 0
    assert tapped["a"].shape == (5, 4)
    with pytest.raises(UsageError), tap(net, {"a": "first", "b": "nowhere"}):
        pass
    assert hooks(net) == 0


def test_hooks_are_gone_when_setting_them_fails_halfway(net, monkeypatch):
    monkeypatch.setattr(net.last, "register_forward_hook", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), tap(net, {"a": "first", "b": "last"}):
        pass
    assert hooks(net) == 0


def test_a_layer_that_runs_twice_needs_a_number(net):
    with tap(net, {"s": "shared", "s0": "shared#0", "s1": "shared#1", "s2": "shared#2"}) as tapped:
        net(X)
    with pytest.raises(UsageError, match=r"'shared' \(tap 's'\) ran 2 times.*#0' to '<layer name>#1'"):
        tapped["s"]
    assert torch.allclose(tapped["s1"], net.shared(tapped["s0"]))
    assert not torch.allclose(tapped["s0"], tapped["s1"])
    with pytest.raises(UsageError, match="no run #2"):
        tapped["s2"]


def test_a_second_forward_replaces_the_first(net):
    with tap(net, {"a": "first", "s1": "shared#1"}) as tapped:
        net(X)
        before = tapped["a"]
        net(2 * X)
    assert torch.allclose(tapped["a"], net.first(2 * X))
    assert not torch.allclose(tapped["a"], before)
    assert tapped["s1"].shape == (5, 4)


def test_a_layer_that_did_not_run_is_named_on_reading(net):
    with tap(net, {"u": "unused", "a": "first"}) as tapped:
        net(X)
    assert tapped["a"].shape == (5, 4)
    with pytest.raises(UsageError, match=r"'unused' \(tap 'u'\) did not run"):
        tapped["u"]
    with pytest.raises(KeyError, match="no tap 'uu'"):
        tapped["uu"]


def test_nested_taps_see_the_same_forward(net):
    with tap(net, {"a": "first"}) as outer:
        with tap(net, {"a": "first", "b": "last"}) as inner:
            output = net(X)
        assert hooks(net) == 2
        assert torch.equal(outer["a"], inner["a"])
        assert torch.equal(inner["b"], output)
        net(3 * X)
        assert torch.allclose(outer["a"], net.first(3 * X))
        assert torch.allclose(inner["a"], net.first(X))
    assert hooks(net) == 0


def test_inside_autocast_the_tap_has_the_layers_own_dtype(net):
    with torch.autocast("cpu", dtype=torch.bfloat16), tap(net, {"a": "first"}) as tapped:
        net(X)
    assert tapped["a"].dtype == torch.bfloat16
    assert torch.allclose(tapped["a"].float(), net.first(X), atol=2e-2)


@dataclass
class Answer:
    note: str
    hidden: torch.Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer = Wrapper(wrap)

    def forward(self, x):
        self.layer(x)
        return x


class Wrapper(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


WRAPS = [
    lambda x: (x + 1, x),
    lambda x: [None, x + 1],
    lambda x: {"hidden": x + 1, "other": x},
    lambda x: {"nested": (None, {"deep": x + 1})},
    lambda x: Answer("text", x + 1),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_first_tensor_of_a_structure_is_read(wrap):
    model = Wrapped(wrap)
    with tap(model, {"h": "layer"}) as tapped:
        model(X)
    assert torch.equal(tapped["h"], X + 1)


def test_a_layer_without_tensors_is_named():
    model = Wrapped(lambda x: {"a": 1})
    with tap(model, {"h": "layer"}) as tapped:
        model(X)
    with pytest.raises(UsageError, match="returned dict, which holds no tensor"):
        tapped["h"]
    assert first_tensor("text") is None


@pytest.mark.parametrize("inference", [False, True])
def test_an_inplace_activation_does_not_change_what_was_read(inference):
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    with torch.inference_mode(inference), tap(model, {"before": "0"}) as tapped:
        model(X * 1)
        assert torch.equal(tapped["before"], X)


class AddsInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x)
        y += x
        return y


def test_an_inplace_addition_is_copied_or_refused_never_silent():
    model = AddsInPlace()
    with tap(model, {"y": "layer"}) as tapped:
        model(X)
    with pytest.raises(UsageError, match="changed in place"):
        tapped["y"]
    with torch.inference_mode(), tap(model, {"y": "layer"}) as tapped:
        model(X)
        assert torch.equal(tapped["y"], model.layer(X))


def test_resolve_finds_names_functions_and_modules(net):
    assert resolve(net, "block.inner") is net.block.inner
    assert resolve(net, "shared#1") is net.shared
    assert resolve(net, lambda m: m) is net
    assert resolve(net, net.last) is net.last
    net.alias = net.first
    assert resolve(net, "alias") is net.first


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("block.iner", "no layer 'block.iner'. Did you mean 'block.inner'"),
        ("zzz", "no layer 'zzz'. Known: block, first, last, shared, unused"),
        ("", "no layer ''"),
        (lambda m: m.layer9, "layer9.*Its parts: first, block"),
        (lambda m: 3, "returned int"),
        (nn.Linear(1, 1), "not a part of this Net"),
    ],
)
def test_wrong_places_are_explained(net, where, words):
    with pytest.raises(UsageError, match=words):
        resolve(net, where)


def test_docstring_examples_run():
    result = doctest.testmod(taps)
    assert result.attempted == 3
    assert result.failed == 0
