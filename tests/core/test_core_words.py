"""Counter-based randomness, fingerprints, files, optional packages, progress."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from potstill.core import files, fingerprint, progress
from potstill.core.errors import PotstillError, UsageError, did_you_mean
from potstill.core.optional import check_installed, require
from potstill.core.random import key, permutation, seed_of, uniform
from potstill.core.signals import Batch


def mixed(x: int) -> int:
    """The output function of splitmix64 in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_keys_are_those_of_python_integers() -> None:
    golden = 0x9E3779B97F4A7C15
    # splitmix64 seeded with 0 starts with this published number.
    assert mixed(golden) == 0xE220A8397B1DCDAF
    for parts in [(0,), (1, 2), (7, -3, 2**62)]:
        state = 0
        for part in parts:
            state = mixed(((state + golden) ^ mixed((part % 2**64 + golden) % 2**64)) % 2**64)
        assert int(key(*parts)) == state


def test_randomness_depends_on_the_key_alone() -> None:
    ids = np.arange(1000)
    together = uniform(3, ids, 5)
    shuffled = permutation(1000, 9)
    np.testing.assert_array_equal(uniform(3, ids[shuffled], 5), together[shuffled])
    assert float(uniform(3, 17, 5)) == together[17]
    assert not np.array_equal(uniform(4, ids, 5), together)
    assert not np.array_equal(uniform(3, ids, 6), together)


def test_numbers_are_uniform_and_neighbours_independent() -> None:
    values = uniform(0, np.arange(20000), 0)
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    for other in (uniform(0, np.arange(20000), 1), uniform(1, np.arange(20000), 0), np.roll(values, 1)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.03


def test_permutations() -> None:
    assert sorted(permutation(501, 3, 4)) == list(range(501))
    assert not np.array_equal(permutation(501, 3, 4), permutation(501, 3, 5))
    assert 0 <= seed_of(1, 2) < 2**63
    assert len({seed_of(1, number) for number in range(100)}) == 100


def test_fingerprints_see_every_change() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    first = fingerprint.of_state(state)
    assert fingerprint.of_state(dict(reversed(list(state.items())))) == first
    changed = [
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.zeros(2, 3, dtype=torch.float64)},
        {**state, "a": torch.tensor([[0.0, 0, 0], [0, 0, 1e-40]])},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    assert len({first, *map(fingerprint.of_state, changed)}) == 6
    assert fingerprint.of_json({"x": 1, "y": [2]}) == fingerprint.of_json({"y": [2], "x": 1})
    assert fingerprint.of_array(np.zeros(4, np.float32)) != fingerprint.of_array(np.zeros(4, np.int32))


def test_file_fingerprint_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"potstill")
    assert fingerprint.of_file(tmp_path / "x") == hashlib.sha256(b"potstill").hexdigest()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "value.json"
    files.write_json(path, {"a": 1})

    def write_half() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text('{"a": ')
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert files.read_json(path) == {"a": 1}
    assert [found.name for found in path.parent.iterdir()] == ["value.json"]
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "another folder")])
def test_disk_trouble_is_told_in_words(code: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=words), files.disk_errors(tmp_path):
        raise OSError(code, "no")
    with pytest.raises(KeyError, match="other"), files.disk_errors(tmp_path):
        raise KeyError("other")


def test_a_missing_package_is_named_with_its_extra() -> None:
    line = r'needs the package "no_such_thing".*pip install "potstill\[export\]"'
    with pytest.raises(PotstillError, match=line):
        require("no_such_thing.part", feature="exporting", extra="export")
    with pytest.raises(PotstillError, match=line):
        check_installed(["json", "no_such_thing"], feature="exporting", extra="export")
    assert require("json", feature="nothing", extra="none") is json


def test_suggestions() -> None:
    assert did_you_mean("epoch", ["epochs", "seed"]) == " Did you mean 'epochs'?"
    assert did_you_mean("zzz", ["epochs", "seed"]) == " Known: epochs, seed."
    assert did_you_mean("zzz", []) == ""


def test_progress_says_nothing_when_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.progress("working", 3) as advance:
        advance()
        advance(2, note="almost")
    assert capfd.readouterr() == ("", "")


def test_parts_of_a_batch() -> None:
    batch = Batch(torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.rand(4, 2), torch.tensor([3, 2, 1, 0]))
    part = batch.narrow(1, 3)
    assert len(part) == 2
    assert part.targets is not None
    assert part.targets.tolist() == [2, 1]
    torch.testing.assert_close(part.to("cpu").tensor, batch.tensor[1:3])
    assert part.where is None
    assert part.labelled is None


def test_parts_of_a_batch_with_named_inputs_and_masks() -> None:
    columns = {"ids": torch.arange(12).reshape(4, 3), "age": torch.arange(4.0)}
    known = torch.tensor([True, False, True, True])
    batch = Batch(torch.arange(4), torch.zeros(4, dtype=torch.int64), columns, torch.arange(4), known, ~known)
    part = batch.narrow(1, 3).to("cpu")
    assert isinstance(part.inputs, dict)
    assert {name: column.tolist() for name, column in part.inputs.items()} == {
        "ids": [[3, 4, 5], [6, 7, 8]],
        "age": [1.0, 2.0],
    }
    assert part.where is not None
    assert part.labelled is not None
    assert (part.where.tolist(), part.labelled.tolist()) == ([False, True], [True, False])
    with pytest.raises(UsageError, match="has the inputs ids, age, and this model reads a single tensor"):
        _ = part.tensor
