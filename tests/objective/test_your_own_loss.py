"""The guide on losses of one's own: its files and its recipe work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.objective import Objective, Term, apply_heads, heads_for, term_from
from potstill.objective.check import check
from potstill.pipeline.build import build_job
from potstill.recipe.schema import TermSection
from potstill.recipe.yaml import loads

PAGE = (Path(__file__).parents[2] / "docs/guide/your-own-loss.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "my_losses.py").write_text("\n\n".join(reversed(blocks)))
    return tmp_path


def test_the_recipe_on_the_page_is_built(folder: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    objective = build_job(loads(text), base=folder).objective
    assert objective.describe() == [
        "0.5 x cross_entropy on logits",
        "linear(0 to 1, 0 to 0.2 of training) x lead(width=2.0) on logits, centred first",
    ]
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    teacher, batch = 3 * logits, Batch(torch.arange(2), torch.zeros(2), logits, torch.tensor([0, 1]))
    # The teacher leads by 3 and 6, of which 2 are asked for; the student by 1 and 2.
    assert objective({"logits": logits}, {"logits": teacher}, batch, progress=1.0).parts["lead"].item() == 1.0


def test_the_head_on_the_page_is_trained(folder: Path) -> None:
    section = TermSection(loss="my_losses.py:lead", head="my_losses.py:stretch")
    term = term_from(section.model_dump(), folder)
    signals = {"logits": torch.randn(4, 3)}
    heads = heads_for([term], signals, signals, ids=torch.arange(4))
    prepared = apply_heads(heads, [term], signals, signals, torch.arange(4))
    torch.testing.assert_close(prepared[term.key]["student_logits"], signals["logits"])
    assert [tuple(parameter.shape) for parameter in heads.parameters()] == [(3,)]


def test_a_loss_without_a_gradient_or_that_writes_into_the_teachers_signals_is_refused() -> None:
    def deaf(student_logits, teacher_logits):
        return (student_logits.detach() - teacher_logits).square().mean(1)

    def writing(student_logits, teacher_logits):
        teacher_logits.mul_(0)
        return (student_logits - teacher_logits).square().mean(1)

    for loss, words in (
        (deaf, "deaf: its loss gives the student no gradient"),
        (writing, "changes the teacher's signals"),
    ):
        with pytest.raises(UsageError, match=words):
            check(Objective([Term(loss)]), {"logits": (3,)}, {"logits": (3,)}, 3, "classification")
