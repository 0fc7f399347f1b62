"""Columns of tables: what 32-bit floats cannot hold, columns that are left out, gaps in whole numbers."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from potstill.core.errors import DataError, UsageError
from potstill.data import Column, load
from potstill.data.columns import as_they_were, number_column
from potstill.teachers.files.columns import on_table
from potstill.teachers.foreign import Opened

START = 1_700_000_000


def inputs(data):
    """All samples in the order of the file."""
    found = {}
    for split in data.splits.values():
        found |= dict(zip(split.ids.tolist(), split.fetch(np.arange(len(split))).numpy(), strict=True))
    return np.stack([found[row] for row in sorted(found)])


def codes(data):
    return [finding.code for finding in data.findings]


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_epoch_seconds_keep_their_differences(tmp_path):
    seconds = [START + 60 * row for row in range(120)]
    lines = [f"{second},{row % 9},{'ab'[row % 2]}" for row, second in enumerate(seconds)]
    (tmp_path / "t.csv").write_text("\n".join(["logged_at,room,label", *lines]))
    data = load("t.csv", base=tmp_path)
    logged, room = data.columns
    assert (logged.type, room) == ("whole number", Column("room", None, 1, "whole number"))
    np.testing.assert_array_equal(inputs(data)[:, 0].astype(np.float64) + logged.offset, seconds)
    np.testing.assert_array_equal(as_they_were(data.columns, inputs(data))[:, 0], seconds)
    text = next(finding.message for finding in data.findings if finding.code == "moved-column")
    assert "'logged_at'" in text and f"minus {logged.offset:.0f}" in text  # noqa: PT018
    assert Column.from_json(logged.to_json()) == logged


def test_models_of_other_frameworks_are_asked_about_the_table_itself():
    columns = (Column("city", ("Rom", "Ulm"), 2, "text"), Column("at", None, 1, "whole number", START, 1.0))
    opened = on_table(Opened("rows", "digest", None, ask=lambda rows: rows), columns)
    rows = np.array([[0, 1, 7], [1, 0, -3]], dtype=np.float32)
    np.testing.assert_array_equal(opened.ask(rows), [[0, 1, START + 7], [1, 0, START - 3]])
    asked = Opened("rows", "digest", None, ask=lambda rows: rows)
    assert on_table(asked, columns[:1]) is asked
    with pytest.raises(DataError, match=r"samples have shape \(2,\), expected the 3 numbers"):
        opened.ask(rows[:, :2])


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
def test_numbers_that_stay_as_they_are(kind):
    """Small whole numbers are exact; of fractions nobody misses the ninth digit."""
    random = np.random.default_rng(0)
    assert number_column("x", np.arange(500).astype(kind)).as_it_was
    assert number_column("x", random.normal(3, 2, 100_000)).as_it_was
    assert number_column("x", (random.normal(size=(9, 2)) * 1e9).astype(kind)).as_it_was


def test_long_ids_and_tiny_fractions_are_told_apart():
    ids = np.arange(40) + 2**53 + 1
    column = number_column("x", ids)
    moved = ids - int(column.offset)
    assert abs(moved).max() <= 20
    tiny = number_column("x", np.arange(20) * 1e-50)
    np.testing.assert_allclose(tiny.offset + tiny.scale * np.array([-1, 1]), [0, 19e-50])


def test_numbers_that_merge_all_the_same_are_counted(tmp_path):
    ids = np.array([0, 2**62, *(2**60 + np.arange(38))])
    data = load(parquet(tmp_path / "t.parquet", key=ids, z=np.arange(40) % 7, label=np.arange(40) % 2))
    found = [finding for finding in data.findings if finding.code == "merged-numbers"]
    assert "train: column 'key' holds 28 different numbers" in found[0].message
    assert "data.exclude: [key]" in found[0].message


def test_columns_can_be_left_out(tmp_path):
    path = parquet(tmp_path / "t.parquet", a=np.arange(40.0), b=np.arange(40.0), label=np.arange(40) % 2)
    assert [column.name for column in load(path, exclude=["a"]).columns] == ["b"]
    for change, error, text in [
        ({"exclude": ["aa"]}, DataError, r"no column 'aa' \(data.exclude\). Did you mean 'a'"),
        ({"exclude": ["label"]}, DataError, "data.exclude names 'label', which is also the target"),
        ({"exclude": ["a"], "inputs": ["b"]}, UsageError, "two ways to choose columns"),
        ({"exclude": ["a", "b"]}, DataError, "names no column"),
    ]:
        with pytest.raises(error, match=text):
            load(path, **change)
    with pytest.raises(UsageError, match=r"data\.exclude names columns, but 'digits' has no named columns"):
        load("digits", exclude=["a"])


def test_gaps_in_whole_numbers_are_missing_and_the_rest_is_exact(tmp_path):
    big = 2**60 + np.arange(40)
    key = pyarrow.array([None if row == 3 else int(value) for row, value in enumerate(big)])
    path = parquet(tmp_path / "t.parquet", key=key, z=np.arange(40), label=np.arange(40) % 2)
    with pytest.raises(DataError, match=r"'key' is missing or not finite \(rows: 1, first: row 3\)"):
        load(path)
    data = load(path, on_bad="skip")
    np.testing.assert_array_equal(inputs(data)[:, 0] + (data.columns[0].offset - 2.0**60), np.delete(np.arange(40), 3))


def test_decimals_that_floats_cannot_hold_are_refused(tmp_path):
    from decimal import Decimal

    near = [Decimal("0.12345678901234567890") + row * Decimal("1e-19") for row in range(40)]
    path = parquet(tmp_path / "t.parquet", price=pyarrow.array(near), z=np.arange(40), label=np.arange(40) % 2)
    with pytest.raises(DataError, match="column 'price' holds Decimal values"):
        load(path)
