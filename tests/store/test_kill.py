"""A recording killed with SIGKILL, again and again, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# One process imports once and forks the writers it kills: many kills in little time.
SCRIPT = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from potstill.core.signals import Batch
from potstill.store import describe, open_store, record

torch.set_num_threads(1)
root = Path(sys.argv[1])
ids = np.random.default_rng(0).permutation(5000)[:300]
manifest = describe(
    ids=ids, data="d", teacher={"model": "t"}, shapes={"logits": (5,), "mid": (3, 2)}, views=4,
    augmentation={"flip": True},
)
manifest = replace(manifest, rows_per_block=16, blocks_per_shard=20)

def batches(ranges):
    for first, stop in ranges:
        for low in range(first, stop, 7):
            view, place = np.divmod(np.arange(low, min(low + 7, stop)), 300)
            yield Batch(torch.tensor(ids[place]), torch.tensor(view), torch.zeros(len(view), 1))

def teacher(batch):
    time.sleep(0.0003)
    values = torch.sin(batch.ids.double()[:, None] + batch.views[:, None] * torch.arange(1, 6))
    return {"logits": values, "mid": values[:, :1, None].expand(-1, 3, 2) * 7}

def write(folder):
    record(teacher, batches, folder, manifest, ids)

def lines(folder):
    return sum(path.read_bytes().count(b"\\n") for path in folder.glob("shards/*/blocks.jsonl"))

write(root / "whole")
generator = np.random.default_rng(int(sys.argv[2]))
kills, attempts, recordings, progressed, differ = 0, 0, 0, 0, []
while kills < 10 and attempts < 400:
    folder = root / f"killed{recordings}"
    while attempts < 400:
        attempts += 1
        child = os.fork()
        if child == 0:
            try:
                write(folder)
                os._exit(0)
            finally:
                os._exit(9)
        # Wait for some more lines in the journal, not for a time: the machine may be busy.
        goal = lines(folder) + int(generator.integers(0, 6))
        ended, status = 0, 0
        while not ended and lines(folder) < goal:
            time.sleep(0.0002)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(float(generator.uniform(0, 0.004)))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            progressed += lines(folder) > 0
        else:
            assert os.WEXITSTATUS(status) == 0, os.WEXITSTATUS(status)
            break
    recordings += 1
    write(folder)
    open_store(folder, manifest).verify()
    contents = [
        {
            str(path.relative_to(place)): path.read_bytes()
            for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")
        }
        for place in (root / "whole", folder)
    ]
    assert len(contents[0]) == 16, sorted(contents[0])
    differ += [name for name in contents[0] if contents[0][name] != contents[1].get(name)]
    differ += [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".writer.json")]
print(json.dumps({"kills": kills, "progressed": progressed, "recordings": recordings, "differ": differ}))
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["kills"] >= 10
    assert outcome["progressed"] >= 5
    assert outcome["recordings"] >= 1
    assert outcome["differ"] == []
