"""A codec is known to its own file and to one line beside it: nobody else imports or compares one."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import potstill
from potstill.core.errors import UsageError
from potstill.recipe.yaml import loads
from potstill.store.codecs import CODECS

ROOT = Path(potstill.__file__).parent
ROOM = ROOT / "store" / "codecs"
DOCS = ROOT.parents[1] / "docs" / "guide"
CLASSES = {codec.__name__ for codec in CODECS.values()}


def compared(node: ast.AST) -> set[str]:
    """Names of codecs that a comparison, a case or a mapping names."""
    parts: list[ast.expr | None] = []
    if isinstance(node, ast.Compare) and "codec" in ast.unparse(node):
        parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]  # type: ignore[misc]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Dict) and len(node.keys) > 1:
        keys = {part.value for part in node.keys if isinstance(part, ast.Constant)}
        parts = [*node.keys] if len(keys & set(CODECS)) > 1 else []
    return {part.value for part in parts if isinstance(part, ast.Constant)} & set(CODECS)  # type: ignore[return-value]


def known_codecs(text: str) -> set[str]:
    """Codecs that a file knows by class or by name; docstrings and examples in words are no knowledge."""
    nodes = list(ast.walk(ast.parse(text)))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    reached = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return ((imported | reached) & CLASSES).union(*map(compared, nodes))


def test_nobody_outside_the_room_knows_a_codec() -> None:
    files = [path for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOM)]
    assert len(files) > 300
    known = {str(path.relative_to(ROOT)): known_codecs(path.read_text()) for path in files}
    assert {path: names for path, names in known.items() if names} == {}


def test_such_knowledge_is_seen() -> None:
    for text, names in {
        "from potstill.store.codecs import Full, Codec": {"Full"},
        "codecs.TopK(3)": {"TopK"},
        "if spec.codec.name == 'top_k': pass": {"top_k"},
        "section.codec in ('random', 'x')": {"random"},
        "words = {'full': 1, 'low_rank': 2}": {"full", "low_rank"},
        "tree['threshold'] == value": set(),
    }.items():
        assert known_codecs(text) == names, text


def test_every_codec_with_its_settings_is_in_the_guide() -> None:
    table = (DOCS / "recipes.md").read_text().split("### store.codecs")[1].split("\n### ")[0].replace("\n  ", " ")
    for name, codec in CODECS.items():
        (line,) = re.findall(rf"^- `{{codec: {name}.*$", table, re.MULTILINE)
        assert set(re.findall(r"\w+", line)) >= {setting.name for setting in fields(codec)}, name
        assert f"| `{name}` |" in (DOCS / "codecs.md").read_text()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{codec: topk}", "no codec 'topk'. Did you mean 'top_k'"),
        ("{codec: top_k}", "top_k needs k"),
        ("{codec: top_k, k: 3, size: 4}", "top_k does not take size, but k and bits"),
        ("{codec: top_k, k: many}", "k is 'many'. Input should be a valid integer"),
        ("{codec: threshold, size: 0}", "size=0 must be from 1"),
    ],
)
def test_a_recipe_is_refused_with_the_words_of_the_codec(section: str, words: str) -> None:
    recipe = "data: {train: digits}\nteacher: {model: small_cnn}\nstudent: {model: small_cnn}\n"
    with pytest.raises(UsageError, match=rf"recipe:4: store.codecs.logits: .*{re.escape(words)}"):
        loads(f"{recipe}store: {{codecs: {{logits: {section}}}}}\n")


def test_settings_that_are_not_given_count_as_null_so_that_results_of_before_keep_their_keys() -> None:
    recipe = "data: {train: digits}\nteacher: {model: small_cnn}\nstudent: {model: small_cnn}\n"
    bare, nulls = (
        loads(f"{recipe}store: {{codecs: {{logits: {section}}}}}\n")
        for section in ("{codec: top_k, k: 20}", "{codec: top_k, k: 20, rank: null, layer: null, dtype: null}")
    )
    assert bare == nulls
    written = {"codec": "top_k", "dtype": None, "k": 20, "size": None, "bits": None, "draws": None}
    assert bare.store.codecs["logits"].model_dump() == {**written, "systematic": None, "rank": None, "layer": None}
