"""The page: everything a run folder says, in one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.files import write_text
from potstill.core.optional import require
from potstill.evaluation.verdict import baseline_of
from potstill.report import numbers
from potstill.report.answers import by_class, calibration, confusion, disagreements
from potstill.report.files import RunFiles, read_run
from potstill.report.headline import answer, budget_rows, key_numbers, steps
from potstill.report.learning import learning
from potstill.report.run_facts import (
    again,
    data_summary,
    facts,
    failed_stages,
    file_rows,
    finding_rows,
    split_rows,
    stage_rows,
    teacher_was_given,
    timestamp,
)
from potstill.report.scores import cost_figures, other_rows, score_figures, score_table
from potstill.tasks import headline, task_of

TEMPLATE = "report.html.jinja"
STYLE = "report.css"


def write(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder: one file that needs no network and no other file.

    Use it after a run, or again after the evaluation or the export of a run changed. Parts that the run does not
    have (no export, a teacher that was not trained here, not evaluated yet) are said to be missing, not drawn.

    Args:
        run_folder: the folder that a run wrote; only its files are read.

    Returns:
        The path of the page.

    Raises:
        UsageError: the folder is not a run folder.
        PotstillError: a file of the run is damaged, or a package of the extra ``report`` is not installed.

    """
    files = read_run(Path(run_folder))
    path = files.folder / "report.html"
    write_text(path, render(files))
    return path


def render(files: RunFiles) -> str:
    """Return the page of a run as HTML text."""
    return fill(TEMPLATE, content(files))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of this room as HTML text, with the style that all pages share."""
    jinja2: Any = require("jinja2", feature="writing the report", extra="report")
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (folder / STYLE).read_text(encoding="utf-8")
    return str(environment.get_template(template).render(style=style, **values))


def typeset(sentence: str) -> str:
    """Return a sentence with real minus signs, and with percent signs that stay on the line of their number."""
    return re.sub(r"(?<![\w.])-(?=\d)", numbers.MINUS, sentence.replace(" %", f"{numbers.THIN}%"))


def content(files: RunFiles) -> dict[str, Any]:
    """Return everything the template shows, as plain values; an absent part is None or empty."""
    evaluation = files.evaluation
    verdict = evaluation.verdict if evaluation else None
    return {
        "name": files.name,
        "has_classes": task_of(files.task).has_classes,
        "made": timestamp(files.run.get("finished") or files.run.get("created")),
        "verdict": verdict,
        "sentences": [typeset(sentence) for sentence in verdict.sentences] if verdict else [],
        "failed": failed_stages(files),
        "teacher_given": teacher_was_given(files),
        "answer": answer(evaluation) if evaluation else "",
        "verdict_warnings": [typeset(warning) for warning in verdict.warnings] if verdict else [],
        "evaluation": evaluation,
        "metric": numbers.metric(evaluation.headline_metric if evaluation else headline(files.task)),
        "file_metric": numbers.metric(headline(files.task)),
        "steps": steps(evaluation) if evaluation else [],
        "keys": key_numbers(files, evaluation) if evaluation else [],
        "budget": budget_rows(files),
        "table": score_table(files, evaluation) if evaluation else None,
        "others": other_rows(evaluation) if evaluation else [],
        "score_figures": score_figures(evaluation) if evaluation else [],
        "cost_figures": cost_figures(files, evaluation) if evaluation else [],
        "learning": learning(files),
        "calibration": calibration(evaluation) if evaluation else [],
        "confusion": confusion(evaluation) if evaluation else None,
        "by_class": by_class(evaluation) if evaluation else None,
        "disagreements": disagreements(files, evaluation) if evaluation else None,
        "exported": file_rows(files),
        "data": data_summary(files),
        "splits": split_rows(files),
        "findings": finding_rows(files),
        "warnings": [typeset(text) for text in files.warnings or ()],
        "stages": stage_rows(files),
        "facts": facts(files),
        "again": again(files),
        "recipe": files.recipe_text,
        "model_name": numbers.model_name,
        "short_name": numbers.short_name,
        "baseline": "alone" if evaluation is None else baseline_of(evaluation.models),
    }
