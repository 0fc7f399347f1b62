"""From a recipe to what its stages work on: data, task, models and objective, checked; nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from potstill.core.errors import UsageError
from potstill.core.files import check_folder
from potstill.pipeline.build import Given, Job, build_job, example_batch
from potstill.pipeline.chain import check_chain
from potstill.pipeline.features import features_of
from potstill.pipeline.folder import RunFolder
from potstill.pipeline.keys import kinds, teachers_of
from potstill.pipeline.makers import located
from potstill.pipeline.making import Making
from potstill.pipeline.orders import teachers
from potstill.pipeline.stage import survey
from potstill.recipe import schema
from potstill.store import is_remote
from potstill.teachers.at_rest import copy_of
from potstill.teachers.from_features import FromFeatures


def prepare(recipe: schema.Recipe, *, out: Path, base: Path, given: Given | None = None) -> Job:
    """Load and check everything that a recipe names; where its student learns on features, with those as the data.

    Features that are not computed yet (the teacher may still have to be trained) are made as they are asked for, from
    the teacher as it is, which is enough to check that everything fits.

    Raises:
        PotstillError: anything in the recipe, the data or the models that cannot work.

    """
    given = given or Given()
    check_folder(out)
    store = recipe.store.path
    if store is not None and not is_remote(store) and not (located(store, base) / "manifest.json").is_file():
        check_folder(located(store, base))
    layer = recipe.student.on_features
    job = build_job(recipe, base=base, given=given) if layer is None else _on_features(recipe, layer, out, base, given)
    check_chain(job)
    _check_few_labels(job)
    return job


def _check_few_labels(job: Job) -> None:
    """Refuse what nobody can answer, or compare with, where students see few labels or none."""
    written, none_seen = job.recipe.data, not job.data.train.num_labelled
    if "pseudo" not in kinds(job) and (written.min_confidence is not None or none_seen):
        key = "data.min_confidence" if written.min_confidence is not None else "data.labels: 0"
        raise UsageError(
            f"{key} needs a teacher that finds the classes of the data beforehand, and an objective that reads its "
            "logits."
        )
    if none_seen and not job.data.for_teacher().train.num_labelled and teachers_of(job):
        raise UsageError(
            "The teacher is to be trained here, and train has no label. Give a teacher that comes with its weights."
        )


def _on_features(recipe: schema.Recipe, layer: str, out: Path, base: Path, given: Given) -> Job:
    before = _teacher_only(recipe, base=base, given=given)
    made = Making(before, out)
    survey(RunFolder(out), teachers(made), made.results)
    model = copy_of(made.teacher()).eval()
    example = before.teacher_at(0).preprocess(example_batch(before).tensor)
    behind = FromFeatures(model, layer, example.shape[1:])
    behind.verify(example)
    teacher = (recipe.teacher or schema.Teacher.model_construct()).model_copy(
        update={"weights": None, "train": None, "preprocess": schema.Preprocess()}
    )
    job = build_job(
        recipe.model_copy(update={"teacher": teacher}),
        base=base,
        given=replace(given, teacher=behind, loaded=features_of(before, out, layer, model)),
    )
    return replace(job, teacher_scale=before.teacher_scale, before=before)


def _teacher_only(recipe: schema.Recipe, *, base: Path, given: Given) -> Job:
    """Return the job in which the teacher reads the samples themselves; its student, like the teacher, is not used."""
    teacher = recipe.teacher or schema.Teacher.model_construct()
    like = schema.Student(model=teacher.model, args=teacher.args, preprocess=teacher.preprocess)
    alone = {"student": like, "objective": "alone", "peers": [], "mutual": 0.0, "chain": [], "generations": 1}
    student = given.teacher if isinstance(given.teacher, nn.Module) else None
    return build_job(
        recipe.model_copy(update=alone),
        base=base,
        given=Given(teacher=given.teacher, student=student, data=given.data),
    )
