"""Trainings in processes of their own: ``training_worker.py processes FOLDER`` under torchrun, or ``kill FOLDER``."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import training_toys as toys

from potstill.models.preprocess import Preprocessor
from potstill.recipe.schema import Training
from potstill.training import AverageTeacher, history, train
from potstill.training.relations import gather_rows

STAGES = [{"until": 0.4, "train": ["conv", "norm"]}, {"until": 0.7, "train": ["hidden", "head.weight"]}, {"until": 1}]
PROCESS_VARIANTS = {
    "batch-norm": ({"norm": "batch"}, {"optimizer": "sgd", "learning_rate": 0.05}),
    "group-norm": ({"norm": "group"}, {"optimizer": "sgd", "learning_rate": 0.05, "accumulate": 2, "ema": 0.9}),
    "relations": ({"norm": "batch"}, {"learning_rate": 0.02, "gradient_report": True}, "relations"),
    "bank": (
        {"norm": "group"},
        {"learning_rate": 0.02, "accumulate": 2, "gradient_report": True, "stages": STAGES},
        "bank",
    ),
    "dot": ({"norm": "batch"}, {"optimizer": "dot", "learning_rate": 0.05, "gradient_clip": 1.0}, "objective"),
    "dot-pieces": (
        {"norm": "group"},
        {"optimizer": "dot", "learning_rate": 0.05, "accumulate": 2, "gradient_report": True},
        "objective",
    ),
    "average": ({"norm": "batch"}, {"learning_rate": 0.05}, "own_average"),
    "blocks": ({"norm": "batch"}, {"learning_rate": 0.05}, "blocks"),
    "few": ({"norm": "batch"}, {"learning_rate": 0.05, "gradient_report": True}, "few"),
    "few-pieces": ({"norm": "group"}, {"optimizer": "dot", "learning_rate": 0.05, "accumulate": 2}, "few_apart"),
}
KILL_VARIANTS = {
    "sgd": (
        {"norm": "batch", "dropout": 0.3},
        {"optimizer": "sgd", "learning_rate": 0.05, "ema": 0.9, "epochs": 6, "batch_size": 5, "accumulate": 2},
    ),
    "adamw": (
        {"norm": "group", "dropout": 0.3},
        {"optimizer": "adamw", "gradient_clip": 0.5, "epochs": 6, "batch_size": 5, "schedule": "one_cycle"},
    ),
    "bank": (
        {"norm": "batch", "dropout": 0.3},
        {
            "optimizer": "dot",
            "learning_rate": 0.02,
            "epochs": 6,
            "batch_size": 5,
            "accumulate": 2,
            "gradient_report": True,
            "stages": STAGES,
        },
        "bank",
    ),
    "average": (
        {"norm": "batch", "dropout": 0.3},
        {"learning_rate": 0.05, "epochs": 6, "batch_size": 5},
        "own_average",
    ),
    "few": ({"norm": "batch", "dropout": 0.3}, {"learning_rate": 0.05, "epochs": 6, "batch_size": 5}, "few"),
}


def run(variant, folder: Path, **changes):
    model, settings, *named = variant
    objective = named[0] if named else "objective"
    values = {"epochs": 3, "batch_size": 8, "checkpoint_every": 3, "precision": "float32", **settings, **changes}
    student = toys.net(**model)
    result = train(
        student,
        toys.spec(
            data=toys.few_data() if objective.startswith("few") else toys.image_data(),
            objective=getattr(toys, objective)(),
            settings=Training(**values),
            preprocess=Preprocessor(torch.full((2,), 0.5), torch.full((2,), 0.3)),
            seed=5,
            teacher=AverageTeacher(0.9) if objective == "own_average" else toys.FormulaTeacher(),
            taps={"hidden": "hidden"},
        ),
        folder,
        device="cpu",
    )
    return student, result


def processes(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    for name, variant in PROCESS_VARIANTS.items():
        student, result = run(variant, folder / name)
        torch.save({"state": student.state_dict(), "result": repr(result)}, folder / f"{name}-{rank}.pt")
    rows = torch.arange(rank + 1) + 10 * rank
    gathered = [gather_rows(rows), gather_rows(rows[:, None] % 2 == 0), gather_rows(rows[: rank % 2].double())]
    torch.save(gathered, folder / f"gathered-{rank}.pt")
    # Wrappers of the models hold the group in reference cycles: gone first, and nobody leaves while others still talk.
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def child(work) -> int:
    """Fork, do the work there, and return the child's process id."""
    identity = os.fork()
    if identity == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return identity


def status_of(identity: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(identity, 0)[1])


def die_at(event: int, work) -> None:
    """Do the work, and die by SIGKILL just before the given file operation."""
    seen = 0
    replace, unlink, append = Path.replace, Path.unlink, history.append

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    Path.replace, Path.unlink, history.append = counted(replace), counted(unlink), counted(append)
    work()


def step_of(folder: Path) -> int:
    path = folder / "checkpoint" / "checkpoint.json"
    return json.loads(path.read_text())["counters"]["step"] if path.exists() else 0


def kill(folder: Path) -> None:
    """For each variant: one training in peace, one killed at random moments, several killed at file operations."""
    # Once here, so that no child has to import anything.
    run(KILL_VARIANTS["sgd"], folder / "warm", epochs=1)
    chance = random.Random(0)
    log = []
    for name, variant in KILL_VARIANTS.items():
        began = time.monotonic()
        assert status_of(child(lambda v=variant, n=name: run(v, folder / n / "peace"))) == 0
        duration = time.monotonic() - began
        for _ in range(12):
            identity = child(lambda v=variant, n=name: run(v, folder / n / "random"))
            time.sleep(chance.uniform(0.15, 0.55) * duration)
            os.kill(identity, signal.SIGKILL)
            code = status_of(identity)
            log.append(f"{name} random {code} {step_of(folder / name / 'random')}")
            if code == 0:
                break
        else:
            assert status_of(child(lambda v=variant, n=name: run(v, folder / n / "random"))) == 0
        for event in range(3, 40, 9):
            where = folder / name / f"event-{event}"
            code = status_of(child(lambda v=variant, e=event, w=where: die_at(e, lambda: run(v, w))))
            log.append(f"{name} event {code}")
            assert status_of(child(lambda v=variant, w=where: run(v, w))) == 0
    (folder / "log.txt").write_text("\n".join(log))


if __name__ == "__main__":
    {"processes": processes, "kill": kill}[sys.argv[1]](Path(sys.argv[2]))
