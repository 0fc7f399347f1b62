"""Orders of classes: found where a teacher numbers them differently, and not where it only answers badly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import nn

from potstill.evaluation.class_order import CHANCE, assignment, likely_order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_the_assignment_is_the_cheapest(size):
    random = np.random.default_rng(size)
    for _ in range(10):
        costs = random.integers(-20, 20, (size, size))
        columns = assignment(costs)
        assert sorted(columns) == list(range(size))
        rows, best = linear_sum_assignment(costs)
        assert costs[np.arange(size), columns].sum() == costs[rows, best].sum()


def answers(order, accuracy, count, seed=0):
    """What a teacher of this accuracy names that numbers its classes in another order, and the labels."""
    random = np.random.default_rng(seed)
    size = len(order)
    labels = random.integers(0, size, count)
    seen = np.where(random.random(count) < accuracy, labels, random.integers(0, size, count))
    return np.argsort(order)[seen], labels


AS_TEXTS = sorted(range(12), key=str)


@pytest.mark.parametrize(
    ("order", "accuracy", "count"),
    [
        ([1, 2, 0], 1.0, 60),
        (AS_TEXTS, 1.0, 200),
        (AS_TEXTS, 0.6, 500),
        ([1, 0], 0.8, 500),
        ([0, 1, 2, 4, 3], 0.9, 1000),
        ([*range(1, 100), 0], 0.5, 2000),
    ],
)
def test_another_order_is_found_and_certain(order, accuracy, count):
    named, labels = answers(order, accuracy, count)
    found = likely_order(named, labels, len(order))
    assert found is not None
    assert found.certain
    assert found.classes == tuple(order) or len(order) == 100  # with ten samples a class a few are guesses
    assert found.ordered > found.given + 0.1
    assert found.chance < CHANCE
    assert set(found.moved) <= {output for output, label in enumerate(found.classes) if output != label}


def test_the_chance_is_that_of_the_exact_test():
    named, labels = answers([1, 2, 0], 0.6, 120, seed=1)
    found = likely_order(named, labels, 3, seed=3)
    second = np.random.default_rng(3).permutation(120)[60:]
    now = named[second] == labels[second]
    then = np.array([1, 2, 0])[named[second]] == labels[second]
    won, lost = int((then & ~now).sum()), int((now & ~then).sum())
    assert found is not None
    assert found.chance == pytest.approx(binomtest(won, won + lost, alternative="greater").pvalue)


def test_the_order_is_believed_on_samples_only_that_it_was_not_found_on():
    random = np.random.default_rng(0)
    assert likely_order(random.integers(0, 50, 2000), random.integers(0, 50, 2000), 50) is None
    assert likely_order(np.zeros(1, int), np.ones(1, int), 2) is None


def test_two_classes_that_are_taken_for_each_other_are_not_certain():
    named, labels = answers([1, 0], 0.3, 2000)  # right on 35 %, on 65 % if they were exchanged
    found = likely_order(named, labels, 2)
    assert found is not None
    assert not found.certain


def test_a_teacher_that_hardly_knows_the_classes_in_any_order_is_not_certain():
    named, labels = answers([*range(1, 10), 0], 0.35, 2000)
    found = likely_order(named, labels, 10)
    assert found is not None
    assert not found.certain
    # A random one is not worth a word, although some order is always better.
    assert likely_order(*answers([*range(1, 10), 0], 0.05, 2000), 10) is None


def test_a_teacher_that_names_a_few_classes_for_everything_is_never_certain():
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    named = np.where(labels < 5, 7, np.where(labels < 8, 2, 0))
    found = likely_order(named, labels, 10)
    assert found is None or not found.certain


def test_weak_teachers_in_the_right_order_are_never_stopped():
    """Nets that saw a few steps, or whose inputs are scaled, shifted or noisy: of 3 x 4 x 5 x 2, none."""
    pixels, digits = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    views = [inputs, 16 * inputs, inputs / 255, (inputs - 0.3) / 0.35, inputs + noise]
    scores = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            optimiser = torch.optim.Adam(net.parameters(), 1e-2)
            for steps in (2, 4, 14, 60):
                for _ in range(steps):
                    rows = torch.randint(0, len(inputs), (64,))
                    loss = nn.functional.cross_entropy(net(inputs[rows]), labels[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                for view in views:
                    for classes in (10, 2):
                        kept = labels < classes
                        with torch.no_grad():
                            named = net(view[kept])[:, :classes].argmax(1)
                        found = likely_order(named.numpy(), labels[kept].numpy(), classes, seed=seed)
                        assert found is None or not found.certain
                        scores.append(float((named == labels[kept]).float().mean()))
    assert len(scores) == 120
    assert min(scores) < 0.1
    assert max(scores) > 0.9
