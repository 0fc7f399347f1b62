"""No module needs itself: neither at import nor later, where a function imports what it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module below ``root`` by its dotted name."""
    trees = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker looks at."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from walk(other)
            continue
        yield child
        yield from walk(child)


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """For every module those that it imports, in functions too; ``from package import module`` means the module."""
    needs: dict[str, set[str]] = {}
    for name, tree in trees.items():
        named: set[str] = set()
        for node in walk(tree):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative imports are not followed here"
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {path if path in trees else str(node.module) for path in full}
        needs[name] = {path for path in named if path in trees}
    return needs


def circle(needs: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, the first repeated at its end; none where there is none."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_circle_of_imports() -> None:
    needs = imports(modules(SOURCE))
    assert needs["potstill.cli.store"] >= {"potstill.store.inspect"}  # imported in a function
    assert circle(needs) == []


def test_a_circle_is_seen_where_an_import_hides_in_a_function_and_not_where_only_types_need_it() -> None:
    hidden = {"a": "from p import b", "p": "", "p.b": "def f():\n    from a import g\n    return g"}
    typed = {**hidden, "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n"}
    assert set(circle(imports({name: ast.parse(text) for name, text in hidden.items()}))) == {"a", "p.b"}
    assert circle(imports({name: ast.parse(text) for name, text in typed.items()})) == []
