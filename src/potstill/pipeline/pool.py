"""What the teacher says of samples without a label: the classes that a student may learn, and how sure it is of them.

Shape legend: n samples, c classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.core.errors import DataError, UsageError
from potstill.core.files import atomic_path, read_json, write_json
from potstill.data import Stream
from potstill.data.samples import make_samples
from potstill.pipeline.build import Job
from potstill.pipeline.student import KINDS, Kind
from potstill.teachers import Model

FILE, FACTS = "pool.npz", "pool.json"
"""What the teacher calls the training samples, and how sure it is, in the run folder."""
SURE = 0.9
_FINDING = "few-labels"


def write_pool(job: Job, teacher: Model, held: NDArray[Any] | None, out: Path) -> None:
    """Keep what the teacher calls the samples without a label, and how sure it is, beside how sure it is elsewhere.

    Args:
        job: the run.
        teacher: whose likeliest classes are kept.
        held: its logits of the validation split, (n, c); None where asking is not free.
        out: the run folder, where ``pool.npz`` and ``pool.json`` are written.

    """
    train = job.data.train
    if train.labelled is None:
        raise TypeError("every sample has a label")
    said = _asked(job, teacher)
    sure, classes = said.max(axis=1), said.argmax(axis=1)
    with atomic_path(out / FILE) as path, path.open("wb") as file:
        np.savez(file, allow_pickle=False, ids=train.ids, classes=classes, confidence=sure)
    pool, count, least = ~train.labelled, job.data.num_outputs, job.recipe.data.min_confidence
    if least is not None and not (sure[pool] >= least).any():
        raise UsageError(
            f"data.min_confidence: {least:g} leaves nothing of the samples without a label: the teacher is at most "
            f"{sure[pool].max():.3f} sure of them. Lower it."
        )
    known = train.with_labels() if train.num_labelled else job.data.validation
    shares = [np.bincount(part, minlength=count) / len(part) for part in (classes[pool], known.targets)]
    facts = {
        "samples": int(pool.sum()),
        "labels": train.num_labelled,
        "confidence": float(sure[pool].mean()),
        "below_90": float((sure[pool] < SURE).mean()),
        "class_shift": float(0.5 * np.abs(shares[0] - shares[1]).sum()),
    }
    if least is not None:
        facts |= {"min_confidence": least, "kept": int((sure[pool] >= least).sum())}
    if held is not None:
        facts["confidence_on_validation"] = float(torch.from_numpy(held).double().softmax(1).amax(1).mean())
    write_json(out / FACTS, facts)


def _asked(job: Job, teacher: Model) -> NDArray[np.float64]:
    """Return the teacher's probabilities of every training sample, (n, c), the mean over the views it was recorded in.

    A live teacher is asked about the samples as they are.
    """
    train, views = job.data.train, teacher.facts.views
    stream = Stream(train) if views is None else job.stream(job.data, views=views)
    found, row = np.zeros((len(train), job.data.num_outputs)), 0
    for batch in stream.recording(job.recipe.evaluation.batch_size):
        said = teacher(replace(batch, targets=None, labelled=None))["logits"].double().softmax(1).cpu().numpy()
        np.add.at(found, np.arange(row, row + len(batch)) % len(train), said)
        row += len(batch)
    return np.asarray(found * len(train) / row)


def lesson(job: Job, kind: Kind, out: Path, batch_size: int) -> Job:
    """Return the job in which a student learns: from its labels, from the teacher's likeliest classes too, or from all.

    Each makes as many steps in an epoch as the one that is distilled.

    Args:
        job: the run.
        kind: how the student learns.
        out: the run folder, where the teacher's classes lie.
        batch_size: of its training.

    """
    train, least = job.data.train, job.recipe.data.min_confidence
    if train.labelled is None:
        return job
    batches = len(job.stream(job.data).sizes(batch_size))
    if kind == "alone":
        return replace(job, data=job.data.with_labels(), batches=batches)
    if kind == "distilled" and least is None:
        return job
    with np.load(out / FILE) as saved:
        if not np.array_equal(saved["ids"], train.ids):
            raise DataError(f"{out / FILE} is of other samples. Delete it and run the same command again.")
        kept = None if least is None else train.labelled | (saved["confidence"] >= least)
        targets = np.where(train.labelled, train.targets, saved["classes"])
    if kind == "distilled":
        return replace(job, batches=batches, kept=kept)
    full = make_samples(
        train.ids, targets, train.fetch, digests=train.digests, names=train.names, rows_of=train.rows_of
    )
    return replace(job, data=replace(job.data, train=full, every_label=None), batches=batches, kept=kept)


def clear_other_students(out: Path, kinds: Collection[Kind]) -> None:
    """Remove the students that an earlier recipe had in the same run folder, and what the teacher said for them."""
    for kind in KINDS:
        for folder in out.glob(f"seeds/*/{kind}") if kind not in kinds else ():
            shutil.rmtree(folder)
    if "pseudo" not in kinds:
        for name in (FILE, FACTS):
            (out / name).unlink(missing_ok=True)


def in_words(out: Path) -> list[str]:
    """Return what students saw of the labels, and how sure the teacher was of the other samples, as sentences."""
    data = read_json(out / "data.json")
    found = [f"{one['message'][:1].upper()}{one['message'][1:]}" for one in data["findings"] if one["code"] == _FINDING]
    if not found or not (out / FACTS).is_file():
        return found
    pool = read_json(out / FACTS)
    validation = pool.get("confidence_on_validation")
    beside = "" if validation is None else f", on the validation samples {100 * validation:.1f} %"
    found.append(
        f"On the {pool['samples']:,} training samples without a label the teacher is {100 * pool['confidence']:.1f} % "
        f"sure on average{beside}; it is less than 90 % sure of {100 * pool['below_90']:.1f} % of them. How often it "
        f"finds each class there differs from the labels by {pool['class_shift']:.3f} (0 is equal, 1 is disjoint)."
    )
    if "kept" in pool:
        least = f"{100 * pool['min_confidence']:g}"
        found.append(
            f"Students learn the {pool['kept']:,} of them of which it is at least {least} % sure, in as many steps as "
            "all would take."
        )
    return found
