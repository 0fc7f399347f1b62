"""Noisy votes: their statistics, their secret, and that an answer without noise does not leave the teacher."""

from __future__ import annotations

import copy
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.teachers import Reads
from potstill.teachers.voting import Votes, VotingTeacher, count, read_secret, secret_normal, vote_logits

KEY = bytes(range(32))
BOTH = Reads(outputs=["answered"])


class Ballots(nn.Module):
    """A member that votes for the class that one column of its inputs names."""

    def __init__(self, column: int, classes: int = 3) -> None:
        super().__init__()
        self.column, self.classes = column, classes
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(inputs[:, self.column].long(), self.classes) * self.weight


def batch(ballots: np.ndarray, ids: np.ndarray | None = None) -> Batch:
    ids = np.arange(len(ballots)) if ids is None else ids
    found = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    return Batch(found, torch.zeros_like(found), torch.tensor(ballots, dtype=torch.float32))


def teacher(votes: Votes, members: int = 10, **options) -> VotingTeacher:
    return VotingTeacher([Ballots(column) for column in range(members)], votes, **options)


def known_secret(votes: VotingTeacher) -> VotingTeacher:
    """The same noise in every run of the tests."""
    votes.secret.key = KEY
    return votes


def same_ballots(counts: list[int], samples: int) -> np.ndarray:
    return np.tile(np.repeat(np.arange(len(counts)), counts), (samples, 1))


def test_exact_votes_and_k_anonymity():
    ballots = np.array([[0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 0]])
    votes = teacher(Votes(noise=0, at_least=3), members=6)
    answer = votes.teaching(BOTH)(batch(ballots))
    assert count([Ballots(column)(torch.tensor(ballots)) for column in range(6)]).tolist() == [
        [2, 1, 3],
        [2, 2, 2],
        [1, 5, 0],
    ]
    assert answer["answered"].tolist() == [[1.0], [0.0], [1.0]]
    probabilities = answer["logits"].exp().numpy()
    np.testing.assert_allclose(probabilities[0], [0.5e-4, 0.5e-4, 1 - 1e-4], rtol=1e-4)
    assert answer["logits"][1].tolist() == [0.0, 0.0, 0.0]
    assert answer["logits"].argmax(1)[[0, 2]].tolist() == [2, 1]
    torch.testing.assert_close(answer["logits"][[0, 2]].logsumexp(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_the_noise_has_the_deviation_that_was_asked_for():
    """With two classes, 7 votes against 3 lose with the probability that normal noise of deviation s·√2 exceeds 4."""
    samples, noise = 4000, 3.0
    votes = known_secret(VotingTeacher([Ballots(column, classes=2) for column in range(10)], Votes(noise=noise)))
    ballots = same_ballots([7, 3], samples)
    lost = int((votes.teaching(BOTH)(batch(ballots))["logits"].argmax(1) == 1).sum())
    expected = scipy.stats.norm.sf(4 / (noise * np.sqrt(2)))
    assert scipy.stats.binomtest(lost, samples, expected).pvalue > 1e-4
    assert votes.teaching(BOTH)(batch(ballots[:1]))["answered"].tolist() == [[1.0]]


def test_the_check_abstains_as_often_as_its_noise_says():
    samples = 4000
    votes = known_secret(teacher(Votes(noise=1e-6, check_noise=2.0, threshold=8.0)))
    found = votes.teaching(BOTH)(batch(same_ballots([2, 7, 1], samples)))
    answered = found["answered"][:, 0].bool()
    expected = scipy.stats.norm.sf((8.0 - 7.0) / 2.0)
    assert scipy.stats.binomtest(int(answered.sum()), samples, expected).pvalue > 1e-4
    assert (found["logits"][answered].argmax(1) == 1).all()
    assert not found["logits"][~answered].any()


def test_secret_numbers_are_normal_and_independent_of_each_other():
    ids = np.arange(3000)
    contents = np.zeros((3000, 2), np.float32)
    drawn = secret_normal(KEY, ids, contents, 4).numpy()
    assert scipy.stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.08
    others = (secret_normal(bytes(32), ids, contents, 4), secret_normal(KEY, ids, contents + 1, 4))
    for other in others:
        assert abs(np.corrcoef(drawn.ravel(), other.numpy().ravel())[0, 1]) < 0.05


def test_asked_again_in_another_order_and_batch_the_answer_is_the_same():
    votes = teacher(Votes(noise=4.0, check_noise=3.0, threshold=5.0))
    ballots = np.random.default_rng(0).integers(0, 3, (60, 10))
    whole = votes.teaching(BOTH)(batch(ballots))
    order = np.random.default_rng(1).permutation(60)
    parts = [votes.teaching(BOTH)(batch(ballots[rows], rows)) for rows in np.array_split(order, 7)]
    for name in ("logits", "answered"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name][order])
    # Other ids, or other content of the same ids, have other noise.
    moved = votes.teaching(BOTH)(batch(ballots, np.arange(60) + 1000))
    assert not torch.equal(moved["logits"], whole["logits"])


def test_the_secret_is_in_no_state_copy_or_pickle(tmp_path: Path):
    votes = teacher(Votes(noise=4.0))
    ballots = same_ballots([4, 3, 3], 50)
    first = votes.teaching(BOTH)(batch(ballots))["logits"]
    secret = votes.secret.key
    assert len(secret) == 32
    saved = io.BytesIO()
    torch.save(votes.state(), saved)
    for text in (pickle.dumps(votes), saved.getvalue(), repr(votes).encode()):
        assert secret not in text
        assert secret.hex().encode() not in text
    twin = copy.deepcopy(votes)
    assert not torch.equal(twin.teaching(BOTH)(batch(ballots))["logits"], first)
    assert torch.equal(votes.teaching(BOTH)(batch(ballots))["logits"], first)


def test_a_secret_in_a_file_goes_on_after_an_interruption(tmp_path: Path):
    file = tmp_path / "secret.json"
    ballots = batch(same_ballots([4, 3, 3], 50))
    first = teacher(Votes(noise=4.0), secret=file).teaching(BOTH)(ballots)["logits"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.json"]
    assert torch.equal(teacher(Votes(noise=4.0), secret=file).teaching(BOTH)(ballots)["logits"], first)
    # One secret, one teacher: noise that two recordings share can be compared.
    with pytest.raises(PotstillError, match="other members or settings"):
        teacher(Votes(noise=5.0), secret=file).teaching(BOTH)(ballots)
    changed = teacher(Votes(noise=4.0), secret=file)
    nn.init.constant_(changed.members[0].module.weight, 2.0)
    with pytest.raises(PotstillError, match="other members or settings"):
        changed.teaching(BOTH)(ballots)
    file.chmod(0o644)
    with pytest.raises(PotstillError, match="chmod 600"):
        read_secret(file, "")


def test_files_that_hold_no_secret_are_refused(tmp_path: Path):
    file = tmp_path / "secret.json"
    for text in ("{}", "no json", json.dumps({"secret": "zz", "purpose": ""})):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(PotstillError, match="does not hold the secret"):
            read_secret(file, "")
    with pytest.raises(PotstillError, match="Could not make the secret"):
        read_secret(tmp_path / "absent" / "secret", "")


def test_no_vote_without_its_noise_and_only_one_view():
    votes = teacher(Votes(noise=4.0))
    asked = batch(same_ballots([4, 3, 3], 2))
    assert votes.whole() is None
    assert votes.facts.by_id
    assert not votes.facts.measurable(np.arange(2))
    with pytest.raises(TeacherError, match=r"store\.views to 1"):
        votes.teaching(BOTH)(replace(asked, views=torch.tensor([0, 1])))
    assert set(votes.teaching(BOTH)(asked)) == {"logits", "answered"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1.0}, "at least 0"),
        ({"noise": float("nan")}, "finite"),
        ({"noise": 4.0, "threshold": 5.0}, "belong together"),
        ({"noise": 4.0, "check_noise": 5.0}, "belong together"),
        ({"noise": 4.0, "check_noise": 0.0, "threshold": 5.0}, "above 0"),
        ({"noise": 0.0, "check_noise": 4.0, "threshold": 5.0}, "above 0"),
        ({"noise": 4.0, "at_least": 3}, "no epsilon would hold"),
        ({"noise": 0.0, "at_least": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Votes(**options)


def test_members_that_cannot_vote_are_refused():
    with pytest.raises(UsageError, match="two members"):
        teacher(Votes(noise=1.0), members=1)
    with pytest.raises(UsageError, match="at_least no more"):
        teacher(Votes(noise=0, at_least=11))
    asked = batch(np.zeros((2, 2)))
    with pytest.raises(TeacherError, match="same two or more classes"):
        VotingTeacher([Ballots(0, classes=3), Ballots(1, classes=4)], Votes(noise=1.0)).teaching(BOTH)(asked)
    broken = VotingTeacher([Ballots(0), Ballots(1)], Votes(noise=1.0))
    nn.init.constant_(broken.members[1].module.weight, float("inf"))
    with pytest.raises(TeacherError, match="not finite"):
        broken.teaching(BOTH)(asked)


def test_settings_and_weights_identify_the_teacher():
    states = {str(sorted(teacher(votes).state().items())) for votes in (Votes(noise=1.0), Votes(noise=2.0))}
    assert len(states) == 2


@pytest.mark.parametrize("classes", [2, 10])
def test_vote_logits_are_log_probabilities(classes: int):
    probabilities = vote_logits(torch.tensor([1, 0]), torch.tensor([True, False]), classes).softmax(1).numpy()
    expected = np.full((2, classes), [[1e-4 / (classes - 1)], [1 / classes]])
    expected[0, 1] = 1 - 1e-4
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
