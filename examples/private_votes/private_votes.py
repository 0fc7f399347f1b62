"""A student of a hundred teachers of private data, who speak through noisy votes: digits, in seconds.

python private_votes.py

So few private samples make a poor bargain of accuracy and privacy; the numbers are real and the steps are those of a
large case. The run also trains a student alone on the labels of the public samples, which are known here: where they
are not, the votes are all there is.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import potstill
from potstill import Objective, Term, losses
from potstill.data import load
from potstill.store import open_store
from potstill.teachers.privacy import privacy_report, what_is_kept
from potstill.teachers.voting import Votes, VotingTeacher

MEMBERS, PRIVATE = 100, 1000
DELTA = 1e-4  # clearly less than one over the private samples


def samples(split) -> tuple[Tensor, Tensor]:
    return split.fetch(np.arange(len(split))).float().flatten(1) / 255, torch.from_numpy(split.targets)


def ridge(inputs: Tensor, targets: Tensor) -> nn.Module:
    """A teacher of ten samples: least squares to their classes."""
    ones = torch.ones(len(inputs), 1)
    features, classes = torch.cat([inputs, ones], 1), nn.functional.one_hot(targets, 10).float()
    solved = torch.linalg.solve(features.T @ features + 0.3 * torch.eye(features.shape[1]), features.T @ classes)
    model = nn.Linear(inputs.shape[1], 10)
    model.weight.data, model.bias.data = solved[:-1].T.contiguous(), solved[-1]
    return model


def votes_cross_entropy(student_answer: Tensor, teacher_answer: tuple[Tensor, Tensor]) -> Tensor:
    """Learn the vote where there is one; samples without an answer teach nothing."""
    votes, answered = teacher_answer
    return answered[:, 0] * losses.forward_kl(student_answer, votes)


def main(epochs: int = 60, formats: tuple[str, ...] = ("onnx",)) -> None:
    data = load("digits")
    (inputs, targets), validation, test = (samples(split) for split in data.splits.values())
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    private, public = order[:PRIVATE], order[PRIVATE:]
    # Every private sample reaches one teacher only: that is what the bound rests on.
    members = [ridge(inputs[part], targets[part]) for part in private.chunk(MEMBERS)]
    votes = Votes(noise=12.0, check_noise=15.0, threshold=40.0)
    run = potstill.distill(
        teacher=VotingTeacher(members, votes, secret="noise.secret.json"),
        student={"model": "mlp", "args": {"hidden": [64]}},
        data={"train": (inputs[public], targets[public]), "validation": validation, "test": test},
        objective=Objective([Term(votes_cross_entropy, student="logits", teacher=("logits", "answered"))]),
        training={"epochs": epochs, "batch_size": 32},
        export={"formats": list(formats), "min_agreement": 0, "max_accuracy_drop": 0.99},
        evaluation={"latency": False},
        out="runs/private_votes",
    )
    store = open_store(next(Path("runs/store").iterdir()))
    ids = torch.from_numpy(np.array(store.ids))
    answered = store.read("answered", ids, torch.zeros_like(ids)).numpy()
    report = privacy_report(votes, members=MEMBERS, answered=answered, delta=DELTA)
    (run.folder / "privacy.json").write_text(json.dumps(report, indent=2) + "\n")
    score = run.evaluation.models["distilled"].metrics["accuracy"]
    print(f"the student of the votes is right on {score:.1%} of the test samples")
    print(f"answered {report['answered']} of {report['queries']}, epsilon {report['epsilon']:.2f} at delta {DELTA}")
    print(*what_is_kept(store.manifest), sep="\n")


if __name__ == "__main__":
    main()
