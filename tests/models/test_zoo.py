"""The zoo: parameter counts of the literature (recounted by hand), shapes, taps and published checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.core.errors import UsageError
from potstill.models import zoo
from potstill.models.load import build, load_weights
from potstill.models.measure import num_parameters
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import tap


def conv(before, after, kernel, groups=1):
    return before // groups * after * kernel * kernel


def conv_norm(before, after, kernel, groups=1):
    return conv(before, after, kernel, groups) + 2 * after


def linear(before, after):
    return before * after + after


def resnet_count(depth, widths, classes, shortcut):
    stem, *stages = widths
    total, before = conv_norm(3, stem, 3), stem
    for width in stages:
        convolutions = [(before, width)] + [(width, width)] * ((depth - 2) // 3 - 1)
        total += sum(conv_norm(i, o, 3) for i, o in convolutions)
        total += conv_norm(before, width, 1) if shortcut == "B" and before != width else 0
        before = width
    # The stage of stride 1 has a shortcut only where its width differs from the stem's.
    return total + linear(before, classes)


def wrn_count(depth, widening, classes):
    n, total, before = (depth - 4) // 6, conv(3, 16, 3), 16
    for width in (16 * widening, 32 * widening, 64 * widening):
        total += 2 * before + conv(before, width, 3) + 2 * width + conv(width, width, 3)
        total += (n - 1) * (4 * width + 2 * conv(width, width, 3))
        total += conv(before, width, 1) if before != width else 0
        before = width
    return total + 2 * before + linear(before, classes)


def vgg_count(repeat, classes):
    total, before = 0, 3
    for width in (64, 128, 256, 512, 512):
        total += conv_norm(before, width, 3) + width + (repeat - 1) * (conv_norm(width, width, 3) + width)
        before = width
    return total + linear(512, classes)


def mobilenet_count(classes):
    # width 0.5: stem 16; then (expansion, channels, blocks)
    total, before = conv_norm(3, 16, 3), 16
    for t, width, blocks in ((1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1)):
        for _ in range(blocks):
            inner = t * before
            total += conv_norm(before, inner, 1) + conv_norm(inner, inner, 3, inner) + conv_norm(inner, width, 1)
            before = width
    return total + conv_norm(160, 1280, 1) + linear(1280, classes)


def shufflenet_v1_count(classes):
    total, before = conv_norm(3, 24, 1), 24
    for width, units in ((240, 4), (480, 8), (960, 4)):
        for unit in range(units):
            own = width - before if unit == 0 else width
            inner, groups = own // 4, 1 if before == 24 else 3
            total += conv_norm(before, inner, 1, groups) + conv_norm(inner, inner, 3, inner)
            total += conv_norm(inner, own, 1, 3)
            before = width
    return total + linear(960, classes)


def shufflenet_v2_count(classes):
    total, before = conv_norm(3, 24, 1), 24
    for width, units in ((116, 3), (232, 7), (464, 3)):
        half = width // 2
        total += conv_norm(before, before, 3, before) + conv_norm(before, half, 1)
        total += conv_norm(before, half, 1) + conv_norm(half, half, 3, half) + conv_norm(half, half, 1)
        total += units * (2 * conv_norm(half, half, 1) + conv_norm(half, half, 3, half))
        before = width
    return total + conv_norm(464, 1024, 1) + linear(1024, classes)


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
B = {"shortcut": "B"}
# name, arguments, parameters as known, the same by formula; 100 classes
COUNTS = [
    # the forms of Tian et al., Contrastive Representation Distillation, arXiv 1910.10699
    ("resnet8", B, 83_892, resnet_count(8, NARROW, 100, "B")),
    ("resnet14", B, 181_108, resnet_count(14, NARROW, 100, "B")),
    ("resnet20", B, 278_324, resnet_count(20, NARROW, 100, "B")),
    ("resnet32", B, 472_756, resnet_count(32, NARROW, 100, "B")),
    ("resnet44", B, 667_188, resnet_count(44, NARROW, 100, "B")),
    ("resnet56", B, 861_620, resnet_count(56, NARROW, 100, "B")),
    ("resnet110", B, 1_736_564, resnet_count(110, NARROW, 100, "B")),
    ("resnet8x4", {}, 1_233_540, resnet_count(8, WIDE, 100, "B")),
    ("resnet32x4", {}, 7_433_860, resnet_count(32, WIDE, 100, "B")),
    ("wrn_16_1", {}, 180_916, wrn_count(16, 1, 100)),
    ("wrn_16_2", {}, 703_284, wrn_count(16, 2, 100)),
    ("wrn_40_1", {}, 569_780, wrn_count(40, 1, 100)),
    ("wrn_40_2", {}, 2_255_156, wrn_count(40, 2, 100)),
    ("vgg8", {}, 3_965_028, vgg_count(1, 100)),
    ("vgg13", {}, 9_462_180, vgg_count(2, 100)),
    ("mobilenet_v2", {}, 812_836, mobilenet_count(100)),
    ("shufflenet_v1", {}, 949_258, shufflenet_v1_count(100)),
    ("shufflenet_v2", {}, 1_355_528, shufflenet_v2_count(100)),
    ("cnn", {}, 106_372, conv_norm(3, 32, 3) + conv_norm(32, 64, 3) + conv_norm(64, 128, 3) + linear(128, 100)),
    # The three widths share all but batch norm: (1/4 + 1/2 + 1) times that of the widest.
    ("nested_cnn", {}, 106_708, 106_372 - 2 * 224 + 7 * 224 // 2),
    ("lightgbm", {"in_features": 30}, 0, 0),  # trees have no parameters
    ("mlp", {"in_features": 30}, 12_644, linear(30, 64) + linear(64, 64) + linear(64, 100)),
]
# 10 classes, shortcut A, as published with the CIFAR-10 checkpoints
PADDED = [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)]
IMAGE_MODELS = [name for name in zoo.__all__ if name not in ("lightgbm", "mlp", "nested_cnn")]


def test_the_tables_are_complete():
    assert len(zoo.__all__) == 22
    assert sorted(name for name, *_ in COUNTS) == sorted(zoo.__all__)
    assert len(IMAGE_MODELS) == 19


@pytest.mark.parametrize(("name", "args", "published", "by_formula"), COUNTS)
def test_parameters_for_100_classes(name, args, published, by_formula):
    assert by_formula == published
    assert num_parameters(getattr(zoo, name)(100, **args)) == published


@pytest.mark.parametrize(("name", "published"), PADDED)
def test_parameters_with_padded_shortcuts(name, published):
    assert resnet_count(int(name[6:]), NARROW, 10, "A") == published
    assert num_parameters(getattr(zoo, name)()) == published


# the shape in front of the global pool for 32x32 images
@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet8", "layer3", (64, 8, 8)),
        ("resnet8x4", "layer3", (256, 8, 8)),
        ("wrn_16_2", "layer3", (128, 8, 8)),
        ("vgg8", "blocks.4", (512, 4, 4)),
        ("mobilenet_v2", "head", (1280, 2, 2)),
        ("shufflenet_v1", "layer3", (960, 4, 4)),
        ("shufflenet_v2", "head", (1024, 4, 4)),
        ("cnn", "layer3", (128, 8, 8)),
    ],
)
def test_shapes_for_32_pixels(name, layer, shape):
    model = getattr(zoo, name)(7).eval()
    with torch.no_grad(), tap(model, {"last": layer, "pool": "pool"}) as tapped:
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert tapped["last"].shape == (2, *shape)
    last = tapped["last"].numpy()
    if name.startswith("wrn"):
        # A batch norm that has seen nothing divides by sqrt(1 + 1e-5); then comes the last ReLU.
        last = np.maximum(last / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(tapped["pool"].numpy(), last.mean(axis=(2, 3)), atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_small_grey_images_train_every_parameter(name):
    model = build(name, {"num_classes": 5, "in_channels": 1}, seed=1)
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with tap(model, {"pool": "pool"}) as tapped:
        output = model(images)
    assert output.shape == (4, 5)
    assert torch.isfinite(output).all()
    assert tapped["pool"].shape == (4, model.linear.in_features)
    output.square().sum().backward()
    silent = [name for name, it in model.named_parameters() if it.grad is None or not it.grad.abs().sum() > 0]
    # A convolution's bias in front of batch norm has no influence: its gradient is zero up to rounding.
    assert [name for name in silent if not name.endswith("bias")] == []


@pytest.mark.parametrize("side", [8, 12, 28, 33, 64])
def test_the_small_net_takes_8_to_64_pixels(side):
    model = zoo.cnn(10, in_channels=1, width=4).eval()
    assert model(torch.rand(2, 1, side, side)).shape == (2, 10)


def test_odd_and_large_images_work_where_strides_round():
    for name in ("resnet8", "shufflenet_v2", "mobilenet_v2"):
        assert getattr(zoo, name)(3).eval()(torch.rand(1, 3, 19, 25)).shape == (1, 3)
    model = zoo.vgg8(3).eval()
    with tap(model, {"last": "blocks.4"}) as tapped:
        model(torch.rand(1, 3, 64, 64))
    assert tapped["last"].shape == (1, 512, 4, 4)


def test_the_perceptron_flattens_and_may_be_linear():
    assert zoo.mlp(3, in_features=12, hidden=[5])(torch.rand(2, 3, 2, 2)).shape == (2, 3)
    assert num_parameters(zoo.mlp(1, in_features=8, hidden=())) == 9


def test_padded_shortcut_by_hand():
    block = zoo.resnet8(2).layer2[0].shortcut
    image = torch.arange(16 * 5 * 5, dtype=torch.float32).reshape(1, 16, 5, 5)
    expected = np.zeros((1, 32, 3, 3), dtype=np.float32)
    expected[0, 8:24] = image.numpy()[0, :, ::2, ::2]
    np.testing.assert_array_equal(block(image).numpy(), expected)


def test_channel_shuffle_by_hand():
    from potstill.models.zoo.parts import shuffle_channels

    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle_channels(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle_channels(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("resnet20", {"num_classes": 0}, "num_classes=0"),
        ("resnet20", {"shortcut": "C"}, "shortcut='C'.*'A'"),
        ("wrn_16_1", {"in_channels": 1.5}, "in_channels=1.5"),
        ("mobilenet_v2", {"width": 0}, "width=0"),
        ("shufflenet_v1", {"num_classes": -1}, "num_classes=-1"),
        ("cnn", {"width": 0}, "width=0"),
        ("mlp", {"in_features": 4, "hidden": (3, 0)}, r"hidden\[1\]=0"),
    ],
)
def test_impossible_arguments_are_refused(name, args, words):
    with pytest.raises(UsageError, match=words):
        getattr(zoo, name)(**args)


CHECKPOINTS = [
    ("resnet20", "resnet20-12fca82f.th"),
    ("resnet32", "resnet32-d509ac18.th"),
    ("resnet44", "resnet44-014dd654.th"),
    ("resnet56", "resnet56-4bfd9763.th"),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "file"), CHECKPOINTS)
def test_published_checkpoints_load(data_pack, name, file):
    path = data_pack / "checkpoints" / file
    model = getattr(zoo, name)()
    load_weights(model, path, allow_pickle=True)
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    deepest = f"layer3.{len(model.layer3) - 1}.bn2.running_var"
    assert torch.equal(model.linear.weight, state["module.linear.weight"])
    assert torch.equal(model.state_dict()[deepest], state[f"module.{deepest}"])
    with pytest.raises(UsageError, match=r"layer2\.0\.shortcut"):
        load_weights(getattr(zoo, name)(shortcut="B"), path, allow_pickle=True)


@pytest.mark.data
def test_the_published_resnet20_classifies_as_published(data_pack):
    from PIL import Image

    # Every tenth test image, 100 a class. The whole set gives the published 91.73 %; 1,000 images have a standard
    # error of 0.87 points, the band is three of them.
    sheet = np.asarray(Image.open(data_pack / "cifar10" / "test.webp").convert("RGB"))
    images = sheet.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[::10]
    labels = np.load(data_pack / "cifar10" / "test.labels.npz")["y"][::10]
    assert len(images) == len(labels) == 1000
    model = zoo.resnet20()
    load_weights(model, data_pack / "checkpoints" / "resnet20-12fca82f.th", allow_pickle=True)
    normalise = Preprocessor(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    inputs = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        chosen = torch.cat([model.eval()(normalise(part)).argmax(1) for part in inputs.split(250)]).numpy()
    assert 0.9173 - 0.026 < (chosen == labels).mean() < 0.9173 + 0.026
