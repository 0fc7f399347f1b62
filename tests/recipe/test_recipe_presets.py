"""Starting recipes are short, valid and carry what the user filled in."""

from __future__ import annotations

import pytest

from potstill.core.errors import UsageError
from potstill.recipe.presets import PRESETS, Preset, find_preset, starting_recipe
from potstill.recipe.yaml import loads

GIVEN = [
    {},
    {"weights": "teacher.safetensors"},
    {"weights": "a b/teacher #1.pt"},
    {"data": "photos: new #2", "teacher": "my models.py:build", "student": "no", "weights": "1e3"},
]


def test_there_is_one_for_each_kind_of_data() -> None:
    assert [preset.name for preset in PRESETS] == ["digits", "images", "table", "regression"]
    assert {loads(starting_recipe(preset)).task for preset in PRESETS} == {"classification", "regression"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("given", GIVEN, ids=["nothing", "safetensors", "torch file", "awkward"])
def test_filled_recipes_are_valid_and_short(preset: Preset, given: dict[str, str]) -> None:
    text = starting_recipe(preset, **given)
    recipe = loads(text)
    values = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(values) <= 15
    assert max(map(len, text.splitlines())) <= 120
    assert "$" not in text
    assert "\t" not in text
    assert text.count("#") >= 4
    assert recipe.data.train == given.get("data", preset.data)
    assert recipe.teacher.model == given.get("teacher", preset.teacher)
    assert recipe.teacher.weights == given.get("weights")
    assert (recipe.teacher.train is None) == ("weights" in given)
    assert recipe.teacher.allow_pickle == (given.get("weights", "x.safetensors")[-12:] != ".safetensors")
    assert recipe.student.model == given.get("student", preset.student)


def test_arguments_are_dropped_with_their_model() -> None:
    recipe = loads(starting_recipe(find_preset("table"), teacher="mine.py:build"))
    assert recipe.teacher.args == {}
    assert recipe.student.args == {"hidden": [32]}
    recipe = loads(starting_recipe(find_preset("table"), student="mine.py:build"))
    assert recipe.teacher.args == {"hidden": [256, 256]}
    assert recipe.student.args == {}


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        find_preset("digit")
