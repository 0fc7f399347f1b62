"""From a journal of a chat model's answers to a store.

The store is made anew from the journal whenever there are more answers; nothing is asked for it.

Shape legend: n rows, c classes, k likeliest tokens of a place.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from potstill.core import fingerprint
from potstill.core.errors import TeacherError
from potstill.core.files import write_json
from potstill.core.signals import Batch, Ragged
from potstill.pipeline.journal import read_line
from potstill.pipeline.text_questions import Questions
from potstill.store import describe, open_store, record
from potstill.store.codecs import numbers
from potstill.teachers.chat import ChatAnswer, answer_from_json
from potstill.teachers.chat_classes import class_answer

TOKENS = "tokens.json"
NO_TOKEN = -1
NO_LOGPROB = -9999.0
_BATCH = 64
Place = tuple[Path, int, int]


@dataclass
class Survey:
    """What one pass over all answers found; counted remarks for the summary, and what the store needs to know.

    Attributes:
        rows: the rows that are answered.
        vocabulary: id of each token, numbered as they come.
        widest: most tokens listed at one place.
        tokens: tokens of all answers whose tokens are known.
        logprob: sum of their log-probabilities.
        with_tokens: answers whose tokens are known.
        truncated: answers that reached the longest length.
        finish_reasons: how often each came.
        hard: class answers without log-probabilities.
        covered: sum of the probability that named a class, over the other class answers.
        right: class answers that agree with the data's label.
        digest: sha256 of all answers in row order.

    """

    rows: list[int] = field(default_factory=list)
    vocabulary: dict[bytes, int] = field(default_factory=dict)
    widest: int = 0
    tokens: int = 0
    logprob: float = 0.0
    with_tokens: int = 0
    truncated: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    hard: int = 0
    covered: float = 0.0
    right: int = 0
    digest: str = ""


def answers_in_order(questions: Questions, places: Mapping[str, Place]) -> Iterator[tuple[int, ChatAnswer]]:
    """Yield ``(row, answer)`` of every answered row."""
    for row, key in enumerate(questions.keys):
        if key in places:
            yield row, _load(places[key])


def survey(questions: Questions, places: Mapping[str, Place]) -> Survey:
    """Read every answer once, in row order.

    Args:
        questions: what was asked.
        places: where the answer to each key stands.

    """
    found = Survey()
    digest = hashlib.sha256()
    classes = questions.recipe.classes
    for row, answer in answers_in_order(questions, places):
        digest.update(json.dumps([questions.keys[row], answer.to_json()]).encode("ascii"))
        found.rows.append(row)
        found.finish_reasons[answer.finish_reason] += 1
        found.truncated += answer.finish_reason == "length"
        if classes is not None:
            said = class_answer(answer, classes, questions.recipe.class_form)
            if said.covered is None:
                found.hard += 1
            else:
                found.covered += said.covered
            if questions.targets is not None:
                best = max(range(len(classes)), key=said.log_probabilities.__getitem__)
                found.right += best == questions.targets[row]
        if answer.tokens is not None:
            found.with_tokens += 1
            found.tokens += len(answer.tokens)
            found.logprob += math.fsum(token.logprob for token in answer.tokens)
            if classes is None:
                for token in answer.tokens:
                    found.widest = max(found.widest, len(token.top))
                    for content in (token.content, *(other for other, _ in token.top)):
                        found.vocabulary.setdefault(content, len(found.vocabulary))
    found.digest = digest.hexdigest()
    return found


def write_text_store(questions: Questions, places: Mapping[str, Place], found: Survey, folder: Path) -> None:
    """Write the answers there are to ``folder``, in the place of a store with fewer of them.

    Raises:
        TeacherError: ``folder`` holds a store of something else; the message spells out what differs.

    """
    recipe = questions.recipe
    texts = questions.texts.take(found.rows)
    shapes, formats = _signals(questions, found)
    manifest = describe(
        ids=texts.ids,
        data=fingerprint.of_json([texts.fingerprint, found.digest]),
        teacher={"chat": questions.settings},
        shapes=shapes,
        dtype=recipe.store.dtype,
        codecs={name: numbers(dtype) for name, dtype in formats.items()},
        sequences=[name for name in shapes if name != "logits"],
    )

    def answer(batch: Batch) -> dict[str, Tensor | Ragged]:
        # The row of an answer travels as the sample's input: answers are looked up, not computed.
        rows = batch.tensor.tolist()
        answers = [_load(places[questions.keys[row]]) for row in rows]
        return _class_signals(questions, answers) if recipe.classes else _text_signals(answers, found)

    def batches(ranges: Sequence[tuple[int, int]]) -> Iterable[Batch]:
        rows = np.array(found.rows, dtype=np.int64)
        for start, stop in ranges:
            for first in range(start, stop, _BATCH):
                last = min(first + _BATCH, stop)
                ids = torch.from_numpy(texts.ids[first:last].copy())
                yield Batch(ids, torch.zeros_like(ids), torch.from_numpy(rows[first:last]))

    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=600):
        if folder.exists() and any(folder.iterdir()):
            before = open_store(folder).manifest
            if before == manifest:
                return
            if before.teacher != manifest.teacher:
                open_store(folder, expected=manifest)
                raise TeacherError(f"The store {folder} was recorded for something else. Choose another store.path.")
        shutil.rmtree(new, ignore_errors=True)
        record(answer, batches, new, manifest, texts.ids, description="writing the store")
        if found.vocabulary:
            write_json(new / TOKENS, [content.hex() for content in found.vocabulary])
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def read_tokens(folder: Path) -> list[bytes]:
    """Return the bytes of each token of a text store, by id; a store without tokens has none."""
    path = folder / TOKENS
    if not path.exists():
        return []
    return [bytes.fromhex(one) for one in json.loads(path.read_text(encoding="utf-8"))]


def _signals(questions: Questions, found: Survey) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the shape of each signal's record, and the number format of those that are not ``store.dtype``."""
    if questions.recipe.classes is not None:
        return {"logits": (len(questions.recipe.classes),)}, {}
    shapes: dict[str, tuple[int, ...]] = {"text": ()}
    formats = {"text": "uint8"}
    if found.tokens:
        shapes |= {"tokens": (), "token_logprobs": ()}
        formats["tokens"] = "int32"
    if found.widest:
        shapes |= {"top_tokens": (found.widest,), "top_logprobs": (found.widest,)}
        formats["top_tokens"] = "int32"
    return shapes, formats


def _class_signals(questions: Questions, answers: Sequence[ChatAnswer]) -> dict[str, Tensor | Ragged]:
    classes, form = questions.recipe.classes or [], questions.recipe.class_form
    return {"logits": torch.tensor([class_answer(answer, classes, form).log_probabilities for answer in answers])}


def _text_signals(answers: Sequence[ChatAnswer], found: Survey) -> dict[str, Tensor | Ragged]:
    texts = [answer.text.encode("utf-8", "replace") for answer in answers]
    content = torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy())
    signals: dict[str, Tensor | Ragged] = {"text": Ragged(content, torch.tensor([len(text) for text in texts]))}
    if not found.tokens:
        return signals
    lengths = torch.tensor([len(answer.tokens or ()) for answer in answers])
    tokens = [token for answer in answers for token in answer.tokens or ()]
    ids = found.vocabulary
    signals["tokens"] = Ragged(torch.tensor([ids[token.content] for token in tokens], dtype=torch.int32), lengths)
    signals["token_logprobs"] = Ragged(torch.tensor([token.logprob for token in tokens]), lengths)
    if found.widest:
        top_ids = np.full((len(tokens), found.widest), NO_TOKEN, dtype=np.int32)
        top_values = np.full((len(tokens), found.widest), NO_LOGPROB, dtype=np.float32)
        for place, token in enumerate(tokens):
            for rank, (other, value) in enumerate(token.top):
                top_ids[place, rank], top_values[place, rank] = ids[other], value
        signals["top_tokens"] = Ragged(torch.from_numpy(top_ids), lengths)
        signals["top_logprobs"] = Ragged(torch.from_numpy(top_values), lengths)
    return signals


def _load(place: Place) -> ChatAnswer:
    return answer_from_json(read_line(*place)["answer"])
