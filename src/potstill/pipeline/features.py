"""Students on a teacher's features: the samples are replaced by what one of its layers says of them, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.files import atomic_path, check_folder, write_json
from potstill.core.progress import progress
from potstill.data import Data
from potstill.data.samples import Ints, Rows, Samples, make_samples
from potstill.models import load_weights, tap
from potstill.pipeline.build import Given, Job, build_job, example_batch
from potstill.pipeline.folder import RunFolder, read_or_none
from potstill.pipeline.keys import keys
from potstill.pipeline.makers import located
from potstill.pipeline.racing import chosen_rates
from potstill.pipeline.stage_runner import look_at
from potstill.pipeline.trainings import of_teacher, teachers_of
from potstill.recipe import schema
from potstill.store.remote import is_remote
from potstill.teachers.from_features import FromFeatures

FOLDER = "features"
_MARKER = "features.json"


def job_for(recipe: schema.Recipe, *, out: Path, base: Path, given: Given | None = None) -> Job:
    """Build the job of a recipe; where the student learns on features, with those as the data.

    Features that are not computed yet (the teacher may still have to be trained) are made as they are asked for, from
    the teacher as it is, which is enough to check that everything fits.

    Raises:
        PotstillError: anything in the recipe, the data or the models that cannot work.

    """
    check_folder(out)
    store = recipe.store.path
    if store is not None and not is_remote(store) and not (located(store, base) / "manifest.json").is_file():
        check_folder(located(store, base))
    if recipe.student.on_features is None:
        return build_job(recipe, base=base, given=given)
    given = given or Given()
    whole = teacher_job(recipe, base=base, given=given)
    model = trained_teacher(whole, out)
    example = whole.teacher_preprocess(example_batch(whole).inputs)
    behind = FromFeatures(model, recipe.student.on_features, example.shape[1:])
    behind.verify(example)
    key = _key(whole, recipe.student.on_features, model)
    data = _on_disk(whole.data, out / FOLDER, key) or _as_asked_for(whole, model, recipe.student.on_features, key)
    teacher = (recipe.teacher or schema.Teacher.model_construct()).model_copy(
        update={"weights": None, "train": None, "preprocess": schema.Preprocess()}
    )
    job = build_job(
        recipe.model_copy(update={"teacher": teacher}),
        base=base,
        given=replace(given, teacher=behind, loaded=data),
    )
    job = replace(job, teacher_scale=whole.teacher_scale)
    return replace(job, written=job.recipe.model_copy(update={"teacher": whole.recipe.teacher}))


def teacher_job(recipe: schema.Recipe, *, base: Path, given: Given) -> Job:
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


def trained_teacher(whole: Job, out: Path) -> nn.Module:
    """Return the teacher with its weights, or as it is made where it is still to be trained."""
    model = whole.make_teacher()
    folder = out / "teacher"
    key = keys(whole)
    race = key.races.get("teacher")
    if race is not None:
        key.results[race.name] = chosen_rates(out, race)
    for number in teachers_of(whole):
        training = of_teacher(key, number)
        if look_at(RunFolder(out), training.stage, training.inputs, training).usable:
            load_weights(model, folder / "weights.safetensors")
    return model.eval()


def compute(whole: Job, out: Path, layer: str) -> None:
    """Write the features of every split into the run folder."""
    model = trained_teacher(whole, out).to(whole.device)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    size = whole.recipe.evaluation.batch_size
    for name, samples in whole.data.splits.items():
        found = []
        with progress(f"features of {name}", len(samples), unit="samples") as advance:
            for start in range(0, len(samples), size):
                rows = np.arange(start, min(start + size, len(samples)))
                found.append(_features(whole, model, layer, samples, rows))
                advance(len(rows))
        with atomic_path(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, torch.cat(found).numpy(), allow_pickle=False)
    write_json(folder / _MARKER, {"key": _key(whole, layer, model)})


def is_computed(whole: Job, out: Path, layer: str) -> bool:
    """Return whether the features in the run folder are those of the trained teacher."""
    return _on_disk(whole.data, out / FOLDER, _key(whole, layer, trained_teacher(whole, out))) is not None


def are_computed(job: Job) -> bool:
    """Return whether a job's features lie in its run folder, so that its teacher is trained as well."""
    return not isinstance(job.data.train.fetch, _Asked)


def _key(whole: Job, layer: str, model: nn.Module) -> str:
    """Return a hash of everything that the features depend on."""
    preprocess = whole.recipe.teacher and whole.recipe.teacher.preprocess.model_dump()
    return fingerprint.of_json([layer, fingerprint.of_weights(model), str(model), preprocess, whole.data.fingerprint])


def _features(whole: Job, model: nn.Module, layer: str, samples: Samples, rows: Ints) -> Tensor:
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    inputs = whole.teacher_preprocess.to(device)(samples.fetch(rows).to(device))
    with torch.no_grad(), tap(model, {"features": layer}) as tapped:
        model(inputs)
        return tapped["features"].detach().float().cpu().clone()


class _Asked:
    """Fetch features by running the teacher."""

    def __init__(self, whole: Job, model: nn.Module, layer: str, samples: Samples) -> None:
        self.parts = whole, model, layer, samples

    def __call__(self, rows: Ints) -> Tensor:
        """Return the features of some rows: (b, ...)."""
        whole, model, layer, samples = self.parts
        return _features(whole, model, layer, samples, np.asarray(rows))


def _as_asked_for(whole: Job, model: nn.Module, layer: str, key: str) -> Data:
    return _with_features(
        whole.data,
        {
            name: Samples(
                samples.ids,
                samples.targets,
                _Asked(whole, model, layer, samples),
                fingerprint.of_json([samples.fingerprint, key]),
                samples.names,
            )
            for name, samples in whole.data.splits.items()
        },
    )


def _on_disk(data: Data, folder: Path, key: str) -> Data | None:
    """Return the data with the features in a folder, or None where there are none with this key."""
    marker = folder / _MARKER
    if (read_or_none(marker) or {}).get("key") != key:
        return None
    found: dict[str, Samples] = {}
    for name, samples in data.splits.items():
        inputs = torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False))
        found[name] = make_samples(
            samples.ids, samples.targets, Rows(inputs), names=samples.names, rows_of=samples.rows_of
        )
    return _with_features(data, found)


def _with_features(data: Data, splits: dict[str, Samples]) -> Data:
    shape = tuple(splits["train"].fetch(np.arange(1)).shape[1:])
    changed: dict[str, Any] = {**splits, "shape": shape, "kind": "image" if len(shape) == 3 else "vector"}
    return replace(data, **changed, columns=())
