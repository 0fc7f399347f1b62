"""The page about the house shows the rooms that there are, in the order that the layers are checked in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/house.md").read_text()


def test_the_picture_shows_the_layers_that_imports_are_held_to() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    picture = re.search(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert picture is not None
    drawn = [[part.split()[0] for part in line.split("|")] for line in picture.group(1).splitlines()]
    assert drawn == [[room.strip() for room in layer.split("|")] for layer in layers]


def test_every_room_is_drawn_and_every_file_that_the_page_names_is_there() -> None:
    rooms = {path.parent.name for path in (ROOT / "src/potstill").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\w+", PAGE))
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", PAGE))
    assert len(named) > 20
    places = (ROOT / "src/potstill", ROOT)
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []
