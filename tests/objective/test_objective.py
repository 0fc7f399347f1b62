"""Terms, objectives, presets, checks and the search for losses."""

from __future__ import annotations

import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch

from potstill import losses
from potstill.core.errors import DataError, TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.losses.transforms import standardize_logits
from potstill.objective import (
    Objective,
    Schedule,
    Shared,
    Term,
    apply_heads,
    check,
    find_loss,
    first_bad,
    heads_for,
    over_batch,
    preset,
)

ROOT = Path(__file__).parents[2]


def make_batch(targets, size=4):
    return Batch(torch.arange(size), torch.zeros(size, dtype=torch.int64), torch.zeros(size, 2), targets)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# terms


def test_a_term_knows_where_it_reads():
    term = Term(losses.forward_kl, 0.5, temperature=4.0)
    assert (term.name, term.weight, term.kind) == ("forward_kl", 0.5, "logits")
    assert (term.student, term.teacher) == ("logits", "logits")
    assert not term.needs_targets
    assert term.options == {"temperature": 4.0}
    hard = Term(losses.cross_entropy)
    assert hard.teacher is None
    assert hard.needs_targets
    hidden = Term(losses.hint_mse, on="mid", teacher="layer4.1")
    assert (hidden.student, hidden.teacher, hidden.name) == ("mid", "layer4.1", "hint_mse:mid->layer4.1")
    assert "." not in hidden.key
    with pytest.raises(AttributeError):
        term.weight = 2.0


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "much", None, True])
def test_weights_must_be_finite_and_not_negative(weight):
    with pytest.raises(UsageError, match=r"forward_kl: weight=.*finite number of at least 0"):
        Term(losses.forward_kl, weight)
    scheduled = Term(losses.forward_kl, lambda progress: weight)
    with pytest.raises(UsageError, match="finite number"):
        scheduled.weight_at(0.5)


def test_unknown_options_are_refused_with_a_suggestion():
    with pytest.raises(UsageError, match=r"'temprature'. Did you mean 'temperature'\?"):
        Term(losses.forward_kl, temprature=4.0)
    with pytest.raises(UsageError, match="unknown option 'student_logits'"):
        Term(losses.forward_kl, student_logits=1)
    with pytest.raises(UsageError, match="no teacher_"):
        Term(losses.cross_entropy, teacher="logits")


def test_missing_options_are_refused():
    def bent(student_values, targets, *, knee):
        return (student_values - targets).abs().sum(1) * knee

    with pytest.raises(UsageError, match="needs the option 'knee'"):
        Term(bent)
    assert Term(bent, knee=2.0).options == {"knee": 2.0}


def wrong_order(teacher_logits, student_logits): ...
def no_student(logits, targets): ...
def loose_option(student_logits, targets, temperature): ...
def two_students(student_logits, student_hidden): ...
def two_words(student_logits, teacher_hidden): ...
def targets_first(student_logits, targets, teacher_logits): ...
def stars(student_logits, *rest): ...
def only_positional(student_logits, /, targets): ...
def nothing(): ...


@pytest.mark.parametrize(
    "loss",
    [
        wrong_order, no_student, loose_option, two_students, two_words, targets_first, stars, only_positional, nothing,
        "forward_kl",
    ],
)  # fmt: skip
def test_losses_that_break_the_naming_rule_are_refused(loss):
    with pytest.raises(UsageError, match="A loss is written loss"):
        Term(loss)


def test_a_loss_with_teacher_and_targets_and_open_options():
    def both(student_logits, teacher_logits, targets, **options):
        assert options == {"strength": 3}
        return (student_logits - teacher_logits).sum(1) + targets

    term = Term(both, strength=3)
    student, teacher = normal(4, 3), normal(4, 3, seed=1)
    targets = torch.tensor([0, 1, 2, 3])
    got = Objective([term])({"logits": student}, {"logits": teacher}, make_batch(targets))
    assert got.total.item() == pytest.approx((student - teacher).sum().item() + 6, rel=1e-5)


# objectives


def test_total_is_the_weighted_sum_over_samples():
    student, teacher, targets = normal(4, 5), normal(4, 5, seed=1), torch.tensor([4, 0, 1, 1])
    q, p = (scipy.special.log_softmax(x.double().numpy() / 3, axis=1) for x in (student, teacher))
    soft = 9 * (np.exp(p) * (p - q)).sum()
    hard = -scipy.special.log_softmax(student.double().numpy(), axis=1)[range(4), targets].sum()
    objective = Objective([Term(losses.cross_entropy, 0.25), Term(losses.forward_kl, 2.0, temperature=3.0)])
    student.requires_grad_()
    loss = objective({"logits": student}, {"logits": teacher}, make_batch(targets))
    assert loss.total.item() == pytest.approx(0.25 * hard + 2 * soft, rel=1e-5)
    assert {key: part.item() for key, part in loss.parts.items()} == {
        "cross_entropy": pytest.approx(0.25 * hard, rel=1e-5), "forward_kl": pytest.approx(2 * soft, rel=1e-5),
    }  # fmt: skip
    assert loss.total.shape == ()
    assert loss.total.requires_grad
    assert not any(part.requires_grad for part in loss.parts.values())


def test_splitting_a_batch_changes_neither_sum_nor_gradient():
    student, teacher, targets = normal(6, 5), normal(6, 5, seed=1), torch.arange(6) % 5
    student.requires_grad_()
    objective, batch = preset("kd", "classification"), make_batch(targets, 6)
    whole = objective({"logits": student}, {"logits": teacher}, batch).total
    pieces = [
        objective({"logits": student[a:b]}, {"logits": teacher[a:b]}, batch.narrow(a, b)).total
        for a, b in ((0, 1), (1, 4), (4, 6))
    ]
    torch.testing.assert_close(sum(pieces), whole)
    (expected,) = torch.autograd.grad(whole, student)
    (got,) = torch.autograd.grad(sum(pieces), student)
    torch.testing.assert_close(got, expected)


def test_weights_follow_the_progress():
    objective = Objective([Term(losses.mse, lambda progress: 1 - progress), Term(losses.teacher_mse, 1.0)])
    signals = {"logits": torch.ones(2, 1)}
    batch = make_batch(torch.zeros(2), 2)
    at = {p: objective(signals, signals, batch, progress=p).total.item() for p in (0.0, 0.25, 1.0)}
    assert at == {0.0: 2.0, 0.25: 1.5, 1.0: 0.0}


def test_options_follow_the_progress():
    cooling = Schedule("linear", 4.0, 1.0, until=0.5)
    objective = Objective([Term(losses.forward_kl, temperature=cooling)])
    student, teacher, batch = {"logits": normal(3, 4)}, {"logits": normal(3, 4, seed=1)}, make_batch(None, 3)
    for progress, temperature in ((0.0, 4.0), (0.25, 2.5), (0.5, 1.0), (1.0, 1.0)):
        expected = losses.forward_kl(student["logits"], teacher["logits"], temperature=temperature).sum()
        assert objective(student, teacher, batch, progress=progress).total.item() == pytest.approx(expected.item())
    assert objective.describe() == ["1.0 x forward_kl(temperature=linear(4 to 1, 0 to 0.5 of training)) on logits"]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule("linear", 0.0, 8.0, until=1 / 12), {0.0: 0.0, 1 / 24: 4.0, 1 / 12: 8.0, 1.0: 8.0}),
        (Schedule("linear", 2.0, 0.0, since=0.5, until=1.0), {0.0: 2.0, 0.5: 2.0, 0.75: 1.0, 1.0: 0.0}),
        (Schedule("cosine", 0.0, 1.0), {0.0: 0.0, 0.25: 0.5 - 0.5 * math.cos(math.pi / 4), 0.5: 0.5, 1.0: 1.0}),
        (Schedule("linear", 1.0, 0.0, since=0.5, until=0.5), {0.0: 1.0, 0.49: 1.0, 0.5: 0.0, 1.0: 0.0}),
        (Schedule("linear", 1.0, 3.0, since=0.0, until=0.0), {0.0: 3.0, 1.0: 3.0}),
    ],
)
def test_schedules_move_and_stay(schedule, values):
    assert {progress: schedule(progress) for progress in values} == pytest.approx(values)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("liner", 0.0, 1.0), "Did you mean 'linear'"),
        (("linear", math.nan, 1.0), "finite"),
        (("linear", 0.0, 1.0, 0.5, 0.25), "since=0.5 until=0.25"),
        (("linear", 0.0, 1.0, 0.0, 1.5), "0 <= since <= until <= 1"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, match):
    with pytest.raises(UsageError, match=match):
        Schedule(*arguments)


# several signals, own signals, transforms, heads


def test_a_term_may_read_several_signals():
    def both(student_maps, teacher_maps):
        return sum((s - t).square().mean(1) for s, t in zip(student_maps, teacher_maps, strict=True))

    both.__qualname__ = "both"
    term = Term(both, student=("a", "b"), teacher=["c", "d"])
    assert (term.student, term.teacher, term.name) == (("a", "b"), ("c", "d"), "both:a+b->c+d")
    assert term.student_signals == {"a", "b"}
    assert term.teacher_signals == {"c", "d"}
    student = {"a": normal(4, 2), "b": normal(4, 3)}
    teacher = {"c": normal(4, 2, seed=1), "d": normal(4, 3, seed=1)}
    got = Objective([term])(student, teacher, make_batch(None)).total
    expected = sum(((student[s] - teacher[t]) ** 2).mean(1).sum().item() for s, t in (("a", "c"), ("b", "d")))
    assert got.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="list of names"):
        Term(both, on=[])


def test_a_term_may_learn_from_the_students_own_signal():
    term = Term(losses.forward_kl, student="early", teacher="student.logits")
    objective = Objective([Term(losses.cross_entropy), term])
    assert objective.student_signals == {"early", "logits"}
    assert not objective.needs_teacher
    early, last = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    Objective([term])({"early": early, "logits": last}, None, make_batch(None)).total.backward()
    assert early.grad.abs().max() > 0
    assert last.grad is None
    check(objective, {"early": (3,), "logits": (3,)}, None, 3, "classification")


def test_a_transform_is_applied_to_both_sides():
    student, teacher = normal(4, 3), normal(4, 3, seed=1)
    plain = Objective([Term(losses.logit_mse)])({"logits": 2 * student}, {"logits": 2 * teacher}, make_batch(None))
    doubled = Objective([Term(losses.logit_mse, transform=lambda x: 2 * x)])
    got = doubled({"logits": student}, {"logits": teacher}, make_batch(None))
    assert got.total.item() == pytest.approx(plain.total.item())
    scaled = Objective([Term(losses.forward_kl, transform=standardize_logits)])
    assert scaled({"logits": 3 * teacher + 1}, {"logits": teacher}, make_batch(None)).total.item() == pytest.approx(
        0.0, abs=1e-5
    )
    with pytest.raises(UsageError, match="Term forward_kl: standardize_logits got 2 classes"):
        check(scaled, {"logits": (2,)}, {"logits": (2,)}, 2, "classification")


def test_what_a_head_prepares_takes_the_place_of_signals_and_options():
    class Doubled(torch.nn.Module):
        def forward(self, student, teacher, ids):
            return {"student_hidden": 2 * student, "normalize": False}

    term = Term(losses.hint_mse, on="mid", head=lambda probe: Doubled(), normalize=True)
    signals = {"mid": normal(4, 3)}
    heads = heads_for([term], signals, signals, ids=torch.arange(4))
    prepared = apply_heads(heads, [term], signals, signals, torch.arange(4))
    got = Objective([term])(signals, signals, make_batch(None), arguments=prepared)
    assert got.total.item() == pytest.approx(signals["mid"].square().mean(1).sum().item())
    with pytest.raises(UsageError, match="must return a torch module"):
        heads_for([Term(losses.hint_mse, on="mid", head=lambda probe: None)], signals, signals, ids=torch.arange(4))
    with pytest.raises(UsageError, match="the term has no head"):
        Term(losses.hint_mse, head_options={"width": 3})


def test_only_signals_and_targets_are_put_together_from_all_processes():
    """A head's constant may have as many rows as this process has samples: it is still no part of the batch."""
    seen = {}

    def related(student_hidden, teacher_hidden, *, centres):
        seen.update(student=student_hidden, teacher=teacher_hidden, centres=centres)
        return student_hidden.sum(1)

    related = over_batch(related)
    term = Term(related, on="mid", centres=None)
    signals, centres = {"mid": normal(4, 3)}, normal(4, 3, seed=2)
    shared = Shared(lambda rows: torch.cat([rows, 2 * rows]), slice(0, 4))
    arguments = {term.key: {"centres": centres}}
    Objective([term])(signals, signals, make_batch(None), arguments=arguments, shared=shared)
    assert seen["centres"] is centres
    assert torch.equal(seen["student"], torch.cat([signals["mid"], 2 * signals["mid"]]))
    assert len(seen["teacher"]) == 8


def test_weight_zero_and_a_tiny_weight_agree():
    """A term of weight 0 must not switch another term to another formula."""
    student, teacher, targets = normal(4, 5).requires_grad_(), normal(4, 5, seed=1), torch.arange(4)
    gradients = []
    for weight in (0.0, 1e-9):
        objective = Objective([Term(losses.cross_entropy, weight), Term(losses.forward_kl, 1.0, temperature=4.0)])
        total = objective({"logits": student}, {"logits": teacher}, make_batch(targets)).total
        gradients.append((total.item(), *torch.autograd.grad(total, student)))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_names_of_signals_that_are_needed():
    objective = Objective([
        Term(losses.cross_entropy),
        Term(losses.hint_mse, on="mid"),
        Term(losses.hint_mse, student="a", teacher="b"),
    ])  # fmt: skip
    assert objective.student_signals == {"logits", "mid", "a"}
    assert objective.teacher_signals == {"mid", "b"}
    assert objective.needs_teacher
    assert objective.needs_targets
    alone = Objective([Term(losses.cross_entropy)])
    assert alone.teacher_signals == frozenset()
    assert not alone.needs_teacher
    assert not Objective([Term(losses.forward_kl)]).needs_targets


def test_objectives_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="at least one term"):
        Objective([])
    with pytest.raises(UsageError, match="Two terms of the objective are called 'mse'"):
        Objective([Term(losses.mse), Term(losses.mse)])
    with pytest.raises(UsageError, match="nothing to learn"):
        Objective([Term(losses.mse, 0.0), Term(losses.huber, 0)])
    assert len(Objective([Term(losses.mse), Term(losses.mse, name="again")]).terms) == 2


def test_absent_signals_and_targets_are_named():
    objective = preset("kd", "classification")
    logits = {"logits": torch.zeros(2, 3)}
    with pytest.raises(UsageError, match=r"student's signal 'logits'.*Did you mean 'logit'"):
        objective({"logit": torch.zeros(2, 3)}, logits, make_batch(torch.zeros(2).long(), 2))
    with pytest.raises(UsageError, match="forward_kl reads the teacher's signal 'logits'"):
        objective(logits, None, make_batch(torch.zeros(2).long(), 2))
    with pytest.raises(DataError, match="label_free"):
        objective(logits, logits, make_batch(None, 2))


@pytest.mark.parametrize("reduce", [torch.mean, lambda x: x, lambda x: 1.0])
def test_losses_that_reduce_on_their_own_are_refused(reduce):
    def own(student_logits, targets):
        return reduce(student_logits)

    with pytest.raises(UsageError, match="one number per sample"):
        Objective([Term(own)])({"logits": torch.zeros(2, 3)}, None, make_batch(torch.zeros(2), 2))


def test_the_first_bad_part_is_named():
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    assert first_bad({"a": good, "b": good}) is None
    assert first_bad({"a": good, "b": bad, "c": torch.tensor(math.inf)}) == "b"
    assert first_bad({"a": torch.tensor(math.inf), "b": bad.half()}) == "a"
    assert first_bad({}) is None


# presets


@pytest.mark.parametrize("name", ["auto", "kd"])
def test_the_default_is_classic_distillation(name):
    hard, soft = preset(name, "classification").terms
    assert (hard.loss, hard.weight, soft.loss, soft.weight) == (losses.cross_entropy, 0.1, losses.forward_kl, 0.9)
    assert soft.options == {"temperature": 4.0}
    hard, soft = preset(name, "regression").terms
    assert (hard.loss, hard.weight, soft.loss, soft.weight) == (losses.mse, 0.5, losses.teacher_mse, 0.5)


def test_the_other_presets():
    for task, hard, soft in (
        ("classification", losses.cross_entropy, losses.forward_kl), ("regression", losses.mse, losses.teacher_mse),
    ):  # fmt: skip
        assert [(term.loss, term.weight) for term in preset("alone", task).terms] == [(hard, 1.0)]
        assert not preset("alone", task).needs_teacher
        assert [(term.loss, term.weight) for term in preset("label_free", task).terms] == [(soft, 1.0)]
        assert not preset("label_free", task).needs_targets
        assert [term.loss for term in preset("hidden", task).terms] == [hard, soft, losses.hint_mse]
        assert preset("hidden", task).student_signals == {"logits", "hidden"}


def test_unknown_presets_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'label_free'"):
        preset("labelfree", "classification")
    with pytest.raises(UsageError, match="Unknown task"):
        preset("kd", "ranking")


# checks before training

TEN = {"logits": (10,)}


def test_good_objectives_pass():
    for name in ("auto", "kd", "alone", "label_free"):
        check(preset(name, "classification"), TEN, TEN, 10, "classification")
        check(preset(name, "regression"), {"logits": (2,)}, {"logits": (2,)}, 2, "regression")
        check(preset(name, "regression"), {"logits": (1,)}, {"logits": ()}, 1, "regression")
    check(preset("alone", "classification"), TEN, None, 10, "classification")
    shapes = {"logits": (10,), "hidden": (8, 4, 4)}
    check(preset("hidden", "classification"), shapes, {**TEN, "hidden": (16, 2, 2)}, 10, "classification")


def passes(loss, shape, student, teacher):
    """Whether a check passes on signals of one shape, and what it says otherwise."""
    signals = dict.fromkeys(("logits", "more", "most"), shape)
    task = "regression" if Term(loss).kind == "values" else "classification"
    task = "multilabel" if loss is losses.binary_cross_entropy else task
    try:
        check(Objective([Term(loss, on=student, teacher=teacher)]), signals, signals, 10, task)
    except UsageError as error:
        return str(error)
    return ""


def test_every_loss_passes_for_its_task_on_signals_of_some_shape():
    shapes = [(10,), (4, 6, 6), (2, 5, 5), (5, 12)]
    two, three = ("logits", "more"), ("logits", "more", "most")
    reads = [("logits", None), (two, None), (three, None), ("logits", two)]
    assert len(losses.__all__) >= 40
    for name in losses.__all__:
        said = [passes(getattr(losses, name), shape, *where) for shape in shapes for where in reads]
        assert "" in said, "\n".join([name, *said])


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "classes", "task", "error", "match"),
    [
        (preset("kd", "classification"), TEN, None, 10, "classification", UsageError, "preset 'alone'"),
        (preset("kd", "classification"), {"logits": (9,)}, TEN, 10, "classification", UsageError, "num_classes=10"),
        (preset("kd", "classification"), TEN, {"logits": (100,)}, 10, "classification", TeacherError, "same classes"),
        (preset("kd", "classification"), TEN, {"embedding": (3,)}, 10, "classification", UsageError, "'logits'"),
        (preset("hidden", "classification"), TEN, TEN, 10, "classification", UsageError, "tap it under that name"),
        (preset("kd", "classification"), TEN, TEN, 10, "regression", UsageError, "Use mse instead"),
        (preset("label_free", "classification"), TEN, TEN, 10, "regression", UsageError, "Use teacher_mse instead"),
        (preset("kd", "regression"), TEN, TEN, 10, "classification", UsageError, "Use cross_entropy instead"),
        (preset("label_free", "regression"), TEN, TEN, 10, "classification", UsageError, "Use forward_kl instead"),
        (preset("kd", "classification"), {"logits": (1,)}, {"logits": (1,)}, 1, "classification", UsageError,
         "two outputs"),
        (Objective([Term(losses.forward_kl, temperature=-1.0)]), TEN, TEN, 10, "classification", UsageError,
         "Term forward_kl: temperature=-1.0"),
        (Objective([Term(losses.forward_kl, temperature="hot")]), TEN, TEN, 10, "classification", UsageError,
         "Term forward_kl: the loss failed"),
        (Objective([Term(losses.hint_mse)]), {"logits": (4,)}, {"logits": (5, 8)}, 10, "classification", UsageError,
         "no adapter"),
        (Objective([Term(losses.review, on=("a", "b"))]), {"a": (2, 4, 4), "b": (2,)}, {"a": (2, 4, 4)}, 10,
         "classification", UsageError, "teacher's signal 'b'"),
        (Objective([Term(losses.review, on="a")]), {"a": (2, 4, 4)}, {"a": (2, 4, 4)}, 10, "classification", UsageError,
         "give the term a list"),
        (Objective([Term(losses.forward_kl, teacher="student.early")]), TEN, None, 10, "classification", UsageError,
         "student's signal 'early'"),
        (Objective([Term(losses.decoupled_kd)]), {"logits": (2,)}, {"logits": (2,)}, 2, "classification", UsageError,
         "forward_kl"),
        (Objective([Term(losses.overhaul, head_options={"margn": 1}, on="a")]), {"a": (2, 4, 4)}, {"a": (2, 4, 4)}, 10,
         "classification", UsageError, "Check head_options"),
        (preset("kd", "classification"), TEN, TEN, 10, "ranking", UsageError, "Unknown task"),
    ],
)  # fmt: skip
def test_impossible_objectives_are_refused(objective, student, teacher, classes, task, error, match):
    with pytest.raises(error, match=match):
        check(objective, student, teacher, classes, task)


# losses by name


def test_losses_are_found_by_name():
    for name in losses.__all__:
        assert find_loss(name) is getattr(losses, name)
    assert find_loss("potstill.losses:jsd") is losses.jsd
    with pytest.raises(UsageError, match=r"'forward_lk'. Did you mean 'forward_kl'"):
        find_loss("forward_lk")
    with pytest.raises(UsageError, match="Unknown loss '_shared'"):
        find_loss("_shared")


def test_a_loss_added_to_the_package_is_found(monkeypatch):
    def margin(student_logits, targets):
        return student_logits.sum(1)

    monkeypatch.setattr(losses, "margin", margin, raising=False)
    monkeypatch.setattr(losses, "__all__", [*losses.__all__, "margin"])
    assert find_loss("margin") is margin


def test_losses_of_the_user(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Setting:
            width: float = 1.0

        def margin(student_logits, targets, *, width=1.0):
            return width * student_logits.sum(1)
        """)
    )
    margin = find_loss("mine.py:margin", tmp_path)
    assert Term(margin, width=2.0).name == "margin"
    assert margin(torch.ones(2, 3), None, width=2.0).tolist() == [6.0, 6.0]
    with pytest.raises(UsageError, match="Did you mean 'margin'"):
        find_loss("mine.py:margn", tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        find_loss("absent.py:margin", tmp_path)
    (tmp_path / "broken.py").write_text("import no_such_package_at_all")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        find_loss("broken.py:margin", tmp_path)
    with pytest.raises(UsageError, match="Importing 'no_such_package_at_all' failed"):
        find_loss("no_such_package_at_all:margin")


# shipped text


@pytest.mark.parametrize("page", ["losses", "objective", "presets"])
def test_code_on_the_pages_runs(page):
    text = (ROOT / f"docs/methods/{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    if page == "objective":
        check(names["mine"], TEN, TEN, 10, "classification")


def test_terms_describe_themselves_without_addresses():
    described = preset("kd", "classification").describe()
    assert described == ["0.1 x cross_entropy on logits", "0.9 x forward_kl(temperature=4.0) on logits"]
    assert described == preset("kd", "classification").describe()
    hidden = Term(losses.hint_mse, lambda progress: progress, student="a", teacher="b", normalize=True)
    assert hidden.describe() == (
        "test_terms_describe_themselves_without_addresses.<locals>.<lambda> x hint_mse(normalize=True) on a -> b"
    )
