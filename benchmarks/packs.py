"""Readers of the data pack named by POTSTILL_DATA, as data functions for the benchmark recipes."""

from __future__ import annotations

import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pack() -> Path:
    folder = os.environ.get("POTSTILL_DATA")
    if not folder:
        raise SystemExit("Set POTSTILL_DATA to the folder of data sets (see benchmarks/README.md).")
    return Path(folder)


def cifar10_part(name: str) -> Arrays:
    """One part of CIFAR-10: images (n, 3, 32, 32) uint8 and labels, from a lossless mosaic of tiles."""
    folder = pack() / "cifar10"
    mosaic = np.asarray(Image.open(folder / f"{name}.webp").convert("RGB"))
    rows, columns = mosaic.shape[0] // 32, mosaic.shape[1] // 32
    tiles = mosaic.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    labels = np.load(folder / f"{name}.labels.npz")["y"].astype(np.int64)
    return np.ascontiguousarray(tiles), labels


def cifar10() -> dict[str, Arrays]:
    """20,000 training images and the complete test set."""
    parts = [cifar10_part(f"train-{part}of5") for part in (0, 1)]
    train = np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
    return {"train": train, "test": cifar10_part("test")}


def fashion_mnist() -> dict[str, Arrays]:
    """The official 60,000 training and 10,000 test images, (n, 1, 28, 28) uint8."""

    def read(prefix: str) -> Arrays:
        folder = pack() / "fashion_mnist"
        images = lzma.decompress((folder / f"{prefix}-images-idx3-ubyte.xz").read_bytes())
        labels = lzma.decompress((folder / f"{prefix}-labels-idx1-ubyte.xz").read_bytes())
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return pixels.copy(), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)

    return {"train": read("train"), "test": read("t10k")}


def small_fashion_mnist() -> dict[str, Arrays]:
    """20,600 training, 400 validation and 10,000 test images, averaged to (n, 1, 14, 14)."""

    def smaller(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return images.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)).round().astype(np.uint8)

    splits = fashion_mnist()
    images, labels = splits["train"]
    rows = np.random.default_rng(0).permutation(len(images))[:21_000]
    parts = {
        "train": (images[rows[:20_600]], labels[rows[:20_600]]),
        "validation": (images[rows[20_600:]], labels[rows[20_600:]]),
    }
    return {name: (smaller(found), named) for name, (found, named) in {**parts, "test": splits["test"]}.items()}
