"""How long `import potstill` and `potstill --help` take, in fresh processes, interleaved with an empty Python.

python benchmarks/start_up.py
"""

from __future__ import annotations

import csv
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import potstill": [sys.executable, "-c", "import potstill"],
    "potstill --help": [sys.executable, "-m", "potstill.cli", "--help"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - began)
    rows = [
        {"command": name, "median_seconds": round(statistics.median(values), 3), "python": platform.python_version()}
        for name, values in seconds.items()
    ]
    with (Path(__file__).parent / "results" / "start_up.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
