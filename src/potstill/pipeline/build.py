"""From a recipe, or from Python objects, to the job that the stages work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.names import parse
from potstill.core.optional import check_installed
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch
from potstill.data import Data, Stream, channel_statistics, check_augment, load
from potstill.data.samples import Flags
from potstill.evaluation.predict import evaluating
from potstill.models import Preprocessor, output_signals, tap
from potstill.models.beside_weights import copied
from potstill.models.input_gradients import INPUT_GRADIENT
from potstill.models.reuse import reused_in_standard_units
from potstill.models.taps import Where
from potstill.models.together import below
from potstill.objective import Objective, check
from potstill.objective.peers import with_peers
from potstill.pipeline.any_teacher import describe_source
from potstill.pipeline.judging import check_metric
from potstill.pipeline.makers import AnyModel, answers_in, located, open_teacher, preprocessor, student_maker
from potstill.pipeline.objectives import Side, build_objective
from potstill.pipeline.student import Student
from potstill.recipe import schema
from potstill.tasks import task_of
from potstill.tasks.base import Task
from potstill.teachers import Reads, Source, signal_shapes
from potstill.training import learner_of, made_shapes

VIEWS_AT_MOST = 10
IN_MEMORY = "python-object"
"""What a recipe says where a Python object was given instead."""


@dataclass(frozen=True)
class Given:
    """Python objects that take the place of what the recipe describes."""

    teacher: AnyModel | tuple[AnyModel | None, ...] | None = None
    student: nn.Module | Callable[[], nn.Module] | None = None
    data: Any = None
    objective: Objective | None = None
    student_taps: Mapping[str, Where] = field(default_factory=dict)
    teacher_taps: Mapping[str, Where] = field(default_factory=dict)
    unlabelled: Any = None
    """Samples that only the teacher answers."""
    loaded: Data | None = None
    """Data that is loaded and checked already."""


@dataclass(frozen=True)
class Job:
    """Everything the stages need, built and checked; nothing is trained or recorded yet.

    ``recipe`` is the resolved one: what the user left open (normalisation, views, device) is filled in.
    """

    recipe: schema.Recipe
    base: Path
    data: Data
    objective: Objective
    student: Student
    teacher_model: Source | None
    """The teacher at rest, as it is opened or built; None where there is no separate teacher."""
    device: torch.device
    given: Given
    chain: tuple[Student, ...] = ()
    """Models between teacher and student, in the order of training: each teaches the next."""
    comparable: bool = True
    """Whether the teacher answers in the classes of the data."""
    losses_say: Mapping[str, Tensor] = field(default_factory=dict)
    """What each term's loss says of made-up samples: code that reads a setting from elsewhere shows here."""
    teacher_scale: TargetScale | None = None
    """What turns the teacher's values into the units that students learn in; None where it answers in these."""
    order_is_written: bool = False
    """Whether the user wrote the order of the classes, so that nothing may doubt it."""
    batches: int | None = None
    """How many an epoch has where a student goes through few samples again and again, see `pool.lesson`."""
    kept: Flags | None = None
    """Which training samples a student learns from, (n,); all when absent."""
    before: Job | None = None
    """The job whose teacher reads the samples themselves, where the student learns on that teacher's features."""

    @property
    def task(self) -> Task:
        """What models are to answer."""
        return task_of(self.data.task)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a separate teacher."""
        return self.teacher_model is not None

    @property
    def has_finished_teacher(self) -> bool:
        """Whether there is a separate teacher that comes with all of its weights, so that nothing of it is trained."""
        section = self.written.teacher
        if not self.has_teacher or section is None or section.merge.concatenate is not None:
            return False
        return all(one.train is None for one in (section, *section.members))

    @property
    def written(self) -> schema.Recipe:
        """The recipe as the run folder keeps it: with the teacher that reads the samples themselves."""
        if self.before is None:
            return self.recipe
        return self.recipe.model_copy(update={"teacher": self.before.recipe.teacher})

    @property
    def teacher(self) -> schema.Teacher:
        """The teacher's section; one without a model where there is no separate teacher."""
        return self.recipe.teacher or schema.Teacher.model_construct()

    @property
    def augment(self) -> schema.Augment | None:
        """The augmentation of training images, or None where every sample is always the same."""
        return None if self.recipe.data.augment == schema.Augment() else self.recipe.data.augment

    def stream(self, data: Data, seed: int | None = None, views: int | None = None) -> Stream:
        """Return the training samples in the views that models see; ``seed`` is the recipe's when absent."""
        seed = self.recipe.seed if seed is None else seed
        return Stream(data.train, self.augment, seed, views, data.num_outputs, self.batches, self.kept)

    @property
    def student_taps(self) -> dict[str, Where]:
        """Layers of the student, as it is distilled, that the objective reads."""
        signals = self.objective.student_signals
        if not self.has_teacher:  # an average of the student answers with the student's own layers
            signals |= self.objective.teacher_signals
        made = {name for name in signals if parse(name).fed} | {INPUT_GRADIENT}
        return self.student.taps(signals - made, self.recipe.seed)

    @property
    def teacher_taps(self) -> dict[str, Where]:
        """Layers of the teacher that the objective reads."""
        returned = frozenset() if self.teacher_model is None else self.teacher_model.facts.signals
        tapped = self.objective.teacher_signals - returned - {INPUT_GRADIENT}
        taps = _taps(tapped, self.teacher.taps, self.given.teacher_taps)
        if self.recipe.student.on_features is not None:
            taps = {name: below(lambda whole: whole.model, "model", where) for name, where in taps.items()}
        return taps

    def teacher_at(self, number: int) -> Source:
        """Return the teacher (0), or its i-th member, as it was opened or built."""
        if self.teacher_model is None:
            raise TypeError("this recipe has no separate teacher")
        return self.teacher_model.members[number - 1] if number else self.teacher_model

    @property
    def members(self) -> tuple[schema.Member, ...]:
        """The members of a merged teacher; none where there is one teacher."""
        return tuple(self.teacher.members)

    def part_of_teacher(self, number: int) -> tuple[schema.Teacher | schema.Member, Source]:
        """Return the section and the model of the teacher (0), or of the i-th of several, from 1."""
        return self.members[number - 1] if number else self.teacher, self.teacher_at(number)


def build_job(recipe: schema.Recipe, *, base: Path, given: Given | None = None) -> Job:
    """Load the data, build the models and check that everything fits, before anything expensive runs.

    Raises:
        PotstillError: anything in the recipe, the data or the models that cannot work, with how to fix it.

    """
    given = given or Given()
    _check_rebuildable(recipe, given)
    _check_extras(recipe)
    device = _device(recipe.device)
    written = recipe.data.classes is not None or (recipe.teacher is not None and recipe.teacher.class_map is not None)
    data = given.loaded or load_data(recipe, base=base, given=given)
    check_metric(recipe, data)
    check_augment(recipe.data.augment, data.shape)
    recipe = recipe.model_copy(
        update={
            "device": device.type,
            "data": recipe.data.model_copy(update={"classes": list(data.classes) or None}),
            "student": _with_statistics(recipe.student, data),
            "teacher": recipe.teacher and _teacher_with_statistics(recipe.teacher, data),
            "chain": [_with_statistics(link, data) for link in recipe.chain],
            "store": recipe.store.model_copy(update={"views": _views(recipe)}),
        }
    )
    separate = _separate(recipe)
    scale = answers_in(separate, data, base) if separate and not separate.members else None
    student, chain = _students(recipe, data, base, given, scale)
    teacher = open_teacher(separate, recipe, data, base=base, given=given.teacher) if separate else None
    side = Side("student", partial(student.plain, recipe.seed), student.preprocess)
    objective = given.objective
    if objective is None:
        objective, resolved = build_objective(
            recipe,
            base=base,
            student=side,
            teacher=_taught_by(recipe, teacher, side),
            inputs=lambda count: _first_inputs(data, count),
            num_outputs=data.num_outputs,
        )
        recipe = recipe.model_copy(update={"objective": resolved})
    objective = with_peers(objective, len(recipe.peers), recipe.mutual, recipe.task)
    job = Job(
        recipe=recipe,
        base=base,
        data=data,
        objective=objective,
        student=student,
        teacher_model=teacher,
        device=device,
        given=given,
        chain=chain,
        order_is_written=written,
        teacher_scale=scale,
    )
    comparable, said = check_models(job)
    return replace(job, comparable=comparable, losses_say=said)


def _students(
    recipe: schema.Recipe, data: Data, base: Path, given: Given, scale: TargetScale | None
) -> tuple[Student, tuple[Student, ...]]:
    """Return the student and the models of the chain; ``scale`` is that of the teacher's values, if they have one."""

    def student(name: str, section: schema.Model, training: schema.Training, python: Any = None) -> Student:
        make = student_maker(section, recipe.seed, data, base=base, given=python)
        if name == "student" and scale is not None:
            make = _in_standard_units(make, scale)
        if not isinstance(section, schema.Student):
            section = schema.Student(**{field: getattr(section, field) for field in schema.Model.model_fields})
        pre, layers = preprocessor(section.preprocess), dict(section.taps)
        return Student(name, section, training, make, pre, tuple(data.shape), data.num_outputs, layers=layers)

    peers = tuple(student(f"peer {number}", peer, recipe.training) for number, peer in enumerate(recipe.peers, 1))
    last = student("student", recipe.student, recipe.training, given.student)
    last = replace(last, peers=peers, layers={**last.layers, **given.student_taps}, given=given.student)
    assistants = [
        replace(student(f"assistant {number}", section, section.training or recipe.training), peers=peers)
        for number, section in enumerate(recipe.chain, 1)
    ]
    earlier = [replace(last, name=f"generation {number}", given=None) for number in range(1, recipe.generations)]
    return last, (*assistants, *earlier)


def _in_standard_units(make: Callable[[int], nn.Module], scale: TargetScale) -> Callable[[int], nn.Module]:
    return lambda seed: reused_in_standard_units(make(seed), scale)


def _separate(recipe: schema.Recipe) -> schema.Teacher | None:
    """Return the section of the teacher that is a model of its own, or None."""
    teacher = recipe.teacher
    return None if teacher is None or teacher.average_of_student is not None else teacher


def _taught_by(recipe: schema.Recipe, teacher: Source | None, student: Side) -> Side | None:
    """Return the side that answers as the teacher: for an average of the student, a model like the student."""
    if teacher is None:
        return replace(student, role="teacher") if recipe.teacher else None
    module = teacher.module if teacher.facts.layers else None
    return Side("teacher", None if module is None else partial(copied, module), teacher.preprocess)


def _check_rebuildable(recipe: schema.Recipe, given: Given) -> None:
    """Refuse a recipe whose models or data were Python objects, unless they are given again."""
    parts = {
        "the data": (recipe.data.train, given.data),
        "the samples without labels": (recipe.data.unlabelled, given.unlabelled),
        "the teacher": (
            IN_MEMORY if recipe.teacher and IN_MEMORY in _named_models(recipe.teacher) else "",
            given.teacher,
        ),
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
    if recipe.export.wanted:
        check_installed(("onnx", "onnxruntime", "onnxscript"), feature="exporting to ONNX", extra="export")
    trainings = [recipe.training]
    if recipe.teacher is not None:
        sections: list[schema.Teacher | schema.Member] = [recipe.teacher, *recipe.teacher.members]
        trainings += [section.train for section in sections if section.train is not None]
    for tracker in {tracker for training in trainings for tracker in training.track}:
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
        exclude=section.exclude,
        target=section.target,
        id_column=section.id,
        classes=section.classes,
        image_size=section.image_size,
        channels=section.channels,
        background=section.background,
        encoding=section.encoding,
        on_bad=section.on_bad,
        validation_fraction=section.split.validation,
        test_fraction=section.split.test,
        seed=recipe.seed,
        base=base,
        standardise_targets=section.standardise_targets,
        unlabelled=given.unlabelled
        if given.unlabelled is not None or section.unlabelled is None
        else _source(section.unlabelled, base),
        num_labels=section.labels,
    )


def _taps(signals: frozenset[str], named: Mapping[str, str], given: Mapping[str, Where]) -> dict[str, Where]:
    """Where each signal that the objective reads is tapped; a signal without an entry is a layer's own name."""
    return {name: given.get(name, named.get(name, name)) for name in sorted(signals - {"logits"})}


def _source(text: str, base: Path) -> str:
    """Return a data source with environment variables filled in; functions and 'digits' stay as they are."""
    return str(located(text, base)) if "$" in text or text.startswith("~") else text


def _first_inputs(data: Data, count: int) -> Tensor:
    """Return the inputs of the first training samples as they are."""
    return Stream(data.train).first(count).tensor


def example_batch(job: Job, size: int = 2) -> Batch:
    """Return the first training samples, augmented as training will see them."""
    size = min(size, len(job.data.train))
    return next(job.stream(job.data.to_learn()).epoch(0, max(2, size), order=job.recipe.seed)).narrow(0, size)


def check_models(job: Job) -> tuple[bool, dict[str, Tensor]]:
    """Run one batch through both models and compare their answers with the data and the objective.

    Returns:
        whether the teacher answers in the classes of the data, so that it can be measured on them; and what each
        loss says of made-up samples.

    Raises:
        PotstillError: a model that fails on a batch, has another number of outputs than the data, or lacks a layer.

    """
    batch = example_batch(job)
    inputs = batch.tensor
    learner = job.student.fresh(job.recipe.seed)
    student = _student_shapes(learner, job.student.preprocess, batch, job.student_taps)
    teacher = None
    if job.teacher_model is not None:
        _check_reads(job, job.teacher_model)
        teacher = shapes_of(job.teacher_model, job.teacher_taps, batch)
    expected = (job.data.num_outputs,)
    outputs = job.task.outputs
    projected = all(term.head is not None for term in job.objective.terms if "logits" in term.teacher_signals)
    if teacher is not None and teacher["logits"] != expected and not projected:
        raise TeacherError(
            f"The teacher answers each sample with {_count(teacher['logits'])} numbers, but the data has "
            f"{job.data.num_outputs} {outputs}. Say which class of the data each of its classes stands for "
            "(teacher.class_map), let a head learn it (head: adapter on the terms that read its logits), or use "
            "another teacher."
        )
    if student["logits"] != expected:
        raise PotstillError(
            f"The student answers each sample with {_count(student['logits'])} numbers, but the data has "
            f"{job.data.num_outputs} {outputs}. Set student.args.num_classes: {job.data.num_outputs} "
            "(or the argument of your own model that sets the number of outputs)."
        )
    averaged = None if job.has_teacher or job.recipe.teacher is None else student
    answers = teacher or averaged
    made = made_shapes(job.objective, learner, answers, tuple(inputs.shape[1:]))
    known = {**made, **answers} if answers is not None else None
    said = check(job.objective, {**made, **student}, known, num_classes=job.data.num_outputs, task=job.data.task)
    way = learner_of(learner)
    for name in way.ignores:
        if getattr(job.student.section, name):
            raise UsageError(f"student.{name} says nothing to a student of {job.student.section.model}. Remove it.")
    way.check(learner, job.objective, job.student.training, job.stream(job.data))
    if job.teacher_model is None or teacher is None or teacher["logits"] != expected:
        return False, said
    return job.teacher_model.facts.measurable(job.data.test.ids), said


def shapes_of(model: Source, taps: Mapping[str, Where], batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the shape of each signal that a teacher returns or is tapped for, without the batch axis."""
    try:
        with model.teaching(Reads(taps=taps, outputs=model.facts.signals - {"logits"})) as teacher:
            return signal_shapes(teacher, batch)
    except PotstillError as error:
        raise type(error)(f"teacher: {error}") from error


def _check_reads(job: Job, teacher: Source) -> None:
    """Refuse what is not there of a teacher that is no torch model: layers, gradients, arithmetic to choose.

    Raises:
        TeacherError: the objective reads layers or gradients, which are named; or a precision that changes nothing.

    """
    if teacher.members or teacher.facts.layers:
        return
    if job.teacher.precision == "bfloat16":
        raise TeacherError(
            f"teacher.precision: {describe_source(job.teacher)} is no torch model and computes as it was made to. "
            "Drop precision."
        )
    reads = [*job.teacher_taps, *({INPUT_GRADIENT} & job.objective.teacher_signals)]
    if reads:
        returned = ", ".join(["logits", *sorted(teacher.facts.signals - {"logits"})])
        raise TeacherError(
            f"The objective reads the teacher's {', '.join(reads)}, but {describe_source(job.teacher)} is no torch "
            f"model with layers: it answers with {returned}. Choose an objective that reads these, or give a torch "
            "model with its weights."
        )


def _count(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "1"


def _student_shapes(
    model: nn.Module, preprocess: Preprocessor, batch: Batch, taps: dict[str, Where]
) -> dict[str, tuple[int, ...]]:
    """Run one batch through a student in evaluation mode; return the shape of each signal, without the batch axis."""
    try:
        with evaluating(model), torch.no_grad(), tap(model, taps) as tapped:
            signals = {**output_signals(model, model(preprocess(batch.tensor))), **tapped}
            return {name: tuple(signal.shape[1:]) for name, signal in signals.items()}
    except PotstillError as error:
        raise type(error)(f"student: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        after = tuple(preprocess(batch.tensor).shape)
        raise PotstillError(
            f"The student failed on a batch of shape {after}: {error}. "
            "Check student.args and student.preprocess against the samples."
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
    once = recipe.teacher is not None and recipe.teacher.votes is not None  # every question costs privacy
    if once or recipe.data.augment == schema.Augment():
        return 1
    return recipe.store.views or min(recipe.training.epochs, VIEWS_AT_MOST)


def _with_statistics(model: Any, data: Data) -> Any:
    """Fill in the normalisation of a model that is trained here from the training data."""
    if model.preprocess.mean is not None:
        return model
    mean, std = channel_statistics(data.train)
    return model.model_copy(update={"preprocess": model.preprocess.model_copy(update={"mean": mean, "std": std})})


def _teacher_with_statistics(teacher: schema.Teacher, data: Data) -> schema.Teacher:
    """Fill in the normalisation of the teachers that are trained here."""
    members = [_with_statistics(one, data) if one.train is not None else one for one in teacher.members]
    teacher = teacher.model_copy(update={"members": members})
    filled: schema.Teacher = _with_statistics(teacher, data) if teacher.train is not None else teacher
    return filled


def _named_models(teacher: schema.Teacher) -> list[str]:
    return [teacher.model, *(member.model for member in teacher.members)]
