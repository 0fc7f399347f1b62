"""Recording what the teacher's last layer reads instead of its logits: few numbers that make all logits again.

Shape legend: n samples, h hidden width, r rank, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.errors import TeacherError, UsageError
from potstill.core.files import disk_errors
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.models import resolve
from potstill.models.last_layer import in_standard_units, last_linear, reading
from potstill.store import Manifest
from potstill.store.codecs import Basis, Codec, fit_basis, project, reduced_head
from potstill.store.heads import Head, read_head, write_head
from potstill.teachers import Teacher

Array = np.ndarray[Any, Any]
SIGNAL = "logits"
PROBE = 2048
"""Rows that the directions are fitted on, at least; four times the hidden width where that is more."""


@dataclass(frozen=True)
class CoefficientTeacher:
    """A live teacher whose logits are replaced by the coefficients of what its last layer reads, (b, r)."""

    teacher: Teacher
    layer: nn.Module
    basis: Basis

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """Answer a batch."""
        with reading(self.layer) as read:
            signals = self.teacher(batch)
        hidden = read[-1].float().cpu().numpy()
        return {**signals, SIGNAL: torch.from_numpy(project(hidden, self.basis))}


def find_layer(model: nn.Module | None, codec: Codec, inputs: Tensor) -> nn.Linear:
    """Return the teacher's last linear layer.

    Args:
        model: the teacher's module; None where it has none.
        codec: how what its last layer reads is kept; may name the layer.
        inputs: (b, ...) preprocessed inputs to find it with.

    Raises:
        TeacherError: the teacher does not answer with a linear layer.
        UsageError: the rank is larger than what the layer reads.

    """
    name = None if model is None else codec.facts.layer or last_linear(model, inputs)
    if name is None or model is None:
        name_of = "this one" if model is None else type(model).__name__
        raise TeacherError(
            f"The codec {codec.name} needs a teacher whose logits are those of a linear layer; {name_of} answers with "
            "something else. Choose another codec, or name the layer: store.codecs.logits.layer."
        )
    layer = resolve(model, name)
    if not isinstance(layer, nn.Linear):
        raise UsageError(f"store.codecs.logits.layer: {name} is a {type(layer).__name__}, not a linear layer.")
    if (rank := codec.facts.reduced or 0) > layer.in_features:
        raise UsageError(
            f"store.codecs.logits.rank is {rank}, but layer {name} reads {layer.in_features} numbers. "
            f"Give at most {layer.in_features}."
        )
    return layer


def with_head(
    teacher: Teacher,
    layer: nn.Linear,
    manifest: Manifest,
    folder: Path,
    probe: Iterable[Batch],
    *,
    scale: TargetScale | None = None,
) -> tuple[Manifest, CoefficientTeacher]:
    """Return what to record and who answers, with the head beside the store; one that is there already is kept.

    Args:
        teacher: the teacher.
        layer: its last layer.
        manifest: of the store to be.
        folder: of the store.
        probe: batches whose hidden states the directions are fitted on; not read where the head is there.
        scale: the standard units that the teacher answers in, where it is asked to.

    """
    spec = manifest.signals[SIGNAL]
    if spec.head is None:
        raise TypeError("this store keeps whole logits")
    head = read_head(folder, spec.file)
    if head is None:
        with reading(layer) as read:
            for batch in probe:
                teacher(batch)
        hidden = np.concatenate([states.float().cpu().numpy() for states in read])
        weight = layer.weight.detach().float().cpu()
        bias = None if layer.bias is None else layer.bias.detach().float().cpu()
        if scale is not None:
            weight, bias = in_standard_units(weight, bias, scale)
        basis = fit_basis(hidden, spec.shape[0], weight.numpy())
        reduced, offset = reduced_head(basis, weight, bias)
        head = Head(basis, reduced.numpy(), offset.numpy())
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_head(folder, spec.file, head)
    signals = {**manifest.signals, SIGNAL: replace(spec, head=replace(spec.head, sha256=head.sha256))}
    return replace(manifest, signals=signals), CoefficientTeacher(teacher, layer, head.basis)
