"""Finding the function behind a model's name: in the zoo, in a file, in an installed package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.functions import find_function
from potstill.models import zoo

ModelFunction = Callable[..., nn.Module]


def find_model(model: str, *, base: Path = Path()) -> ModelFunction:
    """Return the function behind a model's name, without calling it.

    Use it to look at the parameters a model takes; `build` finds and calls in one step.

    Args:
        model: a zoo name, ``"file.py:name"`` (relative to ``base``) or ``"package.module:name"``.
        base: the folder that relative files are in; packages beside it can be imported too.

    Returns:
        The function or class.

    Raises:
        UsageError: an unknown name, a missing file, a file that fails to import, or something not callable.

    """
    if ":" not in model:
        if model not in zoo.__all__:
            hint = did_you_mean(model, zoo.__all__)
            raise UsageError(
                f"There is no model '{model}' in the zoo.{hint} Own models are given as 'file.py:name' or "
                "'package.module:name'."
            )
        function: ModelFunction = getattr(zoo, model)
        return function
    return find_function(model, base=base)
