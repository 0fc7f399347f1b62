"""A small trained network and its files, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from potstill.export import export_onnx, quantize
from potstill.models.preprocess import Preprocessor


@dataclass(frozen=True)
class Trained:
    """A model with its preprocessing, raw inputs and what it answers."""

    model: nn.Module
    preprocess: Preprocessor
    train: torch.Tensor
    test: torch.Tensor
    targets: np.ndarray
    outputs: np.ndarray
    exact: Path
    int8: Path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A CNN trained on the 8x8 digits, resized to 12x12 on the way in; uint8 pixels."""
    raw, targets = load_digits(return_X_y=True)
    pixels = torch.from_numpy((raw.reshape(-1, 1, 8, 8) * 15.9).astype(np.uint8))
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[:1200], order[1200:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, 10),
        )
        preprocess = Preprocessor(torch.tensor([0.3]), torch.tensor([0.37]), 12)
        labels = torch.from_numpy(targets)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(72):
            rows = torch.from_numpy(train)[(step % 12) * 100 : (step % 12 + 1) * 100]
            loss = F.cross_entropy(model(preprocess(pixels[rows])), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        outputs = model(preprocess(pixels[test])).numpy()
    model.train()
    folder = tmp_path_factory.mktemp("digits")
    exact = export_onnx(
        model,
        preprocess,
        pixels[:3],
        folder / "student.onnx",
        task="classification",
        classes=[f"digit {number}" for number in range(10)],
        recipe_hash="abc123",
    )
    batches = [pixels[train[start : start + 32]].numpy() for start in range(0, 512, 32)]
    int8 = quantize(exact, folder / "student-int8.onnx", batches)
    return Trained(model, preprocess, pixels[train], pixels[test], targets[test], outputs, exact, int8)


@pytest.fixture(scope="session")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An MLP trained on a smooth function of five columns; float inputs, one value out."""
    generator = torch.Generator().manual_seed(0)
    columns = 10 + 4 * torch.randn(1500, 5, generator=generator)
    values = 50 + 8 * torch.sin(columns[:, 0] / 3) + columns[:, 1] * columns[:, 2] / 8
    preprocess = Preprocessor(columns.mean(0), columns.std(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(200):
            loss = F.mse_loss(model(preprocess(columns[:1000]))[:, 0] * 10 + 60, values[:1000])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        model[4].weight *= 10
        model[4].bias.mul_(10).add_(60)
        outputs = model(preprocess(columns[1000:])).numpy()
    folder = tmp_path_factory.mktemp("curve")
    exact = export_onnx(model, preprocess, columns[:1], folder / "student.onnx", task="regression")
    batches = [columns[start : start + 50].numpy() for start in range(0, 1000, 50)]
    int8 = quantize(exact, folder / "student-int8.onnx", batches)
    return Trained(model, preprocess, columns[:1000], columns[1000:], values[1000:].numpy(), outputs, exact, int8)
