"""What a task is, is said in its room: elsewhere nobody compares tasks with each other or with their names."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from potstill.core.errors import UsageError
from potstill.tasks import METRICS, MetricName, TaskName, task_of
from potstill.tasks.kinds import KINDS

SOURCE = Path(__file__).parents[2] / "src/potstill"
FILES = [path for path in SOURCE.rglob("*.py") if path.parent.name != "tasks"]


EQUALS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)


def comparisons(tree: ast.AST) -> list[int]:
    """Return the lines of a file that compare with a task or with the name of one."""
    sides: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], EQUALS):
            sides += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides.append(node.value)
    sides += [part for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for part in side.elts]
    return [
        side.lineno
        for side in sides
        if (isinstance(side, ast.Constant) and side.value in set(METRICS))
        or getattr(side, "attr", getattr(side, "id", None)) == "task"
    ]


def test_no_room_asks_which_task_it_is() -> None:
    assert len(FILES) > 300
    lines = {str(path.relative_to(SOURCE)): comparisons(ast.parse(path.read_text())) for path in FILES}
    assert not {name: found for name, found in lines.items() if found}


def test_no_page_asks_which_task_it_is() -> None:
    pages = list(SOURCE.rglob("*.jinja"))
    assert len(pages) > 2
    assert not [page.name for page in pages if re.search(r"\btask\s*[!=]=|classification|regression", page.read_text())]


@pytest.mark.parametrize(
    "code",
    ['x == "regression"', 'data.task != "other"', 'x in ("classification", 1)', "match x:\n case 'regression': 1"],
)
def test_the_guard_sees_a_comparison(code: str) -> None:
    assert comparisons(ast.parse(code))


def test_every_task_is_listed_once() -> None:
    assert set(get_args(TaskName)) == set(METRICS)
    assert set(get_args(MetricName)) == {metric for metrics in METRICS.values() for metric in metrics}
    for name, usable in METRICS.items():
        task = task_of(name)
        assert (task.name, task.headline) == (name, usable[0])
        assert set(usable) <= {*task.scores.measures(None, 1), *task.scores.adjusted} <= set(KINDS)
    with pytest.raises(UsageError, match="Did you mean 'regression'"):
        task_of("regresion")
