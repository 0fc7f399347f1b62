"""Teachers that are no models of a recipe: files and endpoints, opened, questioned and compared with the data.

What such a teacher answers with is settled here, on real samples, before anything expensive runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import random
from potstill.core.alike import apart
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.data import Data
from potstill.evaluation.predict import evaluating
from potstill.models import Preprocessor
from potstill.models.load import output_tensor
from potstill.pipeline.earlier import exported_in, open_student
from potstill.recipe import schema
from potstill.tasks import task_of
from potstill.teachers import TorchModel
from potstill.teachers.answers import Array, are_names, matched, no_logits, order_of, settle
from potstill.teachers.files import open_file
from potstill.teachers.files.columns import on_table
from potstill.teachers.foreign import ArrayModel, Opened, ReadAs, Reading, Wanted, raw_answers, source_of

PROBE = 64
"""Samples that a teacher is questioned about."""
ENOUGH = 2_000
"""Samples that it is questioned about where the first ones do not look like what they are said to be."""
AGAIN = 8
"""Samples that it is asked about once more, in a batch of another size."""
SAME = 1e-3
"""Share of the answers' spread by which two answers to the same batch may differ: rounding, but no randomness."""
ALIKE = 0.1
"""Share by which they may differ in another batch, where low precision rounds otherwise."""
EXACT = 1e-2
"""The same of torch models in full precision."""
_LISTED = 5


def is_foreign(section: schema.Teacher | schema.Member) -> bool:
    """Return whether a teacher is a file or an endpoint."""
    return section.file is not None or section.endpoint is not None


def describe_source(section: schema.Teacher | schema.Member) -> str:
    """Return what a teacher is, in a few words."""
    if section.endpoint is not None:
        return f"the endpoint {section.endpoint.model}"
    return Path(section.file).name if section.file is not None else section.model


def foreign_teacher(
    section: schema.Teacher | schema.Member,
    classes: Iterable[str] | None,
    place: str,
    data: Data,
    *,
    path: Path | None,
    preprocess: Preprocessor,
    views: int | None,
    id_column: str | None,
) -> TorchModel | ArrayModel:
    """Open a teacher that is a file or an endpoint.

    Args:
        section: the teacher.
        classes: the classes it knows, in the order of its outputs; None for all of the data's.
        place: the section's place in the recipe.
        data: what it is to teach.
        path: of its file.
        preprocess: what happens to its inputs first.
        views: augmented views that it will be asked about; 0 for always new ones, None for unchanged samples.
        id_column: the data's id column.

    Raises:
        PotstillError: a file that cannot be read or is for other data, answers of an unknown or another kind,
            samples without recorded answers.

    """
    names = tuple(data.classes if classes is None else classes)
    inputs = preprocess(data.train.fetch(np.arange(min(PROBE, len(data.train)))))
    wanted = Wanted(
        task=data.task,
        shape=tuple(inputs.shape[1:]),
        classes=names,
        num_outputs=data.num_outputs if classes is None else len(names),
        columns=data.columns,
    )
    opened = on_table(_opened(section, wanted, place, path=path, id_column=id_column), data.columns)
    if opened.lookup is not None:
        if section.preprocess != schema.Preprocess():
            raise TeacherError(f"{place}.preprocess: recorded answers are looked up by id and see no inputs. Drop it.")
        check_covers(opened, data, place=place, views=views)
    # Recorded answers are judged all of them: reading is free.
    asked = opened.everything
    if asked is None:
        raw, doubt = _questioned(opened, inputs, data.train.ids[: len(inputs)], place)
        opened = replace(opened, doubt=doubt)
    else:
        raw = asked
    if asked is None and opened.size_bytes is not None and _may_be_none(raw, section.answers):
        raw = _more(lambda batch: raw_answers(opened, batch, ()), preprocess, data)
    reading = read_answers(section, opened, raw, wanted, place)
    return source_of(opened, reading, preprocess)


def read_answers(
    section: schema.Teacher | schema.Member, opened: Opened, raw: Array, wanted: Wanted, place: str
) -> Reading:
    """Return how a teacher's answers become logits, by what the recipe, its file and the answers themselves say.

    Raises:
        TeacherError: they contradict each other, or say too little.

    """
    if wanted.values:
        if section.answers not in (None, "values"):
            raise TeacherError(f"{place}.answers: {section.answers} are for classes, and the task is {wanted.task}.")
        if raw.dtype.kind not in "fiu" or not np.isfinite(raw).all():
            raise TeacherError(f"{place}: {opened.name} answers with {raw.dtype} values that are not all numbers.")
        return Reading("values", wanted.num_outputs)
    refuse_other_answers(section, wanted.task, place)
    answers = settle(
        raw,
        section.answers,
        opened.answers,
        says=opened.says,
        place=place,
        what=opened.name,
        checked=section.answers_checked,
    )
    order, note = None, ""
    if opened.classes is not None:
        order, note = order_of(opened.classes, wanted.classes, place=place, what=opened.name)
    by_name = None
    if answers == "labels" and opened.classes is not None and raw.dtype.kind not in "OUS":
        by_name = matched(opened.classes, wanted.classes) is not None
    elif answers == "labels":
        by_name = are_names(raw, wanted.classes)
    return Reading(answers, wanted.num_outputs, wanted.classes, order, note, by_name)


def refuse_other_answers(section: schema.Teacher | schema.Member, task: str, place: str) -> None:
    """Refuse answers that are read as one distribution over the classes where each class is a yes or no of its own.

    Raises:
        TeacherError: the recipe does not say that these are logits.

    """
    foreign = is_foreign(section) and section.answers is None
    if not task_of(task).exclusive and (foreign or section.answers not in (None, "logits")):
        raise TeacherError(
            f"{place}.answers: {section.answers or 'not given'}; for task: {task} a teacher answers with a logit for "
            "each class, before the sigmoid. Let it answer so, and write 'answers: logits'."
        )


def read_as(
    section: schema.Teacher | schema.Member, model: nn.Module, classes: Iterable[str] | None, data: Data
) -> tuple[ReadAs, ...]:
    """Return what makes logits of a torch model's answers, as its recipe says; logits and values need nothing."""
    if section.answers is None or section.answers in ("logits", "values"):
        return ()
    names = tuple(data.classes if classes is None else classes)
    return (ReadAs(Reading(section.answers, len(names) or data.num_outputs, names), type(model).__name__),)


def check_logits(
    section: schema.Teacher | schema.Member,
    model: nn.Module,
    preprocess: Preprocessor,
    inputs: Tensor,
    *,
    place: str,
    data: Data,
) -> None:
    """Refuse a torch model that answers at random, or comes trained and does not answer with what its recipe says.

    A model that fails on the samples is left to the checks of both models, which come later and say more.

    Args:
        section: the teacher.
        model: it, as it is, before its answers are read.
        preprocess: what happens to its inputs first.
        inputs: (b, ...) real samples.
        place: the section's place in the recipe.
        data: what it is to teach.

    Raises:
        TeacherError: with the evidence.

    """
    values = not task_of(data.task).has_classes
    if values and section.answers not in (None, "values"):
        raise TeacherError(f"{place}.answers: {section.answers} are for classes, and the task is {data.task}.")
    refuse_other_answers(section, data.task, place)
    if any(nn.parameter.is_lazy(value) for value in model.parameters()):
        return
    what = f"the model {type(model).__name__}"
    try:
        raw, again, mixed = _asked_again(model, preprocess(inputs))
    except (PotstillError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return
    exact = all(value.dtype.itemsize >= 4 for value in model.parameters() if value.is_floating_point())
    check_repeated(raw, again, mixed, place=place, what=what, alike=EXACT if exact else ALIKE)
    if values or section.train is not None:
        return
    if _may_be_none(raw, section.answers):
        raw = _more(lambda batch: _ask(model, [batch])[0], preprocess, data)
    if section.answers is not None:
        settle(raw, section.answers, None, says="", place=place, what=what, checked=section.answers_checked)
        return
    doubt = no_logits(raw) if raw.ndim == 2 and raw.shape[1] > 1 else ""
    if doubt:
        raise TeacherError(
            f"{place}: the answers of {what} to {len(raw)} samples do not look like logits, which losses take: {doubt}"
        )


def _may_be_none(raw: Array, declared: str | None) -> bool:
    """Return whether answers that are said to be logits look like something else, so that more of them must be seen."""
    return declared in (None, "logits") and raw.dtype.kind == "f" and bool(no_logits(raw))


def _more(ask: Callable[[Tensor], Array], preprocess: Preprocessor, data: Data) -> Array:
    """Return raw answers to `ENOUGH` training samples, wherever they stand: a few may be alike by accident."""
    rows = np.sort(random.permutation(len(data.train), 0)[:ENOUGH])
    parts = [ask(preprocess(data.train.fetch(rows[low : low + PROBE]))) for low in range(0, len(rows), PROBE)]
    return np.concatenate(parts)


def _asked_again(model: nn.Module, inputs: Tensor) -> tuple[Array, Array, Array]:
    """Return a torch model's answers in evaluation mode: once, to the same batch again, and to a batch of some."""
    once, again, mixed = _ask(model, [inputs, inputs, inputs[-AGAIN:]])
    return once, again, mixed


def _ask(model: nn.Module, batches: Sequence[Tensor]) -> list[Array]:
    """Return a torch model's answers to some batches, in evaluation mode."""
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.inference_mode():
        answers = [output_tensor(model(batch.to(device))) for batch in batches]
    return [answer.float().cpu().numpy() for answer in answers]


def check_repeated(raw: Array, again: Array, mixed: Array, *, place: str, what: str, alike: float = ALIKE) -> None:
    """Refuse a teacher that does not say the same of the same samples.

    Args:
        raw: (n, ...) its answers.
        again: (n, ...) to the same batch once more.
        mixed: (m, ...) to the last m samples, in a batch of their own: of another size and with another first one.
        place: the teacher's place in the recipe.
        what: what it is called in messages.
        alike: share of the answers' spread by which they may differ in another batch.

    Raises:
        TeacherError: it answers at random, or one sample's answer depends on the others.

    """
    if raw.shape != again.shape or _differ(raw, again, SAME):
        raise TeacherError(
            f"{place}: {what} answers at random: the same {len(raw)} samples asked twice get different answers. "
            "Something in it stays random in evaluation mode (F.dropout without training=self.training, noise in "
            "forward, or it was saved in training mode). Make it deterministic: a teacher is recorded once."
        )
    if _differ(raw[-len(mixed) :], mixed, alike):
        raise TeacherError(
            f"{place}: {what} answers the same samples differently when they are asked in another batch. It "
            "was probably saved in training mode (dropout or batch norm still work on the batch): save it in "
            "evaluation mode."
        )


def _differ(first: Array, other: Array, share: float) -> bool:
    """Return whether answers differ by more than a share of their spread, or in their labels."""
    if first.dtype.kind != "f" or other.dtype.kind != "f":
        return bool(first.tolist() != other.tolist())
    return apart(first, other) > share


def check_covers(opened: Opened, data: Data, *, place: str, views: int | None) -> None:
    """Refuse recorded answers that lack training samples.

    Raises:
        TeacherError: with the number of missing samples and the first few.

    """
    if opened.covers is None:
        return
    if views is not None and not opened.has_views:
        raise TeacherError(
            f"{place}: {opened.name} has one answer for each sample, and data.augment shows the student changed "
            "samples. Drop data.augment, record the views with a column 'view', or use a teacher that can be asked."
        )
    if views == 0:
        raise TeacherError(f"{place}: recorded answers cannot be live: with live, every epoch sees new views.")
    ids = data.train.ids
    for view in range(views or 1):
        missing = np.flatnonzero(~opened.covers(ids, np.full(len(ids), view)))
        if len(missing):
            names = data.train.names
            shown = [
                f"{int(ids[row])}" + (f" ({names[row]})" if names is not None else "") for row in missing[:_LISTED]
            ]
            more = ", ..." if len(missing) > _LISTED else ""
            of_view = "" if views is None else f" of view {view}"
            raise TeacherError(
                f"{place}: {opened.name} has no answer{of_view} for {len(missing):,} of {len(ids):,} training samples; "
                f"their ids are {', '.join(shown)}{more}. Without data.id, a sample's id is its row number in "
                "data.train, counted from 0, or made from the path of its file."
            )


def _opened(
    section: schema.Teacher | schema.Member, wanted: Wanted, place: str, *, path: Path | None, id_column: str | None
) -> Opened:
    if section.endpoint is not None:
        return _endpoint(section.endpoint, wanted, place)
    if path is None:
        raise TypeError("a teacher that is a file needs its path")
    folder = exported_in(path)
    if folder is not None:
        return open_student(path, folder, section, wanted, place=place)
    return open_file(
        path,
        wanted,
        args=section.args,
        answers=section.answers,
        allow_pickle=section.allow_pickle,
        python=section.python,
        id_column=id_column,
        place=place,
    )


def _endpoint(endpoint: Any, wanted: Wanted, place: str) -> Opened:
    if endpoint.protocol == "openai":
        raise UsageError(
            f"{place}.endpoint.protocol: openai endpoints answer text and are for 'potstill label' of a text recipe. "
            "For class probabilities of samples use a server that speaks open-inference."
        )
    from potstill.teachers.open_inference import open_inference_ask

    model = open_inference_ask(
        endpoint.url,
        endpoint.model,
        input=endpoint.input,
        output=endpoint.output,
        headers=endpoint.headers,
        key_env=endpoint.key_env,
        batch_size=endpoint.batch_size,
        concurrency=endpoint.concurrency,
        requests_per_minute=endpoint.requests_per_minute,
        retries=endpoint.retries,
        timeout=endpoint.timeout,
    )
    named = [one.name for one in model.facts.outputs]
    if endpoint.output is None and len(named) > 1:
        raise TeacherError(f"{place}.endpoint: {endpoint.model} has the outputs {', '.join(named)}. Name one: output.")
    return Opened(
        name=f"{endpoint.model} at {endpoint.url}",
        digest=model.digest,
        size_bytes=None,
        ask=model.ask,
        answers="values" if wanted.values else None,
        says=f"the task is {wanted.task}",
        runtime="its server",
    )


def _questioned(opened: Opened, inputs: Tensor, ids: Array, place: str) -> tuple[Array, str]:
    """Return raw answers to some samples, after asking about some of them once more, and what is odd about them."""
    try:
        raw = raw_answers(opened, inputs, ids)
        again = raw_answers(opened, inputs, ids) if opened.size_bytes is not None else raw  # an endpoint may cost
        mixed = raw_answers(opened, inputs[-AGAIN:], ids[-AGAIN:])
    except PotstillError as error:
        raise type(error)(f"{place}: {error}") from error
    except Exception as error:
        raise TeacherError(
            f"{place}: {opened.name} failed on samples of shape {tuple(inputs.shape)}: {type(error).__name__}: {error}"
        ) from error
    if raw.ndim not in (1, 2) or len(raw) != len(inputs):
        raise TeacherError(
            f"{place}: {opened.name} answers {len(inputs)} samples with an array of shape {raw.shape}; expected one "
            "row for each sample. Choose another output (args.output), or export the model without what comes after."
        )
    check_repeated(raw, again, mixed, place=place, what=opened.name)
    doubt = ""
    same = raw[-len(mixed) :]
    if _differ(same, mixed, EXACT):
        doubt = (
            f"{opened.name} answers the same samples up to {apart(same, mixed):.1%} of their spread differently "
            "in another batch. A quantised model may; any other one reads the other samples of a batch, "
            "and is then recorded with accidental neighbours."
        )
    return raw, doubt
