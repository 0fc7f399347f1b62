"""A short name for exactly what a recipe asks for."""

from __future__ import annotations

import hashlib
import json

from potstill.recipe.schema import Recipe
from potstill.recipe.yaml import plain


def recipe_hash(recipe: Recipe) -> str:
    """Return 12 hex digits that are equal for equal recipes.

    Use it to tell runs apart: comments, the order of keys and whether a default is written out do not matter;
    every value does.

    Raises:
        UsageError: an ``args`` or ``options`` value is a Python object that has no plain form.

    """
    text = json.dumps(plain(recipe.model_dump()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
