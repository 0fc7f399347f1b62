"""A model as a teacher: frozen while it teaches, and afterwards as it was before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import indent
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.names import parse, split_run
from potstill.core.scale import TargetScale
from potstill.core.signals import Batch, Signals
from potstill.models.input_gradients import INPUT_GRADIENT, differentiable, input_gradient
from potstill.models.load import model_signals, output_signals
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where, resolve, tap
from potstill.teachers.model import Facts, Precision

_LISTED_NUMBERS = 16


class Step(Protocol):
    """What becomes of a model's answers before they are its logits: (b, ...) to (b, c)."""

    kind: ClassVar[str]
    """What it is called in the description of a store."""

    @property
    def note(self) -> str:
        """What the user is told about it; empty where nothing is."""

    def __call__(self, answers: Tensor, /) -> Tensor:
        """Return the logits."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that it depends on, by name."""

    def __str__(self) -> str:
        """Return what tells two of these apart beside their tensors; empty where nothing does."""


def framed(kind: str, *lines: str) -> str:
    """Return the text of something that is made of parts, as torch writes a module."""
    return f"{kind}(\n{indent(chr(10).join(filter(None, lines)), '  ')}\n)"


def text_of(own: str, then: Sequence[Step]) -> str:
    """Return the text of a model that some steps follow, without addresses, which every process has anew."""
    for step in then:
        own = framed(step.kind, str(step), f"(model): {own}")
    return re.sub(r" at 0x[0-9a-fA-F]+", "", own)


class LiveTeacher:
    """Answers batches by running a model in evaluation mode, without gradients, in one forward pass.

    When to use it: to record a store (the usual way), or directly in training when views must never repeat.
    The model is used in place, not copied: every module is put in evaluation mode, parameters need no gradient, and
    weights move to ``device`` (and to channels-last memory when the model has 2-d convolutions). `close`, or leaving
    the ``with`` block, gives the model back as it was.

    Args:
        model: returns a tensor, a tuple with the tensor first, or a mapping or object with ``logits``.
        preprocess: what happens to ``batch.tensor`` before the model; copied.
        taps: further signals by name: the layer each is read at.
        outputs: further signals that the model returns beside its logits (its ``signals``).
        input_gradient: whether to answer with ``input_gradient`` as well, see `potstill.models.input_gradients`; it
            costs a backward pass.
        precision: arithmetic of the forward pass. ``"bfloat16"`` runs it under autocast; ``"auto"`` does so on a GPU
            that has it, unless values are turned by ``scale``. Answers are float32 either way.
        device: where the model runs.
        scale: for values of a regression, the standard units to answer in; the model's own when absent.
        log_variances: signals that hold logarithms of variances of the values, which change units with them.
        then: what becomes of the model's answers, in order, before they are its logits.

    Raises:
        UsageError: an unknown precision, a tap called "logits", or a layer that does not exist.
        TeacherError: the model has parameters that were never initialised.

    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Preprocessor,
        taps: Mapping[str, Where] | None = None,
        outputs: Iterable[str] = (),
        input_gradient: bool = False,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        scale: TargetScale | None = None,
        log_variances: Iterable[str] = (),
        then: Sequence[Step] = (),
    ) -> None:
        taps = dict(taps or {})
        self._then = tuple(then)
        self._scale = scale
        self._log_variances = frozenset(log_variances)
        self._device = torch.device(device)
        # 16 bits hold a value of 22,000 to the next 128: a teacher in the target's units computes in 32.
        precision = "float32" if precision == "auto" and scale is not None else precision
        self._precision = resolved_precision(precision, self._device)
        if "logits" in taps:
            raise UsageError("A tap cannot be called 'logits': that is the model's output. Choose another name.")
        self._outputs = tuple(sorted(set(outputs)))
        absent = [name for name in self._outputs if name not in model_signals(model)]
        if absent:
            raise UsageError(f"{type(model).__name__} does not return a signal {absent[0]!r} (see its .signals).")
        self.sources = dict.fromkeys(("logits", *self._outputs), "output")
        self.sources |= {name: "model." * len(self._then) + _layer_name(model, where) for name, where in taps.items()}
        if input_gradient:
            if INPUT_GRADIENT in self.sources:
                raise UsageError(
                    f"A tap cannot be called {INPUT_GRADIENT!r}: that is the gradient. Choose another name."
                )
            self.sources[INPUT_GRADIENT] = "gradient of the output by the inputs, in a direction of each id and view"
        lazy = [name for name, value in state_of(model).items() if nn.parameter.is_lazy(value)]
        if lazy:
            raise TeacherError(
                f"The teacher {type(model).__name__} was never initialised: {lazy[0]} has no shape yet. "
                "Run it once on a batch and load its weights first."
            )
        self._model = model
        self._taps = taps
        self._differentiates = input_gradient
        self._preprocess = _copy(preprocess).to(self._device).eval()
        self._digests = digests(state_of(model, self._then))
        self._was = _Flags(model)
        self._open = True
        self._channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
        self.parts: dict[str, Any] = {
            "model": self._then[-1].kind if self._then else type(model).__qualname__,
            "weights": fingerprint.of_json(self._digests),
            "preprocessing": described(preprocess),
            "precision": self._precision,
        }
        self.parts |= described_units(scale, self._log_variances)
        self._modules = tuple(model.modules())
        self._freeze()

    @property
    def module(self) -> nn.Module | None:
        """The model itself; None where its answers become something else."""
        return None if self._then else self._model

    @property
    def facts(self) -> Facts:
        """What is known of it; the signals are those in every answer."""
        return Facts(frozenset(self.sources), layers=True)

    @property
    def fingerprint(self) -> str:
        """Hash of class name, weights, buffers, preprocessing, precision and tapped layers."""
        return fingerprint.of_json({"parts": self.parts, "sources": self.sources})

    def __call__(self, batch: Batch) -> Signals:
        """Answer a batch.

        Returns:
            float32 ``logits`` and taps, (b, ...), on the teacher's device: ordinary tensors without gradient.

        Raises:
            TeacherError: the model failed on these inputs, its answer has another number of rows, or it was closed.

        """
        if not self._open:
            raise TeacherError("This LiveTeacher was closed and its model given back. Make a new one.")
        if any(module.training for module in self._modules):
            self._freeze()
        signals = self._differentiated(batch) if self._differentiates else self._answer(batch)
        return answered(signals, len(batch))

    def _answer(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self._signals(batch.tensor.to(self._device))

    def _differentiated(self, batch: Batch) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = differentiable(batch.tensor.to(self._device))
            signals = self._signals(inputs)
            signals[INPUT_GRADIENT] = input_gradient(signals["logits"].float(), inputs, batch.ids, batch.views)
        return {name: values.detach() for name, values in signals.items()}

    def _signals(self, raw: Tensor) -> dict[str, Tensor]:
        inputs = self._preprocess(raw)
        if self._channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with (
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"),
            tap(self._model, self._taps) as tapped,
        ):
            answer = output_signals(self._model, self._run(inputs))
            for step in self._then:
                answer["logits"] = step(answer["logits"])
            signals = {name: answer[name] for name in ("logits", *self._outputs)}
            signals |= {name: tapped[name] for name in self._taps}
            return in_standard_units(signals, self._scale, self._log_variances)

    def verify_unchanged(self) -> None:
        """Compare every weight and buffer with what it was when teaching began.

        Use it after recording or training, before anything is published.

        Raises:
            TeacherError: naming the ones that changed.

        """
        now = digests(state_of(self._model, self._then))
        changed = [name for name in {**self._digests, **now} if self._digests.get(name) != now.get(name)]
        if changed:
            names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise TeacherError(
                f"The teacher changed while it taught: {names}. Its answers are not those of one fixed model. "
                "Remove what changes them (an optimiser that holds its parameters, a forward that writes to a buffer) "
                "and record again."
            )

    def close(self) -> None:
        """Give the model back: its training and gradient flags, its device and its memory format."""
        if self._open:
            self._open = False
            self._was.restore(self._model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _freeze(self) -> None:
        self._model.eval()
        # A model whose own train() spares some modules (frozen batch norm, for one) is overruled here.
        for module in self._modules:
            module.training = False
        self._model.requires_grad_(False)
        self._model.to(self._device)
        if self._channels_last:
            self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _run(self, inputs: Tensor) -> Any:
        try:
            return self._model(inputs)
        except (PotstillError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise TeacherError(
                f"The model {type(self._model).__name__} failed on inputs of shape {tuple(inputs.shape)} "
                f"({inputs.dtype}): {type(error).__name__}: {error}. Check that the data has the shape it was trained "
                "on, and its preprocessing."
            ) from error


class _Flags:
    """What a teacher changes on a model, as it was before."""

    def __init__(self, model: nn.Module) -> None:
        self._training = [(module, module.training) for module in model.modules()]
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._devices = {value.device for value in state_of(model).values()}
        self._strides = [(value, value.stride()) for value in state_of(model).values() if value.is_contiguous()]

    def restore(self, model: nn.Module) -> None:
        if len(self._devices) == 1:
            model.to(next(iter(self._devices)))
        for value, stride in self._strides:
            if value.stride() != stride:  # also where both are contiguous: a layer chooses its arithmetic by it
                value.data = value.data.clone(memory_format=torch.contiguous_format)
        model.train(self._training[0][1])
        for module, training in self._training:
            module.training = training
        for parameter, requires_grad in self._requires_grad:
            parameter.requires_grad_(requires_grad)


def resolved_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the arithmetic that a recipe's word for it stands for on a device."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision='{precision}': a teacher runs in {', '.join(get_args(Precision))}.")
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if precision == "bfloat16" else "float32"


def _layer_name(model: nn.Module, where: Where) -> str:
    """Return the dotted name of a tapped layer, so that a function and a name of the same layer are the same."""
    layer = resolve(model, where)
    name = next(name for name, module in model.named_modules() if module is layer)
    run = split_run(where)[1] if isinstance(where, str) else None
    return name if run is None else f"{name}#{run}"


def state_of(model: nn.Module, then: Sequence[Step] = ()) -> dict[str, Tensor]:
    """Return all that a model's answers depend on, by name: parameters, buffers, also unsaved ones, and its steps'."""
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    for step in then:
        state = {f"model.{name}": value for name, value in state.items()} | step.state()
    return state


def digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a hash of each tensor."""
    return {name: fingerprint.of_state({name: value}) for name, value in state.items()}


def described_units(scale: TargetScale | None, log_variances: Iterable[str]) -> dict[str, Any]:
    """Return the units of a teacher's answers as plain data; nothing where they are the model's own."""
    logs = {"log_variances": sorted(log_variances)} if log_variances else {}
    return {} if scale is None else {"scale": scale.to_json(), **logs}


def in_standard_units(
    signals: dict[str, Tensor], scale: TargetScale | None, log_variances: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return the signals, those in the target's units in standard units."""
    if scale is None:
        return signals
    logs = set(log_variances)
    in_units = {name for name in signals if parse(name).is_answer} | logs
    return {
        name: scale.standard_tensor(values, log_variance=name in logs) if name in in_units else values
        for name, values in signals.items()
    }


def _copy(preprocess: Preprocessor) -> Preprocessor:
    return Preprocessor(preprocess.mean, preprocess.std, preprocess.size)


def described(preprocess: Preprocessor) -> dict[str, Any]:
    """Return a model's preprocessing as plain data."""
    return {"mean": _numbers(preprocess.mean), "std": _numbers(preprocess.std), "size": preprocess.size}


def _numbers(values: Tensor | None) -> list[float] | str | None:
    if values is None:
        return None
    if values.numel() > _LISTED_NUMBERS:
        return fingerprint.of_state({"": values})
    # The shortest text that gives the same float32, so that messages show 0.4914 and not 0.49140000343322754.
    return [float(str(number)) for number in values.detach().cpu().numpy().astype(np.float32)]


def answered(signals: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return what a model said of ``count`` samples as ordinary float32 tensors, copied.

    Raises:
        TeacherError: a signal has another number of rows.

    """
    for name, values in signals.items():
        if values.dim() == 0 or values.shape[0] != count:
            raise TeacherError(
                f"The teacher's signal '{name}' has shape {tuple(values.shape)} for a batch of {count} "
                "samples: its first dimension must be the batch."
            )
    # A copy made outside inference mode is an ordinary tensor: losses may save it for the backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return {
            name: values.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            for name, values in signals.items()
        }
