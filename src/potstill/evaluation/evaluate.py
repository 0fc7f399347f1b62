"""From predictions to one result: scores with intervals, paired differences, calibration, disagreements, verdict.

Pure NumPy: nothing here runs a model. Shape legend: n test examples, c classes, k regression columns.
"""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from potstill.core.errors import PotstillError, PotstillWarning, UsageError
from potstill.evaluation.intervals import interval, spare
from potstill.evaluation.result import EvaluationResult, ModelScores, Size
from potstill.evaluation.verdict import (
    Difference,
    Limit,
    Verdict,
    baseline_of,
    exported_confidence,
    judge,
    weak_teacher,
)
from potstill.tasks import TaskName, metrics, task_of
from potstill.tasks.arrays import Array, Floats, Ints
from potstill.tasks.base import Apart, Measure
from potstill.tasks.kinds import about

__all__ = ["EvaluationResult", "ModelScores", "Size", "evaluate", "with_limits"]

Scored = tuple[Difference, tuple[float, ...]]  # a score with its interval, and the value of each seed

CLASSES_SHOWN = 100
CLASSES_NAMED = 5
DISAGREEMENTS = 24  # listed at most
OVER_CLASSES = ("balanced_accuracy", "auc")  # averages over classes, however few examples a class has


def evaluate(
    *,
    task: TaskName,
    targets: Array,
    teacher: Array | None,
    distilled: Mapping[int, Array],
    sizes: Mapping[str, Size],
    alone: Mapping[int, Array] | None = None,
    pseudo: Mapping[int, Array] | None = None,
    classes: Sequence[str] = (),
    ids: Array | None = None,
    names: Sequence[str] | None = None,
    shown_seed: int | None = None,
    others: Mapping[str, Array] | None = None,
    temperatures: Mapping[str, Sequence[Any]] | None = None,
    limits: Sequence[Limit] = (),
    metric: str | None = None,
    warnings: Sequence[str] = (),
    remarks: Sequence[str] = (),
    num_disagreements: int = DISAGREEMENTS,
    resamples: int | None = None,
    seed: int | None = None,
) -> EvaluationResult:
    """Compare teacher, students trained alone and distilled students on the test split.

    Args:
        task: classification or regression.
        targets: (n,) class numbers, or (n,) or (n, k) values.
        teacher: (n, c) logits or (n, k) values of the teacher; None where there was no separate one.
        distilled: seed -> (n, c) outputs of the distilled student.
        sizes: ``"teacher"``, ``"alone"``, ``"distilled"`` -> what each costs.
        alone: seed -> (n, c) outputs of the student trained alone, of the same seeds; None where there are no labels.
        pseudo: seed -> (n, c) outputs of the student that learned the teacher's likeliest classes where labels are few;
            the same seeds. The distilled student is compared with it too, or only with it where none is trained alone.
        classes: class names; empty for regression.
        ids: (n,) ids of the test examples; their row numbers when absent.
        names: n names of the test examples, for example file paths.
        shown_seed: the distilled student that is exported: its disagreements with the teacher are listed (those of the
            first when absent), and what its temperature does is said.
        others: name -> (n, c) outputs of further models to show beside these: the members of a merged teacher, the
            assistants of a chain. The best of them is compared with the teacher as ``"teacher-<name>"``.
        temperatures: model -> what its logits are divided by, one for each seed, see `calibrate`; log loss and
            calibration error are then also measured calibrated. Of several labels the thresholds of the classes, which
            F1 scores need.
        limits: the budget, measured; see also `with_limits`.
        metric: what the verdict is about, a name of `measures`; accuracy or R2 when absent.
        warnings: what makes the numbers worth less, to stand with the verdict; that a teacher is worse than the student
            alone or not clearly better than chance is added here.
        remarks: what else to know of the numbers, as sentences.
        num_disagreements: how many examples to list at most; those of one class for both are no disagreement.
        resamples: of calls of before; a warning says that intervals are computed without resampling.
        seed: as ``resamples``.

    Raises:
        UsageError: arrays that do not fit each other, different seeds, missing sizes.
        PotstillError: outputs that are not finite.

    """
    if resamples is not None or seed is not None:
        text = (
            "evaluate(resamples=, seed=) no longer do anything: intervals are computed without resampling. Drop them."
        )
        python_warnings.warn(text, PotstillWarning, stacklevel=2)
    others = others or {}
    trained = {"alone": alone, "pseudo": pseudo, "distilled": distilled}
    students = {kind: each for kind, each in trained.items() if each is not None}
    if len(students) < 2:
        raise UsageError(
            "A distilled student is compared with another: pass alone, or pseudo where there are no labels."
        )
    _check(task, targets, teacher, students, others, sizes, classes)
    seeds = tuple(distilled)
    outputs: dict[str, list[Array]] = {
        **({} if teacher is None else {"teacher": [np.asarray(teacher)]}),
        **{kind: [np.asarray(each[number]) for number in seeds] for kind, each in students.items()},
        **{name: [np.asarray(output)] for name, output in others.items()},
    }
    asked = task_of(task)
    adjusted = {
        name: [asked.scores.adjust(each, kept) for each, kept in zip(outputs[name], kept_of, strict=True)]
        for name, kept_of in (temperatures or {}).items()
        if name in outputs
    }
    columns = 1 if np.ndim(targets) == 1 else np.shape(targets)[1]
    tables = asked.scores.measures(None if teacher is None else np.asarray(teacher), columns)
    read = {name: (measure, outputs) for name, measure in tables.items()}
    read |= {name: (measure, adjusted) for name, measure in asked.scores.adjusted.items() if adjusted}
    headline = metric or asked.headline
    if headline not in read or about(headline).compares:
        usable = ", ".join(name for name in read if not about(name).compares)
        several = f" with {columns} {asked.outputs}" if columns > 1 else ""
        raise UsageError(f"The metric of a {task} task{several} is one of {usable}; got '{headline}'.")
    measured, differences = _compare(read, outputs, np.asarray(targets), headline, others)
    n = len(targets)
    models = {
        name: ModelScores(
            name=name,
            metrics={one: score.value for one, (score, _) in measured[name].items()},
            intervals={one: (score.low, score.high) for one, (score, _) in measured[name].items()},
            per_seed={one: per_seed for one, (_, per_seed) in measured[name].items()},
            parameters=sizes[name].parameters,
            flops=sizes[name].flops,
            bytes=sizes[name].bytes,
            latency_ms=sizes[name].latency_ms,
            runtime=sizes[name].runtime,
            onnx_latency_ms=sizes[name].onnx_latency_ms,
        )
        for name in outputs
    }
    class_scores = outputs if asked.exclusive else {}
    decided = outputs if asked.exclusive else {**outputs, **adjusted}
    place = 0 if shown_seed is None else seeds.index(shown_seed)
    by_class = asked.scores.by_class
    result = EvaluationResult(
        task=task,
        headline_metric=headline,
        classes=tuple(classes),
        num_examples=n,
        seeds=seeds,
        models=models,
        differences=differences,
        verdict=Verdict("", (), "unclear", None),
        reliability={
            name: metrics.reliability(np.concatenate(each), np.tile(targets, len(each)))
            for name, each in class_scores.items()
        },
        confusion={
            name: np.mean([metrics.confusion(logits, targets) for logits in each], axis=0).tolist()
            for name, each in class_scores.items()
            if each[0].shape[1] <= CLASSES_SHOWN
        },
        disagreements=tuple(
            _disagreements(
                asked.scores.apart(decided["teacher"][0], decided["distilled"][place], np.asarray(targets)),
                np.arange(n) if ids is None else np.asarray(ids),
                names,
                num_disagreements,
            )
            if teacher is not None
            else ()
        ),
        by_class={}
        if by_class is None
        else {name: dict(by_class(each[min(place, len(each) - 1)], targets)) for name, each in decided.items()},
        remarks=(
            *remarks,
            *_of_the_exported(models["distilled"], seeds, shown_seed, (temperatures or {}).get("distilled")),
            *(_remarks(targets, classes, np.shape(distilled[seeds[0]])[1]) if class_scores else ()),
        ),
        warnings=(*_about_teacher(models, differences, headline, targets), *warnings),
    )
    return with_limits(result, limits)


def with_limits(result: EvaluationResult, limits: Sequence[Limit]) -> EvaluationResult:
    """Return the result with its verdict written anew against ``limits``; use it when files are measured later."""
    verdict = judge(
        metric=result.headline_metric,
        scores={name: scores.metrics for name, scores in result.models.items()},
        differences=result.differences,
        parameters={name: scores.parameters for name, scores in result.models.items()},
        num_seeds=len(result.seeds),
        num_examples=result.num_examples,
        limits=limits,
        remarks=result.remarks,
        warnings=result.warnings,
    )
    return replace(result, verdict=verdict)


def _of_the_exported(
    student: ModelScores, seeds: Sequence[int], exported: int | None, temperatures: Sequence[Any] | None
) -> list[str]:
    """Return what to say of the exported student's probabilities, where it was calibrated."""
    if exported is None or temperatures is None or "ece_calibrated" not in student.per_seed:
        return []
    place = list(seeds).index(exported)
    raw, calibrated = (student.per_seed[name][place] for name in ("ece", "ece_calibrated"))
    return [exported_confidence(exported, temperatures[place], raw=raw, calibrated=calibrated)]


def _about_teacher(
    models: Mapping[str, ModelScores],
    differences: Mapping[str, Mapping[str, Difference]],
    headline: str,
    targets: Array,
) -> list[str]:
    teacher = models.get("teacher")
    if teacher is None:
        return []
    return weak_teacher(
        headline,
        {name: scores.metrics for name, scores in models.items()},
        differences[f"teacher-{baseline_of(models)}"][headline],
        balanced=teacher.intervals.get("balanced_accuracy"),
        r2=teacher.intervals.get("r2"),
        num_classes=len(np.unique(targets)),
    )


def _check(
    task: TaskName,
    targets: Array,
    teacher: Array | None,
    students: Mapping[str, Mapping[int, Array]],
    others: Mapping[str, Array],
    sizes: Mapping[str, Size],
    classes: Sequence[str],
) -> None:
    given = [sorted(each) for each in students.values()]
    if not given[0] or any(each != given[0] for each in given):
        raise UsageError(
            f"Students {' and '.join(students)} must have the same seeds, at least one; got "
            f"{' and '.join(map(str, given))}."
        )
    missing = {*students, *others, *([] if teacher is None else ["teacher"])} - set(sizes)
    if missing:
        raise UsageError(f"sizes lacks {', '.join(sorted(missing))}; got {', '.join(sorted(sizes)) or 'nothing'}.")
    named = [*_named(teacher, students), *others.items()]
    first, shape = named[0][0], np.shape(named[0][1])
    for what, output in named:
        bad = int(np.size(output) - np.isfinite(output).sum())
        if bad:
            raise PotstillError(
                f"The outputs of the {what} on the test split hold {bad} numbers that are not finite, of "
                f"{np.size(output)}. Lower its learning rate or set training.gradient_clip, and train it again."
            )
        if np.shape(output) != shape:
            raise UsageError(
                f"The {what} has outputs of shape {np.shape(output)}, the {first} of {shape}: both must "
                "answer the same examples with the same classes or columns."
            )
        task_of(task).scores.check(output, targets)
    if classes and len(classes) != shape[1]:
        raise UsageError(f"There are {len(classes)} class names for {shape[1]} outputs.")


def _named(teacher: Array | None, students: Mapping[str, Mapping[int, Array]]) -> list[tuple[str, Array]]:
    named = [(f"{kind} student, seed {seed}", found) for kind, each in students.items() for seed, found in each.items()]
    return named if teacher is None else [("teacher", teacher), *named]


def _measured(measure: Measure, outputs: Sequence[Array], targets: Array) -> tuple[Floats, Floats] | None:
    """Return values (seeds,) and delete-one deviations (seeds, n) of one model; None where the metric has no value."""
    each = [measure(output, targets) for output in outputs]
    good = [one for one in each if one is not None]
    if len(good) < len(each):
        return None
    return np.array([one.value for one in good]), np.stack([one.deviations for one in good])


def _compare(
    read: Mapping[str, tuple[Measure, Mapping[str, list[Array]]]],
    models: Collection[str],
    targets: Array,
    headline: str,
    others: Collection[str],
) -> tuple[dict[str, dict[str, Scored]], dict[str, dict[str, Difference]]]:
    """Return model -> metric -> score with its interval and its seeds' values, and pair -> metric -> difference.

    ``read`` has for each metric how it is measured and the outputs that it is measured of, by model.
    """
    scored: dict[str, dict[str, Scored]] = {name: {} for name in models}
    differences: dict[str, dict[str, Difference]] = {}
    pairs = [("distilled", "alone"), ("distilled", "pseudo"), ("pseudo", "alone")]
    pairs += [("distilled", "teacher"), ("teacher", baseline_of(models))]
    # The headline comes first: it says which of the further models is the best one.
    for name in sorted(read, key=lambda name: name != headline):
        kind, values = about(name), {}
        pair_spare = spare(len(targets)) if kind.rate else 0.0
        alone_spare = spare(np.unique(targets, return_counts=True)[1]) if name in OVER_CLASSES else pair_spare
        measure, outputs = read[name]
        for model in outputs:
            measured = _measured(measure, outputs[model], targets)
            if measured is not None and not (model == "teacher" and kind.compares):
                values[model] = measured
                score = interval(*measured, extra=alone_spare, low=kind.low, high=kind.high)
                scored[model][name] = score, tuple(measured[0].tolist())
        if name == headline and not values:
            raise UsageError(f"The metric '{headline}' has no value here: all test examples are of one class.")
        known = [other for other in others if name in scored[other]]
        if name == headline and known and "teacher" in values:
            sign = 1 if kind.higher_is_better else -1
            pairs.append(("teacher", max(known, key=lambda other: sign * scored[other][headline][0].value)))
        width = kind.high - kind.low
        for first, second in pairs:
            if first in values and second in values:
                # The teacher has one row, which is compared with every seed's.
                change = [one - other for one, other in zip(values[first], values[second], strict=True)]
                found = interval(change[0], change[1], extra=pair_spare, low=-width, high=width)
                differences.setdefault(f"{first}-{second}", {})[name] = found
    names = [full for name in read for full in (name, f"{name}_calibrated") if full in read]
    in_order = {model: {name: found[name] for name in names if name in found} for model, found in scored.items()}
    return in_order, differences


def _remarks(targets: Array, classes: Sequence[str], num_classes: int) -> list[str]:
    """Return what to know of the numbers: classes that the test split has no example of."""
    absent = np.flatnonzero(np.bincount(targets, minlength=num_classes) == 0)
    if not len(absent):
        return []
    named = [str(classes[number]) if classes else str(number) for number in absent[:CLASSES_NAMED]]
    more = f" and {len(absent) - CLASSES_NAMED} more" if len(absent) > CLASSES_NAMED else ""
    return [
        f"The test split has no example of {'class' if len(absent) == 1 else 'the classes'} {', '.join(named)}{more}: "
        "balanced accuracy and AUC leave out what they cannot see."
    ]


def _disagreements(apart: Apart, ids: Ints, names: Sequence[str] | None, limit: int) -> list[dict[str, Any]]:
    label, teacher, student = apart.said
    return [
        {
            "id": int(ids[row]),
            "row": int(row),
            "name": None if names is None else names[row],
            "label": label[row].tolist(),
            "teacher": teacher[row].tolist(),
            "distilled": student[row].tolist(),
            "teacher_confidence": None if apart.sure is None else float(apart.sure[0][row]),
            "student_confidence": None if apart.sure is None else float(apart.sure[1][row]),
        }
        for row in np.argsort(-apart.distance, kind="stable")[:limit]
        if apart.distance[row] > 0
    ]
