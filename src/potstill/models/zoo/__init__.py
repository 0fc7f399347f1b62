"""A small zoo: the image models that papers on distillation compare on, two very small ones, and boosted trees.

Each is a function ``name(num_classes=10, *, in_channels=3, ...)``; for regression ``num_classes`` is the number of
outputs. The networks end in ``linear``; all but the perceptron have ``pool``, (b, features), before it.
"""

from __future__ import annotations

from potstill.models.zoo.mobilenet import mobilenet_v2
from potstill.models.zoo.nested import nested_cnn
from potstill.models.zoo.resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from potstill.models.zoo.shufflenet import shufflenet_v1, shufflenet_v2
from potstill.models.zoo.small import cnn, mlp
from potstill.models.zoo.trees import lightgbm
from potstill.models.zoo.vgg import vgg8, vgg13
from potstill.models.zoo.wide_resnet import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "cnn",
    "lightgbm",
    "mlp",
    "mobilenet_v2",
    "nested_cnn",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
    "shufflenet_v1",
    "shufflenet_v2",
    "vgg8",
    "vgg13",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
