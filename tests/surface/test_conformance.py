"""The public conformance suite: its list is whole, potstill passes all of it, and it sees what is wrong in others."""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from potstill import losses

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "conformance"
ROWS = 35
RIVALS = {"torchdistill", "keras", "modelopt", "textbrewer", "trl", "liger"}

WRONG = """
import sys
sys.path.insert(0, {tools!r})
import torch
from serve import NotApplicableError, serve

CLAIMS = ["soft", "divergence", "minimum", "shift", "temperature", "classes", "samples", "logits"]

def losses():
    return [dict(name="wrong", call="wrong(student, teacher, T={{T}})", link="", reads="logits", claims=CLAIMS)]

def loss(name, student, teacher, temperature=1.0, dtype="float32", keep=None):
    one = torch.tensor(student, dtype=getattr(torch, dtype), requires_grad=True)
    # Squared raw logits, summed over the batch, without T squared.
    value = ((one - torch.tensor(teacher, dtype=one.dtype) - 0.5) / temperature).square().sum()
    value.backward()
    return dict(value=float(value), gradient=one.grad.double().tolist())

def mixed(**arguments):
    raise TypeError("unsupported operand")

def train(**arguments):
    print("noise on standard output")
    return dict(call="fit", link="", weights=[1.0 + arguments["accumulate"]], moved=True, student_modes=[True, False],
                student_forwards=2.0, teacher_forwards=4, teacher_noisy=["drop"], teacher_changed=["norm.running_mean"],
                teacher_gradients=["head.weight"])

def projector():
    raise NotApplicableError("none")

def jsd(**arguments):
    sys.exit(3)

serve("0", dict(losses=losses, loss=loss, mixed=mixed, train=train, projector=projector, jsd=jsd), {{}})
"""


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"benchmarks.conformance.{name}")


def test_the_list_of_invariants_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    invariants = module("invariants", monkeypatch).INVARIANTS
    assert len(invariants) == ROWS
    assert len({row.name for row in invariants}) == ROWS
    for row in invariants:
        assert row.what.endswith("."), row.name
        assert row.why.endswith("."), row.name


def test_every_tool_has_an_adapter_and_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = module("environments", monkeypatch).TOOLS
    assert {tool.name for tool in tools} == {"potstill", *RIVALS}
    for tool in tools:
        assert tool.adapter.is_file()
        if tool.name != "potstill":
            pins = tool.pins.read_text().splitlines()
            assert pins[0] == "torch==2.13.0"
            assert all("==" in pin for pin in pins)
            assert any(pin.lower().replace("_", "-").startswith(f"{tool.distribution}==") for pin in pins), tool.name


def test_rival_adapters_do_not_use_potstill() -> None:
    files = [path for path in (SUITE / "tools").glob("*.py") if path.name != "potstill_tool.py"]
    assert len(files) == len(RIVALS) + 2
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not [name for name in imported if name.split(".")[0] in ("potstill", "benchmarks")], path.name


def test_notes_are_about_rows_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {row.name for row in module("invariants", monkeypatch).INVARIANTS} | {"projector call", "projector link"}
    noted = 0
    for path in (SUITE / "tools").glob("*_tool.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOTES":
                assert isinstance(node.value, ast.Dict)
                keys = {ast.literal_eval(key) for key in node.value.keys if key}
                assert keys <= names, path.name
                noted += len(keys)
    assert noted >= 10


def test_potstill_passes_everything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.conformance", "--only", "potstill", "--json"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=300,
    )  # fmt: skip
    cells = json.loads(done.stdout)
    assert len(cells) == ROWS, done.stderr
    wrong = [
        (cell["invariant"], probe["call"], probe["observed"], probe["expected"])
        for cell in cells
        for probe in cell["probes"]
        if not probe["passed"]
    ]
    assert wrong == []
    assert {cell["invariant"]: cell["reason"] for cell in cells if cell["status"] != "pass"} == {}
    assert sum(len(cell["probes"]) for cell in cells) > 150
    assert done.returncode == 0


def test_every_loss_that_reads_a_teacher_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reads = {
        name
        for name in losses.__all__
        if any(word.startswith("teacher_") for word in inspect.signature(getattr(losses, name)).parameters)
    }
    assert len(reads) >= 7
    adapter = module("adapter", monkeypatch).Adapter
    script = SUITE / "tools" / "potstill_tool.py"
    with adapter("potstill", script, Path(sys.executable), tmp_path / "log") as tool:
        asked = {loss["name"] for loss in tool.losses()}
        assert asked | set(tool.call("elsewhere")) == reads


def test_a_tool_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = module("run", monkeypatch)
    tables = module("tables", monkeypatch)
    script = tmp_path / "wrong_tool.py"
    script.write_text(WRONG.format(tools=str(SUITE / "tools")))
    adapter = module("adapter", monkeypatch).Adapter
    with adapter("wrong", script, Path(sys.executable), tmp_path / "log") as tool:
        cells = {row.name: run.check(row, tool) for row in run.INVARIANTS if row.name != "jsd_has_no_jump"}
        dead = run.check(next(row for row in run.INVARIANTS if row.name == "jsd_has_no_jump"), tool)
    failed = {name for name, cell in cells.items() if cell.status == "FAIL"}
    assert failed == {
        "soft_loss_is_the_divergence", "gradient_keeps_its_size_at_any_temperature", "hard_weight_zero_is_the_limit",
        "smallest_where_student_is_teacher", "zero_where_student_is_teacher", "batch_is_the_mean_of_its_samples",
        "whole_numbers_are_numbers", "teacher_is_in_evaluation_mode", "teacher_is_unchanged",
        "teacher_gets_no_gradient",
        "student_trains_in_training_mode", "one_student_forward_a_batch", "accumulation_changes_nothing",
        "last_batch_counts_too", "impossible_classes_change_nothing",
    }  # fmt: skip
    assert cells["projector_is_trained"].status == cells["masked_is_left_out"].status == "not applicable"
    assert dead.status == "not run"
    page = tables.markdown(run.INVARIANTS, [*cells.values(), dead], "here")
    assert "| **FAIL** |" in page
    assert "TypeError: unsupported operand" in page


def test_a_tool_that_cannot_be_imported_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adapters = module("adapter", monkeypatch)
    script = tmp_path / "absent_tool.py"
    script.write_text("import no_such_package")
    with pytest.raises(adapters.DeadToolError, match="No module named 'no_such_package'"):
        adapters.Adapter("absent", script, Path(sys.executable), tmp_path / "log")


def test_the_published_table_is_of_this_list(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [row.name for row in module("invariants", monkeypatch).INVARIANTS]
    with (SUITE / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["invariant"], row["tool"]) for row in rows} == {
        (name, tool) for name in names for tool in {"potstill", *RIVALS}
    }
    assert {row["status"] for row in rows if row["tool"] == "potstill"} == {"pass"}
    page = (SUITE / "results.md").read_text()
    assert all(f"## {name}\n" in page for name in names)


def test_another_convention_is_told_from_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    convention, probe = module("conventions", monkeypatch).convention, module("probes", monkeypatch).Probe
    zero, broken = probe("f", "", "0", "a refusal", False), probe("g", "", "nan", "a refusal", False)
    assert "0 is the right value" in convention("torchdistill", "one_class_is_refused", [zero])
    assert convention("torchdistill", "one_class_is_refused", [zero, broken]) == ""  # one defect is enough
    assert convention("potstill", "one_class_is_refused", [zero]) == ""
    assert "left to the caller" in convention("trl", "gradient_keeps_its_size_at_any_temperature", [broken])
    assert convention("keras", "gradient_keeps_its_size_at_any_temperature", [broken]) == ""


def test_the_written_table_is_the_one_that_its_observations_give(monkeypatch: pytest.MonkeyPatch) -> None:
    run, tables, rows = (module(name, monkeypatch) for name in ("run", "tables", "invariants"))
    cells = run.kept()
    assert len(cells) == ROWS * (1 + len(RIVALS))
    assert tables.csv_text(cells) == (SUITE / "results.csv").read_text()
    assert tables.markdown(rows.INVARIANTS, cells, "Python 3.11.7") == (SUITE / "results.md").read_text()
    others = {(cell.tool, cell.invariant) for cell in cells if cell.status == "other convention"}
    assert ("trl", "jsd_has_no_jump") in others
    assert ("potstill", "jsd_has_no_jump") not in others
    explained = {(tool, one.invariant) for one in module("conventions", monkeypatch).CONVENTIONS for tool in one.tools}
    assert others == explained - {("torchdistill", "one_class_is_refused")}  # there one of its losses gives NaN


def test_a_benchmark_of_one_shape_keeps_the_rows_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fused = importlib.import_module("fused_vocabulary")
    monkeypatch.setattr(fused, "RESULTS", tmp_path / "rows.csv")

    def row(shape: str, dtype: str, valid: float, seconds: float) -> dict[str, object]:
        return {"shape": shape, "dtype": dtype, "valid": valid, "median_seconds": seconds}

    fused.write([row("qwen", "float32", 0.5, 1.0), row("qwen", "float32", 1.0, 2.0), row("llama", "float32", 0.5, 3.0)])
    fused.write([row("qwen", "float32", 0.5, 9.0), row("qwen", "bfloat16", 0.5, 4.0)])
    with (tmp_path / "rows.csv").open() as file:
        kept = {(one["shape"], one["dtype"], one["valid"]): one["median_seconds"] for one in csv.DictReader(file)}
    assert kept == {
        ("qwen", "float32", "0.5"): "9.0",
        ("qwen", "float32", "1.0"): "2.0",
        ("llama", "float32", "0.5"): "3.0",
        ("qwen", "bfloat16", "0.5"): "4.0",
    }
