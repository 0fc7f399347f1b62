"""``potstill doctor``: honest about what is there and exact about what is missing."""

from __future__ import annotations

import json
import platform
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import doctor

Invoke = Callable[..., Any]


def test_it_reports_this_machine(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("POTSTILL_SOMETHING", "x")
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["python"] == platform.python_version()
    assert found["torch"]["version"] == torch.__version__
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["torch"]["devices"][0] == "cpu"
    assert set(found["torch"]["bfloat16"]) == {"cpu", "cuda"}
    assert found["disk_free_bytes"] > 0
    assert found["memory_bytes"] > 2**28
    assert found["environment"]["POTSTILL_SOMETHING"] == "x"
    shown = invoke("doctor").stdout
    for words in (platform.python_version(), torch.__version__, "bfloat16", "POTSTILL_SOMETHING", "free disk"):
        assert words in shown


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    expected = {
        name: sorted(package.split(">")[0].split("[")[0].replace("_", "-").lower() for package in packages)
        for name, packages in declared.items()
        if name not in ("all", "dev")
    }
    assert len(expected) == 12
    found = doctor.extras()
    assert {name: sorted(package.replace("_", "-").lower() for package in found[name]) for name in found} == expected


def test_a_missing_package_gets_its_pip_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def without_onnx(name: str) -> str:
        if name in ("onnx", "onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without_onnx)
    shown = invoke("doctor").stdout
    assert 'missing onnx, onnxruntime: pip install "potstill[export]"' in shown


def test_a_broken_torch_is_reported_not_raised(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "cannot be imported: ModuleNotFoundError" in result.stdout
