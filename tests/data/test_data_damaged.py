"""Files that were cut, changed or lie about their size: one error each that names the file, before memory is taken."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from potstill.core.errors import DataError
from potstill.data import load
from potstill.data.npz import read_npz

LABELS = np.arange(60) % 3


def npz(path, **arrays):
    np.savez(path, label=LABELS, **arrays)
    return path


def lying(path, shape, content=b"", descr="'<f4'"):
    """An archive whose array declares another shape than it has bytes for."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + content)
    return path


def test_every_cut_and_every_changed_byte_of_an_npz_is_found(tmp_path):
    whole = npz(tmp_path / "whole.npz", x=np.arange(120.0).reshape(60, 2)).read_bytes()
    path = tmp_path / "t.npz"
    outcomes, refused = [], []
    for place in range(0, len(whole), 37):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]):
            path.write_bytes(content)
            try:
                outcomes.append(read_npz(path))
            except DataError as error:
                refused.append(str(error))
    assert all("t.npz cannot be read as npz" in text for text in refused)
    kept = read_npz(tmp_path / "whole.npz")
    for arrays in outcomes:  # bytes that mean nothing, such as dates, may change
        assert all(np.array_equal(arrays[name], kept[name]) for name in arrays)
    assert len(outcomes) < 20


@pytest.mark.parametrize(
    ("shape", "content", "text"),
    [
        (
            "(100, 1000000000000)",
            b"",
            r"declares the shape \(100, 1000000000000\) of float32, 400,000,000,000,000 bytes",
        ),
        ("(60, 2)", bytes(479), "but holds 479"),
        ("(60, 2)", bytes(481), "but holds 481"),
        ("(-60, -2)", bytes(480), r"declares the shape \(-60, -2\)"),
    ],
)
def test_declared_shapes_are_compared_with_what_is_there(tmp_path, shape, content, text):
    with pytest.raises(DataError, match=rf"t\.npz cannot be read as npz: 'x' .*{text}"):
        load(lying(tmp_path / "t.npz", shape, content))


def test_archives_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    import psutil

    path = npz(tmp_path / "t.npz", x=np.zeros((60, 200)))
    free = psutil.virtual_memory()._replace(available=50_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(DataError, match=r"t\.npz .*unpacks to 0\.0 GB, and 0\.0 GB of memory are free"):
        load(path)


def test_shapes_and_orders_of_npz_arrays_are_kept(tmp_path):
    arrays = {
        "rows": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "single": np.float32(4),
        "texts": np.array(["a", "\u00e9"]),
        "big": np.arange(3, dtype=">i4"),
    }
    np.savez_compressed(tmp_path / "t.npz", **arrays)
    found = read_npz(tmp_path / "t.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], np.atleast_1d(array))


@pytest.mark.parametrize("change", ["footer", "page", "cut"])
def test_damaged_parquet_is_named(tmp_path, change):
    table = pyarrow.table({"x": np.random.default_rng(0).random(600), "label": np.arange(600) % 3})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", write_page_checksum=True, use_dictionary=False)
    whole = (tmp_path / "t.parquet").read_bytes()
    damaged = {
        "footer": whole[:-30] + b"\xff" * 20 + whole[-10:],
        "page": whole[:900] + bytes([whole[900] ^ 255]) + whole[901:],
        "cut": whole[: len(whole) // 2],
    }
    (tmp_path / "t.parquet").write_bytes(damaged[change])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as parquet: .*cut or damaged"):
        load(tmp_path / "t.parquet")


def test_broken_rows_are_named_by_their_line(tmp_path):
    lines = [f'{{"x": {row}, "label": {row % 2}}}' for row in range(40)]
    for broken, text in [
        ("{]", "line 8 is not JSON"),
        ("[1, 2]", "line 8 is list, expected an object"),
        ('{"x": 1, "label": "a"}', "changed from number to string in row 7"),
    ]:
        (tmp_path / "t.jsonl").write_text("\n".join([*lines[:7], broken, *lines[7:]]))
        with pytest.raises(DataError, match=rf"t\.jsonl cannot be read as jsonl: .*{text}"):
            load(tmp_path / "t.jsonl")
    rows = [f"{row},{row % 2}" for row in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *rows[:7], "1,2,3", *rows[7:]]))
    with pytest.raises(DataError, match=r"t\.csv cannot be read as csv: .*Row #9: Expected 2 columns, got 3"):
        load(tmp_path / "t.csv")
