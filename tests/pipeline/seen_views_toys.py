"""A teacher and a student that answer with a hash of every pixel they are given, and what compares the two.

As a program, ``seen_views_toys.py FOLDER``: record and train in processes that are killed, or share the work.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.objective import Objective, Term
from potstill.pipeline import stages
from potstill.pipeline.build import Given, Job, build_job
from potstill.pipeline.processes import in_parts, start
from potstill.recipe.yaml import loads
from potstill.teachers import Model, TorchModel

CLASSES, SIZE, SAMPLES = 4, 9, 41
VIEWS, EPOCHS = 2, 3

RECIPE = """
task: classification
seed: 3
data: {{train: python-object, augment: {augment}}}
teacher: {{model: python-object}}
student: {{model: python-object, preprocess: {{mean: [0, 0, 0, 0, 0], std: [1, 1, 1, 1, 1]}}}}
objective: python-object
store: {{views: {views}, dtype: float32, shards: {shards}}}
training: {{epochs: {epochs}, batch_size: {batch_size}, optimizer: sgd, learning_rate: 0.1,
  precision: float32, checkpoint_every: 2, workers: {workers}}}
evaluation: {{batch_size: {record_size}}}
export: {{formats: []}}
"""


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose first planes say their class, so that a mixed picture says how much of which class it is."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, CLASSES + 1, SIZE, SIZE), dtype=np.uint8)
    targets = random.integers(0, CLASSES, count)
    pixels[:, :CLASSES] = 0
    pixels[np.arange(count), targets] = 255
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def digests(inputs: torch.Tensor) -> torch.Tensor:
    """Return 96 bits of a hash of each sample as 4 numbers that float32 holds exactly."""
    found = [hashlib.blake2b(one.tobytes(), digest_size=12).digest() for one in inputs.contiguous().numpy()]
    words = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, CLASSES, 3) @ np.array([1, 2**8, 2**16])
    return torch.from_numpy(words.astype(np.float32))


class Witness(nn.Module):
    """Answers with the digest of its inputs; ``dies_at`` kills the process at that call, while it teaches or learns."""

    signals = ("planes",)

    def __init__(self, dies_at: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.left = dies_at

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        planes = inputs[:, :CLASSES].mean((2, 3))
        return {"logits": digests(inputs.detach()) + 0 * self.weight, "planes": planes + 0 * self.weight}


def unequal(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """1 for each sample that the two did not see alike."""
    return (student_logits != teacher_logits).any(1).float() + 0 * student_logits.sum(1)


def unlike(student_planes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How far the shares of the classes in a mixed picture are from its targets."""
    return (student_planes - targets).abs().amax(1)


def make_job(
    augment: str,
    *,
    samples: int = SAMPLES,
    batch_size: int = 8,
    record_size: int = 7,
    workers: int = 0,
    shards: int = 1,
    learner: Witness | None = None,
) -> Job:
    options = {"augment": augment, "views": VIEWS, "epochs": EPOCHS, "batch_size": batch_size, "workers": workers}
    recipe = RECIPE.format(**options, record_size=record_size, shards=shards)
    terms = [Term(unequal, name="unequal")]
    if "mix" in augment and "crop" not in augment:
        terms.append(Term(unlike, on="planes", name="unlike"))
    data = {"train": pictures(samples, 0), "validation": pictures(9, 1), "test": pictures(9, 2)}
    given = Given(teacher=Witness(), student=lambda: learner or Witness(), data=data, objective=Objective(terms))
    return build_job(loads(recipe), base=Path(), given=given)


def recorded(job: Job, folder: Path, model: nn.Module | None = None) -> Model:
    """Record what the teacher says, or finish it, and return the recording as a teacher."""
    with stages.live_teacher(job, TorchModel(model) if model else job.teacher_at(0)) as teacher:
        in_parts(start("cpu"), lambda part: stages.record_teacher(job, teacher, folder, part))
        return stages.stored_teacher(job, teacher, folder)


def trained(job: Job, teacher: Model, folder: Path) -> list[dict[str, float]]:
    """Train with another seed than the store's, and return for each epoch the means of the terms."""
    accelerator, seed = start("cpu"), job.recipe.seed + 1
    settings = job.recipe.training
    stages.train_student(job, (seed, "distilled"), folder, accelerator=accelerator, teacher=teacher, settings=settings)
    return history(folder)


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line)["parts"] for line in (folder / "history.jsonl").read_text().splitlines()]


def work(folder: Path, *, recording_dies_at: int = 0, training_dies_at: int = 0) -> None:
    job = make_job(
        "{crop: 2, flip: true, rotate: 10, mixup: 0.5, cutmix: 1.0}",
        # More rows than one block has, so that there are two shards to record.
        samples=1100,
        batch_size=200,
        record_size=64,
        shards=2,
        learner=Witness(training_dies_at),
    )
    trained(job, recorded(job, folder / "store", Witness(recording_dies_at)), folder / "student")
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def forked(folder: Path, environment: dict[str, str] | None = None, **dies_at: int) -> int:
    """Do the work in a process of its own and return that one's id. Imports are there already."""
    identity = os.fork()
    if identity == 0:
        os.environ |= environment or {}
        try:
            work(folder, **dies_at)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return identity


def main(root: Path) -> None:
    """One process that is killed in the middle of both and goes on; two others that share the work."""
    # What an optimiser imports is imported here, so that no child has to.
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    ways = {"recording": {"recording_dies_at": 34}, "training": {"training_dies_at": 18}, "rest": {}}
    ended = {}
    for name, dies_at in ways.items():
        status = os.waitpid(forked(root / "killed", **dies_at), 0)[1]
        files = sorted(path.name for path in (root / "killed").glob("s*/*") if path.name[0] != ".")
        ended[name] = {"code": os.waitstatus_to_exitcode(status), "files": files}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [forked(root / "pair", {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    codes = [os.waitstatus_to_exitcode(os.waitpid(identity, 0)[1]) for identity in pair]
    print(json.dumps({"ended": ended, "codes": codes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
