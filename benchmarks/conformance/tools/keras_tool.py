"""keras.distillation with the torch backend, used as the docstrings of `Distiller` and its losses show."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from keras.distillation import Distiller, FeatureDistillation, LogitsDistillation
from serve import NotApplicableError, attempt, link, serve
from toys import CLASSES, FEATURES, WIDTH, samples

import keras

REPOSITORY, TAG = "keras-team/keras", "v3.15.1"
SOFT = "soft divergence minimum shift classifier temperature classes samples logits"
KINDS: dict[str, tuple[str, str, str]] = {
    "default": ("LogitsDistillation(temperature={T}).compute_loss(teacher, student)", "logits", SOFT),
    "instance": (
        "LogitsDistillation(temperature={T}, loss=keras.losses.KLDivergence()).compute_loss(teacher, student)",
        "logits", SOFT,
    ),
    "mse": ("FeatureDistillation(loss='mse').compute_loss(teacher, student)", "vectors", "divergence minimum samples"),
    "cosine": (
        "FeatureDistillation(loss='cosine_similarity').compute_loss(teacher, student)", "vectors", "minimum samples",
    ),
    "weighted": (
        "Distiller(..., LogitsDistillation(loss=keras.losses.KLDivergence()), student_loss_weight=0.0)"
        ".compute_loss(x, y, y_pred, sample_weight)", "logits", "keep",
    ),
}  # fmt: skip


def loss_list() -> list[dict[str, Any]]:
    kinds = {"mse": FeatureDistillation, "cosine": FeatureDistillation, "weighted": Distiller.compute_loss}
    return [
        {
            "name": name,
            "call": call,
            "link": link(kinds.get(name, LogitsDistillation), REPOSITORY, TAG),
            "reads": reads,
            "claims": claims.split(),
        }
        for name, (call, reads, claims) in KINDS.items()
    ]


def loss(
    name: str,
    student: list[Any],
    teacher: list[Any],
    temperature: float = 1.0,
    keep: list[bool] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    one = torch.tensor(student, dtype=getattr(torch, dtype), requires_grad=True)
    other = torch.tensor(teacher, dtype=getattr(torch, dtype))
    if name == "weighted":
        distiller = _side_by_side(
            LogitsDistillation(temperature=temperature, loss=keras.losses.KLDivergence()), 0.0, one
        )
        x = torch.cat([one, other], dim=1)
        weight = None if keep is None else torch.tensor(keep, dtype=torch.float32)
        y = torch.zeros(len(one), dtype=torch.int64)
        value = distiller.compute_loss(x, y, distiller.student(x), sample_weight=weight)
    else:
        made = {
            "default": lambda: LogitsDistillation(temperature=temperature),
            "instance": lambda: LogitsDistillation(temperature=temperature, loss=keras.losses.KLDivergence()),
            "mse": lambda: FeatureDistillation(loss="mse"),
            "cosine": lambda: FeatureDistillation(loss="cosine_similarity"),
        }[name]()
        # What Distiller does before every loss.
        made.validate_outputs(other, one)
        value = made.compute_loss(other, one)
    value.backward()
    return {"value": float(value), "gradient": one.grad.double().tolist()}


def _side_by_side(loss_: Any, hard_weight: float, like: torch.Tensor) -> Distiller:
    """A distiller whose student and teacher return the two halves of their input."""
    width = like.shape[1]
    x = keras.Input((2 * width,), dtype="float32")
    student, teacher = keras.Model(x, x[:, :width]), keras.Model(x, x[:, width:])
    distiller = Distiller(teacher=teacher, student=student, distillation_losses=loss_, student_loss_weight=hard_weight)
    distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return distiller


def mixed(
    student: list[Any], teacher: list[Any], targets: list[int], hard_weight: float, temperature: float
) -> dict[str, Any]:
    one, other = torch.tensor(student), torch.tensor(teacher)
    loss_ = LogitsDistillation(temperature=temperature, loss=keras.losses.KLDivergence())
    distiller = _side_by_side(loss_, hard_weight, one)
    x = torch.cat([one, other], dim=1)
    value = distiller.compute_loss(x, torch.tensor(targets), distiller.student(x))
    loss_shown = f"LogitsDistillation(temperature={temperature}, loss=KLDivergence())"
    call = f"Distiller(..., {loss_shown}, student_loss_weight={hard_weight})"
    return {"value": float(value), "call": call, "link": link(Distiller, REPOSITORY, TAG)}


def defaults() -> list[dict[str, Any]]:
    one, other = torch.randn(6, 5), torch.randn(6, 5)

    def example() -> None:
        student, teacher = _model("student", []), _model("teacher", [])
        distiller = Distiller(teacher=teacher, student=student, distillation_losses=LogitsDistillation(temperature=3.0))
        distiller.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        inputs, targets = samples(16)
        distiller.fit(inputs.numpy(), targets.numpy(), verbose=0)

    def where(thing: Any) -> str:
        return link(thing, REPOSITORY, TAG)

    return [
        attempt(
            "LogitsDistillation().compute_loss(teacher, student)",
            where(LogitsDistillation),
            lambda: LogitsDistillation().compute_loss(other, one),
        ),
        attempt(
            "FeatureDistillation().compute_loss(teacher, student)",
            where(FeatureDistillation),
            lambda: FeatureDistillation().compute_loss(other, one),
        ),
        attempt("the example of Distiller: compile, fit", where(Distiller), example),
    ]


class Spy(keras.layers.Layer):
    """Passes its input on and notes with which ``training`` it was called, and whether for a gradient."""

    def __init__(self, seen: list[tuple[bool, bool]], **options: Any) -> None:
        super().__init__(**options)
        # Keras would copy a list that is an attribute.
        self._note = seen.append

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return ``inputs``."""
        if isinstance(inputs, torch.Tensor) and inputs.device.type != "meta":
            self._note((torch.is_grad_enabled(), bool(training)))
        return inputs


def _model(
    name: str, seen: list[tuple[bool, bool]], *, norm: bool = True, dropout: float = 0.5, width: int = WIDTH
) -> keras.Model:
    """The toy of every tool, with the weights of the other tools' layout drawn by NumPy."""
    x = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(8)(Spy(seen)(x))
    if norm:
        hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Dropout(dropout, seed=0)(keras.layers.Activation("relu")(hidden))
    hidden = keras.layers.Dense(width, name="hidden")(hidden)
    model = keras.Model(x, keras.layers.Dense(CLASSES)(keras.layers.Activation("tanh")(hidden)), name=name)
    random = np.random.default_rng(len(name))
    for variable in model.trainable_weights:
        variable.assign(random.normal(size=variable.shape).astype("float32") * 0.4)
    return model


def train(
    count: int,
    batch: int,
    accumulate: int,
    epochs: int,
    norm: bool,
    dropout: float,
    validate: bool,
    hidden: bool = False,
    second: bool = False,
    repeat: int = 1,
) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    learned: list[tuple[bool, bool]] = []
    taught: list[tuple[bool, bool]] = []
    student = _model("student", learned, norm=norm, dropout=dropout)
    teacher = _model("a teacher", taught, norm=norm, dropout=dropout)
    terms: list[Any] = [LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())]
    if hidden:
        terms.append(FeatureDistillation(loss="mse", teacher_layer_name="hidden", student_layer_name="hidden"))
    distiller = _compiled(teacher, student, terms, accumulate)
    if second:
        other = _compiled(_model("b", []), _model("c", []), [LogitsDistillation(temperature=1.0)], 2)
        inputs, targets = samples(8)
        other.fit(inputs.numpy(), targets.numpy(), verbose=0)
    before = {variable.path: np.array(variable) for variable in teacher.weights}
    start = _flat(student)
    inputs, targets = (tensor.numpy() for tensor in samples(count, repeat))
    size = batch // accumulate
    learned.clear()
    taught.clear()
    keras.utils.set_random_seed(0)
    distiller.fit(
        inputs, targets, batch_size=size, epochs=epochs, shuffle=False, verbose=0,
        validation_data=(inputs[:8], targets[:8]) if validate else None,
    )  # fmt: skip
    modes = [training for gradient, training in learned if gradient]
    accumulated = f", SGD(gradient_accumulation_steps={accumulate})" if accumulate > 1 else ""
    terms_shown = "[LogitsDistillation, FeatureDistillation]" if hidden else "LogitsDistillation"
    return {
        "call": f"Distiller(teacher, student, {terms_shown}).fit(x, y, batch_size={size}){accumulated}",
        "link": link(Distiller, REPOSITORY, TAG),
        "weights": _flat(student),
        "moved": _flat(student) != start,
        "student_modes": modes,
        "student_forwards": len(modes) / (epochs * -(-count // size)),
        "teacher_forwards": len(taught),
        "teacher_noisy": ["(the model)"] if any(training for _, training in taught) else [],
        "teacher_changed": [v.path for v in teacher.weights if not np.array_equal(before[v.path], np.array(v))],
        "teacher_gradients": [
            v.path for v in teacher.weights if v.value.grad is not None and bool(v.value.grad.abs().sum() > 0)
        ],
    }


def projector() -> dict[str, Any]:
    """The docstring of FeatureDistillation: "Use cosine similarity for different feature sizes"."""
    student, teacher = _model("student", []), _model("a teacher", [], width=8)
    term = FeatureDistillation(loss="cosine_similarity", teacher_layer_name="hidden", student_layer_name="hidden")
    distiller = _compiled(teacher, student, [term], 1)
    names = {variable.path for variable in student.trainable_weights}
    inputs, targets = samples(16)
    distiller.fit(inputs.numpy(), targets.numpy(), verbose=0)
    others = [variable.path for variable in distiller.trainable_weights if variable.path not in names]
    if not others:
        raise NotApplicableError("no projector is made")
    return {
        "call": NOTES["projector call"],
        "link": NOTES["projector link"],
        "trained": others,
        "saved": None,
        "file": "",
    }


def _compiled(teacher: Any, student: Any, terms: list[Any], accumulate: int) -> Distiller:
    distiller = Distiller(teacher=teacher, student=student, distillation_losses=terms)
    steps = accumulate if accumulate > 1 else None
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
    distiller.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return distiller


def _flat(model: keras.Model) -> list[float]:
    return np.concatenate([np.array(variable).ravel() for variable in model.trainable_weights]).astype(float).tolist()


NOTES = {
    "masked_is_left_out": "The docstring of compute_loss says of sample_weight: currently unused.",
    "projector call": "FeatureDistillation(loss='cosine_similarity', teacher_layer_name='hidden', student_layer_name="
    "'hidden'), student 5 wide, teacher 8 wide",
    "projector link": link(FeatureDistillation, REPOSITORY, TAG),
    "projector_is_trained": "The docstring of FeatureDistillation: Use cosine similarity for different feature sizes.",
}
CAPABILITIES = {
    "losses": loss_list, "loss": loss, "mixed": mixed, "defaults": defaults, "train": train, "projector": projector,
}  # fmt: skip

if __name__ == "__main__":
    serve(keras.__version__, CAPABILITIES, NOTES)
