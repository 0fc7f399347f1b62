"""What the stages of a run work with: its models, each made once, from what finished stages left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.core import fingerprint
from potstill.core.errors import TeacherError
from potstill.core.files import write_json
from potstill.core.progress import remark, say
from potstill.data import Stream
from potstill.models import load_weights
from potstill.models.together import deployed
from potstill.pipeline import probe as probes
from potstill.pipeline import stages
from potstill.pipeline.build import Job
from potstill.pipeline.chain import as_teacher
from potstill.pipeline.inputs import Inputs, files_changed
from potstill.pipeline.keys import Keys, teacher_folder, teachers_of
from potstill.pipeline.makers import vote_rule
from potstill.pipeline.racing import teacher_stage
from potstill.pipeline.student import Kind, Student
from potstill.store import Place, Store
from potstill.teachers import Model, Source, StoredTeacher, Teacher
from potstill.teachers.concatenated import write_head
from potstill.teachers.privacy import privacy_report

_ANSWERS = "answers.safetensors"
HEAD = (f"{teacher_folder(0)}/weights.safetensors", f"{teacher_folder(0)}/head.json")
"""The head of members side by side, and what it is worth."""


@dataclass(frozen=True)
class Making:
    """What the stages of one run work with. Models are made when a stage first asks for them, and then kept.

    A stage may ask for what stages before it have made: the teacher with its weights, a trained model of the chain,
    the recorded answers. Of several models that teach, 0 is the teacher and i the i-th model of the chain.

    Attributes:
        job: what is made.
        out: the run folder.
        results: what is known of each finished stage; filled as stages finish.

    """

    job: Job
    out: Path
    results: dict[str, str] = field(default_factory=dict)
    _students: dict[tuple[str, int, Kind], nn.Module] = field(default_factory=dict)
    _taught_by: dict[int, Job] = field(default_factory=dict)
    _teachers: dict[int, Source] = field(default_factory=dict)
    _live: dict[int, Teacher] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def key(self) -> Keys:
        """What each stage's result depends on."""
        return Keys(self.job, self.results, lambda: self.answers)

    @property
    def has_taught(self) -> bool:
        """Whether there is a teacher, and all of it that is trained here is finished."""
        return self.job.has_teacher and all(teacher_stage(number) in self.results for number in teachers_of(self.job))

    @property
    def answers(self) -> str:
        """A digest of what the teacher answers; an empty text before it is trained."""
        return answers_of(self.job, self.teacher(), self.out, keep=False) if self.has_taught else ""

    def taught_by(self, link: int) -> Job:
        """Return the job in which a model of the chain teaches."""
        if link == 0:
            return self.job
        if link not in self._taught_by:
            student = self.job.chain[link - 1]
            self._taught_by[link] = as_teacher(self.job, student, self._trained(student))
        return self._taught_by[link]

    def _trained(self, student: Student) -> nn.Module:
        """Build a model of the chain to teach: it is laid out in memory for that, and then rounds otherwise."""
        model = student.build(self.job.recipe.seed)
        load_weights(model, self.out / student.folder(self.job.recipe.seed, "distilled") / "weights.safetensors")
        return deployed(model)

    def learner(self, seed: int, kind: Kind, student: Student | None = None) -> nn.Module:
        """Return a student as it was trained, with its exits and peers, with the weights that validation chose."""
        student = student or self.job.student
        place = student.name, seed, kind
        if place not in self._students:
            self._students[place] = student.build(seed, kind)
        model = self._students[place]
        load_weights(model, self.out / student.folder(seed, kind) / "weights.safetensors")
        return model.eval()

    def deployed(self, seed: int, kind: Kind, student: Student | None = None) -> nn.Module:
        """Return a student with the weights that validation chose, without what it was trained with."""
        return deployed(self.learner(seed, kind, student))

    def teacher(self, link: int = 0) -> Source:
        """Return a teacher with its weights; as it begins while these are still to be trained."""
        if link == 0 and not self.has_taught:
            return self.job.teacher_at(0)
        if link not in self._teachers:
            self._teachers[link] = with_weights(self.taught_by(link), self.out)
        return self._teachers[link]

    def live(self, link: int = 0) -> Teacher:
        """Return a finished teacher that can be asked, until the run ends."""
        if link not in self._live:
            live = stages.live_teacher(self.taught_by(link), self.teacher(link))
            self._live[link] = self._open.enter_context(live)
        return self._live[link]

    def measured(self) -> Source | None:
        """Return the teacher where its answers can be compared with the data."""
        return self.teacher() if self.job.has_teacher and self.job.comparable else None

    def source(self, link: int) -> Model | None:
        """Return what the next model learns from: a live teacher, or its recorded answers; None where nothing does."""
        if not self.job.has_teacher or not self.job.objective.needs_teacher:
            return None
        if self.job.teacher.live:
            return self.live(link)
        return stages.stored_teacher(self.taught_by(link), self.live(link), self.store(link))

    def store(self, link: int) -> Place:
        """Return where a teacher's answers lie."""
        return stages.store_place(self.job, self.key, self.out, link)

    @contextmanager
    def verified(self) -> Iterator[None]:
        """Let go of the teachers in the end, and see that the teacher is what it was."""
        with self._open:
            yield
            if 0 in self._live:
                self._live[0].verify_unchanged()


def answers_of(job: Job, model: Source, out: Path, *, keep: bool) -> str:
    """Return a digest of what a teacher answers, the same for answers that differ by rounding from those kept before.

    Args:
        job: the run.
        model: its teacher, with its weights.
        out: the run folder.
        keep: whether to write down answers that are new.

    """
    now, file = _answers(job, model), out / "teacher-answers.safetensors"
    before = probes.read(file)
    if before is None or probes.difference(before, now) or before.keys() != now.keys():
        if keep:
            probes.write(file, now)
        before = now
    return fingerprint.of_json({name: fingerprint.of_array(value) for name, value in before.items()})


def _answers(job: Job, model: Source) -> probes.Probe:
    """Return a teacher's answers to a few samples; of one that is no torch model, or votes, none: it has a digest."""
    if model.facts.private or not model.facts.layers:
        return {}
    return probes.answers(model, probes.inputs_for(job.data.train))


def write_privacy(job: Job, out: Path, store: Store) -> None:
    """Write ``privacy.json``: what the votes that were recorded cost."""
    votes = job.teacher.votes
    if votes is None:
        raise TypeError("these teachers do not vote")
    ids = torch.from_numpy(np.array(store.ids))
    logits = StoredTeacher(store, ["logits"]).read(ids, torch.zeros_like(ids))["logits"]
    answered = (logits.amax(1) > logits.amin(1)).numpy()  # a vote that was not given is the same for all classes
    report = privacy_report(vote_rule(votes), members=len(job.members), answered=answered, delta=votes.delta)
    write_json(out / "privacy.json", report)


def learn_head(job: Job, out: Path) -> None:
    """Ask every member about the validation split, learn a head on what they say, and write it and what it is worth."""
    file, scores = (out / name for name in HEAD)
    found = write_head(with_weights(job, out, learn=True), file)
    write_json(scores, asdict(found))
    remark(f"The teacher's head: {found}.")


def check_recorded(job: Job, model: Source, teacher: Teacher, store: Place, inputs: Inputs, out: Path) -> None:
    """Refuse a store whose teacher answers otherwise than when it was recorded, whatever its weights say.

    What a teacher answers to a few samples lies beside the store, or for a store at an address in the run folder.

    Raises:
        TeacherError: with both ways out.

    """
    now = _answers(job, model)
    file = store / _ANSWERS if isinstance(store, Path) else out / _ANSWERS
    before, code = probes.read(file), probes.read_note(file)
    if not now:
        return
    if stages.is_recorded(store):
        stages.stored_teacher(job, teacher, store)  # what a store says of itself is told first
    elif isinstance(store, str):
        before = None
    if before is None:
        probes.write(file, now, note={"files": inputs.files})
        return
    edited = ", ".join(files_changed(code, inputs))
    other = probes.difference(before, now)
    if other:
        raise TeacherError(
            f"The teacher answers otherwise than when the store {store} was recorded: "
            f"{edited + '; ' if edited else ''}{other}. Undo that change to use what is recorded, or choose another "
            "store.path, or delete or rename that folder, to record anew."
        )
    if edited:
        say(f"the store {store} is kept: {edited}, and the teacher answers as before")
        probes.write(file, before, note={"files": inputs.files})


def with_weights(job: Job, out: Path, *, learn: bool = False) -> Source:
    """Return the job's teacher with the weights that it was trained to in a run folder.

    With ``learn`` its members have theirs, and the head on what they say is learned now.
    """
    numbers = [number for number in teachers_of(job) if number or not learn]
    files = {number: out / teacher_folder(number) / "weights.safetensors" for number in numbers}
    validation, size = Stream(job.data.to_learn().validation), job.recipe.evaluation.batch_size
    return job.teacher_at(0).with_weights(files, lambda: list(validation.recording(size)))
