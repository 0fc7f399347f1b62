"""Recipes as YAML: reading with line numbers, one-value changes from the command line, writing the resolved copy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from potstill.core.errors import UsageError
from potstill.core.explain import clear_errors
from potstill.recipe.document import CORE_TYPES, TAG, DocumentError, Place, parse
from potstill.recipe.problems import EXAMINED, describe, explain, without_empty_sections
from potstill.recipe.schema import Recipe
from potstill.recipe.section import Section
from potstill.recipe.text import TextRecipe
from potstill.recipe.untrusted import offences

S = TypeVar("S", bound=Section)
_LISTED, _LISTED_OF_MANY = 20, 5
_FREE = ("args", "options", "head_options", "parameters")
_NUL = "a name holds a NUL character; remove it"
_LARGEST_FILE = 1_000_000


@dataclass(frozen=True)
class _Origin:
    """Where a value was written; ``order`` sorts messages as they appear, options after the file."""

    label: str
    order: int


@clear_errors
def read(
    path: str | Path, overrides: Sequence[str] = (), *, untrusted: bool = False, base: str | Path | None = None
) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        overrides: changes such as ``"training.epochs=3"`` or ``"objective.0.weight=0.5"``: a dotted path and a
            value written as in YAML; list items are counted from 0. Applied in order.
        untrusted: the recipe comes from others: refuse all that could run code, reach beyond its folder or ask a
            server; models of the zoo and data files remain. Holds for ``overrides`` too.
        base: the folder that its paths start from, for ``untrusted``; the file's own when absent.

    Returns:
        The checked recipe, with every default filled in.

    Raises:
        UsageError: the file is missing, is not YAML or does not fit the schema. The message lists every problem
            as ``recipe.yaml:7: training.epochs: ...``.

    """
    home = Path(base) if base is not None else Path(path).parent
    return loads(_content(Path(path)), str(path), overrides, untrusted_in=home if untrusted else None)


@clear_errors
def read_for_label(path: str | Path, overrides: Sequence[str] = (), *, untrusted: bool = False) -> Recipe | TextRecipe:
    """Read a recipe of any task that can be labelled; as `read`, and with ``task: text`` a `TextRecipe`."""
    content = _content(Path(path))
    document, origins, problems = _parsed(content, str(path), overrides)
    home = Path(path).parent if untrusted else None
    if document.get("task") == "text":
        return _checked(document, str(path), origins, problems, TextRecipe, home)
    return _checked(document, str(path), origins, problems, Recipe, home)


def _content(path: Path) -> str:
    """Return the text of a recipe file."""
    if path.is_dir():
        inside = _recipes_in(path)
        hint = f" Did you mean '{path / inside[0]}'?" if inside else ""
        raise UsageError(f"{path} is a folder; a recipe is a YAML file.{hint}")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no recipe {path}.{_neighbours(path)}") from None
    except OSError as error:
        raise UsageError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    if len(content) > _LARGEST_FILE:
        raise UsageError(f"{path} is larger than {_LARGEST_FILE / 1e6:g} MB; it is something else than a recipe.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: the file is not UTF-8 text. Save it as UTF-8.") from None


def loads(
    text: str, source: str = "recipe", overrides: Sequence[str] = (), *, untrusted_in: Path | None = None
) -> Recipe:
    """Read a recipe from YAML text; as `read`, with ``source`` as the file name in messages.

    With ``untrusted_in``, the folder its paths start from, it is an untrusted one.
    """
    value, origins, problems = _parsed(text, source, overrides)
    if value.get("task") == "text":
        raise UsageError(
            f"{source}: task text has no student: 'potstill label' asks a chat model and keeps its answers."
        )
    return _checked(value, source, origins, problems, Recipe, untrusted_in)


def _parsed(
    text: str, source: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[Place, _Origin], list[tuple[_Origin, Place, str]]]:
    """Return the values of a recipe, changed as ``overrides`` say, where each was written, and keys given twice."""
    try:
        document = parse(text)
    except DocumentError as error:
        raise UsageError(f"{source}:{error.line}: {error}") from None
    if document.value is None:
        raise UsageError(f"{source}: the recipe is empty. 'potstill init' writes one to start from.")
    if not isinstance(document.value, dict):
        raise UsageError(
            f"{source}:{document.lines[()]}: expected keys such as 'data:', 'teacher:' and 'student:', "
            f"got {describe(document.value)}."
        )
    origins = {place: _Origin(f"{source}:{line}", line) for place, line in document.lines.items()}
    problems = [
        (_Origin(f"{source}:{line}", line), place, f"this key was already given in line {first}; remove one of them")
        for place, line, first in document.duplicates
    ]
    value: dict[str, Any] = document.value
    for number, option in enumerate(overrides):
        _override(value, origins, option, order=10**9 + number)
    return value, origins, problems


def _checked(
    value: dict[str, Any],
    source: str,
    origins: Mapping[Place, _Origin],
    problems: Sequence[tuple[_Origin, Place, str]],
    schema: type[S],
    untrusted_in: Path | None,
) -> S:
    """Return ``value`` as a recipe, or raise everything that is wrong with it."""
    found, more = [*problems, *((_origin(origins, place), place, _NUL) for place in _with_nul(value))], 0
    try:
        recipe = schema.model_validate(without_empty_sections(value, schema), strict=True)
    except ValidationError as error:
        found += [(_origin(origins, place), place, message) for place, message in explain(error, schema)]
        more = max(0, error.error_count() - EXAMINED)
    else:
        if untrusted_in is not None:
            wrong = offences(recipe.model_dump(), untrusted_in)
            found += [(_origin(origins, place), place, message) for place, message in wrong]
        if not found:
            return recipe
    raise _refused(source, found, more)


def _with_nul(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where a NUL stands that no file, model or column can have in its name; arguments of functions may."""
    if isinstance(value, str) and "\0" in value:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key not in _FREE:
            yield from _with_nul(item, (*place, key))


def dump(recipe: Section) -> str:
    """Return the recipe as YAML with every default written out; reading it back gives an equal recipe.

    Raises:
        UsageError: an ``args`` or ``options`` value is a Python object that YAML has no plain form for.

    """
    blocks: list[str] = []
    values = plain(recipe.model_dump())
    for name, value in values.items():
        text = fragment({name: value})
        is_section = text.count("\n") > 1
        blocks.append(f"\n{text}\n" if is_section else text)
    return re.sub(r"\n{3,}", "\n\n", "".join(blocks)).strip("\n") + "\n"


def fragment(values: Mapping[str, Any]) -> str:
    """Return plain values as a part of a recipe."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def scalar(text: str) -> str:
    """Return ``text`` as one YAML value on one line, quoted where it would be read as something else."""
    shown: str = yaml.dump(text, Dumper=_Dumper, allow_unicode=True, width=10**9)
    return shown.removesuffix("...\n").rstrip("\n")


def plain(value: Any, place: Place = ()) -> Any:
    """Return ``value`` as mappings, lists, text, numbers, booleans and None; paths become text, tuples lists.

    Raises:
        UsageError: something else is in there; names where.

    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, (*place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, (*place, number)) for number, item in enumerate(value)]
    raise UsageError(
        f"recipe: {_dotted(place)}: a {type(value).__name__} cannot be written into a recipe file. "
        "Use text, numbers, booleans, lists and mappings with text keys."
    )


def _dotted(place: Iterable[str | int]) -> str:
    return ".".join(map(str, place)) or "recipe"


def _origin(origins: Mapping[Place, _Origin], place: Place) -> _Origin:
    """Return the origin of ``place``, or of the closest section around it."""
    return next(origins[place[:end]] for end in range(len(place), -1, -1) if place[:end] in origins)


def _refused(source: str, problems: Sequence[tuple[_Origin, Place, str]], more: int) -> UsageError:
    ordered = sorted(problems, key=lambda problem: problem[0].order)
    lines = [f"{origin.label}: {_dotted(place)}: {message}" for origin, place, message in ordered]
    if len(lines) + more == 1:
        return UsageError(lines[0])
    count = len(lines) + more
    if count > _LISTED:
        # Something else than a recipe, or one made by a broken program: its first lines say enough.
        lines = [line if len(line) <= 120 else f"{line[:117]}..." for line in lines[:_LISTED_OF_MANY]]
        lines.append(f"and {count - len(lines):,} more")
    return UsageError(f"{count:,} problems in {source}:\n" + "\n".join(f"  {line}" for line in lines))


def _recipes_in(folder: Path) -> list[str]:
    try:
        return sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def _neighbours(path: Path) -> str:
    names = _recipes_in(path.parent)
    close = get_close_matches(path.name, names, n=1, cutoff=0.5) or (names if len(names) == 1 else [])
    if close:
        return f" Did you mean '{path.with_name(close[0])}'?"
    if names:
        return f" Recipes there: {', '.join(names)}."
    return " 'potstill init' writes one to start from."


def _override(value: dict[str, Any], origins: dict[Place, _Origin], option: str, *, order: int) -> None:
    """Change one value in place, as ``option`` (``path=value``) says."""
    label = f"--set {option}"
    origin = _Origin(label, order)
    key, equals, text = option.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"{label}: expected a dotted path and a value, such as --set training.epochs=3.")
    try:
        document = parse(text)
    except DocumentError as error:
        raise UsageError(f"{label}: {error}.") from None
    if document.duplicates:
        raise UsageError(f"{label}: {_dotted(document.duplicates[0][0])} is given twice.")
    container: Any = value
    place: Place = ()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        step = _step(container, place, part, label)
        place = (*place, step)
        if last:
            for below in [known for known in origins if known[: len(place)] == place]:
                del origins[below]
            origins[place] = origin
            container[step] = document.value
        else:
            if isinstance(container, dict) and container.get(part) is None:
                container[part] = {}
                origins[place] = origin
            container = container[step]


def _step(container: Any, place: Place, part: str, label: str) -> str | int:
    """Return ``part`` as a key of ``container`` or as a number into it."""
    if isinstance(container, dict):
        return part
    where = _dotted(place)
    if not isinstance(container, list):
        raise UsageError(f"{label}: {where} is {describe(container)}, so it has no '{part}'.")
    if not part.isdecimal() or int(part) >= len(container):
        count = len(container)
        numbers = "it is empty" if count == 0 else "its item is 0" if count == 1 else f"items are 0 to {count - 1}"
        raise UsageError(f"{label}: {where} is {describe(container)}; '{part}' is not one of them ({numbers}).")
    return int(part)


class _Dumper(yaml.SafeDumper):
    """Writes values so that both YAML 1.1 and YAML 1.2 readers take them for what they are."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write equal values out each time."""
        return True

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        """Write lists of plain values on one line."""
        flow = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence(TAG + "seq", data, flow_style=flow)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text with line breaks and other invisible characters in double quotes, where they are escaped."""
        return self.represent_scalar(TAG + "str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(str, _Dumper.represent_str)
for _name, _pattern, _first in CORE_TYPES:
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
