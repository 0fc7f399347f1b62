"""LightGBM and XGBoost files as teachers, against what the packages answer themselves."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
import xgboost

from potstill.core.errors import TeacherError, UsageError
from potstill.data.columns import Column
from potstill.teachers.files import open_file
from potstill.teachers.foreign import ArrayModel, Reading, Wanted

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 4)).astype(np.float32)
MANY = (X @ rng.normal(size=(4, 3))).argmax(1)
TWO = (X[:, 0] > 0).astype(int)
SETTINGS = {"n_estimators": 4, "max_depth": 3, "random_state": 0, "n_jobs": 1}


def wanted(count, columns=()):
    return Wanted("classification", (4,), tuple("abc"[:count]), count, columns)


def fitted(kind, targets, path, **more):
    if kind == "lightgbm":
        model = lightgbm.LGBMClassifier(**SETTINGS, verbose=-1, **more).fit(X, targets)
        model.booster_.save_model(str(path / "m.txt"))
        return model, path / "m.txt"
    model = xgboost.XGBClassifier(**SETTINGS, **more).fit(X, targets)
    model.save_model(path / "m.ubj")
    return model, path / "m.ubj"


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
@pytest.mark.parametrize(("targets", "count"), [(MANY, 3), (TWO, 2)])
def test_margins_are_logits_of_the_packages_own_probabilities(tmp_path, kind, targets, count, asked):
    model, path = fitted(kind, targets, tmp_path)
    expected = model.predict_proba(X)
    for answers in (None, "probabilities"):
        found = open_file(path, wanted(count), answers=answers)
        assert found.answers == answers or (answers is None and found.answers == "logits")
        logits = asked(ArrayModel(found, Reading(found.answers, count, wanted(count).classes)), X)["logits"]
        assert logits.shape == (200, count)
        np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_xgboost_json_and_the_round_that_early_stopping_chose(tmp_path):
    model = xgboost.XGBClassifier(n_estimators=30, max_depth=4, n_jobs=1, early_stopping_rounds=2, learning_rate=1.0)
    model.fit(X[:100], TWO[:100], eval_set=[(X[100:], rng.integers(0, 2, 100))], verbose=False)
    assert model.best_iteration < len(model.get_booster().get_dump()) - 1
    model.save_model(tmp_path / "m.json")
    found = open_file(tmp_path / "m.json", wanted(2))
    np.testing.assert_allclose(1 / (1 + np.exp(-found.ask(X))), model.predict_proba(X)[:, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
def test_another_task_or_number_of_classes_is_refused(tmp_path, kind):
    _, path = fitted(kind, MANY, tmp_path)
    with pytest.raises(TeacherError, match=r"was trained for multi\S*; the data has 2 classes"):
        open_file(path, wanted(2))
    with pytest.raises(TeacherError, match=r"the task is regression"):
        open_file(path, Wanted("regression", (4,), (), 1))
    with pytest.raises(TeacherError, match=r"takes samples of shape 4, but the data has 5"):
        open_file(path, Wanted("classification", (5,), ("a", "b", "c"), 3))


def test_regression(tmp_path):
    model = lightgbm.LGBMRegressor(**SETTINGS, verbose=-1).fit(X, X[:, 1])
    model.booster_.save_model(str(tmp_path / "m.txt"))
    found = open_file(tmp_path / "m.txt", Wanted("regression", (4,), (), 1))
    np.testing.assert_allclose(found.ask(X), model.predict(X))
    model = xgboost.XGBRegressor(**SETTINGS).fit(X, X[:, 1])
    model.save_model(tmp_path / "m.json")
    found = open_file(tmp_path / "m.json", Wanted("regression", (4,), (), 1))
    np.testing.assert_allclose(found.ask(X), model.predict(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
def test_named_columns_are_found_in_any_order(tmp_path, kind):
    import pandas as pd

    names = ["d", "b", "a", "c"]
    frame = pd.DataFrame(X, columns=names)
    if kind == "lightgbm":
        model = lightgbm.LGBMClassifier(**SETTINGS, verbose=-1).fit(frame, TWO)
        model.booster_.save_model(str(path := tmp_path / "m.txt"))
    else:
        model = xgboost.XGBClassifier(**SETTINGS).fit(frame, TWO)
        model.save_model(path := tmp_path / "m.json")
    found = open_file(path, wanted(2, tuple(map(Column, "abcd"))), answers="probabilities")
    table = frame[list("abcd")].to_numpy()
    np.testing.assert_allclose(found.ask(table), model.predict_proba(frame)[:, 1], rtol=1e-5)


def test_files_that_are_nothing_are_refused(tmp_path):
    for name, text in (("m.txt", r"not a readable LightGBM"), ("m.json", r"not a readable XGBoost")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UsageError, match=text):
            open_file(tmp_path / name, wanted(3))
