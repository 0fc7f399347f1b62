"""Relations between samples in training: what is refused, how a split batch is seen, and memories between steps."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.losses import cross_entropy, hint_mse, similarity_preserving
from potstill.objective import Objective, Term
from potstill.recipe.schema import Training
from potstill.training import relations, train
from potstill.training.finite import NotFiniteError
from potstill.training.machine import Moment
from potstill.training.relations import check_batches, share
from potstill.training.setup import machine_for, make_accelerator
from potstill.training.step import take_step

RELATED = Objective([Term(cross_entropy), Term(similarity_preserving, on="hidden")])


def run(toys: ModuleType, folder: Path, objective: Objective, **settings) -> None:
    values = {"epochs": 1, "batch_size": 8, "precision": "float32", **settings}
    train(
        toys.net(),
        toys.spec(
            objective=objective, settings=Training(**values), teacher=toys.FormulaTeacher(), taps={"hidden": "hidden"}
        ),
        folder,
        device="cpu",
    )


def test_relations_ask_for_whole_batches(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"similarity_preserving:hidden reads relations.*training.accumulate: 1"):
        run(toys, tmp_path, RELATED, accumulate=2)
    with pytest.raises(UsageError, match=r"last batch of an epoch has 1 sample \(26 samples in batches of 5\).*as 6"):
        run(toys, tmp_path, RELATED, batch_size=5)
    with pytest.raises(UsageError, match="last batch of an epoch has 1 sample"):
        run(toys, tmp_path, RELATED, batch_size=1)
    assert not list(tmp_path.iterdir())
    run(toys, tmp_path, RELATED, batch_size=6)


@pytest.mark.parametrize(("samples", "size"), [(3, 2), (4, 3), (7, 3), (101, 50), (26, 25)])
def test_the_batch_size_that_a_message_names_works(samples: int, size: int) -> None:
    with pytest.raises(UsageError, match="has 1 sample") as error:
        check_batches(RELATED, Training(batch_size=size), samples)
    better = int(str(error.value).rpartition(" ")[2].rstrip("."))
    check_batches(RELATED, Training(batch_size=better), samples)


def test_a_process_sees_the_whole_and_differentiates_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[6.0], [7.0], [8.0]])]
    seen: list[list[int]] = []

    def gather(tensor: Tensor, sizes: list[int]) -> Tensor:
        seen.append(list(sizes))
        return torch.cat(rows)

    monkeypatch.setattr(relations, "gather_rows", gather)
    for process, own in enumerate(rows):
        leaf = own.clone().requires_grad_()
        shared = share(8, process, 3)
        whole = shared.whole(leaf)
        assert whole.tolist() == [[float(number)] for number in range(1, 9)]
        assert torch.equal(whole[shared.own], leaf)
        whole.square().sum().backward()
        torch.testing.assert_close(leaf.grad, 2 * own)
        assert not shared.whole(own).requires_grad
    assert seen == [[2, 3, 3]] * 6


class Notes(nn.Module):
    """A head that notes what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Tensor]:
        self.log.append(f"forward {len(ids)}")
        return {"student_hidden": student.mean(1, keepdim=True), "teacher_hidden": teacher.mean(1, keepdim=True)}

    def commit(self, gather) -> None:
        self.log.append(f"commit {gather(torch.zeros(3)).shape}")

    def discard(self) -> None:
        self.log.append("discard")


def test_a_memory_is_committed_once_a_step_and_told_of_steps_that_failed(toys: ModuleType) -> None:
    broken = False

    def fragile(student_logits: Tensor, targets: Tensor) -> Tensor:
        return student_logits.sum(1) * (float("nan") if broken else 1.0)

    head = Notes()
    task = toys.spec(
        objective=Objective([Term(fragile), Term(hint_mse, on="hidden", head=lambda _probe: head)]),
        settings=Training(optimizer="sgd", learning_rate=0.01, precision="float32", accumulate=2),
        teacher=toys.FormulaTeacher(),
        taps={"hidden": "hidden"},
    )
    samples = task.data.train
    from potstill.data.stream import Stream

    batch = next(Stream(samples).epoch(0, 8, order=0))
    with machine_for(toys.net(), task, make_accelerator("cpu")) as machine:
        head.log.clear()
        take_step(machine, batch, Moment(count=8, progress=0.0, rate=0.1))
        assert head.log == ["forward 4", "forward 4", "commit torch.Size([3])"]
        broken = True
        with pytest.raises(NotFiniteError):
            take_step(machine, batch, Moment(count=8, progress=0.0, rate=0.1))
        assert head.log[3:] == ["forward 4", "forward 4", "discard"]
