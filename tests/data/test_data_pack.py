"""The real data sets of the data pack: counts and values that their publishers state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from potstill.data import channel_statistics, load

pytestmark = pytest.mark.data

CIFAR = '''
from pathlib import Path

import numpy as np
from PIL import Image


def read(folder, name):
    """A shard is one lossless mosaic of 32x32 tiles, row by row."""
    mosaic = np.asarray(Image.open(Path(folder) / f"{name}.webp").convert("RGB"))
    down, across = mosaic.shape[0] // 32, mosaic.shape[1] // 32
    tiles = [mosaic[y * 32 : y * 32 + 32, x * 32 : x * 32 + 32] for y in range(down) for x in range(across)]
    return np.stack(tiles), np.load(Path(folder) / f"{name}.labels.npz")["y"]


def cifar10(folder):
    shards = [read(folder, f"train-{shard}of5") for shard in (0, 1)]
    train = tuple(np.concatenate(parts) for parts in zip(*shards))
    return {"train": train, "test": read(folder, "test")}
'''


def test_cifar10_through_a_data_function(data_pack: Path, tmp_path: Path):
    folder = data_pack / "cifar10"
    (tmp_path / "cifar.py").write_text(CIFAR)
    classes = json.loads((folder / "classes.json").read_text())
    data = load("cifar.py:cifar10", args={"folder": str(folder)}, classes=classes, base=tmp_path)
    assert data.classes == tuple(classes)
    assert (data.kind, data.shape, data.num_outputs) == ("image", (3, 32, 32), 10)
    assert [len(split) for split in data.splits.values()] == [18000, 2000, 10000]
    assert np.bincount(data.test.targets).tolist() == [1000] * 10
    assert np.bincount(data.validation.targets).tolist() == [200] * 10
    mean, std = channel_statistics(data.test, limit=10000)
    # Published for the 50,000 training images; the test images differ a little.
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=0.005)
    assert data.label_shift == {"validation": 0.0, "test": 0.0}


def test_adult_with_its_categories(data_pack: Path):
    folder = data_pack / "adult"
    raw = pyarrow.parquet.read_table(folder / "train.parquet").to_pandas()
    target = "label"
    data = load(folder / "train.parquet", test=folder / "test.parquet", target=target)
    assert len(raw) == len(data.train) + len(data.validation) == 32561
    assert len(data.test) == 16281
    assert data.train.targets.mean() == pytest.approx(0.2408, abs=2e-4)
    assert data.test.targets.mean() == pytest.approx(0.2362, abs=1e-4)
    texts = {column.name: column.categories for column in data.columns if column.categories}
    assert len(texts) == 8
    assert sum(1 for column in data.columns if column.categories is None) == 6
    assert sum("?" in categories for categories in texts.values()) == 3
    assert data.shape == (6 + sum(map(len, texts.values())),)
    # Decoded again and compared with what pandas reads.
    rows = data.train.fetch(np.arange(2000)).numpy()
    start = 0
    for column in data.columns:
        part = rows[:, start : start + column.width]
        start += column.width
        expected = raw[column.name].to_numpy()[data.train.ids[:2000]]
        if column.categories is None:
            np.testing.assert_array_equal(part[:, 0], expected.astype(np.float32))
        else:
            assert (part.sum(axis=1) == 1).all()
            np.testing.assert_array_equal(np.array(column.categories)[part.argmax(axis=1)], expected)


def test_california_housing_as_regression(data_pack: Path):
    path = data_pack / "california_housing" / "data.parquet"
    data = load(path, target="medianHouseValue", task="regression")
    assert [len(split) for split in data.splits.values()] == [14448, 2064, 4128]
    assert (data.shape, data.num_outputs, data.classes) == ((8,), 1, ())
    values = np.concatenate([split.targets for split in data.splits.values()]).astype(np.float64)
    assert values.mean() == pytest.approx(206855.8, abs=0.1)
    assert max(data.label_shift.values()) < 0.05
    mean, std = channel_statistics(data.train)
    assert len(mean) == len(std) == 8
