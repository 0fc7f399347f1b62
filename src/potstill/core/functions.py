"""Finding a user's function by name: ``file.py:name`` beside the recipe, or ``package.module:name``."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.source import is_own, module_files

_LOADED: dict[str, tuple[Path, tuple[int, ...]]] = {}
"""Modules of the user's own that were imported here: their files, and what these looked like."""


def find_function(source: str, *, base: Path = Path()) -> Callable[..., Any]:
    """Import the file or module and return the function or class, without calling it.

    Args:
        source: ``"file.py:name"`` (relative to ``base``) or ``"package.module:name"``.
        base: the folder that relative files are in; packages beside it can be imported too.

    Raises:
        UsageError: a missing file, a file that fails to import, an unknown name, or something not callable.

    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise UsageError(f"'{source}' is not a function: expected 'file.py:name' or 'package.module:name'.")
    module = _import_file(Path(base) / Path(place).expanduser(), source) if place.endswith(".py") else None
    found: Any = module if module is not None else _import_package(place, source, Path(base))
    for part in name.split("."):
        if not hasattr(found, part):
            known = [known for known, value in vars(found).items() if callable(value) and not known.startswith("_")]
            raise UsageError(f"'{place}' has no '{part}' (asked for by '{source}').{did_you_mean(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"'{source}' is {type(found).__name__}; expected a function or class.")
    function: Callable[..., Any] = found
    return function


@contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    """Let modules in a folder be imported; when one of the user's own was edited, all of them are read again."""
    if any(_stamp(file) != stamp for file, stamp in _LOADED.values()):
        for name in _LOADED:  # any of them may hold on to what was edited
            sys.modules.pop(name, None)
        _LOADED.clear()
    for name, (loaded, _) in list(_LOADED.items()):  # another folder's module of the same name is not this one's
        if any(other != loaded.resolve() for other in module_files(folder, name)[-1:]):
            sys.modules.pop(name, None)
            del _LOADED[name]
    entry = str(folder.resolve())
    before, writes_none = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, entry)
    # Compiled files are told apart by their source's size and second: an edit within that second would be overlooked.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        with suppress(ValueError):
            sys.path.remove(entry)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if isinstance(file, str) and is_own(Path(file)):
                _LOADED[name] = Path(file), _stamp(Path(file))


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _import_file(path: Path, asked: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"'{asked}' names the file {path}, which does not exist.")
    # Registered under a name of its own, so that classes of the file can be pickled and cannot hide a package.
    name = f"potstill_file_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    with _search_path(path.parent):
        known = sys.modules.get(name)
        if known is not None:
            return known
        spec = util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"'{asked}': {path} cannot be imported as a Python file.")
        module = util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UsageError(f"Importing {path} failed: {cause(error, path)} (asked for by '{asked}').") from error
    return module


def _import_package(place: str, asked: str, base: Path) -> ModuleType:
    try:
        with _search_path(base):
            return import_module(place)
    except (Exception, SystemExit) as error:
        raise UsageError(f"Importing '{place}' failed: {cause(error)} (asked for by '{asked}').") from error


def cause(error: BaseException, path: Path | None = None) -> str:
    """Return an error's kind and text, with the line of ``path`` that it came from."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while path is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" [line {line}]" if path is not None and line else "")
