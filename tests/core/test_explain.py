"""Errors of the operating system and of libraries, as sentences that name the file and what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import zipfile
import zlib

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from potstill.core import fingerprint
from potstill.core.errors import DataError, PotstillError, UsageError
from potstill.core.explain import clear_errors, explained
from potstill.core.files import atomic_path, check_folder, disk_errors, read_json, write_json
from potstill.core.text import printable, printable_parts


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full: could not write .*value.json.*Finished results are safe; free some space"),
        (errno.EDQUOT, "disk is full"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "may not be read or written: read-only file system"),
        (errno.EIO, "disk or network drive under .*value.json does not work: input/output error"),
        (errno.ESTALE, "does not work: stale file handle"),
        (errno.ENOLCK, "lock files.*local disk"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "longer than the file system allows"),
        (errno.ELOOP, "symbolic link"),
        (errno.EBUSY, "value.json reports: device or resource busy"),
    ],
)
def test_every_trouble_of_a_disk_is_a_sentence(tmp_path, number, words):
    with pytest.raises(PotstillError, match=words), disk_errors(tmp_path / "value.json"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("text", ["81920 requested and 4096 written", "Io(Os { code: 28, kind: StorageFull })"])
def test_a_full_disk_is_seen_inside_a_library(text, tmp_path):
    error = SafetensorError(text) if "code" in text else OSError(text)
    with pytest.raises(PotstillError, match=r"disk is full: could not write .*value"), disk_errors(tmp_path / "value"):
        raise error
    wrapped = RuntimeError("could not write")
    wrapped.__cause__ = OSError(errno.ENOSPC, "no")
    assert "disk is full" in str(explained(wrapped))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PotstillError, match=r"notes\.txt is a file, and a folder is needed there"):
        write_json(tmp_path / "notes.txt" / "run" / "run.json", {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_is_tried_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(PotstillError, match=r"notes\.txt is a file, and a folder is needed there"):
            check_folder(place)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PotstillError, match="run may not be read or written: permission denied"):
        check_folder(tmp_path / "run")


def test_a_folder_that_was_removed_meanwhile_is_named(tmp_path):
    def write_and_lose() -> None:
        with atomic_path(tmp_path / "run" / "value.json") as temporary:
            temporary.unlink()
            temporary.parent.rmdir()
            temporary.write_text("x")

    with pytest.raises(PotstillError, match=r"The folder .*run is not there"):
        write_and_lose()


def damaged_npz(path):
    with path.open("wb") as file:
        np.savez(file, x=np.arange(50))
    with io.BytesIO(path.read_bytes()[:-60]) as file:
        np.load(file)


def damaged_parquet(path):
    parquet.read_table(io.BytesIO(b"PAR1" + bytes(50) + b"PAR1"))


def damaged_weights(path):
    path.write_bytes(b"\xff" * 40)
    load_file(path)


def cut_member(path):
    with zipfile.ZipFile(io.BytesIO()) as archive:
        archive.read("x")


def deep_json(path):
    json.loads("[" * 100_000)


READERS = {
    "npz": (damaged_npz, "damaged or cut short: BadZipFile"),
    "parquet": (damaged_parquet, "cannot be read or written: OSError"),
    "safetensors": (damaged_weights, "damaged or cut short: SafetensorError"),
    "zip": (cut_member, "damaged or cut short"),
    "deep JSON": (deep_json, "nested too deeply"),
    "NUL in a path": (lambda path: (path / "a\0b").stat(), "NUL"),
    "a number without end": (lambda path: int("9" * 20_000), "thousands of digits"),
    "half a character": (lambda path: "\ud800".encode(), "not valid Unicode"),
    "end of file": (lambda path: pickle.loads(b""), "damaged or cut short: EOFError"),
    "compression": (lambda path: zlib.decompress(b"xx"), "damaged or cut short: error"),
    "memory": (lambda path: np.empty((1 << 30, 1 << 20)), "not enough memory for .*value"),
    "torch's memory": (lambda path: torch.empty(1 << 50), "not enough memory for .*value"),
}


@pytest.mark.parametrize("name", READERS)
def test_what_libraries_say_of_a_file_names_the_file(tmp_path, name):
    read, words = READERS[name]
    with pytest.raises(PotstillError, match=words) as caught, disk_errors(tmp_path / "value"):
        read(tmp_path / "value")
    assert "NUL" in words or "value" in str(caught.value)


def test_mistakes_stay_mistakes_and_clear_errors_stay_as_they_are():
    assert explained(KeyError("No space left")) is None
    assert explained(TypeError("x")) is None
    mistake = AttributeError("while a missing file was handled")
    mistake.__context__ = FileNotFoundError(errno.ENOENT, "no", "x")
    assert explained(mistake) is None
    assert str(explained(EOFError())).startswith("A file is damaged")
    assert str(explained(PermissionError(errno.EACCES, "no", "runs"))).startswith("runs may not")

    @clear_errors
    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(UsageError, match="mine"):
        fails(UsageError("mine"))
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    with pytest.raises(PotstillError, match=r"There is no .*nowhere"):
        fails(FileNotFoundError(errno.ENOENT, "no", "nowhere"))


def test_a_damaged_json_file_is_named_and_still_a_value_error(tmp_path):
    (tmp_path / "run.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"run\.json is no JSON: Expecting value") as caught:
        read_json(tmp_path / "run.json")
    assert isinstance(caught.value, ValueError)


def test_text_of_others_is_written_out_where_terminals_would_obey_it():
    foreign = "\x1b]0;title\x07red\r\x9b2J\u202egnp.exe\ud800 naïve 中\n\tend"
    assert printable(foreign) == "\\x1b]0;title\\x07red\\r\\x9b2J\\u202egnp.exe\\ud800 naïve 中\n\tend"
    assert str(DataError(foreign)) == printable(foreign)
    assert str(DataError(foreign)).encode()


def test_names_that_are_no_whole_text_can_be_written_read_and_hashed(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "value.json", {"name": name})
    assert read_json(tmp_path / "value.json") == {"name": name}
    assert fingerprint.of_json({"name": name}) != fingerprint.of_json({"name": "caf"})
    assert printable_parts({"\x1b": [name, 1, None]}) == {"\\x1b": ["caf\\udce9", 1, None]}
