"""The user's own code as plain data: the files that a function or class comes from or imports, and what they say."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import CellType, CodeType
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.core import fingerprint

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BY_NAME = ("import_module", "__import__")


def files_of(things: Iterable[Any], *, base: Path) -> tuple[Path, ...]:
    """Return the user's files that some code comes from, and those that these import, and so on.

    Files of Python itself, of installed packages and of potstill are nobody's own and are left out, and so is what
    was typed into a notebook: it has no file.

    Args:
        things: functions and classes, or names as in recipes, ``"file.py:name"`` or ``"package.module:name"``.
        base: the folder that names are relative to; imports are looked for there too.

    """
    return imported_files([start for thing in things for start in _starts(thing, base)], base=base)


def imported_files(starts: Iterable[Path], *, base: Path) -> tuple[Path, ...]:
    """Return these files and the user's files that they import, and so on, in the order of their paths."""
    seen: set[Path] = set()
    waiting = [start.resolve() for start in starts]
    while waiting:
        file = waiting.pop()
        if file in seen or not is_own(file):
            continue
        seen.add(file)
        roots = dict.fromkeys([file.parent, _above_package(file), base.resolve()])
        for level, name in _imports(_content(file)):
            folders = [file.parents[level - 1]] if 0 < level <= len(file.parents) else list(roots) if not level else []
            waiting += [found for folder in folders for found in module_files(folder, name)]
    return tuple(sorted(seen))


def digests(files: Iterable[Path], *, base: Path) -> dict[str, str]:
    """Return what each file says, as a digest, by its path below ``base`` or below its outermost package."""
    found: dict[str, str] = {}
    base = base.resolve()
    for file in files:
        label = file.relative_to(base if file.is_relative_to(base) else _above_package(file)).as_posix()
        digest = code_digest(_content(file))
        found[label] = _sha256(found[label] + digest) if label in found else digest
    return found


def same_code(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Return whether two results of `digests` are of the same code, wherever its files lie."""
    return sorted(first.values()) == sorted(second.values())


@lru_cache(maxsize=256)
def code_digest(content: bytes) -> str:
    """Return the sha256 hex digest of Python code without its comments, docstrings and layout.

    What is no Python is taken byte by byte.
    """
    tree = _tree(content)
    if tree is None:
        return hashlib.sha256(content).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return _sha256(ast.unparse(tree))


def typed_code(thing: Any) -> list[Any]:
    """Return what a function does beyond what its file says, as plain data.

    That is its defaults, its closure, and the numbers, texts, arrays and functions that it reads from around it; and
    its compiled code where it has no file (typed into a notebook, or made by ``exec``). Empty for code that is
    installed, for what reads nothing from around it, and for what is no Python function.
    """
    return _typed(thing, set())


def _typed(thing: Any, seen: set[int]) -> list[Any]:
    if isinstance(thing, partial):
        return [_typed(thing.func, seen), [_plain(one, seen) for one in (*thing.args, *sorted(thing.keywords.items()))]]
    thing = getattr(thing, "__func__", thing)
    if not inspect.isfunction(thing):
        own = [] if isinstance(thing, type) or not callable(thing) else sorted(vars(type(thing)).items())
        return [found for _, member in own if inspect.isfunction(member) and (found := _typed(member, seen))]
    file = Path(thing.__code__.co_filename)
    if id(thing) in seen or (file.is_file() and not is_own(file)):
        return []
    seen.add(id(thing))
    cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
    around = [thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__]
    options = sorted((thing.__kwdefaults__ or {}).items())
    values = [_plain(value, seen) for value in (*(thing.__defaults__ or ()), *options, *cells, *around)]
    if not file.is_file():
        return [_compiled(thing.__code__), values]
    return values if any(values) else []


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


def _compiled(code: CodeType) -> list[Any]:
    consts = [_compiled(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), consts]


def _plain(value: Any, seen: set[int]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_plain(item, seen) for item in value]
    if isinstance(value, dict):
        return [_plain(item, seen) for item in sorted(value.items(), key=repr)]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return fingerprint.of_array(value)
    if isinstance(value, torch.Tensor):
        return fingerprint.of_state({"": value})
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, fingerprint.of_weights(value)]
    if inspect.ismodule(value) or isinstance(value, type):
        return ""
    return _typed(value, seen) if inspect.isfunction(value) else type(value).__qualname__


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _tree(content: bytes) -> ast.Module | None:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _starts(thing: Any, base: Path) -> Iterator[Path]:
    """Yield the files in which a function, a class or what a name stands for is written."""
    if isinstance(thing, str):
        place, _, _ = thing.rpartition(":")
        if place.endswith(".py"):
            yield base / Path(place).expanduser()
        elif (module := sys.modules.get(place)) is not None and isinstance(getattr(module, "__file__", None), str):
            yield Path(str(module.__file__))
        return
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if inspect.ismethod(thing):
        thing = thing.__func__
    if not inspect.isfunction(thing):
        for each in inspect.getmro(thing if isinstance(thing, type) else type(thing)):
            file = getattr(sys.modules.get(each.__module__), "__file__", None)
            if isinstance(file, str):
                yield Path(file)
        return
    yield Path(thing.__code__.co_filename)


@lru_cache(maxsize=4096)
def _is_installed(folder: Path) -> bool:
    """Return whether files of a folder are of Python itself, of an installed package or of potstill."""
    if {"site-packages", "dist-packages"} & set(folder.parts) or folder.is_relative_to(_PACKAGE):
        return True
    paths = sysconfig.get_paths()
    return any(folder.is_relative_to(os.path.realpath(paths[name])) for name in _INSTALLED if name in paths)


def is_own(file: Path) -> bool:
    """Return whether a file is the user's own: not of Python, of an installed package or of potstill."""
    return file.is_file() and not _is_installed(file.parent)


def _above_package(file: Path) -> Path:
    """Return the folder that holds a file's outermost package, or the file itself."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


@lru_cache(maxsize=256)
def _imports(content: bytes) -> tuple[tuple[int, str], ...]:
    """Return the modules that some code may import, wherever it does: dots in front, and the dotted name."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(_tree(content) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
            found += [(node.level, name) for name in ([node.module] if node.module else []) + inside]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in _BY_NAME and isinstance(node.args[0].value, str):
                dotted = node.args[0].value
                found.append((len(dotted) - len(dotted.lstrip(".")), dotted.lstrip(".")))
    return tuple(dict.fromkeys(found))


def module_files(root: Path, dotted: str) -> list[Path]:
    """Return the files that importing a module from a folder runs: those of its packages, and its own last."""
    found, place = [], root
    for part in filter(None, dotted.split(".")):
        place = place / part
        found += [file.resolve() for file in (place / "__init__.py", place.with_name(f"{part}.py")) if file.is_file()]
    return found
