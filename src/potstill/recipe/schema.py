"""The recipe's schema: every key a recipe may have, with its default and its meaning.

Nothing here imports torch: a recipe is checked whole before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Task = Literal["classification", "regression"]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """Frozen plain data; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


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
    target: str = Field("label", description="target column")
    id: str | None = Field(None, description="column with a stable id; the row number when absent")
    classes: list[str] | None = Field(None, description="class names in the teacher's order")
    image_size: int | None = Field(None, ge=1, description="resize images of a folder to this many pixels a side")
    on_bad: Literal["error", "skip"] = Field("error", description="what to do with unreadable files and NaN rows")
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


class Training(Section):
    """One model's training."""

    epochs: int = Field(30, ge=1)
    minutes: Positive | None = Field(None, description="stop after this many minutes, learning rate annealed by then")
    batch_size: int = Field(128, ge=1, description="samples per optimiser step, over all processes and micro-batches")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive | None = Field(None, description="0.1 for sgd, 0.002 for adamw when absent")
    momentum: Fraction = Field(0.9, description="sgd only")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup: Fraction = Field(0.05, description="share of the steps over which the learning rate rises")
    gradient_clip: Positive | None = Field(None, description="largest norm of the whole gradient")
    label_smoothing: Fraction = 0.0
    ema: Fraction | None = Field(None, description="decay of an exponential moving average of the weights")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better validation")
    precision: Precision = "auto"
    checkpoint_every: int = Field(500, ge=1, description="optimiser steps between checkpoints")
    workers: int = Field(0, ge=0, description="processes that load samples")
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default_factory=list)


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


class Teacher(Model):
    """The model to learn from: with ``weights``, or trained here first with ``train``."""

    train: Training | None = Field(None, description="train the teacher on the same data first")
    live: bool = Field(False, description="run the teacher in every step instead of reading the store")
    precision: Precision = Field("float32", description="arithmetic of the teacher's forward pass")


class TermSection(Section):
    """One summand of the objective."""

    loss: str = Field(description="a name in potstill.losses, or 'file.py:name'")
    weight: float = Field(1.0, ge=0)
    on: str = Field("logits", description="the signal both sides read; a layer name taps that layer")
    student: str | None = Field(None, description="the student's signal, when it differs from 'on'")
    teacher: str | None = Field(None, description="the teacher's signal, when it differs from 'on'")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the loss")


class Store(Section):
    """What the teacher said, on disk."""

    path: str | None = Field(None, description="a folder of its own; beside the run, by fingerprint, when absent")
    dtype: Literal["float32", "float16"] = "float16"
    views: int | None = Field(
        None,
        ge=1,
        description="augmented views recorded of each training sample; when absent "
        "1 without augmentation, else one for each epoch and at most 10",
    )


class Budget(Section):
    """The limits the student must meet; the report says whether it does."""

    minutes: Positive | None = Field(None, description="training time of each student")
    megabytes: Positive | None = Field(None, description="largest exported file")
    milliseconds: Positive | None = Field(None, description="median latency of one sample, exported, one thread")


class Evaluation(Section):
    """How the models are measured."""

    batch_size: int = Field(256, ge=1)
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind each 95 % interval")
    latency: bool = True
    threads: int = Field(1, ge=1, description="threads used while measuring latency")


class Export(Section):
    """Which files to write of the student, and how alike they must answer."""

    formats: list[Literal["onnx", "onnx-int8"]] = ["onnx", "onnx-int8"]
    max_difference: Positive = Field(
        1e-2,
        description="largest difference of a float32 file's outputs to torch, relative to the spread of the outputs",
    )
    min_agreement: Fraction = Field(0.97, description="least share of equal predictions of an int8 file")
    max_accuracy_drop: Fraction = Field(0.02, description="largest loss of accuracy (or R2) of an int8 file")
    calibration_samples: int = Field(512, ge=1)


class Recipe(Section):
    """Everything one run needs."""

    task: Task = "classification"
    seed: int = Field(0, ge=0, lt=2**31)
    seeds: int = Field(1, ge=1, description="how many students are trained, alone and distilled")
    device: str = Field("auto", description="'auto', 'cpu' or 'cuda'")
    data: DataSection
    teacher: Teacher
    student: Model
    objective: str | list[TermSection] = Field("auto", description="a preset name or a list of terms")
    training: Training = Training()
    budget: Budget = Budget()
    store: Store = Store()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
