"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Weights are compared bit for bit, and a training that chooses its threads by the clock adds up in another order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def leave_charts_out() -> Callable[[pytest.MonkeyPatch], None]:
    """Reports without charts: to draw them takes longer than a tiny training; tests/report does."""

    def leave_out(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("potstill.report.figures._svg", lambda *_, **__: "<svg></svg>")

    return leave_out


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
