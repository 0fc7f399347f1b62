"""The heads of the losses on hidden layers: what they prepare, what they learn, what they keep."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from potstill import losses
from potstill.core import random
from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.objective import Objective, Probe, Term, apply_heads, check, heads_for
from potstill.objective.heads import HEADS, counter, factor, fusion, generation, overhaul, variational

IDS = torch.arange(100, 108)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probe(student, teacher, seed=0):
    made = [
        tuple(normal(8, *one, seed=i + 5 * j) for i, one in enumerate(shape)) if isinstance(shape[0], tuple)
        else normal(8, *shape, seed=5 * j)
        for j, shape in enumerate((student, teacher))
    ]  # fmt: skip
    return Probe(*made, ids=IDS, seed=seed)


# loss, its head, one sample of the student's, one of the teacher's
CASES = [
    (losses.variational_information, variational, (3, 6, 6), (5, 6, 6)),
    (losses.variational_information, variational, (3, 6, 6), (5, 3, 3)),
    (losses.variational_information, variational, (3, 4, 4), (5, 8, 4)),
    (losses.variational_information, variational, (7, 3), (7, 5)),
    (losses.variational_information, variational, (3,), (5,)),
    (losses.overhaul, overhaul, (3, 6, 6), (5, 6, 6)),
    (losses.overhaul, overhaul, (3, 6, 6), (5, 3, 3)),
    (losses.overhaul, overhaul, (3,), (5,)),
    (losses.factor_transfer, partial(factor, epochs=1), (3, 6, 6), (5, 6, 6)),
    (losses.factor_transfer, partial(factor, epochs=1), (3, 3, 3), (5, 6, 6)),
    (losses.review, fusion, ((2, 8, 8), (3, 4, 4), (4,)), ((5, 8, 8), (6, 4, 4), (7,))),
    (losses.review, fusion, ((2, 8, 8), (3, 4, 4)), ((5, 4, 4), (6, 6, 2))),
    (losses.masked_generative, generation, (3, 6, 6), (5, 6, 6)),
    (losses.masked_generative, partial(generation, hide="channels"), (5, 6, 6), (5, 3, 3)),
]
cases = pytest.mark.parametrize(("loss", "builder", "student", "teacher"), CASES)


def names(shape):
    return [f"layer{i}" for i in range(len(shape))] if isinstance(shape[0], tuple) else "layer"


def signals(value):
    return {f"layer{i}": one for i, one in enumerate(value)} if isinstance(value, tuple) else {"layer": value}


def test_every_loss_that_needs_a_head_has_one():
    assert set(HEADS) >= {case[0] for case in CASES}
    assert len({loss for loss, *_ in CASES}) == 5


@cases
@pytest.mark.parametrize("autocast", [False, True])
def test_a_term_builds_its_head_and_learns_with_it(loss, builder, student, teacher, autocast):
    given = probe(student, teacher)
    default = builder in HEADS.values()
    term = Term(loss, on=names(student), head=None if default else builder)
    taught, ours = signals(given.teacher), {name: x.requires_grad_() for name, x in signals(given.student).items()}
    heads = heads_for([term], ours, taught, ids=IDS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        objective = Objective([term])
        prepared = apply_heads(heads, [term], ours, taught, IDS)
        batch = Batch(IDS, IDS, IDS)
        value = objective(ours, taught, batch, arguments=prepared).total
    assert value.dtype == torch.float32
    value.backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in ours.values())
    assert all(x.grad is None for x in taught.values())
    for name, parameter in heads.named_parameters():
        assert (parameter.grad is not None) == ("paraphraser" not in name), name
        assert parameter.requires_grad == ("paraphraser" not in name), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


@cases
def test_the_check_before_training_passes(loss, builder, student, teacher):
    shapes = [dict(zip(["layer0", "layer1", "layer2"], x, strict=False)) if isinstance(x[0], tuple) else {"layer": x}
              for x in (student, teacher)]  # fmt: skip
    check(Objective([Term(loss, on=names(student), head=builder)]), *shapes, 10, "classification")


@cases
def test_weights_come_from_the_seed_and_survive_a_checkpoint(loss, builder, student, teacher):
    given = probe(student, teacher)
    term = Term(loss, on=names(student), head=builder)
    build = partial(heads_for, [term], signals(given.student), signals(given.teacher), ids=IDS)
    before = torch.random.get_rng_state()
    first, same, other = (build(seed=seed)[term.key].eval() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    out = [flat(head(given.student, given.teacher, IDS)) for head in (first, same, other)]
    assert torch.equal(out[0], out[1])
    assert not torch.allclose(out[0], out[2])
    other.load_state_dict(first.state_dict())
    assert torch.equal(flat(other(given.student, given.teacher, IDS)), out[0])


def flat(arguments):
    (found,) = (value for name, value in arguments.items() if name.startswith("student_"))
    return torch.cat([x.flatten() for x in found]) if isinstance(found, tuple) else found.flatten()


@cases
def test_samples_do_not_mix_in_eval_mode(loss, builder, student, teacher):
    given = probe(student, teacher)
    head = builder(given).eval()

    def rows(value, index):
        return tuple(x[index] for x in value) if isinstance(value, tuple) else value[index]

    def made(index):
        found = head(rows(given.student, index), rows(given.teacher, index), IDS[index])
        (out,) = (value for name, value in found.items() if name.startswith("student_"))
        return out if isinstance(out, tuple) else (out,)

    whole = made(slice(0, 8))
    parts = [made(slice(0, 3)), made(slice(3, 8))]
    for level, together in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[level] for part in parts]), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("builder", [variational, overhaul, factor, fusion, generation], ids=lambda f: f.__name__)
def test_signals_that_do_not_go_together_are_refused(builder):
    for student, teacher in (((3, 4, 4), (5,)), ((6, 3), (5, 3, 3)), ((3,), (4, 3)), ((2, 3, 4, 4), (2, 3, 4, 4))):
        with pytest.raises(UsageError, match="head"):
            builder(probe(student, teacher))
    with pytest.raises(UsageError, match="head"):
        builder(Probe(normal(8, 3, 4, 4), None, ids=IDS, seed=0))
    with pytest.raises(UsageError, match="head"):
        builder(Probe((normal(8, 3, 4, 4),), normal(8, 3, 4, 4), ids=IDS, seed=0))


# single heads


@pytest.mark.parametrize("start", [0.5, 5.0])
def test_the_variance_starts_where_it_is_told_to(start):
    made = variational(probe((3, 6, 6), (5, 6, 6)), variance=start)(normal(4, 3, 6, 6), normal(4, 5, 6, 6), IDS[:4])
    torch.testing.assert_close(made["variance"], torch.full((5, 1, 1), start))
    with pytest.raises(UsageError, match="variance"):
        variational(probe((3,), (5,)), variance=0.0)


def test_the_variance_learns_how_far_off_the_prediction_is():
    """Half of the teacher's channels can be told from the student, the others are noise of variance 4."""
    student = normal(256, 3)
    teacher = torch.cat([student @ normal(3, 8, seed=2), 2 * normal(256, 8, seed=1)], 1)
    torch.manual_seed(0)
    head = variational(Probe(student, teacher, ids=IDS, seed=0))
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(300):
        made = head(student, teacher, IDS)
        optimiser.zero_grad()
        losses.variational_information(**made).mean().backward()
        optimiser.step()
    variance = made["variance"]
    assert variance[:8].max() < 1
    assert variance[8:].min() > 2
    assert variance[8:].max() < 6


def test_margins_are_the_means_of_negative_responses():
    teacher = normal(8, 5, 6, 6, seed=3)
    teacher[:, 2] = teacher[:, 2].relu()
    made = overhaul(Probe(normal(8, 3, 6, 6), teacher, ids=IDS, seed=0)).margin
    assert made.shape == (5, 1, 1)
    for channel, margin in enumerate(made.flatten().tolist()):
        values = teacher[:, channel].numpy()
        expected = 0.0 if channel == 2 else values[values < 0].mean()
        assert margin == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="tokens"):
        overhaul(probe((7, 3), (7, 5)))


def test_the_paraphraser_learns_the_teachers_maps():
    """Maps of two hidden numbers a pixel: codes of half the channels can hold them once the paraphraser is fitted."""
    mixed = torch.einsum("bkhw,ck->bchw", normal(64, 2, 6, 6), normal(8, 2, seed=1))
    given = Probe(normal(64, 3, 6, 6), 50 * mixed, ids=IDS, seed=0)

    def unexplained(epochs):
        torch.manual_seed(0)
        head = factor(given, epochs=epochs)
        codes = head(given.student, given.teacher, IDS)["teacher_factors"]
        assert codes.shape == (64, 4, 6, 6)
        x = F.unfold(codes, 3, padding=1).transpose(1, 2).reshape(-1, 36)
        x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        y = mixed.movedim(1, -1).reshape(-1, 8).double()
        left = y - x @ torch.linalg.lstsq(x, y).solution
        return (left.square().sum() / y.square().sum()).item()

    assert unexplained(60) < 0.5 * unexplained(0)


def test_factors_do_not_depend_on_the_unit_of_the_teacher():
    given = probe((3, 6, 6), (5, 6, 6))
    made = []
    for unit in (1.0, 1000.0):
        torch.manual_seed(0)
        head = factor(Probe(given.student, unit * given.teacher, ids=IDS, seed=0), epochs=2)
        made.append(head(given.student, unit * given.teacher, IDS)["teacher_factors"])
    torch.testing.assert_close(made[0], made[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("share", "codes"), [(0.5, 3), (1.0, 5), (0.01, 1)])
def test_the_share_of_channels_that_a_factor_has(share, codes):
    given = probe((3, 6, 6), (5, 6, 6))
    made = factor(given, share=share, epochs=0)(given.student, given.teacher, IDS)
    assert made["student_factors"].shape == made["teacher_factors"].shape == (8, codes, 6, 6)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"epochs": -1}, {"epochs": 1.5}])
def test_bad_options_of_the_factors_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        factor(probe((3, 6, 6), (5, 6, 6)), **options)


def test_a_paraphraser_is_fitted_also_where_no_gradients_are_wanted():
    given = probe((3, 6, 6), (5, 6, 6))
    with torch.no_grad():
        head = factor(given, epochs=1)
    assert not any(parameter.requires_grad for parameter in head.paraphraser.parameters())


def test_levels_are_fused_from_deep_to_shallow():
    """Two levels by hand: attention weights of both sides from both, then the teacher's size, then its channels."""
    given = probe(((2, 8, 8), (3, 4, 4)), ((5, 4, 4), (6, 4, 4)))
    head = fusion(given).eval()
    shallow, deep = head.levels
    assert deep.attend is None
    assert deep.narrow[0].out_channels == shallow.narrow[0].out_channels == 3
    with torch.no_grad():
        made = head(given.student, given.teacher, IDS)["student_maps"]
        inner = deep.narrow(given.student[1])
        torch.testing.assert_close(made[1], deep.widen(inner))
        own, upper = shallow.narrow(given.student[0]), inner.repeat_interleave(2, 2).repeat_interleave(2, 3)
        both = torch.cat([own, upper], 1).movedim(1, -1).numpy()
        weights, bias = shallow.attend[0].weight[:, :, 0, 0].numpy(), shallow.attend[0].bias.numpy()
        share = torch.from_numpy(1 / (1 + np.exp(-(both @ weights.T + bias))))
        fused = own * share[..., 0][:, None] + upper * share[..., 1][:, None]
        torch.testing.assert_close(made[0], shallow.widen(fused[:, :, ::2, ::2]), rtol=1e-4, atol=1e-5)


def test_width_of_the_fusion():
    given = probe(((2, 8, 8), (3, 4, 4)), ((5, 8, 8), (6, 4, 4)))
    assert all(level.narrow[0].out_channels == 11 for level in fusion(given, width=11).levels)
    for width in (0, 1.5, True):
        with pytest.raises(UsageError, match="width"):
            fusion(given, width=width)


def test_the_same_numbers_as_on_the_cpu_by_numpy():
    ids, places = torch.tensor([0, 7, -3, 2**40])[:, None], torch.arange(50)
    got = counter.uniform(torch.tensor(2**61 + 5), torch.tensor(12), ids, places)
    expected = random.uniform(2**61 + 5, 12, ids.numpy(), places.numpy())
    np.testing.assert_array_equal(got.double().numpy(), np.floor(expected * 2**24) / 2**24)


class Kept(nn.Module):
    """In the place of the generation block: shows what is left of a map of ones."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, maps):
        return maps


def kept(head, ids):
    head.generate = Kept()
    return head(torch.ones(len(ids), 5, 16, 16), torch.ones(len(ids), 5, 16, 16), ids)["student_maps"].detach()


def test_what_is_hidden_depends_on_seed_step_and_sample_only():
    given = probe((5, 16, 16), (5, 16, 16), seed=4)
    head = generation(given)
    ids = torch.arange(20, 84)
    first = kept(head, ids)
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert ((first == 0) | (first == 1)).all()
    assert first.mean().item() == pytest.approx(0.35, abs=0.02)
    assert not torch.equal(first[0], first[1])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([kept(head, ids[order[:10]]), kept(head.eval(), ids[order[10:]])]), first[order])
    assert torch.equal(kept(generation(given), ids), first)
    assert not torch.equal(kept(generation(probe((5, 16, 16), (5, 16, 16), seed=5)), ids), first)
    head.commit(lambda rows: rows)
    second = kept(head, ids)
    assert not torch.equal(second, first)
    resumed = generation(given)
    resumed.load_state_dict({**resumed.state_dict(), "step": head.step})
    assert torch.equal(kept(resumed, ids), second)


def test_whole_channels_can_be_hidden():
    left = kept(generation(probe((5, 16, 16), (5, 16, 16)), hide="channels", share=0.15), torch.arange(400))
    assert torch.equal(left, left[:, :, :1, :1].expand_as(left))
    assert left.mean().item() == pytest.approx(0.85, abs=0.02)


def test_nothing_hidden_and_bad_options():
    given = probe((5, 16, 16), (5, 16, 16))
    assert kept(generation(given, share=0.0), IDS).min() == 1
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="share"):
            generation(given, share=share)
    with pytest.raises(UsageError, match="hide"):
        generation(given, hide="rows")
