"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_pack() -> Path:
    """The folder of real data sets and checkpoints named by POTSTILL_DATA; the test is skipped without it."""
    folder = os.environ.get("POTSTILL_DATA")
    if not folder:
        pytest.skip("set POTSTILL_DATA to the folder of real data sets to run this test")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"POTSTILL_DATA={folder} is not a folder")
    return path
