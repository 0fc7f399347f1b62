"""The exported names, what importing them costs, the README and the examples."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import potstill
from potstill.cli import app
from potstill.recipe.yaml import loads

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run_python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
        timeout=300,
    )


def test_every_name_is_there_and_none_else() -> None:
    assert len(potstill.__all__) == 32
    assert len(potstill.__all__) <= 40
    for name in potstill.__all__:
        assert getattr(potstill, name) is not None, name
    assert dir(potstill) == sorted(potstill.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        potstill.no_such_name  # noqa: B018
    declared = set(re.findall(r" as (\w+)$", (ROOT / "src/potstill/__init__.py").read_text(), flags=re.MULTILINE))
    assert declared == set(potstill.__all__) - {"__version__"}


def test_every_name_is_documented() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    assert [name for name in potstill.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_version_is_the_packages_version() -> None:
    assert f'version = "{potstill.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("code", ["import potstill", "import potstill.cli", "from potstill.recipe.yaml import read"])
def test_importing_loads_no_torch(code: str) -> None:
    done = run_python(f"{code}\nimport sys\nprint([name for name in ('torch', 'numpy') if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_recipe_in_the_readme_is_a_recipe() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 15
    assert loads(blocks[0]).seeds == 3


def test_the_python_in_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 10
    done = run_python(blocks[0].replace('"epochs": 10', '"epochs": 1'), tmp_path)
    # One epoch may be too few for an int8 file; everything else must be there.
    assert (tmp_path / "runs/python-digits/report.html").is_file(), done.stderr
    assert (tmp_path / "runs/python-digits/export/student.onnx").is_file()


def test_the_commands_in_the_readme_exist() -> None:
    commands = set(re.findall(r"^    potstill (\w+)", README, flags=re.MULTILINE))
    assert commands == {"init", "plan", "label", "run", "runs", "evaluate", "doctor", "store"}
    for command in (*commands, "export", "report"):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    targets = set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE))
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in (*targets, "check"))


def test_links_in_the_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 12
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)", page.read_text())
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert broken == []


EXAMPLES = {
    "digits/recipe.yaml": ["--set", "seeds=1", "--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "own_model/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "tabular/recipe.yaml": [],
    "regression/recipe.yaml": [],
    "multilabel/recipe.yaml": ["--set", "training.epochs=4"],
    "back_to_teacher/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "blocks/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "chain/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "dot/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "onnx_teacher/recipe.yaml": ["--set", "training.epochs=1"],
    "estimator_teacher/recipe.yaml": ["--set", "training.epochs=1"],
    "features/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "input_gradients/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "nested/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "progressive/recipe.yaml": ["--set", "teacher.train.epochs=1", "--set", "training.epochs=1"],
    "average_teacher/recipe.yaml": ["--set", "training.epochs=1"],
    "many_teachers/recipe.yaml": [
        *("--set", "training.epochs=1", "--set", "teacher.members.0.train.epochs=1"),
        *("--set", "teacher.members.1.train.epochs=1", "--set", "teacher.members.2.train.epochs=1"),
    ],
    "mutual/recipe.yaml": ["--set", "training.epochs=1"],
    "self_distillation/recipe.yaml": ["--set", "training.epochs=1"],
}
# Needs the interpreter of another environment: tests/keras runs it. Has no student: test_label_text runs it.
ELSEWHERE = {"keras_teacher/recipe.yaml", "endpoint/recipe.yaml"}
EXPORTED = ("digits/recipe.yaml", "own_model/recipe.yaml", "tabular/recipe.yaml", "regression/recipe.yaml")
LOOSE = [
    "--set",
    "export.min_agreement=0",
    "--set",
    "export.max_accuracy_drop=0.99",
    "--set",
    "evaluation.latency=false",
    "--set",
    "budget.milliseconds=null",
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leave_charts_out: Callable[[pytest.MonkeyPatch], None],
) -> None:
    folder = tmp_path / "example"
    shutil.copytree(ROOT / "examples" / Path(example).parent, folder)
    for script in folder.glob("make_*.py"):
        assert run_python(f"import runpy; runpy.run_path({str(script)!r})").returncode == 0
    monkeypatch.chdir(folder)
    # Four examples export and draw; the others show ways to teach, and the rest is the same for all of them.
    if example not in EXPORTED:
        leave_charts_out(monkeypatch)
    exported = [] if example in EXPORTED else ["--set", "export.formats=[]"]
    arguments = ["run", "recipe.yaml", "--out", "runs/x", "--json", *EXAMPLES[example], *LOOSE, *exported]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert Path("runs/x/report.html").is_file()


def test_the_command_is_also_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["potstill", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("potstill", run_name="__main__")
    assert left.value.code == 0
    assert "measured, exported" in capsys.readouterr().out


def test_every_example_is_run() -> None:
    found = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.yaml")}
    assert found == set(EXAMPLES) | ELSEWHERE
    assert (ROOT / "examples/python/digits.py").read_text().count("potstill.distill") == 1


def test_the_loop_of_your_own_in_the_python_guide_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guide/python.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    done = run_python(blocks[1])
    assert done.returncode == 0, done.stderr
    assert "forward_kl" in done.stdout
