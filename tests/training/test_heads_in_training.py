"""Heads of hidden layers in the whole loop: they learn, do not depend on micro-batches, and are not exported."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from potstill import losses
from potstill.core.signals import Batch
from potstill.objective import Objective, Term
from potstill.recipe.schema import Training
from potstill.teachers import Facts
from potstill.training import train

TERMS = {
    "variational": Term(losses.variational_information, on="maps"),
    "factor": Term(losses.factor_transfer, 10.0, on="maps", head_options={"epochs": 2}),
    "generation": Term(losses.masked_generative, on="maps"),
    "overhaul": Term(losses.overhaul, on="maps"),
    "fusion": Term(losses.review, on=["maps", "vector"]),
}
WITHOUT_BATCH_NORM = ("variational", "factor", "generation")


class Maps:
    """Maps of six channels and their means, a fixed function of the inputs."""

    facts = Facts(frozenset({"maps", "vector"}))
    fingerprint = "maps"

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(5))
        maps = torch.nn.functional.conv2d(batch.inputs, weight)
        return {"maps": maps, "vector": maps.mean((2, 3))}


def run(toys: ModuleType, folder: Path, term: Term, **changes):
    student = toys.net(norm="group")
    settings = Training(
        **{"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "optimizer": "sgd", "precision": "float32", **changes}
    )
    result = train(
        student,
        toys.spec(
            objective=Objective([Term(losses.cross_entropy), term]),
            teacher=Maps(),
            settings=settings,
            taps={"maps": "norm", "vector": "hidden"},
        ),
        folder,
        device="cpu",
    )
    return student, result


@pytest.mark.parametrize("name", TERMS)
def test_a_head_trains_beside_the_student_and_is_left_behind(toys: ModuleType, tmp_path: Path, name: str) -> None:
    student, result = run(toys, tmp_path, TERMS[name])
    assert set(load_file(result.weights)) == set(student.state_dict()) == set(toys.net(norm="group").state_dict())
    assert result.stopped == "finished"


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_micro_batches_change_nothing(toys: ModuleType, tmp_path: Path, name: str) -> None:
    whole, _ = run(toys, tmp_path / "whole", TERMS[name])
    parts, _ = run(toys, tmp_path / "parts", TERMS[name], accumulate=2)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)
