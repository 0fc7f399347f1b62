"""Folders of images by class: names, ids, sizes, damaged files, orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.core.errors import DataError, UsageError
from potstill.data import Samples, load
from potstill.data.images import Decoded


def picture(path: Path, value: int, size: tuple[int, int] = (6, 6), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(40):
        picture(tmp_path / "photos" / ("cat", "dog")[row % 2] / f"{row:02}.png", row)
    return tmp_path / "photos"


def everything(samples: Samples) -> np.ndarray:
    return samples.fetch(np.arange(len(samples))).numpy()


def test_pixels_classes_and_names(folder):
    data = load("photos", base=folder.parent)
    assert (data.kind, data.shape, data.classes) == ("image", (3, 6, 6), ("cat", "dog"))
    assert sum(map(len, data.splits.values())) == 40
    for split in data.splits.values():
        for row, name in enumerate(split.names):
            assert data.classes[split.targets[row]] == name.split("/")[0]
            number = int(Path(name).stem)
            expected = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            np.testing.assert_array_equal(everything(split)[row], expected.transpose(2, 0, 1))
    assert data.findings == ()


def test_ids_stay_when_files_are_added_and_the_folder_moves(folder, tmp_path):
    before = load(folder)
    ids = {name: id_ for split in before.splits.values() for name, id_ in zip(split.names, split.ids, strict=True)}
    assert len(ids) == len(set(ids.values())) == 40
    held = set(before.test.names)
    folder.rename(tmp_path / "moved")
    assert load(tmp_path / "moved").fingerprint == before.fingerprint
    picture(tmp_path / "moved" / "cat" / "000.png", 99)
    after = load(tmp_path / "moved")
    for split in after.splits.values():
        for name, id_ in zip(split.names, split.ids, strict=True):
            assert ids.get(name, id_) == id_
    assert len(held & set(after.test.names)) >= len(held) - 1
    picture(tmp_path / "moved" / "cat" / "000.png", 100)
    assert load(tmp_path / "moved").fingerprint != after.fingerprint


def test_equal_paths_in_separate_folders_are_different_samples(folder, tmp_path):
    for row in range(10):
        picture(tmp_path / "held" / ("cat", "dog")[row % 2] / f"{row:02}.png", 500 + row if row < 7 else row)
    data = load(folder, test=tmp_path / "held")
    assert not set(data.train.ids) & set(data.test.ids)
    shared = [f for f in data.findings if f.code == "shared-samples"]
    assert sum(f.count for f in shared) == 3
    assert "/0" in shared[0].message


@pytest.mark.parametrize("lazy", [False, True])
def test_damaged_files_are_named_or_skipped(folder, monkeypatch, lazy):
    if lazy:
        monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "dog" / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"2 of 42 samples.*used: cat/empty.png: cannot be read.*; dog/text.jpg"):
        load(folder)
    data = load(folder, on_bad="skip")
    assert [(f.code, f.count) for f in data.findings] == [("skipped-samples", 2)]
    assert "cat/empty.png" in data.findings[0].message
    assert sum(map(len, data.splits.values())) == 40
    for split in data.splits.values():
        for row, name in enumerate(split.names):
            expected = np.random.default_rng(int(Path(name).stem)).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            np.testing.assert_array_equal(everything(split)[row], expected.transpose(2, 0, 1))


def test_a_truncated_file_is_found(folder):
    whole = (folder / "cat" / "00.png").read_bytes()
    (folder / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cat/00.png: cannot be read"):
        load(folder)


def test_a_folder_larger_than_memory_is_read_when_asked_for(folder, monkeypatch):
    kept = load(folder)
    monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    data = load(folder)
    assert isinstance(data.train.fetch.fetch, Decoded)
    np.testing.assert_array_equal(everything(data.test), everything(kept.test))
    np.testing.assert_array_equal(data.test.ids, kept.test.ids)
    assert data.fingerprint == load(folder).fingerprint
    (folder / data.test.names[0]).unlink()
    with pytest.raises(DataError, match=f"{data.test.names[0]} cannot be read"):
        everything(data.test)


def test_several_sizes_need_image_size(folder, monkeypatch):
    picture(folder / "dog" / "wide.png", 7, (9, 5))
    for limit in (2**31, 100):
        monkeypatch.setattr("potstill.data.images.KEPT_BYTES", limit)
        with pytest.raises(DataError, match=r"several sizes.*6x6 \(cat/00.png\), 5x9 \(dog/wide.png\).*image_size"):
            load(folder)
        data = load(folder, image_size=8)
        assert data.shape == (3, 8, 8)
        path = folder / data.test.names[0]
        expected = np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(everything(data.test)[0], expected.transpose(2, 0, 1))


def test_photographs_are_turned_upright(tmp_path):
    for row in range(12):
        pixels = np.random.default_rng(row).integers(0, 256, (4, 7, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by a quarter to the right
        path = tmp_path / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif)
    data = load(tmp_path)
    assert data.shape == (3, 7, 4)
    first = np.random.default_rng(int(Path(data.train.names[0]).stem)).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(everything(data.train)[0], np.rot90(first, -1).transpose(2, 0, 1))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    kinds = ["L", "P", "RGBA", "1", "CMYK", "LA"]
    for row in range(24):
        mode = kinds[row % len(kinds)]
        path = tmp_path / "ab"[row % 2] / f"{row}.{'jpg' if mode == 'CMYK' else 'png'}"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 5), (row * 10, 20, 30)).convert(mode).save(path)
    assert load(tmp_path).shape == (3, 5, 5)


def test_other_files_are_counted_and_hidden_ones_are_not_seen(folder):
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "readme.md").write_text("x")
    (folder / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    picture(folder / "dog" / ".thumbnails" / "0.png", 900)
    picture(folder / "dog" / "puppies" / "0.PNG", 901)
    data = load(folder)
    names = {name for split in data.splits.values() for name in split.names}
    assert len(names) == 41
    assert "dog/puppies/0.PNG" in names
    assert [(f.level, f.code, f.count) for f in data.findings] == [("info", "ignored-files", 2)]
    assert data.classes == ("cat", "dog")


def test_classes_of_folders(folder, tmp_path):
    assert load(folder, classes=["dog", "cat"]).classes == ("dog", "cat")
    with pytest.raises(DataError, match=r"does not list: dog\. Given: cat, bird\. Found: cat, dog"):
        load(folder, classes=["cat", "bird"])
    (folder / "bird").mkdir()
    data = load(folder)
    assert data.classes == ("bird", "cat", "dog")
    assert [(f.code, f.count) for f in data.findings] == [("class-not-in-train", 1)]


def test_folders_that_are_not_folders_of_classes(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no subfolders: expected one folder of images for each class"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(DataError, match="has no images"):
        load(tmp_path / "empty")
    for name in ("train", "test"):
        picture(tmp_path / "splits" / name / "cat" / "0.png", 0)
    with pytest.raises(DataError, match=r"look like splits, not classes"):
        load(tmp_path / "splits")
    with pytest.raises(UsageError, match="has no named columns"):
        load(folder, inputs=["a"])
