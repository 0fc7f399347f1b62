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
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside a field's type (``Training | None``, ``list[TermSection]``), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def schema_keys(section: type[BaseModel] = Recipe, place: Place = ()) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Yield ``(place, section it belongs to)`` for every key a recipe may have; list items are numbered 0."""
    for name, field in section.model_fields.items():
        yield (*place, name), section
        inner = section_of(field.annotation)
        if inner is not None:
            is_list = not isinstance(field.annotation, type) and "list[" in str(field.annotation)
            yield from schema_keys(inner, (*place, name, 0) if is_list else (*place, name))


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


def explain(error: ValidationError) -> list[tuple[Place, str]]:
    """Return ``(place, message)`` for everything that does not fit the schema, each place once."""
    found: dict[Place, str] = {}
    for details in error.errors(include_url=False):
        place, is_choice = _without_union_tags(tuple(details["loc"]))
        if is_choice and isinstance(details["input"], list) and details["type"] == "string_type":
            continue
        found.setdefault(place, _message(place, details, is_choice))
    return list(found.items())


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
        return f"a section with {', '.join(map(repr, value)) or 'no keys'}"
    return f"{type(value).__name__}"


def _field(place: Sequence[str | int]) -> Any:
    """Return the schema's field at ``place``, or None below free-form values."""
    section: type[BaseModel] | None = Recipe
    field = None
    for part in place:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        field = section.model_fields[part]
        section = section_of(field.annotation)
    return field


def _section(place: Place) -> type[BaseModel]:
    field = _field(place)
    return (section_of(field.annotation) if field is not None else None) or Recipe


def _without_union_tags(loc: Place) -> tuple[Place, bool]:
    """Drop the name of a union's member that pydantic puts into a location; also return whether it stood last."""
    for end in range(1, len(loc)):
        field = _field(loc[:end])
        if field is None or get_origin(field.annotation) not in (Union, UnionType):
            continue
        members = tuple(member for member in get_args(field.annotation) if member is not NoneType)
        if len(members) > 1:
            return loc[:end] + loc[end + 1 :], end + 1 == len(loc)
    return loc, False


def _message(place: Place, details: ErrorDetails, is_choice: bool) -> str:
    kind, given = details["type"], details["input"]
    context = details.get("ctx", {})
    meaning = _meaning(place)
    if kind == "missing":
        return f"this key is missing{meaning}"
    if kind == "extra_forbidden":
        return _unknown_key(place)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"must be {words} {context[key]:,.12g}, got {given}{meaning}"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        close = get_close_matches(str(given), options, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else ""
        return f"expected {context['expected']}, got {describe(given)}{hint}"
    if kind == "value_error":
        return str(context["error"])
    if is_choice and kind in ("string_type", "list_type"):
        return f"expected text or a list of sections, got {describe(given)}{meaning}"
    if kind in _EXPECTED:
        if kind == "finite_number":
            return f"expected {_EXPECTED[kind]}, got {given}"
        return f"expected {_EXPECTED[kind]}, got {describe(given)}{_instead(place, kind, given)}"
    return f"{details['msg']}, got {describe(given)}"


def _meaning(place: Place) -> str:
    """Return what the key at ``place`` is for, in brackets."""
    field = _field(place)
    if field is None:
        return ""
    section = section_of(field.annotation)
    words = field.description
    if words is None and section is not None and section.__doc__:
        words = section.__doc__.splitlines()[0].rstrip(".").replace("``", "'")
        words = words[0].lower() + words[1:]
    return f" ({words})" if words else ""


def _unknown_key(place: Place) -> str:
    key, section = str(place[-1]), _section(place[:-1])
    known = list(section.model_fields)
    if not get_close_matches(key, known, n=1, cutoff=0.6):
        elsewhere = [".".join(map(str, other)) for other, _ in schema_keys() if other[-1] == key and 0 not in other]
        if elsewhere:
            return f"unknown key. Did you mean '{min(elsewhere, key=lambda name: name.count('.'))}'?"
    return f"unknown key.{did_you_mean(key, known)}"


def _instead(place: Place, kind: str, given: Any) -> str:
    """Return what to write in the place of a value of the wrong type, where that can be guessed."""
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
        first = next((name for name, field in _section(place).model_fields.items() if field.is_required()), None)
        return f"; write {{{first}: {given}}}" if first else ""
    return ""
