"""Students that learn in one pass: one model with early exits, or several models side by side.

Both answer with a mapping: ``logits`` of the student that is deployed, and the others' under names of their own.
Shape legend: b samples, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.core.names import of_exit, of_peer
from potstill.models.load import output_tensor
from potstill.models.taps import Where, tap
from potstill.models.zoo.nested import NestedConvNet, cut


class Exits(nn.Module):
    """A model with a small classifier on each of some of its layers: shallower models inside the deep one.

    When to use it: self-distillation, where the shallow exits learn from the deepest and pull the layers below with
    them. Exit i answers under ``exit<i>.logits``. `deployed` gives the model without its exits.

    Args:
        model: the whole model.
        layers: names of layers with signals (b, d), (b, t, d) or (b, c, h, w), the shallowest first.
        num_outputs: classes, or outputs in regression.
        example: (2, ...) inputs as the model sees them.

    Raises:
        UsageError: no layers, or a layer whose signal has another number of dimensions.

    """

    def __init__(self, model: nn.Module, layers: Sequence[str], *, num_outputs: int, example: Tensor) -> None:
        super().__init__()
        if not layers:
            raise UsageError("A model with exits needs at least one layer to exit from.")
        self.model = model
        self._layers = tuple(layers)
        self.signals = tuple(of_exit(number) for number in range(1, len(layers) + 1))
        training = model.training
        model.eval()
        with torch.no_grad(), tap(model, dict(zip(self.signals, layers, strict=True))) as tapped:
            model(example)
            widths = [_pooled(tapped[name], layer).shape[1] for name, layer in zip(self.signals, layers, strict=True)]
        model.train(training)
        self.exits = nn.ModuleList(nn.Linear(width, num_outputs) for width in widths)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` (b, c) and each exit's."""
        with tap(self.model, dict(zip(self.signals, self._layers, strict=True))) as tapped:
            logits = output_tensor(self.model(inputs))
            found = [_pooled(tapped[name], layer) for name, layer in zip(self.signals, self._layers, strict=True)]
        exits = [classify(signal) for classify, signal in zip(self.exits, found, strict=True)]
        return {"logits": logits, **dict(zip(self.signals, exits, strict=True))}


class Together(nn.Module):
    """Several students on the same inputs; the first one's logits are ``logits``, the others' ``peer<i>.logits``."""

    def __init__(self, student: nn.Module, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.signals = tuple(of_peer(number) for number in range(1, len(peers) + 1))

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return every student's logits (b, c)."""
        logits = output_tensor(self.student(inputs))
        others = [output_tensor(peer(inputs)) for peer in self.peers]
        return {"logits": logits, **dict(zip(self.signals, others, strict=True))}


def deployed(model: nn.Module) -> nn.Module:
    """Return the student that is deployed, without the exits and peers it was trained with."""
    student = model.student if isinstance(model, Together) else model
    return cut(student) if isinstance(student, NestedConvNet) else plain(student)


def plain(model: nn.Module) -> nn.Module:
    """Return the student itself, without the exits and peers beside it."""
    inner = model.student if isinstance(model, Together) else model
    return inner.model if isinstance(inner, Exits) else inner


def other_students(model: nn.Module) -> dict[str, nn.Module]:
    """Return the students that were trained beside the one that is deployed, by what they are called in a report."""
    peers = model.peers if isinstance(model, Together) else ()
    found = {f"peer {number}": peer for number, peer in enumerate(peers, 1)}
    inner = plain(model)
    if isinstance(inner, NestedConvNet):
        found |= {f"width {share:g}": cut(inner, share) for share in inner.widths[:-1]}
    return found


def inside(model: nn.Module, where: Where) -> Where:
    """Return where a layer of the deployed student is in the model that is trained."""
    if isinstance(model, Together):
        return below(lambda whole: whole.student, "student", inside(model.student, where))
    return below(lambda whole: whole.model, "model", where) if isinstance(model, Exits) else where


def inside_peer(index: int, where: Where) -> Where:
    """Return where a layer of a peer, counted from 0, is in a `Together`."""
    return below(lambda whole: whole.peers[index], f"peers.{index}", where)


def below(part: Callable[[Any], nn.Module], name: str, where: Where) -> Where:
    """Return where a layer of a part, kept in the whole model under ``name``, is in the whole model."""
    if isinstance(where, str):
        return f"{name}.{where}"
    if isinstance(where, nn.Module):
        return where
    return lambda whole: where(part(whole))


def _pooled(signal: Tensor, layer: str) -> Tensor:
    """Return one vector (b, d) a sample: the mean over positions."""
    if signal.dim() == 4:
        return signal.mean((2, 3))
    if signal.dim() == 3:
        return signal.mean(1)
    if signal.dim() == 2:
        return signal
    raise UsageError(
        f"Layer {layer} has signals of shape {tuple(signal.shape)}: an exit needs (b, d), (b, t, d) or (b, c, h, w)."
    )
