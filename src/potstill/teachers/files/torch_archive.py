"""Looking into torch's files before torch opens them: nothing in them may run that the user did not allow.

A ``torch.export`` file is more than weights: pickles, compiled libraries, names of Python functions, expressions and
guards that torch evaluates as Python. What a program needs is therefore copied into a fresh archive, piece by piece:
pickles that hold tensors only, operators of torch, arithmetic, plain names. Anything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from potstill.core.errors import UsageError

_LARGEST_GROWTH = 20
"""A member that unpacks to more than this many times its size, and to more than 100 MB, is a bomb."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|higher_order)\.(\w+)(?:\.(\w+))?")
_ARITHMETIC = _words(
    """
    eq ne le ge lt gt neg pos mul add sub floordiv mod pow truediv and_ or_ xor not_ invert lshift rshift abs
    getitem index
    """
)
_HIGHER_ORDER = _words(
    """
    associative_scan cond flex_attention hints_wrapper invoke_subgraph map_impl out_dtype scan strict_mode
    tag_activation_checkpoint while_loop wrap wrap_activation_checkpoint wrap_with_autocast
    wrap_with_set_grad_enabled
    """
)
_CALLS = _words(
    """
    Symbol Integer Float Rational Max Min Eq Ne Lt Le Gt Ge Add Mul Pow Abs And Or Not Piecewise FloorDiv
    ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
    FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal
    ToFloat Identity ceiling floor sqrt StrictGreaterThan StrictLessThan GreaterThan LessThan Equality Unequality
    """
)
_CONTAINERS = frozenset((None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
_PLAIN = re.compile(r"[\w.+\-]*")
_TEXTS = ("as_string", "as_strings")
"""Keys of text that an operator is given as it is."""
_NOT_NEEDED: Mapping[str, Any] = {"metadata": {}, "guards_code": []}
"""Remarks, and code that torch would compile to check inputs, which are checked here."""


def plain_program(path: Path) -> io.BytesIO:
    """Return a ``torch.export`` file with only what a program without code of its own needs.

    Raises:
        UsageError: something in it could run code, or is not what such a file holds; names the member.

    """
    kept = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(kept, "w") as fresh:
            names = archive.namelist()
            for name in names:
                content = _kept(path, archive, name)
                if content is not None:
                    fresh.writestr(name, content)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a readable torch.export file: {' '.join(str(error).split())[:300]}") from error
    if len({name.casefold() for name in names}) < len(names):
        raise UsageError(f"{path} is refused: the archive holds two members of one name. Export the model anew.")
    kept.seek(0)
    return kept


def check_script(path: Path) -> None:
    """Refuse a TorchScript file whose code reads or writes files; it could not do other harm.

    Raises:
        UsageError: names the member.

    """
    with zipfile.ZipFile(path) as archive:
        for name in (name for name in archive.namelist() if "/code/" in name and name.endswith(".py")):
            try:
                tokens = [
                    token.string
                    for token in tokenize.tokenize(io.BytesIO(_content(path, archive, name)).readline)
                    if token.type in (tokenize.NAME, tokenize.OP)
                ]
            except (tokenize.TokenError, SyntaxError, UnicodeError):
                raise _refused(path, name, "it is not readable as code") from None
            for word, after in pairwise(tokens):
                if word in ("save", "from_file") and after == "(":
                    raise _refused(path, name, f"its code calls {word}, which reads or writes files")


def _kept(path: Path, archive: zipfile.ZipFile, name: str) -> bytes | str | None:
    """Return what the fresh archive holds of a member; None for those that no program needs."""
    base = name.rpartition("/")[2]
    if "data/aotinductor/" in name:
        raise _refused(path, name, "it is compiled machine code")
    if base.startswith(("custom_obj_", "opaque_obj_")):
        raise _refused(path, name, "it is a pickled Python object")
    if "/extra/" in name or name.startswith("extra_files/") or "/executorch/" in name or name.endswith("/"):
        return None
    content = _content(path, archive, name)
    old_weights = name in ("serialized_state_dict.json", "serialized_constants.json")
    if name.endswith(".pt") or "/sample_inputs/" in name or old_weights:
        _check_pickle(path, name, content)
        return content
    if not name.endswith(".json"):
        return content
    document = json.loads(content)
    for entry in (document.get("config") or {}).values() if base.endswith("_config.json") else ():
        if entry.get("use_pickle"):
            member = f"{name.removesuffix(base)}{entry.get('path_name')}"
            if member not in archive.namelist():
                raise _refused(path, member, "it is not there")
            _check_pickle(path, member, _content(path, archive, member))
    return json.dumps(_plain(document, "", lambda text, what: _refused(path, name, f"'{text[:100]}' is no {what}")))


def _content(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    member = archive.getinfo(name)
    if member.file_size > max(100_000_000, _LARGEST_GROWTH * member.compress_size):
        raise _refused(path, name, f"{member.compress_size:,} bytes unpack to {member.file_size:,}")
    return archive.read(name)


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    """Refuse a pickle that holds more than tensors and plain containers; it is read without running any of it."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|global(?:ly)? ([\w.]+) ", str(error))
        what = f" ({wanted[1] or wanted[2]})" if wanted else ""
        raise _refused(path, name, f"it is a pickle of more than tensors{what}") from error


Refusal = Callable[[str, str], UsageError]


def _plain(value: Any, key: str, refused: Refusal) -> Any:
    """Return a part of a program's description, of which every text is known to be harmless."""
    if isinstance(value, dict):
        plain = {}
        for name, item in value.items():
            if not _PLAIN.fullmatch(name):
                raise refused(name, "plain name")
            plain[name] = _NOT_NEEDED[name] if name in _NOT_NEEDED else _plain(item, name, refused)
        return plain
    if isinstance(value, list):
        return [_plain(item, key, refused) for item in value]
    if not isinstance(value, str) or key in _TEXTS:
        return value
    if key in ("target", "as_operator"):
        if not _is_operator(value):
            raise refused(value, "operator of torch that computes")
    elif key == "expr_str":
        if not _is_arithmetic(value):
            raise refused(value, "arithmetic")
    elif key in ("in_spec", "out_spec"):
        if value and not _is_tree(json.loads(value)):
            raise refused(value, "tuple, list or dict of tensors")
    elif not _PLAIN.fullmatch(value):
        raise refused(value, "plain name")
    return value


def _is_operator(target: str) -> bool:
    """Whether a name stands for a function that computes on tensors and numbers and does nothing else."""
    home, _, name = target.rpartition(".")
    if home == "_operator":
        return name in _ARITHMETIC
    if home == "math":
        return name.isidentifier() and not name.startswith("_")
    if home == "torch":
        return name.removeprefix("_").startswith("sym_")
    parts = _OPERATOR.fullmatch(target)
    if parts is None:
        return False
    namespace, name, overload = parts.groups()
    if namespace == "higher_order":
        return name in _HIGHER_ORDER and overload is None
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload or "default", None)
    if not isinstance(found, torch._ops.OpOverload):
        return False
    # from_file and save.
    return not any("file" in argument.name or "path" in argument.name for argument in found._schema.arguments)


def _is_arithmetic(text: str) -> bool:
    """Whether an expression is made of numbers, symbols, arithmetic and the functions that torch writes."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Name):
            if "__" in node.id or (id(node) in called and node.id not in _CALLS):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not re.fullmatch(r"[A-Za-z]\w*|[-+.\de]+", node.value):
                return False
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name):
                return False
        elif not isinstance(node, _ARITHMETIC_NODES):
            return False
    return True


_ARITHMETIC_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.keyword, ast.Load),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def _is_tree(spec: Any) -> bool:
    """Whether a description of nested inputs or outputs has plain containers only."""
    if isinstance(spec, list):
        return len(spec) == 2 and isinstance(spec[0], int) and _is_tree(spec[1])
    if not isinstance(spec, dict) or spec.get("type") not in _CONTAINERS:
        return False
    context = spec.get("context")
    held = json.loads(context) if isinstance(context, str) else context
    simple = held is None or (isinstance(held, list) and all(isinstance(key, str | int) for key in held))
    return simple and all(map(_is_tree, spec.get("children_spec") or ()))


def _refused(path: Path, name: str, why: str) -> UsageError:
    return UsageError(
        f"{path} was refused: its member '{name}' could run code when it is opened ({why}). Nothing in it was run. "
        "Export the model again from a source that you trust; 'allow_pickle: true' opens the file all the same."
    )
