"""Run folders and their pages, written once for all tests of the report."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from potstill.report import write
from potstill.report.label_page import write_label_page


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"report_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The functions of make_run.py."""
    return _load("make_run")


@pytest.fixture(scope="session")
def recordings() -> ModuleType:
    """The functions of make_labels.py."""
    return _load("make_labels")


@pytest.fixture(scope="session")
def page(runs: ModuleType, recordings: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the report of one kind of run: ``page("images")`` is a path beside the run's other files.

    ``page("label-digits")`` is the label page of one kind of recording.
    """
    root = tmp_path_factory.mktemp("pages")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            if kind.startswith("label-"):
                recordings.make(kind.removeprefix("label-"), root / kind, hostile=runs.HOSTILE)
                made[kind] = write_label_page(root / kind)
                return made[kind]
            if kind == "hostile":
                hostile = runs.HOSTILE
                folder = runs.image_run(root / "hostile", seeds=1, classes=(hostile, "a & b", 'c"d', "e\u0301"), n=200)
            else:
                folder = runs.make(kind, root / kind)
            made[kind] = write(folder)
        return made[kind]

    return get
