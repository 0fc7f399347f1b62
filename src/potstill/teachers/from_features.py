"""A teacher that starts from what one of its own layers says, instead of from samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.models.load import output_tensor
from potstill.models.taps import resolve, tap


class FromFeatures(nn.Module):
    """The part of a model behind one of its layers, as a model of that layer's signal.

    When to use it: a small student is trained on a large model's features, and learns from that model's answers too.
    The whole model runs on zeros and the layer's answer is replaced, so it works wherever everything passes through
    the layer once; `verify` finds out.

    Args:
        model: the whole model; its layers can be tapped as ``model.<layer>``.
        layer: the layer's name.
        shape: of one sample as the model sees it, behind its preprocessing.

    """

    def __init__(self, model: nn.Module, layer: str, shape: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.shape = tuple(shape)

    def forward(self, features: Tensor) -> Tensor:
        """Return the model's answers (b, c) for features (b, ...) of its layer."""

        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor) or output.shape != features.shape:
                found = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
                raise UsageError(f"Layer {self.layer} returns {found}, not one tensor {tuple(features.shape[1:])}.")
            return features

        hook = resolve(self.model, self.layer).register_forward_hook(replace, prepend=True)
        try:
            zeros = features.new_zeros(features.shape[0], *self.shape)
            return output_tensor(self.model(zeros))
        finally:
            hook.remove()

    def extra_repr(self) -> str:
        """Return what tells two of these apart."""
        return f"layer={self.layer!r}, shape={self.shape}"

    def verify(self, inputs: Tensor) -> Tensor:
        """Return the layer's signal (b, ...) for preprocessed inputs, after checking that it says everything.

        Raises:
            UsageError: from the layer's signal the model does not come to the answers that it gives to the inputs.

        """
        self.eval()
        with torch.no_grad(), tap(self.model, {"features": self.layer}) as tapped:
            answers = output_tensor(self.model(inputs))
            features = tapped["features"].detach().clone()
        with torch.no_grad():
            again = self(features)
        if not torch.allclose(again, answers, rtol=1e-3, atol=1e-3 * float(answers.abs().max() + 1e-6)):
            raise UsageError(
                f"student.on_features: signals pass around the teacher's layer {self.layer!r}, so that its features do "
                "not say everything that the teacher knows. Choose a layer that everything passes through, such as a "
                "whole stage or the pooling in front of the classifier."
            )
        return features
