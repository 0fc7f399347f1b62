"""``potstill init``: flags, questions, and never overwriting by accident."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.recipe.presets import PRESETS, starting_recipe
from potstill.recipe.yaml import read

Invoke = Callable[..., Any]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_write_a_commented_valid_recipe(invoke: Invoke) -> None:
    result = invoke("init", "--task", "digits")
    assert result.exit_code == 0
    assert Path("recipe.yaml").read_text() == starting_recipe(PRESETS[0])
    assert result.stdout == "wrote recipe.yaml\nnext: potstill plan recipe.yaml, then potstill run recipe.yaml\n"


def test_flags_fill_the_recipe(invoke: Invoke) -> None:
    result = invoke("init", "--task", "images", "--data", "photos", "--teacher", "mine.py:build", "--weights", "t.pt",
                    "--student", "resnet8", "--out", "deep/photos.yaml")  # fmt: skip
    recipe = read("deep/photos.yaml")
    assert (recipe.data.train, recipe.teacher.model, recipe.teacher.weights) == ("photos", "mine.py:build", "t.pt")
    assert recipe.student.model == "resnet8"
    assert "note: photos does not exist yet" in result.stdout
    assert "note: t.pt does not exist yet" in result.stdout


def test_existing_paths_are_written_as_the_recipe_sees_them(invoke: Invoke, tmp_path: Path) -> None:
    Path("table.csv").touch()
    Path("mine.py").touch()
    result = invoke("init", "--task", "table", "--data", "table.csv", "--teacher", "mine.py:build", "-o", "a/b.yaml")
    recipe = read("a/b.yaml")
    assert (recipe.data.train, recipe.teacher.model) == ("../table.csv", "../mine.py:build")
    assert "note" not in result.stdout
    absolute = str(tmp_path / "table.csv")
    invoke("init", "--task", "table", "--data", absolute, "-o", "a/c.yaml")
    assert read("a/c.yaml").data.train == absolute


def test_it_refuses_to_overwrite(invoke: Invoke) -> None:
    Path("recipe.yaml").write_text("mine")
    result = invoke("init", "--task", "digits")
    assert result.exit_code == 2
    assert "recipe.yaml is there already" in result.stderr
    assert Path("recipe.yaml").read_text() == "mine"
    assert invoke("init", "--task", "digits", "--force").exit_code == 0
    assert read("recipe.yaml").data.train == "digits"


def test_without_a_terminal_it_needs_the_task(invoke: Invoke) -> None:
    for arguments in ([], ["--data", "x.csv"]):
        result = invoke("init", *arguments)
        assert result.exit_code == 2
        assert "needs --task" in result.stderr
        assert "digits, images, table, regression" in result.stderr
    result = invoke("init", "--task", "digit")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: There is no starting recipe 'digit'. Did you mean 'digits'?\n",
    )


def test_schema_is_json_for_editors(invoke: Invoke) -> None:
    schema = json.loads(invoke("init", "--schema").stdout)
    assert set(schema["required"]) == {"data", "teacher", "student"}
    assert not Path("recipe.yaml").exists()


CONTROL_C = "\x03"


def talk(answers: list[str]) -> tuple[str, int]:
    """Run ``potstill init`` on a terminal of its own, answering every question as it comes."""
    main, worker = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill.cli", "init"],
        stdin=worker,
        stdout=worker,
        stderr=worker,
        close_fds=True,
        # A test run in the background may ignore interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(worker)
    shown, waiting, interrupts = "", list(answers), 0
    while True:
        if not select.select([main], [], [], 0.5 if interrupts else 20)[0]:
            # A signal between the question and the wait for its answer is only seen when the wait ends.
            if not 0 < interrupts < 20:
                break
            interrupts += 1
            process.send_signal(signal.SIGINT)
            continue
        try:
            piece = os.read(main, 4096).decode()
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if waiting and shown.endswith(": "):
            answer = waiting.pop(0)
            if answer == CONTROL_C:
                interrupts = 1
                process.send_signal(signal.SIGINT)
            else:
                os.write(main, answer.encode())
    os.close(main)
    assert waiting == []
    return shown, process.wait(timeout=20)


def test_it_asks_on_a_terminal() -> None:
    shown, code = talk(["tabel\n", "table\n", "people.csv\n", "\n", "big.safetensors\n", "small.py:make\n"])
    assert code == 0
    assert "Did you mean 'table'?" in shown
    recipe = read("recipe.yaml")
    assert (recipe.data.train, recipe.teacher.model, recipe.teacher.weights, recipe.student.model) == (
        "people.csv",
        "mlp",
        "big.safetensors",
        "small.py:make",
    )


def test_an_interrupt_at_a_question_writes_nothing() -> None:
    shown, code = talk(["table\n", CONTROL_C])
    assert code == 130
    assert "interrupted" in shown
    assert not Path("recipe.yaml").exists()
