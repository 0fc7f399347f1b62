"""The commands and options are a promise: a change here is a change users see."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import potstill
from potstill.cli import app

SURFACE = {
    "": ["--help", "--install-completion", "--show-completion", "--version", "-h"],
    "init": ["--data", "--force", "--help", "--out", "--schema", "--student", "--task", "--teacher", "--weights",
             "-h", "-o"],
    "plan": ["--help", "--json", "--out", "--quiet", "--set", "--terms", "--untrusted", "-h", "-o", "-q", "-s",
             "RECIPE"],
    "label": ["--help", "--json", "--out", "--quiet", "--set", "--shard", "--untrusted", "-h", "-o", "-q", "-s",
              "RECIPE"],
    "run": ["--help", "--json", "--out", "--quiet", "--set", "--untrusted", "-h", "-o", "-q", "-s", "RECIPE"],
    "evaluate": ["--help", "--json", "--untrusted", "-h", "RUN"],
    "export": ["--format", "--help", "--json", "--out", "--untrusted", "-f", "-h", "-o", "RUN"],
    "report": ["--help", "-h", "RUN"],
    "runs": ["--help", "--json", "-h", "DIR"],
    "doctor": ["--help", "--json", "-h"],
    "store": ["--help", "-h"],
    "store inspect": ["--help", "--json", "-h", "STORE"],
    "store verify": ["--help", "--json", "--quiet", "-h", "-q", "STORE"],
    "store merge": ["--help", "--json", "--move", "--quiet", "--verify", "-h", "-q", "OUT"],
    "store convert": ["--codec", "--help", "--quiet", "--seed", "--signal", "-c", "-h", "-q", "OUT", "STORE"],
    "store export": ["--help", "--quiet", "--signal", "-h", "-q", "OUT", "STORE"],
    "store import": ["--bits", "--classes", "--classes-column", "--codec", "--column", "--help", "--id-column",
                     "--probabilities", "--quiet", "--signal", "--tokens-column", "--top-k", "-c", "-h", "-q", "FILE",
                     "OUT"],
    "store push": ["--help", "--quiet", "-h", "-q", "STORE", "URL"],
}  # fmt: skip


def help_of(invoke: Callable[..., Any], command: str) -> str:
    result = invoke(*command.split(), "--help", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return str(result.stdout)


def test_the_set_of_commands_is_frozen() -> None:
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert commands == ["init", "plan", "label", "run", "evaluate", "export", "report", "runs", "doctor"]
    groups = {group.name or group.typer_instance.info.name: group.typer_instance for group in app.registered_groups}
    assert list(groups) == ["store"]
    below = [
        f"{name} {command.name or command.callback.__name__}"
        for name, group in groups.items()
        for command in group.registered_commands
        if command.callback
    ]
    assert sorted(SURFACE) == sorted(["", *commands, *groups, *below])


@pytest.mark.parametrize("command", SURFACE, ids=lambda name: name or "potstill")
def test_the_set_of_options_is_frozen(invoke: Callable[..., Any], command: str) -> None:
    text = help_of(invoke, command)
    found: set[str] = set()
    for line in re.findall(r"^  (-\S.*|[A-Z]+ <.*)$", text, re.MULTILINE):
        names = re.split(r"\s{2,}", line)[0]
        found.update(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", names))
        found.update(re.findall(r"^[A-Z]+", line))
    assert sorted(found) == SURFACE[command]


@pytest.mark.parametrize("command", [name for name in SURFACE if name])
def test_every_help_has_examples_of_its_own_command(invoke: Callable[..., Any], command: str) -> None:
    text = help_of(invoke, command)
    if command == "store":  # its commands have examples
        return
    examples = text.split("Examples:\n")[1].split("\n\n")[0].splitlines()
    assert examples
    for line in examples:
        assert line.startswith(f"    potstill {command}"), line
        # Every option in an example exists.
        own = line.split("&&")[0]
        assert set(re.findall(r"(?<!\S)-{1,2}[a-z][a-z-]*", own)) <= set(SURFACE[command])


def test_options_have_help(invoke: Callable[..., Any]) -> None:
    for command in SURFACE:
        for line in help_of(invoke, command).splitlines():
            if re.match(r"^  -", line):
                assert re.search(r"\S\s{2,}\S", line), f"{command}: {line}"


def test_version(invoke: Callable[..., Any]) -> None:
    assert invoke("--version").stdout == f"potstill {potstill.__version__}\n"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom potstill.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'psutil'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "heavy: []"
    # Not a benchmark: ten times the usual time, so that only a heavy import fails here.
    assert time.perf_counter() - started < 2.0


def test_the_module_form_works() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "potstill.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Usage: potstill [OPTIONS] COMMAND")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from potstill.cli import main; main()"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "_POTSTILL_COMPLETE": f"source_{shell}"},
    )
    assert f"complete_{shell}" in result.stdout


def test_completion_knows_the_commands() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from potstill.cli import main; main()"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "_POTSTILL_COMPLETE": "complete_bash", "COMP_WORDS": "potstill e",
             "COMP_CWORD": "1"},
    )  # fmt: skip
    assert result.stdout.split() == ["evaluate", "export"]


def test_one_file_a_command() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        original = inspect.unwrap(command.callback)
        file = Path(inspect.getsourcefile(original) or "")
        assert file.name == f"{original.__name__}.py"
        assert file.parent.name == "cli"
