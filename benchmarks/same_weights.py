"""Do two checkouts of potstill train the same weights? Bit for bit, on small recipes, on this machine.

    python benchmarks/same_weights.py OLD NEW
    python benchmarks/same_weights.py OLD NEW --only dot chain --keep /tmp/kept

OLD and NEW are folders with a ``src`` each (worktrees of two commits). Each recipe of OLD's ``examples/``, cut to two
epochs on a few hundred samples, and each recipe of ``MORE`` below is run with the ``src`` of both: same interpreter,
one thread, a process for each run. Then the names of the stages are compared, and every tensor of every file of
weights, of the stored answers and of the answers to the test split. A file that lies elsewhere counts as the same where
its content does. Not run: examples that train nothing (``endpoint``) or draw secret noise (``private_votes``).

Exit status 0: all the same; 1: something differs or did not run; 2: wrong usage. With ``--keep`` the results of a
commit without uncommitted changes are kept in a folder and used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open

EPOCHS = 2
SMALL = {
    "data": {"split": {"validation": 0.1, "test": 0.6}},
    "evaluation": {"latency": False},
    "export": {"formats": []},
}
CNN = {"model": "cnn", "args": {"width": 4}}
TAUGHT = {"model": "cnn", "args": {"width": 8}, "train": {"batch_size": 64}}
PLAIN = {"task": "classification", "data": {"train": "digits"}, "teacher": TAUGHT, "student": CNN}
SGD = {"batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1}
LAYERS = {"layer1": "layer1", "layer2": "layer2"}
MORE: dict[str, dict[str, Any]] = {
    "labels: smoothing, averaged weights, clipping": PLAIN
    | {
        "objective": "alone",
        "training": SGD | {"label_smoothing": 0.1, "ema": 0.9, "gradient_clip": 1.0, "accumulate": 2, "patience": 1},
    },
    "views: crop, mixup, cutmix, erased": PLAIN
    | {"data": {"train": "digits", "augment": {"crop": 1, "rotate": 10, "erase": 0.3, "mixup": 0.2, "cutmix": 1.0}}},
    "live teacher, bfloat16": PLAIN
    | {"teacher": TAUGHT | {"live": True, "precision": "bfloat16"}, "training": SGD | {"precision": "bfloat16"}},
    "a race for the rates, two seeds": PLAIN
    | {"training": {"epochs": 24, "batch_size": 32}, "seeds": 2, "data": {"train": "digits", "augment": {"crop": 1}}},
    "presets: dkd": PLAIN | {"objective": "dkd"},
    "presets: at": PLAIN | {"objective": {"preset": "at", "layers": LAYERS}},
    "presets: crd": PLAIN | {"objective": "crd"},
    "presets: reviewkd": PLAIN | {"objective": {"preset": "reviewkd", "layers": LAYERS}},
    "presets: sp": PLAIN | {"objective": "sp"},
    "attention over two teachers": PLAIN
    | {
        "teacher": {
            "members": [TAUGHT, {"model": "mlp", "args": {"hidden": [32]}, "train": {"batch_size": 64}}],
            "merge": {"weighting": "attention"},
        },
    },
    "teachers of some classes each": PLAIN
    | {
        "teacher": {
            "members": [TAUGHT | {"classes": list("012345")}, TAUGHT | {"classes": list("56789")}],
        },
    },
    "peers that read a layer": PLAIN
    | {
        "peers": [CNN],
        "mutual": 0.5,
        "objective": [{"loss": "cross_entropy"}, {"loss": "hint_mse", "on": "layer2"}],
    },
    "stored: the likeliest classes": PLAIN | {"store": {"codecs": {"logits": {"codec": "top_k", "k": 5}}}},
    "stored: samples of classes": PLAIN
    | {"store": {"codecs": {"logits": {"codec": "random", "draws": 50}}, "accept_loss": True}},
    "regression on features": {
        "task": "regression",
        "data": {"train": "diabetes.py:samples"},
        "teacher": {"model": "mlp", "args": {"hidden": [32, 16]}, "train": {"batch_size": 32}},
        "student": {"model": "mlp", "args": {"hidden": [4]}},
        "objective": "kd",
        "training": {"batch_size": 32, "optimizer": "adamw", "learning_rate": 0.01},
    },
    "exported": PLAIN | {"export": {"formats": ["onnx"]}},
}
"""Ways of training that no example shows; each is a recipe of its own."""
BESIDE = {"regression on features": "regression"}
"""The example whose files such a recipe reads."""
SCRIPTS = {"python": "digits.py"}
LEFT_OUT = ("endpoint", "private_votes")
MAKERS = ("make_teacher.py", "make_data.py", "train_teacher.py")
NOT_COMPARED = ("start.safetensors", "probe.safetensors", "teacher-answers.safetensors")


class CannotCompareError(Exception):
    """What is wrong with the arguments or with a run, in words."""


@dataclass(frozen=True)
class Checkout:
    """A folder with a ``src``, and where its results lie."""

    folder: Path
    results: Path
    kept: bool


@dataclass(frozen=True)
class Result:
    """What one run made: its stages in order, and its files' tensors by name, as bytes with type and shape."""

    stages: tuple[str, ...]
    files: dict[str, dict[str, str]]
    seconds: float


def main() -> int:
    """Run every recipe with both checkouts and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the checkout before the change")
    parser.add_argument("new", type=Path, help="folder of the checkout after it")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="recipes whose name contains one of these"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the results of commits here and use them")
    parser.add_argument("--list", action="store_true", help="print the names of the recipes and stop")
    arguments = parser.parse_args()
    try:
        names = chosen(arguments.old, arguments.only)
        if arguments.list:
            print("\n".join(names))
            return 0
        with tempfile.TemporaryDirectory(prefix="same-weights-") as temporary:
            place = arguments.keep or Path(temporary)
            old, new = (checkout(folder, place, Path(temporary)) for folder in (arguments.old, arguments.new))
            return compare(names, old, new, Path(temporary) / "recipes")
    except CannotCompareError as error:
        print(error, file=sys.stderr)
        return 2


def chosen(old: Path, only: list[str]) -> list[str]:
    """Return the names of the recipes to run."""
    if not (old / "examples").is_dir():
        raise CannotCompareError(f"{old} has no folder 'examples': give the folder of a checkout of potstill.")
    examples = sorted(path.name for path in (old / "examples").iterdir() if path.is_dir())
    names = [*(name for name in examples if name not in LEFT_OUT), *MORE]
    for word in only:
        if not any(word in name for name in names):
            raise CannotCompareError(f"--only {word}: no recipe is called so. There are: {', '.join(names)}.")
    return [name for name in names if not only or any(word in name for word in only)]


def checkout(folder: Path, kept: Path, temporary: Path) -> Checkout:
    """Return a checkout whose code the interpreter really takes."""
    folder = folder.resolve()
    said = subprocess.run(
        [sys.executable, "-c", "import potstill; print(potstill.__file__)"],
        env=environment(folder), capture_output=True, text=True, check=False, cwd=temporary,
    )  # fmt: skip
    if not Path(said.stdout.strip() or "/").resolve().is_relative_to(folder / "src"):
        raise CannotCompareError(
            f"{folder}/src is not what Python imports: {said.stdout.strip() or said.stderr[-500:]}"
        )
    commit = git(folder, "rev-parse", "--short=12", "HEAD")
    if commit and not git(folder, "status", "--porcelain", "--", "src", "examples"):
        return Checkout(folder, kept.resolve() / commit, kept=True)
    return Checkout(folder, Path(tempfile.mkdtemp(dir=temporary, prefix="changed-")), kept=False)


def git(folder: Path, *arguments: str) -> str:
    """Return what git says of a folder, or an empty text where it says nothing."""
    said = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which this checkout's code runs, with one thread."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    return {**os.environ, **threads, "PYTHONPATH": str(folder / "src"), "POTSTILL_QUIET": "1"}


def compare(names: list[str], old: Checkout, new: Checkout, recipes: Path) -> int:
    """Run and compare; print a line for each recipe and what differs below it."""
    width = max(map(len, names))
    print(f"old: {old.folder} ({old.results.name})\nnew: {new.folder} ({new.results.name})\n")
    print(f"{'recipe':{width}}  stages  files  seconds    result", flush=True)
    unequal = []
    for name in names:
        folder = recipes / name
        reason = prepare(name, folder, old)
        if reason:
            print(f"{name:{width}}  {'':24}  not run: {reason}", flush=True)
            continue
        try:
            first, second = result(name, folder, old), result(name, folder, new)
        except CannotCompareError as error:
            unequal.append(name)
            print(f"{name:{width}}  {'':24}  FAILED\n{error}", flush=True)
            continue
        wrong, moved = differences(first, second)
        unequal += [name] if wrong else []
        seconds = f"{first.seconds:.0f}, {second.seconds:.0f}"
        said = "DIFFERENT" if wrong else f"the same, {moved} elsewhere" if moved else "the same"
        print(f"{name:{width}}  {len(second.stages):6}  {len(second.files):5}  {seconds:9}  {said}", flush=True)
        print("".join(f"    {line}\n" for line in wrong), end="", flush=True)
    print(
        f"\n{len(unequal)} of {len(names)} differ: {'; '.join(unequal)}" if unequal else "\nAll that ran are the same."
    )
    return 1 if unequal else 0


def prepare(name: str, folder: Path, old: Checkout) -> str:
    """Write a recipe's folder with all that it reads, made by the old code; return why that cannot be, or nothing."""
    example = old.folder / "examples" / BESIDE.get(name, name)
    if example.is_dir():
        shutil.copytree(example, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    folder.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    if (folder / "train_teacher.py").is_file():
        python = os.environ.get("POTSTILL_KERAS_PYTHON", "")
        if not python:
            return "set POTSTILL_KERAS_PYTHON to an interpreter with Keras"
    for maker in MAKERS:
        if (folder / maker).is_file():
            shorten(folder / maker)
            execute([python, maker], folder, old)
    if name in SCRIPTS:
        shorten(folder / SCRIPTS[name])
        return ""
    written = MORE.get(name) or read(folder / "recipe.yaml")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(shrunk(written), sort_keys=False))
    return ""


def read(recipe: Path) -> dict[str, Any]:
    """Return what a recipe says; its key ``on`` is a text, as potstill reads it, and no truth value."""
    content: dict[str, Any] = yaml.safe_load(re.sub(r"\bon:", "'on':", recipe.read_text()))
    return content


def shorten(script: Path) -> None:
    """Let a script's own trainings be short."""
    script.write_text(re.sub(r"""(["']epochs["']: |epochs=)\d+""", rf"\g<1>{EPOCHS}", script.read_text()))


def shrunk(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with few epochs and samples that measures no times; what it says of others is kept."""
    small = {**SMALL, **recipe}
    if not {"test", "validation"} & set(recipe["data"]):
        small["data"] = {**SMALL["data"], **recipe["data"]}
    small.pop("budget", None)
    small["training"] = {"epochs": EPOCHS, **recipe.get("training", {})}
    return small if recipe in MORE.values() and "epochs" in recipe.get("training", {}) else short(small)


def short(part: Any) -> Any:
    """Return a part of a recipe in which every training has few epochs."""
    if isinstance(part, list):
        return [short(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    return {key: min(EPOCHS, value) if key == "epochs" else short(value) for key, value in part.items()}


def result(name: str, recipe: Path, side: Checkout) -> Result:
    """Run a recipe with a checkout's code, unless its result is kept; return what came out."""
    folder = side.results / f"{re.sub(r'[^a-z0-9_]+', '-', name)}-{content(recipe)[:8]}"
    finished = folder / "seconds.txt"
    if not finished.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(recipe, folder)
        began = time.perf_counter()
        potstill = ["-m", "potstill", "run", "recipe.yaml", "--out", "runs/run", "--quiet"]
        execute([sys.executable, *([SCRIPTS[name]] if name in SCRIPTS else potstill)], folder, side)
        finished.write_text(f"{time.perf_counter() - began:.1f}")
    runs = sorted((folder / "runs").glob("*/run.json"))
    if len(runs) != 1:
        raise CannotCompareError(f"    {side.folder}: one run folder was expected in {folder}/runs, not {len(runs)}")
    stages = tuple(json.loads(runs[0].read_text())["stages"])
    files = {
        str(path.relative_to(folder / "runs")): tensors(path)
        for path in sorted((folder / "runs").rglob("*"))
        if path.suffix in (".safetensors", ".npz", ".npy")
        and path.name not in NOT_COMPARED
        and "checkpoint" not in path.parts
    }
    if not stages or not any(name.endswith(".safetensors") for name in files):
        raise CannotCompareError(f"    {side.folder}: no stages or no weights in {folder}/runs")
    return Result(stages, files, float(finished.read_text()))


def execute(command: list[str], folder: Path, side: Checkout) -> None:
    """Run a command in a folder with a checkout's code."""
    done = subprocess.run(
        command, cwd=folder, env=environment(side.folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-12:])
        raise CannotCompareError(f"    {side.folder}: exit status {done.returncode}\n{said}")


def content(folder: Path) -> str:
    """Return a digest of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def tensors(path: Path) -> dict[str, str]:
    """Return a digest of each tensor of a file: type, shape and bits: NaN is equal to itself, 0 is not -0."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: digest(*bits(file.get_tensor(name))) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    loaded = np.load(path, allow_pickle=False)
    arrays = dict(loaded) if path.suffix == ".npz" else {"": loaded}
    return {name: digest(str(array.dtype), array) for name, array in arrays.items()}


def bits(tensor: torch.Tensor) -> tuple[str, np.ndarray[Any, Any]]:
    """Return a tensor's type and its bytes in its shape: NumPy knows no bfloat16."""
    return str(tensor.dtype), tensor.reshape(-1).view(torch.uint8).numpy().reshape(*tensor.shape, -1)


def digest(dtype: str, array: np.ndarray[Any, Any]) -> str:
    """Return a digest of one array."""
    return f"{dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def differences(old: Result, new: Result) -> tuple[list[str], int]:
    """Return what differs, in words, and how many files lie elsewhere with equal content."""
    wrong = []
    if old.stages != new.stages:
        wrong += [f"stages of old: {', '.join(old.stages)}", f"stages of new: {', '.join(new.stages)}"]
    gone = {name: old.files[name] for name in old.files if name not in new.files}
    come = {name: new.files[name] for name in new.files if name not in old.files}
    moved = 0
    for name, held in gone.items():
        same = next((other for other, values in come.items() if values == held), None)
        if same is None:
            wrong.append(f"only in old: {name}")
        else:
            moved += 1
            del come[same]
    wrong += [f"only in new: {name}" for name in come]
    for name in old.files:
        if name in new.files and old.files[name] != new.files[name]:
            first, second = old.files[name], new.files[name]
            keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
            some = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            wrong.append(f"{name}: {len(keys)} of {len(first)} tensors differ: {some}")
    return wrong, moved


if __name__ == "__main__":
    sys.exit(main())
