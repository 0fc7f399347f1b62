"""Several teachers as one model: it is recorded, evaluated and reported like any other.

Shape legend: m members, b samples, c classes or outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.models.load import output_tensor
from potstill.models.preprocess import Preprocessor
from potstill.teachers.at_rest import Asked, as_source, facts_of_all, state_of_all, text_of_all
from potstill.teachers.merge import (
    Mean,
    attention_weights,
    check_known,
    confidence_weights,
    fit_attention,
    fixed_weights,
    merge,
    mixture_of_yes,
    unite,
)
from potstill.teachers.model import LOGITS, Facts, Labelled, Reads, Source, Teacher

Weighting = Literal["fixed", "confidence", "attention"]


class MergedTeacher:
    """Answers with the merged answer of its members, which are models of any kind.

    When to use it: several models were trained on one task, or each knows some of the classes, and a student should
    learn from all. Every member's own logits are signals too: ``member1.logits``, ``member2.logits``, ...

    Args:
        members: models at rest, or torch modules that see the inputs as they are.
        mean: ``probabilities`` for the mixture, ``logits`` for the geometric mean.
        weighting: ``fixed``; ``confidence`` for a weight per sample, by the labels of a batch that has them, else by
            the entropy; ``attention`` for learned weights per sample, after `fit`.
        weights: one number per member for ``fixed``, equal when absent.
        known: for each member the classes of the data its outputs stand for, or None where that is all in order.
        num_classes: classes of the data; needed with ``known``.
        regression: whether the outputs are values and not logits; then the weighted mean is taken.
        exclusive: whether logits are those of one distribution; otherwise each is of a yes or no of its own.
        scales: in regression, for each member the standard units to take its values in before they are merged, or None
            where it answers in them already.

    Raises:
        UsageError: options that do not fit each other, or classes that no member knows.

    """

    def __init__(
        self,
        members: Sequence[Source | nn.Module],
        *,
        mean: Mean = "probabilities",
        weighting: Weighting = "fixed",
        weights: Sequence[float] | None = None,
        known: Sequence[Sequence[int] | None] | None = None,
        num_classes: int | None = None,
        regression: bool = False,
        exclusive: bool = True,
        scales: Sequence[TargetScale | None] | None = None,
    ) -> None:
        for value, choices in ((mean, get_args(Mean)), (weighting, get_args(Weighting))):
            if value not in choices:
                raise UsageError(f"Unknown way to merge teachers: {value!r}.{did_you_mean(value, choices)}")
        if not members:
            raise UsageError("A merged teacher needs at least one member.")
        if not exclusive and not regression and (weighting != "fixed" or any(one is not None for one in known or ())):
            raise UsageError(
                "Teachers of several labels are merged with fixed weights, and know all classes. Remove weighting and "
                "the members' classes."
            )
        if regression and (weighting != "fixed" or any(classes is not None for classes in known or ())):
            raise UsageError("Values are merged with fixed weights: a number has no entropy and no classes.")
        if weights is not None and weighting != "fixed":
            raise UsageError(f"weights={list(weights)} are fixed, but weighting={weighting!r} makes its own. Give one.")
        self.members = tuple(map(as_source, members))
        self.mean = mean
        self.weighting = weighting
        self.regression = regression
        self.exclusive = exclusive
        self.scales = tuple(scales or [None] * len(members))
        self.signals = tuple(f"member{number}.logits" for number in range(1, len(members) + 1))
        self.weights = fixed_weights(weights, len(members))
        self.gate = torch.zeros(0)
        """The attention weights; empty before they are learned."""
        self.num_classes = num_classes
        self.module = None
        self.preprocess = Preprocessor()
        partial = known is not None and any(classes is not None for classes in known)
        self.known = self._tables(known or (), num_classes) if partial else ()

    def _tables(self, known: Sequence[Sequence[int] | None], num_classes: int | None) -> tuple[Tensor, ...]:
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
        return tuple(tables)

    @property
    def facts(self) -> Facts:
        """What is known of it: what is known of all members."""
        return replace(facts_of_all(self.members, self.signals), fitted=self.weighting == "attention")

    def __str__(self) -> str:
        """Return what tells two of these apart."""
        scales = f"scales={[scale and scale.to_json() for scale in self.scales]}" if any(self.scales) else ""
        return text_of_all("MergedTeacher", self.members, scales)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that its answers depend on, by name."""
        known = {f"known{number}": table for number, table in enumerate(self.known, 1)}
        return {**state_of_all(self.members), "weights": self.weights, "gate": self.gate, **known}

    def whole(self) -> nn.Module | None:
        """Return one module from raw inputs to its answer; None where a member is no torch module."""
        parts = [part for member in self.members if (part := member.whole()) is not None]
        return _Whole(self, parts) if len(parts) == len(self.members) else None

    def teaching(self, reads: Reads = LOGITS) -> Teacher:
        """Return it frozen: a batch's labels weigh the members where it has any, so leave them out to measure it."""
        teachers = [
            member.teaching(Reads(precision=reads.precision, device=reads.device, scale=scale))
            for member, scale in zip(self.members, self.scales, strict=True)
        ]

        def answer(batch: Batch) -> dict[str, Tensor]:
            return self.merged([teacher(batch)["logits"] for teacher in teachers], batch.targets)

        how: dict[str, Any] = {"mean": self.mean, "weighting": self.weighting, "members": len(self.members)}
        if any(self.scales):
            how["scales"] = [None if scale is None else scale.to_json() for scale in self.scales]
        return Asked(self, "MergedTeacher", answer, reads, tuple(teachers), {"merge": how})

    def with_weights(self, files: Mapping[int, Path], labelled: Labelled) -> MergedTeacher:
        """Return a copy whose members have weights from files, and which has learned the weights of attention."""
        changed = copy.copy(self)
        changed.members = tuple(
            member.with_weights({0: files[number]} if number in files else {}, labelled)
            for number, member in enumerate(self.members, 1)
        )
        return changed.fit(labelled()) if self.weighting == "attention" else changed

    def fit(self, batches: Sequence[Batch]) -> MergedTeacher:
        """Return it with attention weights, learned from samples with labels that no member was trained on."""
        logits: list[list[Tensor]] = []
        for member in self.members:
            with member.teaching() as teacher:
                logits.append([teacher(batch)["logits"] for batch in batches])
        targets = torch.cat([batch.targets for batch in batches if batch.targets is not None])
        changed = copy.copy(self)
        with torch.no_grad():
            changed.gate = fit_attention([torch.cat(answers) for answers in logits], targets)
        return changed

    def merged(self, logits: Sequence[Tensor], targets: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``logits`` (b, c) and each member's own.

        Args:
            logits: (b, c) of each member, in the units to merge values in.
            targets: (b,) labels, which weights by confidence go by; None to measure.

        """
        own = dict(zip(self.signals, logits, strict=True))
        device = logits[0].device
        targets = None if targets is None else targets.to(device)
        if self.regression or (not self.exclusive and self.mean == "logits"):
            weights = self.weights.to(device).reshape(-1, *[1] * logits[0].dim())
            return {"logits": (weights * torch.stack(list(logits)).float()).sum(0), **own}
        if not self.exclusive:
            return {"logits": mixture_of_yes(torch.stack(list(logits)), self.weights.to(device)), **own}
        if self.known:
            known = [table.to(device) for table in self.known]
            for number, (answers, table) in enumerate(zip(logits, known, strict=True), 1):
                if answers.shape[1] != len(table):
                    raise UsageError(
                        f"Member {number} answers with {answers.shape[1]} classes, but {len(table)} were named for it."
                    )
            united = unite(logits, known, self._weights(logits, None), num_classes=self.num_classes or 0)
            return {"logits": united, **own}
        shapes = {tuple(answers.shape[1:]) for answers in logits}
        if len(shapes) > 1:
            raise UsageError(
                f"The members answer with different numbers of classes, {sorted(shapes)}. Name the classes that each "
                "member knows."
            )
        return {"logits": merge(logits, self._weights(logits, targets), mean=self.mean), **own}

    def _weights(self, logits: Sequence[Tensor], targets: Tensor | None) -> Tensor:
        device = logits[0].device
        if self.weighting == "fixed":
            return self.weights.to(device)
        if self.weighting == "confidence":
            return confidence_weights(logits, targets)
        if not self.gate.numel():
            raise UsageError("The attention weights were not learned yet: call fit() on samples with labels first.")
        return attention_weights(logits, self.gate.to(device))


class _Whole(nn.Module):
    def __init__(self, model: MergedTeacher, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.parts = model, nn.ModuleList(parts)

    def forward(self, inputs: Tensor) -> Tensor:
        answers = [output_tensor(part(inputs)) for part in self.parts]
        scaled = [
            answer if scale is None else scale.standard_tensor(answer)
            for answer, scale in zip(answers, self.model.scales, strict=True)
        ]
        return self.model.merged(scaled)["logits"]
