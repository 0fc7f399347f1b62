"""Recorded answers as a teacher: every container, ids, views, class columns."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.data.samples import id_of_text
from potstill.teachers.files import open_file
from potstill.teachers.foreign import ArrayModel, Reading, Wanted

WANTED = Wanted("classification", (4,), ("cat", "dog"), 2)
IDS = np.array([30, 10, 20, 40])
P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.3, 0.7]], np.float32)


def write(path, columns):
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(values) for name, values in columns.items()})
    elif path.suffix == ".jsonl":
        names = list(columns)
        rows = zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True)
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        table = pa.table({name: np.asarray(values).tolist() for name, values in columns.items()})
        (parquet.write_table if path.suffix == ".parquet" else csv.write_csv)(table, path)
    return path


def ask(found, ids, views=None):
    return found.lookup(np.asarray(ids), np.zeros(len(ids), int) if views is None else np.asarray(views))


@pytest.mark.parametrize("suffix", ["parquet", "npz", "jsonl"])
def test_a_list_for_each_sample(tmp_path, suffix):
    found = open_file(write(tmp_path / f"a.{suffix}", {"id": IDS, "probabilities": P}), WANTED)
    np.testing.assert_allclose(ask(found, [20, 30, 20]), P[[2, 0, 2]])
    assert found.answers == "probabilities"
    assert "called 'probabilities'" in found.says


@pytest.mark.parametrize("suffix", ["parquet", "npz", "jsonl", "csv"])
def test_a_column_for_each_class(tmp_path, suffix):
    columns = {"id": IDS, "dog": P[:, 1], "cat": P[:, 0], "note": IDS}
    found = open_file(write(tmp_path / f"a.{suffix}", columns), WANTED)
    assert found.classes == ("dog", "cat")
    assert found.answers is None
    np.testing.assert_allclose(ask(found, [10]), [[0.8, 0.2]])


@pytest.mark.parametrize("suffix", ["parquet", "npz", "jsonl", "csv"])
def test_hard_labels_by_name(tmp_path, suffix):
    found = open_file(write(tmp_path / f"a.{suffix}", {"id": IDS, "label": ["dog", "cat", "cat", "dog"]}), WANTED)
    assert found.answers == "labels"
    model = ArrayModel(found, Reading("labels", 2, WANTED.classes))
    batch = Batch(torch.tensor([10, 40]), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4))
    assert model.facts.by_id
    assert model.facts.measurable(IDS)
    assert not model.facts.measurable(IDS + 1)
    logits = model.teaching()(batch)["logits"]
    np.testing.assert_allclose(logits.exp().numpy(), [[1 - 5e-5, 5e-5], [5e-5, 1 - 5e-5]], rtol=1e-4)


def test_ids_that_are_texts_are_those_of_the_data(tmp_path):
    path = write(tmp_path / "a.parquet", {"file": ["a.png", "b.png"], "logits": P[:2]})
    with pytest.raises(TeacherError, match=r"no column of ids, only file, logits. Name it: 'args: \{id: ...\}'"):
        open_file(path, WANTED)
    for found in (open_file(path, WANTED, args={"id": "file"}), open_file(path, WANTED, id_column="file")):
        np.testing.assert_allclose(ask(found, [id_of_text("b.png")]), P[1:2])


def test_the_same_id_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", {"id": np.array([1, 2, 1, 2]), "logits": P})
    with pytest.raises(TeacherError, match=r"more than one answer for 2 samples, the first is id 1"):
        open_file(path, WANTED)
    path = write(tmp_path / "b.npz", {"id": np.array([1, 2, 1, 2]), "view": np.array([0, 0, 3, 3]), "logits": P})
    found = open_file(path, WANTED)
    assert found.has_views
    np.testing.assert_allclose(ask(found, [2, 1], [3, 0]), P[[3, 0]])
    assert found.covers(np.array([1, 1, 1, 3]), np.array([0, 3, 1, 0])).tolist() == [True, True, False, False]


def test_absent_samples_are_named(tmp_path):
    found = open_file(write(tmp_path / "a.npz", {"id": IDS, "logits": P}), WANTED)
    assert found.covers(np.array([10, 11]), np.zeros(2, int)).tolist() == [True, False]
    with pytest.raises(TeacherError, match=r"has no answer for 2 of 3 samples, the first is id 11, view 0"):
        ask(found, [10, 11, 50])


def test_columns_that_could_be_anything_have_to_be_named(tmp_path):
    path = write(tmp_path / "a.csv", {"id": IDS, "x": P[:, 0], "y": P[:, 1]})
    with pytest.raises(TeacherError, match=r"has the columns x, y: which are the answers"):
        open_file(path, WANTED)
    found = open_file(path, WANTED, args={"columns": ["y"]})
    np.testing.assert_allclose(ask(found, [10]), [0.8])
    with pytest.raises(UsageError, match=r"has no 'z'"):
        open_file(path, WANTED, args={"columns": ["z"]})


def test_lists_of_different_lengths_and_empty_answers_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "logits": [1.0, 2.0]}\n{"id": 2, "logits": [1.0]}\n')
    with pytest.raises(TeacherError, match=r"lists of different lengths"):
        open_file(path, WANTED)
    path.write_text("nonsense")
    with pytest.raises(PotstillError, match=r"cannot be read"):
        open_file(path, WANTED)


def test_regression_values(tmp_path):
    path = write(tmp_path / "a.parquet", {"id": IDS, "value": P[:, 0]})
    found = open_file(path, Wanted("regression", (4,), (), 1))
    assert found.answers == "values"
    np.testing.assert_allclose(ask(found, [30]), P[:1, 0])
