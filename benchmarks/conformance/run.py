"""The command: run the invariants against some tools, print the table, write it beside this file."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.conformance import tables
from benchmarks.conformance.adapter import Adapter, DeadToolError, MissingError, ToolError
from benchmarks.conformance.conventions import convention
from benchmarks.conformance.environments import TOOLS, InstallError, Tool, cache, interpreter
from benchmarks.conformance.invariants import INVARIANTS
from benchmarks.conformance.probes import Cell, Invariant, Probe

PASS, FAIL, ABSENT, NOT_RUN = "pass", "FAIL", "not applicable", "not run"
CONVENTION = "other convention"


def check(invariant: Invariant, adapter: Adapter) -> Cell:
    """Look at one invariant of one tool."""
    name, reason = adapter.name, adapter.notes.get(invariant.name, "")
    probes: list[Probe] = []
    try:
        probes.extend(invariant.check(adapter))
    except MissingError as error:
        if not probes:
            return Cell(invariant.name, name, adapter.version, ABSENT, (), reason or str(error))
    except ToolError as error:
        probes.append(Probe(invariant.name, "", str(error), "no error", passed=False))
    except DeadToolError as error:
        return Cell(invariant.name, name, adapter.version, NOT_RUN, (), str(error))
    if not probes:
        return Cell(invariant.name, name, adapter.version, ABSENT, (), reason)
    return judged(Cell(invariant.name, name, adapter.version, "", tuple(probes), reason))


def judged(cell: Cell) -> Cell:
    """Return a cell with its status, from its probes: another convention is no failure, and its word is the reason."""
    if not cell.probes:
        return cell
    if all(probe.passed for probe in cell.probes):
        return replace(cell, status=PASS)
    word = convention(cell.tool, cell.invariant, cell.probes)
    return replace(cell, status=CONVENTION, reason=word) if word else replace(cell, status=FAIL)


def kept() -> list[Cell]:
    """Return the cells of ``results.csv``, judged anew."""
    cells: dict[tuple[str, str], Cell] = {}
    with (Path(__file__).parent / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            place = row["invariant"], row["tool"]
            before = cells.get(place) or Cell(*place, row["version"], row["status"], (), row["reason"])
            probe = Probe(row["call"], row["link"], row["observed"], row["expected"], row["passed"] == "True")
            cells[place] = replace(before, probes=(*before.probes, probe)) if row["passed"] else before
    return [judged(cell) for cell in cells.values()]


def column(tool: Tool, invariants: Sequence[Invariant], *, fresh: bool = False) -> list[Cell]:
    """Run every invariant against one tool; a tool that cannot be had is a column of "not run" with the error."""
    try:
        python = interpreter(tool, fresh=fresh)
        cache().mkdir(parents=True, exist_ok=True)
        with Adapter(tool.name, tool.adapter, python, cache() / f"{tool.name}.log", tool.variables) as adapter:
            return [check(invariant, adapter) for invariant in invariants]
    except (InstallError, DeadToolError) as error:
        return [Cell(invariant.name, tool.name, "", NOT_RUN, (), str(error)) for invariant in invariants]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where potstill fails an invariant, else 0."""
    names = [tool.name for tool in TOOLS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="TOOL", choices=names, help="these columns and no others")
    parser.add_argument(
        "--rivals", nargs="*", metavar="TOOL", choices=names, help="potstill and these; all if none named"
    )
    parser.add_argument("--invariant", nargs="+", metavar="NAME", help="these rows only; writes no files")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--again", action="store_true", help="measure nothing: judge and write results.csv anew")
    parser.add_argument("--json", action="store_true", help="print every observation as JSON instead of the table")
    parser.add_argument(
        "--write", action="store_true", help="write results.md and results.csv (default for all columns)"
    )
    given = parser.parse_args(arguments)
    wanted = given.only or (["potstill", *given.rivals] if given.rivals else names)
    rows = [row for row in INVARIANTS if not given.invariant or row.name in given.invariant]
    if not rows:
        parser.error(f"no such invariant; there are {', '.join(row.name for row in INVARIANTS)}")
    cells: list[Cell] = kept() if given.again else []
    for tool in TOOLS:
        if tool.name in wanted and not given.again:
            print(f"{tool.name} ...", file=sys.stderr)
            cells += column(tool, rows, fresh=given.fresh)
    if given.json:
        print(json.dumps([asdict(cell) for cell in cells], indent=1))
    else:
        print(tables.text(rows, cells))
    if given.write or (set(wanted) == set(names) and not given.invariant):
        folder = Path(__file__).parent
        before = re.search(r"Python [\d.]+\d", (folder / "results.md").read_text()) if given.again else None
        machine = before[0] if before else f"Python {platform.python_version()}"
        (folder / "results.md").write_text(tables.markdown(rows, cells, machine))
        (folder / "results.csv").write_text(tables.csv_text(cells))
    return int(any(cell.tool == "potstill" and cell.status in (FAIL, NOT_RUN) for cell in cells))
