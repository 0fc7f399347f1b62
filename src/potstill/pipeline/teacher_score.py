"""What a teacher that comes finished is worth on labelled samples, before anything is trained on its answers.

Shape legend: n samples, c classes or outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.core import fingerprint, random
from potstill.core.errors import TeacherError
from potstill.core.files import write_json
from potstill.core.progress import progress, remark
from potstill.core.signals import Batch
from potstill.data import Stream
from potstill.data.samples import Samples
from potstill.pipeline import stages
from potstill.pipeline.build import Job
from potstill.pipeline.class_orders import numbered, order_doubt
from potstill.pipeline.folder import read_or_none
from potstill.pipeline.making import answers_of
from potstill.pipeline.warnings import tell
from potstill.tasks.kinds import word
from potstill.teachers import Reads, Source
from potstill.teachers.answers import Array, no_logits

FILE = "teacher-score.json"
"""What was found of a run's teacher, in the run folder, so that no run asks it twice."""
VERSION = 2
SCORED = 1_000
"""Validation samples, at most, that a teacher is scored on."""
ASKED = 2_000
"""Labelled samples, at most, that a teacher which has to compute is asked about; recorded answers are all read."""


@dataclass(frozen=True)
class TeacherScore:
    """What a teacher's answers to labelled samples say.

    Attributes:
        metric: the headline of the task: accuracy, or R2.
        value: of it, or None where the teacher was not asked.
        samples: how many samples it is from.
        split: ``"validation"``, or ``"training"`` where it answers for those only.
        seconds: that one sample took; None where it was not asked.
        unasked: why it was not asked, and what asking would cost; empty where it was.
        warnings: what is odd about it.
        weak: why little can be learned from it, as a sentence; empty where it is good enough.
        stop: why nothing may be learned from it as it is; empty where nothing speaks against it.
        fitted: whether a part of it was fitted on the validation split, which its score then flatters.

    """

    metric: str
    value: float | None = None
    samples: int = 0
    split: str = ""
    seconds: float | None = None
    unasked: str = ""
    warnings: tuple[str, ...] = ()
    weak: str = ""
    stop: str = ""
    fitted: bool = False

    @property
    def sentence(self) -> str:
        """The score in words."""
        if self.value is None:
            return self.unasked
        score = (
            f"is right on {100 * self.value:.1f} % of {self.samples:,} {self.split} samples"
            if self.metric == "accuracy"
            else f"has {'an' if self.metric[0] in 'aeir' else 'a'} {word(self.metric)} of {self.value:.3f} on "
            f"{self.samples:,} {self.split} samples"
        )
        seen = ", which it may have been trained on" if self.split == "training" else ""
        return f"The teacher {score}{', which a part of it was fitted on' if self.fitted else seen}."

    @property
    def told(self) -> tuple[str, ...]:
        """Everything to warn of."""
        return (*self.warnings, *([self.weak] if self.weak else []))


def score_teacher(job: Job, model: Source, folder: Path) -> TeacherScore:
    """Return what a finished teacher's answers say; what the run folder knows of this very teacher is not asked again.

    Args:
        job: its data, and how the teacher is asked.
        model: the teacher with its weights.
        folder: the run folder; nothing is written.

    Raises:
        TeacherError: its answers are no numbers, or not what its recipe says.

    """
    return _known_or_scored(job, model, folder)[1]


def _known_or_scored(job: Job, model: Source, folder: Path) -> tuple[str, TeacherScore]:
    """Return a hash of everything that the score depends on, and the score."""
    key, held = _key(job, model, folder), read_or_none(folder / FILE) or {}
    if held.pop("key", None) == key:
        return key, TeacherScore(**{**held, "warnings": tuple(held["warnings"])})
    return key, replace(_scored(job, model), fitted=model.facts.fitted)


def check_teacher(job: Job, model: Source, folder: Path) -> TeacherScore:
    """Tell what a finished teacher's answers say, and keep it in the run folder.

    Raises:
        TeacherError: it numbers its classes in another order than the data, or answers with something else than its
            recipe says.

    """
    key, found = _known_or_scored(job, model, folder)
    write_json(folder / FILE, {"key": key, **asdict(found)})
    remark(found.sentence)
    refuse(found)
    tell(found.told, folder=folder)
    return found


def refuse(found: TeacherScore) -> None:
    """Stop where nothing may be learned from a teacher as it is."""
    if found.stop:
        raise TeacherError(found.stop)


def _key(job: Job, model: Source, folder: Path) -> str:
    teacher = [fingerprint.of_state(model.state()), answers_of(job, model, folder, keep=False)]
    asked: list[Any] = [job.teacher.model_dump(include={"answers", "answers_checked", "class_map", "precision"})]
    asked += [job.teacher.preprocess.model_dump(), job.teacher.merge.model_dump(), job.order_is_written]
    asked += [(member.preprocess.model_dump(), member.answers, member.classes) for member in job.members]
    return fingerprint.of_json([VERSION, teacher, asked, job.data.fingerprint, job.recipe.seed])


def _scored(job: Job, model: Source) -> TeacherScore:
    metric, scores = job.task.headline, job.task.scores
    notes = model.facts.notes
    cost = _cost(job, model)
    if cost:
        return TeacherScore(metric, unasked=cost, warnings=notes)
    finished = job.has_finished_teacher
    parts = _samples(job, model) if finished else [_some("validation", job.data.validation, SCORED, job.recipe.seed)]
    began = time.perf_counter()
    answers = _answers(job, model, [samples for _, samples in parts])
    labels = np.concatenate([samples.targets for _, samples in parts])
    seconds = (time.perf_counter() - began) / len(labels)
    _check_numbers(job, answers["logits"], finished=finished)
    split, count = parts[0][0], min(SCORED, len(parts[0][1]))
    first, targets = answers["logits"][:count], labels[:count]
    if job.task.has_classes and first.shape[1] != job.data.num_outputs:  # a head learns to read it
        return TeacherScore(metric, seconds=seconds, unasked="The teacher answers in other classes.", warnings=notes)
    value, weak = scores.score(first, targets), scores.weak(first, targets, split)
    found = TeacherScore(metric, value, len(targets), split, seconds, "", notes, weak)
    if not job.task.exclusive:
        return found
    doubts = [order_doubt(one, answers[one.signal], labels, job) for one in numbered(job, model)]
    stops = [doubt for doubt in doubts if doubt is not None and doubt.stops]
    told = [doubt.text for doubt in doubts if doubt is not None and not doubt.stops]
    return replace(found, stop=stops[0].text if stops else "", warnings=(*found.warnings, *told))


def _answers(job: Job, model: Source, parts: Sequence[Samples]) -> dict[str, Array]:
    """Return what a teacher says of some samples, without their labels, and what each of its members says."""
    found: dict[str, list[Array]] = {}
    total = sum(map(len, parts))
    reads = Reads(
        outputs=model.facts.signals - {"logits"} if model.members else (),
        precision=job.teacher.precision,
        device=job.device,
        scale=job.teacher_scale,
    )
    with model.teaching(reads) as teacher, progress("asking the teacher", total, unit="samples") as advance:
        for samples in parts:
            for batch in _batches(job, samples, looked_up=model.facts.listed):
                for name, values in teacher(batch).items():
                    found.setdefault(name, []).append(values.cpu().numpy())
                advance(len(batch))
    answers = {name: np.concatenate(values) for name, values in found.items()}
    return {**answers, "logits": stages.in_target_units(job, answers["logits"])}


def _batches(job: Job, samples: Samples, *, looked_up: bool) -> Iterator[Batch]:
    """Yield a split without its labels; where answers are looked up, no input is read either."""
    if looked_up:
        ids = torch.from_numpy(samples.ids)
        yield Batch(ids, torch.zeros_like(ids), torch.zeros(len(ids), 0))
    else:
        for batch in Stream(samples).recording(job.recipe.evaluation.batch_size):
            yield replace(batch, targets=None)


def _cost(job: Job, model: Source) -> str:
    """Return what asking a teacher would cost, where that is more than time; else an empty text."""
    sections = [job.teacher, *job.teacher.members]
    endpoints = [section.endpoint for section in sections if section.endpoint is not None]
    if endpoints:
        questions = min(SCORED, len(job.data.validation))
        requests = sum(-(-questions // endpoint.batch_size) for endpoint in endpoints)
        return (
            f"The teacher is an endpoint and was not measured: that would be {questions:,} questions in {requests:,} "
            "requests, at the price of whoever serves it."
        )
    if model.facts.private:
        return "The teacher was not measured: every question about its votes spends privacy."
    return ""


def _samples(job: Job, model: Source) -> list[tuple[str, Samples]]:
    """Return the labelled samples to ask about, by split: all that recorded answers know, or some."""
    splits = [("validation", job.data.validation), ("training", job.data.for_teacher().train)]
    known = [(name, samples) for name, samples in splits if len(samples) and model.facts.measurable(samples.ids)]
    known = known or splits[1:]  # recorded answers to the training samples are checked to be all there
    if model.facts.listed:
        return known
    chosen, left = [], ASKED
    for name, samples in known:
        count = min(left, len(samples), SCORED if name == "validation" else left)
        if count:
            chosen.append(_some(name, samples, count, job.recipe.seed))
        left -= count
        if not job.task.exclusive:  # more samples only help to find an order of classes
            break
    return chosen


def _some(name: str, samples: Samples, count: int, seed: int) -> tuple[str, Samples]:
    return name, samples.take(np.sort(random.permutation(len(samples), seed)[:count]))


def _check_numbers(job: Job, answers: Array, *, finished: bool) -> None:
    """Refuse answers that are no numbers, or that are no logits although they are read as such."""
    if np.isnan(answers).any():
        rows = int(np.isnan(answers).any(1).sum())
        raise TeacherError(
            f"teacher: of its answers to {len(answers):,} samples, {rows:,} are NaN. Check its weights and "
            "teacher.preprocess."
        )
    if finished and job.task.exclusive and not job.teacher.answers_checked and not job.members:
        doubt = no_logits(answers)
        if doubt:
            raise TeacherError(f"teacher: its answers are read as logits, but of {len(answers):,} samples {doubt}")
