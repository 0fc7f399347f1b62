"""Several teachers as one: weights, class maps, learned attention, and that labels never reach a measurement."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.teachers import MergedTeacher, Reads
from potstill.teachers.merge import attention_weights, confidence_weights, fit_attention, merge, unite


def logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_means_of_probabilities_and_of_logits_are_the_arithmetic_and_geometric_mean():
    found = [logits(5, 4, seed=seed) for seed in range(3)]
    weights = np.array([0.5, 0.3, 0.2])
    p = softmax(np.stack([one.numpy() for one in found]))
    arithmetic = (weights[:, None, None] * p).sum(0)
    geometric = np.prod(p ** weights[:, None, None], axis=0)
    geometric /= geometric.sum(1, keepdims=True)
    np.testing.assert_allclose(merge(found, torch.tensor(weights)).softmax(1).numpy(), arithmetic, rtol=1e-10)
    got = merge(found, torch.tensor(weights), mean="logits").softmax(1).numpy()
    np.testing.assert_allclose(got, geometric, rtol=1e-10)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_one_teacher_and_equal_teachers_merge_into_themselves(mean):
    one = logits(4, 3)
    for count in (1, 3):
        merged = merge([one] * count, torch.full((count,), 1 / count), mean=mean)
        torch.testing.assert_close(merged.softmax(1), one.softmax(1))


def test_a_weight_of_zero_leaves_a_teacher_out():
    one, other = logits(4, 3), logits(4, 3, seed=1)
    merged = merge([one, other], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(merged.softmax(1), one.softmax(1))


def test_confidence_by_entropy_and_by_label():
    sure, vague = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    weights = confidence_weights([sure, vague])
    torch.testing.assert_close(weights.sum(0), torch.ones(1))
    assert weights[0] > 0.7
    # The label says that the sure one is wrong.
    by_label = confidence_weights([sure, vague], torch.tensor([1]))
    assert by_label[0] < 0.01
    # The paper's formula by hand for three teachers.
    found, targets = [logits(2, 3, seed=seed) for seed in range(3)], torch.tensor([0, 2])
    losses = np.stack([-np.log(softmax(one.numpy())[[0, 1], [0, 2]]) for one in found])
    expected = (1 - np.exp(losses) / np.exp(losses).sum(0)) / 2
    np.testing.assert_allclose(confidence_weights(found, targets).numpy(), expected, rtol=1e-10)
    soft = torch.nn.functional.one_hot(targets, 3).double()
    torch.testing.assert_close(confidence_weights(found, soft), confidence_weights(found, targets))
    assert confidence_weights([sure]).tolist() == [[1.0]]


def test_teachers_of_some_classes_are_united_at_the_minimum_of_the_divergences():
    known = [torch.tensor([0, 1]), torch.tensor([1, 2, 3]), torch.tensor([3, 0])]
    found = [logits(2, len(classes), seed=seed) for seed, classes in enumerate(known)]
    weights = torch.tensor([0.5, 0.3, 0.2])
    united = unite(found, known, weights, num_classes=4).exp().numpy()

    for row in range(2):

        def objective(free, row=row):
            q = softmax(np.append(free, 0.0))
            total = 0.0
            for one, classes, weight in zip(found, known, weights, strict=True):
                p, part = softmax(one.numpy()[row]), q[classes.numpy()]
                total += float(weight) * (p * np.log(p / (part / part.sum()))).sum()
            return total

        best = scipy.optimize.minimize(objective, np.zeros(3), tol=1e-14)
        np.testing.assert_allclose(united[row], softmax(np.append(best.x, 0.0)), atol=1e-4)


def test_a_consistent_distribution_is_found_again_from_its_restrictions():
    truth = logits(6, 5)
    known = [torch.tensor([0, 1, 2]), torch.tensor([4, 3, 2])]
    united = unite([truth[:, classes] for classes in known], known, torch.tensor([0.5, 0.5]), num_classes=5)
    torch.testing.assert_close(united.softmax(1), truth.softmax(1), atol=1e-5, rtol=1e-4)


def test_teachers_of_some_classes_may_be_weighted_by_confidence():
    """They answer with different numbers of classes."""
    sure, vague = Constant([9.0, 0.0]), Constant([0.1, 0.0, 0.0])
    options = {"known": [[0, 1], [1, 2, 3]], "num_classes": 4}
    by_confidence = answer(MergedTeacher([sure, vague], weighting="confidence", **options))
    entropies = [scipy.stats.entropy(softmax(np.array(one))) for one in ([9.0, 0.0], [0.1, 0.0, 0.0])]
    weights = np.exp(-np.array(entropies)).tolist()
    fixed = answer(MergedTeacher([sure, vague], weights=weights, **options))
    torch.testing.assert_close(by_confidence, fixed, rtol=1e-4, atol=1e-4)


def test_classes_that_nobody_knows_or_that_never_meet_are_refused():
    two = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    with pytest.raises(UsageError, match="never meet"):
        unite([logits(1, 2)] * 2, two, torch.ones(2) / 2, num_classes=4)
    with pytest.raises(UsageError, match=r"No teacher knows the classes \[3\]"):
        unite([logits(1, 2)] * 2, [torch.tensor([0, 1]), torch.tensor([1, 2])], torch.ones(2) / 2, num_classes=4)


def test_attention_learns_which_teacher_is_right_where():
    """One teacher is right on even classes, the other on odd ones; elsewhere each says what it always says."""
    random = np.random.default_rng(0)
    targets = torch.from_numpy(random.integers(0, 4, 400))
    right = 4.0 * torch.nn.functional.one_hot(targets, 4).double()
    lost = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(400, 4)
    even, odd = targets % 2 == 0, targets % 2 == 1
    members = [torch.where(even[:, None], right, lost), torch.where(odd[:, None], right, lost)]
    gate = fit_attention(members, targets)
    weights = attention_weights(members, gate)
    torch.testing.assert_close(weights.sum(0), torch.ones(400, dtype=torch.float64))
    assert weights[0, even].mean() > 0.8
    assert weights[1, odd].mean() > 0.8
    equal = merge(members, torch.ones(2) / 2)
    learned = merge(members, weights)
    nll = torch.nn.functional.nll_loss
    assert nll(learned.log_softmax(1), targets) < nll(equal.log_softmax(1), targets) - 0.2


class Constant(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.register_buffer("answer", torch.tensor(answer))

    def forward(self, inputs):
        return self.answer.expand(len(inputs), -1)


def live(merged):
    return merged.teaching(Reads(outputs=["member2.logits"]))


def answer(merged, count=2):
    ids = torch.arange(count)
    return merged.teaching()(Batch(ids, torch.zeros_like(ids), torch.zeros(count, 3)))["logits"]


def batch(targets):
    ids = torch.arange(2)
    return Batch(ids, torch.zeros_like(ids), torch.zeros(2, 3), targets)


def test_labels_weigh_while_teaching_and_never_while_measuring():
    merged = MergedTeacher([Constant([4.0, 0.0]), Constant([0.0, 1.0])], weighting="confidence")
    teacher = live(merged)
    assert teacher.facts.signals == {"logits", "member2.logits"}
    taught = teacher(batch(torch.tensor([1, 1])))
    measured = teacher(batch(None))
    assert taught["logits"].argmax(1).tolist() == [1, 1]
    assert measured["logits"].argmax(1).tolist() == [0, 0]
    torch.testing.assert_close(answer(merged), measured["logits"])
    torch.testing.assert_close(measured["member2.logits"], torch.tensor([[0.0, 1.0]] * 2))


def test_what_merges_is_part_of_the_fingerprint():
    members = [Constant([4.0, 0.0]), Constant([0.0, 1.0])]
    prints = {
        live(MergedTeacher(members, **options)).fingerprint
        for options in ({}, {"weights": [1, 2]}, {"mean": "logits"}, {"weighting": "confidence"})
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "median"}, "Unknown way"),
        ({"weights": [1.0]}, "one number of at least 0 for each"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [1.0, 1.0], "weighting": "confidence"}, "makes its own"),
        ({"known": [[0, 1], [1, 2]], "num_classes": 3, "mean": "logits"}, "merged by probabilities"),
        ({"known": [[0, 0], [1, 2]], "num_classes": 3}, "must be different numbers"),
        ({"weighting": "confidence", "regression": True}, "fixed weights"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MergedTeacher([Constant([4.0, 0.0]), Constant([0.0, 1.0])], **options)


def test_attention_must_be_learned_first():
    merged = MergedTeacher([Constant([4.0, 0.0])], weighting="attention")
    with pytest.raises(UsageError, match=r"call fit\(\)"):
        answer(merged)


def test_values_are_averaged():
    merged = MergedTeacher([Constant([4.0]), Constant([1.0])], weights=[1.0, 2.0], regression=True)
    assert answer(merged).tolist() == [[2.0], [2.0]]
