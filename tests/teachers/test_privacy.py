"""What votes cost, against independent accounting; and what a store keeps, against its bytes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.store import describe, record
from potstill.store.codecs import CODECS, Full, TopK
from potstill.teachers import Reads, StoredTeacher, describe_recording
from potstill.teachers.privacy import epsilon, privacy_report, what_is_kept
from potstill.teachers.voting import Votes, VotingTeacher

# dp-accounting 0.6.0 (Google): RdpAccountant with orders 1 + geomspace(1e-3, 1e4, 20001) on GaussianDpEvent(noise/√2)
# for each answer and GaussianDpEvent(check_noise) for each question; the last column, of its PLDAccountant, is exact.
GOLDEN = [
    # queries, answered, noise, check_noise, delta, epsilon, exact
    (1000, 1000, 40.0, None, 1e-5, 5.377672, 4.9833),
    (100, 100, 20.0, None, 1e-6, 3.542291, 3.3076),
    (1000, 600, 40.0, 150.0, 1e-5, 4.145031, 3.8332),
    (10000, 3000, 100.0, 200.0, 1e-7, 5.179387, 4.8836),
    (1, 1, 1.0, None, 1e-3, 5.419919, 4.8453),
    (5, 2, 1.0, 2.0, 1e-5, 12.676607, 11.8353),
]


def votes(noise: float, check_noise: float | None = None) -> Votes:
    return Votes(noise, check_noise, None if check_noise is None else 10.0)


@pytest.mark.parametrize(("queries", "answered", "noise", "check", "delta", "expected", "exact"), GOLDEN)
def test_epsilon_is_that_of_another_accountant(queries, answered, noise, check, delta, expected, exact):
    found = epsilon(votes(noise, check), queries=queries, answered=answered, delta=delta)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > exact


@pytest.mark.parametrize(("queries", "noise", "delta"), [(1, 200.0, 1e-9), (50, 10.0, 1e-5), (100000, 30.0, 1e-6)])
def test_epsilon_is_the_closed_form_and_above_the_exact_one(queries, noise, delta):
    slope = queries / noise**2

    def bound(log_order: float) -> float:
        order = 1 + math.exp(log_order)
        return slope * order + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    best = scipy.optimize.minimize_scalar(bound, bounds=(-9, 12), method="bounded", options={"xatol": 1e-10}).fun
    found = epsilon(votes(noise), queries=queries, delta=delta)
    assert found == pytest.approx(best, rel=1e-3)
    # All together are one Gaussian mechanism; its exact trade-off (Balle and Wang, 2018, arXiv:1805.06530):
    mu = math.sqrt(2 * queries) / noise
    norm = scipy.stats.norm
    spent = norm.cdf(mu / 2 - found / mu) - math.exp(found + norm.logcdf(-mu / 2 - found / mu))
    assert spent <= delta


def test_epsilon_grows_with_questions_and_falls_with_noise():
    grid = [[epsilon(votes(noise), queries=queries) for queries in (0, 1, 10, 100)] for noise in (10.0, 20.0, 40.0)]
    assert all(row[0] == 0 for row in grid)
    assert (np.diff(grid, axis=1) > 0).all()
    assert (np.diff(np.array(grid)[:, 1:], axis=0) < 0).all()
    # Unanswered questions cost what the check costs, never nothing.
    checked = [epsilon(votes(20.0, 50.0), queries=100, answered=count) for count in (0, 50, 100)]
    assert 0 < checked[0] < checked[1] < checked[2]
    assert checked[2] == epsilon(votes(20.0, 50.0), queries=100)
    # Without a check every question is answered.
    assert epsilon(votes(20.0), queries=100, answered=5) == epsilon(votes(20.0), queries=100)


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 1.0}, {"answered": 11}, {"answered": -1}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match="expected 0 < delta < 1"):
        epsilon(votes(20.0), **({"queries": 10} | wrong))


def test_the_report_says_what_was_spent_and_on_what_it_rests():
    answered = np.array([[1.0], [0.0], [1.0], [1.0]])
    report = privacy_report(Votes(20.0, 50.0, 6.0), members=10, answered=answered, delta=1e-6)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["queries"], report["answered"], report["abstained"], report["members"]) == (4, 3, 1, 10)
    assert report["epsilon"] == epsilon(Votes(20.0, 50.0, 6.0), queries=4, delta=1e-6)
    assert 0 < report["epsilon_of_answered"] < report["epsilon"]
    assert any("one member only" in line for line in report["assumptions"])
    assert any("secret" in line for line in report["assumptions"])
    anonymous = privacy_report(Votes(0.0, at_least=3), members=10, answered=answered)
    assert anonymous["epsilon"] is None
    assert anonymous["protects"].startswith("no differential privacy")
    assert privacy_report(Votes(0.0), members=10, answered=answered)["protects"].startswith("nothing")


class Constant(nn.Module):
    def __init__(self, answer: list[float]) -> None:
        super().__init__()
        self.answer_of_all = nn.Parameter(torch.tensor(answer))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.answer_of_all.expand(len(inputs), -1)


def test_a_recording_of_votes_holds_answers_and_neither_samples_nor_secret(tmp_path: Path):
    """All bytes of the store are searched for the samples, their labels, the ballots' counts and the secret."""
    ids = np.arange(40) + 10**15
    pixels = torch.rand(40, 30, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) + 0x5EED_5EED
    members = [Constant([1.0, 0.0, 0.0])] * 7 + [Constant([0.0, 1.0, 0.0])] * 3
    voting = VotingTeacher(members, Votes(2.0, 2.0, 6.0), secret=tmp_path / "secret.json")

    def batches(ranges):
        for first, stop in ranges:
            rows = torch.arange(first, stop)
            yield Batch(torch.from_numpy(ids)[rows], torch.zeros_like(rows), pixels[rows], targets[rows])

    whole = next(iter(batches([(0, 40)])))
    folder = tmp_path / "store"
    with voting.teaching(Reads(outputs=["answered"])) as teacher:
        manifest = describe_recording(teacher, whole, ids=ids, data="d" * 64)
        store = record(teacher, batches, folder, manifest, ids)
        assert store.signals == {"logits", "answered"}
        taught = StoredTeacher(store)(whole)
        asked = teacher(whole)
    torch.testing.assert_close(taught["logits"], asked["logits"], rtol=1e-3, atol=1e-3)
    assert torch.equal(taught["answered"], asked["answered"])
    assert 0 < taught["answered"].sum() < 40

    kept = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert len(kept) > 500
    assert ids.tobytes() in kept or str(ids[0]).encode() in kept  # the search finds what is there
    secret = json.loads((tmp_path / "secret.json").read_text())["secret"]
    strings = [secret.encode(), bytes.fromhex(secret), str(tmp_path).encode()]
    strings += [pixels[row].numpy().astype(dtype).tobytes() for row in range(40) for dtype in ("<f4", "<f2")]
    strings += [int(target).to_bytes(8, "little") for target in targets]
    assert not [found for found in strings if found in kept]


def test_what_is_kept_is_said_in_words_for_every_codec():
    options = {"ids": np.arange(5), "data": "d", "teacher": {"model": "Net", "weights": "ab"}}
    manifest = describe(
        **options,
        shapes={"logits": (100,), "tokens": (), "mid": (8, 2)},
        sources={"mid": "layer3"},
        codecs={"logits": TopK(5), "tokens": Full("int32")},
        sequences=["tokens"],
        views=2,
        augmentation={"flip": True},
    )
    text = "\n".join(what_is_kept(manifest))
    for part in (
        "5 samples in 2 augmented views",
        "logits, the teacher's output: the likeliest of 100 classes (k 5, bits 8).",
        "mid, from layer3: all 16 numbers (dtype float16).",
        "tokens, the teacher's output for each item of a sample: one number (dtype int32).",
        "model, weights",
        "seed of the augmentation",
        "Not the samples",
    ):
        assert part in text
    settings = {"top_k": {"k": 2}, "threshold": {"size": 2}, "random": {"draws": 2}, "low_rank": {"rank": 2}}
    for name, codec in CODECS.items():
        spec = replace(manifest.signals["mid"], codec=codec(**settings.get(name, {})))
        assert what_is_kept(replace(manifest, signals={"mid": spec}))


def test_the_guide_runs_and_its_numbers_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[2] / "docs/guide/privacy.md").read_text(encoding="utf-8")
    kept, voting, cost = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    ids = np.arange(3)
    manifest = describe(ids=ids, data="d", teacher={"model": "Net"}, shapes={"logits": (2,)})
    whole = Batch(torch.from_numpy(ids), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1))
    record(lambda batch: {"logits": torch.zeros(len(batch), 2)}, lambda _: [whole], tmp_path / "store", manifest, ids)
    names: dict[str, object] = {"members": [Constant([1.0, 0.0])] * 250}
    for block in (kept, voting, cost):
        exec(block, names)
    call, said = re.search(r"^(epsilon.*?)\s+# (.*)$", cost, flags=re.MULTILINE).groups()
    assert f"{eval(call, names):.2f}" == said == "5.38"
    assert isinstance(names["teacher"], VotingTeacher)
