"""What builds the models of a job, from their recipe sections or from modules that were given."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError, TeacherError, UsageError, did_you_mean
from potstill.core.scale import TargetScale
from potstill.data import Data
from potstill.models import Preprocessor, build, load_weights, reinitialise
from potstill.models.beside_weights import copied, has_lazy_layers, initialise_lazy_layers
from potstill.models.load import scale_in
from potstill.pipeline.any_teacher import check_logits, foreign_teacher, is_foreign, read_as
from potstill.pipeline.side_by_side import side_by_side
from potstill.recipe import schema
from potstill.tasks import task_of
from potstill.teachers import MergedTeacher, Source, TorchModel, Votes, VotingTeacher
from potstill.teachers.regrouped import Regrouped, groups_of

AnyModel = Source | nn.Module
"""A model that a Python user gives: at rest, or a torch module."""
_QUESTIONS = 64
"""Samples that a torch model is questioned about before more of them are asked."""


def student_maker(
    section: schema.Model,
    first_seed: int,
    data: Data,
    *,
    base: Path,
    given: nn.Module | Callable[[], nn.Module] | None,
) -> Callable[[int], nn.Module]:
    """Return what builds a student, a peer or an assistant from a seed; a module that was given is copied."""
    example = partial(_example, section, data)
    if isinstance(given, nn.Module):
        original = copied(initialise_lazy_layers(given, example, seed=first_seed))

        def from_module(seed: int) -> nn.Module:
            model = copied(original)
            if seed != first_seed:
                reinitialise(model, seed)
            return model

        return from_module
    args = {} if given is not None else zoo_arguments(section, data)

    def from_recipe(seed: int) -> nn.Module:
        model = build(given or section.model, args, seed=seed, base=base)
        initialise_lazy_layers(model, example, seed=seed)
        if given is None and section.weights is not None:
            load_weights(model, located(section.weights, base), allow_pickle=section.allow_pickle)
        return model

    return from_recipe


def open_teacher(
    section: schema.Teacher,
    recipe: schema.Recipe,
    data: Data,
    *,
    base: Path,
    given: AnyModel | tuple[AnyModel | None, ...] | None,
) -> Source:
    """Open or build the teacher: one model, one that answers in other classes, or several merged into one.

    Raises:
        PotstillError: a teacher without weights, class names that the data does not have, or members that do not fit.

    """
    if not section.members:
        own = None if isinstance(given, tuple) else given
        return _open(section, "teacher", data, seed=recipe.seed, base=base, given=own, recipe=recipe)
    parts = given if isinstance(given, tuple) else (None,) * len(section.members)
    members = [
        _open(
            *(member, f"teacher.members[{index}]", data),
            seed=recipe.seed + index,
            base=base,
            given=own,
            recipe=recipe,
        )
        for index, (member, own) in enumerate(zip(section.members, parts, strict=True))
    ]
    if section.votes is not None:
        secret = None if section.votes.secret is None else located(section.votes.secret, base)
        return VotingTeacher(members, vote_rule(section.votes), secret=secret)
    attention = section.merge.weighting == "attention"
    if attention and any(member.facts.listed for member in members):
        raise TeacherError(
            "teacher.merge.weighting: attention is learned by asking every member about the validation split, and one "
            "of them is a file of recorded answers. Use fixed or confidence."
        )
    model = MergedTeacher(
        members,
        mean=section.merge.mean,
        weighting=section.merge.weighting,
        weights=section.merge.weights,
        known=[_known(member, index, data) for index, member in enumerate(section.members)],
        num_classes=data.num_outputs,
        regression=not task_of(data.task).has_classes,
        exclusive=task_of(data.task).exclusive,
        scales=[answers_in(member, data, base) for member in section.members],
    )
    if section.merge.concatenate is not None:
        return side_by_side(model, section, data, recipe.seed)
    if attention:
        # Equal weights, so that shapes can be checked before the members are trained and the weights learned.
        model.gate = torch.zeros(len(members), len(members) * data.num_outputs + 1)
    return model


def answers_in(section: schema.Teacher | schema.Member, data: Data, base: Path) -> TargetScale | None:
    """Return what turns a teacher's values into the units that students learn in; None where it answers in these.

    A teacher answers in the target's units, unless it is trained here or its weights file says that it was.
    """
    if not task_of(data.task).has_units or section.train is not None:
        return None
    own = None if section.weights is None else scale_in(located(section.weights, base))
    if own is None:
        return data.scale
    wanted = data.scale or TargetScale((0.0,) * len(own.mean), (1.0,) * len(own.std))
    return None if own == wanted else wanted.seen_in(own)


def _example(section: schema.Model | schema.Teacher | schema.Member, data: Data) -> Tensor:
    """Return a batch as the model sees it."""
    prepared: Tensor = preprocessor(section.preprocess)(data.train.fetch(np.arange(min(2, len(data.train)))))
    return prepared


def vote_rule(votes: schema.VotesSection) -> Votes:
    """Return how votes are counted, from the recipe's section."""
    return Votes(votes.noise, votes.check_noise, votes.threshold, votes.at_least)


def _known(member: schema.Member, index: int, data: Data) -> list[int] | None:
    """Return the classes of the data that a member's outputs stand for, or None where that is all in order."""
    if member.classes is None:
        return None
    absent = [name for name in member.classes if name not in data.classes]
    if absent:
        raise TeacherError(
            f"teacher.members[{index}].classes names {absent}, which the data does not have."
            f"{did_you_mean(absent[0], data.classes)} The data's classes are {', '.join(data.classes)}."
        )
    return [data.classes.index(name) for name in member.classes]


def _open(
    section: schema.Teacher | schema.Member,
    place: str,
    data: Data,
    *,
    seed: int,
    base: Path,
    given: AnyModel | None,
    recipe: schema.Recipe,
) -> Source:
    class_map = section.class_map if isinstance(section, schema.Teacher) else None
    classes = section.classes if isinstance(section, schema.Member) else class_map
    then = () if class_map is None else (Regrouped(groups_of(class_map, data.classes), data.num_outputs),)
    preprocess = preprocessor(section.preprocess)
    if given is not None and not isinstance(given, nn.Module):
        if then or section.answers is not None or section.preprocess != schema.Preprocess():
            raise TeacherError(
                f"{place}: {type(given).__name__} has its own preprocessing and answers with logits or values. Drop "
                "preprocess, answers and class_map."
            )
        return given
    if given is None and is_foreign(section):
        model = foreign_teacher(
            *(_with_interpreter(section, base), classes, place, data),
            path=None if section.file is None else located(section.file, base),
            preprocess=preprocess,
            views=_views_asked(recipe),
            id_column=recipe.data.id,
        )
        return replace(model, then=(*model.then, *then))
    if given is None and section.weights is None and section.train is None:
        raise PotstillError(
            f"The teacher has no weights: name its file with {place}.weights, or let it be trained on the same data "
            f"with {place}.train: {{epochs: 30}}."
        )
    if given is None:
        module = build(
            section.model, zoo_arguments(section, data, num_outputs=len(classes or ())), seed=seed, base=base
        )
        initialise_lazy_layers(module, partial(_example, section, data), seed=seed)
        if section.weights is not None:
            load_weights(module, located(section.weights, base), allow_pickle=section.allow_pickle)
    elif has_lazy_layers(given):
        raise TeacherError(
            f"{place}: {type(given).__name__} has lazy layers that were never initialised: it has no weights to "
            "teach with. Train it first, or let potstill train it (a function that builds it, and teacher.train)."
        )
    else:
        module = given
    if section.train is None:
        _check_answers(section, module, place, data)
    return TorchModel(module, preprocess, (*read_as(section, module, classes, data), *then))


def _check_answers(section: schema.Teacher | schema.Member, model: nn.Module, place: str, data: Data) -> None:
    """Question a torch model that comes trained about a few samples."""
    inputs = data.train.fetch(np.arange(min(_QUESTIONS, len(data.train))))
    check_logits(section, model, preprocessor(section.preprocess), inputs, place=place, data=data)


def _views_asked(recipe: schema.Recipe) -> int | None:
    """Return how many changed views of each sample the teacher is asked about; 0 where every epoch has new ones."""
    if recipe.data.augment == schema.Augment():
        return None
    live = recipe.teacher is not None and recipe.teacher.live
    return 0 if live else recipe.store.views or 1


def _with_interpreter(section: schema.Teacher | schema.Member, base: Path) -> schema.Teacher | schema.Member:
    """Return the section with its Python's path from the recipe's folder; a bare name is looked up as a command."""
    if section.python is None or os.sep not in section.python:
        return section
    return section.model_copy(update={"python": str(located(section.python, base))})


def zoo_arguments(section: schema.Model, data: Data, *, num_outputs: int | None = None) -> dict[str, Any]:
    """Return a model's arguments; a zoo model's with what the data already says filled in.

    Args:
        section: the model.
        data: what it is for.
        num_outputs: its classes, where they are not those of the data.

    """
    from potstill.models import zoo

    args = dict(section.args)
    if section.model in zoo.__all__:
        args.setdefault("num_classes", num_outputs or data.num_outputs)
        if section.model in ("mlp", "lightgbm"):
            args.setdefault("in_features", math.prod(data.shape))
        elif data.kind == "image":
            args.setdefault("in_channels", data.shape[0])
    return args


def located(text: str, base: Path) -> Path:
    """Return the path that a recipe names: relative to the recipe's folder, with ``${NAME}`` from the environment.

    Raises:
        UsageError: a variable that is not set.

    """
    expanded = str(Path(os.path.expandvars(text)).expanduser())
    if "$" in expanded:
        raise UsageError(f"{text}: an environment variable in this path is not set. Set it, or write the path out.")
    return base / expanded


def preprocessor(section: schema.Preprocess) -> Preprocessor:
    """Build a model's preprocessing from its recipe section."""
    mean = None if section.mean is None else torch.tensor(section.mean)
    std = None if section.std is None else torch.tensor(section.std)
    return Preprocessor(mean, std, section.size)
