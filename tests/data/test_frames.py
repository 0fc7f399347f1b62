"""Named columns of a deployed student: the numbers of training, whatever the order, and errors that name the column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from torch import nn

from potstill.core.errors import DataError, PotstillWarning, UsageError
from potstill.data import load
from potstill.data.columns import Column
from potstill.data.frames import encoded
from potstill.export import OnnxModel, Student, export_onnx, load_student, quantize, save_student
from potstill.models import Preprocessor

FRAME = pd.DataFrame(
    {
        "height": [1.5, 1.75, 2.0, 1.25] * 10,
        "shade": ["teal", "ochre", "crimson", "ochre"] * 10,
        "seen": np.arange(40) + 1_700_000_000,  # seconds: 32-bit floats hold every 128th
        "member": [True, False, False, True] * 10,
        "outcome": ["buys", "leaves"] * 20,
    }
)


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Column, ...], np.ndarray, np.ndarray]:
    """How training read the table, and the numbers and row numbers of its train split."""
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pandas(FRAME), path)
    data = load(path, target="outcome")
    inputs = data.train.fetch(np.arange(len(data.train))).numpy()
    return data.columns, inputs, data.train.ids


def test_any_kind_of_table_in_any_order_becomes_the_numbers_of_training(columns: Any) -> None:
    known, inputs, rows = columns
    expected = encoded(FRAME, known)
    np.testing.assert_array_equal(expected[rows], inputs)
    turned = FRAME[list(FRAME.columns[::-1])].assign(more="ignored")
    for same in (turned, pa.Table.from_pandas(FRAME), dict(FRAME.items()), FRAME.convert_dtypes()):
        np.testing.assert_array_equal(encoded(same, known), expected)
    single = {name: FRAME[name][2] for name in FRAME.columns}
    np.testing.assert_array_equal(encoded(single, known), expected[2:3])
    by_hand = [2.0, 1.0, 0.0, 0.0]  # a height, and three shades in the order of their names
    assert expected[2, :4].tolist() == by_hand
    assert len(np.unique(expected[:, 4])) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": None}, r"no column 'height', which the student was trained on\. Did you mean 'heights'"),
        ({"height": ["1.5", "2"]}, r"column 'height' holds '1.5', expected numbers as in training"),
        ({"height": [1.5, float("nan")]}, r"column 'height' has no value in row 1"),
        ({"height": [1.5, np.inf]}, r"column 'height' holds inf in row 1, which is not finite"),
        ({"height": [1.5, 1e39]}, r"column 'height' holds 1e\+39 in row 1"),
        ({"height": [True, False]}, r"column 'height' holds True, expected numbers"),
        ({"height": np.array(["2020-01-01"] * 2, "datetime64[D]")}, r"column 'height' holds .*expected numbers"),
        ({"height": np.ma.array([1.5, 2.0], mask=[0, 1])}, r"column 'height' has no value in row 1; expected numbers"),
        ({"height": [1.5, np.ma.masked]}, r"column 'height' has no value in row 1; expected numbers"),
        ({"height": pa.array([1.5, None])}, r"column 'height' has no value in row 1; expected numbers"),
        ({"height": pd.Series([1, None], dtype="Int64")}, r"column 'height' has no value in row 1; expected numbers"),
        ({"shade": np.ma.array(["teal", "ochre"], mask=[1, 0])}, r"column 'shade' has no value in row 0; expected tex"),
        ({"shade": pa.array(["teal", None])}, r"column 'shade' has no value in row 1"),
        ({"height": np.ones((2, 2))}, r"column 'height' is there twice, or holds several numbers a row"),
        ({"shade": [1, 2]}, r"column 'shade' holds 1, expected texts as in training, such as 'crimson'"),
        ({"shade": ["teal", None]}, r"column 'shade' has no value in row 1"),
        ({"shade": ["teal"]}, r"column 'shade' has 1 row and 'height' has 2"),
        ({"member": [2, 1]}, r"column 'member' holds 2, expected booleans"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(columns: Any, change: Any, message: str) -> None:
    frame: dict[str, Any] = {name: FRAME[name].to_numpy()[:2] for name in FRAME.columns}
    for name, values in change.items():
        if values is None:
            frame[f"{name}s"] = frame.pop(name)
        else:
            frame[name] = values
    with pytest.raises(DataError, match=message):
        encoded(frame, columns[0])
    with pytest.raises(DataError, match="Expected named columns"):
        encoded([1, 2], columns[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_tensors_and_columns_of_several_numbers_have_no_value_where_they_are_masked() -> None:
    heights = torch.masked.masked_tensor(torch.tensor([1.5, 2.0]), torch.tensor([False, True]))
    with pytest.raises(DataError, match="column 'height' has no value in row 0"):
        encoded({"height": heights}, [Column("height")])
    pairs = [Column("pair", None, 2)]
    full = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64(), 2))
    assert encoded({"pair": full}, pairs).tolist() == [[1, 2], [3, 4]]
    masked = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 0], [0, 1]])
    for part in (masked, list(masked), pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float64(), 2))):
        with pytest.raises(DataError, match="column 'pair' has no value in row 1"):
            encoded({"pair": part}, pairs)


def test_a_category_that_training_did_not_have_is_none_of_them_and_is_told(columns: Any) -> None:
    frame = FRAME[:2].assign(shade=["violet", "teal"])
    with pytest.warns(PotstillWarning, match=r"1 row has a value in column 'shade' .*\('violet'\)"):
        found = encoded(frame, columns[0])
    assert found[:, 1:4].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_student_and_files_take_named_columns(columns: Any, tmp_path: Path) -> None:
    known, inputs, _ = columns
    model = nn.Linear(inputs.shape[1], 2).eval()
    preprocess = Preprocessor(torch.tensor(inputs.mean(0)), torch.tensor(inputs.std(0)))
    given: dict[str, Any] = {"task": "classification", "classes": ["buys", "leaves"], "columns": known}
    save_student(model, tmp_path, preprocess=preprocess, shape=inputs.shape[1:], dtype="float32", **given)
    exact = export_onnx(model, preprocess, torch.tensor(inputs[:2]), tmp_path / "student.onnx", **given)
    student = load_student(tmp_path, model=nn.Linear(inputs.shape[1], 2))
    assert student.columns == known
    with torch.no_grad():
        expected = model(preprocess(torch.tensor(encoded(FRAME, known)))).numpy()
        np.testing.assert_allclose(student(FRAME[FRAME.columns[::-1]]).numpy(), expected, atol=1e-5)
    for file in (exact, quantize(exact, tmp_path / "int8.onnx", [inputs])):
        assert OnnxModel(file).columns == known
    np.testing.assert_allclose(OnnxModel(exact)(FRAME), expected, atol=1e-5)
    for nothing in (FRAME[:0], torch.zeros(0, inputs.shape[1])):
        assert student(nothing).shape == OnnxModel(exact)(nothing).shape == (0, 2)
        assert student.probabilities(nothing).shape == OnnxModel(exact).probabilities(nothing).shape == (0, 2)
    for wrong in (torch.tensor(inputs[0]), torch.tensor(inputs[:, 1:])):
        for answer in (student, OnnxModel(exact)):
            with pytest.raises(DataError, match=rf"shape \(batch, 6\); got .*\({wrong.shape[0]},"):
                answer(wrong)
    with pytest.raises(DataError, match="The inputs are masked"):
        OnnxModel(exact)(np.ma.array(inputs, mask=inputs == inputs.max()))
    with pytest.raises(UsageError, match="takes tensors, not DataFrame"):
        Student(model, preprocess)(FRAME)


def test_splits_of_frames_are_matched_by_the_names_of_their_columns() -> None:
    numbers, labels = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), np.arange(30) % 2
    frame = pd.DataFrame(numbers, columns=["a", "b", "c"]).assign(city=["Bern", "Basel", "Bern"] * 10)
    parts = {"train": (frame[:15], labels[:15]), "test": (frame[["city", "c", "b", "a"]][15:], labels[15:])}
    data = load(parts)
    assert [column.name for column in data.columns] == ["a", "b", "c", "city"]
    np.testing.assert_array_equal(data.test.fetch(np.arange(15)).numpy()[:, :3], numbers[15:])
    with pytest.raises(DataError, match="the inputs of train cannot be read: Duplicate column names"):
        load((pd.DataFrame(numbers, columns=["a", "a", "b"]), labels))
    with pytest.raises(DataError, match="same row labels in another order"):
        load((frame, pd.Series(labels[::-1], index=frame.index[::-1])))
    assert len(load((frame.set_index(np.arange(5, 35)), pd.Series(labels))).classes) == 2


def test_inputs_without_a_column_are_refused() -> None:
    with pytest.raises(DataError, match=r"train: inputs have shape \(6, 0\)"):
        load((np.zeros((6, 0), np.float32), np.arange(6) % 2))
