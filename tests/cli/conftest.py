"""A pipeline that does nothing but answer, so that commands are tested alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import potstill
from potstill.cli import app

RECIPE = """\
data: {train: digits}
teacher: {model: cnn, train: {epochs: 3}}
student: {model: cnn, args: {width: 4}}
"""

EVALUATION: dict[str, Any] = {
    "task": "classification",
    "split": "test",
    "chosen_on": "validation",
    "headline_metric": "accuracy",
    "classes": ["a", "b"],
    "num_examples": 1234,
    "seeds": [0, 1, 2],
    "verdict": {
        "headline": "Distillation helped.",
        "sentences": ["It is 2.0 points better than training alone."],
        "helped": "yes",
        "fits_budget": None,
    },
    "models": {
        name: {
            "name": name,
            "metrics": {"accuracy": accuracy, "nll": float("nan")},
            "intervals": {"accuracy": [accuracy - 0.01, accuracy + 0.012]},
            "per_seed": {"accuracy": [accuracy]},
            "parameters": parameters,
            "flops": 10,
            "bytes": 4 * parameters,
            "latency_ms": latency,
        }
        for name, accuracy, parameters, latency in (
            ("teacher", 0.95, 1_000_000, {"1": {"p50": 12.345, "p95": 20.0}}),
            ("alone", 0.9, 25_000, None),
            ("distilled", 0.92, 25_000, {"1": {"p50": 0.1234, "p95": 0.2}}),
        )
    },
    "differences": {},
    "reliability": {},
    "confusion": {},
    "disagreements": [],
}


@dataclass
class FakeRun:
    folder: Path

    @property
    def report(self) -> Path:
        return Path(self.folder).absolute() / "report.html"

    @property
    def exported(self) -> dict[str, Path]:
        return {"onnx": Path(self.folder).absolute() / "export" / "student.onnx"}

    @property
    def refused_by_name(self) -> str:
        return "student.onnx differs by 3.0" if "refused" in Path(self.folder).name else ""

    @property
    def evaluation(self) -> Any:
        from potstill.evaluation import EvaluationResult

        return EvaluationResult.from_json(EVALUATION)

    def summary(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "models": EVALUATION["models"], "path": Path("x")}


@dataclass
class FakePipeline:
    """What the commands asked for, and what is answered."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exported: dict[str, Path] = field(default_factory=dict)

    def asked(self, name: str, **given: Any) -> None:
        self.calls.append((name, given))
        print("a library talks")
        if self.error is not None:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    state = FakePipeline()
    module: Any = ModuleType("potstill.pipeline")

    def run(recipe: Any, *, out: Path, base: Path, command: str) -> FakeRun:
        state.asked("run", recipe=recipe, out=out, base=base, command=command)
        return FakeRun(out)

    class Planned:
        def to_json(self) -> dict[str, Any]:
            return state.plan

    def plan(recipe: Any, *, out: Path, base: Path) -> Planned:
        state.asked("plan", recipe=recipe, out=out, base=base)
        return Planned()

    def evaluate(folder: Path) -> Any:
        state.asked("evaluate", folder=folder)
        return FakeRun(folder).evaluation

    def export(folder: Path, formats: Any) -> dict[str, Path]:
        state.asked("export", folder=folder, formats=formats)
        return state.exported

    def find_runs(folder: Path) -> list[dict[str, Any]]:
        state.asked("find_runs", folder=folder)
        return state.rows

    module.run, module.plan, module.evaluate, module.export, module.find_runs = run, plan, evaluate, export, find_runs
    module.Run = FakeRun
    monkeypatch.setitem(sys.modules, "potstill.pipeline", module)
    monkeypatch.setattr(potstill, "pipeline", module, raising=False)
    monkeypatch.delenv("POTSTILL_DEBUG", raising=False)
    monkeypatch.setenv("POTSTILL_QUIET", "")
    return state


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return Path("mine.yaml")


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    return Path("runs/one")


@pytest.fixture
def invoke() -> Callable[..., Any]:
    def call(*arguments: str, **options: Any) -> Any:
        result = CliRunner().invoke(app, list(arguments), prog_name="potstill", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def evaluation_json() -> dict[str, Any]:
    return json.loads(json.dumps(EVALUATION))
