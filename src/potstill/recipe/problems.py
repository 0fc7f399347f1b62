"""What is wrong with a recipe, in plain words: what was given, what was expected, what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from potstill.core.errors import did_you_mean
from potstill.recipe.document import Place
from potstill.recipe.schema import Recipe

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
}
_NAMED, _LONGEST_GUESS = 10, 60
EXAMINED = 50
"""Errors that are put into words; who makes more does not read them all."""
_KINDS = ("string_type", "list_type", "dict_type", "model_type", "float_type", "int_type", "bool_type")
"""Errors that say a value is of another kind altogether."""
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section inside a field's type, such as ``Training | None``, lists left out; or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is list:
        return None
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def item_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's lists are made of, as in ``str | list[TermSection]``, or None."""
    if get_origin(annotation) is list:
        return section_of(get_args(annotation)[0])
    return next((found for part in get_args(annotation) if (found := item_of(part))), None)


def schema_keys(section: type[BaseModel] = Recipe, place: Place = ()) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Yield ``(place, section it belongs to)`` for every key a recipe may have; list items are numbered 0."""
    for name, field in section.model_fields.items():
        yield (*place, name), section
        for inner, below in ((section_of(field.annotation), ()), (item_of(field.annotation), (0,))):
            if inner is not None:
                yield from schema_keys(inner, (*place, name, *below))


def without_empty_sections(value: Any, section: type[BaseModel] = Recipe) -> Any:
    """Return ``value`` with sections that have no keys (``budget:``) as empty ones, so that defaults apply."""
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, field in section.model_fields.items():
        if name in filled and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            given = {} if filled[name] is None else filled[name]
            filled[name] = without_empty_sections(given, field.annotation)
    return filled


def explain(error: ValidationError, root: type[BaseModel] = Recipe) -> list[tuple[Place, str]]:
    """Return ``(place, message)`` for what does not fit the schema, each place once; at most `EXAMINED` of it."""
    problems = [
        (*_without_union_tags(root, tuple(details["loc"])), details)
        for details in error.errors(include_url=False)[:EXAMINED]
    ]
    refused: dict[Place, list[ErrorDetails]] = {}
    for place, is_choice, details in problems:
        if is_choice and details["type"] in _KINDS:
            refused.setdefault(place, []).append(details)
    found: dict[Place, str] = {}
    for place, is_choice, details in problems:
        if is_choice and details["type"] in _KINDS:
            # Where one choice fits the value's kind, its own problems say more than that the others do not.
            others = [one for one, _, other in problems if one[: len(place)] == place and other not in refused[place]]
            if not others:
                expected = " or ".join(dict.fromkeys(_kind(root, place, one["type"]) for one in refused[place]))
                given = describe(details["input"])
                found.setdefault(place, f"expected {expected}, got {given}{_meaning(root, place)}")
        elif details["type"] == "literal_error" and place in refused:
            kind, given = refused[place][0]["type"], details["input"]
            expected = f"{_kind(root, place, kind)} or {details.get('ctx', {})['expected']}"
            found.setdefault(place, f"expected {expected}, got {describe(given)}{_instead(root, place, kind, given)}")
        else:
            found.setdefault(place, _message(root, place, details))
    return list(found.items())


def _kind(root: type[BaseModel], place: Place, kind: str) -> str:
    if kind == "list_type":
        field = _field(root, place)
        return "a list of sections" if field is not None and item_of(field.annotation) else "a list"
    return _EXPECTED[kind]


def describe(value: Any) -> str:
    """Return what was given, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, list):
        return f"a list of {len(value)} {'item' if len(value) == 1 else 'items'}"
    if isinstance(value, dict):
        names = ", ".join(map(repr, list(value)[:_NAMED])) + (", ..." if len(value) > _NAMED else "")
        return f"a section with {names or 'no keys'}"
    return f"{type(value).__name__}"


def _field(root: type[BaseModel], place: Sequence[str | int]) -> Any:
    """Return the schema's field at ``place``, or None below free-form values and for an item of a list."""
    return _walk(root, place)[0]


def _section(root: type[BaseModel], place: Place) -> type[BaseModel]:
    """Return the section that stands at ``place``."""
    return _walk(root, place)[1] or root


def _walk(root: type[BaseModel], place: Sequence[str | int]) -> tuple[Any, type[BaseModel] | None]:
    """Return the field at ``place`` and the section that may stand there."""
    section: type[BaseModel] | None = root
    field: Any = None
    for part in place:
        if isinstance(part, int):
            section = item_of(field.annotation) if field is not None else None
            field = None
        elif section is None or part not in section.model_fields:
            return None, None
        else:
            field = section.model_fields[part]
            section = section_of(field.annotation)
    return field, section


def _without_union_tags(root: type[BaseModel], loc: Place) -> tuple[Place, bool]:
    """Drop the names of unions' members that pydantic puts into a location; also return whether one stood last."""
    place: Place = ()
    rest, is_choice = loc, False
    while rest:
        place, rest, is_choice = (*place, rest[0]), rest[1:], False
        field = _field(root, place)
        if rest and field is not None and _is_choice(field.annotation):
            rest, is_choice = rest[1:], True
    return place, is_choice


def _is_choice(annotation: Any) -> bool:
    """Whether a field takes values of several kinds, None aside."""
    if get_origin(annotation) not in (Union, UnionType):
        return False
    return len([member for member in get_args(annotation) if member is not NoneType]) > 1


def _message(root: type[BaseModel], place: Place, details: ErrorDetails) -> str:
    kind, given = details["type"], details["input"]
    context = details.get("ctx", {})
    meaning = _meaning(root, place)
    if kind == "missing":
        return f"this key is missing{meaning}"
    if kind == "extra_forbidden":
        return _unknown_key(root, place)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"must be {words} {context[key]:,.12g}, got {given}{meaning}"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        close = get_close_matches(str(given)[:_LONGEST_GUESS], options, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else ""
        return f"expected {context['expected']}, got {describe(given)}{hint}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _EXPECTED:
        if kind == "finite_number":
            return f"expected {_EXPECTED[kind]}, got {given}"
        return f"expected {_EXPECTED[kind]}, got {describe(given)}{_instead(root, place, kind, given)}"
    return f"{details['msg']}, got {describe(given)}"


def _meaning(root: type[BaseModel], place: Place) -> str:
    """Return what the key at ``place`` is for, in brackets."""
    field = _field(root, place)
    if field is None:
        return ""
    section = section_of(field.annotation)
    words = field.description
    if words is None and section is not None and section.__doc__:
        words = section.__doc__.splitlines()[0].rstrip(".").replace("``", "'")
        words = words[0].lower() + words[1:]
    return f" ({words})" if words else ""


def _unknown_key(root: type[BaseModel], place: Place) -> str:
    key, section, field = str(place[-1]), _section(root, place[:-1]), _field(root, place[:-1])
    item = item_of(field.annotation) if field is not None else None
    if item is not None and key in item.model_fields:
        return f"unknown key. It belongs in a list: write '- {key}: ...'"
    known = list(section.model_fields)
    if not get_close_matches(key, known, n=1, cutoff=0.6):
        elsewhere = [".".join(map(str, other)) for other, _ in schema_keys(root) if other[-1] == key and 0 not in other]
        if elsewhere:
            return f"unknown key. Did you mean '{min(elsewhere, key=lambda name: name.count('.'))}'?"
    return f"unknown key.{did_you_mean(key, known)}"


def _instead(root: type[BaseModel], place: Place, kind: str, given: Any) -> str:
    """Return what to write in the place of a value of the wrong type, where that can be guessed."""
    if isinstance(given, str) and len(given) > _LONGEST_GUESS:
        return ""
    if kind == "bool_type" and isinstance(given, str):
        for word, meant in (("true", ("yes", "on", "true", "y")), ("false", ("no", "off", "false", "n"))):
            if given.lower() in meant:
                return f"; write {word}"
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return f"; write {int(given)}"
    if kind in ("int_type", "float_type") and isinstance(given, str):
        if re.fullmatch(r"[-+]?\d[\d_]*(\.\d*)?", given):
            return f"; write {given.replace('_', '')}"
        if re.fullmatch(r"[-+]?\d*,\d+", given):
            return f"; write {given.replace(',', '.')}"
    if kind == "string_type" and isinstance(given, int | float) and not isinstance(given, bool):
        return f"; write '{given}' in quotes"
    if kind == "list_type" and isinstance(given, str | int | float):
        return f"; write [{given}]"
    if kind == "model_type" and isinstance(given, str):
        fields = _section(root, place).model_fields
        first = next((name for name, field in fields.items() if field.is_required() or name == "model"), None)
        return f"; write {{{first}: {given}}}" if first else ""
    return ""
