"""Who uses a model reads its facts: kinds of models are told apart in their own rooms only."""

from __future__ import annotations

import ast
from pathlib import Path

import potstill

ROOT = Path(potstill.__file__).parent
ROOMS = ("models", "teachers")


def kinds() -> set[str]:
    """Names of the classes of models: those of their rooms that have facts, or are torch modules.

    Architectures of the zoo are left out: one that learns or is written in a way of its own is known to that way.
    """
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.parent.name != "zoo"]
    trees = [ast.parse(path.read_text()) for path in files]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {
        node.name
        for node in classes
        if any(ast.unparse(base).endswith("Module") for base in node.bases)
        or any(isinstance(part, ast.FunctionDef) and part.name == "facts" for part in node.body)
        or any(isinstance(part, ast.AnnAssign) and ast.unparse(part.target) == "facts" for part in node.body)
    }


def told_apart(text: str, names: set[str]) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and len(node.args) == 2]
    asked = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")]
    parts = [part for node in asked for part in ast.walk(node.args[1])]
    found = {part.id for part in parts if isinstance(part, ast.Name)}
    return names & (found | {part.attr for part in parts if isinstance(part, ast.Attribute)})


def test_no_kind_of_model_is_asked_for_outside_its_room() -> None:
    names = kinds()
    assert {"LiveTeacher", "MergedTeacher", "ArrayModel", "TorchModel", "VotingTeacher", "Together"} <= names
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in ROOMS]
    assert len(files) > 150
    asked = {str(path.relative_to(ROOT)): told_apart(path.read_text(), names) for path in files}
    assert {path: found for path, found in asked.items() if found} == {}


def test_such_a_question_is_seen() -> None:
    text = "isinstance(x, str | LiveTeacher) or isinstance(x, (int, teachers.MergedTeacher)) or isinstance(Exits, type)"
    assert told_apart(text, kinds()) == {"LiveTeacher", "MergedTeacher"}
