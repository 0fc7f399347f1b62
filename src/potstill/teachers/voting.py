"""Several teachers of private data, that speak only through a noisy majority vote.

Shape legend: m members, b samples, c classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.models.preprocess import Preprocessor
from potstill.teachers.at_rest import Asked, as_source, facts_of_all, state_of_all, text_of_all
from potstill.teachers.model import LOGITS, Facts, Labelled, Reads, Source, Teacher

ANSWERED = "answered"
"""The signal that says whether a sample was answered, (b, 1): 1, or 0 where the teachers abstained."""
SPREAD = 1e-4
"""Probability that the other classes share where the vote names one."""
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Votes:
    """How votes are counted.

    Attributes:
        noise: standard deviation of the Gaussian noise on each class's number of votes; 0 counts exactly, which is no
            differential privacy.
        check_noise: standard deviation of the noise of a first check, whether enough members agree; with ``threshold``.
        threshold: the samples whose largest number of votes, with the noise of the check, is below it are not answered.
        at_least: k-anonymity: members that must agree on an answer. It counts exactly, so ``noise`` must be 0.

    Raises:
        UsageError: numbers out of range, or settings that do not go together.

    """

    noise: float
    check_noise: float | None = None
    threshold: float | None = None
    at_least: int | None = None

    def __post_init__(self) -> None:
        numbers = [value for value in (self.noise, self.check_noise, self.threshold) if value is not None]
        if (
            not all(math.isfinite(value) for value in numbers)
            or self.noise < 0
            or (self.at_least is not None and self.at_least < 1)
        ):
            raise UsageError(
                f"votes {self}: noise must be a finite number of at least 0, threshold finite, at_least at least 1."
            )
        if (self.check_noise is None) != (self.threshold is None):
            raise UsageError(f"votes {self}: check_noise and threshold belong together. Give both, or neither.")
        if self.check_noise is not None and (self.check_noise <= 0 or self.noise == 0):
            raise UsageError(
                f"votes {self}: a check needs check_noise and noise above 0. To count exactly, use at_least alone."
            )
        if self.at_least is not None and self.noise > 0:
            raise UsageError(
                f"votes {self}: at_least compares exact numbers of votes, and whether a sample is then answered tells "
                "something of the members without any noise: no epsilon would hold. Use threshold with check_noise, "
                "which is the same question asked with noise, or noise=0 for k-anonymity alone."
            )


class VotingTeacher:
    """Answers with the class that most members vote for, after noise on the counts, or not at all.

    When to use it: the members were trained on *disjoint* parts of data that must stay private, and a student, trained
    on other samples with these answers, is to be given away. Each question spends some of the privacy: see
    `potstill.teachers.privacy.epsilon`. Not where the teachers' data are public: `MergedTeacher` tells a student more.

    With n_c the number of members that vote for class c, the answer is

        argmax_c (n_c + N(0, noise²))                                         GNMax
        the same where max_c n_c + N(0, check_noise²) ≥ threshold, else none  Confident-GNMax

    The noise is a function of a secret, the sample's id and its content: asked the same again, the answer is the same,
    in any batch or order, and nothing more is told. Who knows the secret can take the noise away, so it is neither in
    the model's state nor in any recording: it is drawn from the operating system and lives in memory, or in a file of
    yours, so that an interrupted recording goes on with it and several processes share it. A new secret for a second
    half is as private; samples that are asked again then count twice.

    Args:
        members: classifiers at rest, or torch modules that see the inputs as they are.
        votes: how votes are counted.
        secret: a file for the secret, made when it does not exist; in memory only when absent.

    Raises:
        UsageError: fewer than two members, or ``at_least`` above their number.

    Paper: Nicolas Papernot, Shuang Song, Ilya Mironov, Ananth Raghunathan, Kunal Talwar, Úlfar Erlingsson: Scalable
    Private Learning with PATE, 2018, arXiv:1802.08908. There the noise is drawn anew for each question; here a question
    that is repeated gets the same noise, which tells less.

    """

    def __init__(
        self, members: Sequence[Source | nn.Module], votes: Votes, *, secret: Path | str | None = None
    ) -> None:
        if len(members) < 2 or (votes.at_least or 0) > len(members):
            raise UsageError(
                f"{votes} with {len(members)} members: a vote needs two members at least, and at_least no more than "
                "there are."
            )
        self.members = tuple(map(as_source, members))
        self.votes = votes
        self.secret = Secret(None if secret is None else Path(secret))
        self.module = None
        self.preprocess = Preprocessor()

    @property
    def facts(self) -> Facts:
        """What is known of it: it is never asked only to measure it, and an answer without an id must not exist."""
        return replace(facts_of_all(self.members, (ANSWERED,)), private=True, by_id=True)

    def __str__(self) -> str:
        """Return what tells two of these apart."""
        return text_of_all("VotingTeacher", self.members)

    def state(self) -> dict[str, Tensor]:
        """Return the members' tensors and the settings, which are part of what identifies the teacher."""
        settings = [math.nan if value is None else float(value) for value in asdict(self.votes).values()]
        return {**state_of_all(self.members), "settings": torch.tensor(settings, dtype=torch.float64)}

    def whole(self) -> None:
        """Return nothing: an answer without its noise must not exist."""

    def teaching(self, reads: Reads = LOGITS) -> Teacher:
        """Return it frozen."""
        teachers = [member.teaching(Reads(precision=reads.precision, device=reads.device)) for member in self.members]

        def answer(batch: Batch) -> dict[str, Tensor]:
            return self.vote(batch, [teacher(batch)["logits"] for teacher in teachers])

        return Asked(self, "VotingTeacher", answer, reads, tuple(teachers))

    def with_weights(self, _files: Mapping[int, Path], _labelled: Labelled) -> VotingTeacher:
        """Return itself: its members come finished."""
        return self

    def vote(self, batch: Batch, answers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the vote on each sample.

        Args:
            batch: b samples, each in view 0.
            answers: (b, c) logits of each member.

        Returns:
            ``logits`` (b, c): log(1 − 1e-4) for the class, the rest shared by the others; all 0, the uniform
            distribution, where the teachers abstain. ``answered`` (b, 1): 1, or 0 where they abstain.

        Raises:
            TeacherError: a view other than 0, or members whose answers are not finite or differ in their classes.

        """
        if batch.views.any():
            raise TeacherError(
                "A voting teacher was asked about several views of one sample. Each question spends privacy: "
                "set store.views to 1."
            )
        counts = count(answers)
        noise = self._noise(batch, counts.shape[1] + 1).to(counts.device)
        winner = (counts + self.votes.noise * noise[:, 1:]).argmax(1)
        largest = counts.max(1).values
        answered = torch.ones_like(largest, dtype=torch.bool)
        if self.votes.check_noise is not None and self.votes.threshold is not None:
            answered = largest + self.votes.check_noise * noise[:, 0] >= self.votes.threshold
        if self.votes.at_least is not None:
            answered = largest >= self.votes.at_least
        return {"logits": vote_logits(winner, answered, counts.shape[1]), ANSWERED: answered.float()[:, None]}

    def _noise(self, batch: Batch, count: int) -> Tensor:
        """Return ``count`` standard normal numbers for each sample, (b, count) float64."""
        contents = np.ascontiguousarray(batch.tensor.detach().cpu().numpy())
        secret = self.secret.of(lambda: fingerprint.of_state(self.state()))
        return secret_normal(secret, batch.ids.numpy(), contents, count)


class Secret:
    """What the noise of one teacher is made of: in a file, or in memory, and then in no copy and no pickle."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.key: bytes | None = None

    def of(self, purpose: Callable[[], str]) -> bytes:
        """Return the secret, drawn or read when it is first needed, for the teacher that ``purpose`` identifies."""
        if self.key is None:
            self.key = secrets.token_bytes(_SECRET_BYTES) if self.file is None else read_secret(self.file, purpose())
        return self.key

    def __getstate__(self) -> dict[str, Any]:
        """Leave the secret out of copies and saved models; a copy reads the file again, or draws its own."""
        return {**self.__dict__, "key": None}


def count(answers: Sequence[Tensor]) -> Tensor:
    """Return the exact number of votes of each class, (b, c) float64. Private: nothing of it may be given away.

    Args:
        answers: (b, c) logits of each member.

    """
    shapes = {tuple(answer.shape[1:]) for answer in answers}
    if len(shapes) > 1 or len(answers[0].shape) != 2 or answers[0].shape[1] < 2:
        raise TeacherError(
            f"The members answer each sample with {sorted(shapes)} numbers. A vote needs members that all answer "
            "with one number for each of the same two or more classes."
        )
    if not all(bool(answer.isfinite().all()) for answer in answers):
        raise TeacherError("A member answered with numbers that are not finite. Check its weights and inputs.")
    votes = torch.stack([nn.functional.one_hot(answer.argmax(1), answer.shape[1]).double() for answer in answers])
    return votes.sum(0)


def vote_logits(winner: Tensor, answered: Tensor, num_classes: int) -> Tensor:
    """Return the logits (b, c) of a vote: a class with 1 − 1e-4 of the probability, or all 0 where not answered.

    Args:
        winner: (b,) int64 classes.
        answered: (b,) bool.
        num_classes: c, at least 2.

    """
    rest = math.log(SPREAD / (num_classes - 1))
    logits = torch.full((len(winner), num_classes), rest, device=winner.device)
    logits.scatter_(1, winner[:, None], math.log1p(-SPREAD))
    return logits * answered[:, None]


def secret_normal(secret: bytes, ids: np.ndarray[Any, Any], contents: np.ndarray[Any, Any], count: int) -> Tensor:
    """Return standard normal numbers that only the holder of a secret can compute: (b, count) float64.

    SHAKE-256 of the secret, the id and the content gives 52 bits for each number, the inverse of the normal
    distribution makes them Gaussian. `potstill.core.random` is no cryptography, so it is not used here.

    Args:
        secret: 32 bytes.
        ids: (b,) int64.
        contents: (b, ...) what the sample is.
        count: how many numbers of each sample.

    """
    found = []
    for number, content in zip(ids.tolist(), contents, strict=True):
        hashed = hashlib.shake_256(secret + int(number).to_bytes(8, "little", signed=True))
        hashed.update(content.tobytes())
        found.append(np.frombuffer(hashed.digest(8 * count), dtype="<u8"))
    bits = np.concatenate([np.zeros(0, dtype="<u8"), *found]).reshape(len(ids), count)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    normal: Tensor = torch.special.ndtri(torch.from_numpy(uniform))
    return normal


def read_secret(path: Path, purpose: str) -> bytes:
    """Return the secret in a file, which is made, readable by its owner alone, when it does not exist.

    A secret serves one teacher: noise that two teachers share can be compared, so the file says which it is for.

    Args:
        path: the file.
        purpose: what identifies the teacher, such as a fingerprint of its weights and settings.

    Raises:
        PotstillError: the file is not such a file, belongs to another teacher, or others may read it.

    """
    if not path.exists():
        secret = secrets.token_bytes(_SECRET_BYTES)
        text = json.dumps({"potstill": "noise of a vote, keep secret", "secret": secret.hex(), "purpose": purpose})
        # Several processes may come here at once: a link to a whole file is made by one of them.
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(name)
            Path(name).unlink()
        except OSError as error:
            raise PotstillError(f"Could not make the secret {path}: {error.strerror}. Choose another file.") from error
    return _known_secret(path, purpose)


def _known_secret(path: Path, purpose: str) -> bytes:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise PotstillError(f"Others may read the secret {path}. Run: chmod 600 {path}")
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        secret, meant = bytes.fromhex(found["secret"]), str(found["purpose"])
    except (ValueError, KeyError, TypeError) as error:
        raise PotstillError(f"{path} does not hold the secret of a vote. Name another file.") from error
    if len(secret) != _SECRET_BYTES or meant != purpose:
        raise PotstillError(
            f"The secret {path} was made for other members or settings. Noise that is used twice can be taken out by "
            "comparing: name a file that does not exist yet, and keep both answers' costs in mind."
        )
    return secret
