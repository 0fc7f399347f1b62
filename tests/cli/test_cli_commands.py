"""What each command asks of the pipeline, what it prints and how it ends."""

from __future__ import annotations

import errno
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import potstill
from potstill.cli import main, show
from potstill.core.errors import PotstillError, TrainingError, UsageError

Invoke = Callable[..., Any]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# ---- run


def test_run_reads_the_recipe_and_names_the_folder_after_it(
    fake: Any, recipe: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/potstill", "run", "my recipe.yaml"])
    result = invoke("run", str(recipe), "--set", "training.epochs=3", "-s", "seed=7")
    assert result.exit_code == 0
    [(name, asked)] = fake.calls
    assert name == "run"
    assert (asked["recipe"].training.epochs, asked["recipe"].seed) == (3, 7)
    assert asked["out"] == Path("runs/mine")
    assert asked["base"] == Path()
    assert asked["command"] == "potstill run 'my recipe.yaml'"


def test_run_takes_paths_from_the_folder_of_the_recipe(fake: Any, recipe: Path, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    recipe.rename(tmp_path / "deep" / "mine.yaml")
    assert invoke("run", "deep/mine.yaml", "--out", "elsewhere").exit_code == 0
    assert (fake.calls[0][1]["base"], fake.calls[0][1]["out"]) == (Path("deep"), Path("elsewhere"))


def test_run_prints_an_aligned_table_where_there_is_no_terminal(fake: Any, recipe: Path, invoke: Invoke) -> None:
    result = invoke("run", str(recipe))
    assert result.stdout.splitlines() == [
        "a library talks",
        "                   accuracy    95% interval  parameters     MB     ms",
        "teacher               95.0%  94.0% to 96.2%   1,000,000   4.00   12.3",
        "student alone         90.0%  89.0% to 91.2%      25,000  0.100      -",
        "student distilled     92.0%  91.0% to 93.2%      25,000  0.100  0.123",
        "1,234 test samples, students averaged over 3 seeds; MB of the weights, ms in PyTorch",
        "",
        "Distillation helped.",
        "  It is 2.0 points better than training alone.",
        "",
        f"report  {Path('runs/mine/report.html')}",
        f"onnx    {Path('runs/mine/export/student.onnx')}",
    ]


def test_run_draws_a_table_on_a_terminal(
    fake: Any, recipe: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "is_terminal", lambda: True)
    shown = invoke("run", str(recipe)).stdout
    assert "───" in shown
    assert shown.count("student distilled") == 1
    assert "91.0% to 93.2%" in shown


def test_json_is_one_object_and_nothing_else(fake: Any, recipe: Path, invoke: Invoke) -> None:
    result = invoke("run", str(recipe), "--json")
    value = strict_json(result.stdout)
    assert value["folder"] == str(Path("runs/mine"))
    assert value["models"]["teacher"]["metrics"] == {"accuracy": 0.95, "nll": None}
    assert "a library talks" in result.stderr
    assert os.environ["POTSTILL_QUIET"] == "1"


def test_quiet_prints_nothing(fake: Any, recipe: Path, invoke: Invoke) -> None:
    result = invoke("run", str(recipe), "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert os.environ["POTSTILL_QUIET"] == "1"


def test_only_the_first_of_several_processes_prints(
    fake: Any, recipe: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert invoke("run", str(recipe)).stdout == "a library talks\n"


def test_a_refused_file_still_shows_the_numbers_and_fails(fake: Any, recipe: Path, invoke: Invoke) -> None:
    result = invoke("run", str(recipe), "--out", "runs/refused")
    assert result.exit_code == 1
    assert "Distillation helped." in result.stdout
    expected = "error: student.onnx differs by 3.0 Everything else is finished: runs/refused/report.html\n"
    assert result.stderr == expected
    result = invoke("run", str(recipe), "--out", "runs/refused", "--json")
    assert result.exit_code == 1
    assert strict_json(result.stdout)["models"]


# ---- errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(PotstillError("It broke."), 1), (TrainingError("It broke."), 1), (UsageError("It broke."), 2)],
)
def test_mistakes_are_one_message_without_a_traceback(
    fake: Any, recipe: Path, invoke: Invoke, error: PotstillError, exit_code: int
) -> None:
    fake.error = error
    result = invoke("run", str(recipe))
    assert result.exit_code == exit_code
    assert result.stderr == "error: It broke.\n"


def test_debug_shows_the_traceback(fake: Any, recipe: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.error = PotstillError("It broke.")
    monkeypatch.setenv("POTSTILL_DEBUG", "1")
    result = invoke("run", str(recipe))
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith("error: It broke.\n")


def test_an_unexpected_error_says_how_to_see_more(fake: Any, recipe: Path, invoke: Invoke) -> None:
    fake.error = KeyError("oops")
    result = invoke("run", str(recipe))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: unexpected KeyError: 'oops'\n")
    assert "POTSTILL_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (TrainingError("It broke."), "TrainingError", 1),
        (UsageError("It broke."), "UsageError", 2),
        (OSError(errno.ENOSPC, "no", "x"), "PotstillError", 1),
        (KeyError("It broke."), "Unexpected", 1),
        (KeyboardInterrupt(), "Interrupted", 130),
    ],
)
def test_with_json_an_error_is_one_object_on_standard_output(
    fake: Any, recipe: Path, invoke: Invoke, error: BaseException, kind: str, exit_code: int
) -> None:
    fake.error = error
    result = invoke("run", str(recipe), "--json")
    found = strict_json(result.stdout)["error"]
    assert (found["type"], found["exit_code"], result.exit_code) == (kind, exit_code, exit_code)
    assert "It broke." in found["message"] or kind in ("PotstillError", "Interrupted")
    assert "error" not in result.stderr


@pytest.mark.parametrize("words", [["plan"], ["plan", "x.yaml", "--jsn"], ["plann", "x.yaml"], ["store", "verify"]])
def test_wrong_usage_is_an_object_too(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["potstill", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert strict_json(capsys.readouterr().out)["error"]["type"] == "UsageError"
    monkeypatch.setattr(sys, "argv", ["potstill", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Usage: potstill" in capsys.readouterr().err


def test_foreign_text_is_shown_and_not_obeyed(fake: Any, recipe: Path, invoke: Invoke) -> None:
    fake.error = PotstillError("said \x1b]0;title\x07 \ud800")
    assert invoke("run", str(recipe)).stderr == "error: said \\x1b]0;title\\x07 \\ud800\n"
    fake.error = KeyError("\x1b[2J")
    assert "\x1b" not in invoke("run", str(recipe)).stderr


def test_an_error_reaches_any_terminal_and_its_exit_code_survives_closed_streams(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'potstill'; from potstill.cli import main; main()"]
    (tmp_path / "r.yaml").write_text("naïve: 1\n", encoding="utf-8")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = subprocess.run([*command, "plan", "r.yaml"], cwd=tmp_path, env=plain, capture_output=True, check=False)
    assert found.returncode == 2
    assert "naïve: unknown key" in found.stderr.decode()
    closed = shlex.join([*command, "plan", "r.yaml"]) + " >&- 2>&-"
    assert subprocess.run(closed, shell=True, cwd=tmp_path, check=False).returncode == 2
    if Path("/dev/full").is_char_device():
        with Path("/dev/full").open("w") as full:
            found = subprocess.run(
                [*command, "runs", "."], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert found.returncode == 1
        assert b"disk is full" in found.stderr


def test_an_interrupt_says_how_to_continue(
    fake: Any, recipe: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.error = KeyboardInterrupt()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/potstill", "run", "my recipe.yaml"])
    result = invoke("run", str(recipe))
    assert result.exit_code == 130
    assert "the same command continues: potstill run 'my recipe.yaml'" in result.stderr


def test_wrong_recipes_and_options_exit_2_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("data: {train: digits}\ntraning: {epochs: 3}\n")
    code = (
        "import sys; from potstill.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    for arguments, words in (
        (["run", "bad.yaml"], "bad.yaml:2: traning: unknown key. Did you mean 'training'?"),
        (["plan", "bd.yaml"], "Did you mean 'bad.yaml'?"),
        (["run", "bad.yaml", "--sett", "x"], "--sett"),
        (["evaluate", "nowhere"], "error: There is no run nowhere."),
        (["runs"], "error: There is no folder runs."),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.stdout == "2 False\n", arguments
        assert words in result.stderr
        assert "Traceback" not in result.stderr


# ---- plan


PLAN = {
    "folder": "runs/mine",
    "stages": [
        {"name": "teacher", "what": "train the teacher", "reused": True, "seconds": None, "why": ""},
        {"name": "store", "what": "record the teacher", "reused": False, "seconds": 3.21, "why": ""},
        {"name": "seed 0", "what": "train the student", "reused": False, "seconds": 200.0, "why": ""},
    ],
    "models": {
        "teacher": {"parameters": 1_000_000, "flops": 2_500_000, "bytes": 4_000_000},
        "student": {"parameters": 25_000, "flops": 130_000, "bytes": 100_000},
    },
    "teacher": {"value": 0.317, "sentence": "The teacher is right on 31.7 % of 180 validation samples."},
    "objective": ["0.9 x forward_kl (temperature 4)"],
    "store": {"bytes": 57_000, "views": 1, "path": "runs/mine/store"},
    "data": {
        "train": 1258, "validation": 180, "test": 359, "shape": [1, 8, 8], "classes": ["0", "1"],
        "findings": [{"level": "warning", "code": "shift", "message": "Labels differ.", "count": 3}],
    },
    "disk_free": 82_500_000_000,
    "warnings": ["The teacher looks untrained."],
}  # fmt: skip


def test_plan_prints_what_will_happen(fake: Any, recipe: Path, invoke: Invoke) -> None:
    fake.plan = PLAN
    result = invoke("plan", str(recipe), "--set", "seeds=2", "--out", "there")
    assert fake.calls[0][1]["recipe"].seeds == 2
    assert fake.calls[0][1]["out"] == Path("there")
    assert result.stdout.splitlines() == [
        "a library talks",
        "data: 1,258 train, 180 validation, 359 test samples of shape 1 x 8 x 8",
        "  warning: Labels differ.",
        "",
        "model    parameters  MFLOP     MB",
        "teacher   1,000,000   2.50   4.00",
        "student      25,000  0.130  0.100",
        "The teacher is right on 31.7 % of 180 validation samples.",
        "objective: 0.9 x forward_kl (temperature 4)",
        "",
        "stage    what it does              time",
        "teacher  train the teacher     finished",
        "store    record the teacher       3.2 s",
        "seed 0   train the student   3 min 20 s",
        "about 3 min 23 s in all",
        "",
        "store: 0.0570 MB for 1 view of each sample, in runs/mine/store",
        "disk: 82.5 GB free",
        "warning: The teacher looks untrained.",
    ]


def test_plan_as_json_and_in_silence(fake: Any, recipe: Path, invoke: Invoke) -> None:
    fake.plan = PLAN
    assert strict_json(invoke("plan", str(recipe), "--json").stdout) == PLAN
    assert invoke("plan", str(recipe), "--quiet").stdout == ""
    fake.error = PotstillError("No disk.")
    assert invoke("plan", str(recipe), "--quiet").exit_code == 1


# ---- evaluate, export, report, runs


def test_evaluate(fake: Any, finished: Path, invoke: Invoke) -> None:
    assert "student distilled" in invoke("evaluate", str(finished)).stdout
    assert fake.calls == [("evaluate", {"folder": finished})]
    assert strict_json(invoke("evaluate", str(finished), "--json").stdout)["num_examples"] == 1234


@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_a_run_folder_is_checked_first(fake: Any, finished: Path, invoke: Invoke, command: str) -> None:
    result = invoke(command, "runs/ones")
    assert (result.exit_code, result.stderr) == (2, "error: There is no run runs/ones. Did you mean 'one'?\n")
    result = invoke(command, "runs")
    assert result.exit_code == 2
    assert "runs is not a run folder: it has no run.json. Runs in it: one." in result.stderr
    assert fake.calls == []


def test_export(fake: Any, finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "runs" / "one" / "student.onnx"
    file.write_bytes(b"x" * 250_000)
    fake.exported = {"onnx": file}
    assert invoke("export", str(finished)).stdout.splitlines()[1:] == [
        "format     MB  file",
        "onnx    0.250  runs/one/student.onnx",
    ]
    result = invoke("export", str(finished), "--format", "onnx", "-f", "onnx-int8", "--out", "deploy", "--json")
    assert strict_json(result.stdout) == {"exported": {"onnx": str(Path("deploy/student.onnx"))}}
    assert (tmp_path / "deploy" / "student.onnx").stat().st_size == 250_000
    assert [call[1]["formats"] for call in fake.calls] == [None, ["onnx", "onnx-int8"]]
    result = invoke("export", str(finished), "--format", "tflite")
    assert result.exit_code == 2
    assert "onnx-int8" in result.stderr


def test_report(finished: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(folder: Path) -> Path:
        written.append(folder)
        return folder.absolute() / "report.html"

    pipeline: Any = ModuleType("potstill.pipeline")
    pipeline.rewrite_report = write
    monkeypatch.setitem(sys.modules, "potstill.pipeline", pipeline)
    monkeypatch.setattr(potstill, "pipeline", pipeline, raising=False)
    assert invoke("report", str(finished)).stdout == f"{Path('runs/one/report.html')}\n"
    assert written == [finished]


ROWS = [
    {"name": "one", "folder": "runs/one", "status": "finished", "task": "classification", "metric": "accuracy",
     "teacher": 0.95, "alone": 0.9, "distilled": 0.92, "verdict": "yes", "bytes": 100_000,
     "created": "2026-11-21T02:35:00+00:00"},
    {"name": "two", "folder": "runs/two", "status": "unfinished", "task": "regression", "metric": None,
     "teacher": None, "alone": None, "distilled": None, "verdict": None, "bytes": None, "created": None},
]  # fmt: skip


def test_runs(fake: Any, finished: Path, invoke: Invoke) -> None:
    assert invoke("runs").stdout.splitlines()[1:] == ["There are no runs in runs."]
    fake.rows = ROWS
    assert invoke("runs", "runs").stdout.splitlines()[1:] == [
        "run  status      metric    teacher  alone  distilled  distillation     MB  created",
        "one  finished    accuracy    95.0%  90.0%      92.0%  helped        0.100  2026-11-21 02:35",
        "two  unfinished  R2              -      -          -  -                 -  -",
    ]
    assert strict_json(invoke("runs", "--json").stdout) == {"runs": ROWS}


def test_runs_show_balanced_accuracy_and_auc_where_they_were_measured(
    fake: Any, finished: Path, invoke: Invoke
) -> None:
    scored = {"distilled": {"accuracy": 0.92, "balanced_accuracy": 0.8123, "auc": 0.9714}}
    fake.rows = [{**ROWS[0], "metrics": scored, "seeds": 1}, ROWS[1]]
    assert invoke("runs", "runs").stdout.splitlines()[1:] == [
        "run  status      metric    teacher  alone  distilled  balanced accuracy    AUC  distillation     MB  created",
        "one  finished    accuracy    95.0%  90.0%      92.0%              81.2%  0.971  better        0.100  "
        "2026-11-21 02:35",
        "two  unfinished  R2              -      -          -                  -      -  -                 -  -",
    ]


# ---- a real terminal


def test_a_real_terminal_gets_rich_tables_and_a_pipe_does_not() -> None:
    code = "from potstill.cli import show; show.table(['name', 'n'], [['[red]x', '1']], right=[1])"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert piped == "name    n\n[red]x  1\n"
    main, worker = pty.openpty()
    with os.fdopen(worker, "w"):
        subprocess.run([sys.executable, "-c", code], stdout=worker, check=True, env={**os.environ, "TERM": "xterm"})
    drawn = os.read(main, 4096).decode()
    os.close(main)
    assert "───" in drawn
    assert "[red]x" in drawn


@pytest.mark.parametrize("command", ["plan", "run", "label"])
def test_an_untrusted_recipe_runs_nothing(recipe: Path, invoke: Invoke, command: str) -> None:
    Path("mine.py").write_text("from pathlib import Path\nPath('it-ran').touch()\nmake = None\n")
    changes = ["--set", "student.model=mine.py:make", "--out", "runs/theirs"]
    result = invoke(command, str(recipe), *changes, "--untrusted")
    assert result.exit_code == 2
    assert "student.model: 'mine.py:make' is Python code to run" in result.stderr
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_an_untrusted_run_runs_nothing(fake: Any, finished: Path, invoke: Invoke, command: str) -> None:
    (finished / "recipe.yaml").write_text(
        "data: {train: digits}\nteacher: {model: cnn, train: {}}\nstudent: {model: 'mine.py:make'}\n"
    )
    result = invoke(command, str(finished), "--untrusted")
    assert (result.exit_code, fake.calls) == (2, [])
    assert "'mine.py:make' is Python code" in result.stderr
    assert invoke(command, str(finished)).exit_code == 0
