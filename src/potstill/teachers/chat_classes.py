"""A chat model as a classifier: it is asked for one class, and the log-probabilities of its first token are read.

Shape legend: c classes.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.core.errors import UsageError
from potstill.teachers.chat import ChatAnswer, Token, UnusableError

Form = Literal["letters", "names"]
HARD_SPREAD = 1e-4
"""Probability that a hard label leaves to all other classes together."""
_STRIPPED = string.whitespace + string.punctuation
_AMBIGUOUS = 0.01
LEAST_COVERED = 0.1
"""With less probability on tokens that name a class, the answer was not one."""


@dataclass(frozen=True)
class ClassAnswer:
    """What a chat model says of one sample.

    Attributes:
        log_probabilities: (c,) natural logarithms, finite, of numbers that sum to 1.
        covered: probability of first tokens that name a class; None where only a text was given.

    """

    log_probabilities: tuple[float, ...]
    covered: float | None


def words_of(classes: Sequence[str], form: Form) -> tuple[str, ...]:
    """Return what the model is asked to answer for each class: a letter, or the class's name.

    Raises:
        UsageError: fewer than 2 classes, more than letters, or names that cannot be told apart.

    """
    if len(classes) < 2:
        raise UsageError(f"classes has {len(classes)} names; expected at least 2.")
    folded = [name.strip().casefold() for name in classes]
    if form == "letters":
        if len(classes) > len(string.ascii_uppercase):
            raise UsageError(f"classes has {len(classes)} names, but there are 26 letters; set class_form: names.")
        words = tuple(string.ascii_uppercase[: len(classes)])
    else:
        words = tuple(name.strip() for name in classes)
    for number, name in enumerate(folded):
        for other in folded[number + 1 :]:
            if not name or name == other or (form == "names" and (name.startswith(other) or other.startswith(name))):
                raise UsageError(
                    f"classes: '{name}' and '{other}' cannot be told apart"
                    + (" by their beginning; set class_form: letters." if name != other else ".")
                )
    return words


def class_prompt(prompt: str, classes: Sequence[str], form: Form) -> str:
    """Return ``prompt`` with the classes and how to answer under it."""
    words = words_of(classes, form)
    if form == "names":
        return f"{prompt}\n\nAnswer with exactly one of these, and nothing else: {', '.join(words)}"
    options = "\n".join(f"{word}. {name}" for word, name in zip(words, classes, strict=True))
    return f"{prompt}\n\n{options}\n\nAnswer with one letter, and nothing else."


def class_answer(answer: ChatAnswer, classes: Sequence[str], form: Form) -> ClassAnswer:
    """Turn an answer into log-probabilities of the classes.

    The probabilities of the tokens that may come first are summed for each class they name. What is left (tokens
    that name no class, and tokens that were not listed) is spread evenly over all classes: a model that did not want
    to answer teaches little. Without log-probabilities, or where other tokens have nearly all of the probability, the
    text must be exactly one class, which gets all but `HARD_SPREAD`.

    Args:
        answer: the first token that is not blank is read.
        classes: names in the order of the result.
        form: how the model was asked.

    Raises:
        UnusableError: neither token nor text names a class, or a token begins several names.

    """
    words = words_of(classes, form)
    first = next((token for token in answer.tokens or () if token.content.strip()), None)
    if first is not None:
        masses = _masses(first, words, form, answer)
        if masses is not None:
            rest = max(0.0, 1.0 - sum(masses)) / len(words)
            # Rounding of the server may bring the sum above 1.
            total = sum(masses) + rest * len(words)
            floor = HARD_SPREAD / len(words) / 1000
            return ClassAnswer(tuple(math.log(max(floor, (mass + rest) / total)) for mass in masses), sum(masses))
    said = answer.text.strip(_STRIPPED).casefold()
    if said in (names := [word.casefold() for word in words]):
        chosen, spread = names.index(said), HARD_SPREAD / (len(words) - 1)
        return ClassAnswer(
            tuple(math.log(1.0 - HARD_SPREAD if number == chosen else spread) for number in range(len(words))), None
        )
    raise UnusableError(
        f"The answer '{answer.text[:80]}' names no class; expected one of {', '.join(words)}.", answer.usage
    )


def _masses(token: Token, words: Sequence[str], form: Form, answer: ChatAnswer) -> list[float] | None:
    """Return the probability of each class's first tokens, or None where hardly any has one."""
    listed = dict(token.top)
    listed.setdefault(token.content, token.logprob)
    masses = [0.0] * len(words)
    for content, logprob in listed.items():
        said = content.decode("utf-8", "replace").strip(_STRIPPED)
        fits = [number for number, word in enumerate(words) if _begins(word, said, form)]
        if len(fits) == 1:
            masses[fits[0]] += math.exp(logprob)
        elif len(fits) > 1 and math.exp(logprob) > _AMBIGUOUS:
            names = ", ".join(words[number] for number in fits)
            raise UnusableError(
                f"The token '{said}' begins several classes: {names}. Set class_form: letters.", answer.usage
            )
    return masses if sum(masses) >= LEAST_COVERED else None


def _begins(word: str, said: str, form: Form) -> bool:
    return bool(said) and (word == said if form == "letters" else word.casefold().startswith(said.casefold()))
