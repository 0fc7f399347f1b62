"""What raw answers are: found out, confirmed, turned into logits; golden numbers from NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.core.errors import TeacherError
from potstill.teachers.answers import are_names, as_logits, label_numbers, likely, matched, misfits, order_of, settle

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(64, 5)).astype(np.float32)
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype(np.float32)
LABELS = LOGITS.argmax(1)
SIGMOIDS = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)


def settled(values, declared=None, said=None, checked=False):
    says = {"says": "its last step is Softmax", "place": "teacher", "what": "model.onnx"}
    return settle(values, declared, said, **says, checked=checked)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (LOGITS, "logits"),
        (PROBABILITIES, "probabilities"),
        (PROBABILITIES.astype(np.float16), "probabilities"),
        (np.log(PROBABILITIES), "logits"),
        (LABELS, "labels"),
        (LABELS.astype(np.float32), "labels"),
        (np.array(["cat", "dog"], dtype=object), "labels"),
        (PROBABILITIES[:, :1], "probabilities"),
        (LOGITS[:, 0], "logits"),
        (np.eye(5, dtype=np.float32)[LABELS], "probabilities"),
        (SIGMOIDS, None),
        (100 * PROBABILITIES, "percentages"),
        (100 * SIGMOIDS[:, 0], "percentages"),
        (100 * SIGMOIDS, None),
        (np.abs(LOGITS) + 3, "logits"),
    ],
)
def test_what_answers_look_like(values, kind):
    assert likely(values)[0] == kind


def test_what_is_said_and_fits_is_settled():
    assert settled(LOGITS, "logits") == "logits"
    assert settled(PROBABILITIES, None, "probabilities") == "probabilities"
    assert settled(PROBABILITIES[:, 1], "probabilities") == "probabilities"
    assert settled(LABELS, "labels") == "labels"


def test_answers_of_an_unknown_kind_are_refused_with_the_line_to_write():
    with pytest.raises(
        TeacherError, match=r"look like probabilities: .*sums to 1.*add 'answers: probabilities' to teac"
    ):
        settled(PROBABILITIES)
    with pytest.raises(TeacherError, match=r"look like logits: .* -[0-9.]+ to .*add 'answers: logits'"):
        settled(LOGITS)
    with pytest.raises(TeacherError, match=r"could not be recognised: .*one sigmoid a class"):
        settled(SIGMOIDS)


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (PROBABILITIES, "logits"),
        (LOGITS, "probabilities"),
        (SIGMOIDS, "probabilities"),
        (SIGMOIDS, "logits"),
        (SIGMOIDS[:, 0], "logits"),
        (100 * PROBABILITIES, "logits"),
        (100 * SIGMOIDS, "logits"),
        (100 * SIGMOIDS[:, 0], "logits"),
        (PROBABILITIES, "percentages"),
        (100 * PROBABILITIES, "probabilities"),
        (LOGITS, "labels"),
        (LABELS, "logits"),
        (LABELS, "probabilities"),
        (LOGITS, "values"),
    ],
)
def test_a_contradiction_is_refused_with_the_evidence(values, declared):
    with pytest.raises(TeacherError, match=r"teacher\.answers"):
        settled(values, declared)


def test_logits_that_look_like_something_else_are_taken_where_the_user_has_checked_them():
    for values in (PROBABILITIES, SIGMOIDS, SIGMOIDS[:, 0], 100 * PROBABILITIES):
        assert settled(values, "logits", checked=True) == "logits"
    with pytest.raises(TeacherError, match=r"answers: logits, answers_checked: true"):
        settled(SIGMOIDS, "logits")


def test_a_few_logits_may_lie_between_0_and_1():
    assert settled(SIGMOIDS[:3], "logits") == "logits"  # 15 numbers say nothing of a range
    assert settled(SIGMOIDS[:9, 0], "logits") == "logits"
    with pytest.raises(TeacherError):
        settled(SIGMOIDS[:4], "logits")


def test_the_range_that_is_named_is_the_true_one():
    assert "from 0.5 to 0.75" in likely(np.array([0.5, 0.75, 0.6]))[1]
    assert "from -3 to -1" in likely(np.array([[-3.0, -2.0], [-1.5, -1.0]]))[1]


def test_rows_of_another_kind_are_named_wherever_they_are():
    mixed = np.concatenate([PROBABILITIES[:40], LOGITS[40:]])
    with pytest.raises(TeacherError, match=r"24 of 64 rows are no probabilities, the first is row 40.*in one way"):
        settled(mixed, "probabilities")
    with pytest.raises(TeacherError, match=r"40 of 64 rows are from 0 to 1 and sum to 1.*the first is row 0"):
        settled(mixed, "logits")
    assert misfits(torch.from_numpy(PROBABILITIES), "probabilities") is None
    assert misfits(torch.from_numpy(LOGITS), "logits") is None
    late = PROBABILITIES.copy()
    late[-1] *= 2
    assert "the first is row 63" in (misfits(torch.from_numpy(late), "probabilities") or "")


def test_labels_are_names_where_every_one_of_them_is_a_name():
    classes = ("1", "2", "unknown")
    assert are_names(np.array([1, 2, 2]), classes)
    assert are_names(np.array([1.0, 2.0]), classes)
    assert not are_names(np.array([0, 1, 2]), classes)
    np.testing.assert_array_equal(label_numbers(np.array([1, 2, 2]), classes, what="x.csv"), [0, 1, 1])
    np.testing.assert_array_equal(label_numbers(np.array([0, 1, 2]), classes, what="x.csv"), [0, 1, 2])
    # A batch in which all labels happen to be names is read as its source is.
    np.testing.assert_array_equal(label_numbers(np.array([1, 2]), classes, what="x.csv", by_name=False), [1, 2])


@pytest.mark.parametrize(
    ("found", "wanted", "names"),
    [
        (["0.0", "1.0"], ["0", "1"], ["0", "1"]),
        (["0", "1"], ["0.0", "1.0"], ["0.0", "1.0"]),
        (["True", "False"], ["0", "1"], ["1", "0"]),
        (["0", "1"], ["False", "True"], ["False", "True"]),
        (["1", "01"], ["01", "1"], ["1", "01"]),
        (["1"], ["01", "1.0"], None),  # it could be either
        (["ant", "1.0"], ["1", "ant"], ["ant", "1"]),
        (["0", "1", "2"], ["0", "1"], None),
        (["nan", "inf"], ["inf", "nan"], ["nan", "inf"]),
    ],
)
def test_classes_are_the_same_as_texts_or_as_numbers(found, wanted, names):
    assert matched(found, wanted) == names


def test_a_file_that_contradicts_its_answers_is_refused():
    with pytest.raises(TeacherError, match=r"model.onnx says probabilities \(its last step is Softmax\)"):
        settled(LOGITS, None, "probabilities")


def test_numbers_that_are_not_finite_are_refused():
    values = LOGITS.copy()
    values[3, 2] = np.nan
    with pytest.raises(TeacherError, match=r"1 of 320 numbers are NaN"):
        settled(values, "logits")


def test_logits_of_every_kind_against_numpy():
    torch.testing.assert_close(
        as_logits(torch.from_numpy(PROBABILITIES), "probabilities", 5).softmax(1), torch.from_numpy(PROBABILITIES)
    )
    torch.testing.assert_close(
        as_logits(torch.from_numpy(100 * PROBABILITIES), "percentages", 5).softmax(1), torch.from_numpy(PROBABILITIES)
    )
    zero = as_logits(torch.tensor([[1.0, 0.0]]), "probabilities", 2)
    np.testing.assert_allclose(zero.numpy(), [[0.0, np.log(1e-12)]], rtol=1e-6)
    one = as_logits(torch.tensor([2]), "labels", 4)
    np.testing.assert_allclose(one.exp().numpy(), [[2.5e-5, 2.5e-5, 1 - 7.5e-5, 2.5e-5]], rtol=1e-4)
    torch.testing.assert_close(as_logits(torch.tensor([[3.0]]), "values", 1), torch.tensor([[3.0]]))


def test_one_column_for_two_classes_is_the_second_one():
    p = torch.tensor([0.2, 0.9])
    torch.testing.assert_close(
        as_logits(p, "probabilities", 2).softmax(1), torch.tensor([[0.8, 0.2], [0.1, 0.9]]), rtol=1e-5, atol=1e-6
    )
    z = torch.logit(p)[:, None]
    torch.testing.assert_close(as_logits(z, "logits", 2).softmax(1)[:, 1], p)


def test_classes_in_another_order_are_mapped_by_name_and_said_so():
    order, note = order_of(["dog", "cat"], ["cat", "dog"], place="teacher", what="it")
    assert order == (1, 0)
    assert "by name" in note
    assert order_of(["cat", "dog"], ["cat", "dog"], place="teacher", what="it") == (None, "")
    order, note = order_of(["0", "1"], ["cat", "dog"], place="teacher", what="it")
    assert order is None
    assert "numbers its classes" in note


def test_other_classes_are_refused_by_name():
    with pytest.raises(TeacherError, match=r"it has dgo, which the data does not have. Did you mean 'dog'"):
        order_of(["cat", "dgo"], ["cat", "dog"], place="teacher", what="it")
    with pytest.raises(TeacherError, match=r"it lacks fox"):
        order_of(["cat", "dog"], ["cat", "dog", "fox"], place="teacher", what="it")


def test_labels_are_read_by_name_and_by_number():
    assert label_numbers(np.array(["b", "a"], dtype=object), ["a", "b"], what="it").tolist() == [1, 0]
    assert label_numbers(np.array([1.0, 0.0]), ["a", "b"], what="it").tolist() == [1, 0]
    # Where all names are numbers, a number is a name.
    assert label_numbers(np.array([3, 1]), ["1", "2", "3"], what="it").tolist() == [2, 0]
    for bad, classes in ((np.array([2]), ["a", "b"]), (np.array(["c"]), ["a", "b"]), (np.array([0]), ["1", "2"])):
        with pytest.raises(TeacherError, match=r"which is no class of the data"):
            label_numbers(bad, classes, what="it")
