"""The head of `contrastive_bank`: embeds both sides, and remembers the teacher's embedding of every training sample.

Shape legend: b samples, n training samples, d dimensions, k negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.losses._maps import unit
from potstill.losses._shared import refuse_if
from potstill.objective.heads.counter import uniform
from potstill.objective.probe import Probe, Value, like_weights


class Memory(nn.Module):
    """Embeds the student by a trained linear map, the teacher by a fixed one, and draws negatives from a memory.

    A forward pass reads the memory and changes nothing in it: it lays what is to be remembered aside in ``pending``,
    which `commit` writes after the optimiser's step. So all micro-batches and processes of a step see one memory and
    draw the same negatives.
    """

    centre: Tensor
    projection: Tensor
    ids: Tensor
    bank: Tensor
    step: Tensor
    seed: Tensor

    def __init__(
        self, embed: nn.Linear, centre: Tensor, projection: Tensor, *, probe: Probe, negatives: int, momentum: float
    ) -> None:
        super().__init__()
        self.embed = embed
        self.negatives = negatives
        self.momentum = momentum
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.register_buffer("centre", centre)
        self.register_buffer("projection", projection)
        self.register_buffer("bank", torch.zeros(len(probe.ids), len(projection)))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("ids", probe.ids.clone(), persistent=False)
        self.register_buffer("seed", torch.tensor(probe.seed), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Any]:
        """Return both sides' embeddings (b, d), the negatives (k, d), and where one is the sample itself (b, k)."""
        taught = self.embed_teacher(teacher)
        if self.training:
            self.pending.append((ids, taught))
        drawn = self.draw()
        return {
            "student_embedding": self.embed(like_weights(_vectors(student), self.embed)),
            "teacher_embedding": taught,
            "teacher_negatives": self.bank[drawn],
            "same": ids[:, None] == self.ids[drawn],
        }

    @torch.no_grad()
    def embed_teacher(self, teacher: Tensor) -> Tensor:
        """Return the teacher's embeddings (b, d), of length 1."""
        with torch.autocast(teacher.device.type, enabled=False):
            return unit((_vectors(teacher).to(self.centre.dtype) - self.centre) @ self.projection.T)

    def draw(self) -> Tensor:
        """Return the places (k,) in the memory of this step's negatives."""
        count = len(self.bank)
        if count <= self.negatives:
            return torch.arange(count, device=self.bank.device)
        counter = torch.arange(self.negatives, device=self.bank.device)
        return (uniform(counter, self.step, self.seed).double() * count).long()

    @torch.no_grad()
    def commit(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Remember what the forward passes of one step have seen; once after each step, in every process.

        Args:
            gather: returns the rows of a tensor of all processes, in order; the identity where there is one process.
                Called by every process equally often, also where it has seen no samples.

        Raises:
            UsageError: a sample is not among the training samples (looked at on the CPU only).

        """
        seen = [*self.pending, (self.ids[:0], self.bank[:0])]
        self.pending.clear()
        ids, rows = (gather(torch.cat(parts)) for parts in zip(*seen, strict=True))
        places = torch.searchsorted(self.ids, ids).clamp_max(len(self.ids) - 1)
        refuse_if(
            self.ids[places] != ids,
            "A batch holds a sample that is not among the training samples the memory was built for.",
        )
        # Where a sample was seen twice, the last one counts: every copy of it writes the same row.
        order = places.argsort(stable=True)
        places = places[order]
        rows = rows[order[torch.searchsorted(places, places, right=True) - 1]]
        mixed = self.momentum * self.bank[places] + (1 - self.momentum) * rows
        self.bank[places] = unit(mixed)
        self.step += 1

    def discard(self) -> None:
        """Forget what the forward passes of a step have seen, because the step was not taken."""
        self.pending.clear()


def memory(probe: Probe, *, dimensions: int = 128, negatives: int = 16384, momentum: float = 0.5) -> nn.Module:
    """Build the head of `potstill.losses.contrastive_bank`.

    The student is embedded by a trained linear map; the teacher by a fixed one: centred by the mean over the probe, and
    projected to ``dimensions`` by a random matrix with orthonormal rows where it has more. Maps and tokens are averaged
    over their places first. Samples not seen yet are 0 in the memory: negatives that are like nothing and move nothing.

    Args:
        probe: one signal of each side.
        dimensions: of the embeddings; a teacher with fewer keeps its own.
        negatives: drawn from the memory for each step, the same for the whole batch, with repetition; where there are
            fewer training samples, all of them.
        momentum: from 0 to below 1, how much of a sample's old embedding stays when it is seen again, in another view.

    Raises:
        UsageError: not one signal of each side, fewer than 2 training samples, or an option out of range.

    Deviations from Yonglong Tian, Dilip Krishnan, Phillip Isola: Contrastive Representation Distillation, 2019,
    arXiv:1910.10699, beside those of the loss: the teacher's embedding is not trained; there is no memory of the
    student, which has no gradient to give; the negatives are shared by the batch, which makes them one matrix product;
    the memory starts at 0, not at random vectors.

    """
    if probe.teacher is None or isinstance(probe.student, tuple) or isinstance(probe.teacher, tuple):
        raise UsageError("The head memory takes one signal of the student and one of the teacher.")
    if dimensions < 1 or negatives < 1:
        raise UsageError(f"dimensions={dimensions!r} and negatives={negatives!r} must be at least 1.")
    if not (math.isfinite(momentum) and 0 <= momentum < 1):
        raise UsageError(f"momentum={momentum!r} must be a number from 0 to below 1.")
    if len(probe.ids) < 2:
        raise UsageError("The head memory needs at least 2 training samples: a sample is no negative of its own.")
    student, teacher = _vectors(probe.student), _vectors(probe.teacher)
    width = teacher.shape[1]
    projection = torch.eye(width) if width <= dimensions else nn.init.orthogonal_(torch.empty(dimensions, width))
    embed = nn.Linear(student.shape[1], len(projection))
    return Memory(embed, teacher.mean(0), projection, probe=probe, negatives=negatives, momentum=momentum)


def _vectors(signal: Value) -> Tensor:
    """Return one vector for each sample: maps (b, c, h, w) and tokens (b, t, d) are averaged over their places."""
    if not isinstance(signal, Tensor) or signal.dim() not in (2, 3, 4):
        raise UsageError("The head memory takes vectors (b, d), tokens (b, t, d) or maps (b, c, h, w).")
    return signal.mean((2, 3)) if signal.dim() == 4 else signal.mean(1) if signal.dim() == 3 else signal
