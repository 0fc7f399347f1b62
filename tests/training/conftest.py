"""Toys for the tests of this room, as a fixture: test folders are not packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    path = Path(__file__).with_name("training_toys.py")
    spec = importlib.util.spec_from_file_location("training_toys", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
