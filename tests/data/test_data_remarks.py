"""Columns that say nothing, that name the row, or that give the target away are told; honest ones are not."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from potstill.data import load
from potstill.data.remarks import gives_away

N = 400
RANDOM = np.random.default_rng(0)
LABEL = (RANDOM.random(N) < 0.3).astype(int)


def codes(tmp_path, **columns):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({**columns, "honest": RANDOM.normal(LABEL), "label": LABEL}), path)
    found = load(path).findings
    return {finding.code: finding.message for finding in found}


@pytest.mark.parametrize(
    ("values", "code", "text"),
    [
        (np.full(N, 3.5), "constant-column", "'odd' has one value only in train, '3.5'"),
        (["same"] * N, "constant-column", "'odd' has one value only in train, 'same'"),
        (RANDOM.permutation(10**6)[:N], "id-like-column", r"'odd' has another whole number in nearly every row"),
        ([f"customer {row}" for row in range(N)], "id-like-column", "another text in nearly every row of train (280"),
        ([f"street {row % 150}" for row in range(N)], "many-categories", "different texts in 280 rows of train"),
    ],
)
def test_columns_that_teach_nothing_are_told(tmp_path, values, code, text):
    found = codes(tmp_path, odd=values)
    assert text in found[code]
    assert "data.exclude: [odd]" in found[code]
    assert set(found) <= {code, "unseen-category"}


@pytest.mark.parametrize(
    "values",
    [
        np.where(LABEL == 1, 17, 4),
        np.array(["no", "yes"])[LABEL],
        LABEL * 2.0 + RANDOM.random(N),
        np.where(LABEL == 1, RANDOM.choice([-5.0, 5.0], N), 0) + RANDOM.normal(size=N) / 100,
        LABEL + RANDOM.normal(size=N) / 4.5,  # 97 % right, but in nearly perfect order
        [f"{'closed' if label else 'open'} {row % 7}" for row, label in enumerate(LABEL)],
    ],
)
def test_columns_that_give_the_class_away_are_told(tmp_path, values):
    text = codes(tmp_path, odd=values)["target-leak"]
    assert text.startswith("column 'odd' alone gives the target away: it")
    assert "data.exclude: [odd]" in text


def test_honest_columns_are_not_remarked_on(tmp_path):
    honest = {
        "age": RANDOM.integers(18, 90, N),
        "wide": RANDOM.normal(LABEL * 2.5, 1),
        "part": RANDOM.choice(list("abcdef"), N),
        "flag": RANDOM.random(N) < 0.4,
        "mostly": np.where(RANDOM.random(N) < 0.9, LABEL, 1 - LABEL),
    }
    assert codes(tmp_path, **honest) == {}
    many = np.arange(N) % 100
    assert gives_away(RANDOM.normal(many), many) == ""
    rare = (np.arange(N) == 5).astype(int)
    assert gives_away(RANDOM.normal(size=N), rare) == ""  # always the frequent class is right in 99.75 %


def test_values_given_away_are_told():
    target = RANDOM.normal(size=N)
    target_only = np.array([f"{value:.1f}" for value in target], dtype=object)
    for values in (target * -3 + 8, np.exp(target), np.round(target, 3), target + RANDOM.normal(size=N) / 200):
        assert gives_away(values, target)
    assert gives_away(target + RANDOM.normal(size=N), target) == ""
    assert gives_away(RANDOM.normal(size=N), target) == ""
    assert gives_away(target_only, np.round(target, 1))
    assert gives_away(np.arange(N), np.stack([RANDOM.normal(size=N), np.arange(N) * 2.0], axis=1))


def test_numbers_of_vectors_that_merge_are_told(tmp_path):
    seconds = np.stack([RANDOM.normal(size=60), 1_700_000_000 + 60 * np.arange(60), np.arange(60) % 7], axis=1)
    target = np.arange(60) % 2
    np.savez(tmp_path / "t.npz", x=seconds, label=target)
    pyarrow.parquet.write_table(
        pyarrow.table({"x": seconds.tolist(), "z": np.arange(60) % 9, "label": target}), tmp_path / "t.parquet"
    )
    for source in ((seconds, target), tmp_path / "t.npz", tmp_path / "t.parquet"):
        text = next(found.message for found in load(source).findings if found.code == "merged-numbers")
        assert "places 1 (counted from 0)" in text
    for inputs in (seconds.astype(np.float32), seconds - seconds[0], RANDOM.normal(1e3, 1, (60, 3))):
        assert "merged-numbers" not in [found.code for found in load((inputs, target)).findings]


def test_numbers_without_names_are_looked_at_too():
    inputs = RANDOM.normal(size=(N, 5))
    inputs[:, 3] += 9 * LABEL
    found = [finding for finding in load((inputs, LABEL)).findings if finding.code == "target-leak"]
    assert [finding.message[:11] for finding in found] == ["column '3' "]
