"""What a vote of private teachers costs, and what a store keeps: numbers and plain words to publish with a student."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.core.optional import require
from potstill.store.manifest import Manifest, SignalSpec
from potstill.teachers.voting import Votes

# Changing one private sample can move one member's vote from one class to another: two counts by 1, the largest by 1.
_SENSITIVITY, _CHECK_SENSITIVITY = math.sqrt(2.0), 1.0


def epsilon(votes: Votes, *, queries: int, answered: int | None = None, delta: float = 1e-5) -> float:
    """Return ε of (ε, δ)-differential privacy for everything that a voting teacher has said.

    The bound does not look at the votes (it is data-independent), so it may be published. Each question costs a
    Gaussian mechanism for the check, each answer one for the vote; with Rényi differential privacy of order α

        ε_α = queries · α / (2 · check_noise²) + answered · α / noise²,    without a check  queries · α / noise²

    and ε is the best over α of ε_α + log((α − 1) / α) − (log δ + log α) / (α − 1).

    Args:
        votes: how votes were counted.
        queries: how many questions were asked.
        answered: how many were answered. Which ones is known only afterwards, so the ε that holds whatever happens is
            the one where all are; that is what is computed when absent.
        delta: δ; clearly less than one over the number of private samples.

    Returns:
        ε; infinity without noise.

    Raises:
        UsageError: numbers out of range.
        PotstillError: opacus, which does the accounting, is not installed.

    Papers: Papernot et al.: Scalable Private Learning with PATE, 2018, arXiv:1802.08908, propositions 8 and 9; Mironov:
    Rényi Differential Privacy, 2017, arXiv:1702.07476; the step to ε: Balle et al., 2020, arXiv:1905.09982, theorem 21.
    The paper's smaller bound, which depends on the votes, is not computed: it is private itself, and no library that
    this project knows of offers it with the smooth sensitivity that makes it publishable.

    """
    answered = queries if answered is None else answered
    if not 0 < delta < 1 or not 0 <= answered <= queries:
        raise UsageError(
            f"delta={delta}, queries={queries}, answered={answered}: expected 0 < delta < 1 and 0 <= answered <= "
            "queries."
        )
    if queries == 0:
        return 0.0
    if votes.noise == 0:
        return math.inf
    rdp = require("opacus.accountants.analysis.rdp", feature="the epsilon of votes", extra="privacy")
    parts = [(votes.noise / _SENSITIVITY, queries if votes.check_noise is None else answered)]
    if votes.check_noise is not None:
        parts.append((votes.check_noise / _CHECK_SENSITIVITY, queries))
    # The best order of Gaussian noise is near 1 + sqrt(log(1/delta) / slope): look closely on both sides of it.
    slope = sum(steps / (2 * noise**2) for noise, steps in parts)
    orders = 1 + math.sqrt(-math.log(delta) / slope) * np.geomspace(1e-3, 1e3, 1201)
    spent = sum(rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=steps, orders=orders) for noise, steps in parts)
    found, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    return max(0.0, float(found))


def privacy_report(
    votes: Votes, *, members: int, answered: np.ndarray[Any, Any], delta: float = 1e-5
) -> dict[str, Any]:
    """Return what to publish of a recording by a voting teacher, as JSON-like data for ``privacy.json``.

    Args:
        votes: how votes were counted.
        members: how many teachers voted.
        answered: (q,) the ``answered`` signal of every sample that was asked about.
        delta: δ.

    """
    queries, given = len(answered), int(np.count_nonzero(answered))
    spent, spent_on_answers = (
        epsilon(votes, queries=queries, answered=count, delta=delta) for count in (queries, given)
    )
    return {
        "members": members,
        "queries": queries,
        "answered": given,
        "abstained": queries - given,
        "noise": votes.noise,
        "check_noise": votes.check_noise,
        "threshold": votes.threshold,
        "at_least": votes.at_least,
        "delta": delta,
        "epsilon": _finite(spent),
        "epsilon_of_answered": _finite(spent_on_answers),
        "protects": _protects(votes),
        "analysis": "Rényi differential privacy of Gaussian noise, independent of the votes (arXiv:1802.08908)",
        "assumptions": _assumptions(votes),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _protects(votes: Votes) -> str:
    if votes.noise > 0:
        return "one sample of the members' training data, added, removed or changed"
    if votes.at_least is not None:
        return (
            f"no differential privacy: each answer is shared by at least {votes.at_least} members (k-anonymity), which "
            "does not bound what several answers together tell"
        )
    return "nothing: votes are counted exactly"


def _assumptions(votes: Votes) -> list[str]:
    lines = [
        "Every private sample was in the training data of one member only, and nothing else of it reached the "
        "members: no shared normalisation, no choice of settings on all of the data.",
        "The samples that were asked about, and their labels, are not among the data to be protected.",
        "Nothing but these answers, or a student trained on them, is given away: not the members, their own answers, "
        "exact counts or scores of theirs, and not the manifest of the store, which has a hash of their weights.",
    ]
    if votes.noise > 0:
        lines += [
            "The secret of the noise stays secret, and serves this recording alone.",
            "epsilon holds however many questions are answered; epsilon_of_answered counts the answers that were "
            "given, as papers report it, and holds where their number was limited beforehand.",
            "Every further recording with members of the same data adds its own epsilon.",
        ]
    return lines


def what_is_kept(manifest: Manifest) -> list[str]:
    """Return, in plain words, everything that a store keeps and what it leaves out, for people who decide about it.

    A store keeps the signals that the objective reads, and what it needs to find them and to refuse what does not
    belong to them; there is nothing more to switch off.

    Args:
        manifest: of the store.

    """
    views = f" in {manifest.views} augmented views" if manifest.views > 1 else ""
    lines = [f"The teacher's answers to {manifest.num_samples} samples{views}:"]
    lines += [f"{name}, {_where(spec)}: {_how(spec)}." for name, spec in sorted(manifest.signals.items())]
    lines += [
        "The id of each sample: numbers of an id column as they are; texts, and the paths of files, as hashes that who "
        "guesses the text can make again.",
        "Hashes of all samples together and of the teacher's weights: who has the same samples or weights, or can make "
        "them again, can tell.",
        f"Facts about the teacher: {', '.join(sorted({*manifest.teacher} - {'units'})) or 'none'}.",
    ]
    if manifest.scale is not None:
        lines.append("Mean and standard deviation of the targets over the training samples: the unit of what is kept.")
    if manifest.augmentation:
        lines.append("The settings and the seed of the augmentation.")
    return [
        *lines,
        "Not the samples, their labels or the names of files and classes; not the secret of a vote's noise.",
    ]


def _where(spec: SignalSpec) -> str:
    source = "the teacher's output" if spec.source == "output" else f"from {spec.source}"
    return source + (" for each item of a sample" if spec.per == "item" else "")


def _how(spec: SignalSpec) -> str:
    numbers = math.prod(spec.shape)
    settings = ", ".join(f"{key} {value}" for key, value in spec.codec.to_json().items() if key != "codec")
    words = "one number" if numbers == 1 and spec.head is None else spec.codec.facts.words.format(numbers)
    return f"{words} ({settings})" if settings else words
