"""An interpreter with Keras and TensorFlow, and models made with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from potstill.teachers.keras_model import LOADER, PYTHON_VARIABLE


@pytest.fixture(scope="session")
def keras_python() -> str:
    """The interpreter named by POTSTILL_KERAS_PYTHON; without it a user's tests are skipped, and those of CI fail."""
    python = os.environ.get(PYTHON_VARIABLE)
    if python:
        return python
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{PYTHON_VARIABLE} is not set: CI must test Keras teachers; .ci/run makes the environment")
    pytest.skip(f"set {PYTHON_VARIABLE} to an interpreter with keras and tensorflow, see constraints/keras.txt")


@pytest.fixture(scope="session")
def models(keras_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, and of what Keras and the loader say of them; see make_models.py."""
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).parent / "make_models.py"
    example = Path(__file__).parents[2] / "examples" / "keras_teacher" / "train_teacher.py"
    command = [keras_python, str(script), str(LOADER), str(example), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder
