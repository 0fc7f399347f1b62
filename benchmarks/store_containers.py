r"""Which container the store's records lie in best: ``.npy``, Arrow, Parquet, safetensors, Zarr, LMDB, raw bytes.

The same bytes go into each: 200,000 records of 20, 64 and 200 bytes, and 4,000 sequences of 20 to 400 tokens of 48
bytes, in 8 shards of blocks of 2,048 records or 256 sequences, synced to disk after every block where that is possible.
Measured: 128 random records into one array (page cache warm), all records once through one buffer, writing, opening
until the first record is there, and bytes on disk. The containers take turns, in another order every round; medians.

``npy`` is a column per shard, as the store writes it, read with a map and `take`; ``potstill`` is the whole store:
look-up of ids, checksums (checked before), decoding. ``arrow take`` is Arrow's own random access, ``arrow by hand``
computes addresses of the records in the memory-mapped file.

Reading, scanning and opening are in processor time, so that neighbours on the core count little; writing is in wall
time, as it waits for the disk.

Predicted: a gather is 128 cache misses and one call. At about 100 ns a miss and 1 µs a call the limit is 5 to 15 µs;
shards add a few calls each (8 shards: 15 to 30 µs more). Containers that read whole blocks (Zarr, Parquet) move 75
blocks of 40 to 400 kB for 128 records: milliseconds. LMDB walks a tree of 3 levels a record, in C, and makes one Python
object each: about 128 x 1 µs. Scanning is a copy, about 10 GB/s, where bytes lie as they are.

    pip install --no-deps --target FOLDER zarr==3.1.6 lmdb==3.0.0 donfig==0.8.1.post1 google-crc32c==1.9.0 \
        numcodecs==0.16.6
    POTSTILL_CONTAINERS=FOLDER python benchmarks/store_containers.py
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from containers import CONTAINERS, Content, Reader, zarr

HERE = Path(__file__).parent
BATCH, RECORDS, SEQUENCES, TOKEN = 128, 200_000, 4_000, 48


def contents(scale: float) -> list[Content]:
    draws = np.random.default_rng(0)
    records, sequences = int(RECORDS * scale), int(SEQUENCES * scale)
    found = [
        Content(f"{width} B", draws.integers(0, 256, (records, width), np.uint8), None, 2048) for width in (20, 64, 200)
    ]
    offsets = np.concatenate([[0], np.cumsum(draws.integers(20, 401, sequences))])
    entries = draws.integers(0, 256, (int(offsets[-1]), TOKEN), np.uint8)
    return [*found, Content(f"sequences of {TOKEN} B", entries, offsets, 256)]


def processor_seconds(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


def repeated(action: Callable[[], object], seconds: float) -> float:
    """Return the median processor seconds of an action, repeated for some time."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(processor_seconds(action))
    return statistics.median(times)


def check(reader: Reader, content: Content) -> None:
    """Every container has to give back the same bytes."""
    rows = np.random.default_rng(1).permutation(content.rows)[:50]
    expected = np.concatenate([content.entries[slice(*content.span(row, row + 1))] for row in rows.tolist()])
    if not np.array_equal(reader.gather(rows), expected):
        raise SystemExit(f"gather returned other bytes than were written ({content.name})")
    if not np.array_equal(np.concatenate([np.array(part) for part in reader.scan()]), content.entries):
        raise SystemExit(f"scan returned other bytes than were written ({content.name})")


def measure(content: Content, names: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row for each container."""
    draws, order = np.random.default_rng(2), random.Random(3)
    seen: dict[str, dict[str, list[float]]] = {
        name: {what: [] for what in ("write", "open", "gather", "scan")} for name in names
    }
    sizes: dict[str, int] = {}
    whole = content.entries.nbytes
    buffer = np.empty((max(content.rows_per_block * 400, 2048), content.width), np.uint8)

    def scan(reader: Reader) -> None:
        for part in reader.scan():
            buffer[: len(part)] = part

    with tempfile.TemporaryDirectory() as root:
        for _ in range(rounds):
            order.shuffle(names)
            readers: dict[str, Reader] = {}
            for name in names:
                write, opened, _ = CONTAINERS[name]
                folder = Path(root) / name.replace(" ", "-")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                os.sync()
                begin = time.perf_counter()
                write(folder, content)
                seen[name]["write"].append(time.perf_counter() - begin)
                sizes[name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

                begin = time.process_time()
                readers[name] = opened(folder, content)
                readers[name].gather(np.array([content.rows // 2]))
                seen[name]["open"].append(time.process_time() - begin)
                check(readers[name], content)
            picks = [draws.integers(0, content.rows, BATCH) for _ in range(64)]
            for name in names:
                turn = iter(range(10**9))
                seen[name]["gather"].append(
                    repeated(lambda: readers[name].gather(picks[next(turn) % 64]), seconds)  # noqa: B023
                )
                seen[name]["scan"].append(processor_seconds(lambda: scan(readers[name])))  # noqa: B023
    medians = {name: {what: statistics.median(times) for what, times in seen[name].items()} for name in names}
    return [
        {
            "records": content.name,
            "container": name,
            "gather_128_microseconds": round(medians[name]["gather"] * 1e6, 1),
            "gather_ratio_to_raw": round(medians[name]["gather"] / medians["raw"]["gather"], 2),
            "scan_gigabytes_per_second": round(whole / medians[name]["scan"] / 1e9, 2),
            "write_megabytes_per_second": round(whole / medians[name]["write"] / 1e6, 1),
            "open_milliseconds": round(medians[name]["open"] * 1e3, 2),
            "bytes_on_disk_ratio": round(sizes[name] / whole, 4),
            "rounds": rounds,
            "threads": 1,
            "load": round(os.getloadavg()[0], 1),
            "package": package(CONTAINERS[name][2]),
            "cpu": cpu(),
        }
        for name in CONTAINERS
        if name in names
    ]


def package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # a folder that pip's --target filled is on the path without being a site
        return name


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of records")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of gathering from each container in a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    rows: list[dict[str, Any]] = []
    for content in contents(given.scale):
        rows += measure(content, list(CONTAINERS), given.rounds, given.seconds)
        for row in rows[-len(CONTAINERS) :]:
            print(row, flush=True)
    with (HERE / "results" / "store_containers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
