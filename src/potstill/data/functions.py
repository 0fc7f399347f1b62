"""Calling a user's data function given as ``'file.py:name'`` or ``'package.module:name'``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.core.errors import DataError, PotstillError
from potstill.core.functions import cause, find_function


def is_function(source: str) -> bool:
    """Return whether a source names a function rather than a file."""
    place, colon, name = source.rpartition(":")
    is_module = place.endswith(".py") or all(part.isidentifier() for part in place.split("."))
    return bool(colon) and name.isidentifier() and is_module


def call(source: str, args: Mapping[str, Any], base: Path) -> Any:
    """Call the function and return what it returns.

    Args:
        source: ``"file.py:name"`` relative to ``base``, or ``"package.module:name"``.
        args: keyword arguments.
        base: folder of the recipe.

    Raises:
        UsageError: no such file, module or function.
        DataError: the function raised an error.

    """
    function = find_function(source, base=base)
    try:
        return function(**args)
    except PotstillError:
        raise
    except Exception as error:  # whatever a user's function raises
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise DataError(f"{source}({given}) failed: {cause(error, _file(function))}") from error


def _file(function: Callable[..., Any]) -> Path | None:
    code = getattr(function, "__code__", None)
    return None if code is None else Path(code.co_filename)
