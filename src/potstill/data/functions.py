"""Calling a user's data function given as ``'file.py:name'`` or ``'package.module:name'``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

from potstill.core.errors import DataError, PotstillError, UsageError, did_you_mean


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
    place, _, name = source.rpartition(":")
    is_file = place.endswith(".py")
    module = _from_file(base / Path(place).expanduser(), source) if is_file else _module(place, source, base)
    function = getattr(module, name, None)
    if not callable(function):
        known = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UsageError(f"'{place}' has no function '{name}' (asked for by '{source}').{did_you_mean(name, known)}")
    try:
        return function(**args)
    except PotstillError:
        raise
    except Exception as error:  # whatever a user's function raises
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise DataError(f"{source}({given}) failed: {type(error).__name__}: {error}{_line(error, module)}") from error


def _from_file(path: Path, source: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"'{source}' names the file {path}, which does not exist.")
    # A name of its own, so that classes of the file can be pickled and cannot hide an installed package.
    name = f"potstill_data_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"'{source}': {path} cannot be imported as a Python file.")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"Importing {path} failed: {type(error).__name__}: {error}{_line(error, module)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _module(place: str, source: str, base: Path) -> ModuleType:
    entry = str(base.resolve())
    sys.path.insert(0, entry)
    try:
        return import_module(place)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"Importing '{place}' failed: {reason} (asked for by '{source}').") from error
    finally:
        sys.path.remove(entry)


def _line(error: BaseException, module: ModuleType) -> str:
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == getattr(module, "__file__", None):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" [{Path(str(module.__file__)).name}, line {line}]" if line and getattr(module, "__file__", None) else ""
