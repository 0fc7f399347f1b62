"""Several teachers as one model: it is recorded, evaluated and reported like any other.

Shape legend: m members, b samples, c classes or outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.models.load import output_tensor
from potstill.teachers.merge import (
    Mean,
    attention_weights,
    check_known,
    confidence_weights,
    fit_attention,
    fixed_weights,
    merge,
    unite,
)
from potstill.teachers.protocol import AskedByBatch, by_batch

Weighting = Literal["fixed", "confidence", "attention"]


class MergedTeacher(AskedByBatch, nn.Module):
    """Answers with the merged answer of its members; each member sees the inputs through its own preprocessing.

    When to use it: several models were trained on one task, or each knows some of the classes, and a student should
    learn from all. Every member's own logits are signals too: ``member1.logits``, ``member2.logits``, ...

    Args:
        members: models, each with its preprocessing in front (``nn.Sequential(preprocess, model)``).
        mean: ``probabilities`` for the mixture, ``logits`` for the geometric mean.
        weighting: ``fixed``; ``confidence`` for a weight per sample, by the labels where `teach` is given them, else by
            the entropy; ``attention`` for learned weights per sample, after `fit`.
        weights: one number per member for ``fixed``, equal when absent.
        known: for each member the classes of the data its outputs stand for, or None where that is all in order.
        num_classes: classes of the data; needed with ``known``.
        regression: whether the outputs are values and not logits; then the weighted mean is taken.
        scales: in regression, for each member the standard units to take its values in before they are merged, or None
            where it answers in them already.

    Raises:
        UsageError: options that do not fit each other, or classes that no member knows.

    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        mean: Mean = "probabilities",
        weighting: Weighting = "fixed",
        weights: Sequence[float] | None = None,
        known: Sequence[Sequence[int] | None] | None = None,
        num_classes: int | None = None,
        regression: bool = False,
        scales: Sequence[TargetScale | None] | None = None,
    ) -> None:
        super().__init__()
        for value, choices in ((mean, get_args(Mean)), (weighting, get_args(Weighting))):
            if value not in choices:
                raise UsageError(f"Unknown way to merge teachers: {value!r}.{did_you_mean(value, choices)}")
        if not members:
            raise UsageError("A merged teacher needs at least one member.")
        if regression and (weighting != "fixed" or any(classes is not None for classes in known or ())):
            raise UsageError("Values are merged with fixed weights: a number has no entropy and no classes.")
        if weights is not None and weighting != "fixed":
            raise UsageError(f"weights={list(weights)} are fixed, but weighting={weighting!r} makes its own. Give one.")
        self.members = nn.ModuleList(members)
        self.mean = mean
        self.weighting = weighting
        self.regression = regression
        self.scales = list(scales or [None] * len(members))
        self.signals = tuple(f"member{number}.logits" for number in range(1, len(members) + 1))
        self.register_buffer("weights", fixed_weights(weights, len(members)))
        self.weights: Tensor
        self.gate: Tensor
        self.register_buffer("gate", torch.zeros(0))
        self.num_classes = num_classes
        self.partial = known is not None and any(classes is not None for classes in known)
        if self.partial:
            self._register_known(known or (), num_classes)

    def _register_known(self, known: Sequence[Sequence[int] | None], num_classes: int | None) -> None:
        if num_classes is None or len(known) != len(self.members):
            raise UsageError("known needs one entry per member, and num_classes.")
        if self.mean != "probabilities" or self.weighting == "attention":
            raise UsageError(
                "Teachers that know only some of the classes are merged by probabilities, with fixed or confidence "
                "weights. Remove mean and weighting, or use teachers that know all classes."
            )
        tables = [torch.arange(num_classes) if one is None else torch.tensor(list(one)) for one in known]
        for number, table in enumerate(tables, 1):
            if len(table) != len(set(table.tolist())) or not all(0 <= one < num_classes for one in table.tolist()):
                raise UsageError(
                    f"Member {number}: its classes {table.tolist()} must be different numbers from 0 to "
                    f"{num_classes - 1}."
                )
        check_known(tables, num_classes)
        for number, table in enumerate(tables, 1):
            self.register_buffer(f"known{number}", table)

    def describe(self) -> dict[str, Any]:
        """Return how the members are merged, as plain data; their weights and classes are buffers."""
        described: dict[str, Any] = {"mean": self.mean, "weighting": self.weighting, "members": len(self.members)}
        if any(self.scales):
            described["scales"] = [None if scale is None else scale.to_json() for scale in self.scales]
        return described

    def extra_repr(self) -> str:
        """Return what tells two of these apart in ``print(model)``."""
        return f"scales={[scale and scale.to_json() for scale in self.scales]}" if any(self.scales) else ""

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` (b, c), merged without labels, and each member's own."""
        return self._answer(inputs, None)

    def teach(self, inputs: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Return what `forward` returns, merged by the labels where the weighting uses them: for training only."""
        return self._answer(inputs, targets)

    @torch.no_grad()
    def fit(self, inputs: Sequence[Tensor], targets: Tensor) -> None:
        """Learn the attention weights from samples with labels that no member was trained on.

        Args:
            inputs: batches of raw inputs.
            targets: (n,) int64 classes of all of them, in order.

        """
        answers = [[output_tensor(member(batch)) for member in self.members] for batch in inputs]
        logits = [torch.cat([answer[index] for answer in answers]) for index in range(len(self.members))]
        self.gate = fit_attention(logits, targets).to(self.weights.device)

    @property
    def answer(self) -> Callable[[Batch], dict[str, Tensor]] | None:
        """How it is asked where a member answers by id; see `potstill.teachers.protocol.by_batch`."""
        by_id = any(by_batch(member_model(self, index)) for index in range(len(self.members)))
        return self._answer_batch if by_id else None

    def _answer_batch(self, batch: Batch) -> dict[str, Tensor]:
        logits = []
        for index, member in enumerate(self.members):
            ask = by_batch(member_model(self, index))
            logits.append(output_tensor(member(batch.tensor)) if ask is None else ask(batch)["logits"])
        return self._merged(logits, batch.targets)

    def _answer(self, inputs: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        return self._merged([output_tensor(member(inputs)) for member in self.members], targets)

    def _merged(self, logits: Sequence[Tensor], targets: Tensor | None) -> dict[str, Tensor]:
        if any(self.scales):
            logits = [
                one if scale is None else scale.standard_tensor(one)
                for one, scale in zip(logits, self.scales, strict=True)
            ]
        own = dict(zip(self.signals, logits, strict=True))
        if self.regression:
            values = torch.stack([one.float() for one in logits])
            return {"logits": (self.weights.reshape(-1, *[1] * logits[0].dim()) * values).sum(0), **own}
        if self.partial:
            known = [self.get_buffer(f"known{number}") for number in range(1, len(logits) + 1)]
            for number, (one, table) in enumerate(zip(logits, known, strict=True), 1):
                if one.shape[1] != len(table):
                    raise UsageError(
                        f"Member {number} answers with {one.shape[1]} classes, but {len(table)} were named for it."
                    )
            return {
                "logits": unite(logits, known, self._weights(logits, None), num_classes=self.num_classes or 0),
                **own,
            }
        shapes = {tuple(one.shape[1:]) for one in logits}
        if len(shapes) > 1:
            raise UsageError(
                f"The members answer with different numbers of classes, {sorted(shapes)}. Name the classes that each "
                "member knows."
            )
        return {"logits": merge(logits, self._weights(logits, targets), mean=self.mean), **own}

    def _weights(self, logits: Sequence[Tensor], targets: Tensor | None) -> Tensor:
        if self.weighting == "fixed":
            return self.weights
        if self.weighting == "confidence":
            return confidence_weights(logits, targets)
        if not self.gate.numel():
            raise UsageError("The attention weights were not learned yet: call fit() on samples with labels first.")
        return attention_weights(logits, self.gate)


def member_model(merged: MergedTeacher, index: int) -> nn.Module:
    """Return one member of a merged teacher, counted from 0, without the preprocessing in front of it."""
    pair = merged.members[index]
    return pair[1] if isinstance(pair, nn.Sequential) and len(pair) == 2 else pair
