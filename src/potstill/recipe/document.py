"""YAML text to plain values that remember their lines: the core types of YAML 1.2, no duplicate keys, no objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Where a value stands: ``("training", "epochs")`` or ``("objective", 0, "weight")``."""

LARGEST = 100_000
"""More values than this is an alias bomb, not a recipe."""
_LONGEST_TEXT, _LONGEST_KEY, _LONGEST_NUMBER = 65_536, 200, 400
_NO_TEXT = re.compile("[\ud800-\udfff]")
"""Halves of characters, which nothing can hold."""

TAG = "tag:yaml.org,2002:"
CORE_TYPES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class DocumentError(ValueError):
    """The text is not one YAML document of plain values; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Document:
    """The values of one YAML text.

    Attributes:
        value: mappings, lists, text, numbers, booleans and None; None for an empty text.
        lines: the line of every key and list item, counted from 1.
        duplicates: ``(place, line, first line)`` of every key that is given a second time; the first one counts.

    """

    value: Any
    lines: Mapping[Place, int]
    duplicates: tuple[tuple[Place, int, int], ...]


class _CoreLoader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: ``1e-3`` is a number, ``no`` and ``off`` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _name, _pattern, _first in CORE_TYPES:
    _CoreLoader.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        DocumentError: the syntax is wrong, or something other than plain values is written.

    """
    try:
        root = yaml.compose(text, _CoreLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, f"the character U+{int(error.character):04X} is not allowed in YAML") from None
    except RecursionError:
        raise DocumentError(1, "the values are nested too deeply") from None
    if root is None:
        return Document(None, {}, ())
    lines: dict[Place, int] = {(): _line(root)}
    duplicates: list[tuple[Place, int, int]] = []
    value = _convert(root, (), lines, duplicates, frozenset())
    return Document(value, lines, tuple(duplicates))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _convert(
    node: yaml.Node,
    place: Place,
    lines: dict[Place, int],
    duplicates: list[tuple[Place, int, int]],
    inside: frozenset[int],
) -> Any:
    if id(node) in inside:
        raise DocumentError(_line(node), "an alias (*) stands inside the value it refers to")
    if len(lines) > LARGEST:
        raise DocumentError(_line(node), f"more than {LARGEST:,} values")
    inside |= {id(node)}
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
        items = []
        for number, child in enumerate(node.value):
            lines[(*place, number)] = _line(child)
            items.append(_convert(child, (*place, number), lines, duplicates, inside))
        return items
    if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            key = _key(key_node)
            here = (*place, key)
            if key in values:
                duplicates.append((here, _line(key_node), lines[here]))
                continue
            lines[here] = _line(key_node)
            values[key] = _convert(child, here, lines, duplicates, inside)
        return values
    raise DocumentError(_line(node), f"the tag {_shown(node.tag)} is not used in recipes; remove it")


def _shown(tag: str) -> str:
    return ("!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag)[:60]


def _key(node: yaml.Node) -> str:
    value = _scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if isinstance(value, str) and len(value) > _LONGEST_KEY:
        raise DocumentError(_line(node), f"a key of {len(value):,} characters; at most {_LONGEST_KEY} are allowed")
    if not isinstance(value, str):
        shown = f"'{node.value[:60]}'" if isinstance(node, yaml.ScalarNode) else "a list or section"
        raise DocumentError(_line(node), f"a key must be text, got {shown}; write it in quotes if it is meant")
    return value


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    if len(text) > _LONGEST_TEXT:
        raise DocumentError(_line(node), f"a text of {len(text):,} characters; at most {_LONGEST_TEXT:,} are allowed")
    if unfit := _NO_TEXT.search(text):
        raise DocumentError(_line(node), f"a text holds U+{ord(unfit[0]):04X}, which is no character; remove it")
    kind = str(node.tag).removeprefix(TAG)
    if kind in ("int", "float") and len(text) > _LONGEST_NUMBER:
        raise DocumentError(_line(node), f"a number of {len(text):,} digits; at most {_LONGEST_NUMBER} are allowed")
    try:
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            base = {"0o": 8, "0x": 16}.get(text[:2].lower(), 10)
            return int(text[2:] if base != 10 else text, base)
        if kind == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except (KeyError, ValueError):
        raise DocumentError(_line(node), f"'{text[:60]}' is not a valid {_shown(node.tag)}") from None
    raise DocumentError(_line(node), f"the tag {_shown(node.tag)} is not used in recipes; remove it")


def _syntax(error: yaml.MarkedYAMLError, text: str) -> DocumentError:
    rows = text.splitlines()
    problem = (error.problem or error.context or "").strip()
    unclosed = "end of stream" in problem or "stream end" in problem
    mark = (unclosed and error.context_mark) or error.problem_mark or error.context_mark
    line = 1 if not mark else mark.line + 1
    row = rows[line - 1] if line <= len(rows) else ""
    if "\t" in row[: len(row) - len(row.lstrip())]:
        return DocumentError(line, "the line is indented with a tab; use spaces")
    if "single document" in (error.context or ""):
        return DocumentError(line, "a second document starts here ('---'); a recipe is one document")
    if "mapping values are not allowed" in problem:
        hint = "check the indentation, and put text that contains ': ' in quotes"
    elif "cannot start any token" in problem:
        hint = "put text that starts with a special character in quotes"
    elif "undefined alias" in problem:
        hint = "put text that starts with '*' in quotes"
    elif unclosed:
        hint = "a quote or bracket is not closed"
    else:
        hint = "check the indentation, quotes and brackets"
    return DocumentError(line, f"not valid YAML: {problem}; {hint}")
