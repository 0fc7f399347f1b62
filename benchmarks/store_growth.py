"""How the cost of a store grows with its samples: writing, opening, reading at random, and memory.

python benchmarks/store_growth.py --sizes 10000 100000 1000000 10000000

Records are the logits of 32 classes in float16, 64 bytes. Ids count up, or are scattered as hashes of file names are.
Every store is written by one fresh process and read by another. Memory is RssAnon: what the process holds for itself,
without pages of mapped files, which the system takes back when it needs them; the peak of a first read is what Python
and NumPy allocate in it. Of the 2,000 reads of 128 ids the first, and the next 999, which compare blocks with their
checksums, are given in processor time, the others as a median.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "store_growth.csv"
CLASSES, BATCH, READ, READS, OPENS = 32, 2048, 128, 1000, 20
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
IDS = ("counting", "scattered")


def ids_of(kind: str, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids from 0 on, or 63 mixed bits of these, all different."""
    if kind == "counting":
        return np.arange(size, dtype=np.int64)
    from potstill.core import random

    return (random.key(np.arange(size)) >> np.uint64(1)).astype(np.int64)


def anonymous_megabytes() -> float:
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before counts for nothing
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write(folder: Path, kind: str, size: int) -> dict[str, float]:
    import torch

    from potstill.core.signals import Batch
    from potstill.store import describe, record

    ids = ids_of(kind, size)
    manifest = describe(ids=ids, data="growth", teacher={"model": "noise"}, shapes={"logits": (CLASSES,)})
    # The teacher costs nothing, so that what is measured is the store.
    answers = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
    inputs = torch.zeros(BATCH, 1)

    def batches(ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        for first, stop in ranges:
            for low in range(first, stop, BATCH):
                found = torch.from_numpy(ids[low : min(low + BATCH, stop)])
                yield Batch(found, torch.zeros_like(found), inputs[: len(found)])

    began, worked = time.perf_counter(), time.process_time()
    record(lambda batch: {"logits": answers[: len(batch)]}, batches, folder, manifest, ids)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return {
        "megabytes_on_disk": round(megabytes, 1),
        "write_seconds": round(seconds, 2),
        "write_processor_seconds": round(worked, 2),
        "write_megabytes_per_second": round(megabytes / seconds, 1),
        "write_samples_per_second": round(size / seconds),
    }


def read(folder: Path, kind: str, size: int) -> dict[str, float]:
    import torch

    from potstill.store import open_store

    ids = ids_of(kind, size)  # like the samples of a data set, not the store's
    asked = np.random.default_rng(0).integers(0, size, (2 * READS, READ))
    chosen, views = torch.from_numpy(ids[asked]), torch.zeros(READ, dtype=torch.int64)
    del ids, asked
    # What torch and NumPy set up at first use is not the store's.
    torch.zeros(READ, CLASSES, dtype=torch.float16).to(torch.float32)
    np.unique(np.zeros(1))
    opened = statistics.median([timed(lambda: open_store(folder)) for _ in range(OPENS)])
    before = anonymous_megabytes()
    store = open_store(folder)
    after_open = anonymous_megabytes()
    worked = time.process_time()
    store.read("logits", chosen[0], views)
    first = time.process_time() - worked
    after_first = anonymous_megabytes()
    tracemalloc.start()
    open_store(folder).read("logits", chosen[0], views)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    worked = time.process_time()
    for some in chosen[1:READS]:
        store.read("logits", some, views)
    checking = time.process_time() - worked
    seconds = [timed(lambda some=some: store.read("logits", some, views)) for some in chosen[READS:]]
    return {
        "open_milliseconds": round(1e3 * opened, 2),
        "first_read_processor_milliseconds": round(1e3 * first, 1),
        "reads_with_checksums_processor_seconds": round(checking, 2),
        "read_128_microseconds": round(1e6 * statistics.median(seconds), 1),
        "anonymous_megabytes_open": round(after_open - before, 2),
        "anonymous_megabytes_first_read": round(after_first - before, 2),
        "peak_megabytes_first_read": round(peak, 2),
        f"anonymous_megabytes_{2 * READS}_reads": round(anonymous_megabytes() - before, 2),
    }


def in_fresh_process(work: str, folder: Path, kind: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", work, "--folder", str(folder), "--ids", kind, "--sizes", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, size: int, root: Path) -> dict[str, Any]:
    folder = root / f"{kind}-{size}"
    try:
        written = in_fresh_process("write", folder, kind, size)
        load = Path("/proc/loadavg").read_text().split()[0]
        found = in_fresh_process("read", folder, kind, size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine = {"load": load, "machine": platform.machine(), "numpy": np.__version__, "potstill": version("potstill")}
    return {"ids": kind, "samples": size, "bytes_per_record": 2 * CLASSES, **written, **found, **machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--ids", nargs="+", choices=IDS, default=IDS)
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary folder when absent")
    parser.add_argument("--work", choices=("write", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work = write if options.work == "write" else read
        print(json.dumps(work(options.folder, options.ids[0], options.sizes[0])))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        for size in options.sizes:
            for kind in options.ids:
                rows.append(measure(kind, size, Path(root)))
                print(rows[-1], flush=True)
    measured = {(row["ids"], int(row["samples"])) for row in rows}
    if RESULTS.exists():  # sizes and kinds of ids that were not measured now keep their rows
        with RESULTS.open(newline="") as file:
            old = [row for row in csv.DictReader(file) if (row["ids"], int(row["samples"])) not in measured]
        rows = sorted([*old, *rows], key=lambda row: (int(row["samples"]), IDS.index(row["ids"])))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
