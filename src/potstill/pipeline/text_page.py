"""The page about texts or classes that a chat model was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill import report
from potstill.core.files import write_json
from potstill.core.signals import Ragged
from potstill.evaluation.labelling import LabelFacts, Recording, describe_labels, describe_texts
from potstill.pipeline.text_questions import Questions
from potstill.store import Store, open_store
from potstill.store.size import bytes_on_disk
from potstill.teachers.privacy import what_is_kept

_AT_ONCE = 1024


def write_text_page(questions: Questions, store: Path, out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``label.json`` and ``label.html`` into ``out``; return the page.

    Args:
        questions: what was asked.
        store: where the answers lie.
        out: the folder of the labelling.
        summary: of the labelling, for what it cost.

    """
    facts = _facts(questions, open_store(store), out, summary)
    write_json(out / "label.json", facts.to_json())
    return report.write_label_page(out)


def _facts(questions: Questions, store: Store, out: Path, summary: Mapping[str, Any]) -> LabelFacts:
    manifest, ids = store.manifest, np.array(store.ids)
    whole = summary["asked"] == summary["answers"]
    recording = Recording(
        name=out.name,
        num_samples=manifest.num_samples,
        num_views=1,
        num_bytes=bytes_on_disk(store.folder),
        seconds=summary["seconds"] if whole else None,
        rate=summary["answers_per_second"] if whole else None,
        kept=what_is_kept(manifest),
    )
    classes = questions.recipe.classes
    if classes is not None:
        places = {int(one): place for place, one in enumerate(questions.texts.ids)}
        rows = [places[int(one)] for one in ids]
        targets = None if questions.targets is None else np.asarray(questions.targets)[rows]
        logits = np.concatenate([_part(store, "logits", part) for part in _parts(ids)])
        probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
        return describe_labels(recording, probabilities, targets, ids=ids, classes=classes)
    found = [_lengths(store, part) for part in _parts(ids)]
    return describe_texts(
        recording,
        lengths=np.concatenate([lengths for lengths, _ in found]),
        finish_reasons=summary["finish_reasons"],
        failed=len(summary["failed"]),
        retried=summary["retried"],
        tokens_in=summary["tokens_in"],
        tokens_out=summary["tokens_out"],
        money=summary["money"] or None,
        logprobs=np.concatenate([means for _, means in found]),
    )


def _parts(ids: np.ndarray[Any, Any]) -> list[torch.Tensor]:
    return [torch.from_numpy(ids[start : start + _AT_ONCE]) for start in range(0, len(ids), _AT_ONCE)]


def _part(store: Store, signal: str, ids: torch.Tensor) -> np.ndarray[Any, Any]:
    values = store.read(signal, ids, torch.zeros_like(ids))
    if isinstance(values, Ragged):
        raise TypeError(f"signal {signal} has items")
    numbers: np.ndarray[Any, Any] = values.numpy()
    return numbers


def _lengths(store: Store, ids: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return how long each answer is, in tokens (in words where those are not known), and its mean log-probability."""
    words = np.array([len(text.split()) for text in store.read_text("text", ids, torch.zeros_like(ids))])
    unknown = np.full(len(ids), np.nan)
    if "token_logprobs" not in store.signals:
        return words, unknown
    logprobs = store.read("token_logprobs", ids, torch.zeros_like(ids))
    if not isinstance(logprobs, Ragged):
        return words, unknown
    lengths = logprobs.lengths.numpy()
    of_sample = np.repeat(np.arange(len(ids)), lengths)
    sums = np.bincount(of_sample, weights=logprobs.values.reshape(-1).double().numpy(), minlength=len(ids))
    means = np.where(lengths > 0, sums / np.maximum(lengths, 1), np.nan)
    return np.where(lengths > 0, lengths, words), means
