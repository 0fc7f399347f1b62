"""A teacher that starts from the features of one of its layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.export import OnnxModel, export_onnx
from potstill.models import Preprocessor, build, tap
from potstill.teachers.from_features import FromFeatures

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """Half of what it knows passes around its layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) + self.other(x)


@pytest.mark.parametrize("layer", ["layer1", "layer3", "pool", "linear"])
def test_the_rest_of_the_model_gives_the_same_answers(layer):
    model = build("cnn", {"width": 4, "in_channels": 1}, seed=0).eval()
    behind = FromFeatures(model, layer, (1, 8, 8))
    with torch.no_grad():
        features = behind.verify(IMAGES)
        torch.testing.assert_close(behind(features), model(IMAGES))
        # Nothing else of the samples is seen, and the hook is gone.
        torch.testing.assert_close(behind(features[:2]), model(IMAGES[:2]))
        with tap(behind, {"after": "model.linear"}) as tapped:
            behind(features)
            torch.testing.assert_close(tapped["after"], model(IMAGES))


def test_a_layer_that_does_not_say_everything_is_refused():
    with pytest.raises(UsageError, match="signals pass around the teacher's layer 'layer'"):
        FromFeatures(Around(), "layer", (4,)).verify(torch.randn(3, 4))


def test_features_of_another_shape_are_refused():
    model = build("cnn", {"width": 4, "in_channels": 1}, seed=0).eval()
    with pytest.raises(UsageError, match=r"Layer pool returns \(16,\), not one tensor \(9,\)"):
        FromFeatures(model, "pool", (1, 8, 8))(torch.zeros(2, 9))


def test_it_is_written_as_a_file_that_answers_batches_of_any_size(tmp_path: Path) -> None:
    """The number of samples of the example must not stay in the file."""
    behind = FromFeatures(
        build("cnn", {"num_classes": 3, "in_channels": 1, "width": 4}).eval(), "pool", (1, 8, 8)
    ).eval()
    features = behind.verify(torch.rand(3, 1, 8, 8))
    file = export_onnx(behind, Preprocessor(), features[:2], tmp_path / "model.onnx", task="classification")
    for size in (1, 2, 3):
        expected = behind(features[:size]).detach().numpy()
        np.testing.assert_allclose(OnnxModel(file)(features[:size].numpy()), expected, atol=1e-5)
