"""Every warning of a job in one place: `plan` shows them, `run` and `label` print them, and the folder keeps them.

Who learns of something new that may spoil a result adds it to `warnings_of`, and it is told everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from potstill.core.errors import PotstillWarning
from potstill.core.files import read_json, write_json
from potstill.pipeline import stages
from potstill.pipeline.build import Job

FILE = "warnings.json"
"""The warnings of a run, as a list of texts, in its folder; the report shows them."""


def warnings_of(job: Job) -> tuple[str, ...]:
    """Return what may spoil a job's results and is known before anything is trained or asked.

    What a teacher's answers say is added by `pipeline.teacher_score`, because asking may take long.
    """
    return (
        *(finding.message for finding in job.data.findings if finding.level == "warning"),
        *stages.sampling_warnings(job),
    )


def begin_telling(folder: Path) -> None:
    """Forget what an earlier run in this folder warned of."""
    write_json(folder / FILE, [])


def tell(texts: Iterable[str], *, folder: Path | None = None) -> None:
    """Print warnings and keep them in a run folder, each once a run.

    Args:
        texts: the warnings; those that are kept in the folder already were told and are left out.
        folder: the run folder, in which `begin_telling` was called; without one they are only printed.

    """
    told: list[str] = read_json(folder / FILE) if folder is not None else []
    new = [text for text in dict.fromkeys(texts) if text not in told]
    if folder is not None and new:
        write_json(folder / FILE, [*told, *new])
    for text in new:
        # Without a registry: Python's own would show an equal warning of a second run in this process to nobody.
        warnings.warn_explicit(text, PotstillWarning, "potstill", 0, registry={})
