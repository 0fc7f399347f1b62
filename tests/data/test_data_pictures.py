"""Pictures of every mode: levels survive, shapes stay visible, each file is there once; links, pipes and odd files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.core.errors import DataError, UsageError
from potstill.data import load
from potstill.data.images import Decoded

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def folder(root: Path, make, suffix="png", count=12, **options) -> Path:
    """Write a picture per row to the folders a and b."""
    for row in range(count):
        path = root / "ab"[row % 2] / f"{row}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make(row)
        (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(path, **options)
    return root


def pixels(data) -> dict[int, np.ndarray]:
    """All samples by the number in their file's name."""
    return {
        int(Path(name).stem): inputs
        for split in data.splits.values()
        for name, inputs in zip(split.names, split.fetch(np.arange(len(split))).numpy(), strict=True)
    }


def findings(data) -> dict[str, str]:
    return {finding.code: finding.message for finding in data.findings}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("kind", "top", "suffix"),
    [("u2", 65535, "png"), ("u2", 65535, "tif"), (">u2", 65535, "tif"), ("u2", 65535, "pgm"), ("f4", 1, "tif")],
)
def test_all_levels_survive(tmp_path, monkeypatch, kind, top, suffix, lazy):
    if lazy:
        monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    levels = [(RAMP * top * (1 - row / 100)).astype(kind) for row in range(12)]
    data = load(folder(tmp_path, lambda row: levels[row], suffix))
    assert data.shape == (1, 8, 8)
    assert isinstance(data.train.fetch.fetch, Decoded) is lazy
    for row, found in pixels(data).items():
        np.testing.assert_allclose(found[0], levels[row].astype(np.float64) / top, rtol=1e-6)
    assert "pixel-range" not in findings(data)
    assert "floats from 0 to 1" in findings(data)["image-modes"]
    small = pixels(load(tmp_path, image_size=4))
    for row, found in small.items():
        np.testing.assert_allclose(found.mean(), levels[row].mean() / top, rtol=0.02)


@pytest.mark.parametrize("lazy", [False, True])
def test_twelve_bits_in_sixteen_are_told(tmp_path, monkeypatch, lazy):
    if lazy:
        monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    data = load(folder(tmp_path, lambda row: (RAMP * (4095 - row)).astype(np.uint16)))
    assert "brightest pixel of images with 16 bits is 4095 of 65535" in findings(data)["pixel-range"]
    assert len(np.unique(pixels(data)[0])) == 64


def test_ranges_that_nobody_knows_are_refused_by_name(tmp_path):
    for name, levels, text in [
        ("int", (RAMP * 1e9).astype(np.int32), "32-bit whole numbers from 0 to 1e"),
        ("float", (RAMP * 255).astype(np.float32), "floats from 0 to 255, expected 0 to 1"),
        ("nan", np.where(RAMP < 1, RAMP, np.nan).astype(np.float32), "floats from nan to nan"),
    ]:
        root = folder(tmp_path / name, lambda row: RAMP.astype(np.float32), "tif")
        Image.fromarray(levels).save(root / "a" / "odd.tif")
        with pytest.raises(DataError, match=rf"a/odd\.tif: cannot be read \(its pixels are {text}"):
            load(root)


def test_depths_are_mixed_on_one_scale(tmp_path):
    def make(row):
        return (RAMP * 65535).astype(np.uint16) if row % 3 else (RAMP * 255).astype(np.uint8)

    found = pixels(load(folder(tmp_path, make)))
    np.testing.assert_allclose(found[0], found[1], atol=1 / 255)
    coloured = folder(tmp_path, lambda row: np.stack([RAMP * 255] * 3, -1).astype(np.uint8), "bmp")
    data = load(coloured)
    assert data.shape == (3, 8, 8)
    assert "8 I;16" in findings(data)["image-modes"] and "12 RGB" in findings(data)["image-modes"]  # noqa: PT018


def drawing(mode, ink=0):
    """Something drawn at another place in every row, on a transparent ground."""

    def make(row):
        alpha = np.zeros((8, 8), np.uint8)
        alpha[2:6, row % 8] = 255
        image = Image.new("LA", (8, 8), (ink, 0)) if mode == "LA" else Image.new("RGBA", (8, 8), (ink, ink, ink, 0))
        image.putalpha(Image.fromarray(alpha))
        return image.convert("P") if mode == "P" else image

    return make


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_drawings_on_a_transparent_ground_are_seen(tmp_path, mode):
    data = load(folder(tmp_path, drawing(mode), "png"))
    for row, found in pixels(data).items():
        assert found[:, 2:6, row % 8].max() == 0
        assert (found == 255).sum() == 60 * len(found)
    assert "transparent pixels (a/0.png, a/10.png, a/2.png)" in findings(data)["transparent-images"]
    assert data.shape[0] == (3 if mode == "RGBA" else 1)


def test_what_vanishes_on_its_background_is_refused_by_name(tmp_path):
    root = folder(tmp_path, drawing("RGBA", ink=255))
    with pytest.raises(
        DataError, match=r"First: a/0\.png cannot be read \(nothing is seen of it on white.*data\.background"
    ):
        load(root)
    found = pixels(load(root, background="#000000"))
    assert all(found[row][:, 2:6, row % 8].min() == 255 for row in found)
    Image.fromarray(np.dstack([np.eye(8) * 200] * 3 + [np.zeros((8, 8))]).astype(np.uint8)).save(root / "a" / "99.png")
    with pytest.raises(DataError, match=r"a/99\.png: .*nothing is seen of it on black"):
        load(root, background="black")
    with pytest.raises(UsageError, match=r"data\.background: 'bleck' is no colour"):
        load(root, background="bleck")
    for key, value in [("background", "black"), ("channels", 1)]:
        with pytest.raises(UsageError, match=rf"data\.{key} is for images of a folder or dataset"):
            load("digits", **{key: value})


def test_grey_images_stay_grey_unless_some_are_coloured(tmp_path):
    def make(row):
        image = Image.fromarray((RAMP * 255).astype(np.uint8))
        return image.convert("1") if row == 3 else image.convert("P") if row == 4 else image

    root = folder(tmp_path, make)
    data = load(root)
    assert data.shape == (1, 8, 8)
    np.testing.assert_array_equal(pixels(data)[0][0], (RAMP * 255).astype(np.uint8))
    assert "images are 10 L, 1 P, 1 1-bit; they become grey, 8 bits" in findings(data)["image-modes"]
    assert load(root, channels=3).shape == (3, 8, 8)
    Image.new("RGB", (8, 8), "red").save(root / "b" / "99.png")
    assert load(root).shape == (3, 8, 8)
    assert pixels(load(root, channels=1))[99].max() == 76  # Rec. 601: 0.299 of red
    assert load(root, channels=1).fingerprint != load(root, channels=3).fingerprint


def test_a_folder_read_when_asked_for_knows_its_form(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    root = folder(tmp_path, drawing("RGBA", ink=90))
    seen = {load(root, **form).fingerprint for form in ({}, {"background": "red"}, {"channels": 1}, {"image_size": 8})}
    assert len(seen) == 4


def test_the_first_of_several_pictures_is_used_and_that_is_told(tmp_path):
    root = folder(tmp_path, lambda row: (RAMP * 255).astype(np.uint8), "tif")
    first, second = (Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (50, 90))
    first.save(root / "a" / "98.tif", save_all=True, append_images=[second])
    data = load(root)
    assert (pixels(data)[98] == 50).all()
    assert "1 file holds several pictures (a/98.tif)" in findings(data)["first-frames"]


def test_each_picture_is_there_once_whatever_links_lead_to_it(tmp_path):
    root = folder(tmp_path / "set", lambda row: np.full((4, 4), row, np.uint8))
    outside = folder(tmp_path / "more", lambda row: np.full((4, 4), row + 50, np.uint8))
    (root / "a" / "up").symlink_to("..")
    (root / "b" / "top").symlink_to(tmp_path)
    (root / "self").symlink_to(root)
    (root / "c").symlink_to(root / "a")
    (root / "a" / "again.png").symlink_to("0.png")
    (root / "b" / "other.png").symlink_to("../a/0.png")
    (root / "b" / "extra").symlink_to(outside / "b")
    (root / "b" / "more").symlink_to(outside / "b")
    (outside / "b" / "round").symlink_to(outside)
    data = load(root)
    assert data.classes == ("a", "b")
    names = sorted(name for split in data.splits.values() for name in split.names)
    assert len(names) == 12 + 6 + 6
    assert "b/extra/1.png" in names
    assert "b/extra/round/a/0.png" in names
    assert "b/other.png" in findings(data)["links-across-classes"]
    assert "symbolic links lead to what is counted already" in findings(data)["repeated-links"]


def test_pipes_and_broken_links_are_refused_by_name_and_not_opened(tmp_path):
    root = folder(tmp_path / "set", lambda row: np.full((4, 4), row, np.uint8))
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "gone.png").symlink_to("nowhere.png")
    (root / "b" / "null.png").symlink_to("/dev/null")
    (root / "b" / "ring.png").symlink_to("ring.png")
    with pytest.raises(DataError, match=r"4 of 16.*a/pipe\.png: is a named pipe, no file; b/gone\.png: is a symbolic"):
        load(root)
    data = load(root, on_bad="skip")
    assert sum(map(len, data.splits.values())) == 12
    text = findings(data)["skipped-samples"]
    assert "b/null.png: is a device" in text and "b/ring.png: is a loop of symbolic links" in text  # noqa: PT018
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv is a named pipe, expected a csv file"):
        load(tmp_path / "t.csv")


def test_programs_and_bombs_in_the_clothes_of_pictures_are_refused(tmp_path, monkeypatch):
    root = folder(tmp_path, lambda row: np.full((4, 4), row, np.uint8))
    Image.new("RGB", (4, 4)).save(root / "a" / "page.png", format="PCX")  # what else Pillow opens, PostScript as well
    with pytest.raises(DataError, match=r"a/page\.png: cannot be read"):
        load(root)
    (root / "a" / "page.png").unlink()
    Image.new("L", (40, 40)).save(root / "b" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"b/bomb\.png: cannot be read \(DecompressionBombError"):
        load(root)
