"""From a recipe, or from Python objects, to the job that the stages work on."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.optional import check_installed
from potstill.core.signals import Batch
from potstill.data import Data, batches, channel_statistics, check_augment, load
from potstill.models import Preprocessor, build, load_weights, output_tensor, reinitialise, tap
from potstill.models.taps import Where
from potstill.objective import Objective, Term, check, find_loss, preset
from potstill.recipe import schema

VIEWS_AT_MOST = 10
IN_MEMORY = "python-object"
"""What a recipe says where a Python object was given instead."""


@dataclass(frozen=True)
class Given:
    """Python objects that take the place of what the recipe describes."""

    teacher: nn.Module | None = None
    student: nn.Module | Callable[[], nn.Module] | None = None
    data: Any = None
    objective: Objective | None = None
    student_taps: Mapping[str, Where] = field(default_factory=dict)
    teacher_taps: Mapping[str, Where] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Everything the stages need, built and checked; nothing is trained or recorded yet.

    ``recipe`` is the resolved one: what the user left open (normalisation, views, device) is filled in.
    """

    recipe: schema.Recipe
    base: Path
    data: Data
    objective: Objective
    make_student: Callable[[int], nn.Module]
    make_teacher: Callable[[], nn.Module]
    student_preprocess: Preprocessor
    teacher_preprocess: Preprocessor
    device: torch.device
    given: Given

    @property
    def augment(self) -> schema.Augment | None:
        """The augmentation of training images, or None where every sample is always the same."""
        return None if self.recipe.data.augment == schema.Augment() else self.recipe.data.augment

    @property
    def student_taps(self) -> dict[str, Where]:
        """Layers of the student that the objective reads."""
        return _taps(self.objective.student_signals, self.recipe.student.taps, self.given.student_taps)

    @property
    def teacher_taps(self) -> dict[str, Where]:
        """Layers of the teacher that the objective reads."""
        return _taps(self.objective.teacher_signals, self.recipe.teacher.taps, self.given.teacher_taps)


def build_job(recipe: schema.Recipe, *, base: Path, given: Given | None = None) -> Job:
    """Load the data, build the models and check that everything fits, before anything expensive runs.

    Raises:
        PotstillError: anything in the recipe, the data or the models that cannot work, with how to fix it.

    """
    given = given or Given()
    _check_rebuildable(recipe, given)
    _check_extras(recipe)
    device = _device(recipe.device)
    data = load_data(recipe, base=base, given=given)
    check_augment(recipe.data.augment, data.shape)
    objective = given.objective or build_objective(recipe, base=base)
    trained_here = recipe.teacher.train is not None
    recipe = recipe.model_copy(
        update={
            "device": device.type,
            "data": recipe.data.model_copy(update={"classes": list(data.classes) or None}),
            "student": _with_statistics(recipe.student, data),
            "teacher": _with_statistics(recipe.teacher, data) if trained_here else recipe.teacher,
            "store": recipe.store.model_copy(update={"views": _views(recipe)}),
        }
    )
    make_student = _student_maker(recipe, data, base=base, given=given)
    make_teacher = _teacher_maker(recipe, data, base=base, given=given)
    job = Job(
        recipe=recipe,
        base=base,
        data=data,
        objective=objective,
        make_student=make_student,
        make_teacher=make_teacher,
        student_preprocess=preprocessor(recipe.student.preprocess),
        teacher_preprocess=preprocessor(recipe.teacher.preprocess),
        device=device,
        given=given,
    )
    check_models(job)
    return job


def _check_rebuildable(recipe: schema.Recipe, given: Given) -> None:
    """Refuse a recipe whose models or data were Python objects, unless they are given again."""
    parts = {
        "the data": (recipe.data.train, given.data),
        "the teacher": (recipe.teacher.model, given.teacher),
        "the student": (recipe.student.model, given.student),
        "the objective": (recipe.objective, given.objective),
    }
    absent = [name for name, (named, value) in parts.items() if named == IN_MEMORY and value is None]
    if absent:
        raise UsageError(
            f"This recipe was written by potstill.distill() with Python objects for {', '.join(absent)}, which it "
            "cannot rebuild. Call potstill.distill() again with the same objects and the same out."
        )


def _check_extras(recipe: schema.Recipe) -> None:
    """Find out before the training whether everything after it is installed."""
    check_installed(("altair", "jinja2", "vl_convert"), feature="writing the report", extra="report")
    if recipe.export.formats:
        check_installed(("onnx", "onnxruntime", "onnxscript"), feature="exporting to ONNX", extra="export")
    for tracker in {*recipe.training.track, *(recipe.teacher.train.track if recipe.teacher.train else ())}:
        check_installed((tracker,), feature=f"tracking with {tracker}", extra="track")


def load_data(recipe: schema.Recipe, *, base: Path, given: Given) -> Data:
    """Load and check the recipe's data, or the Python data given in its place."""
    section = recipe.data
    return load(
        _source(section.train, base) if given.data is None else given.data,
        validation=None if section.validation is None else _source(section.validation, base),
        test=None if section.test is None else _source(section.test, base),
        args=section.args,
        task=recipe.task,
        inputs=section.inputs,
        target=section.target,
        id_column=section.id,
        classes=section.classes,
        image_size=section.image_size,
        on_bad=section.on_bad,
        validation_fraction=section.split.validation,
        test_fraction=section.split.test,
        seed=recipe.seed,
        base=base,
    )


def _taps(signals: frozenset[str], named: Mapping[str, str], given: Mapping[str, Where]) -> dict[str, Where]:
    """Where each signal that the objective reads is tapped; a signal without an entry is a layer's own name."""
    return {name: given.get(name, named.get(name, name)) for name in sorted(signals - {"logits"})}


def build_objective(recipe: schema.Recipe, *, base: Path) -> Objective:
    """Build the recipe's objective: a preset by name, or its list of terms."""
    if isinstance(recipe.objective, str):
        return preset(recipe.objective, recipe.task)
    return Objective(
        [
            Term(
                find_loss(term.loss, base),
                term.weight,
                on=term.on,
                student=term.student,
                teacher=term.teacher,
                **term.options,
            )
            for term in recipe.objective
        ]
    )


def located(text: str, base: Path) -> Path:
    """Return the path that a recipe names: relative to the recipe's folder, with ``${NAME}`` from the environment.

    Raises:
        UsageError: a variable that is not set.

    """
    expanded = str(Path(os.path.expandvars(text)).expanduser())
    if "$" in expanded:
        raise UsageError(f"{text}: an environment variable in this path is not set. Set it, or write the path out.")
    return base / expanded


def _source(text: str, base: Path) -> str:
    """Return a data source with environment variables filled in; functions and 'digits' stay as they are."""
    return str(located(text, base)) if "$" in text or text.startswith("~") else text


def preprocessor(section: schema.Preprocess) -> Preprocessor:
    """Build a model's preprocessing from its recipe section."""
    mean = None if section.mean is None else torch.tensor(section.mean)
    std = None if section.std is None else torch.tensor(section.std)
    return Preprocessor(mean, std, section.size)


def answer(
    model: nn.Module, preprocess: Preprocessor, inputs: Tensor, taps: dict[str, Where]
) -> dict[str, tuple[int, ...]]:
    """Run one batch through ``model`` in eval mode and return the shape of each signal, without the batch axis."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), tap(model, taps) as tapped:
            shapes = {"logits": tuple(output_tensor(model(preprocess(inputs))).shape[1:])}
            shapes.update({name: tuple(tapped[name].shape[1:]) for name in taps})
    finally:
        for module, training in flags:
            module.training = training
    return shapes


def example_batch(job: Job, size: int = 2) -> Batch:
    """Return the first training samples, augmented as training will see them."""
    return next(
        iter(
            batches(
                job.data.train,
                batch_size=min(size, len(job.data.train)),
                seed=job.recipe.seed,
                augment=job.augment,
                num_classes=job.data.num_outputs,
            )
        )
    )


def check_models(job: Job) -> None:
    """Run one batch through both models and compare their answers with the data and the objective.

    Raises:
        PotstillError: a model that fails on a batch, has another number of outputs than the data, or lacks a layer.

    """
    inputs = example_batch(job).inputs
    student = _try("student", job.make_student(job.recipe.seed), job.student_preprocess, inputs, job.student_taps)
    teacher = _try("teacher", job.make_teacher(), job.teacher_preprocess, inputs, job.teacher_taps)
    expected = (job.data.num_outputs,)
    what = "classes" if job.data.task == "classification" else "target columns"
    if teacher["logits"] != expected:
        raise TeacherError(
            f"The teacher answers each sample with {_count(teacher['logits'])} numbers, but the data has "
            f"{job.data.num_outputs} {what}. Use the teacher's own classes (data.classes), or another teacher."
        )
    if student["logits"] != expected:
        raise PotstillError(
            f"The student answers each sample with {_count(student['logits'])} numbers, but the data has "
            f"{job.data.num_outputs} {what}. Set student.args.num_classes: {job.data.num_outputs} "
            "(or the argument of your own model that sets the number of outputs)."
        )
    check(job.objective, student, teacher, num_classes=job.data.num_outputs, task=job.data.task)


def _count(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "1"


def _try(
    role: str, model: nn.Module, preprocess: Preprocessor, inputs: Tensor, taps: dict[str, Where]
) -> dict[str, tuple[int, ...]]:
    try:
        return answer(model, preprocess, inputs, taps)
    except PotstillError as error:
        raise type(error)(f"{role}: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        after = tuple(preprocess(inputs).shape)
        raise PotstillError(
            f"The {role} failed on a batch of shape {after}: {error}. "
            f"Check {role}.args and {role}.preprocess against the samples."
        ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise PotstillError("device: cuda was asked for, but torch finds no CUDA device. Use device: auto or cpu.")
    if name not in ("cpu", "cuda"):
        raise PotstillError(f"device: {name!r} is not known. Use auto, cpu or cuda.")
    return torch.device(name)


def _views(recipe: schema.Recipe) -> int:
    if recipe.data.augment == schema.Augment():
        return 1
    return recipe.store.views or min(recipe.training.epochs, VIEWS_AT_MOST)


def _with_statistics(model: Any, data: Data) -> Any:
    """Fill in the normalisation of a model that is trained here from the training data."""
    if model.preprocess.mean is not None:
        return model
    mean, std = channel_statistics(data.train)
    return model.model_copy(update={"preprocess": model.preprocess.model_copy(update={"mean": mean, "std": std})})


def zoo_arguments(section: schema.Model, data: Data) -> dict[str, Any]:
    """Return a model's arguments; a zoo model's with what the data already says filled in."""
    from potstill.models import zoo

    args = dict(section.args)
    if section.model in zoo.__all__:
        args.setdefault("num_classes", data.num_outputs)
        if section.model == "mlp":
            args.setdefault("in_features", _features(data))
        elif data.kind == "image":
            args.setdefault("in_channels", data.shape[0])
    return args


def _features(data: Data) -> int:
    count = 1
    for size in data.shape:
        count *= size
    return count


def _student_maker(recipe: schema.Recipe, data: Data, *, base: Path, given: Given) -> Callable[[int], nn.Module]:
    if isinstance(given.student, nn.Module):
        original = copy.deepcopy(given.student)

        def from_module(seed: int) -> nn.Module:
            model = copy.deepcopy(original)
            if seed != recipe.seed:
                reinitialise(model, seed)
            return model

        return from_module
    factory = given.student or recipe.student.model
    args = {} if given.student is not None else zoo_arguments(recipe.student, data)

    def from_recipe(seed: int) -> nn.Module:
        model = build(factory, args, seed=seed, base=base)
        if given.student is None and recipe.student.weights is not None:
            load_weights(model, located(recipe.student.weights, base), allow_pickle=recipe.student.allow_pickle)
        return model

    return from_recipe


def _teacher_maker(recipe: schema.Recipe, data: Data, *, base: Path, given: Given) -> Callable[[], nn.Module]:
    if given.teacher is not None:
        module = given.teacher
        return lambda: module
    section = recipe.teacher
    if section.weights is None and section.train is None:
        raise PotstillError(
            "The teacher has no weights: name its file with teacher.weights, or let it be trained on the same data "
            "with teacher.train: {epochs: 30}."
        )
    args = zoo_arguments(section, data)

    def from_recipe() -> nn.Module:
        model = build(section.model, args, seed=recipe.seed, base=base)
        if section.weights is not None:
            load_weights(model, located(section.weights, base), allow_pickle=section.allow_pickle)
        return model

    return from_recipe
