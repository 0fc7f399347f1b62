"""``potstill export``: write the student of a run as files to deploy."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli import show
from potstill.cli.options import Json, RunFolder, Untrusted, check_run, existing_run


class Format(StrEnum):
    """A file format of the student."""

    onnx = "onnx"
    onnx_int8 = "onnx-int8"


def export(
    run: RunFolder,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="onnx or onnx-int8, several times for both.  [default: as the recipe says]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Also copy the files into this folder.")
    ] = None,
    json: Json = False,
    untrusted: Untrusted = False,
) -> None:
    """Write the student of a run as files to deploy.

    Each file is checked against the student and refused when it answers differently; an earlier good file then stays.

    \b
    Examples:
      potstill export runs/digits
      potstill export runs/digits --format onnx --out deploy
    """
    folder = existing_run(run)
    check_run(folder, untrusted=untrusted)
    with show.stdout_for_result(json):
        from potstill import pipeline

        written = pipeline.export(folder, [str(name) for name in formats] if formats else None)
    if out is not None:
        written = {name: _copied(file, out) for name, file in written.items()}
    if json:
        show.print_json({"exported": {name: str(path) for name, path in written.items()}})
        return
    rows = [[name, show.megabytes(path.stat().st_size), show.short(path)] for name, path in written.items()]
    show.table(["format", "MB", "file"], rows, right=[1])


def _copied(file: Path, folder: Path) -> Path:
    from potstill.core.files import atomic_path

    with atomic_path(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
    return folder / file.name
