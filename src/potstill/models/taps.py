"""Taps: reading hidden layers during the one forward pass that is made anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.names import split_run

Where = str | nn.Module | Callable[[nn.Module], nn.Module]
"""Which layer: its dotted name (``"layer3.0"``), or a function of the model (``lambda m: m.layer3``)."""


def resolve(model: nn.Module, where: Where) -> nn.Module:
    """Return the layer of ``model`` that ``where`` points to.

    Use it to check a layer's name before expensive work; `tap` does so itself.

    Args:
        model: the model that owns the layer.
        where: a dotted name (a trailing ``#k`` as in `tap` is ignored), a function of the model, or the module itself.

    Returns:
        The module.

    Raises:
        UsageError: no such layer, or ``where`` gives something that is not a layer of this model.

    """
    if isinstance(where, str):
        return _by_name(model, split_run(where)[0])
    found: object = where
    if not isinstance(where, nn.Module):
        try:
            found = where(model)
        except AttributeError as error:
            raise UsageError(
                f"The layer function failed on {type(model).__name__}: {error}. "
                f"Its parts: {', '.join(name for name, _ in model.named_children())}."
            ) from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"A layer must be an nn.Module; the layer function returned {type(found).__name__}.")
    if not any(module is found for module in model.modules()):
        raise UsageError(f"The layer {type(found).__name__} is not a part of this {type(model).__name__}.")
    return found


def _by_name(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    modules.pop("", None)
    if name in modules:
        return modules[name]
    children = [child for child, _ in model.named_children()]
    # A deep model has hundreds of layers: without a close match, its top level is the more helpful list.
    hint = did_you_mean(name, modules if get_close_matches(name, modules) else children)
    raise UsageError(f"{type(model).__name__} has no layer '{name}'.{hint}")


@dataclass
class _Record:
    """What one tap has seen in the current forward pass."""

    label: str
    index: int | None
    calls: int = 0
    value: Tensor | None = None
    version: int | None = None
    returned: str = ""


class Tapped(Mapping[str, Tensor]):
    """The tapped values of the latest forward pass, by tap name. Reading a value that is not there raises."""

    def __init__(self, records: Mapping[str, _Record]) -> None:
        self._records = dict(records)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._records:
            raise KeyError(f"There is no tap '{name}'.{did_you_mean(name, self._records)}")
        record = self._records[name]
        what = f"The tapped layer {record.label} (tap '{name}')"
        if record.calls == 0:
            raise UsageError(f"{what} did not run in the latest forward pass. Tap a layer that the model calls.")
        if record.index is None and record.calls > 1:
            raise UsageError(
                f"{what} ran {record.calls} times in one forward pass, so its output is ambiguous. "
                f"Choose one by name: '<layer name>#0' to '<layer name>#{record.calls - 1}'."
            )
        if record.index is not None and record.calls <= record.index:
            raise UsageError(f"{what} ran {record.calls} times in one forward pass; there is no run #{record.index}.")
        if record.value is None:
            raise UsageError(f"{what} returned {record.returned}, which holds no tensor. Tap another layer.")
        if record.version is not None and record.value._version != record.version:
            raise UsageError(
                f"The output of the tapped layer {record.label} (tap '{name}') was changed in place by a later "
                "operation such as `x += y`. Tap the block around it, or write `x = x + y`."
            )
        return record.value

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return name in self._records


@contextmanager
def tap(model: nn.Module, where: Mapping[str, Where]) -> Iterator[Tapped]:
    """Read the outputs of layers while the model runs as usual.

    Use it around one forward pass that serves every term of an objective. Values keep their graph, device and dtype
    (bfloat16 inside autocast). Each new forward of ``model`` inside the block replaces the values of the one before.
    Taps may be nested; the hooks are gone after the block, however it ends, while the values stay readable.

    Args:
        model: the model whose layers are read.
        where: for each tap name a layer, see `resolve`. A layer that runs several times in one forward pass (shared
            weights, one ReLU used twice) needs ``"name#k"``: its k-th run, counted from 0.

    Yields:
        A mapping from tap name to the layer's output: the tensor, or the first tensor of a tuple, dict or dataclass.

    Raises:
        UsageError: no such layer; on reading: the layer did not run, ran several times, returned no tensor, or its
            output was changed in place afterwards.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with tap(net, {"hidden": "0"}) as tapped:
        ...     output = net(torch.ones(4, 3))
        >>> tuple(tapped["hidden"].shape)
        (4, 2)

    """
    layers = {name: resolve(model, place) for name, place in where.items()}
    records = {
        name: _Record(
            f"'{place}'" if isinstance(place, str) else type(layers[name]).__name__,
            split_run(place)[1] if isinstance(place, str) else None,
        )
        for name, place in where.items()
    }
    # A later in-place activation would overwrite what was read; a copy is only paid for where one exists.
    copies = any(getattr(module, "inplace", False) is True for module in model.modules())
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(lambda *_: _clear(records.values())))
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(_hook(records[name], copies)))
        yield Tapped(records)
    finally:
        for handle in handles:
            handle.remove()


def _clear(records: Any) -> None:
    for record in records:
        record.calls, record.value, record.version, record.returned = 0, None, None, ""


def _hook(record: _Record, copies: bool) -> Callable[[nn.Module, Any, Any], None]:
    def remember(_module: nn.Module, _inputs: Any, output: Any) -> None:
        run, record.calls = record.calls, record.calls + 1
        if run == (record.index or 0):
            value = first_tensor(output)
            record.returned = type(output).__name__
            if value is None:
                return
            # Inference tensors have no version counter: a copy is the only protection there.
            safe = copies or value.is_inference()
            record.value = value.clone() if safe else value
            record.version = None if safe else value._version
        elif record.index is None:
            record.value = None

    return remember


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor in a layer's output: a tensor, or nested tuples, lists, mappings and dataclasses."""
    if isinstance(output, torch.Tensor):
        return output
    parts: Sequence[Any] = ()
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = output
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in fields(output)]
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)
