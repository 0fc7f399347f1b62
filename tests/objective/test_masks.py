"""What counts for a term: labelled positions for hard terms, existing ones for soft terms, each divided by its own."""

from __future__ import annotations

import math

import pytest
import torch

from potstill import losses
from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.losses.transforms import standardize_logits
from potstill.objective import Objective, Shared, Term, factors_of, over_batch

SIZE = 8
WHERE = torch.tensor([True, True, False, True, True, True, False, True])
LABELLED = torch.tensor([True, False, False, True, False, False, False, True])
TARGETS = torch.tensor([0, -1, -1, 2, -1, -1, -1, 1])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(targets=TARGETS, where=WHERE, labelled=LABELLED) -> Batch:
    return Batch(
        torch.arange(len(targets)), torch.zeros(len(targets)), torch.zeros(len(targets), 1), targets, where, labelled
    )


def gap(student_logits, teacher_logits):
    """A loss of a user's, that knows of no mask and cannot read rubbish."""
    assert student_logits.isfinite().all()
    return (student_logits - teacher_logits).abs().sum(1)


def entropy_of_labels(student_logits, targets):
    return torch.nn.functional.cross_entropy(student_logits, targets, reduction="none")


TERMS = [
    Term(losses.cross_entropy, 0.3),
    Term(losses.forward_kl, 0.7, temperature=2.0),
    Term(losses.decoupled_kd, 0.2),
    Term(losses.dist, 0.4),
    Term(losses.hint_mse, 0.5, on="hidden"),
    Term(losses.similarity_preserving, 0.5, on="hidden"),
    Term(losses.reverse_kl, 0.1, transform=standardize_logits),
    Term(gap),
    Term(entropy_of_labels),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
@pytest.mark.parametrize("rubbish", [math.nan, 1e30])
def test_a_mask_in_the_batch_is_the_same_as_dropping_samples(term: Term, rubbish: float) -> None:
    student = {"logits": normal(SIZE, 3), "hidden": normal(SIZE, 5, seed=1)}
    teacher = {"logits": normal(SIZE, 3, seed=2), "hidden": normal(SIZE, 5, seed=3)}
    kept = LABELLED if term.needs_targets else WHERE
    few = Objective([term])(
        {name: signal[kept] for name, signal in student.items()},
        {name: signal[kept] for name, signal in teacher.items()},
        batch_of(TARGETS[kept], None, None),
    ).total / int(kept.sum())
    for side in (student, teacher):
        for signal in side.values():
            signal[~kept] = rubbish
    leaves = [signal.requires_grad_() for signal in student.values()]
    loss = Objective([term])(student, teacher, batch_of())
    torch.testing.assert_close(loss.total / SIZE, few)
    (found,) = (g for g in torch.autograd.grad(loss.total, leaves, allow_unused=True) if g is not None)
    assert found[~kept].eq(0).all()
    assert found[kept].isfinite().all()


def test_each_term_is_divided_by_its_own_count() -> None:
    student, teacher = normal(SIZE, 3), normal(SIZE, 3, seed=1)
    objective = Objective([Term(losses.cross_entropy, 0.25), Term(losses.forward_kl, 0.5)])
    assert objective.counts(batch_of()) == [3, 6]
    hard = losses.cross_entropy(student[LABELLED], TARGETS[LABELLED]).mean()
    soft = losses.forward_kl(student[WHERE], teacher[WHERE]).mean()
    loss = objective({"logits": student}, {"logits": teacher}, batch_of())
    torch.testing.assert_close(loss.total / SIZE, 0.25 * hard + 0.5 * soft)
    torch.testing.assert_close(loss.parts["cross_entropy"] / SIZE, 0.25 * hard)
    everything = objective({"logits": student}, {"logits": teacher}, batch_of(TARGETS.clamp(0), None, None))
    assert objective.counts(batch_of(where=None, labelled=None)) == [SIZE, SIZE]
    assert factors_of([SIZE, SIZE], SIZE) == [1.0, 1.0]
    torch.testing.assert_close(everything.total / SIZE, (
        0.25 * losses.cross_entropy(student, TARGETS.clamp(0)) + 0.5 * losses.forward_kl(student, teacher)
    ).mean())  # fmt: skip


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_batch_in_which_nothing_counts_gives_zero_with_a_valid_graph(term: Term) -> None:
    none = torch.zeros(SIZE, dtype=torch.bool)
    student = {"logits": normal(SIZE, 3).requires_grad_(), "hidden": normal(SIZE, 5).requires_grad_()}
    teacher = {"logits": normal(SIZE, 3, seed=1), "hidden": normal(SIZE, 5, seed=1)}
    loss = Objective([term])(student, teacher, batch_of(where=none, labelled=none))
    assert loss.total.item() == 0
    gradients = torch.autograd.grad(loss.total, list(student.values()), allow_unused=True)
    assert [g.abs().sum().item() for g in gradients if g is not None] == [0.0]


def test_nothing_counts_for_a_loss_of_single_values_that_knows_no_mask() -> None:
    def absolute(student_values, targets):
        return (student_values - targets).abs()

    student = normal(SIZE).requires_grad_()
    none = torch.zeros(SIZE, dtype=torch.bool)
    loss = Objective([Term(absolute)])({"logits": student}, None, batch_of(normal(SIZE), None, none))
    loss.total.backward()
    assert loss.total.item() == 0
    assert student.grad is not None
    assert student.grad.tolist() == [0.0] * SIZE


def test_without_labelled_hard_terms_count_what_exists() -> None:
    assert Objective([Term(losses.cross_entropy), Term(gap)]).counts(batch_of(labelled=None)) == [6, 6]


def test_positions_are_counted_not_samples_and_hidden_terms_count_samples_with_any() -> None:
    """Two samples of three tokens; the second has a single one, whose label is unknown."""
    where = torch.tensor([[True, True, True], [True, False, False]])
    labelled = torch.tensor([[True, False, True], [False, False, False]])
    student, teacher = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    targets = torch.randint(0, 4, (2, 3))
    objective = Objective(
        [Term(losses.cross_entropy), Term(losses.forward_kl), Term(gap), Term(losses.hint_mse, on="hidden")]
    )
    hidden = {"hidden": normal(2, 5)}, {"hidden": normal(2, 5, seed=1)}
    batch = batch_of(targets, where, labelled)
    assert objective.counts(batch) == [2, 4, 4, 2]
    loss = objective({"logits": student, **hidden[0]}, {"logits": teacher, **hidden[1]}, batch)
    expected = {
        "cross_entropy": losses.cross_entropy(student[labelled], targets[labelled]),
        "forward_kl": losses.forward_kl(student[where], teacher[where]),
        "gap": gap(student[where], teacher[where]),
        "hint_mse:hidden": losses.hint_mse(hidden[0]["hidden"], hidden[1]["hidden"]),
    }
    for name, values in expected.items():
        torch.testing.assert_close(loss.parts[name] / 2, values.mean())
    with pytest.raises(UsageError, match=r"shape \(2,\), and returned shape \(2, 3\)"):
        objective({"logits": student, **hidden[0]}, {"logits": teacher, **hidden[1]}, batch_of(targets, None, None))


def test_relations_over_processes_share_the_mask_too() -> None:
    """The other process holds the last four samples."""
    student, teacher = normal(SIZE, 5), normal(SIZE, 5, seed=1)

    @over_batch
    def own(student_hidden, teacher_hidden):
        return (torch.cdist(student_hidden, student_hidden) - torch.cdist(teacher_hidden, teacher_hidden)).sum(1)

    def all_rows(rows: torch.Tensor) -> torch.Tensor:
        for known in (student, teacher, WHERE, torch.arange(SIZE)):
            if known.dtype == rows.dtype and torch.equal(rows, known[:4]):
                return known
        raise AssertionError(rows)

    for term in (Term(losses.similarity_preserving, on="hidden"), Term(own, on="hidden")):
        expected = Objective([term])({"hidden": student}, {"hidden": teacher}, batch_of(labelled=None))
        loss = Objective([term])(
            {"hidden": student[:4]},
            {"hidden": teacher[:4]},
            batch_of(labelled=None).narrow(0, 4),
            shared=Shared(all_rows, slice(0, 4)),
            factors=factors_of([6], SIZE),
        )
        torch.testing.assert_close(loss.total, expected.total)
        assert 0 < loss.parts[term.name].abs() < expected.parts[term.name].abs()
