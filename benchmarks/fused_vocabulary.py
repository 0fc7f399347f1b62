"""Forward KL over a whole vocabulary from hidden states and heads: time, memory and exactness beside other packages.

    python benchmarks/fused_vocabulary.py            # makes the environment of the rivals, measures, writes the CSV
    python benchmarks/fused_vocabulary.py --quick    # one small shape, to see that everything runs

Shapes are (tokens, student's width, teacher's width, vocabulary) of real pairs: Qwen2.5 0.5B from 1.5B, SmolLM 135M
from 360M, Llama 3.2 1B from 3.1 8B. Every case is a process of its own; its versions are interleaved, round by round,
on the same tensors, and each call is a whole step: loss, backward, gradients of the hidden states and the head.

- limit: the four matrix products alone, 2 · valid rows · v · (3 · hs + ht) operations, measured in the same rounds.
- peak: what the resident memory rises above the inputs, gradients included (high-water mark, reset before each call).
- errors: of both gradients against float64, relative in the Euclidean norm, on 16 rows and 512 tokens.

A CPU without bfloat16 products emulates them, a hundred times slower than float32. Versions that would multiply that
way are not waited for: a row says so, and beside it stands the version whose caller lifts everything to float32 first.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "fused_vocabulary.csv"
CACHE = Path(os.environ.get("POTSTILL_RIVALS", Path.home() / ".cache" / "potstill" / "fused_vocabulary"))
TORCH, PACKAGES = "torch==2.13.0", (("trl==1.16.*", "liger-kernel==0.8.5"), ("torchtune==0.6.1", "torchao==0.16.0"))
SHAPES = {"qwen": (512, 896, 1536, 151936), "smollm": (1024, 576, 960, 49152), "llama": (256, 2048, 4096, 128256)}
QUICK = {"quick": (64, 64, 96, 8192)}
ROUNDS = 3
LONGEST = 60.0  # seconds one call may be predicted to take


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--case", help="for the processes that this one starts")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return
    python = environment()
    rows = []
    shapes = QUICK if arguments.quick else {name: SHAPES[name] for name in arguments.shapes}
    for name, shape in shapes.items():
        for dtype in arguments.precisions:
            for valid in (0.5, 1.0):
                case = {"name": name, "shape": shape, "dtype": dtype, "valid": valid}
                print(case, flush=True)
                rows += run(python, case)
                if not arguments.quick:  # after every case: a long run that is stopped keeps what it has
                    write(rows)


def write(rows: list[dict]) -> None:
    """Write rows in the place of those of the same cases; the rows of other shapes and precisions stay."""
    measured = {case_of(row) for row in rows}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if case_of(row) not in measured] + rows
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def case_of(row: dict) -> tuple[str, str, float]:
    """Return what was measured together: shape, precision and share of valid tokens."""
    return row["shape"], row["dtype"], float(row["valid"])


def environment() -> Path:
    """Return the Python of the rivals' environment. A package that does not install is reported by its rows."""
    python = CACHE / "bin" / "python"
    done = CACHE / "installed.txt"
    wanted = f"{TORCH} {PACKAGES}"
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(CACHE)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH], check=True)
        for group in PACKAGES:
            subprocess.run([*pip, TORCH, *group], check=False)
        done.write_text(wanted)
    return python


def run(python: Path, case: dict) -> list[dict]:
    source = str(HERE.parent / "src")
    variables = {"PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(python), str(Path(__file__).resolve()), "--case", json.dumps(case)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{case} failed:\n{result.stderr[-3000:]}")
    rows = json.loads(result.stdout.strip().splitlines()[-1])
    for row in rows:
        print(
            "  ", {key: row[key] for key in ("version", "median_seconds", "times_limit", "peak_mb", "note")}, flush=True
        )
    return rows


def measure(name: str, shape: list[int], dtype: str, valid: float) -> list[dict]:
    import torch

    num_tokens, student_width, teacher_width, vocabulary = shape
    random = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)

    def normal(rows: int, width: int, scale: float) -> torch.Tensor:
        return (scale * torch.randn(rows, width, generator=random)).to(kind)

    # logits of standard deviation 3, as peaked as those of a trained model
    data = {
        "student": normal(num_tokens, student_width, 1.0).requires_grad_(),
        "weight": normal(vocabulary, student_width, 3 * student_width**-0.5).requires_grad_(),
        "teacher": normal(num_tokens, teacher_width, 1.0),
        "teacher_weight": normal(vocabulary, teacher_width, 3 * teacher_width**-0.5),
        "targets": torch.randint(0, vocabulary, (num_tokens,), generator=random),
    }
    data["where"] = torch.arange(num_tokens) % 2 == 0 if valid < 1 else torch.ones(num_tokens, dtype=torch.bool)
    kept = int(data["where"].sum())
    operations = 2 * kept * vocabulary * (3 * student_width + teacher_width)
    exact = reference(data)
    rate = products_per_second(kind)
    predicted = 2 * num_tokens * vocabulary * (3 * student_width + teacher_width) / rate
    too_slow = f"not run: about {predicted:.0f} s, {dtype} products run at {rate / 1e9:.1f} GFLOP/s here"
    found: dict[str, dict] = {}
    calls: dict[str, Callable] = {}
    for version_name, (package, make) in VERSIONS.items():
        row = found[version_name] = entry(package)
        if dtype == "float32" or package in ("potstill", "trl") or predicted < LONGEST:
            calls[version_name] = lambda make=make: make(data)()
            continue
        row["note"] = too_slow
        found[f"{version_name}, lifted"] = entry(package, "the caller lifts everything to float32")
        calls[f"{version_name}, lifted"] = lambda make=make: make(lifted(data))()
    found["matrix products"] = entry("torch")
    for number in range(ROUNDS + 1):
        for version_name, loss in list(calls.items()):
            row = found[version_name]
            try:
                seconds, peak, gradients = step(data, loss)
            except Exception as error:
                row["note"] = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
                del calls[version_name]
                continue
            if number:
                row["seconds"].append(seconds)
                row["peaks"].append(peak)
            else:  # the first round warms up, imports, and is looked at for errors
                row["errors"] = errors(gradients, exact)
            del gradients
        if number:
            found["matrix products"]["seconds"].append(matrix_products(data))
    fastest = statistics.median(found["matrix products"]["seconds"])
    rows = []
    for version_name, row in found.items():
        seconds = statistics.median(row["seconds"]) if row["seconds"] else float("nan")
        own = statistics.median(found["potstill"]["seconds"])
        hidden_error, weight_error = row["errors"]
        peak = statistics.median(row["peaks"]) if row["peaks"] else float("nan")
        rows.append(
            {
                "shape": name, "tokens": num_tokens, "student_width": student_width, "teacher_width": teacher_width,
                "vocabulary": vocabulary, "dtype": dtype, "valid": valid, "version": version_name,
                "median_seconds": round(seconds, 3), "time_ratio_to_potstill": round(seconds / own, 3),
                "times_limit": round(seconds / fastest, 3), "gflops": round(operations / seconds / 1e9, 1),
                "peak_mb": round(peak / 1e6, 1), "hidden_gradient_error": f"{hidden_error:.1e}",
                "weight_gradient_error": f"{weight_error:.1e}", "rounds": len(row["seconds"]), "note": row["note"],
                "package": row["package"] + " " + installed(row["package"]), "torch": torch.__version__,
                "threads": torch.get_num_threads(), "machine": processor(),
            }
        )  # fmt: skip
    return rows


def entry(package: str, note: str = "") -> dict:
    return {"seconds": [], "peaks": [], "package": package, "note": note, "errors": (float("nan"), float("nan"))}


def lifted(data: dict) -> dict:
    return {name: value.float() if value.is_floating_point() else value for name, value in data.items()}


# the versions: each gives a function that returns the loss, the mean over valid tokens of forward KL


def ours(data: dict) -> Callable:
    from potstill.losses.sequence import linear_forward_kl

    def loss():
        values = linear_forward_kl(
            data["student"], data["teacher"], student_head=data["weight"], teacher_head=data["teacher_weight"],
            where=data["where"],
        )  # fmt: skip
        return values.sum() / data["where"].sum()

    return loss


def trl(data: dict) -> Callable:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss():
        return _chunked_divergence_loss(
            data["student"][None], data["teacher"][None], data["weight"], data["teacher_weight"],
            data["where"][None], beta=0.0,
        )[0]  # fmt: skip

    return loss


def liger(data: dict, **options) -> Callable:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    make = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, **options)
    labels = data["targets"].masked_fill(~data["where"], -100)
    return lambda: make(data["student"], data["weight"], data["teacher"], data["teacher_weight"], labels)


def torchtune(data: dict) -> Callable:
    import torch.nn.functional as F
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    chunked = ForwardKLWithChunkedOutputLoss(8)
    labels = data["targets"].masked_fill(~data["where"], -100)[None]

    def loss():
        student = [F.linear(part, data["weight"])[None] for part in data["student"].chunk(8)]
        teacher = [F.linear(part, data["teacher_weight"])[None] for part in data["teacher"].chunk(8)]
        return chunked(student, teacher, labels)

    return loss


def naive(data: dict, *, valid_only: bool = False) -> Callable:
    import torch.nn.functional as F

    def loss():
        where = data["where"]
        student, teacher = data["student"], data["teacher"]
        if valid_only:
            student, teacher = student[where], teacher[where]
        q = F.linear(student, data["weight"]).float().log_softmax(-1)
        p = F.linear(teacher, data["teacher_weight"]).float().log_softmax(-1)
        values = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        return (values if valid_only else values[where]).sum() / where.sum()

    return loss


VERSIONS: dict[str, tuple[str, Callable]] = {
    "potstill": ("potstill", ours),
    "trl": ("trl", trl),
    "liger": ("liger-kernel", liger),
    "liger, chunks of 256": ("liger-kernel", lambda data: liger(data, chunk_size=256)),
    "torchtune": ("torchtune", torchtune),
    "naive": ("torch", naive),
    "naive, valid rows": ("torch", lambda data: naive(data, valid_only=True)),
}


# how each thing is measured


def step(data: dict, loss: Callable) -> tuple[float, int, tuple]:
    """Return seconds, bytes above what was there before, and both gradients of one call."""
    leaves = (data["student"], data["weight"])
    for leaf in leaves:
        leaf.grad = None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    begin = time.perf_counter()
    loss().backward()
    seconds = time.perf_counter() - begin
    peak = status("VmHWM") - before
    gradients = tuple(leaf.grad for leaf in leaves)
    for leaf in leaves:
        leaf.grad = None
    return seconds, peak, gradients


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def matrix_products(data: dict) -> float:
    """Return the seconds of the products of one step, in float32, or in bfloat16 where both are and that is faster."""
    import torch

    rows = int(data["where"].sum())
    kind = data["weight"].dtype
    if kind == torch.bfloat16 and products_per_second(kind) < products_per_second(torch.float32):
        kind = torch.float32
    student, weight = data["student"].detach()[:rows].to(kind), data["weight"].detach().to(kind)
    teacher, teacher_weight = data["teacher"][:rows].to(kind), data["teacher_weight"].to(kind)
    # outputs are written to once before, so that no memory has to be found while the clock runs
    logits, total, hidden = torch.ones(rows, len(weight), dtype=kind), torch.ones_like(weight), torch.ones_like(student)
    begin = time.perf_counter()
    torch.mm(teacher, teacher_weight.t(), out=logits)
    torch.mm(student, weight.t(), out=logits)
    torch.mm(logits, weight, out=hidden)
    torch.mm(logits.t(), student, out=total)
    return time.perf_counter() - begin


def products_per_second(kind) -> float:
    """Return operations per second of one small product, of the kind that emulation is slowest at."""
    import torch

    left, right = torch.ones(32, 2048, dtype=kind), torch.ones(2048, 256, dtype=kind)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begin)
    return 2 * 32 * 2048 * 256 / min(times)


def reference(data: dict, block: int = 8192) -> tuple:
    """Return rows, tokens and both gradients of these rows and tokens, in float64 of the same numbers."""
    import torch

    with torch.no_grad():
        valid = data["where"].nonzero().squeeze(1)

        def probabilities(hidden, weight):
            hidden = hidden[valid].double()
            logits = torch.cat([hidden @ part.double().t() for part in weight.split(block)], dim=1)
            return logits.sub_(logits.logsumexp(1, keepdim=True)).exp_()

        gradient = probabilities(data["student"], data["weight"])
        gradient.sub_(probabilities(data["teacher"], data["teacher_weight"])).div_(len(valid))
        parts = zip(gradient[:16].split(block, dim=1), data["weight"].split(block), strict=True)
        by_row = sum(part @ weight.double() for part, weight in parts)
        tokens = torch.linspace(0, len(data["weight"]) - 1, 512).long()
        return valid[:16], tokens, by_row, gradient[:, tokens].t() @ data["student"][valid].double()


def errors(gradients: tuple, exact: tuple) -> tuple[float, float]:
    rows, tokens, by_row, by_token = exact
    hidden, weight = gradients[0][rows].double(), gradients[1][tokens].double()
    return tuple(((got - want).norm() / want.norm()).item() for got, want in ((hidden, by_row), (weight, by_token)))


def installed(package: str) -> str:
    if package == "potstill":
        import potstill

        return potstill.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
