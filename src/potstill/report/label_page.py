"""The label page: what a recording of a teacher's answers is worth, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import PotstillError, UsageError
from potstill.core.files import read_json, write_text
from potstill.core.text import printable_parts
from potstill.evaluation.labelling import LabelFacts
from potstill.report import label_figures as figures
from potstill.report import numbers
from potstill.report.answers import short
from potstill.report.figures import Figure
from potstill.report.headline import KeyNumber
from potstill.report.label_tables import (
    class_scores,
    class_table,
    fidelity_table,
    judged_split,
    pairs_table,
    reasons_table,
    share,
    size,
    temperature_table,
    text_table,
    value_scores,
    views_table,
)
from potstill.report.page import fill, typeset
from potstill.report.pictures import data_uri, is_pictures
from potstill.tasks import headline

Numbers = Mapping[str, Any]

TEMPLATE = "label.html.jinja"
MOST_NAMED = 5
FACTS, SAMPLES, PAGE, DATA = "label.json", "label-samples.npz", "label.html", "data.json"


@dataclass(frozen=True)
class Sample:
    """One sample of a list: what it is labelled, and what the teacher says."""

    name: str
    picture: str
    label: str
    label_note: str
    teacher: str
    teacher_note: str


def write_label_page(folder: Path) -> Path:
    """Write ``label.html`` into the folder of a recording: one file that needs no network and no other file.

    Use it at the end of a recording, or again after ``label.json`` changed. Pictures of the samples are shown when
    ``label-samples.npz`` lies beside it: ``ids`` (m,) int64 and ``images`` (m, h, w, c) uint8, of the samples that
    `LabelFacts.shown_ids` names; samples without one are listed without a picture.

    Args:
        folder: holds ``label.json``, what `LabelFacts.to_json` returned.

    Returns:
        The path of the page.

    Raises:
        UsageError: there is no ``label.json``.
        PotstillError: a file is damaged, or a package of the extra ``report`` is not installed.

    """
    folder = Path(folder)
    source = folder / FACTS
    if not source.is_file():
        raise UsageError(f"{folder} has no {FACTS}. Pass the folder of a recording that 'potstill label' finished.")
    try:
        facts = LabelFacts.from_json(printable_parts(read_json(source)))
    except (ValueError, TypeError) as error:
        raise PotstillError(f"{source} is damaged ({error}). Run 'potstill label' again to write it anew.") from error
    path = folder / PAGE
    write_text(path, fill(TEMPLATE, content(facts, _pictures(folder / SAMPLES), _of_data(folder / DATA))))
    return path


def _of_data(path: Path) -> list[Mapping[str, str]]:
    """Return what the data check warned of."""
    findings = read_json(path)["findings"] if path.is_file() else []
    return [finding for finding in findings if finding["level"] == "warning"]


def content(
    facts: LabelFacts, pictures: Mapping[int, str], of_data: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Return everything the template shows, as plain values; an absent part is None or empty."""
    warnings = [*facts.warnings, *of_data]
    train = facts.splits.get("train")
    labelled = train is not None and "accuracy" in train
    classifies = bool(facts.classes) and train is not None
    stop = sum(finding["level"] == "stop" for finding in facts.warnings)
    return {
        "name": facts.name,
        "classifies": bool(facts.classes),
        "values": any("r2" in row for row in facts.fidelity),
        "headline": typeset(facts.headline),
        "stop": stop,
        "num_warnings": len(warnings) - stop,
        "warnings": [{**finding, "message": typeset(finding["message"])} for finding in warnings],
        "hopes": [typeset(sentence) for sentence in facts.hopes],
        "keys": key_numbers(facts),
        "information": [figures.entropy_figure(train)] if classifies and train else [],
        "temperatures": temperature_table(facts),
        "storage": storage_facts(facts),
        "kept": list(facts.kept),
        "fidelity": fidelity_table(facts),
        "codecs": figures.codec_figure(facts.fidelity),
        "seen": facts.seen,
        "labelled": labelled,
        "scores": class_scores(facts) if classifies else value_scores(facts) if facts.splits else None,
        "score_figures": figures.teacher_figures(facts.splits) if classifies else figures.value_figures(facts.splits),
        "views": views_table(facts),
        "confusion": _confusion(facts) if classifies else None,
        "pairs": pairs_table(facts) if classifies else None,
        "by_class": class_table(facts) if classifies else None,
        "num_classes": len(facts.classes),
        "mistakes": [
            _sample(facts, one, pictures, "", numbers.score("accuracy", one["probability"])) for one in facts.mistakes
        ],
        "wrong": figures.wrong_figure(train) if classifies and labelled and train else None,
        "label_errors": facts.label_errors,
        "unjudged": _unjudged(facts),
        "estimated": "" if facts.label_errors is None else share(facts.label_errors["estimated_share"]),
        "suspects": [
            _sample(facts, one, pictures, share(one["of_label"]), share(one["of_teacher"]))
            for one in (facts.label_errors or {"worst": ()})["worst"]
        ],
        "residuals": [_residual(one, pictures) for one in facts.residuals],
        "text": text_table(facts.text) if facts.text else None,
        "reasons": reasons_table(facts.text) if facts.text else None,
        "lengths": figures.length_figure(facts.text) if facts.text else None,
        "model_name": numbers.model_name,
    }


def key_numbers(facts: LabelFacts) -> list[KeyNumber]:
    """Return the four tiles under the headline; the first is the widest."""
    stored, item = facts.stored, "token" if facts.stored["num_items"] else "answer"
    each = stored["bytes_per_item"] if stored["num_items"] else stored["bytes_per_answer"]
    found = [_first(facts), KeyNumber(f"Each {item} takes", size(each), _times(stored["times_smaller"]))]
    if facts.classes:
        bits, most = facts.splits["train"]["entropy_bits"], float(np.log2(len(facts.classes)))
        note = f"entropy, of {numbers.significant(most)} possible"
        found.append(KeyNumber("Beyond the class", f"{numbers.significant(bits, 2)} bits", note))
    if facts.text is not None and facts.text["money"] is not None:
        found.append(KeyNumber("Cost", f"{facts.text['money']:,.2f}", "in the unit of the prices"))
    if stored["rate"] is not None:
        rate = f"{numbers.count(round(stored['rate']))}/s"
        found.append(KeyNumber("Recorded", rate, _took(stored["seconds"])))
    answers = facts.num_samples * facts.num_views
    found.append(KeyNumber("On disk", size(stored["num_bytes"]), f"{answers:,} answer{'' if answers == 1 else 's'}"))
    found.append(KeyNumber("Samples", f"{facts.num_samples:,}", ""))
    return found[:4]


def _times(smaller: float | None) -> str:
    if smaller is None:
        return ""
    if smaller < 1.05:
        return "no smaller than float32"
    return f"{smaller:,.{0 if smaller >= 10 else 1}f}{numbers.TIMES} smaller than float32"


def _took(seconds: float | None) -> str:
    return "answers" if seconds is None or seconds < 1 else f"answers, {numbers.seconds(seconds)} in all"


def _first(facts: LabelFacts) -> KeyNumber:
    held, train = facts.splits.get("validation"), facts.splits.get("train")
    metric = headline(facts.task)
    for scores, place, other in ((held, "validation", train), (train, "training", None)):
        if scores is not None and metric in scores:
            note = f"95{numbers.THIN}% interval {numbers.interval(metric, tuple(scores[f'{metric}_interval']))}"
            if other is not None and metric in other:
                note += f" · {numbers.score(metric, other[metric])} on training samples"
            label = f"Teacher's {numbers.in_prose(metric)} on {scores['num']:,} {place} samples"
            return KeyNumber(label, numbers.score(metric, scores[metric]), note)
    views = f"{numbers.TIMES} {facts.num_views} views" if facts.num_views > 1 else "no labels to compare with"
    return KeyNumber("Asked", f"{facts.num_samples:,} samples", "" if facts.text is not None else views)


def storage_facts(facts: LabelFacts) -> list[tuple[str, str]]:
    """Return what was recorded and what it takes: label and text."""
    stored = facts.stored
    found = [
        ("Samples", f"{facts.num_samples:,}"),
        ("Views of each", f"{facts.num_views:,}"),
        ("On disk", size(stored["num_bytes"])),
        ("A sample and view", size(stored["bytes_per_answer"])),
    ]
    if stored["num_items"]:
        found += [("Tokens", f"{stored['num_items']:,}"), ("A token", size(stored["bytes_per_item"]))]
    if stored["full_bytes"]:
        found.append(("As full float32", size(stored["full_bytes"])))
    if stored["seconds"] is not None:
        found.append(("Time", numbers.seconds(stored["seconds"])))
    if stored["rate"] is not None:
        found.append(("Rate", f"{numbers.count(round(stored['rate']))} answers a second"))
    return found


def _confusion(facts: LabelFacts) -> Figure | None:
    split = judged_split(facts)
    if not split:
        return None
    return figures.confusion_figure(facts.splits[split]["confusion"], facts.classes, figures.PLACES[split])


def _sample(facts: LabelFacts, one: Numbers, pictures: Mapping[int, str], label_note: str, teacher_note: str) -> Sample:
    return Sample(
        name=_name(one),
        picture=pictures.get(one["id"], ""),
        label=str(facts.classes[one["label"]]),
        label_note=label_note,
        teacher=str(facts.classes[one["teacher"]]),
        teacher_note=teacher_note,
    )


def _residual(one: Numbers, pictures: Mapping[int, str]) -> Sample:
    label, teacher = (", ".join(numbers.significant(v) for v in one[key][:4]) for key in ("label", "teacher"))
    gaps = [answer - wanted for answer, wanted in zip(one["teacher"], one["label"], strict=True)]
    told = ", ".join(("+" if gap > 0 else "") + numbers.significant(gap) for gap in gaps[:4])
    return Sample(_name(one), pictures.get(one["id"], ""), label, "", teacher, told)


def _name(one: Numbers) -> str:
    return short(str(one["name"]), 40) if one["name"] else f"id {one['id']}"


def _pictures(path: Path) -> dict[int, str]:
    """Return id -> picture as a data URI; empty where there are no pictures."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids, images = archive["ids"], archive["images"]
    except (ValueError, KeyError, OSError) as error:
        raise PotstillError(f"{path} is damaged ({error}). Run 'potstill label' again to write it anew.") from error
    return _drawn(ids.tolist(), images) if is_pictures(images) and len(ids) == len(images) else {}


def _drawn(ids: Sequence[int], images: np.ndarray[Any, Any]) -> dict[int, str]:
    return {int(key): data_uri(pixels) for key, pixels in zip(ids, images, strict=True)}


def _unjudged(facts: LabelFacts) -> str:
    """Return the classes whose labels are not judged, some of them by name."""
    numbers = (facts.label_errors or {}).get("unjudged", ())
    named = ", ".join(facts.classes[number] for number in numbers[:MOST_NAMED])
    more = f" and {len(numbers) - MOST_NAMED} more classes" if len(numbers) > MOST_NAMED else ""
    return f"{named}{more}"
