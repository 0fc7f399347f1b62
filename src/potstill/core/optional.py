"""Optional packages: imported where they are used, through one helper that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from potstill.core.errors import PotstillError


def require(module: str, *, feature: str, extra: str) -> ModuleType:
    """Import ``module`` or raise a `PotstillError` with the exact install line.

    Args:
        module: dotted module name, for example ``"onnxruntime"``.
        feature: what the user asked for, for example ``"exporting to ONNX"``.
        extra: the potstill extra that installs it, for example ``"export"``.

    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise _missing(error.name, feature, extra) from error


def check_installed(modules: Iterable[str], *, feature: str, extra: str) -> None:
    """Raise the same `PotstillError` as `require` for the first module that is not installed, importing none.

    Use it before expensive work that ends in the feature.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing(module, feature, extra)


def _missing(module: str, feature: str, extra: str) -> PotstillError:
    return PotstillError(
        f'{feature} needs the package "{module}", which is not installed. '
        f'Install it with: pip install "potstill[{extra}]"'
    )
