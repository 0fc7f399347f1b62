"""Optional packages: imported where they are used, through one helper that names the extra to install."""

from __future__ import annotations

from importlib import import_module
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
        raise PotstillError(
            f'{feature} needs the package "{error.name}", which is not installed. '
            f'Install it with: pip install "potstill[{extra}]"'
        ) from error
