"""Objectives by name: the terms and settings of published methods, as plain functions that return terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.core.errors import UsageError, did_you_mean
from potstill.objective.layers import as_pairs
from potstill.objective.presets import features, outputs, relations, transformers
from potstill.objective.term import Term
from potstill.objective.total import Objective
from potstill.tasks import task_of

PRESETS: dict[str, Callable[..., list[Term]]] = {
    "auto": outputs.kd,
    "alone": outputs.alone,
    "kd": outputs.kd,
    "label_free": outputs.label_free,
    "label_smoothing": outputs.label_smoothing,
    "teacher_free": outputs.teacher_free,
    "kd_standardised": outputs.kd_standardised,
    "dkd": outputs.dkd,
    "nkd": outputs.nkd,
    "dist": outputs.dist,
    "wsld": outputs.wsld,
    "mlkd": outputs.mlkd,
    "reverse": outputs.reverse,
    "jsd": outputs.jsd,
    "hidden": features.hidden,
    "fitnets": features.fitnets,
    "at": features.at,
    "nst": features.nst,
    "fsp": features.fsp,
    "vid": features.vid,
    "ab": features.ab,
    "ofd": features.ofd,
    "ft": features.ft,
    "reviewkd": features.reviewkd,
    "cwd": features.cwd,
    "mgd": features.mgd,
    "simkd": features.simkd,
    "jacobian": features.jacobian,
    "sp": relations.sp,
    "rkd": relations.rkd,
    "pkt": relations.pkt,
    "cc": relations.cc,
    "crd": relations.crd,
    "crd_bank": relations.crd_bank,
    "tinybert": transformers.tinybert,
    "distilbert": transformers.distilbert,
    "pkd": transformers.pkd,
    "minilm": transformers.minilm,
}
"""Every preset: a function of the task, of the layers it reads (by these names), and of keyword-only options."""
LAYERS = ("layers", "embedding", "projections")
"""What a preset may read of the models: pairs of layers, the pair before the classifiers, queries, keys and values."""

Layers = Mapping[str, str] | Sequence[str] | str


def preset(
    name: str,
    task: str,
    *,
    layers: Layers | None = None,
    embedding: Layers | None = None,
    projections: Layers | None = None,
    **options: Any,
) -> Objective:
    """Return the objective of a published method, with the paper's settings.

    ``auto`` is ``kd``, and ``alone`` the baseline without a teacher. The others are listed in docs/methods/presets.md;
    ``potstill plan --terms`` shows what one consists of, as terms for a recipe.

    Args:
        name: of the preset.
        task: ``"classification"`` or ``"regression"``.
        layers: for presets on hidden layers, a mapping of the student's layers to the teacher's, early ones first, or
            a list of names that both share. A run finds them by itself when its recipe does not say.
        embedding: for presets on the last features, the layer in front of each model's classifier.
        projections: for presets on attention, the layers for queries, keys and values.
        **options: keyword arguments of the preset, such as ``temperature``.

    Raises:
        UsageError: an unknown name, task or option, a preset that does not fit the task, or layers that are absent or
            not read.

    """
    given = {"layers": layers, "embedding": embedding, "projections": projections}
    task_of(task)
    function = find_preset(name)
    reads, known = layers_read(name), preset_options(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known) if known else " It takes none."
        raise UsageError(f"The preset {name!r} has no option {unknown[0]!r}.{hint}")
    for kind, value in given.items():
        if value is not None and kind not in reads:
            raise UsageError(f"The preset {name!r} reads no {kind}; {kind}={value!r} were given. Leave them out.")
        if value is None and kind in reads:
            raise UsageError(
                f"The preset {name!r} reads hidden layers: give {kind}={{student's layer: teacher's layer}}. "
                "In a recipe they are found by themselves."
            )
    pairs = {kind: as_pairs(value) for kind, value in given.items() if value is not None}
    arguments: dict[str, Any] = {**pairs, **options}
    if "embedding" in pairs:
        arguments["embedding"] = _one(pairs["embedding"])
    return Objective(function(task, **arguments))


def find_preset(name: str) -> Callable[..., list[Term]]:
    """Return the function behind a preset's name.

    Raises:
        UsageError: there is none of that name.

    """
    if name not in PRESETS:
        raise UsageError(f"Unknown objective {name!r}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def layers_read(name: str) -> tuple[str, ...]:
    """Return which of ``layers``, ``embedding`` and ``projections`` a preset reads."""
    parameters = inspect.signature(find_preset(name)).parameters
    return tuple(kind for kind in LAYERS if kind in parameters)


def preset_options(name: str) -> dict[str, Any]:
    """Return a preset's options with their defaults."""
    parameters = inspect.signature(find_preset(name)).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _one(pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    if len(pairs) != 1:
        raise UsageError(f"embedding must be one layer of each side, not {len(pairs)}.")
    return pairs[0]
