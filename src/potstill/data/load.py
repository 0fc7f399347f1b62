"""From any source to three checked splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from potstill.core import random
from potstill.core.errors import DataError, UsageError
from potstill.core.explain import clear_errors
from potstill.core.scale import scale_of
from potstill.data import checks, tables
from potstill.data.columns import Column
from potstill.data.few import UNKNOWN, check_pool, hide_labels, told, with_pool
from potstill.data.files import check_encoding
from potstill.data.pictures import check_background
from potstill.data.raw import OnBad, Raw, Stored, Table, moved_apart, without_bad
from potstill.data.remarks import merged_values, on_columns
from potstill.data.samples import Array, Data, Samples, make_samples
from potstill.data.sources import Options, read, read_unlabelled, splits_of
from potstill.data.splits import split_rows
from potstill.tasks import TaskName, task_of
from potstill.tasks.base import Finding
from potstill.tasks.texts import texts_of

_ROLES = ("train", "validation", "test")
_UNNAMED = 64
"""Vectors of more numbers than this are no table."""


@clear_errors
def load(
    train: Any,
    *,
    validation: Any = None,
    test: Any = None,
    args: Mapping[str, Any] | None = None,
    task: TaskName = "classification",
    inputs: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    target: str | Sequence[str] = "label",
    id_column: str | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    background: str | None = None,
    encoding: str | None = None,
    on_bad: OnBad = "error",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    base: Path | str = Path(),
    standardise_targets: bool = True,
    unlabelled: Any = None,
    num_labels: int | None = None,
) -> Data:
    """Read samples, make the splits that were not given, and check everything.

    Use it for every kind of source: ``'digits'``; a folder with a subfolder of images for each class; a CSV, Parquet,
    JSONL or NPZ file with named columns; ``'file.py:name'`` or ``'package.module:name'``, a function that returns
    samples; ``(inputs, targets)`` arrays or tensors; ``{'inputs': ..., 'targets': ..., 'ids': ...}``; a map-style
    dataset of ``(input, target)``; a Hugging Face dataset; or a dictionary of any of these for ``'train'``,
    ``'validation'`` and ``'test'``.

    Args:
        train: the samples to learn from, and those that missing splits are made of.
        validation: as ``train``; made from train when absent.
        test: as ``train``; made from train when absent.
        args: keyword arguments of data functions.
        task: ``"classification"`` or ``"regression"``.
        inputs: input columns of tables; all but target and id when absent.
        exclude: columns of tables that models do not see; instead of ``inputs``.
        target: target column of tables; several columns of files, each a class of its own or a value.
        id_column: column with a stable id of each sample; the row number when absent. Folders use hashed file paths.
        classes: class names in the teacher's order; those of the source, or the sorted labels of train, when absent.
        image_size: side in pixels that images of folders and datasets are resized to.
        channels: 1 for grey images, 3 for colours; what they are when absent, 3 where some are coloured.
        background: colour behind transparent pixels of images; white when absent.
        encoding: of CSV and JSONL files; UTF-8 when absent.
        on_bad: ``"error"`` or ``"skip"`` unreadable files and rows with missing, NaN or infinite values.
        validation_fraction: share of train for validation, when it is made.
        test_fraction: share of train for test, when it is made.
        seed: of the splits.
        base: folder that relative paths start from.
        standardise_targets: whether models are to learn regression targets in standard units of the train split; the
            targets of the splits stay as they are.
        unlabelled: as ``train``, or inputs alone: samples beside those of train that only a teacher answers. Labels
            that it has are not read.
        num_labels: how many labels of train students see, of all classes alike; the others they learn from a teacher.
            With 0, and where validation and test are given, train need not have any.

    Returns:
        The splits. Text columns of tables are one-hot encoded with the categories of train.

    Raises:
        UsageError: options that do not fit the source.
        DataError: data that cannot be used; names the file, row, column or class.

    """
    asked = task_of(task)
    if on_bad not in get_args(OnBad):
        raise UsageError(f"on_bad='{on_bad}': expected one of {', '.join(get_args(OnBad))}.")
    if (unlabelled is not None or num_labels is not None) and not asked.exclusive:
        raise UsageError(f"data.unlabelled and data.labels are for task: classification, not for {task}.")
    if inputs is not None and exclude is not None:
        raise UsageError("data.inputs and data.exclude are two ways to choose columns. Give one of them.")
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise UsageError(
            f"data.split: validation {validation_fraction:g} and test {test_fraction:g} must be 0 or more and leave "
            "something for train."
        )
    classes = None if classes is None else [str(name) for name in texts_of(np.array(list(classes), object), "classes")]
    check_encoding(encoding)
    check_background(background or "white")
    options = Options(
        task=task,
        inputs=inputs,
        exclude=exclude,
        target=target,
        id_column=id_column,
        image_size=image_size,
        channels=channels,
        background=background,
        encoding=encoding,
        args=args,
        base=Path(base),
    )
    raws = _read_all({"train": train, "validation": validation, "test": test}, options, on_bad, blind=num_labels == 0)
    raws = _with_made_splits(raws, task, {"validation": validation_fraction, "test": test_fraction}, seed)
    if unlabelled is not None:
        pool = without_bad(read_unlabelled(unlabelled, "unlabelled", options), "unlabelled", on_bad)
        if not len(pool):
            raise DataError("The source of unlabelled has no samples.")
        raws["unlabelled"] = moved_apart(pool, "unlabelled")
    findings = tuple(dict.fromkeys(finding for raw in raws.values() for finding in raw.findings))
    labels = {role: raw.labels for role, raw in raws.items() if not raw.blind}
    targets = asked.targets.number(labels, classes, raws[next(iter(labels))].label_names)
    findings += targets.findings
    scale = scale_of(targets.of["train"]) if standardise_targets and asked.has_units else None
    if scale is None and asked.has_units:  # in standard units no difference is lost
        findings += merged_values(raws["train"].labels)
    contents, columns, remarks = _contents(raws)
    remarks += _on_columns(raws["train"], contents["train"], targets.of["train"]) if "train" in targets.of else ()
    splits = {
        role: make_samples(
            raw.ids,
            targets.of[role] if role in targets.of else np.full(len(raw), UNKNOWN, dtype=np.int64),
            contents[role].fetch,
            digests=contents[role].digests,
            names=raw.names,
            rows_of=raw.rows_of,
            labelled=np.zeros(len(raw), dtype=bool) if raw.blind else None,
        )
        for role, raw in raws.items()
    }
    shape = contents["train"].shape
    data = Data(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        task=task,
        classes=targets.classes,
        kind="image" if len(shape) == 3 else "vector",
        shape=shape,
        num_outputs=targets.num_outputs,
        findings=findings + remarks,
        columns=columns,
        scale=scale,
    )
    data = data.with_findings(checks.check(data), checks.label_shift(data))
    if unlabelled is not None:
        data = with_pool(
            replace(data, findings=data.findings + check_pool(data, splits["unlabelled"])), splits["unlabelled"]
        )
    if num_labels is not None and not raws["train"].blind:
        data = hide_labels(data, num_labels, seed)
    return replace(data, findings=data.findings + told(data))


def channel_statistics(samples: Samples, limit: int = 10000) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel or column.

    Args:
        samples: a split; use train, so that nothing is learned from the others.
        limit: how many samples to look at; a fixed random choice of larger splits.

    Returns:
        Two lists: one number for each channel of images, with pixels in the range 0 to 1, or for each column
        (the last axis) of other samples. A standard deviation of 0 is given as 1.

    Raises:
        DataError: the split is empty.

    """
    if not len(samples):
        raise DataError("There are no samples to take the mean of.")
    rows = np.sort(random.permutation(len(samples), 0)[:limit])
    first = samples.fetch(rows[:1])
    # Differences to the first sample: the square of large values would lose the digits of a small spread.
    axes, scale = ((0, 2, 3), 255.0) if first.dim() == 4 else (tuple(range(first.dim() - 1)), 1.0)
    scale = scale if first.dtype.is_floating_point is False else 1.0
    start = first.double().numpy().mean(axis=axes, keepdims=True) / scale
    count, total, squares = 0, 0.0, 0.0
    for low in range(0, len(rows), 512):
        values = samples.fetch(rows[low : low + 512]).double().numpy() / scale - start
        total, squares = total + values.sum(axis=axes), squares + np.square(values).sum(axis=axes)
        count += int(np.prod([values.shape[axis] for axis in axes]))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    std = np.where(std < 1e-8, 1.0, std)
    return [float(value) for value in mean + start.reshape(-1)], [float(value) for value in std]


def _read_all(sources: Mapping[str, Any], options: Options, on_bad: OnBad, *, blind: bool) -> dict[str, Raw]:
    """Read every split that is given; with ``blind`` train need not have labels if no split is made from it."""
    found: dict[str, Any] = {}
    for role, source in sources.items():
        if source is not None:
            found.update(splits_of(source, role, options))
        elif role == "train":
            raise UsageError("data.train is missing.")
    if "train" not in found:
        raise DataError(f"data.train gives the splits {', '.join(found)}; expected 'train' among them.")
    blind = blind and set(_ROLES) <= set(found)
    raws = {
        role: (read_unlabelled if blind and role == "train" else read)(source, role, options)
        for role, source in found.items()
    }
    for role, raw in raws.items():
        if not len(raw):
            raise DataError(f"The source of {role} has no samples.")
    return {role: moved_apart(without_bad(raws[role], role, on_bad), role) for role in _ROLES if role in raws}


def _with_made_splits(
    raws: dict[str, Raw], task: TaskName, fractions: Mapping[str, float], seed: int
) -> dict[str, Raw]:
    wanted = {role: 0.0 if role in raws else fraction for role, fraction in fractions.items()}
    whole = raws["train"]
    if not any(wanted.values()):
        missing = [role for role in _ROLES if role not in raws]
        if missing:
            role = missing[0]
            raise DataError(f"The {role} split is empty: set data.split.{role} above 0, or name data.{role}.")
        return raws
    strata = task_of(task).targets.strata(whole.labels)
    rows = split_rows(whole.ids, strata, validation=wanted["validation"], test=wanted["test"], seed=seed)
    made = dict(zip(_ROLES, (whole.take(part) for part in rows), strict=True))
    return {role: raws[role] if role != "train" and role in raws else made[role] for role in _ROLES}


def _on_columns(train: Raw, content: Stored, targets: Array) -> tuple[Finding, ...]:
    if isinstance(train.content, Table):
        return on_columns(train.content.columns, targets)
    if len(content.shape) != 1 or content.shape[0] > _UNNAMED:
        return ()
    rows = content.fetch(np.arange(len(train), dtype=np.int64)).numpy()
    return on_columns({str(number): column for number, column in enumerate(rows.T)}, targets, named=False)


def _contents(raws: Mapping[str, Raw]) -> tuple[dict[str, Stored], tuple[Column, ...], tuple[Finding, ...]]:
    kinds = {role: type(raw.content).__name__ for role, raw in raws.items()}
    if len(set(kinds.values())) > 1:
        raise DataError("Some splits are tables and others are not: give all of them as one kind of source.")
    found: dict[str, Stored] = {}
    columns: tuple[Column, ...] = ()
    findings: list[Finding] = []
    train = raws["train"].content
    if isinstance(train, Table):
        columns = tables.fit(train)
    for role, raw in raws.items():
        if isinstance(raw.content, Stored):
            found[role] = raw.content
        else:
            found[role], remarks = tables.encode(raw.content, columns, role)
            findings += remarks
    shapes = {role: content.shape for role, content in found.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"Samples have different shapes: {shapes}. Make them equal; data.image_size resizes images.")
    dtypes = {role: content.fetch(np.zeros(min(1, len(raws[role])), np.int64)).dtype for role, content in found.items()}
    if len(set(dtypes.values())) > 1:
        raise DataError(f"Samples have different types: {dtypes}. Give uint8 pixels, or floats, in all splits.")
    return found, columns, tuple(findings)
