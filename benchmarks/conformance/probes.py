"""What an invariant is, and the observations it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.conformance.adapter import Adapter, ToolError

Loss = dict[str, Any]
Answer = dict[str, Any]
Judged = tuple[Any, Any, bool]
"""What was observed, what was expected, and whether that is right."""


@dataclass(frozen=True)
class Probe:
    """One call, what it gave and what was expected."""

    call: str
    link: str
    observed: str
    expected: str
    passed: bool


Check = Callable[[Adapter], Iterator[Probe]]


@dataclass(frozen=True)
class Cell:
    """One invariant for one tool: the status, all observations, and why there are none."""

    invariant: str
    tool: str
    version: str
    status: str
    probes: Sequence[Probe]
    reason: str


@dataclass(frozen=True)
class Invariant:
    """A row of the table.

    Attributes:
        name: a short stable name, that of the check.
        what: the statement, one sentence.
        why: what goes wrong in practice where it does not hold.
        check: looks at one tool; holds when every probe that it yields passed.

    """

    name: str
    what: str
    why: str
    check: Check


def invariant(check: Check) -> Invariant:
    """Make a row of a check: the first paragraph of its docstring is the statement, the rest is why it matters."""
    what, _, why = (check.__doc__ or "").partition("\n\n")
    return Invariant(getattr(check, "__name__", ""), " ".join(what.split()), " ".join(why.split()), check)


def ask(tool: Adapter, loss: Loss, student: Any, teacher: Any, **options: Any) -> Answer:
    """Return ``value`` and the student's ``gradient`` of a loss on arrays; classes are made up where it reads them."""
    one, other = np.asarray(student), np.asarray(teacher)
    if "targets" in loss["claims"] and "targets" not in options:
        options["targets"] = [row % one.shape[1] for row in range(len(one))]
    answer: Answer = tool.call("loss", name=loss["name"], student=one.tolist(), teacher=other.tolist(), **options)
    return answer


def for_each_loss(
    tool: Adapter,
    judge: Callable[[Loss], Judged],
    *claims: str,
    on: str,
    may_refuse: bool = False,
    temperature: float | None = None,
) -> Iterator[Probe]:
    """Judge every loss of a tool that makes some claims.

    Args:
        tool: the column.
        judge: asks a loss and says what was observed and expected.
        *claims: what a loss must claim to be asked.
        on: the inputs, in words.
        may_refuse: an exception is a right answer, as it says what is wrong.
        temperature: the one that ``judge`` asks with.

    """
    for loss in tool.losses(*claims):
        call = f"{loss['call'].replace('{T}', f'{temperature or 1.0:g}')} on {on}"
        try:
            observed, expected, passed = judge(loss)
        except ToolError as error:
            wanted = "an answer, or a refusal" if may_refuse else "a number"
            yield Probe(call, loss["link"], str(error), wanted, may_refuse)
        else:
            yield Probe(call, loss["link"], shown(observed), shown(expected), bool(passed))


def shown(value: Any) -> str:
    """Return a number, or the start of many numbers, in few characters."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        return str(value)
    numbers = [f"{number:.6g}" for number in array.ravel()[:4]]
    more = ", ..." if array.size > len(numbers) else ""
    return numbers[0] if array.ndim == 0 else f"[{', '.join(numbers)}{more}]"


def close(observed: Any, expected: Any, tolerance: float) -> bool:
    """Whether two values agree: largest difference at most ``tolerance`` of the largest expected number."""
    one, other = np.asarray(observed, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if one.shape != other.shape or not np.isfinite(one).all():
        return False
    scale = max(float(np.abs(other).max(initial=0.0)), 1e-12)
    return bool(np.abs(one - other).max(initial=0.0) <= tolerance * scale)


def largest(values: Any) -> float:
    """Return the largest absolute number; NaN where there is one."""
    return float(np.abs(np.asarray(values, dtype=np.float64)).max())
