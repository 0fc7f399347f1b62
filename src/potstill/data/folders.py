"""Which files lie in the class folders of a folder: each once, whatever links lead to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from potstill.core.errors import DataError
from potstill.core.text import counted
from potstill.data.files import not_a_file
from potstill.tasks.base import Finding
from potstill.tasks.labels import in_order

_LISTED = 3


@dataclass(frozen=True)
class Listing:
    """The files of class folders.

    Attributes:
        classes: names of the class folders, in order.
        names: paths of the files from the root, those of one class after the other.
        strange: what a path is instead of a file, by its name; such names are among ``names``.
        others: how many files have another suffix or lie beside the class folders.
        findings: what was remarkable about links.

    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    strange: dict[str, str]
    others: int
    findings: tuple[Finding, ...]


def list_files(root: Path, suffixes: frozenset[str], only: str | None = None) -> Listing:
    """List the files of each class folder; hidden files and folders are passed over.

    What really lies in the folder comes first, then what links lead to; so a link into a folder above itself ends, and
    a file that can be reached in several ways is there once, under its real name.

    Args:
        root: the folder with a folder for each class.
        suffixes: which files are wanted, in lower case.
        only: the one class folder to look at; all when absent.

    Raises:
        DataError: a folder cannot be read.

    """
    visible = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    entries = visible if only is None else [only]
    classes = [name for name in entries if (root / name).is_dir()]
    others = len(entries) - len(classes)
    real_root = Path(os.path.realpath(root))
    folders = {real_root}
    files: dict[Path, str] = {}

    again: list[str] = []
    moved: list[str] = []
    links: list[str] = []
    for name in classes:
        if (root / name).is_symlink():
            links.append(name)
            continue
        for path, is_link in _walk(real_root / name, folders):
            relative = path.relative_to(real_root).as_posix()
            if is_link:
                links.append(relative)
            elif path.suffix.lower() in suffixes:
                files[path] = relative
            else:
                others += 1
    while links:
        link = links.pop(0)
        target = Path(os.path.realpath(root / link))
        if target.is_dir():
            if target in folders or real_root.is_relative_to(target):
                again.append(link)
                continue
            for path, is_link in _walk(target, folders):
                relative = f"{link}/{path.relative_to(target).as_posix()}"
                if is_link:
                    links.append(relative)
                elif path.suffix.lower() in suffixes:
                    files.setdefault(path, relative)
                else:
                    others += 1
        elif Path(link).suffix.lower() not in suffixes:
            others += 1
        elif target in files:
            (again if files[target].split("/")[0] == link.split("/")[0] else moved).append(link)
        else:
            files[target] = link
    strange = {name: what for name in files.values() if (what := not_a_file(root / name))}
    classes = in_order(name for name in classes if name not in again)
    place = {name: index for index, name in enumerate(classes)}
    names = sorted(files.values(), key=lambda name: (place[name.split("/")[0]], _in_folders(name)))
    return Listing(tuple(classes), tuple(names), strange, others, _remarks(root, again, moved))


def _walk(start: Path, folders: set[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield visible paths below a folder and whether they are links; note the folders, and enter none twice."""

    def fail(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}.") from error

    for folder, below, names in os.walk(start, onerror=fail):
        folders.add(Path(folder))
        visible = sorted(name for name in below if not name.startswith("."))
        linked = [name for name in visible if Path(folder, name).is_symlink()]
        below[:] = [name for name in visible if name not in linked and Path(folder, name) not in folders]
        yield from ((Path(folder, name), True) for name in linked)
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder, name)
                yield path, path.is_symlink()


def _in_folders(name: str) -> list[tuple[bool, str]]:
    """Sort files before the folders beside them."""
    parts = PurePosixPath(name).parts
    return [*((True, part) for part in parts[:-1]), (False, parts[-1])]


def _remarks(root: Path, again: list[str], moved: list[str]) -> tuple[Finding, ...]:
    findings = []
    if again:
        text = (
            f"{root}: {counted(len(again), 'symbolic link leads', 'symbolic links lead')} to what is counted already "
            f"({_some(again)}); it is counted once."
        )
        findings.append(Finding("info", "repeated-links", text, len(again)))
    if moved:
        text = (
            f"{root}: {counted(len(moved), 'symbolic link leads', 'symbolic links lead')} to files of another class "
            f"({_some(moved)}); these are counted once, as what they really lie in."
        )
        findings.append(Finding("warning", "links-across-classes", text, len(moved)))
    return tuple(findings)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
