"""What a recipe asks about texts: one request for each row, and what it may cost at most."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.errors import DataError, UsageError
from potstill.data.texts import Texts, column_names, read_texts
from potstill.pipeline.makers import located
from potstill.recipe.text import TextRecipe
from potstill.teachers import chat
from potstill.teachers.chat_classes import class_prompt, words_of
from potstill.teachers.spend import Prices, Usage

_MAX_TOKENS = 512
_MAX_TOKENS_OF_A_CLASS = 8


@dataclass(frozen=True)
class Questions:
    """One request for each row of the data.

    Attributes:
        recipe: what they are made from.
        texts: the rows.
        prompt: template of the user's message.
        targets: the class number of each row, or None without labels.
        keys: what tells one request from another: the messages, and how often they came before. Rows that move or
            change their id keep the answers they have.

    """

    recipe: TextRecipe
    texts: Texts
    prompt: str
    targets: tuple[int, ...] | None
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, but for the rows; a model that moves to another address is still the same."""
        endpoint = self.recipe.teacher.endpoint
        return {
            "model": endpoint.model,
            "prompt": self.prompt,
            "system": endpoint.system,
            "max_tokens": self.max_tokens,
            "top_logprobs": endpoint.top_logprobs,
            "parameters": dict(endpoint.parameters),
            "classes": self.recipe.classes,
            "class_form": self.recipe.class_form if self.recipe.classes else None,
        }

    @property
    def max_tokens(self) -> int:
        """Longest answer."""
        given = self.recipe.teacher.endpoint.max_tokens
        return given or (_MAX_TOKENS if self.recipe.classes is None else _MAX_TOKENS_OF_A_CLASS)

    def body(self, row: int) -> dict[str, Any]:
        """Return the request about one row."""
        endpoint = self.recipe.teacher.endpoint
        return chat.request_body(
            endpoint.model,
            _messages(self.recipe, self.prompt, self.texts, row),
            max_tokens=self.max_tokens,
            top_logprobs=endpoint.top_logprobs,
            parameters=endpoint.parameters,
        )


def questions_of(recipe: TextRecipe, *, base: Path = Path()) -> Questions:
    """Read the data and check everything that can be checked without asking.

    Args:
        recipe: what to ask.
        base: folder that the recipe's paths are relative to.

    Raises:
        UsageError: a template, class or parameter does not fit.
        DataError: the data cannot be read, or its labels are not classes.

    """
    path = located(recipe.data.train, base)
    endpoint = recipe.teacher.endpoint
    known = column_names(path)
    prompt = endpoint.prompt
    if prompt is None:
        free = [name for name in known if name not in (recipe.data.id, recipe.data.label)]
        if len(free) != 1:
            raise UsageError(
                f"teacher.endpoint.prompt is missing, and {path} has several columns: {', '.join(free)}. Write the "
                f"message with the columns in braces, such as prompt: '{{{free[0] if free else 'text'}}}'."
            )
        prompt = f"{{{free[0]}}}"
    columns = chat.template_columns(prompt, known, key="teacher.endpoint.prompt")
    if not columns:
        raise UsageError("teacher.endpoint.prompt names no {column}: every row would be asked the same.")
    if endpoint.system is not None:
        columns += chat.template_columns(endpoint.system, known, key="teacher.endpoint.system")
    if recipe.classes is not None:
        words_of(recipe.classes, recipe.class_form)
    texts = read_texts(
        path,
        list(dict.fromkeys(columns)),
        id_column=recipe.data.id,
        label=recipe.data.label,
        limit=recipe.data.limit,
        seed=recipe.seed,
        on_bad=recipe.data.on_bad,
    )
    targets = None if recipe.classes is None or texts.labels is None else _targets(texts, recipe.classes)
    questions = Questions(recipe, texts, prompt, targets, _keys(recipe, prompt, texts))
    questions.body(0)
    return questions


def plan_texts(recipe: TextRecipe, *, base: Path = Path()) -> dict[str, Any]:
    """Return what labelling will ask and may cost at most, without asking: show it before money is spent."""
    questions = questions_of(recipe, base=base)
    endpoint = recipe.teacher.endpoint
    worst = sum((chat.worst_case(questions.body(row)) for row in range(len(questions))), Usage())
    money = Prices(endpoint.price_in, endpoint.price_out).of(worst)
    return {
        "rows": len(questions),
        "url": endpoint.url,
        "model": endpoint.model,
        "example": questions.body(0)["messages"],
        "tokens_in_at_most": worst.tokens_in,
        "tokens_out_at_most": worst.tokens_out,
        "money_at_most": money,
        "spend_limit": endpoint.spend_limit,
        "findings": [finding.message for finding in questions.texts.findings],
    }


def _messages(recipe: TextRecipe, prompt: str, texts: Texts, row: int) -> list[dict[str, str]]:
    values = {name: column[row] for name, column in texts.columns.items()}
    said = chat.fill(prompt, values)
    if recipe.classes is not None:
        said = class_prompt(said, recipe.classes, recipe.class_form)
    system = recipe.teacher.endpoint.system
    return chat.messages(said, None if system is None else chat.fill(system, values))


def _keys(recipe: TextRecipe, prompt: str, texts: Texts) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    keys = []
    for row in range(len(texts)):
        text = json.dumps(_messages(recipe, prompt, texts, row))
        digest = hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
        keys.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return tuple(keys)


def _targets(texts: Texts, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the class of each row; whole numbers that are no class's name are positions in the list."""
    place: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    found = []
    for name, label in zip(texts.names, texts.labels or (), strict=True):
        number = place.get(label, int(label) if label.isdecimal() else -1)
        if not 0 <= number < len(classes):
            raise DataError(f"data.label: {name} has the label '{label}', which is none of {', '.join(classes)}.")
        found.append(number)
    return tuple(found)
