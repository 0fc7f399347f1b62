"""Members side by side: what the head reads of each, what it is worth, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.models import Preprocessor
from potstill.teachers import ConcatenatedTeacher, MergedTeacher, TorchModel
from potstill.teachers.concatenated import HeadScores, write_head

CLASSES, INPUTS = 3, 6


class Part(nn.Module):
    """Knows some of the inputs only; its layer ``hidden`` is wider than its answers."""

    def __init__(self, reads: slice, seed: int, outputs: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.reads = reads
        self.hidden = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        self.linear = nn.Linear(8, outputs)

    def forward(self, inputs):
        return self.linear(self.hidden(inputs[:, self.reads]))


class Scaled(nn.Module):
    def __init__(self, model, factor, shift=0.0):
        super().__init__()
        self.model, self.factor, self.shift = model, factor, shift

    def forward(self, inputs):
        return self.factor * self.model(inputs) + self.shift


def parts(outputs=CLASSES):
    return [Part(slice(0, 3), 0, outputs), Part(slice(3, 6), 1, outputs)]


def batches(count=100, seed=0, targets=None, size=32):
    """Samples in batches; the class is a function of all inputs, so that no member alone can know it."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, INPUTS)).astype(np.float32)
    if targets is None:
        z = np.tanh(x) @ np.random.default_rng(9).normal(size=(INPUTS, CLASSES)) + 0.2 * random.gumbel(size=(count, 3))
        targets = z.argmax(1)
    ids = torch.arange(count)
    return [
        Batch(ids[low : low + size], torch.zeros_like(ids[low : low + size]), torch.tensor(x[low : low + size]),
              torch.as_tensor(targets[low : low + size]))
        for low in range(0, count, size)
    ]  # fmt: skip


def side_by_side(members, *sources, **options):
    mean = MergedTeacher(members, num_classes=options.pop("num_classes", CLASSES), **options)
    return ConcatenatedTeacher(mean, sources or ("answers",) * len(members))


def answers(teacher, asked):
    with teacher.teaching() as live:
        return torch.cat([live(batch)["logits"] for batch in asked])


def test_the_head_on_answers_is_the_regression_of_scikit_learn_on_centred_logits():
    members, learned_from, fresh = parts(), batches(), batches(seed=1)
    teacher = side_by_side(members).learned(learned_from)

    def features(asked):
        x = torch.cat([batch.tensor for batch in asked])
        said = [member(x).detach().double().numpy() for member in members]
        return np.concatenate([one - one.mean(1, keepdims=True) for one in said], axis=1)

    x, y = features(learned_from), torch.cat([batch.targets for batch in learned_from]).numpy()
    centre, spread = x.mean(0), x.std(0)
    penalty = 1 / (len(x) * teacher.scores.strength)
    reference = LogisticRegression(C=penalty, tol=1e-12, max_iter=10_000).fit((x - centre) / spread, y)
    expected = reference.predict_proba((features(fresh) - centre) / spread)
    np.testing.assert_allclose(answers(teacher, fresh).softmax(1).numpy(), expected, atol=1e-4)


def test_what_members_know_together_is_more_than_their_mean_knows():
    members, asked = parts(), batches(400)
    teacher = side_by_side(members, "hidden", "hidden").learned(asked)
    scores = teacher.scores
    labels = torch.cat([batch.targets for batch in asked])
    alone = [float((answers(TorchModel(member), asked).argmax(1) == labels).double().mean()) for member in members]
    mean = float((answers(teacher.mean, asked).argmax(1) == labels).double().mean())
    assert (scores.members, scores.mean, scores.samples) == (tuple(alone), mean, 400)
    assert scores.head > mean + 0.2
    assert scores.note == ""
    fresh = batches(2000, seed=1)
    right = answers(teacher, fresh).argmax(1) == torch.cat([batch.targets for batch in fresh])
    assert float(right.double().mean()) == pytest.approx(scores.head, abs=0.06)  # it is an honest estimate
    assert teacher.facts.fitted
    assert not teacher.mean.facts.fitted


@pytest.mark.parametrize(("head", "told"), [(0.6, False), (0.5, True), (0.4, True)])
def test_a_head_that_is_no_better_than_the_mean_is_told(head, told):
    teacher = side_by_side(parts()).begun(batches()[0])
    teacher = replace(teacher, scores=HeadScores("accuracy", 60, 1.0, head, 0.5, (0.5, None)))
    assert bool(teacher.facts.notes) == told
    if told:
        (note,) = teacher.facts.notes
        assert note.startswith("The members' head is no better than their mean: on 60 validation samples, each left")
        assert f"the head has accuracy {100 * head:.1f} %; the plain mean has 50.0 %, member 1 50.0 %." in note
        assert note.endswith("Drop teacher.merge, which is the mean.")


def test_a_member_in_other_units_and_members_in_another_order_change_nothing():
    members, learned_from, fresh = parts(), batches(), batches(seed=1)
    plain = side_by_side(members, "hidden", "answers").learned(learned_from)
    expected = answers(plain, fresh).softmax(1)
    others = (
        side_by_side([members[0], Scaled(members[1], 50.0, shift=3.0)], "hidden", "answers"),
        side_by_side(members[::-1], "answers", "hidden"),
    )
    for other in others:
        learned = other.learned(learned_from)
        torch.testing.assert_close(answers(learned, fresh).softmax(1), expected, atol=1e-4, rtol=0)
        assert learned.scores.strength == plain.scores.strength


def test_values_are_learned_in_the_units_of_the_members():
    x = np.concatenate([batch.tensor.numpy() for batch in batches()])
    y = np.stack([x.sum(1), x[:, 0] * 3], axis=1)
    members, scale = parts(outputs=2), TargetScale((10.0, 0.0), (5.0, 2.0))
    plain = side_by_side(members, regression=True, num_classes=2).learned(batches(targets=y))
    # The same members, answering in the target's units.
    own = [Scaled(member, torch.tensor(scale.std), torch.tensor(scale.mean)) for member in members]
    scaled = side_by_side(own, regression=True, num_classes=2, scales=[scale] * 2).learned(batches(targets=y))
    fresh = batches(seed=1)
    torch.testing.assert_close(answers(scaled, fresh), answers(plain, fresh), atol=1e-3, rtol=0)
    assert plain.scores.metric == "r2"
    assert scaled.scores.head == pytest.approx(plain.scores.head, abs=1e-4)
    one = side_by_side(parts(outputs=1), regression=True, num_classes=1).learned(batches(targets=y[:, 0]))
    assert answers(one, fresh).shape == (100, 1)


def test_targets_that_are_constant_are_answered_with_it():
    teacher = side_by_side(parts(outputs=1), regression=True, num_classes=1).learned(batches(targets=np.full(100, 2.5)))
    torch.testing.assert_close(answers(teacher, batches(seed=1)), torch.full((100, 1), 2.5))


def test_maps_are_read_as_the_mean_of_each_channel():
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.maps = nn.Conv2d(1, 4, 2)
            self.linear = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.linear(self.maps(x).relu().mean((2, 3)))

    asked = [
        Batch(batch.ids, batch.views, batch.tensor.reshape(-1, 1, 2, 3), batch.targets) for batch in batches(count=60)
    ]
    image = Image()
    teacher = side_by_side([image], "maps").learned(asked)
    expected = torch.cat([image.maps(batch.tensor).mean((2, 3)) for batch in asked]).double()
    torch.testing.assert_close(teacher.head.mean, expected.mean(0).detach())
    image.rows = nn.Flatten(2)
    image.forward = lambda x: image.linear(image.rows(image.maps(x)).mean(2))
    with pytest.raises(TeacherError, match=r"Layer 'rows' of member 1 says \(4, 2\) of each sample.*name another"):
        side_by_side([image], "rows").begun(asked[0])


def test_members_that_know_some_classes_stand_side_by_side():
    class Some(nn.Module):
        def __init__(self, model, columns):
            super().__init__()
            self.model, self.columns = model, columns

        def forward(self, inputs):
            return self.model(inputs)[:, self.columns]

    first, second = parts()
    known = [[0, 1, 2], [2, 1]]
    teacher = side_by_side([first, Some(second, [2, 1])], known=known).learned(batches())
    assert teacher.head.weight.shape == (3, 5)
    assert teacher.scores.members[0] is not None
    assert teacher.scores.members[1] is None
    with pytest.raises(TeacherError, match="Member 2 answers with 3 numbers, but it is to know 2 classes"):
        side_by_side([first, second], known=known).learned(batches())


def test_its_modules_are_one_module_that_answers_alike():
    teacher = side_by_side(
        [TorchModel(parts()[0], Preprocessor(torch.tensor([0.1]), torch.tensor([2.0]))), parts()[1]],
        "hidden", "answers",
    ).learned(batches())  # fmt: skip
    fresh = batches(seed=1)
    whole = teacher.whole()
    with torch.no_grad():
        found = whole(torch.cat([batch.tensor for batch in fresh]))
    torch.testing.assert_close(found, answers(teacher, fresh), atol=1e-5, rtol=1e-5)
    assert teacher.facts.parameters == sum(value.numel() for value in whole.parameters()) + 11 * 3 + 3 + 2 * 11
    # A head changes what it is, and so do the layers that it reads.
    prints = {
        replace(side_by_side(parts(), *sources), seed=seed).begun(fresh[0]).teaching().fingerprint
        for sources in (("answers", "answers"), ("hidden", "answers"))
        for seed in (0, 1)
    }
    assert len(prints) == 4


def test_a_head_is_kept_in_a_file_and_one_for_other_members_is_refused(tmp_path):
    teacher, file = side_by_side(parts()).begun(batches()[0]), tmp_path / "weights.safetensors"
    learned = teacher.with_weights({}, batches)
    write_head(learned, file)
    first = file.read_bytes()

    def unused():
        raise AssertionError("nothing is learned where there is a file")

    again = teacher.with_weights({0: file}, unused)
    assert again.scores == learned.scores
    assert torch.equal(answers(again, batches(seed=1)), answers(learned, batches(seed=1)))
    assert again.teaching().fingerprint == learned.teaching().fingerprint
    write_head(teacher.with_weights({}, batches), file)
    assert file.read_bytes() == first
    with pytest.raises(UsageError, match="holds a head for other members"):
        side_by_side(parts(), "hidden", "answers").begun(batches()[0]).with_weights({0: file}, unused)
    save_file(load_file(file), file)  # without its scores
    with pytest.raises(UsageError, match="is no head that was learned here"):
        teacher.with_weights({0: file}, unused)
    file.write_bytes(b"no safetensors")
    with pytest.raises(UsageError, match="is no head that was learned here"):
        teacher.with_weights({0: file}, unused)


def test_members_are_given_back_as_they_were():
    members = parts()
    members[0].train()
    side_by_side(members, "hidden", "answers").begun(batches()[0]).learned(batches())
    assert members[0].training
    assert all(value.requires_grad for value in members[0].parameters())


class Table:
    """A model that is no torch module."""

    module, members, preprocess = None, (), Preprocessor()

    @property
    def facts(self):
        return TorchModel(nn.Identity()).facts


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: side_by_side(parts(), "answers"), "1 sources for 2 members: give one for all of them"),
        (lambda: side_by_side([parts()[0], Table()], "hidden", "hidden"), r"'hidden' of member 2, which has no layers"),
        (lambda: side_by_side(parts(), weighting="confidence"), "takes the place of weights"),
        (lambda: side_by_side(parts(), num_classes=None), "with num_classes"),
        (lambda: side_by_side(parts(), "hiden", "answers").begun(batches()[0]), "no layer 'hiden'. Did you mean"),
        (lambda: side_by_side(parts()).teaching(), r"call learned\(\)"),
        (lambda: side_by_side([Scaled(parts()[0], np.inf)]).learned(batches()), "100 of 100 samples is not all fin"),
    ],
)  # fmt: skip
def test_what_cannot_stand_side_by_side_is_refused(make, message):
    with pytest.raises(PotstillError, match=message):
        make()
