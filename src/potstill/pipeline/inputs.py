"""What a stage's result depends on, labelled, so that a difference can be told in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from potstill.core import fingerprint
from potstill.core.source import same_code

_TRAINED = ("teacher", "student", "assistant", "generation")
_SHOWN = 60
OF_DATA = (".preprocess.mean", ".preprocess.std")
"""Ends of the names of settings that are found in the data and say nothing that the data does not."""


@dataclass(frozen=True)
class Inputs:
    """What one stage's result depends on; equal inputs, equal result.

    Attributes:
        settings: of the recipe, by their dotted names.
        parts: digests of what is no setting, by what a person calls it, for example ``the data``.
        stages: digests of the results of earlier stages, by the stage's name; None where there is no result yet.
        files: digests of the user's code, by file.

    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the earlier stages have their results."""
        return None not in self.stages.values()

    @cached_property
    def key(self) -> str:
        """One hash of everything but the code."""
        return fingerprint.of_json([self.settings, self.parts, self.stages])

    def to_json(self) -> dict[str, Any]:
        """Return the inputs as JSON data."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return found

    def __or__(self, more: Inputs) -> Inputs:
        """Return these inputs and more."""
        return Inputs(
            {**self.settings, **more.settings},
            {**self.parts, **more.parts},
            {**self.stages, **more.stages},
            {**self.files, **more.files},
        )


def settings_of(section: BaseModel | None, name: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a section's settings by their dotted names, all but some."""
    if section is None:
        return {name: None}
    values = section.model_dump(mode="json", exclude=set(without))
    return {f"{name}.{key}": value for key, value in flat(values).items()}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names, as ``--set`` takes them; lists of plain values stay lists."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{below}": item for below, item in flat(value).items()}
        else:
            found[str(key)] = value
    return found


def files_changed(before: Mapping[str, Any], now: Inputs) -> list[str]:
    """Return the files of the user's whose code is not what it was, in words."""
    old, new = before.get("files", {}), now.files
    if same_code(old, new):
        return []
    files = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    words = {True: "changed", False: "is read now"}
    return [f"{name} {words[name in old] if name in new else 'is no longer read'}" for name in files]


def changes(before: Mapping[str, Any], now: Inputs) -> list[str]:
    """Return in words what differs from the inputs that a result was made from, the code aside; empty where nothing.

    Args:
        before: as `Inputs.to_json` gave them.
        now: what the result would be made from.

    """
    after = now.to_json()
    if before.keys() != after.keys():
        return ["made by an earlier version of potstill"]
    found = []
    parts = [name for name, _, _ in _differing(before["parts"], after["parts"])]
    found += [f"{name} changed" for name in parts]
    for name, old, new in _differing(before["settings"], after["settings"]):
        if not ("the data" in parts and name.endswith(OF_DATA)):
            found += _setting(name, old, new)
    for name, old, new in _differing(before["stages"], after["stages"]):
        if name.startswith("rates") and old and new:
            found.append(f"{name}: {old} -> {new}")
            continue
        verb = "trained" if name.startswith(_TRAINED) else "made"
        found.append(f"{name} {be(name, past=new is not None)} {verb} again")
    return found


def be(stage: str, *, past: bool = False) -> str:
    """Return the verb that goes with a stage's name."""
    many = stage.startswith(("predictions", "rates", "features"))
    return ("were" if many else "was") if past else ("are" if many else "is")


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [
        (name, old.get(name), new.get(name))
        for name in dict.fromkeys([*old, *new])
        if (name in old, old.get(name)) != (name in new, new.get(name))
    ]


def _setting(name: str, old: Any, new: Any) -> list[str]:
    """Return what became of one setting; of lists of equal length only the items that differ."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(first, second) for first, second in zip(old, new, strict=True) if first != second]
        return [f"{name} {_shown(first)} -> {_shown(second)}" for first, second in pairs]
    return [f"{name} {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    """Return a value as a recipe writes it, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
