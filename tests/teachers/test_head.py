"""The head on what several models say: its minimum, its strength and its folds, against scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from potstill.core.errors import TrainingError
from potstill.teachers import head as heads
from potstill.teachers.head import FOLDS, STRENGTHS, choose_head, fit_head, starting_head, too_few


def classes(n=120, p=7, c=3, seed=0):
    """Samples whose class is a noisy function of some of their features, in units that differ by a thousand."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) * np.geomspace(1e-3, 1e3, p) + np.arange(p)
    z = (x - x.mean(0)) / x.std(0) @ random.normal(size=(p, c)) + random.gumbel(size=(n, c))
    return x, z.argmax(1)


def values(n=60, p=5, k=2, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) * np.geomspace(0.01, 100, p)
    return x, x / x.std(0) @ random.normal(size=(p, k)) + random.normal(size=(n, k)) + [5, -3]


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_head_of_classes_is_the_one_of_scikit_learn(strength):
    x, y = classes()
    head = fit_head(torch.tensor(x), torch.tensor(y), strength, outputs=3)
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=1 / (len(x) * strength), tol=1e-12, max_iter=10_000).fit(scaler.transform(x), y)
    fresh = classes(seed=1)[0]
    probabilities = head(torch.tensor(fresh)).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(scaler.transform(fresh)), atol=2e-5)
    np.testing.assert_allclose(head.weight.numpy(), reference.coef_, atol=2e-4)


@pytest.mark.parametrize("p", [5, 90])
def test_the_head_of_values_is_the_normal_equation_and_ridge_of_scikit_learn(p):
    """Also where there are more features than samples."""
    x, y = values(p=p)
    head = fit_head(torch.tensor(x), torch.tensor(y), 0.1, outputs=2)
    z = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(z.T @ z + len(x) * 0.1 * np.eye(p), z.T @ (y - y.mean(0))).T
    np.testing.assert_allclose(head.weight.numpy(), weight, atol=1e-10)
    np.testing.assert_allclose(head.bias.numpy(), y.mean(0), atol=1e-12)
    reference = Ridge(alpha=len(x) * 0.1).fit(z, y)
    np.testing.assert_allclose(head(torch.tensor(x)).numpy(), reference.predict(z), atol=1e-9)


@pytest.mark.parametrize("data", [classes, values])
def test_units_shifts_and_order_of_features_change_nothing(data):
    x, y = data()
    outputs, order = (3, 2)[data is values], torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    x, y = torch.tensor(x), torch.tensor(y)
    moved = (1000.0 * x - 7.0)[:, order]
    for strength in (0.1, 1e-3):
        plain = fit_head(x, y, strength, outputs=outputs)(x)
        torch.testing.assert_close(fit_head(moved, y, strength, outputs=outputs)(moved), plain, atol=2e-4, rtol=0)


def test_a_feature_that_is_constant_while_learning_is_not_read():
    x, y = values()
    x = torch.tensor(x)
    constant = torch.cat([x, torch.full((len(x), 1), 0.1, dtype=torch.float64)], dim=1)
    head = fit_head(constant, torch.tensor(y), 0.1, outputs=2)
    fresh = constant.clone()
    fresh[:, -1] = 1e6
    torch.testing.assert_close(head(fresh), fit_head(x, torch.tensor(y), 0.1, outputs=2)(x))


@pytest.mark.parametrize("data", [classes, values])
def test_the_strength_is_the_one_that_predicts_unseen_folds_best(data):
    x, y = data()
    outputs = (3, 2)[data is values]
    x, y = torch.tensor(x), torch.tensor(y)
    head, strength, unseen = choose_head(x, y, outputs=outputs, seed=3)
    folds = heads._folds(y, 3)
    losses = {}
    for tried in STRENGTHS:
        predicted = torch.zeros(len(x), outputs, dtype=torch.float64)
        for fold in range(FOLDS):
            rest = folds != fold
            predicted[~rest] = fit_head(x[rest], y[rest], tried, outputs=outputs)(x[~rest])
        said = predicted.log_softmax(1)[torch.arange(len(x)), y] if y.dim() == 1 else -(predicted - y).square()
        losses[tried] = -float(said.mean())
        if tried == strength:
            torch.testing.assert_close(unseen, predicted)
    assert strength == min(losses, key=losses.__getitem__)
    assert STRENGTHS[0] > strength > STRENGTHS[-1]
    torch.testing.assert_close(head.weight, fit_head(x, y, strength, outputs=outputs).weight)
    again = choose_head(x, y, outputs=outputs, seed=3)
    assert torch.equal(again[0].weight, head.weight)
    assert torch.equal(again[2], unseen)


def test_features_that_say_nothing_are_hardly_read():
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(1))
    head, strength, _ = choose_head(x, y, outputs=2, seed=0)
    assert strength >= 1.0
    assert head.weight.abs().max() < 0.1


def test_classes_are_spread_over_the_folds_and_each_can_be_left_out():
    y = torch.tensor([0] * 2 + [1] * 13 + [2] * 25)
    folds = heads._folds(y, 0)
    for label, most in ((0, 1), (1, 3), (2, 5)):
        assert torch.bincount(folds[y == label], minlength=FOLDS).max() == most
    assert all({0, 1, 2} == set(y[folds != fold].tolist()) for fold in range(FOLDS))
    assert not torch.equal(folds, heads._folds(y, 1))


def test_what_is_too_few_to_learn_from_is_said():
    assert too_few(np.zeros(9), ()) == "it has 9 samples, of which 5 folds need 10"
    labels = np.repeat([0, 1, 2], [20, 1, 0])
    assert too_few(labels, ("a", "b", "c")) == "fewer than two of its samples are of the class b, c"
    assert too_few(np.repeat([0, 1], 10), ("a", "b")) == ""
    assert too_few(np.zeros((10, 2)), ()) == ""


def test_a_minimum_that_is_not_reached_is_refused(monkeypatch):
    monkeypatch.setattr(heads, "_ROUNDS", 1)
    x, y = classes()
    with pytest.raises(TrainingError, match="not fitted in 1 rounds: a derivative of"):
        fit_head(torch.tensor(x), torch.tensor(y), 1e-3, outputs=3)


def test_a_head_that_has_learned_nothing_tells_samples_apart_and_is_the_same_every_time():
    head, other = starting_head(6, 3), starting_head(6, 3, seed=1)
    answers = head(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert answers.std(0).min() > 0.1
    assert torch.equal(head.weight, starting_head(6, 3).weight)
    assert not torch.equal(head.weight, other.weight)
