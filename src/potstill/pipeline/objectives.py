"""From a recipe's objective to its terms, and to the layers that a preset reads of these two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError, UsageError, did_you_mean
from potstill.core.signals import Signals
from potstill.models import Preprocessor, Stages, find_stages, tap
from potstill.objective import Objective, as_section, preset, term_from
from potstill.objective.layers import WAYS, Pairs, last, most_alike, uniform
from potstill.objective.presets import layers_read
from potstill.objective.presets.settings import MADE_FOR, at_hand
from potstill.pipeline.any_teacher import describe_source
from potstill.recipe import schema
from potstill.tasks import TaskName, task_of

PROBE = 256
"""Samples on which layers are compared."""
Found = dict[str, Pairs]


@dataclass(frozen=True)
class Side:
    """One of the two models: how to build it (None where it has no layers), and what it is called in messages."""

    role: str
    make: Callable[[], nn.Module] | None
    preprocess: Preprocessor


def build_objective(
    recipe: schema.Recipe,
    *,
    base: Path,
    student: Side,
    teacher: Side | None,
    inputs: Callable[[int], Tensor],
    num_outputs: int,
) -> tuple[Objective, str | schema.PresetSection | list[schema.TermSection]]:
    """Build the recipe's objective: a preset, or its list of terms.

    Args:
        recipe: what to distil.
        base: the folder that the user's own functions are relative to.
        student: the student.
        teacher: the teacher, or None where there is none.
        inputs: returns that many training samples.
        num_outputs: classes, or target columns.

    Returns:
        the objective, and the recipe's section with every layer that was found filled in, and every option whose
        reference value is another one for so many classes.

    Raises:
        PotstillError: an objective that cannot work, or layers that cannot be found.

    """
    wanted = recipe.objective
    if isinstance(wanted, list):
        return Objective([term_from(section.model_dump(), base) for section in wanted]), wanted
    section = schema.PresetSection(preset=wanted) if isinstance(wanted, str) else wanted
    reads = layers_read(section.preset)
    _check_layers(section, reads)
    found = _layers(section, reads, recipe, student, teacher, inputs) if reads else {}
    sized = at_hand(section.preset, num_outputs) if task_of(recipe.task).exclusive else {}
    options = {"options": {**sized, **section.options}} if sized else {}
    section = section.model_copy(update={**{kind: dict(pairs) for kind, pairs in found.items()}, **options})
    return _preset(section, recipe.task), section if found or sized else wanted


def terms_of(recipe: schema.Recipe) -> list[dict[str, Any]]:
    """Return the objective of a resolved recipe as a list of terms for a recipe, defaults left out.

    Raises:
        UsageError: a preset whose layers are not known yet.

    """
    wanted = recipe.objective
    if isinstance(wanted, list):
        return [term.model_dump(exclude_defaults=True) for term in wanted]
    section = schema.PresetSection(preset=wanted) if isinstance(wanted, str) else wanted
    return [as_section(term) for term in _preset(section, recipe.task).terms]


def _preset(section: schema.PresetSection, task: TaskName) -> Objective:
    return preset(section.preset, task, **_named_layers(section), **section.options)


def _named_layers(section: schema.PresetSection) -> dict[str, dict[str, str]]:
    """Return the layers that a section names, by what they are read for."""
    kinds = {"layers": section.layers, "embedding": section.embedding, "projections": section.projections}
    return {kind: pairs for kind, pairs in kinds.items() if isinstance(pairs, dict)}


def made_for(recipe: schema.Recipe) -> str:
    """Return what the settings of the recipe's preset were made for; empty for terms and settings of our own."""
    wanted = recipe.objective
    if isinstance(wanted, list):
        return ""
    return MADE_FOR.get(wanted if isinstance(wanted, str) else wanted.preset, "")


def layers_of(recipe: schema.Recipe) -> list[dict[str, str]]:
    """Return which layers the preset of a resolved recipe pairs: rows of ``for``, ``student`` and ``teacher``."""
    if not isinstance(recipe.objective, schema.PresetSection):
        return []
    return [
        {"for": kind, "student": student, "teacher": teacher}
        for kind, pairs in _named_layers(recipe.objective).items()
        for student, teacher in pairs.items()
    ]


def _check_layers(section: schema.PresetSection, reads: Sequence[str]) -> None:
    """Refuse an unknown way to pair layers, and layers that the preset does not read."""
    if isinstance(section.layers, str) and section.layers not in WAYS:
        raise UsageError(
            f"objective.layers: {section.layers!r} is not known.{did_you_mean(section.layers, WAYS)} Use one of "
            f"{', '.join(WAYS)}, or a mapping of the student's layers to the teacher's."
        )
    for kind in _named_layers(section):
        if kind not in reads:
            raise UsageError(f"objective.{kind}: the preset {section.preset!r} reads no {kind}. Leave them out.")


def _layers(
    section: schema.PresetSection,
    reads: Sequence[str],
    recipe: schema.Recipe,
    student: Side,
    teacher: Side | None,
    inputs: Callable[[int], Tensor],
) -> Found:
    """Return the pairs of every kind that the preset reads; those that the recipe leaves open are looked for."""
    pairs: Found = {kind: tuple(given.items()) for kind, given in _named_layers(section).items()}
    open_kinds = [kind for kind in reads if kind not in pairs]
    if not open_kinds:
        return pairs
    if teacher is None:
        raise UsageError(f"The preset {section.preset!r} reads a teacher's layers, and there is no teacher.")
    if recipe.teacher is not None and recipe.teacher.members:
        raise UsageError(
            f"The preset {section.preset!r} reads hidden layers, and there are several teachers. Name the layers: "
            f"objective: {{preset: {section.preset}, {open_kinds[0]}: {{student's layer: teacher's layer}}}}."
        )
    if recipe.teacher is not None and teacher.make is None:
        raise UsageError(
            f"The preset {section.preset!r} reads hidden layers, and {describe_source(recipe.teacher)} is no torch "
            "model with layers. Choose a preset that reads logits, such as auto, or give a torch model."
        )
    stages = [_stages(side, inputs(2)) for side in (student, teacher)]
    for kind in open_kinds:
        if kind == "embedding":
            pairs[kind] = ((_embedding(stages[0], student, section), _embedding(stages[1], teacher, section)),)
        elif kind == "projections":
            own, other = (
                _named(stage.projections, side, section, kind)
                for stage, side in zip(stages, (student, teacher), strict=True)
            )
            pairs[kind] = tuple(zip(own, other, strict=True))
        else:
            own, other = (
                _named(stage.layers, side, section, kind)
                for stage, side in zip(stages, (student, teacher), strict=True)
            )
            pairs[kind] = _paired(str(section.layers), own, other, recipe, student, teacher, inputs)
    return {kind: pairs[kind] for kind in reads}


def _paired(
    way: str,
    own: Sequence[str],
    other: Sequence[str],
    recipe: schema.Recipe,
    student: Side,
    teacher: Side,
    inputs: Callable[[int], Tensor],
) -> Pairs:
    if way != "cka":
        return (uniform if way == "uniform" else last)(own, other)
    if recipe.teacher is not None and recipe.teacher.train is not None:
        raise UsageError(
            "objective.layers: cka compares what the layers say, and the teacher is still to be trained. Use uniform, "
            "or train it first and name its file with teacher.weights."
        )
    samples = inputs(PROBE)
    return most_alike(_signals(student, own, samples), _signals(teacher, other, samples))


def _signals(side: Side, layers: Sequence[str], inputs: Tensor) -> Signals:
    model = _made(side).eval()
    with torch.no_grad(), tap(model, {name: name for name in layers}) as tapped:
        model(side.preprocess(inputs))
        return {name: tapped[name].detach().clone() for name in layers}


def _stages(side: Side, inputs: Tensor) -> Stages:
    try:
        return find_stages(_made(side), side.preprocess(inputs))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise PotstillError(
            f"The {side.role} failed on a batch of shape {tuple(inputs.shape)}: {error}. "
            f"Check {side.role}.args and {side.role}.preprocess against the samples."
        ) from error


def _made(side: Side) -> nn.Module:
    if side.make is None:
        raise TypeError(f"the {side.role} has no layers")
    return side.make()


def _named(names: tuple[str, ...], side: Side, section: schema.PresetSection, kind: str) -> tuple[str, ...]:
    if names:
        return names
    what = "layers for queries, keys and values" if kind == "projections" else "layers"
    raise UsageError(
        f"The preset {section.preset!r} reads hidden layers, and no {what} of the {side.role} stand out. Name them: "
        f"objective: {{preset: {section.preset}, {kind}: {{student's layer: teacher's layer}}}}."
    )


def _embedding(stages: Stages, side: Side, section: schema.PresetSection) -> str:
    """Return the layer that the classifier reads, or the last stage where that is no layer's output."""
    return stages.embedding or _named(stages.layers, side, section, "embedding")[-1]
