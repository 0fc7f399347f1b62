"""Names, signatures and texts of the losses."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch

from potstill import losses
from potstill.losses import sequence, sequence_sparse

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"alpha", "lambda", "lambda_", "lam", "ratio", "beta", "gamma", "tau", "reduction", "mask", "eps"}
NOT_TERMS = {"transforms", "sequence", "sequence_sparse"}
"""Public, but no terms of an objective: they change logits, or read hidden states and heads instead of signals."""
names = pytest.mark.parametrize("name", losses.__all__)


def public_functions(module):
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def signature(name):
    return inspect.signature(getattr(losses, name), eval_str=True)


def test_the_list_of_losses_is_what_the_modules_define():
    assert len(losses.__all__) >= 10
    assert losses.__all__ == sorted(losses.__all__)
    defined = set()
    for file in Path(losses.__file__).parent.glob("[!_]*.py"):
        if file.stem in NOT_TERMS:
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                defined.add(node.name)
    assert defined == set(losses.__all__)


@names
def test_order_student_then_teacher_then_targets_then_options(name):
    parameters = list(signature(name).parameters.values())
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    options = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert len(positional) + len(options) == len(parameters)
    assert re.fullmatch(r"student_([a-z_]+)( teacher_\1)?( targets)?", " ".join(positional))
    assert len(positional) >= 2
    assert all(signature(name).parameters[p].default is inspect.Parameter.empty for p in positional)
    assert options[-1].name == "where"
    assert options[-1].default is None
    assert signature(name).return_annotation is torch.Tensor


@names
def test_no_forbidden_option_names(name):
    allowed = {"beta"} if name == "jsd" else set()
    assert not (set(signature(name).parameters) & FORBIDDEN) - allowed


@names
def test_docstring_follows_the_template(name):
    text = inspect.getdoc(getattr(losses, name))
    order = ["Args:", "Returns:", "Raises:", "Relations:", "Example:", "Paper:", "Deviations:"]
    places = [text.find(part) for part in order]
    assert -1 not in places
    assert places == sorted(places)
    assert "\n    " in text[: places[0]], "the formula stands indented before Args"
    for parameter in signature(name).parameters:
        assert re.search(rf"^    {parameter}: ", text[places[0] : places[1]], re.MULTILINE)
    assert re.search(r"\(b,\)|\(\.\.\.\)", text[places[1] : places[2]])
    paper = text[places[5] : places[6]]
    assert re.search(r"\b(1[789]|20)\d\d\b", paper)
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|no arXiv", paper)
    assert re.search(r"batch of 1", text[places[1] :], re.IGNORECASE)


def test_docstring_examples_run():
    ran = 0
    for name in losses.__all__:
        (example,) = doctest.DocTestFinder(recurse=False).find(getattr(losses, name), name)
        assert len(example.examples) >= 3, name
        result = doctest.DocTestRunner(verbose=False).run(example)
        assert result.failed == 0, name
        ran += 1
    assert ran == len(losses.__all__)


def test_every_loss_has_its_section_in_the_documentation():
    pages = sorted((ROOT / "docs/methods/losses").glob("*.md"))
    assert len(pages) >= 5
    sections = [re.findall(r"^## `(\w+)`$", page.read_text(encoding="utf-8"), re.MULTILINE) for page in pages]
    assert all(found == sorted(found) for found in sections)
    fused = [name for module in (sequence, sequence_sparse) for name in public_functions(module)]
    assert len(fused) == 13
    assert sorted(name for found in sections for name in found) == sorted([*losses.__all__, *fused])
    index = (ROOT / "docs/methods/losses.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", index, re.MULTILINE) == losses.__all__


def test_losses_import_only_torch_and_core():
    files = list(Path(losses.__file__).parent.glob("*.py"))
    assert len(files) >= 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert re.match(
                    r"(__future__|collections|itertools|math|typing|torch|potstill\.core|potstill\.losses)\b", module
                ), (file, module)


def test_code_on_the_pages_runs():
    blocks = [
        block
        for page in sorted((ROOT / "docs/methods/losses").glob("*.md"))
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        exec(block, {})
