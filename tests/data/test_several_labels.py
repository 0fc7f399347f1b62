"""Several labels per sample: from arrays, lists, columns of tables; unknown cells, classes, splits, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from potstill.core.errors import DataError, UsageError
from potstill.data import Data, Stream, load

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(80, 3)).astype(np.float32)
CELLS = (RNG.random((80, 4)) < (0.5, 0.3, 0.1, 0.6)).astype(float)


def loaded(targets: object, **options: object) -> Data:
    return load({"inputs": INPUTS, "targets": targets, "ids": np.arange(80)}, task="multilabel", **options)


def joined(data: Data) -> np.ndarray:
    """Return the labels of all splits in the order of the ids."""
    ids = np.concatenate([samples.ids for samples in data.splits.values()])
    return np.concatenate([samples.targets for samples in data.splits.values()])[np.argsort(ids)]


def test_cells_of_every_type_are_the_same_labels() -> None:
    gaps = RNG.random(CELLS.shape) < 0.1
    gaps[:, 0] = False  # a sample with no known label at all would be refused
    wanted = np.where(gaps, np.nan, CELLS)
    objects = [
        [None if gap else bool(cell) for cell, gap in zip(*row, strict=True)] for row in zip(CELLS, gaps, strict=True)
    ]
    given = [wanted, np.ma.array(CELLS.astype(int), mask=gaps), objects]
    fingerprints = set()
    for targets in given:
        data = loaded(targets)
        np.testing.assert_array_equal(joined(data), wanted)
        fingerprints.add(data.fingerprint)
    assert len(fingerprints) == 1
    assert (data.classes, data.num_outputs) == (("0", "1", "2", "3"), 4)
    np.testing.assert_array_equal(joined(loaded(CELLS.astype(bool))), CELLS)
    np.testing.assert_array_equal(joined(loaded(CELLS.astype(int).tolist())), CELLS)


def test_lists_of_names_become_cells() -> None:
    names = ["sun", "sea", "dog", "wood"]
    lists = [[name for name, cell in zip(names, row, strict=True) if cell] for row in CELLS]
    data = loaded(lists)
    order = [names.index(name) for name in data.classes]
    assert data.classes == tuple(sorted(names))
    np.testing.assert_array_equal(joined(data), CELLS[:, order])
    np.testing.assert_array_equal(joined(loaded(lists, classes=names)), CELLS)


def test_columns_and_lists_of_tables(tmp_path: Path) -> None:
    lines = [
        {
            "a": float(row[0]),
            "b": float(row[1]),
            "sun": int(cells[0]),
            "sea": bool(cells[1]),
            "dog": None if number % 7 == 0 else int(cells[2]),
            "tags": [name for name, cell in zip("xyz", cells, strict=False) if cell],
        }
        for number, (row, cells) in enumerate(zip(INPUTS, CELLS, strict=True))
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    data = load(str(path), task="multilabel", inputs=["a", "b"], target=["sun", "sea", "dog"])
    assert data.classes == ("sun", "sea", "dog")
    assert data.shape == (2,)
    assert np.isnan(joined(data)[::7, 2]).all()
    lists = load(str(path), task="multilabel", inputs=["a", "b"], target="tags")
    np.testing.assert_array_equal(joined(lists), CELLS[:, :3])
    values = load(str(path), task="regression", inputs=["sun"], target=["a", "b"])
    np.testing.assert_allclose(joined(values), INPUTS[:, :2], rtol=1e-6)


def test_a_batch_masks_what_is_unknown() -> None:
    cells = CELLS.copy()
    cells[::3, 1] = np.nan
    data = loaded(cells)
    batch = next(Stream(data.train).epoch(0, 16, order=0))
    rows = np.searchsorted(data.train.ids, batch.ids.numpy())
    np.testing.assert_array_equal(batch.labelled.numpy(), ~np.isnan(data.train.targets[rows]))
    assert bool(batch.targets.isfinite().all())
    assert next(Stream(loaded(CELLS).train).epoch(0, 16, order=0)).labelled is None


def test_splits_keep_rare_classes_in_proportion() -> None:
    data = loaded(CELLS, test_fraction=0.25, validation_fraction=0.25)
    share = CELLS[:, 2].mean()
    assert all(abs(samples.targets[:, 2].mean() - share) <= 1 / len(samples) for samples in data.splits.values())


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (CELLS[:, 0].astype(int), DataError, r"shape \(80,\).*one class a sample set task: classification"),
        (CELLS[:, :1], DataError, "two classes or more"),
        (2 * CELLS, DataError, r"row \d+, class \d .*is .*2\.0.*1 or true, 0 or false"),
        (np.where(CELLS > 0, np.inf, 0.0), DataError, "is .*inf"),
        ([[["x"], 1]] * 80, DataError, "row 0 holds"),
        (np.full((80, 2), np.nan), DataError, "the label is missing"),
        (np.zeros((80, 2)), DataError, "no class has both a yes and a no"),
    ],
)
def test_labels_that_are_none_are_refused_by_their_place(targets: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        loaded(targets)


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are not among the classes x, y"):
        loaded([["x"], ["y", "z"]] * 40, classes=["x", "y"])
    with pytest.raises(DataError, match="There are 2 classes"):
        loaded(CELLS, classes=["x", "y"])
    path = tmp_path / "t.csv"
    path.write_text("a,p,q\n" + "1,yes,no\n2,no,yes\n" * 20)
    with pytest.raises(DataError, match="'p' holds texts such as 'yes'"):
        load(str(path), task="multilabel", target=["p", "q"])
    with pytest.raises(DataError, match="no column 'r'"):
        load(str(path), task="multilabel", target=["p", "r"])
    with pytest.raises(DataError, match="task: regression"):
        load({"inputs": INPUTS, "targets": CELLS}, task="classification")
    with pytest.raises(UsageError, match="task: classification, not for multilabel"):
        loaded(CELLS, num_labels=10)
