"""A student that takes over its teacher's classifier (Chen et al. 2022, arXiv:2203.14001).

Shape legend: b samples, c channels, h and w rows and columns of a map, d features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.core.scale import TargetScale
from potstill.models.last_layer import in_standard_units
from potstill.models.load import output_tensor
from potstill.models.taps import resolve


class ReusedClassifier(nn.Module):
    """The student's own layers, a projector, and the teacher's last layers, frozen and in eval mode for ever."""

    def __init__(self, trunk: nn.Module, projector: nn.Module, classifier: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.projector = projector
        self.classifier = classifier.requires_grad_(False).eval()
        self.remember()

    def remember(self) -> None:
        """Take the classifier's weights for the teacher's."""
        self._taught = {name: tensor.clone() for name, tensor in self.classifier.state_dict().items()}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, classes)."""
        logits: Tensor = self.classifier(self.projector(output_tensor(self.trunk(x))))
        return logits

    def train(self, mode: bool = True) -> ReusedClassifier:
        """Set the mode of everything but the classifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def reset_parameters(self) -> None:
        """Give the classifier the teacher's weights again, after its layers were reset like all others."""
        self.classifier.load_state_dict(self._taught)


def reused_in_standard_units(model: nn.Module, scale: TargetScale) -> nn.Module:
    """Let every classifier that was taken over from a teacher of values answer in standard units; return the model.

    Raises:
        UsageError: one that does not end with a linear layer that has a bias.

    """
    for reused in (module for module in model.modules() if isinstance(module, ReusedClassifier)):
        layer = [module for module in reused.classifier.modules() if not list(module.children())][-1]
        if not isinstance(layer, nn.Linear) or layer.bias is None:
            raise UsageError(
                f"The teacher's classifier ends with {type(layer).__name__}, not with a linear layer that has a bias, "
                "so it cannot answer in standard units. Set data.standardise_targets: false."
            )
        with torch.no_grad():
            weight, bias = in_standard_units(layer.weight, layer.bias, scale)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        reused.remember()
    return model


class Resized(nn.Module):
    """Maps at another size: averaged over windows, or interpolated between."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """Return (b, c, *size)."""
        if self.size[0] <= maps.shape[2] and self.size[1] <= maps.shape[3]:
            return F.adaptive_avg_pool2d(maps, self.size)
        return F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)


def reuse_classifier(
    student: nn.Module,
    teacher: nn.Module,
    example: Tensor,
    *,
    tail: str | Sequence[str],
    teacher_tail: str | Sequence[str] | None = None,
) -> nn.Module:
    """Build a student that ends in its teacher's last layers.

    Use it with `potstill.losses.reused_classifier` as the only term: the student learns what goes into the teacher's
    classifier, and what comes out needs no learning. What is deployed is the whole: the student's layers, the projector
    and the classifier. Not where the teacher's last layers are what makes it large.

    The projector brings maps to the teacher's channels by 1x1, 3x3 and 1x1 convolutions with batch norm, half as wide
    inside, and vectors by two linear layers. It ends in a ReLU where the teacher's features are never negative. Maps of
    another size are averaged over windows or interpolated.

    Args:
        student: a model of any kind; it is copied, and its last layers are left out.
        teacher: the trained model; its last layers are copied.
        example: (b, ...) some inputs as both models take them, after preprocessing. Shapes are read from it, and
            whether the named layers are all that happens in the teacher from there on.
        tail: dotted names of the student's last layers that are left out, in the order in which they run.
        teacher_tail: the same of the teacher, which become the classifier; the same names when absent.

    Returns:
        a module with ``trunk``, ``projector`` (tap it for the loss) and ``classifier``. The loss reads the teacher's
        signal in front of ``teacher_tail``.

    Raises:
        UsageError: no such layer, the teacher's answer does not come from the named layers alone, or features that
            cannot be projected.

    Example:
        >>> from potstill.models import reuse_classifier, zoo
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> small = reuse_classifier(zoo.resnet8(), zoo.wrn_16_2(), images, tail=("pool", "linear"))
        >>> tuple(small(images).shape), tuple(small.classifier[1].weight.shape)
        ((2, 10), (10, 128))

    Defang Chen, Jian-Ping Mei, Hailin Zhang, Can Wang, Yan Feng, Chun Chen: Knowledge Distillation with the Reused
    Teacher Classifier, 2022, arXiv:2203.14001. The paper averages the teacher's maps where the student's are smaller;
    here the student's are interpolated, so that the classifier reads what it was trained on.

    """
    names = _names(tail)
    teacher_names = names if teacher_tail is None else _names(teacher_tail)
    with torch.no_grad():
        features, classifier = _classifier(teacher, teacher_names, example)
        trunk = copy.deepcopy(student)
        for name in names:
            resolve(trunk, name)
            parent, _, child = name.rpartition(".")
            setattr(resolve(trunk, parent) if parent else trunk, child, nn.Identity())
        own = output_tensor(copy.deepcopy(trunk).eval()(example))
    return ReusedClassifier(trunk, _projector(own, features), classifier).train(student.training)


def _names(tail: str | Sequence[str]) -> tuple[str, ...]:
    names = (tail,) if isinstance(tail, str) else tuple(tail)
    if not names:
        raise UsageError("tail must name at least one layer, for example tail='linear' or tail=('pool', 'linear').")
    return names


def _classifier(teacher: nn.Module, names: tuple[str, ...], example: Tensor) -> tuple[Tensor, nn.Sequential]:
    """Return what goes into the teacher's named layers, and copies of them, if they are all that follows."""
    model = copy.deepcopy(teacher).eval()
    layers = [resolve(model, name) for name in names]
    seen: list[Any] = []
    handle = layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] if inputs else None))
    logits = output_tensor(model(example))
    handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        raise UsageError(f"The teacher's layer {names[0]!r} must run once and take one tensor to be reused.")
    classifier = nn.Sequential(*layers)
    try:
        again: Tensor | None = classifier(seen[0])
    except RuntimeError:
        again = None
    if again is None or again.shape != logits.shape or not torch.allclose(again, logits, rtol=1e-3, atol=1e-4):
        raise UsageError(
            f"The teacher's layers {', '.join(names)}, one after the other, do not give its answer: something else "
            "happens between or after them. Name all of them in order, or fewer."
        )
    return seen[0], classifier


def _projector(own: Tensor, wanted: Tensor) -> nn.Module:
    """Build the layers between the student's features and the teacher's classifier."""
    last = [] if bool((wanted < 0).any()) else [nn.ReLU()]
    before, after = own.shape[1], wanted.shape[1]
    inside = max(1, after // 2)
    if own.dim() == wanted.dim() == 2:
        return nn.Sequential(nn.Linear(before, inside), nn.ReLU(), nn.Linear(inside, after), *last)
    if own.dim() != 4 or wanted.dim() != 4:
        raise UsageError(
            f"The student's features have shape {tuple(own.shape)} and the teacher's {tuple(wanted.shape)}: both must "
            "be maps (b, c, h, w) or both vectors (b, d). Leave out other last layers."
        )
    size = (wanted.shape[2], wanted.shape[3])
    resized = [] if tuple(own.shape[2:]) == size else [Resized(size)]
    return nn.Sequential(
        *resized,
        nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU(),
        nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside), nn.ReLU(),
        nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after),
        *last,
    )  # fmt: skip
