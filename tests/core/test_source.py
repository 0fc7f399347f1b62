"""Which of the user's files some code comes from, and whether they say something else."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.functions import find_function
from potstill.core.source import code_digest, digests, files_of, typed_code

CODE = b'"""What it is."""\nimport torch\n\n\ndef double(x):\n    """Twice."""\n    return 2 * x  # why\n'


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (b"import torch\ndef double(x):\n\treturn (2 * x)\n", True),
        (b"import torch\n\n# more\ndef double(\n    x,\n):\n    'Another.'\n    return 2*x\n", True),
        (CODE.replace(b"2 * x", b"3 * x"), False),
        (CODE.replace(b"    return 2 * x", b"    return 2 * x if x else 0"), False),
        (CODE.replace(b"import torch", b"import torch, os"), False),
        (CODE + b"double = abs\n", False),
        (b"def double(x: return", False),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(other: bytes, same: bool) -> None:
    assert (code_digest(other) == code_digest(CODE)) is same


def test_a_text_in_the_middle_of_a_function_is_code_and_a_docstring_alone_is_nothing() -> None:
    assert code_digest(b"def f():\n    x = 'a'\n    return x\n") != code_digest(
        b"def f():\n    x = 'b'\n    return x\n"
    )
    assert code_digest(b"class A:\n    'doc'\n") == code_digest(b"class A:\n    pass\n")
    assert code_digest(b"not python (") != code_digest(b"not python ((")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user's with a model, what it imports in every way, and files that nothing imports."""
    texts = {
        "nets.py": "import torch\nimport blocks\nfrom parts.core import *\ndef small(): return blocks.Block()\n",
        "blocks.py": "import torch, importlib\nclass Block(torch.nn.Module):\n    def forward(self, x):\n"
        "        from lazily import scale\n        return scale(x)\n",
        "lazily.py": "import importlib\ndef scale(x): return importlib.import_module('named').run(x)\n",
        "named.py": "def run(x): return x\n",
        "parts/__init__.py": "",
        "parts/core.py": "from . import inner\nfrom .inner import value\n",
        "parts/inner.py": "from .deep.more import far\nvalue = 1\n",
        "parts/deep/__init__.py": "",
        "parts/deep/more.py": "from .. import far\n",
        "parts/far.py": "",
        "unused.py": "1",
        "train.py": "import nets",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_all_files_that_a_function_reaches_by_imports_count_and_no_others(folder: Path) -> None:
    function = find_function("nets.py:small", base=folder)
    block = function()
    expected = ["blocks.py", "lazily.py", "named.py", "nets.py"]
    expected += ["parts/__init__.py", "parts/core.py", "parts/deep/__init__.py", "parts/deep/more.py"]
    expected += ["parts/far.py", "parts/inner.py"]
    assert list(digests(files_of(["nets.py:small"], base=folder), base=folder)) == expected
    assert list(digests(files_of([partial(function)], base=folder), base=folder)) == expected
    own = list(digests(files_of([type(block)], base=folder), base=folder))
    assert own == ["blocks.py", "lazily.py", "named.py"]
    assert files_of([Path, print, pytest.fixture], base=folder) == ()


def test_code_typed_into_a_notebook_has_no_file(tmp_path: Path) -> None:
    space: dict[str, object] = {"__name__": "notebook"}
    exec("class A: pass\ndef f(): pass", space)
    assert files_of([space["A"], space["f"]], base=tmp_path) == ()


def test_code_without_a_file_counts_by_what_it_does_and_reads() -> None:
    def code(text: str, **around: object) -> list[object]:
        space: dict[str, object] = {"__name__": "notebook", **around}
        exec(f"def inner(x): return 3 * x\n{text}", space)
        return typed_code(partial(space["loss"], beta=1))

    text = "def loss(x, *, beta, c=2):\n    'Says.'\n    return ALPHA * inner(x) + beta * c"
    first = code(text, ALPHA=0.5)
    assert first
    assert code(text.replace("    return", "\n    return"), ALPHA=0.5) == first
    edited = [
        code(text.replace(*pair), ALPHA=0.5) for pair in (("+ beta", "- beta"), ("c=2", "c=3"), ("inner(x)", "x"))
    ]
    edited += [code(text, ALPHA=0.6), code(text + "\ndef inner(x): return 4 * x", ALPHA=0.5)]
    assert all(one and one != first for one in edited)
    assert typed_code(partial(Path.exists)) == [[], []]
    assert typed_code(print) == []


SCALE = 1.0


def test_code_with_a_file_counts_by_what_it_reads_from_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_of(weight: Any, default: float = 1.0) -> Any:
        def loss(logits: Any, *, factor: float = default) -> Any:
            return weight * logits * factor

        return loss

    def scaled(logits: Any) -> Any:
        return SCALE * logits

    assert typed_code(loss_of(1.0)) == typed_code(loss_of(1.0)) != typed_code(loss_of(0.05))
    assert typed_code(loss_of(1.0)) != typed_code(loss_of(1.0, default=2.0))
    tensors = [typed_code(loss_of(torch.tensor([1.0, last]))) for last in (2.0, 2.0, 3.0)]
    assert tensors[0] == tensors[1] != tensors[2]
    before = typed_code(scaled)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert before != typed_code(scaled)


def test_an_edited_helper_is_read_again_in_the_same_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    text = (folder / "named.py").read_text()
    before = digests(files_of(["nets.py:small"], base=folder), base=folder)
    (folder / "blocks.py").write_text("import named\nBlock = named.run\n".replace("named.run", "lambda: named.run(1)"))
    assert find_function("nets.py:small", base=folder)() == 1
    (folder / "named.py").write_text(text.replace("return x", "return 7"))  # as long as another edit within a second
    assert find_function("nets.py:small", base=folder)() == 7
    (folder / "named.py").write_text(text.replace("return x", "return 8"))
    assert find_function("nets.py:small", base=folder)() == 8
    after = digests(files_of(["nets.py:small"], base=folder), base=folder)
    assert {name for name in after if after[name] != before[name]} == {"blocks.py", "named.py"}
    assert not list(folder.rglob("__pycache__"))
    assert not sys.dont_write_bytecode
