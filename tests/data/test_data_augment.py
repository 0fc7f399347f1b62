"""Augmentation: the right pixels, and the same pixels in any batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from potstill.core import random
from potstill.core.errors import UsageError
from potstill.data import Stream, augment, make_samples, mix
from potstill.data.augment import partner_rows, symmetric_beta
from potstill.data.samples import Rows


@dataclass(frozen=True)
class Settings:
    crop: int = 0
    flip: bool = False
    rotate: float = 0.0
    colour: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


EVERYTHING = Settings(crop=4, flip=True, rotate=15.0, colour=0.4, erase=0.5, mixup=0.3, cutmix=1.0)
CASES = {
    "crop": Settings(crop=4),
    "flip": Settings(flip=True),
    "rotate": Settings(rotate=20.0),
    "colour": Settings(colour=0.4),
    "erase": Settings(erase=0.7),
    "mixup": Settings(mixup=0.2),
    "cutmix": Settings(cutmix=1.0),
    "everything": EVERYTHING,
}


def pictures(count: int = 64, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def split(count: int = 64, shape: tuple[int, ...] = (3, 16, 16)):
    ids = np.random.default_rng(1).permutation(10 * count)[:count]
    return make_samples(ids, np.arange(count) % 5, Rows(pictures(count, shape)))


def views_of(samples, rows, settings, view=3):
    rows = np.asarray(rows)
    views = np.full(len(rows), view)
    return Stream(samples, settings, seed=7, num_classes=5).batch(rows, views)


def test_the_table_of_cases_is_complete():
    assert len(CASES) == 8


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 9, 13)])
@pytest.mark.parametrize("name", CASES)
def test_a_view_is_the_same_bit_for_bit_in_any_batch(name, shape, threads):
    settings, samples = CASES[name], split(shape=shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = views_of(samples, np.arange(64), settings)
        order = np.random.default_rng(2).permutation(64)
        shuffled = views_of(samples, order, settings)
        assert torch.equal(shuffled.inputs, whole.inputs[order])
        assert torch.equal(shuffled.targets, whole.targets[order])
        for size in (1, 7):
            parts = [views_of(samples, np.arange(low, min(64, low + size)), settings) for low in range(0, 64, size)]
            assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_seed_id_and_view_each_matter(name):
    settings, samples = CASES[name], split()
    rows = np.arange(64)
    base = views_of(samples, rows, settings).inputs
    assert base.dtype == torch.float32
    assert 0 <= float(base.min()) < float(base.max()) <= 1
    assert not torch.equal(base, views_of(samples, rows, settings, view=4).inputs)
    other_seed = Stream(samples, settings, seed=8, num_classes=5).batch(rows, np.full(64, 3))
    assert not torch.equal(base, other_seed.inputs)
    other_ids = make_samples(samples.ids + 1, samples.targets, samples.fetch)
    assert not torch.equal(base, views_of(other_ids, rows, settings).inputs)


def test_crop_is_a_window_of_the_padded_image_at_every_place():
    images = pictures(400, (2, 5, 6))
    out = augment(images, np.arange(400), np.zeros(400), settings=Settings(crop=2), seed=0)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    places = set()
    for image, windows in zip(out.numpy(), padded, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(windows[:, y : y + 5, x : x + 6].astype(np.float32) / np.float32(255), image)
        ]
        assert found
        places.add(found[0])
    assert len(places) == 25


def test_flip_mirrors_half_of_the_images():
    images = pictures(1000, (1, 2, 3))
    out = augment(images, np.arange(1000), np.zeros(1000), settings=Settings(flip=True), seed=0).numpy()
    expected = images.numpy().astype(np.float32) / np.float32(255)
    mirrored = np.array([np.array_equal(a, b[..., ::-1]) for a, b in zip(out, expected, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(out, expected, strict=True)])
    assert (mirrored | same).all()
    assert 430 < mirrored.sum() < 570


def test_rotation_agrees_with_scipy():
    images = pictures(6, (1, 9, 13))
    ids, views = np.arange(6), np.full(6, 2)
    out = augment(images, ids, views, settings=Settings(rotate=40.0), seed=5).numpy()
    degrees = (2 * random.uniform(5, 104, ids, views) - 1) * 40
    assert np.ptp(degrees) > 20
    for image, degree, found in zip(images.numpy() / 255.0, degrees, out, strict=True):
        c, s = math.cos(math.radians(degree)), math.sin(math.radians(degree))
        # Output pixel (y, x) around the centre comes from (y cos + x sin, x cos - y sin).
        matrix = np.array([[c, s], [-s, c]])
        centre = np.array([4.0, 6.0])
        expected = ndimage.affine_transform(
            image[0], matrix, centre - matrix @ centre, order=1, mode="grid-constant", cval=0.0
        )
        np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_colour_agrees_with_a_float64_computation():
    images = pictures(5)
    ids, views = np.arange(5), np.zeros(5, dtype=np.int64)
    out = augment(images, ids, views, settings=Settings(colour=0.5), seed=3).numpy()
    brightness, contrast, saturation = (1 + (2 * random.uniform(3, s, ids, views) - 1) * 0.5 for s in (105, 106, 107))
    luma = np.array([0.299, 0.587, 0.114])
    for row in range(5):
        x = np.clip(images[row].numpy() / 255.0 * brightness[row], 0, 1)
        mean = np.einsum("c,chw->hw", luma, x).mean()
        x = np.clip(mean + contrast[row] * (x - mean), 0, 1)
        grey = np.einsum("c,chw->hw", luma, x)
        np.testing.assert_allclose(out[row], np.clip(grey + saturation[row] * (x - grey), 0, 1), atol=3e-5)


def test_erase_fills_one_rectangle_of_the_stated_size():
    images = torch.zeros(300, 1, 40, 40, dtype=torch.uint8)
    out = augment(images, np.arange(300), np.zeros(300), settings=Settings(erase=0.5), seed=0).numpy()[:, 0]
    erased = [np.argwhere(image == 0.5) for image in out if image.any()]
    assert 120 < len(erased) < 180
    for places in erased:
        height, width = np.ptp(places, axis=0) + 1
        assert len(places) == height * width
        assert 0.01 < height * width / 1600 < 0.36
        assert 0.2 < height / width < 4.5


def test_floats_are_not_changed_in_place():
    images = torch.rand(4, 3, 8, 8)
    kept = images.clone()
    out = augment(images, np.arange(4), np.zeros(4), settings=Settings(erase=1.0), seed=0)
    assert torch.equal(images, kept)
    assert not torch.equal(out, kept)


def test_vectors_cannot_be_cropped_but_can_be_mixed():
    vectors = torch.rand(4, 6)
    with pytest.raises(UsageError, match=r"need images of shape \(C, H, W\), but a sample has shape \(6,\)"):
        augment(vectors, np.arange(4), np.zeros(4), settings=Settings(flip=True), seed=0)
    with pytest.raises(UsageError, match="need images"):
        augment(vectors, np.arange(4), np.zeros(4), settings=Settings(cutmix=1.0), seed=0)
    assert torch.equal(augment(vectors, np.arange(4), np.zeros(4), settings=Settings(mixup=1.0), seed=0), vectors)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0, 4.0])
def test_mixing_shares_follow_the_beta_distribution(strength):
    draws = np.random.default_rng(0).random((4000, 2))
    shares = [symmetric_beta(float(a), float(b), strength) for a, b in draws]
    assert stats.kstest(shares, stats.beta(strength, strength).cdf).pvalue > 0.01
    assert 0 <= min(shares) <= max(shares) <= 1


def test_extreme_draws_of_shares_are_finite():
    assert symmetric_beta(1 - 2**-53, 0.0, 1e-3) == 1.0
    assert symmetric_beta(0.0, 0.3, 0.2) == 0.5
    assert symmetric_beta(1 - 2**-53, 0.5, 1e-3) == 0.0


def test_mixup_by_hand():
    samples, rows = split(), np.arange(64)
    settings = Settings(mixup=1.0, flip=True)
    batch = views_of(samples, rows, settings)
    views = np.full(64, 3)
    partners = partner_rows(samples.ids, views, 64, seed=7)
    assert len(set(partners)) > 20
    assert partners.min() >= 0
    assert partners.max() < 64
    # The partner comes with its own flip: that of its own id and the same view.
    plain = augment(samples.fetch(rows), samples.ids, views, settings=Settings(flip=True), seed=7).double().numpy()
    own, other = batch.targets.double().numpy(), partners
    for row in range(64):
        label, partner_label = samples.targets[row], samples.targets[other[row]]
        expected = plain[row] * 1.0
        if label != partner_label:
            share = own[row, label]
            assert own[row, partner_label] == pytest.approx(1 - share, abs=1e-6)
            expected = share * plain[row] + (1 - share) * plain[other[row]]
            np.testing.assert_allclose(batch.inputs[row].numpy(), expected, atol=2e-6)
        assert own[row].sum() == pytest.approx(1, abs=1e-6)


def test_cutmix_targets_say_how_many_pixels_are_whose():
    pixels, partners = torch.zeros(200, 1, 20, 20), torch.ones(200, 1, 20, 20)
    targets, other = torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.int64)
    mixed, soft = mix(
        pixels,
        targets,
        partners,
        other,
        np.arange(200),
        np.zeros(200),
        settings=Settings(cutmix=1.0),
        seed=0,
        num_classes=3,
    )
    np.testing.assert_allclose(soft[:, 1], mixed.mean(dim=(1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(soft.sum(dim=1), 1, atol=1e-6)
    assert (soft[:, 2] == 0).all()
    assert 0.2 < float(soft[:, 1].mean()) < 0.6
    assert set(mixed.unique().tolist()) == {0.0, 1.0}


def test_regression_targets_are_mixed_as_numbers():
    values, other = torch.zeros(8), torch.ones(8)
    mixed, targets = mix(
        torch.zeros(8, 2),
        values,
        torch.ones(8, 2),
        other,
        np.arange(8),
        np.zeros(8),
        settings=Settings(mixup=1.0),
        seed=0,
        num_classes=0,
    )
    assert torch.equal(mixed[:, 0], targets)
    with pytest.raises(UsageError, match="pass num_classes"):
        mix(
            torch.zeros(8, 2),
            values.long(),
            torch.ones(8, 2),
            other.long(),
            np.arange(8),
            np.zeros(8),
            settings=Settings(mixup=1.0),
            seed=0,
            num_classes=0,
        )


def test_switching_one_change_on_leaves_the_others_as_they_are():
    images, ids, views = pictures(32), np.arange(32), np.zeros(32)
    flipped = augment(images, ids, views, settings=Settings(flip=True), seed=0)
    both = augment(images, ids, views, settings=Settings(flip=True, erase=1.0), seed=0)
    untouched = both != 0.5
    assert 0.5 < float(untouched.float().mean()) < 0.99
    assert torch.equal(both[untouched], flipped[untouched])
