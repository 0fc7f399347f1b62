"""A model's outputs on a whole split, in row order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.progress import progress
from potstill.data.samples import Samples
from potstill.models.load import output_tensor

Precision = Literal["auto", "float32", "bfloat16"]


def predict(
    model: nn.Module,
    samples: Samples,
    *,
    preprocess: nn.Module,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    label: str = "predict",
) -> np.ndarray[Any, Any]:
    """Run a model over every sample of a split, in row order, without augmentation.

    The model is put into evaluation mode and on ``device``; afterwards every module has its own mode again and the
    model is back on the device of its first parameter.

    Args:
        model: answers a batch with logits or values; see `output_tensor` for the outputs understood.
        samples: the split.
        preprocess: the model's own preprocessing.
        batch_size: samples a forward pass.
        device: where to run.
        precision: ``bfloat16`` runs under autocast; ``auto`` means float32 here, since scores are what is compared.
        label: what the progress bar says.

    Returns:
        (n, c) float32 logits or values, float64 of a model that answers in it; (n, k) for k regression columns.

    Raises:
        UsageError: an empty split, or outputs that are not one row for each sample.

    """
    if len(samples) == 0:
        raise UsageError("There is nothing to predict: the split is empty.")
    device = torch.device(device)
    homes = [(module, _device_of(module)) for module in (model, preprocess)]
    half = precision == "bfloat16"
    parts = []
    try:
        model.to(device)
        preprocess.to(device)
        with (
            evaluating(model, preprocess),
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=half),
            progress(label, len(samples), unit="samples") as advance,
        ):
            for start in range(0, len(samples), batch_size):
                rows = np.arange(start, min(start + batch_size, len(samples)))
                inputs = samples.fetch(rows).to(device)
                outputs = output_tensor(model(preprocess(inputs)))
                outputs = outputs[:, None] if outputs.dim() == 1 else outputs
                if outputs.dim() != 2 or len(outputs) != len(rows):
                    raise UsageError(
                        f"The model answered {len(rows)} samples with outputs of shape {tuple(outputs.shape)}; "
                        "expected one row of class scores or values for each sample."
                    )
                parts.append((outputs if outputs.dtype == torch.float64 else outputs.float()).cpu().numpy())
                advance(len(rows))
    finally:
        for module, home in homes:
            module.to(home)
    return np.concatenate(parts)


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put all modules of some models into evaluation mode; every single one has its own mode again afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
