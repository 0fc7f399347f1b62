"""``potstill doctor``: what this machine and this installation can do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from potstill.cli import show
from potstill.cli.options import Json


def doctor(json: Json = False) -> None:
    """Show what this machine and installation can do.

    Names the exact line that installs what is missing.

    \b
    Examples:
      potstill doctor
      potstill doctor --json
    """
    found = examine()
    if json:
        show.print_json(found)
    else:
        _print(found)
    if found["torch"]["error"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Return what there is, as JSON-like data."""
    return {
        "potstill": _version("potstill"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processors": _processors(),
        "memory_bytes": _memory(),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "torch": _torch(),
        "extras": {name: _packages(names) for name, names in extras().items()},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("POTSTILL_") or name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        },
    }


def extras() -> dict[str, list[str]]:
    """Return the packages of every extra, from the installed package's own metadata."""
    try:
        requirements = metadata.requires("potstill") or []
    except metadata.PackageNotFoundError:
        requirements = []
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and name and match[1] not in ("all", "dev"):
            found.setdefault(match[1], []).append(name[0])
    return dict(sorted(found.items()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(names: list[str]) -> dict[str, str | None]:
    return {name: _version(name) for name in names}


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().total)


def _torch() -> dict[str, Any]:
    try:
        import torch

        from potstill.training.precision import cpu_has_bfloat16
    except Exception as error:  # a broken installation is exactly what this command is for
        return {"version": None, "error": f"{type(error).__name__}: {error}"}
    cuda = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "error": None,
        "devices": ["cpu", *(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))],
        "threads": torch.get_num_threads(),
        "bfloat16": {"cpu": cpu_has_bfloat16(), "cuda": cuda and torch.cuda.is_bf16_supported()},
    }


def _print(found: dict[str, Any]) -> None:
    torch = found["torch"]
    rows = [
        ["potstill", found["potstill"] or "not installed as a package"],
        ["python", f"{found['python']} on {found['platform']}, {sys.executable}"],
        ["torch", torch["version"] or f"cannot be imported: {torch['error']}"],
        ["processors", str(found["processors"])],
    ]
    if not torch["error"]:
        fast = [name for name, has in torch["bfloat16"].items() if has]
        rows += [
            ["devices", ", ".join(torch["devices"])],
            ["threads", str(torch["threads"])],
            ["bfloat16", f"fast on {' and '.join(fast)}" if fast else "not faster here; float32 is used"],
        ]
    if found["memory_bytes"] is not None:
        rows.append(["memory", f"{found['memory_bytes'] / 1e9:,.1f} GB"])
    rows.append(["free disk", f"{found['disk_free_bytes'] / 1e9:,.1f} GB"])
    rows += [[name, value] for name, value in found["environment"].items()]
    show.table(["what", "found"], rows)
    show.echo()
    rows = []
    for extra, packages in found["extras"].items():
        present = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = [name for name, version in packages.items() if version is None]
        install = f'missing {", ".join(missing)}: pip install "potstill[{extra}]"' if missing else "installed"
        rows.append([extra, install, present or show.NOTHING])
    show.table(["extra", "state", "packages"], rows)
