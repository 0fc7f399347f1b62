"""The recipe's schema: every key a recipe may have, with its default and its meaning.

Nothing here imports torch: a recipe is checked whole before anything heavy is loaded.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from potstill.core.errors import PotstillWarning
from potstill.recipe.endpoint import Endpoint
from potstill.recipe.section import Fraction, Positive, Precision, Section
from potstill.recipe.storage import Store
from potstill.tasks import METRICS, MetricName, TaskName, task_of

Answers = Literal["logits", "probabilities", "percentages", "labels", "values"]


class Augment(Section):
    """Random changes to training images, fixed by ``(seed, id, view)``."""

    crop: int = Field(0, ge=0, description="pad by this many pixels, then crop at a random place")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    rotate: float = Field(0.0, ge=0, le=180, description="rotate by up to this many degrees either way")
    colour: float = Field(0.0, ge=0, le=1, description="change brightness, contrast and saturation by up to this share")
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing one random rectangle")
    mixup: float = Field(0.0, ge=0, description="mixup strength (Beta parameter); 0 is off")
    cutmix: float = Field(0.0, ge=0, description="cutmix strength (Beta parameter); 0 is off")


class Split(Section):
    """How large the splits are that are made because they were not given."""

    validation: Fraction = 0.1
    test: Fraction = 0.2


class DataSection(Section):
    """Where the samples come from."""

    train: str = Field(
        description="'digits', a folder of images by class, a CSV/Parquet/JSONL/NPZ file, "
        "or a function 'file.py:name' or 'package.module:name' that returns samples"
    )
    validation: str | None = Field(None, description="as train; made from train when absent")
    test: str | None = Field(None, description="as train; made from train when absent")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for a data function")
    inputs: list[str] | None = Field(None, description="input columns; all but target and id when absent")
    exclude: list[str] | None = Field(None, description="columns that are no inputs; instead of inputs")
    target: str | list[str] = Field("label", description="target column; several for multilabel and regression")
    id: str | None = Field(None, description="column with a stable id; the row number when absent")
    classes: list[str] | None = Field(None, description="class names in the teacher's order")
    image_size: int | None = Field(None, ge=1, description="resize images of a folder to this many pixels a side")
    channels: Literal[1, 3] | None = Field(
        None, description="1 for grey images, 3 for colours; as they are when absent"
    )
    background: str | None = Field(None, description="colour behind transparent pixels of images; white when absent")
    encoding: str | None = Field(None, description="of CSV and JSONL files; UTF-8 when absent")
    on_bad: Literal["error", "skip"] = Field("error", description="what to do with unreadable files and NaN rows")
    standardise_targets: bool = Field(
        True, description="regression: learn each target in units of its mean and standard deviation over train"
    )
    labels: int | None = Field(
        None, ge=0, description="how many labels of train students see; the other samples they learn from the teacher"
    )
    unlabelled: str | None = Field(
        None, description="as train: further samples that only the teacher answers; their labels are not read"
    )
    min_confidence: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="how sure the teacher must be of a sample without a label; else it is left out",
    )
    split: Split = Split()
    augment: Augment = Augment()


class Preprocess(Section):
    """What a model expects of its inputs: resized to ``size``, then ``(x - mean) / std`` per channel or column.

    Without mean and std, a model that is trained here gets those of the training data, and a model that comes with
    weights gets the samples as they are (pixels in the range 0 to 1).
    """

    mean: list[float] | None = Field(None, description="per channel (pixels in the range 0 to 1) or column")
    std: list[Positive] | None = Field(None, description="per channel or column")
    size: int | None = Field(None, ge=1, description="image side the model expects; unchanged when absent")

    @model_validator(mode="after")
    def _both(self) -> Preprocess:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together, or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std has {len(self.std)}: they must be equal")
        return self


class Stage(Section):
    """A share of training in which only some layers are trained."""

    until: float = Field(gt=0.0, le=1.0, description="share of training at which it ends; 1 in the last stage")
    train: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="layers that are trained, by name; all when absent"
    )


class Training(Section):
    """One model's training."""

    epochs: int = Field(30, ge=1)
    minutes: Positive | None = Field(None, description="stop after this many minutes, learning rate annealed by then")
    batch_size: int = Field(128, ge=1, description="samples per optimiser step, over all processes and micro-batches")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step")
    optimizer: Literal["auto", "sgd", "adamw", "dot"] = Field(
        "auto", description="auto: a few optimisers and rates are tried on short trainings, each model by itself"
    )
    learning_rate: Positive | Literal["auto"] | None = Field(
        "auto", description="highest rate of the schedule; null: 0.1 for sgd and dot, 0.002 for adamw"
    )
    momentum: Fraction = Field(0.9, description="sgd and dot only")
    momentum_gap: Fraction = Field(
        0.075, description="dot only: less momentum for the terms without a teacher, more for those with one"
    )
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["auto", "cosine", "one_cycle", "constant"] = Field("auto", description="auto is cosine")
    warmup: Fraction = Field(0.05, description="share of the steps over which the learning rate rises")
    gradient_clip: Positive | None = Field(None, description="largest norm of the whole gradient")
    label_smoothing: Fraction = 0.0
    ema: Fraction | None = Field(None, description="decay of an exponential moving average of the weights")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better validation")
    precision: Precision = "auto"
    checkpoint_every: int = Field(500, ge=1, description="optimiser steps between checkpoints")
    workers: int = Field(0, ge=0, description="processes that load samples")
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="of a step on a CPU; `auto` times one against all"
    )
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default_factory=list)
    stages: list[Stage] = Field(default_factory=list, description="which layers are trained when; all when empty")
    gradient_report: bool = Field(
        False, description="note each term's gradient norm, and whether the hard and soft gradients agree, every epoch"
    )

    @model_validator(mode="after")
    def _momenta(self) -> Training:
        if self.optimizer == "dot" and not self.momentum_gap <= self.momentum < 1.0 - self.momentum_gap:
            raise ValueError(
                f"momentum={self.momentum} less and plus momentum_gap={self.momentum_gap} must be from 0 up to 1"
            )
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Training:
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1.0):
            raise ValueError(f"stages end at {ends}: each must end after the one before, and the last one at 1")
        return self


class Model(Section):
    """A model: a zoo name or a function, its arguments, and optionally its weights."""

    model: str = Field(description="a zoo name such as 'resnet20', or 'file.py:name' or 'package.module:name'")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the model function")
    weights: str | None = Field(None, description="a .safetensors file, or any torch file with allow_pickle")
    allow_pickle: bool = Field(False, description="read torch files, with weights_only=True")
    preprocess: Preprocess = Preprocess()
    taps: dict[str, str] = Field(
        default_factory=dict,
        description="signal names for layers, such as {hidden: layer3}; a layer's own name needs no entry",
    )


class AnyModel(Model):
    """A model to learn from, of any kind: a torch ``model``, a ``file`` of any framework, or an ``endpoint``."""

    model: str = Field("", description="a zoo name such as 'resnet20', or 'file.py:name' or 'package.module:name'")
    args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments for the model function, or options of the kind of file"
    )
    allow_pickle: bool = Field(
        False,
        description="read torch files, with weights_only=True; joblib, pickle and torch programs that can run code",
    )
    file: str | None = Field(
        None, description="a trained model of any framework, its recorded answers, or the run folder of a student"
    )
    answers: Answers | None = Field(
        None, description="what it answers with; needed where the kind of file does not say it"
    )
    answers_checked: bool = Field(
        False, description="its answers are logits as 'answers' says, although they look like something else"
    )
    python: str | None = Field(None, description="interpreter with keras that runs a Keras file; found when absent")
    endpoint: Endpoint | None = Field(None, description="a model that answers over HTTP")
    train: Training | None = Field(None, description="train it on the same data first")

    @property
    def sources(self) -> list[str]:
        """The keys that say what the model is; one is right."""
        return [name for name in ("model", "file", "endpoint") if getattr(self, name)]

    @model_validator(mode="after")
    def _fits_its_kind(self) -> AnyModel:
        if len(self.sources) > 1:
            raise ValueError(f"{' and '.join(self.sources)} are each a teacher: give one of them")
        if self.file or self.endpoint is not None:
            kind = self.sources[0]
            wrong = [name for name in ("weights", "train", "taps") if getattr(self, name)]
            if wrong:
                raise ValueError(
                    f"{wrong[0]} is for a torch model that is built here: drop it, or give model, not {kind}"
                )
        if self.train is not None and self.answers not in (None, "logits", "values"):
            raise ValueError(f"answers: {self.answers}, but a model that is trained here answers with logits")
        if self.answers_checked and self.answers != "logits":
            raise ValueError("answers_checked confirms 'answers: logits': write that too, or drop answers_checked")
        if self.python is not None and not self.file:
            raise ValueError("python is the interpreter of a Keras file: give file, or drop python")
        return self


class Member(AnyModel):
    """One of several teachers: a ``model`` with ``weights`` or ``train``, a ``file`` or an ``endpoint``."""

    classes: list[str] | None = Field(
        None, description="the classes it knows, in the order of its outputs; all of the data's in order when absent"
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> Member:
        if not self.sources:
            raise ValueError("a member needs a model, a file or an endpoint")
        return self


_PLAIN = ("probabilities", "fixed", None)
"""The plain mean of several teachers."""


class Merge(Section):
    """How the answers of several teachers become one."""

    mean: Literal["probabilities", "logits"] = Field(
        "probabilities", description="the mixture, or the geometric mean of the distributions"
    )
    weighting: Literal["fixed", "confidence", "attention"] = Field(
        "fixed",
        description="equal or given weights; per sample, by label or entropy; per sample, learned on the validation "
        "split",
    )
    weights: list[float] | None = Field(None, description="one for each member, for 'fixed'; equal when absent")
    concatenate: str | list[str] | None = Field(
        None,
        description="no weights: a head, learned on the validation split, on the members' 'answers' or on a layer of "
        "each; one for all or a list",
    )

    @model_validator(mode="after")
    def _weighs_or_learns(self) -> Merge:
        if self.concatenate is not None and (self.mean, self.weighting, self.weights) != _PLAIN:
            raise ValueError("concatenate learns a head in the place of weights: drop mean, weighting and weights")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what most recipes do not have, so that results from before it was there keep their keys."""
        return {name: value for name, value in write(self).items() if name != "concatenate" or value is not None}


class VotesSection(Section):
    """Several teachers of private data, that speak through a noisy majority vote only."""

    noise: float = Field(ge=0, description="standard deviation of the noise on each class's votes; 0 is not private")
    check_noise: Positive | None = Field(None, description="noise of a first check if enough agree, with threshold")
    threshold: float | None = Field(None, description="samples with fewer votes for a class are not answered")
    at_least: int | None = Field(None, ge=1, description="members that must agree, counted exactly; noise must be 0")
    delta: Fraction = Field(1e-5, gt=0, description="of (epsilon, delta): well below one over the private samples")
    secret: str | None = Field(None, description="a file for the secret of the noise; in memory only when absent")


class Teacher(AnyModel):
    """The model to learn from: ``model`` (with ``weights`` or ``train``), ``file``, ``endpoint``, or ``members``."""

    members: list[Member] = Field(default_factory=list, description="several teachers, merged into one")
    merge: Merge = Merge()
    votes: VotesSection | None = Field(
        None, description="the members answer by a noisy majority vote, of private data: see the guide on privacy"
    )
    class_map: dict[str, str | None] | None = Field(
        None,
        description="its classes, in the order of its outputs, and the class of the data that each stands for, or null",
    )
    average_of_student: Fraction | None = Field(
        None, description="no model: the moving average of the student's own weights, with this decay, such as 0.99"
    )
    live: bool = Field(False, description="run the teacher in every step instead of reading the store")
    precision: Precision = Field("float32", description="arithmetic of the teacher's forward pass")

    @model_validator(mode="after")
    def _one_kind(self) -> Teacher:
        if self.average_of_student is not None:
            if self.model_copy(update={"average_of_student": None}) != Teacher.model_construct():
                raise ValueError("average_of_student stands alone: the teacher is the student itself")
            return self
        if bool(self.sources) == bool(self.members):
            raise ValueError(
                "give one teacher (model, file or endpoint) or several (members), not both and not neither"
            )
        own = {"weights": None, "train": None, "answers": None, "preprocess": Preprocess()}
        if self.members and any(getattr(self, name) != absent for name, absent in own.items()):
            raise ValueError("with members, weights, train, answers and preprocess belong to each member")
        if self.class_map is not None and (self.members or self.train is not None):
            raise ValueError("class_map is for one teacher that comes with its weights")
        if not self.members and self.merge != Merge():
            raise ValueError("merge is for several teachers: list them under members")
        if self.votes is not None:
            self._check_votes()
        return self

    def _check_votes(self) -> None:
        if not self.members or self.merge != Merge() or self.live:
            raise ValueError("votes are of several members, recorded: list members, and drop merge and live")
        if any(member.train is not None or member.classes is not None for member in self.members):
            raise ValueError("votes are of finished members that know all classes: drop train and classes")


class Student(Model):
    """The small model."""

    exits: list[str] = Field(
        default_factory=list,
        description="layers that get a classifier of their own while training: exit1.logits, exit2.logits, ...",
    )
    on_features: str | None = Field(
        None, description="a layer of the teacher: the student's inputs are what it says of the samples, computed once"
    )


class Assistant(Model):
    """A model between teacher and student: it learns from the one before it and teaches the one after."""

    training: Training | None = Field(None, description="its training; the student's when absent")


class ScheduleSection(Section):
    """A number that changes in the course of training: it moves from ``start`` to ``end``, and stays there."""

    shape: Literal["linear", "cosine"] = Field("linear", description="how it moves; cosine begins and ends smoothly")
    start: float = Field(description="its value up to 'since'")
    end: float = Field(description="its value from 'until' on")
    since: float = Field(0.0, ge=0.0, le=1.0, description="share of training at which it begins to move")
    until: float = Field(1.0, ge=0.0, le=1.0, description="share of training at which it has arrived")

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleSection:
        if self.since > self.until:
            raise ValueError(f"since={self.since} must not come after until={self.until}")
        return self


Weight = Annotated[float, Field(ge=0)]


class TermSection(Section):
    """One summand of the objective."""

    loss: str = Field(description="a name in potstill.losses, or 'file.py:name'")
    weight: Weight | ScheduleSection = Field(1.0, description="factor of the term")
    on: str | list[str] = Field("logits", description="the signal both sides read; a layer name taps that layer")
    student: str | list[str] | None = Field(None, description="the student's signal, when it differs from 'on'")
    teacher: str | list[str] | None = Field(None, description="the teacher's signal, when it differs from 'on'")
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the loss; numbers may be schedules"
    )
    name: str | None = Field(None, description="what the term is called; made from loss and signals when absent")
    head: str | None = Field(
        None, description="a name in potstill.objective.heads, or 'file.py:name'; the loss's own when absent"
    )
    head_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the head")
    transform: str | None = Field(
        None, description="a function in potstill.losses.transforms, or 'file.py:name', applied to both sides first"
    )


class PresetSection(Section):
    """A preset with its layers and options."""

    preset: str = Field(description="the preset's name")
    layers: str | dict[str, str] = Field(
        "uniform", description="'uniform', 'last' or 'cka', or {student's layer: teacher's layer}, early ones first"
    )
    embedding: dict[str, str] | None = Field(
        None, description="{student's layer: teacher's layer} in front of the classifiers; found when absent"
    )
    projections: dict[str, str] | None = Field(
        None, description="{student's layer: teacher's layer} for queries, keys and values; found when absent"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the preset's own settings")


class Budget(Section):
    """The limits the student must meet; the report says whether it does."""

    minutes: Positive | None = Field(None, description="training time of each student")
    megabytes: Positive | None = Field(None, description="largest exported file")
    milliseconds: Positive | None = Field(None, description="median latency of one sample, exported, one thread")


class Evaluation(Section):
    """How the models are measured."""

    batch_size: int = Field(256, ge=1)
    latency: bool = Field(True, description="measure how long the models take")
    threads: int = Field(1, ge=1, description="threads used while measuring latency")

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "resamples" not in value:
            return value
        text = "evaluation.resamples no longer does anything: intervals are computed without resampling. Remove it."
        warnings.warn(text, PotstillWarning, stacklevel=2)
        return {name: setting for name, setting in value.items() if name != "resamples"}


class Export(Section):
    """Which files to write of the student, and how alike they must answer."""

    formats: list[Literal["onnx", "onnx-int8"]] | None = Field(
        None, description="files to write; null: onnx and onnx-int8, as far as they answer like the student"
    )
    max_difference: Positive = Field(
        1e-2,
        description="largest difference of a float32 file's outputs to torch, relative to the spread of the outputs",
    )
    min_agreement: Fraction | None = Field(
        None, description="least share of equal predictions of an int8 file; null: shown, not a condition"
    )
    max_accuracy_drop: Fraction = Field(
        0.02,
        description="largest loss of the metric of an int8 file on the validation split; of accuracy or R2 where the "
        "metric is an error",
    )
    calibration_samples: int = Field(512, ge=1)

    @property
    def wanted(self) -> tuple[Literal["onnx", "onnx-int8"], ...]:
        """The formats to write; those that the recipe does not name are optional."""
        return ("onnx", "onnx-int8") if self.formats is None else tuple(self.formats)


class BackToTeacher(Section):
    """What the finished student gives back: a teacher that learns from it, and labels that both models doubt."""

    epochs: int | None = Field(5, ge=1, description="fine-tune the teacher this long; null lists doubtful labels only")
    learning_rate: Positive = Field(0.01, description="of the fine-tuning")
    confidence: Fraction = Field(0.8, description="least confidence of both models in a listed answer")


class Recipe(Section):
    """Everything one run needs."""

    task: TaskName = "classification"
    metric: MetricName | None = Field(
        None, description="what chooses checkpoints and rates and what the verdict is about; accuracy or r2 when absent"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    seeds: int = Field(1, ge=1, description="how many students are trained, alone and distilled")
    device: str = Field("auto", description="'auto', 'cpu' or 'cuda'")
    data: DataSection
    teacher: Teacher | None = Field(description="the model to learn from; null when the student teaches itself")
    student: Student
    peers: list[Model] = Field(
        default_factory=list, description="students that learn in the same pass over data and teacher"
    )
    mutual: float = Field(0.0, ge=0, description="weight with which student and peers learn from each other's answers")
    chain: list[Assistant] = Field(
        default_factory=list, description="assistants between teacher and student, the largest first"
    )
    generations: int = Field(
        1, ge=1, description="each generation of the student teaches a fresh one; the last is the result"
    )
    objective: str | PresetSection | list[TermSection] = Field(
        "auto", description="a preset name, a preset with options, or a list of terms"
    )
    training: Training = Training()
    back_to_teacher: BackToTeacher | None = Field(
        None, description="let the finished student check and teach the teacher"
    )
    budget: Budget = Budget()
    store: Store = Store()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    @property
    def judged_by(self) -> MetricName:
        """The metric that chooses checkpoints and that the verdict is about."""
        return self.metric or METRICS[self.task][0]

    @property
    def other_metric(self) -> MetricName | None:
        """The metric where it is not the task's own, accuracy or R2."""
        return None if self.judged_by == METRICS[self.task][0] else self.judged_by

    @model_validator(mode="after")
    def _metric_of_the_task(self) -> Recipe:
        usable = METRICS[self.task]
        if self.judged_by not in usable:
            raise ValueError(f"metric: {self.metric} is no metric of a {self.task}: use one of {', '.join(usable)}")
        return self

    def _no_distribution(self) -> None:
        """Refuse what reads answers as one distribution over classes, where each class is a yes or no of its own."""
        teacher = self.teacher
        refused = {
            "teacher.class_map": teacher is not None and teacher.class_map is not None,
            "teacher.votes": teacher is not None and teacher.votes is not None,
            "teacher.merge.concatenate": teacher is not None and teacher.merge.concatenate is not None,
            "data.augment.mixup": bool(self.data.augment.mixup),
            "data.augment.cutmix": bool(self.data.augment.cutmix),
            "training.label_smoothing": bool(self.training.label_smoothing),
        }
        for key, given in refused.items():
            if given and task_of(self.task).has_classes and not task_of(self.task).exclusive:
                raise ValueError(f"{key} is for samples of one class each, not for task: {self.task}; drop it")

    def _few_labels(self) -> None:
        """Refuse what has no meaning, or is not made, where students do not see every label."""
        key = "data.labels" if self.data.labels is not None else "data.unlabelled"
        if not task_of(self.task).exclusive:
            raise ValueError(f"{key} is for task: classification")
        if self.teacher is None:
            raise ValueError(f"{key}: without a teacher nobody answers the samples without a label; add a teacher")
        refused = {
            "student.on_features": self.student.on_features is not None,
            "back_to_teacher": self.back_to_teacher is not None,
            "teacher.votes": self.teacher.votes is not None,
            "teacher.merge.weighting: confidence": self.teacher.merge.weighting == "confidence",
            "data.augment.mixup": bool(self.data.augment.mixup),
            "data.augment.cutmix": bool(self.data.augment.cutmix),
        }
        for other, given in refused.items():
            if given:
                raise ValueError(f"{key} and {other} do not go together: drop one of the two")

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        if self.mutual and not self.peers:
            raise ValueError("mutual is for several students in one pass: list the others under peers")
        if self.budget.milliseconds is not None and not self.evaluation.latency:
            raise ValueError(
                "budget.milliseconds limits a latency that evaluation.latency: false does not measure: "
                "drop one of the two"
            )
        if any(peer.preprocess != Preprocess() for peer in self.peers):
            raise ValueError("peers see what the student sees: give preprocess to the student, not to a peer")
        if not self.data.standardise_targets and not task_of(self.task).has_units:
            raise ValueError("data.standardise_targets: false is for task: regression; classes have no units")
        if self.data.labels is not None or self.data.unlabelled is not None:
            self._few_labels()
        elif self.data.min_confidence is not None:
            raise ValueError("data.min_confidence is for samples without a label: give data.unlabelled or data.labels")
        self._no_distribution()
        teacher = self.teacher
        separate = teacher is not None and teacher.average_of_student is None
        if teacher is not None and not separate and (self.chain or self.generations > 1):
            raise ValueError("an average of the student is its own teacher: drop chain and generations")
        one_module = separate and teacher is not None and bool(teacher.model) and teacher.class_map is None
        one_module = one_module and (teacher is None or teacher.answers in (None, "logits", "values"))
        if self.student.on_features is not None:
            if not one_module:
                raise ValueError(
                    "student.on_features needs one teacher: a torch model that answers with logits, without class_map"
                )
            if self.data.augment != Augment():
                raise ValueError("student.on_features are computed once, from unchanged samples: drop data.augment")
        if self.back_to_teacher is not None:
            if not one_module:
                raise ValueError(
                    "back_to_teacher needs one teacher: a torch model that answers with logits, without class_map"
                )
            if self.student.on_features is not None:
                raise ValueError("back_to_teacher needs a student that reads the samples: drop student.on_features")
        return self
