"""The guide on losses of one's own: its files and its recipe work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.losses import cross_entropy, teacher_mse
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

    def centring(student_logits, teacher_logits):
        return (student_logits.sub_(student_logits.mean(1, keepdim=True)) - teacher_logits).square().mean(1)

    check(Objective([Term(centring)]), {"logits": (3,)}, {"logits": (3,)}, 3, "classification")
    for loss, words in (
        (deaf, "deaf: its loss gives the student no gradient"),
        (writing, "changes the teacher's signals"),
    ):
        with pytest.raises(UsageError, match=words):
            check(Objective([Term(loss)]), {"logits": (3,)}, {"logits": (3,)}, 3, "classification")


def test_a_loss_that_writes_now_and_then_changes_what_no_other_term_reads() -> None:
    def writing(student_logits, teacher_logits, targets):
        if student_logits.max() > 2:  # not on the made-up samples
            for signal in (student_logits, teacher_logits, targets):
                signal.mul_(0)
        return (student_logits - teacher_logits).square().mean(1)

    def doubled(signal):
        return signal.mul_(2)

    class Clearing(nn.Module):
        def forward(self, student, teacher, ids):
            return {"student_values": student, "teacher_values": teacher.zero_()}

    logits, taught, targets = torch.eye(3) * 4, torch.eye(3) * 5, torch.tensor([0, 1, 2])
    others = [Term(cross_entropy), Term(teacher_mse)]
    batch = Batch(torch.arange(3), torch.zeros(3), logits, targets)
    expected = Objective(others)({"logits": logits}, {"logits": taught}, batch).parts
    own = [
        Term(writing),
        Term(teacher_mse, transform=doubled, name="doubled"),
        Term(teacher_mse, head=lambda probe: Clearing(), name="cleared"),
    ]
    check(Objective(own[:1]), {"logits": (3,)}, {"logits": (3,)}, 3, "classification")
    for terms in (own + others, others + own):
        student, teacher = {"logits": logits * 1}, {"logits": taught * 1}
        heads = heads_for(terms, student, teacher, ids=batch.ids)
        arguments = apply_heads(heads, terms, student, teacher, batch.ids)
        parts = Objective(terms)(student, teacher, batch, arguments=arguments).parts
        assert {name: parts[name].item() for name in expected} == {name: part.item() for name, part in expected.items()}
        assert parts["doubled"].item() == 4 * expected["teacher_mse"].item()
        torch.testing.assert_close(teacher["logits"], taught, rtol=0, atol=0)
    assert targets.tolist() == [0, 1, 2]
