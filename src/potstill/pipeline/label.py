"""Recording only: what a teacher says of the training samples, once, and a page about what that is worth."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill import report
from potstill.core.errors import UsageError
from potstill.core.explain import clear_errors
from potstill.core.files import atomic_path, read_json, write_json
from potstill.core.progress import say
from potstill.core.signals import Batch
from potstill.data.augment import mixes
from potstill.data.samples import Samples
from potstill.evaluation.labelling import LabelFacts, Recording, describe_labels, describe_values
from potstill.models.last_layer import last_linear, reading
from potstill.models.load import output_tensor
from potstill.pipeline import stages
from potstill.pipeline.build import Given, Job
from potstill.pipeline.facts import as_pictures
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.listing import as_settings, differing_settings, recipe_settings
from potstill.pipeline.making import Making, check_recorded, with_weights
from potstill.pipeline.orders import recording, teachers
from potstill.pipeline.prepare import prepare
from potstill.pipeline.processes import on_main, start
from potstill.pipeline.running import begin
from potstill.pipeline.stage import StageRunner, survey
from potstill.pipeline.store_loss import describe_codec, explained, read_back
from potstill.pipeline.teacher_score import check_teacher, refuse, score_teacher
from potstill.pipeline.warnings import begin_telling, tell, warnings_of
from potstill.recipe.hash import recipe_hash
from potstill.recipe.schema import Recipe
from potstill.store import Place, Store, open_store
from potstill.store.codecs import Codec, Dtype, alternatives, numbers
from potstill.store.fidelity import Kept, compare, keep
from potstill.store.size import bytes_on_disk
from potstill.tasks import task_of
from potstill.teachers import StoredTeacher, Teacher
from potstill.teachers.privacy import what_is_kept

Array = np.ndarray[Any, Any]
PROBE = 512
"""Samples on which the recorded answers are compared with the teacher's own."""


@dataclass(frozen=True)
class Labelled:
    """What `label` leaves behind."""

    folder: Path
    store: Place
    finished: bool
    """Whether every part is recorded; the page is written when it is."""

    @property
    def page(self) -> Path:
        """The page to look at."""
        return self.folder / "label.html"

    @property
    def facts(self) -> LabelFacts:
        """The numbers on the page."""
        return LabelFacts.from_json(read_json(self.folder / "label.json"))

    def open(self) -> Store:
        """Return the recorded answers."""
        return open_store(self.store)

    def summary(self) -> dict[str, Any]:
        """Return what a script wants to know, as JSON-like data."""
        files = {"store": str(self.store), **({"page": str(self.page)} if self.finished else {})}
        facts = self.facts.to_json() if self.finished else None
        return {"folder": str(self.folder), "finished": self.finished, "files": files, "facts": facts}


@clear_errors
def label(
    recipe: Recipe,
    *,
    out: Path | str,
    base: Path | str = ".",
    given: Given | None = None,
    part: tuple[int, int] | None = None,
    command: str = "",
) -> Labelled:
    """Record what the recipe's teacher says of every training sample and view, and describe it; train no student.

    It can be stopped at any moment and goes on with the same call. ``potstill run`` with the same recipe and folder
    then finds the recording there.

    Args:
        recipe: its data, teacher, objective (which says what is recorded) and store count.
        out: the run folder.
        base: the folder that relative paths in the recipe start from.
        given: Python objects that take the place of the recipe's data and models.
        part: ``(i, n)``: record only the i-th of n parts, counted from 0, while others record the rest; a teacher
            that is trained here must be finished. The page is written by a call without ``part``.
        command: how a person repeats this; kept in the folder.

    Raises:
        PotstillError: what is wrong and how to fix it. What is recorded stays recorded.

    """
    out, base = Path(out).absolute(), Path(base).absolute()
    if recipe.student.on_features is not None:
        raise UsageError(
            "student.on_features: this recipe computes features, not answers. Run it with 'potstill run', or remove "
            "student.on_features to record the teacher's answers."
        )
    if task_of(recipe.task).scores.by_class is not None:
        raise UsageError(
            f"potstill label describes samples of one class each, or values, and not yet task: {recipe.task}. "
            "'potstill run' records them as well."
        )
    job = prepare(recipe, out=out, base=base, given=given)
    if not job.has_teacher:
        raise UsageError("This recipe has no teacher of its own, so there is nothing to record. Give it a teacher.")
    folder = RunFolder(out)
    if part is not None:
        return _record_part(job, folder, part)
    accelerator = start(job.device.type)
    runner = StageRunner(folder, accelerator)
    if not accelerator.is_main_process:
        return Labelled(out, _record(job, runner), finished=True)
    with folder.locked():
        run_finished = _same_run_finished(job, folder)
        if not run_finished:
            begin_telling(out)
        tell(warnings_of(job), folder=out)
        if job.has_finished_teacher:
            check_teacher(job, with_weights(job, out), out)
        if not run_finished:
            begin(job, folder, command)
        before = folder.result("teacher")
        store = _record(job, runner)
        if run_finished and folder.result("teacher") != before:
            folder.update(finished=None)  # what the run measured is another teacher
        return Labelled(out, store, finished=True)


def _record_part(job: Job, folder: RunFolder, part: tuple[int, int]) -> Labelled:
    """Record one of several parts with a teacher that is finished.

    Raises:
        UsageError: it still has to be trained, or is damaged.

    """
    tell(warnings_of(job))
    out = folder.path
    made = Making(job, out)
    for stage, (_, look) in survey(folder, teachers(made), made.results).items():
        if not look.usable:
            why = f" ({'; '.join(look.why)})" if look.why else ""
            raise UsageError(
                f"The {stage} is to be trained here first{why}, which several parts at once cannot do. Give "
                "it weights, or record without --shard until the training is over, stop, and give the run folder to "
                "every part."
            )
    if job.has_finished_teacher:
        refuse(score_teacher(job, made.teacher(), out))
    with made.verified():
        store, teacher = made.store(0), made.live()
        check_recorded(job, made.teacher(), teacher, store, made.key.store(), out)
        # A store of few blocks has fewer shards than the recipe asks for: the last parts have nothing to do.
        spare = part[1] <= (job.recipe.store.shards or 0)
        finished = stages.record_teacher(job, teacher, store, part, spare=spare) is not None
    return Labelled(out, store, finished and (out / "label.html").is_file())


def _same_run_finished(job: Job, folder: RunFolder) -> bool:
    """Return whether the folder holds a finished run of this very recipe, which a label leaves as it is."""
    if not folder.state.get("finished"):
        return False
    now = job.written
    if folder.state.get("recipe_hash") == recipe_hash(now):
        return True
    before, after = recipe_settings(folder.path / "recipe.yaml"), as_settings(now)
    names = differing_settings([before, after])
    changed = ", ".join(f"{name} {before.get(name)} -> {after.get(name)}" for name in names)
    say(f"The run in {folder.path} was finished with another recipe and counts as unfinished from now on: {changed}")
    return False


def _record(job: Job, runner: StageRunner) -> Place:
    """Train what is to be trained, record with all processes, let the main one write the page; return the store."""
    out = runner.folder.path
    made = Making(job, out, runner.results)
    with made.verified():
        runner.run(teachers(made))
        store = made.store(0)
        # The time of a recording that was begun before says nothing about its rate.
        was_there = on_main(runner.accelerator, lambda: stages.was_begun(store))
        began = time.monotonic()
        runner.run(recording(made))
        seconds = None if was_there else time.monotonic() - began
        on_main(runner.accelerator, lambda: describe(job, made.live(), open_store(store), out, seconds=seconds))
    return store


def describe(job: Job, teacher: Teacher, store: Store, out: Path, *, seconds: float | None) -> None:
    """Write ``label.json``, the samples it names, and the page."""
    data = job.data
    facts = _facts(job, teacher, store, out, seconds)
    write_json(out / "label.json", facts.to_json())
    shown = facts.shown_ids()
    if data.kind == "image" and shown:
        rows = np.flatnonzero(np.isin(data.train.ids, shown))
        images = as_pictures(data.train.fetch(rows).numpy())
        with atomic_path(out / "label-samples.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, ids=data.train.ids[rows], images=images)
    report.write_label_page(out)


def _facts(job: Job, teacher: Teacher, store: Store, out: Path, seconds: float | None) -> LabelFacts:
    data, manifest = job.data, store.manifest
    train, validation = data.for_teacher().train, data.validation  # the page compares with labels
    codec = manifest.signals["logits"].codec
    recording = Recording(
        name=out.name,
        num_samples=manifest.num_samples,
        num_views=manifest.views,
        num_bytes=bytes_on_disk(store.folder),
        full_bytes=manifest.num_rows * 4 * sum(int(np.prod(shape)) for shape in store.shapes.values()),
        seconds=seconds,
        rate=None if not seconds else manifest.num_rows / seconds,
        fidelity=_fidelity(job, teacher, store),
        kept=what_is_kept(manifest),
        sampled=codec.facts.samples,
    )
    seen = True if any(section.train is not None for section in (job.teacher, *job.members)) else None
    names = [train.called(row) for row in range(len(train))]
    held = _answers(job, teacher, validation) if len(validation) else None
    if not job.task.exclusive:
        return describe_values(
            recording,
            _Rows(store, train.ids, probabilities=False)[0 : len(train)],
            train.targets,
            ids=train.ids,
            names=names,
            validation=None if held is None else (held, validation.targets),
            seen=seen,
        )
    return describe_labels(
        recording,
        _Rows(store, train.ids),
        train.targets,
        ids=train.ids,
        classes=data.classes,
        names=names,
        validation=None if held is None else (_softmax(held), validation.targets),
        view_classes=_classes_of_views(store, train.ids) if manifest.views > 1 and not mixes(job.augment) else None,
        seen=seen,
    )


@dataclass(frozen=True)
class _Rows:
    """The recorded answers to view 0, read a slice at a time."""

    store: Store
    ids: Array
    probabilities: bool = True
    view: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ids), *self.store.shapes["logits"])

    def __getitem__(self, rows: slice) -> Array:
        ids = torch.from_numpy(self.ids[rows])
        logits = StoredTeacher(self.store, ["logits"]).read(ids, torch.full_like(ids, self.view))["logits"].numpy()
        return _softmax(logits) if self.probabilities else logits


def _classes_of_views(store: Store, ids: Array) -> Array:
    found = np.empty((len(ids), store.manifest.views), np.int64)
    size = 4096
    for view in range(store.manifest.views):
        rows = _Rows(store, ids, probabilities=False, view=view)
        for low in range(0, len(ids), size):
            found[low : low + size, view] = rows[low : low + size].argmax(1)
    return found


def _softmax(logits: Array) -> Array:
    whole = torch.from_numpy(logits).to(torch.float64).softmax(1)
    probabilities: Array = whole.numpy()
    return probabilities


def _answers(job: Job, teacher: Teacher, samples: Samples) -> Array | None:
    """Return what the teacher says of the validation split; None where it was fitted on it, or cannot be asked."""
    if teacher.facts.fitted or not teacher.facts.measurable(samples.ids):
        return None
    return stages.answers_to(job, teacher, samples, "asking about the validation split")


def _fidelity(job: Job, teacher: Teacher, store: Store) -> list[dict[str, Any]]:
    """Compare what is stored, and what other codecs would store, with the teacher's own answers to some samples."""
    spec = store.manifest.signals["logits"]
    probe = next(stages.recording_batches(job, [(0, min(PROBE, len(job.data.train)))]))
    said = teacher(probe)["logits"].cpu()
    stored, width = read_back(store, probe)["logits"], float(spec.width or 0)
    if not job.task.exclusive:
        return _fidelity_of_values(said, Kept(spec.codec, width, stored))
    logits = said.numpy()
    chosen = Kept(spec.codec, width, stored)
    codecs: list[Codec | Kept] = [chosen, *(codec for codec in alternatives(logits.shape[1]) if codec != spec.codec)]
    hidden, student_logits = _student_on(job, probe)
    found = compare(logits, codecs, student_logits=student_logits if hidden is not None else None, hidden=hidden)
    return [
        {
            "codec": describe_codec(one.codec),
            "bytes": one.bytes_per_item,
            "kl": one.kl,
            "angle": one.angle,
            "norm_ratio": one.norm_ratio,
            "uncovered": one.missing,
            "chosen": one.codec == spec.codec,
        }
        for one in found
    ]


def _fidelity_of_values(said: torch.Tensor, stored: Kept) -> list[dict[str, Any]]:
    """Return R2 of what is stored, and of what other number formats would store, against what was said (b, k)."""
    formats: tuple[Dtype, ...] = ("float32", "float16", "int8")
    others = [codec for codec in map(numbers, formats) if codec != stored.codec]
    kept = [stored, *(keep(said.numpy(), codec) for codec in others)]
    return [
        {
            "codec": describe_codec(one.codec),
            "bytes": one.bytes_per_item,
            "r2": float(explained(said, one.answer).min()),
            "chosen": one is stored,
        }
        for one in kept
    ]


def _student_on(job: Job, probe: Batch) -> tuple[Array | None, Array]:
    """Return what the untrained student's last layer reads (None where it has no linear one), and its logits."""
    student = job.student.fresh(job.recipe.seed, "alone").eval()
    inputs = job.student.preprocess(probe.tensor)
    name = last_linear(student, inputs[:2])
    with torch.no_grad(), ExitStack() as stack:
        read = stack.enter_context(reading(student.get_submodule(name))) if name is not None else []
        logits = output_tensor(student(inputs)).numpy()
    return (read[0].numpy() if read else None), logits
