"""The table, for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.conformance.probes import Cell, Invariant, Probe

SHORT = {"pass": "pass", "FAIL": "FAIL", "other convention": "other", "not applicable": "-", "not run": "not run"}


def text(rows: Sequence[Invariant], cells: Sequence[Cell]) -> str:
    """Return the table for a terminal, and below it every failure with its call and numbers."""
    tools = list(dict.fromkeys(cell.tool for cell in cells))
    found = {(cell.invariant, cell.tool): cell for cell in cells}
    width = max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"  {tool:>12}" for tool in tools)]
    for row in rows:
        lines.append(row.name.ljust(width) + "".join(f"  {SHORT[found[row.name, tool].status]:>12}" for tool in tools))
    for cell in cells:
        lines += [
            f"\n{cell.tool} {cell.version}: {cell.invariant}\n  {probe.call}\n"
            f"    {probe.observed}\n    expected {probe.expected}"
            for probe in _failures(cell)
        ]
    reasons = {(cell.tool, cell.reason) for cell in cells if cell.status == "not run"}
    lines += [f"\n{tool} not run: {reason}" for tool, reason in sorted(reasons)]
    return "\n".join(lines)


def markdown(rows: Sequence[Invariant], cells: Sequence[Cell], machine: str) -> str:
    """Return the page of results: the table, the statements, and every failure with its call, link and numbers."""
    tools = list(dict.fromkeys(cell.tool for cell in cells))
    versions = {cell.tool: cell.version for cell in cells}
    found = {(cell.invariant, cell.tool): cell for cell in cells}
    out = [
        "# Conformance: results",
        "",
        "Written by `python -m benchmarks.conformance`; what it means is in "
        "[docs/guide/conformance.md](../../docs/guide/conformance.md). "
        f"{machine}, torch 2.13.0 on a CPU, every tool in an environment of its own with the versions in `pins/`.",
        "",
        "**FAIL** is a defect. *other convention* is a choice of the tool that differs from the statement and gives "
        "the right result to a caller who knows of it; the row's section has the word. `-` is not applicable: the tool "
        "has nothing of the kind, or leaves it to the user.",
        "",
        "| invariant | " + " | ".join(f"{tool} {versions[tool]}" for tool in tools) + " |",
        "|---|" + "---|" * len(tools),
    ]
    for row in rows:
        marks = [_mark(found[row.name, tool]) for tool in tools]
        out.append(f"| [{row.name}](#{row.name}) | " + " | ".join(marks) + " |")
    counts = []
    for tool in tools:
        given = [cell.status for cell in cells if cell.tool == tool]
        counts.append(
            f"{given.count('pass')} pass, {given.count('FAIL')} FAIL, {given.count('other convention')} other"
        )
    out += ["| **sum** | " + " | ".join(counts) + " |", ""]
    for row in rows:
        out += [f"## {row.name}", "", row.what, "", row.why, ""]
        for tool in tools:
            cell = found[row.name, tool]
            failures = _failures(cell)
            if failures:
                note = f" {cell.reason}" if cell.reason else ""
                if cell.status == "other convention":
                    out += [f"**{tool} {cell.version}**, other convention: {cell.reason}.", ""]
                else:
                    out += [f"**{tool} {cell.version}** fails {len(failures)} of {len(cell.probes)} probes.{note}", ""]
                out += [_failure(probe) for probe in failures] + [""]
            elif cell.status != "pass" and cell.reason:
                out += [f"{tool}: {cell.status}. {cell.reason}", ""]
    return "\n".join(out).rstrip() + "\n"


def csv_text(cells: Sequence[Cell]) -> str:
    """Return a row for each probe, and one for each cell without any."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["invariant", "tool", "version", "status", "passed", "call", "observed", "expected", "link", "reason"]
    )
    for cell in cells:
        head = [cell.invariant, cell.tool, cell.version, cell.status]
        note = "" if cell.status == "pass" else cell.reason
        for probe in cell.probes:
            link = "" if probe.passed else probe.link
            writer.writerow([*head, probe.passed, probe.call, probe.observed, probe.expected, link, note])
        if not cell.probes:
            writer.writerow([*head, "", "", "", "", "", cell.reason])
    return file.getvalue()


def _mark(cell: Cell) -> str:
    return {**SHORT, "FAIL": "**FAIL**", "other convention": "*other convention*"}[cell.status]


def _failures(cell: Cell) -> list[Probe]:
    return [probe for probe in cell.probes if not probe.passed]


def _failure(probe: Probe) -> str:
    call = f"[`{probe.call}`]({probe.link})" if probe.link else f"`{probe.call}`"
    return f"- {call}: {_escaped(probe.observed)}; expected {_escaped(probe.expected)}"


def _escaped(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "\\<")
