"""A store is compared with what the teacher says before the long recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.pipeline import label
from potstill.pipeline.build import Given
from potstill.pipeline.store_loss import explained
from potstill.recipe.yaml import loads
from potstill.store import open_store

X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


class Says(nn.Module):
    """Answers ``offset + slope * x * reversed x``, and notes how many samples it was asked about."""

    def __init__(self, offset: float, slope: float, outputs: int) -> None:
        super().__init__()
        self.offset, self.slope, self.outputs = offset, slope, outputs
        self.asked: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(inputs))
        return self.offset + self.slope * (inputs * inputs.flip(1))[:, : self.outputs]


def labelled(folder: Path, model: Says, task: str, **sections: str) -> Any:
    """Record what a model says with a recipe's sections as YAML, beside a student that is not trained."""
    labels = X[:, :3].argmax(1) if task == "classification" else model(torch.from_numpy(X)).squeeze(1).numpy()
    model.asked.clear()
    np.savez(folder / "data.npz", x=X, label=labels)
    data = f"{{train: data.npz, {sections.pop('data', '')}}}"
    lines = [f"task: {task}", f"data: {data}", "teacher: {model: python-object}", "student: {model: mlp}"]
    text = "\n".join([*lines, *(f"{name}: {value}" for name, value in sections.items())])
    return label(loads(text), out=folder / "run", base=folder, given=Given(teacher=model))


def test_values_that_a_number_format_loses_are_refused_before_they_are_recorded(tmp_path: Path) -> None:
    model = Says(50_000, 5, 1)
    with pytest.raises(UsageError, match=r"values \(full, float16\).*nothing of their variance.*store.dtype: float32"):
        labelled(tmp_path, model, "regression", data="standardise_targets: false")
    assert not list(tmp_path.glob("store/*/manifest*.json")), "nothing was recorded"


def test_the_page_says_how_much_of_the_values_is_left(tmp_path: Path) -> None:
    model = Says(50_000, 5, 1)
    done = labelled(tmp_path, model, "regression", data="standardise_targets: false", store="{accept_loss: true}")
    stored, *others = done.facts.fidelity
    assert stored["chosen"]
    assert stored["r2"] < 0, "float16 has steps of 32 there, and the values spread by 5"
    assert [row["r2"] > 0.9999 for row in others] == [True, True]
    text = " ".join([*done.facts.hopes, *(warning["message"] for warning in done.facts.warnings)])
    assert "nothing of their variance" in text
    assert "has lost more than 1.0 % of the variance" in text
    page = done.page.read_text()
    assert "R² of stored against said" in page
    assert f"{stored['r2']:.2f}" not in page, "no share is negative"


def test_standard_units_keep_the_same_values(tmp_path: Path) -> None:
    model = Says(50_000, 5, 1)
    done = labelled(tmp_path, model, "regression")
    assert done.facts.fidelity[0]["r2"] > 0.99999
    store = open_store(done.store)
    ids = torch.from_numpy(np.array(store.ids))
    said = 50_000 + 5 * (X[:, :1] * X[:, 2:])[ids.numpy()].astype(np.float64)
    found = store.read("logits", ids, torch.zeros_like(ids)).numpy()
    assert 1 - ((found - said) ** 2).sum() / ((said - said.mean()) ** 2).sum() > 0.99999


def test_each_sample_is_asked_once_more_at_most_for_the_page(tmp_path: Path) -> None:
    model = Says(0, 1, 1)
    labelled(tmp_path, model, "regression", evaluation="{batch_size: 300}")
    # The batch that is checked is not asked again: the training split is asked once to record it, once for the page.
    assert model.asked.count(210) == 2


@pytest.mark.parametrize(("offset", "slope", "refused"), [(0, 3, False), (20_000, 3, True), (4_000, 0.3, True)])
def test_differences_between_classes_must_survive_an_offset(
    offset: float, slope: float, refused: bool, tmp_path: Path
) -> None:
    model = Says(offset, slope, 3)
    if not refused:
        assert labelled(tmp_path, model, "classification").facts.fidelity[0]["kl"] < 1e-4
        return
    with pytest.raises(UsageError, match=r"divergence would be|between classes would be left"):
        labelled(tmp_path, model, "classification")


def test_the_share_that_is_kept_by_arithmetic() -> None:
    said = torch.tensor([[0.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    kept = torch.tensor([[0.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    assert explained(said, kept).tolist() == [1 - 1 / 8, 1.0], "a constant that is kept is all there"
    assert explained(said, kept + 1).tolist()[1] == 0.0


def test_a_store_of_another_run_is_read_before_it_is_used(tmp_path: Path) -> None:
    """One that was recorded with store.accept_loss is refused by a recipe without it."""
    sections = {"data": "standardise_targets: false"}
    labelled(tmp_path, Says(50_000, 5, 1), "regression", store="{accept_loss: true, path: kept}", **sections)
    (tmp_path / "run").rename(tmp_path / "first")
    with pytest.raises(UsageError, match="nothing of their variance"):
        labelled(tmp_path, Says(50_000, 5, 1), "regression", store="{path: kept}", **sections)
