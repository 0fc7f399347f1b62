"""How the models answer: calibration, which classes are confused, and the samples the models disagree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.core.text import counted
from potstill.evaluation import EvaluationResult
from potstill.evaluation.evaluate import DISAGREEMENTS
from potstill.evaluation.verdict import RIVALS, baseline_of
from potstill.report import numbers
from potstill.report.charts import answer_rows, confusion_cells, reliability_lines, score_rows
from potstill.report.figures import Figure, draw
from potstill.report.files import RunFiles
from potstill.report.numbers import MODEL_NAMES, MODELS, short_name
from potstill.report.pictures import data_uri, is_pictures
from potstill.tasks import task_of

MOST_CLASSES = 20  # in the confusion chart: with more, only those that changed most
NUMBERED_CLASSES = 12  # up to here the cells carry their numbers
MOST_VALUES = 6  # of a vector sample in the table
LONGEST_NAME = 24
MOST_ROWS = 100  # classes in the table of scores by class
FEWEST_PREDICTIONS = 10  # in one confidence bin: with fewer its accuracy is mostly noise


@dataclass(frozen=True)
class Mistake:
    """One pair of classes and how often each model takes the first for the second."""

    truth: str
    predicted: str
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Confusion:
    """The section on confused classes."""

    figure: Figure
    models: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    shown: int
    total: int


@dataclass(frozen=True)
class Answer:
    """What one model says of one sample."""

    model: str
    text: str
    confidence: str
    right: bool | None


@dataclass(frozen=True)
class Disagreement:
    """One sample on which teacher and distilled student differ."""

    name: str
    truth: str
    answers: tuple[Answer, ...]
    picture: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Disagreements:
    """The section on disagreements; pictures, or a table of values."""

    samples: tuple[Disagreement, ...]
    pictures: bool
    num_values: int
    more_values: int
    figure: Figure | None
    reading: str = ""


def short(name: str, length: int = LONGEST_NAME) -> str:
    """Return ``name``, cut in the middle when it is longer than ``length``."""
    if len(name) <= length:
        return name
    keep = (length - 1) // 2
    return f"{name[:keep]}…{name[-(length - 1 - keep) :]}"


def calibration(evaluation: EvaluationResult) -> list[Figure]:
    """Return the reliability diagram and the spread of confidence, or nothing where they have no meaning."""
    points: list[dict[str, Any]] = []
    for model in (name for name in MODELS if name in evaluation.reliability):
        table = evaluation.reliability[model]
        total = sum(table["count"]) or 1
        for count, confidence, accuracy in zip(table["count"], table["confidence"], table["accuracy"], strict=True):
            if count >= FEWEST_PREDICTIONS and confidence is not None and accuracy is not None:
                points.append({"model": model, "confidence": confidence, "accuracy": accuracy, "share": count / total})
    if not points:
        return []
    errors = [
        {
            "model": name,
            "label": f"{MODEL_NAMES[name]}  {numbers.score('ece', value)}",
            "value": value,
            "low": bounds[0],
            "high": bounds[1],
            "seeds": [],
        }
        for name in MODELS
        if (one := evaluation.models.get(name)) is not None
        and (value := numbers.finite(one.metrics.get("ece"))) is not None
        for bounds in [one.intervals.get("ece", (value, value))]
    ]
    told = "; ".join(str(error["label"]) for error in errors)
    return [
        draw(
            "reliability",
            "Confidence against being right",
            "On the dashed line a model is right exactly as often as it says; below it, it is too sure of itself. "
            f"Larger dots stand for more predictions; groups of fewer than {FEWEST_PREDICTIONS} are left out.",
            f"Reliability diagram. Calibration error: {told}.",
            lambda: reliability_lines(points),
            height=340,
        ),
        *(
            [
                draw(
                    "ece",
                    "Calibration error",
                    f"The average gap between confidence and being right, with its 95{numbers.THIN}% interval; "
                    "less is better.",
                    told,
                    lambda: score_rows(errors, kind="percent", title="Calibration error"),
                    height=74 * len(errors) + 45,
                )
            ]
            if errors
            else []
        ),
    ]


def confusion(evaluation: EvaluationResult) -> Confusion | None:
    """Return how distillation changed the confused classes, or None where that was not measured."""
    tables = {name: np.asarray(evaluation.confusion[name], float) for name in MODELS if name in evaluation.confusion}
    base = baseline_of(tables)
    if base not in tables or "distilled" not in tables:
        return None
    change = tables["distilled"] - tables[base]
    weight = np.abs(change).sum(0) + np.abs(change).sum(1)
    chosen = np.sort(np.argsort(-weight, kind="stable")[:MOST_CLASSES])
    names = unique_names(evaluation.classes)
    largest = float(np.abs(change[np.ix_(chosen, chosen)]).max()) or 1.0
    records = [
        {
            "truth": names[i],
            "predicted": names[j],
            "change": float(change[i, j]),
            "strength": abs(float(change[i, j])) / largest,
            "model": "distilled" if change[i, j] > 0 else base,
            "text": _signed(float(change[i, j])) if abs(change[i, j]) >= 0.15 * largest else "",
        }
        for i in chosen
        for j in chosen
    ]
    order = [names[i] for i in chosen]
    gained = float(np.trace(change))
    figure = draw(
        "confusion",
        f"Distilled minus {short_name(base)}, in test samples",
        f"Each cell says how much more (+) or less ({numbers.MINUS}) often the distilled student gives that answer "
        f"than the student {RIVALS[base]}, rounded. Gains on the diagonal and losses beside it are good.",
        f"Change of the confusion matrix: {_signed(gained) or '0'} right answers in all.",
        lambda: confusion_cells(records, order, numbers=len(order) <= NUMBERED_CLASSES),
        height=min(520, 110 + 30 * len(order)),
    )
    models = tuple(tables)
    return Confusion(figure, models, tuple(_mistakes(tables, evaluation.classes)), len(chosen), len(change))


def unique_names(classes: Sequence[str]) -> list[str]:
    """Return class names short enough for an axis and still all different."""
    names = [short(str(name), 16) for name in classes]
    return [name if names.count(name) == 1 else f"{short(name, 12)} ({i})" for i, name in enumerate(names)]


def _signed(value: float) -> str:
    if abs(value) < 0.05:
        return ""
    return f"{value:+.{0 if abs(value) >= 1 else 1}f}".replace("-", numbers.MINUS)


def _mistakes(tables: dict[str, np.ndarray[Any, Any]], classes: Sequence[str]) -> list[Mistake]:
    """Return the student's most frequent mistakes, alone and distilled taken together."""
    both = tables[baseline_of(tables)] + tables["distilled"]
    np.fill_diagonal(both, 0)
    order = np.argsort(-both, axis=None, kind="stable")[:8]
    pairs = [divmod(int(flat), both.shape[1]) for flat in order]
    return [
        Mistake(
            str(classes[i]),
            str(classes[j]),
            tuple(f"{table[i, j]:.1f}".removesuffix(".0") for table in tables.values()),
        )
        for i, j in pairs
        if both[i, j] > 0
    ]


def disagreements(files: RunFiles, evaluation: EvaluationResult) -> Disagreements | None:
    """Return the samples on which teacher and distilled student differ most, or None when there are none."""
    if not evaluation.disagreements:
        return None
    samples = files.samples
    if samples is not None and len(samples) < len(evaluation.disagreements):
        samples = None  # of another evaluation: better no pictures than wrong ones
    pictures = is_pictures(samples)
    found = []
    for position, record in enumerate(evaluation.disagreements):
        sample = None if samples is None else samples[position]
        values = () if sample is None or pictures else tuple(np.ravel(sample)[:MOST_VALUES].tolist())
        found.append(
            Disagreement(
                name=short(str(record.get("name") or f"test row {record.get('row')}"), 40),
                truth=_value(record.get("label"), evaluation),
                answers=(
                    _answer("teacher", record, "teacher_confidence", evaluation),
                    _answer("distilled", record, "student_confidence", evaluation),
                ),
                picture=data_uri(sample) if sample is not None and pictures else "",
                values=tuple(numbers.significant(float(value)) for value in values),
            )
        )
    size = 0 if samples is None or pictures else int(np.prod(samples.shape[1:]))
    figure = _answer_figure(evaluation) if "answers" in task_of(evaluation.task).figures else None
    more = max(0, size - MOST_VALUES)
    return Disagreements(tuple(found), pictures, min(size, MOST_VALUES), more, figure, _reading(evaluation, len(found)))


def _reading(evaluation: EvaluationResult, listed: int) -> str:
    """Return what the list holds, and whether these are all that there are."""
    if not task_of(evaluation.task).has_classes:
        return "The test samples on which the distilled student and its teacher differ most, largest difference first."
    got = "got another class" if task_of(evaluation.task).exclusive else "got other labels"
    if listed < DISAGREEMENTS:
        return f"{counted(listed, 'test sample')} {got} from the distilled student than from its teacher."
    return (
        f"{listed:,} of the test samples that {got} from the distilled student than from its teacher, "
        "largest difference first."
    )


def _answer(model: str, record: Any, confidence: str, evaluation: EvaluationResult) -> Answer:
    given, stated = record.get(model), numbers.finite(record.get(confidence))
    classifies, label = task_of(evaluation.task).has_classes, record.get("label")
    # Of several labels an unknown one is -1, and nobody is right or wrong there.
    pairs = [
        pair for pair in zip(np.ravel(given), np.ravel(label), strict=False) if np.ndim(label) == 0 or pair[1] != -1
    ]
    return Answer(
        model=model,
        text=_value(given, evaluation),
        confidence=f"{100 * stated:.0f}{numbers.THIN}%" if stated is not None else "",
        right=all(said == true for said, true in pairs) if classifies and label is not None else None,
    )


def _value(value: Any, evaluation: EvaluationResult) -> str:
    if value is None:
        return numbers.DASH
    if task_of(evaluation.task).exclusive:
        return str(evaluation.classes[value]) if 0 <= value < len(evaluation.classes) else str(value)
    if task_of(evaluation.task).has_classes:
        yes = [str(evaluation.classes[place]) for place, label in enumerate(value) if label == 1]
        unknown = [str(evaluation.classes[place]) for place, label in enumerate(value) if label == -1]
        return ", ".join([*yes, *(f"{name}?" for name in unknown)]) or "none"
    return ", ".join(numbers.significant(float(one)) for one in np.ravel(value))


@dataclass(frozen=True)
class ByClass:
    """How well each class is answered: columns (model, what), rows (class, cells), and how many classes there are."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    total: int


def by_class(evaluation: EvaluationResult) -> ByClass | None:
    """Return the table of the classes' scores, or None where a class has none of its own."""
    if "by_class" not in task_of(evaluation.task).figures or not evaluation.by_class:
        return None
    models = [name for name in MODELS if name in evaluation.by_class]
    found = [
        (name, column, evaluation.by_class[name][column]) for column in ("average_precision", "f1") for name in models
    ]
    yes, total = evaluation.by_class[models[0]]["yes"], len(evaluation.classes)
    rows = [
        (
            short(str(name), LONGEST_NAME),
            (f"{yes[place] or 0:,.0f}", *(_share(values[place]) for _, _, values in found)),
        )
        for place, name in enumerate(evaluation.classes[:MOST_ROWS])
    ]
    words = {"average_precision": "average precision", "f1": "F1"}
    return ByClass(tuple((name, words[column]) for name, column, _ in found), tuple(rows), total)


def _share(value: float | None) -> str:
    return numbers.DASH if value is None else f"{value:.3f}"


def _answer_figure(evaluation: EvaluationResult) -> Figure | None:
    """Draw the answers to the samples that differ most, when there is one value to answer with."""
    chosen = evaluation.disagreements[:24]
    if any(np.size(record[key]) != 1 for record in chosen for key in ("label", "teacher", "distilled")):
        return None
    known = [str(record.get("name") or f"row {record.get('row')}") for record in chosen]
    names = [f"{position}. {short(name, 22)}" for position, name in enumerate(known, start=1)]
    records = [
        {"sample": name, "model": "truth" if key == "label" else key, "value": float(np.ravel(record[key])[0])}
        for name, record in zip(names, chosen, strict=True)
        for key in ("label", "teacher", "distilled")
    ]
    return draw(
        "answers",
        "Answers to the samples that differ most",
        "The upright bar is the true value; the closer a mark lies to it, the better that answer.",
        "True value and both answers for each of the samples in the table below.",
        lambda: answer_rows(records, names, title="Value"),
        height=60 + 25 * len(names),
    )
