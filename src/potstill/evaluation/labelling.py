"""What a recording of a teacher's answers is worth, as plain data: the content of ``label.json``.

`describe_labels` is for classes, `describe_values` for regression, `describe_texts` for texts. None of them runs a
model or reads a store: they take arrays and numbers. Shape legend: n answers to view 0, c classes, k columns, v views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.evaluation import label_words as words
from potstill.evaluation.label_errors import judged_classes, label_errors
from potstill.evaluation.label_scores import (
    Answers,
    Record,
    Rows,
    histogram,
    mistakes,
    read_answers,
    reordered,
    softened,
    split_scores,
    view_changes,
)
from potstill.evaluation.label_values import value_scores, worst_rows
from potstill.tasks.arrays import Array, Ints
from potstill.tasks.classification import CLASSIFICATION
from potstill.tasks.regression import REGRESSION

MOST_SHOWN = 24  # samples of each list
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Recording:
    """What was recorded and what it took.

    Attributes:
        name: of the recording, for the page's title.
        num_samples: samples with at least one answer.
        num_views: views of each sample.
        num_bytes: what lies on disk, in all.
        full_bytes: what the same signals would take as float32; None: n * views * c (or k) numbers.
        num_items: tokens (or other items) in all, where the samples are sequences.
        seconds: the time of the recording, if known.
        rate: answers (sample and view) a second, if known.
        fidelity: one row per codec that was tried on the probe set: ``{"codec": str, "bytes": per item, "kl": nats,
            "angle": degrees, "norm_ratio": stored / full, "uncovered": share, "chosen": bool}``; for values ``"r2"`` of
            what is stored against what was said. A number that was not measured is None or absent.
        kept: what lies in the store, in plain words.
        sampled: whether the probabilities at hand are draws from the teacher's, not themselves.

    """

    name: str
    num_samples: int
    num_views: int
    num_bytes: int
    full_bytes: int | None = None
    num_items: int | None = None
    seconds: float | None = None
    rate: float | None = None
    fidelity: Sequence[Mapping[str, Any]] = ()
    kept: Sequence[str] = ()
    sampled: bool = False


@dataclass(frozen=True)
class LabelFacts:
    """Everything the page says of a recording; JSON data throughout.

    Attributes:
        name: of the recording.
        task: ``classification``, ``regression`` or ``text``.
        headline: one sentence.
        hopes: what a student can hope for, one statement each.
        warnings: ``{"level": "stop" | "warning", "message"}``, what to look at first.
        num_samples: samples.
        num_views: views of each.
        classes: class names; empty where there are none.
        stored: ``num_bytes``, ``bytes_per_answer``, ``full_bytes``, ``times_smaller``, ``num_items``,
            ``bytes_per_item``, ``seconds``, ``rate``; None where not known.
        fidelity: as in `Recording`.
        kept: as in `Recording`.
        sampled: as in `Recording`.
        seen: whether the teacher was trained on these samples; None: not known.
        splits: ``train`` and ``validation`` -> `label_scores.split_scores` or `label_values.value_scores`.
        views: `label_scores.view_changes`.
        reordered: `label_scores.reordered`.
        temperatures: `label_scores.softened`.
        label_errors: `label_errors.label_errors` (None where a "stop" or a weak teacher says that no label can be
            judged), ``unjudged`` (classes whose labels these answers cannot judge) and ``worst``: samples with
            ``label``, ``teacher`` (the class the teacher is confident of), ``of_label`` and ``of_teacher``, the
            probabilities of both.
        mistakes: the most confident answers against the label: samples with ``label``, ``teacher``, ``probability``.
        residuals: the largest residuals: samples with ``label`` and ``teacher``, lists of values.
        text: `describe_texts`.

    """

    name: str
    task: str
    headline: str
    num_samples: int
    num_views: int
    stored: Mapping[str, Any]
    hopes: Sequence[str] = ()
    warnings: Sequence[Mapping[str, str]] = ()
    classes: Sequence[str] = ()
    fidelity: Sequence[Mapping[str, Any]] = ()
    kept: Sequence[str] = ()
    sampled: bool = False
    seen: bool | None = None
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    views: Mapping[str, Any] | None = None
    reordered: Mapping[str, Any] | None = None
    temperatures: Sequence[Mapping[str, float]] = ()
    label_errors: Mapping[str, Any] | None = None
    mistakes: Sequence[Mapping[str, Any]] = ()
    residuals: Sequence[Mapping[str, Any]] = ()
    text: Mapping[str, Any] | None = None

    def to_json(self) -> Record:
        """Return the facts as JSON data, the content of ``label.json``; a number that is not finite becomes None."""
        plain: Record = _finite(asdict(self))
        return plain

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> LabelFacts:
        """Return the facts that `to_json` wrote."""
        return LabelFacts(**value)

    def shown_ids(self) -> list[int]:
        """Return the ids of the samples that the page names, each once, in ascending order."""
        worst = () if self.label_errors is None else self.label_errors["worst"]
        return sorted({int(sample["id"]) for sample in (*worst, *self.mistakes, *self.residuals)})


def describe_labels(
    recording: Recording,
    probabilities: Rows,
    targets: Array | None,
    *,
    ids: Array,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
    validation: tuple[Rows, Array] | None = None,
    view_classes: Array | None = None,
    seen: bool | None = None,
) -> LabelFacts:
    """Describe recorded class probabilities: how good, how sure, how informative, and which labels look wrong.

    Use it on the answers to view 0 of every training sample. The rows are read twice, in blocks; memory grows with n
    and c alone, so ``probabilities`` may be a memory map or a reader of a store.

    Args:
        recording: what was recorded and what it took.
        probabilities: (n, c), of view 0.
        targets: (n,) class numbers, or None where the data have no labels.
        ids: (n,) of the samples.
        classes: c class names.
        names: n names of samples (file names), if they have some.
        validation: probabilities (m, c) and class numbers (m,) of the validation split, if it was asked.
        view_classes: (n, v) the teacher's class of every view, with v > 1.
        seen: whether the teacher was trained on these very samples and labels.

    Raises:
        UsageError: shapes that do not fit each other, rows that are no probabilities, labels that are no classes.

    """
    n, c = _shape(probabilities, classes)
    labels = _labels(targets, n, c, "training")
    known = np.asarray(ids)
    if known.shape != (n,) or (names is not None and len(names) != n):
        got = f"{known.shape}" if names is None else f"{known.shape} and {len(names)} names"
        raise UsageError(f"There must be one id (and name) for each of the {n} answers; got {got}.")
    answers = read_answers(probabilities, labels)
    splits = {"train": split_scores(answers, labels, c)}
    if validation is not None:
        m, _ = _shape(validation[0], classes)
        held = _labels(validation[1], m, c, "validation")
        splits["validation"] = split_scores(read_answers(validation[0], held), held, c)
    samples = _Samples(known, names)
    found: Record = {
        "classes": [str(name) for name in classes],
        "seen": seen,
        "splits": splits,
        "views": None if view_classes is None else view_changes(_view_classes(view_classes, n), labels),
        "temperatures": [] if splits["train"]["hard"] else softened(answers.sample),
        "label_errors": None,
        "mistakes": [],
        "reordered": None,
    }
    if labels is not None:
        found["reordered"] = reordered(answers.predicted, labels, c)
        found["mistakes"] = [
            {
                **samples.of(row),
                "label": int(labels[row]),
                "teacher": int(answers.predicted[row]),
                "probability": float(answers.confidence[row]),
            }
            for row in mistakes(answers, labels, MOST_SHOWN)
        ]
    found |= _about(recording, numbers_per_answer=c)
    found["warnings"] = words.class_warnings(found)
    if labels is not None and not words.stopped(found["warnings"]) and not words.weak(splits):
        found["label_errors"] = _label_errors(probabilities, labels, answers, samples)
    return LabelFacts(
        task=CLASSIFICATION.name,
        headline=words.class_headline(splits, _size(found["stored"])),
        hopes=words.class_hopes(found),
        **found,
    )


def _label_errors(probabilities: Rows, labels: Ints, answers: Answers, samples: _Samples) -> Record | None:
    judged = judged_classes(answers, labels, probabilities.shape[1])
    if judged.sum() < 2:
        return None
    errors, worst, confident = label_errors(probabilities, labels, answers, MOST_SHOWN, judged)
    whole = {int(row): np.asarray(probabilities[slice(row, row + 1)])[0] for row in worst}
    return errors | {
        "unjudged": [
            int(number) for number in np.flatnonzero(~judged & (np.bincount(labels, minlength=len(judged)) > 0))
        ],
        "worst": [
            {
                **samples.of(row),
                "label": int(labels[row]),
                "teacher": int(confident[row]),
                "of_label": float(whole[row][labels[row]]),
                "of_teacher": float(whole[row][confident[row]]),
            }
            for row in map(int, worst)
        ],
    }


def describe_values(
    recording: Recording,
    values: Array,
    targets: Array | None,
    *,
    ids: Array,
    names: Sequence[str] | None = None,
    validation: tuple[Array, Array] | None = None,
    seen: bool | None = None,
) -> LabelFacts:
    """Describe recorded values of a regression task.

    Args:
        recording: what was recorded and what it took.
        values: (n,) or (n, k), of view 0.
        targets: of the same shape, or None.
        ids: (n,) of the samples.
        names: n names of samples, if they have some.
        validation: values and targets of the validation split, if it was asked.
        seen: whether the teacher was trained on these very samples and labels.

    Raises:
        UsageError: shapes that do not fit each other.

    """
    answers = np.asarray(values, dtype=np.float64)
    if len(ids) != len(answers) or not np.isfinite(answers).all():
        raise UsageError(f"Values must be finite, one row for each id; got {len(answers)} rows, {len(ids)} ids.")
    splits = {"train": value_scores(answers, targets)}
    if validation is not None:
        splits["validation"] = value_scores(*validation)
    samples, columns = _Samples(np.asarray(ids), names), answers.reshape(len(answers), -1)
    residuals = []
    if targets is not None:
        wanted = np.asarray(targets, dtype=np.float64).reshape(columns.shape)
        residuals = [
            {**samples.of(row), "label": wanted[row].tolist(), "teacher": columns[row].tolist()}
            for row in worst_rows(columns, wanted, MOST_SHOWN)
        ]
    found: Record = {"seen": seen, "splits": splits, "residuals": residuals}
    found |= _about(recording, numbers_per_answer=columns.shape[1])
    found["warnings"] = words.value_warnings(found)
    return LabelFacts(
        task=REGRESSION.name,
        headline=words.value_headline(splits, _size(found["stored"])),
        hopes=words.value_hopes(found),
        **found,
    )


def describe_texts(
    recording: Recording,
    *,
    lengths: Array,
    finish_reasons: Mapping[str, int],
    failed: int = 0,
    retried: int = 0,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    money: float | None = None,
    logprobs: Array | None = None,
) -> LabelFacts:
    """Describe recorded texts.

    Args:
        recording: what was recorded and what it took.
        lengths: (n,) tokens of each answer.
        finish_reasons: why answers ended (``stop``, ``length`` ...) -> how many.
        failed: questions without an answer.
        retried: requests that were sent again.
        tokens_in: tokens sent, as billed; None: not known.
        tokens_out: tokens received, as billed; None: not known.
        money: what it cost, in the unit of the prices; None: no prices were given.
        logprobs: (n,) mean log-probability (nats) of each answer's tokens, NaN where the answer has none.

    Raises:
        UsageError: there are no answers, or not one number for each.

    """
    sizes = np.asarray(lengths)
    stated = np.full(len(sizes), np.nan) if logprobs is None else np.asarray(logprobs, dtype=np.float64)
    if sizes.ndim != 1 or len(sizes) == 0 or stated.shape != sizes.shape:
        raise UsageError(
            f"There must be one length (and log-probability) per answer; got {sizes.shape}, {stated.shape}."
        )
    given = np.isfinite(stated)
    weights = sizes[given]
    text: Record = {
        "answers": len(sizes),
        "empty": int((sizes == 0).sum()),
        "failed": failed,
        "retried": retried,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "money": money,
        "finish_reasons": dict(finish_reasons),
        "mean_length": float(sizes.mean()),
        "median_length": float(np.median(sizes)),
        "longest": int(sizes.max()),
        "length_histogram": histogram(sizes, 0.0, float(max(sizes.max(), 1))),
        "num_logprobs": int(given.sum()),
        "mean_logprob": float(np.average(stated[given], weights=weights)) if weights.sum() else None,
    }
    if text["mean_logprob"] is None:
        text["num_logprobs"] = 0
    about = _about(recording, numbers_per_answer=None)
    return LabelFacts(
        task="text",
        headline=f"The teacher wrote {words.count_of(len(sizes), 'answer')}; {_size(about['stored'])}.",
        hopes=words.text_hopes(text),
        warnings=words.text_warnings(text) + words.fidelity_warnings(recording.fidelity),
        text=text,
        **about,
    )


@dataclass(frozen=True)
class _Samples:
    ids: Array
    names: Sequence[str] | None

    def of(self, row: int) -> Record:
        return {"id": int(self.ids[row]), "name": None if self.names is None else str(self.names[row])}


def _about(recording: Recording, numbers_per_answer: int | None) -> Record:
    """Return the fields of `LabelFacts` that come from the recording."""
    answers = recording.num_samples * recording.num_views
    if answers < 1:
        raise UsageError("There are no answers to describe: record some samples first.")
    full = recording.full_bytes
    if full is None and numbers_per_answer is not None:
        full = FLOAT32 * numbers_per_answer * answers
    return {
        "name": recording.name,
        "num_samples": recording.num_samples,
        "num_views": recording.num_views,
        "fidelity": [dict(row) for row in recording.fidelity],
        "kept": list(recording.kept),
        "sampled": recording.sampled,
        "stored": {
            "num_bytes": recording.num_bytes,
            "bytes_per_answer": recording.num_bytes / answers,
            "full_bytes": full,
            "times_smaller": full / recording.num_bytes if full and recording.num_bytes else None,
            "num_items": recording.num_items,
            "bytes_per_item": recording.num_bytes / recording.num_items if recording.num_items else None,
            "seconds": recording.seconds,
            "rate": recording.rate,
        },
    }


def _size(stored: Mapping[str, Any]) -> str:
    per_item = stored["bytes_per_item"]
    size, what = (stored["bytes_per_answer"], "an answer") if per_item is None else (per_item, "a token")
    return f"{what} takes {f'{size:,.0f}' if size >= 10 else f'{size:.1f}'} bytes"


def _shape(probabilities: Rows, classes: Sequence[str]) -> tuple[int, int]:
    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != len(classes) or shape[1] < 2:
        raise UsageError(
            f"There are {len(classes)} classes, so probabilities must be (n, {len(classes)}); got {shape}."
        )
    return shape[0], shape[1]


def _labels(targets: Array | None, num: int, num_classes: int, split: str) -> Ints | None:
    if targets is None:
        return None
    labels = np.asarray(targets)
    if labels.shape != (num,) or labels.dtype.kind not in "iu":
        raise UsageError(f"The {split} labels must be {num} class numbers; got shape {labels.shape} of {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UsageError(
            f"The {split} labels go from {labels.min()} to {labels.max()}, but there are {num_classes} classes "
            f"(0 to {num_classes - 1})."
        )
    return labels.astype(np.int64)


def _view_classes(classes: Array, num: int) -> Array:
    if len(classes) != num:
        raise UsageError(f"The classes by view must have one row for each of the {num} answers; got {len(classes)}.")
    return classes


def _finite(value: Any) -> Any:
    """Return plain JSON data: no NumPy numbers, and None for what is not finite."""
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
