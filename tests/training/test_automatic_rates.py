"""Which optimisers and rates are tried for which model, how many steps each gets, and which wins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from potstill.core.errors import DivergedError
from potstill.models.zoo.small import cnn, mlp
from potstill.recipe.schema import Training
from potstill.training.rates import (
    LONG,
    LONG_TABLE,
    TABLE,
    TRAINED,
    Tried,
    best,
    candidates,
    is_open,
    kind_of,
    looks_trained,
    short,
    starting_point,
    steps_of_each,
)


def pairs(settings: Training, model: nn.Module, **how) -> list[tuple[str, float | None]]:
    return [(one.optimizer, one.learning_rate) for one in candidates(settings, model, **how)]


def tried(validation: float | None, rate: float = 0.1, optimizer: str = "sgd", loss: float = 1.0) -> Tried:
    return Tried(optimizer, rate, 10, validation, None if validation is None else loss, 0.1)


MODELS = [
    ("normed", lambda: cnn(3, in_channels=1, width=2)),
    ("plain", lambda: mlp(3, in_features=4)),
    ("plain", lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))),
    ("attention", lambda: nn.TransformerEncoderLayer(8, 2)),
    ("attention", lambda: nn.ModuleDict({"conv": nn.Conv1d(2, 4, 3), "attend": nn.MultiheadAttention(4, 2)})),
]


@pytest.mark.parametrize(("kind", "make"), MODELS)
def test_the_layers_of_a_model_decide_what_is_tried(kind, make) -> None:
    assert kind_of(make()) == kind
    assert pairs(Training(), make()) == list(TABLE[kind])
    assert pairs(Training(), make(), trained=True) == list(TRAINED[kind])
    assert starting_point(Training(), make()).optimizer == TABLE[kind][0][0]


def test_every_table_has_three_to_five_candidates_that_a_recipe_could_name() -> None:
    for table in (*TABLE.values(), *TRAINED.values()):
        assert 3 <= len(set(table)) == len(table) <= 5
        for optimizer, rate in table:
            Training(optimizer=optimizer, learning_rate=rate)
    assert all(rate in (1e-5, 2e-5, 5e-5, 2e-4) for _, rate in TRAINED["attention"])


def test_long_trainings_of_convolutional_nets_try_less_for_longer() -> None:
    model = cnn(3, in_channels=1, width=2)
    assert pairs(Training(), model, steps=LONG - 1) == list(TABLE["normed"])
    assert pairs(Training(), model, steps=LONG) == [("sgd", 0.1), ("sgd", 0.3)] == list(LONG_TABLE["normed"])
    assert pairs(Training(), model, steps=LONG, trained=True) == list(TRAINED["normed"])
    assert pairs(Training(), mlp(3, in_features=4), steps=LONG) == list(TABLE["plain"])
    assert pairs(Training(optimizer="adamw"), model, steps=LONG) == pairs(Training(optimizer="adamw"), model)


def test_a_model_with_norm_weights_that_differ_was_trained_before() -> None:
    model = cnn(3, in_channels=1, width=2)
    assert not looks_trained(model)
    with torch.no_grad():
        model.layer1[1].weight[0] = 1.5
    assert looks_trained(model)
    assert pairs(Training(), model) == list(TRAINED["normed"])


def test_what_a_recipe_fixes_is_the_same_in_every_candidate() -> None:
    model = mlp(3, in_features=4)
    fixed = Training(optimizer="adamw", weight_decay=0.3, warmup=0.2, epochs=7, schedule="one_cycle")
    found = candidates(fixed, model)
    assert len({one.learning_rate for one in found}) == len(found) >= 3
    assert all(one.model_copy(update={"learning_rate": "auto"}) == fixed for one in found)
    assert pairs(Training(learning_rate=0.05), model) == [("sgd", 0.05), ("adamw", 0.05)]
    assert pairs(Training(learning_rate=None), model) == [("sgd", None), ("adamw", None)]
    assert [one for one, _ in pairs(Training(optimizer="dot"), model)] == ["dot"] * 4
    assert not is_open(Training(optimizer="sgd", learning_rate=None))
    assert all(is_open(one) for one in (Training(), Training(optimizer="sgd"), Training(learning_rate=0.1)))


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(5, 1000, (5, 100)), (4, 1000, (4, 125)), (5, 100, (3, 16)), (5, 60, (2, 15)), (5, 59, (1, 0)), (5, 1, (1, 0))],
)
def test_all_candidates_together_cost_at_most_half_a_training(count: int, total: int, expected) -> None:
    assert steps_of_each(count, total) == expected
    assert 2 * math.prod(expected) <= total


def test_a_short_training_has_its_share_of_a_time_limit_and_no_patience() -> None:
    found = short(Training(minutes=8.0, patience=3, track=["tensorboard"], gradient_report=True), 25, 100)
    assert (found.minutes, found.patience, found.track, found.gradient_report) == (2.0, None, [], False)


def test_the_best_score_wins_then_the_lowest_loss_whichever_way_is_better() -> None:
    assert best([tried(0.5), tried(0.8), tried(0.7)]) == 1
    assert best([tried(0.8, loss=0.5), tried(0.8, loss=0.4), tried(None)]) == 1
    assert best([tried(3.0), tried(1.0), tried(2.0)], higher_is_better=False) == 1
    assert best([tried(-math.inf), tried(-5.0), tried(None)]) == 1


def test_of_candidates_that_chance_cannot_tell_apart_the_lowest_loss_wins() -> None:
    # One standard error of 0.9 over 100 samples is 0.03.
    close = [tried(0.9, loss=0.5), tried(0.88, loss=0.3), tried(0.86, loss=0.1), tried(0.875, loss=0.4), tried(None)]
    assert best(close, samples=100) == 1
    assert best(close, samples=10_000) == 0
    assert best(close) == 0


def test_without_a_finite_candidate_the_error_names_all_and_what_to_do() -> None:
    with pytest.raises(DivergedError, match=r"sgd 0.1, adamw 0.03\. .*training.learning_rate.*gradient_clip"):
        best([tried(None), tried(None, 0.03, "adamw")])
