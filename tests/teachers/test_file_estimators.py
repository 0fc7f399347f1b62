"""scikit-learn estimators as teachers: methods, classes, columns, and files that are not trusted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from potstill.core.errors import TeacherError, UsageError
from potstill.data.columns import Column
from potstill.teachers.files import open_file
from potstill.teachers.foreign import Wanted

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)).astype(np.float32)
NAMES = np.array(["fox", "cat", "dog"])
Y = NAMES[(X @ rng.normal(size=(4, 3))).argmax(1)]
WANTED = Wanted("classification", (4,), ("fox", "cat", "dog"), 3)
NUMBERS = tuple(Column(name) for name in ("age", "size", "weight", "height"))


def saved(estimator, path):
    skops.io.dump(estimator, path)
    return path


def test_probabilities_and_the_order_of_the_classes(tmp_path):
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    found = open_file(saved(estimator, tmp_path / "m.skops"), WANTED)
    np.testing.assert_allclose(found.ask(X), estimator.predict_proba(X))
    assert found.answers == "probabilities"
    assert found.classes == ("cat", "dog", "fox")


def test_other_methods_answer_with_other_things(tmp_path):
    estimator = LogisticRegression().fit(X, Y)
    path = saved(estimator, tmp_path / "m.skops")
    found = open_file(path, WANTED, args={"method": "decision_function"})
    np.testing.assert_allclose(found.ask(X), estimator.decision_function(X))
    assert found.answers == "logits"
    found = open_file(path, WANTED, args={"method": "predict"})
    assert found.answers == "labels"
    assert found.ask(X).tolist() == estimator.predict(X).tolist()
    with pytest.raises(UsageError, match=r"has no method 'predct'. Did you mean 'predict'"):
        open_file(path, WANTED, args={"method": "predct"})


def test_an_estimator_without_probabilities_asks_for_a_choice(tmp_path):
    path = saved(RidgeClassifier().fit(X, Y), tmp_path / "m.skops")
    with pytest.raises(TeacherError, match=r"RidgeClassifier\) knows no probabilities. Choose"):
        open_file(path, WANTED)
    assert open_file(path, WANTED, args={"method": "predict"}).answers == "labels"


def test_regression(tmp_path):
    estimator = LinearRegression().fit(X, X[:, 0])
    path = saved(estimator, tmp_path / "m.skops")
    wanted = Wanted("regression", (4,), (), 1)
    found = open_file(path, wanted)
    assert found.answers == "values"
    np.testing.assert_allclose(found.ask(X), estimator.predict(X))
    with pytest.raises(TeacherError, match=r"no fitted classifier. For a regressor set task: regression"):
        open_file(path, WANTED)
    with pytest.raises(TeacherError, match=r"is a classifier"):
        open_file(saved(LogisticRegression().fit(X, Y), tmp_path / "c.skops"), wanted)


def test_images_are_flattened(tmp_path):
    estimator = LogisticRegression().fit(X, Y)
    path = saved(estimator, tmp_path / "m.skops")
    found = open_file(path, Wanted("classification", (1, 2, 2), ("fox", "cat", "dog"), 3))
    np.testing.assert_allclose(found.ask(X.reshape(-1, 1, 2, 2)), estimator.predict_proba(X))
    with pytest.raises(TeacherError, match=r"takes samples of shape 4, but the data has 9"):
        open_file(path, Wanted("classification", (9,), ("fox", "cat", "dog"), 3))


def test_named_columns_are_found_in_any_order(tmp_path):
    names = ["weight", "age", "height", "size"]
    estimator = LogisticRegression().fit(pd.DataFrame(X, columns=names), Y)
    path = saved(estimator, tmp_path / "m.skops")
    found = open_file(path, Wanted("classification", (4,), WANTED.classes, 3, NUMBERS))
    table = pd.DataFrame(X, columns=[column.name for column in NUMBERS])
    np.testing.assert_allclose(found.ask(X), estimator.predict_proba(table[names]))
    with pytest.raises(TeacherError, match=r"the data has no 'weight'. Did you mean 'height'"):
        open_file(path, Wanted("classification", (3,), WANTED.classes, 3, NUMBERS[:2] + NUMBERS[3:]))


def test_a_pipeline_that_takes_texts_gets_them_back(tmp_path):
    colours = np.array(["red", "green", "blue"])[rng.integers(0, 3, 90)]
    table = pd.DataFrame({"colour": colours, "age": X[:, 0].astype(np.float64)})
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["colour"]), (StandardScaler(), ["age"]))
    estimator = make_pipeline(encode, LogisticRegression()).fit(table, Y)
    columns = (Column("age"), Column("colour", ("blue", "green", "red"), 3))
    path = saved(estimator, tmp_path / "m.skops")
    trusted = skops.io.get_untrusted_types(file=path)
    found = open_file(path, Wanted("classification", (4,), WANTED.classes, 3, columns), args={"trusted": trusted})
    encoded = np.column_stack([X[:, 0], colours == "blue", colours == "green", colours == "red"]).astype(np.float32)
    np.testing.assert_allclose(found.ask(encoded), estimator.predict_proba(table), rtol=1e-6)
    # A colour that the training data lacks is no colour.
    unseen = pd.DataFrame({"colour": np.array([None], dtype=object), "age": [0.5]})
    np.testing.assert_allclose(
        found.ask(np.array([[0.5, 0, 0, 0]], np.float32)), estimator.predict_proba(unseen), rtol=1e-6
    )


def test_types_that_skops_does_not_know_have_to_be_trusted(tmp_path):
    path = saved(DecisionTreeClassifier().fit(X, Y), tmp_path / "m.skops")
    with pytest.raises(UsageError, match=r"'args: \{trusted: \[sklearn.tree._tree.Tree\]\}'. Nothing in it was run"):
        open_file(path, WANTED)
    assert open_file(path, WANTED, args={"trusted": ["sklearn.tree._tree.Tree"]}).answers == "probabilities"


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "pickle"])
def test_files_that_can_run_code_are_not_opened_unasked(tmp_path, suffix):
    import joblib

    path = tmp_path / f"m.{suffix}"
    joblib.dump(Hostile(), path)
    with pytest.raises(UsageError, match=r"can run any code when it is read. Set 'allow_pickle: true' at teacher"):
        open_file(path, WANTED)
    estimator = LogisticRegression().fit(X, Y)
    joblib.dump(estimator, path)
    found = open_file(path, WANTED, allow_pickle=True)
    np.testing.assert_allclose(found.ask(X), estimator.predict_proba(X))
    joblib.dump({"not": "an estimator"}, path)
    with pytest.raises(TeacherError, match=r"holds a dict, which cannot predict"):
        open_file(path, WANTED, allow_pickle=True)
