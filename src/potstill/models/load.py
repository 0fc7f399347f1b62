"""Building models and reading, writing and resetting their weights."""

from __future__ import annotations

import inspect
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from potstill.core.errors import PotstillError, UsageError
from potstill.core.functions import cause
from potstill.core.scale import TargetScale
from potstill.core.tensors import write_tensors
from potstill.models.find import ModelFunction, find_model

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.")
_LISTED = 5


def build(
    model: str | ModelFunction | nn.Module,
    args: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    base: Path = Path(),
) -> nn.Module:
    """Build a model with weights that depend only on ``seed``.

    Use it wherever a recipe or a caller names a model. The global random state is as before afterwards.

    Args:
        model: a zoo name, ``"file.py:name"``, ``"package.module:name"``, or a function that returns an nn.Module.
            An nn.Module is returned as it is.
        args: keyword arguments of the function.
        seed: seed of the initial weights.
        base: the folder that ``file.py`` is relative to.

    Returns:
        The model, in training mode as its function left it.

    Raises:
        UsageError: an unknown model, arguments that it does not take (its parameters are listed), a failure while
            building it, or something that is not an nn.Module.

    """
    args = dict(args or {})
    label = f"'{model}'" if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    function = find_model(model, base=base) if isinstance(model, str) else model
    if isinstance(function, nn.Module):
        if args:
            raise UsageError(f"{label} is already a model: it takes no arguments, got {sorted(args)}.")
        return function
    _check_arguments(function, args, label)
    try:
        with _seeded(seed):
            built: Any = function(**args)
    except PotstillError:
        raise
    except Exception as error:
        raise UsageError(f"Building {label} with {args} failed: {cause(error)}.") from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"{label} returned {type(built).__name__}, expected an nn.Module.")
    return built


def _check_arguments(function: ModelFunction, args: Mapping[str, Any], label: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        names = [name for name, it in signature.parameters.items() if it.kind is not inspect.Parameter.VAR_KEYWORD]
        unknown = [name for name in args if name not in names]
        close = [match for name in unknown for match in get_close_matches(name, names, n=1)]
        hint = f" Did you mean '{close[0]}'?" if close else ""
        accepted = ", ".join(str(it.replace(annotation=it.empty)) for it in signature.parameters.values())
        what = f"{label} cannot be built with {dict(args)}: {error}."
        raise UsageError(f"{what}{hint} It accepts: {accepted}.") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Without CUDA in use only the CPU generator is touched: `torch.manual_seed` would seed CUDA for later, unforked.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def load_weights(model: nn.Module, path: Path | str, *, allow_pickle: bool = False) -> None:
    """Read weights from a file into a model; the model is unchanged unless everything fits.

    Use it for teachers and finished students. Torch files may be wrapped (``{"state_dict": ...}``) and their names
    may carry the prefixes of DataParallel and torch.compile.

    Args:
        model: the model that receives the weights.
        path: a .safetensors file, or a torch file when ``allow_pickle`` is set.
        allow_pickle: also read torch files, with ``weights_only=True``: tensors and plain containers, never code.

    Raises:
        UsageError: no such file, a torch file without ``allow_pickle``, a file that holds anything but weights, or
            weights that are missing, unexpected or of another shape (all are named).

    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}.")
    own = model.state_dict()
    state = _strip(_read(path, allow_pickle), own)
    # Files from before torch 0.4.1 have no batch counters; they only matter for momentum=None.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and isinstance(own[name], Tensor) and state[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} {problem}"
        for name in own
        if name in state and isinstance(own[name], Tensor) and (problem := _of_another_kind(state[name], own[name]))
    ]
    problems = [
        _listed("missing in the file", [_with_hint(name, unexpected) for name in missing]),
        _listed("unknown to the model", unexpected),
        _listed("of another shape (another number of classes or channels?)", shapes),
        _listed("that cannot be weights", kinds),
    ]
    if missing or unexpected or shapes or kinds:
        raise UsageError(f"{path} does not fit {type(model).__name__}: " + "; ".join(filter(None, problems)) + ".")
    model.load_state_dict(state, strict=False)


def scale_in(path: Path | str) -> TargetScale | None:
    """Return the standard units that the weights in a file were trained in; None where the file names none."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("scale")
        return None if text is None else TargetScale.from_json(json.loads(text))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}.") from error


def _of_another_kind(found: Tensor, own: Tensor) -> str:
    """Return why a tensor of a file cannot be a model's weights although it has their shape; an empty text if it can.

    Infinite numbers are left alone where the model itself starts with them, as a mask does.
    """
    kind = str(found.dtype).removeprefix("torch.")
    if found.is_quantized or (own.is_floating_point() and not (found.is_floating_point() or found.is_complex())):
        return f"is {kind}, codes of a quantised model: give its weights as floats"
    if found.is_complex() and not own.is_complex():
        return f"is {kind} and the model's own are real"
    if own.is_floating_point() and found.is_floating_point() and found.element_size() < 2:
        return f"is {kind}, which needs scales to be read: give its weights as floats"
    if not found.is_floating_point() and not found.is_complex():
        return ""
    if not own.is_floating_point() and not own.is_complex():
        return "" if bool((found == found.round()).all()) else f"is {kind} with fractions and the model's own are whole"
    if bool(found.isnan().any()):
        return f"holds {int(found.isnan().sum())} NaN: the training that made it probably diverged"
    read = found.to(own.dtype)
    endless = read.isinf() & (read != own.to(read.device)) if read.shape == own.shape else read.isinf()
    if not bool(endless.any()):
        return ""
    if bool(found[endless].isinf().any()):
        return f"holds {int(endless.sum())} infinite numbers"
    return f"holds numbers up to {float(found[endless].abs().max()):.3g}, too large for {own.dtype}".replace(
        "torch.", ""
    )


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what}: {', '.join(names[:_LISTED])}{more}"


def _with_hint(name: str, unexpected: list[str]) -> str:
    close = get_close_matches(name, unexpected, n=1)
    return f"{name} (the file has {close[0]})" if close else name


def _read(path: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a readable safetensors file: {error}.") from error
    if not allow_pickle:
        raise UsageError(
            f"{path} is not a safetensors file. Torch files are pickles, which can hold code, and are not opened "
            "unasked: set allow_pickle (they are then read with weights_only=True), or convert it to safetensors."
        )
    try:
        with warnings.catch_warnings():
            # A remark on the pickle protocol tells the user nothing: what cannot be read is refused below.
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")[:300]
        raise UsageError(
            f"{path} was refused: it holds something other than weights, and nothing in it was run. "
            f"Save model.state_dict() instead. ({reason})"
        ) from error
    except Exception as error:
        raise UsageError(f"{path} is not a readable torch file: {type(error).__name__}: {error}") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> Mapping[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    found = f"a dict with the keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content).__name__
    raise UsageError(f"{path} holds {found}, expected a state dict or one of {', '.join(_WRAPPERS)} with one inside.")


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    names = {name: name for name in state}
    while prefix := next((it for it in _PREFIXES if names and all(name.startswith(it) for name in names.values())), ""):
        if any(name.startswith(prefix) for name in own):
            break
        names = {original: name.removeprefix(prefix) for original, name in names.items()}
    return {name: state[original] for original, name in names.items()}


def save_weights(model: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's parameters and buffers to one safetensors file, atomically.

    Args:
        model: the model; weights shared by several layers are written under each of their names.
        path: where to write.
        metadata: texts to keep in the file's header.

    Raises:
        UsageError: metadata that is not text, or a model whose state is not only tensors.
        PotstillError: the disk is full or the folder cannot be written.

    """
    metadata = dict(metadata or {})
    wrong = [f"{key!r}: {type(value).__name__}" for key, value in metadata.items() if not isinstance(value, str)]
    if wrong:
        raise UsageError(f"The metadata of a weights file must be text, got {', '.join(wrong)}.")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"The state of {type(model).__name__} holds '{name}', a {type(value).__name__}: only "
                "tensors can be saved."
            )
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    write_tensors(Path(path), tensors, metadata)


def reinitialise(model: nn.Module, seed: int) -> None:
    """Give a model fresh weights that depend only on ``seed``, as if it had never been trained.

    Use it for a student that is already built. Layers are reset from the inside out with their own
    ``reset_parameters``, so that a model's own initialisation has the last word.

    Args:
        model: changed in place, parameters and buffers.
        seed: seed of the new weights; the global random state is as before afterwards.

    Raises:
        UsageError: a layer owns parameters and has no ``reset_parameters``; nothing was changed then.

    """
    modules = list(model.named_modules())
    stuck = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in modules
        if _resetter(module) is None and next(module.parameters(recurse=False), None) is not None
    ]
    if stuck:
        raise UsageError(
            f"{_listed('layers cannot be reinitialised', stuck)}. Give them a reset_parameters() method, "
            "or pass a function that builds the model."
        )
    with _seeded(seed), torch.no_grad():
        for _, module in reversed(modules):
            if (reset := _resetter(module)) is not None:
                reset()


def _resetter(module: nn.Module) -> Callable[[], object] | None:
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return found if callable(found) else None


def output_tensor(output: Any) -> Tensor:
    """Return the logits or values in what a model returned.

    Args:
        output: a tensor, a tuple or list whose first entry is the tensor, or a mapping or object with ``logits``.

    Returns:
        The tensor, usually (b, c); one number a sample, (b,), becomes one column, (b, 1).

    Raises:
        UsageError: anything else, naming what was returned.

    """
    if isinstance(output, Tensor):
        return output.reshape(-1, 1) if output.dim() < 2 else output
    if isinstance(output, Mapping):
        found, what = output.get("logits"), f"a mapping with the keys {list(output)}"
    elif getattr(output, "logits", None) is not None:
        found, what = output.logits, f"{type(output).__name__} with .logits"
    elif isinstance(output, (tuple, list)):
        found, what = (output[0] if output else None), f"{type(output).__name__} of {len(output)}"
    else:
        found, what = None, type(output).__name__
    if isinstance(found, Tensor):
        return found.reshape(-1, 1) if found.dim() < 2 else found
    raise UsageError(
        f"The model returned {what}; expected a tensor, a tuple whose first entry is one, or 'logits'. "
        "Wrap the model so that it returns its logits."
    )


def output_signals(model: nn.Module, output: Any) -> dict[str, Tensor]:
    """Return ``logits`` and every further signal that a model says it returns.

    A model with more than one answer (early exits, several students) lists their names in an attribute ``signals`` and
    returns a mapping with ``logits`` and these.

    Args:
        model: the model; its ``signals`` are read.
        output: what it returned.

    Raises:
        UsageError: no logits, or a promised signal is absent.

    """
    signals = {"logits": output_tensor(output)}
    for name in model_signals(model):
        if not isinstance(output, Mapping) or not isinstance(output.get(name), Tensor):
            raise UsageError(
                f"{type(model).__name__}.signals names {name!r}, but the model did not return it. "
                "Return a mapping with 'logits' and every name in signals."
            )
        signals[name] = output[name]
    return signals


def model_signals(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the signals that a model returns beside its logits."""
    return tuple(getattr(model, "signals", ()))
