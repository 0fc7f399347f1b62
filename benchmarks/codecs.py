"""What a token of a language model's logits costs on disk, and what is left of the gradient.

    python benchmarks/codecs.py            # trains two small models for each vocabulary, measures, writes the CSV
    python benchmarks/codecs.py --quick    # a vocabulary of 8,192, few tokens, hardly trained: to see that all runs

The angle is between the gradients of forward KL with respect to the weight of a student's head, for the stored and for
the whole distribution, summed over the tokens. Other packages' formats are made again from what they are described to
store, with their arithmetic in float64:

- plain float16: int32 id and float16 log-probability of each class.
- Megatron-LM: ids of 17 bits as uint16 and a boolean, float16 log-probabilities, also after zstd over 1,024 tokens.
- DistillKit: ids bit-packed in order of probability, the first few log-probabilities as they are (bfloat16), the rest
  as a least-squares fit of terms in their rank, coefficients float32. Ranks are scaled to 0 to 1: the fit is exact.

Tail: what becomes of the probability that is not kept. `renormalise` scales the rest up, `bucket` compares it with the
student's for all other tokens together, `spread` spreads it evenly. Samples have no tail.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import small_lm

from potstill.core.random import key
from potstill.store.codecs import (
    Full,
    LowRank,
    RandomSampling,
    Sparse,
    ThresholdSampling,
    TopK,
    fit_basis,
    project,
    rebuild,
)
from potstill.store.codecs.bits import ids_width, pack, pack_ids, packed_width, unpack, unpack_ids
from potstill.store.fidelity import Kept, compare

RESULTS = Path(__file__).resolve().parent / "results" / "codecs.csv"
TEACHER, STUDENT = (256, 4), (128, 2)  # width, layers
SECONDS = {8_192: (360, 50), 50_257: (180, 45)}
TOKENS = {8_192: (2_048, 16_384), 50_257: (2_048, 8_192)}
TIMED = 256


@dataclass(frozen=True)
class Case:
    version: str
    setting: str
    tails: tuple[str, ...]
    make: Callable[[np.ndarray, np.ndarray], Kept]
    encode: Callable[[np.ndarray, np.ndarray], object] | None = None
    decode: Callable[[object, tuple[int, ...]], object] | None = None


def ours(codec, *tails: str) -> Case:
    def make(logits: np.ndarray, keys: np.ndarray) -> Kept:
        records = codec.encode(logits, keys)
        decode = codec.decode if isinstance(codec, Full) else codec.decode_sparse
        return Kept(codec, records.data.size / len(logits), decode(records, logits.shape[1:]))

    settings = ", ".join(f"{name} {value}" for name, value in codec.to_json().items() if name != "codec")
    decode = codec.decode if isinstance(codec, Full) else codec.decode_sparse
    return Case(f"potstill {codec.name}", settings, tails or ("none",), make, codec.encode, decode)


def likeliest(logits: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and exact log-probabilities (n, k), likeliest first."""
    ids, values = [], []
    for part in torch.from_numpy(logits).split(256):
        top = part.topk(k, dim=1)
        ids.append(top.indices)
        values.append(top.values.double() - part.double().logsumexp(1, keepdim=True))
    return torch.cat(ids), torch.cat(values)


def plain(k: int) -> Case:
    def make(logits: np.ndarray, _: np.ndarray) -> Kept:
        ids, values = likeliest(logits, k)
        sparse = Sparse(ids, values.half().float().exp(), "bucket", logits.shape[1])
        return Kept(TopK(k), 6.0 * k, sparse)

    return Case("plain float16 top-k", f"k {k}", ("renormalise",), make)


def megatron(k: int, *, compressed: bool) -> Case:
    def make(logits: np.ndarray, _: np.ndarray) -> Kept:
        ids, values = likeliest(logits, k)
        size = 5.0 * k
        if compressed:
            sys.path.insert(0, str(small_lm.CACHE))
            import zstandard

            squeeze = zstandard.ZstdCompressor(level=3).compress
            size = 0.0
            for start in range(0, len(ids), 1024):
                part = ids[start : start + 1024].numpy()
                columns = (part.astype(np.uint16), part >= 2**16, values[start : start + 1024].half().numpy())
                size += sum(len(squeeze(np.ascontiguousarray(column).tobytes())) for column in columns) / len(ids)
        return Kept(TopK(k), size, Sparse(ids, values.half().float().exp(), "bucket", logits.shape[1]))

    return Case("Megatron-style top-k", f"k {k}{', zstd' if compressed else ''}", ("renormalise",), make)


def distillkit(k: int, exact: int, powers: tuple[float, ...], name: str) -> Case:
    def make(logits: np.ndarray, _: np.ndarray) -> Kept:
        ids, values = likeliest(logits, k)
        rank = np.linspace(0, 1, k - exact)
        design = torch.from_numpy(np.stack([rank**power for power in powers], axis=1))
        coefficients = (values[:, exact:] @ torch.linalg.pinv(design).T).float()
        decoded = torch.cat((values[:, :exact].bfloat16().double(), coefficients.double() @ design.T), 1)
        kept = decoded.exp()
        kept = kept / kept.sum(1, keepdim=True).clamp_min(1)  # a fit may add up to more than 1
        bits = max(1, math.ceil(math.log2(logits.shape[1])))
        size = packed_width(k, bits) + 2 * exact + 4 * len(powers)
        return Kept(TopK(k), float(size), Sparse(ids, kept.float(), "bucket", logits.shape[1]))

    return Case("DistillKit", f"{name}: k {k}, exact {exact}", ("renormalise", "bucket"), make)


def shuffled(codec: ThresholdSampling) -> Case:
    """Systematic sampling in a random order of ids instead of ascending."""

    def make(logits: np.ndarray, keys: np.ndarray) -> Kept:
        order = np.random.default_rng(0).permutation(logits.shape[1])
        kept = ours(codec).make(np.ascontiguousarray(logits[:, order]), keys)
        return replace(kept, answer=replace(kept.answer, ids=torch.from_numpy(order)[kept.answer.ids]))

    return Case("potstill threshold", f"size {codec.size}, bits {codec.bits}, ids shuffled", ("none",), make)


def low_rank(codec: LowRank, hidden: np.ndarray, weight: np.ndarray) -> Case:
    def make(logits: np.ndarray, _: np.ndarray) -> Kept:
        basis = fit_basis(hidden[:2048], codec.rank, weight)
        records = codec.encode(project(hidden[: len(logits)], basis))
        found = codec.decode(records, (codec.rank,))
        return Kept(codec, float(records.data.shape[1]), rebuild(found, basis, torch.from_numpy(weight)))

    return Case("potstill low_rank", f"rank {codec.rank}, dtype {codec.dtype}", ("none",), make)


def cases(hidden: np.ndarray, weight: np.ndarray, *, quick: bool) -> list[Case]:
    forms = ("renormalise", "bucket", "spread")
    made = [
        *(plain(k) for k in (12, 50, 300)),
        megatron(300, compressed=False), megatron(300, compressed=True), megatron(1024, compressed=False),
        distillkit(128, 16, (0, 1, 2, 3, 4, 0.5), "recommended"), distillkit(50, 1, (0, 1, 0.5), "budget"),
        *(ours(TopK(k), *forms) for k in (12, 50, 300)),
        *(ours(RandomSampling(draws)) for draws in (12, 25, 50, 100)),
        *(ours(RandomSampling(draws, systematic=True)) for draws in (12, 25, 50, 100, 200)),
        *(ours(ThresholdSampling(size)) for size in (8, 16, 24, 32, 48, 64)),
        *(ours(ThresholdSampling(size, 4)) for size in (8, 16, 24, 32, 48, 64)),
        *(ours(ThresholdSampling(32, bits)) for bits in (5, 6, 12)),
        shuffled(ThresholdSampling(32)),
        *(low_rank(LowRank(rank, "int8"), hidden, weight) for rank in ((64, 128) if len(weight) < 2**14 else (64,))),
        ours(Full("int8")),
    ]  # fmt: skip
    return made[::4] if quick else made


def rates(case: Case, logits: np.ndarray, keys: np.ndarray) -> tuple[float | str, float | str]:
    """Return tokens per second of processor time, encoded and decoded, the best of three."""
    if case.encode is None or case.decode is None:
        return "", ""
    encoding, decoding = [], []
    for _ in range(3):
        begin = time.process_time()
        records = case.encode(logits[:TIMED], keys[:TIMED])
        encoding.append(time.process_time() - begin)
    records = case.encode(logits[:2048], keys[:2048])
    for _ in range(3):
        begin = time.process_time()
        case.decode(records, logits.shape[1:])
        decoding.append(time.process_time() - begin)
    return round(TIMED / min(encoding)), round(min(2048, len(logits)) / min(decoding))


@torch.inference_mode()
def logits_of(model: small_lm.LanguageModel, hidden: torch.Tensor) -> np.ndarray:
    found = np.empty((len(hidden), len(model.head)), np.float32)
    for start in range(0, len(hidden), 512):
        found[start : start + 512] = (hidden[start : start + 512] @ model.head.T).numpy()
    return found


def measure(vocabulary: int, *, quick: bool) -> list[dict]:
    seconds = (5, 5) if quick else SECONDS[vocabulary]
    counts = (512,) if quick else TOKENS[vocabulary]
    models = [
        small_lm.trained(vocabulary, *size, budget) for size, budget in zip((TEACHER, STUDENT), seconds, strict=True)
    ]
    states, losses = [], []
    for model in models:
        hidden, targets = small_lm.held_out(model, vocabulary, counts[-1])
        states.append(hidden)
        with torch.inference_mode():
            parts = [
                torch.nn.functional.cross_entropy((h @ model.head.T), t, reduction="sum")
                for h, t in zip(hidden.split(512), targets.split(512), strict=True)
            ]
        losses.append(float(sum(parts)) / len(targets))
    teacher, student = (logits_of(model, hidden) for model, hidden in zip(models, states, strict=True))
    entropy = float(np.mean([np_entropy(part) for part in np.array_split(teacher, max(1, len(teacher) // 256))]))
    print(
        f"{vocabulary}: held-out loss {losses[0]:.2f} and {losses[1]:.2f}, teacher's entropy {entropy:.2f}", flush=True
    )
    rows, keys = [], key(0, np.arange(counts[-1]))
    every = cases(states[0].numpy(), models[0].head.detach().numpy(), quick=quick)
    kept = []
    for case in every:
        kept.append(case.make(teacher, keys))
        print("  kept", case.version, case.setting, round(kept[-1].bytes_per_item, 1), flush=True)
    speeds = [rates(case, teacher, keys) for case in every]
    for count in counts:
        for tail in ("renormalise", "bucket", "spread"):
            chosen = [
                place for place, case in enumerate(every)
                if tail in case.tails or (tail == "renormalise" and case.tails == ("none",))
            ]  # fmt: skip
            found = compare(
                teacher[:count], [first(kept[place], count) for place in chosen],
                student_logits=student[:count], hidden=states[1].numpy()[:count], tail=tail,
            )  # fmt: skip
            for place, result in zip(chosen, found, strict=True):
                case, samples = every[place], result.kl is None
                row = {
                    "vocabulary": vocabulary, "tokens": count, "version": case.version, "setting": case.setting,
                    "tail": "none" if case.tails == ("none",) else tail, "bytes": round(kept[place].bytes_per_item, 1),
                    "angle": round(result.angle, 2), "norm_ratio": round(result.norm_ratio, 4),
                    "not_kept": round(result.missing, 5), "kl": "" if samples else f"{result.kl:.2e}",
                    "encoded_per_second": speeds[place][0], "decoded_per_second": speeds[place][1],
                    "teacher_loss": round(losses[0], 3), "student_loss": round(losses[1], 3),
                    "teacher_entropy": round(entropy, 3), "potstill": version("potstill"), "torch": torch.__version__,
                    "numpy": np.__version__, "threads": torch.get_num_threads(), "machine": processor(),
                }  # fmt: skip
                rows.append(row)
                print("  ", *[row[name] for name in list(row)[1:12]], flush=True)
    return rows + id_rows(vocabulary, kept, every, rows[0])


def first(kept: Kept, count: int) -> Kept:
    answer = kept.answer
    if isinstance(answer, torch.Tensor):
        return replace(kept, answer=answer[:count])
    return replace(kept, answer=replace(answer, ids=answer.ids[:count], probabilities=answer.probabilities[:count]))


def np_entropy(logits: np.ndarray) -> float:
    log_p = torch.from_numpy(logits).double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean())


def id_rows(vocabulary: int, kept: list[Kept], every: list[Case], like: dict) -> list[dict]:
    """Return bytes and reading rates of three codes of the same ids."""
    rows, seen = [], set()
    bits = math.ceil(math.log2(vocabulary))
    for case, entry in zip(every, kept, strict=True):
        if case.version not in ("potstill top_k", "potstill threshold") or isinstance(entry.answer, torch.Tensor):
            continue
        ids = entry.answer.ids.numpy()[:2048]
        k = ids.shape[1]
        if k in seen or (np.diff(ids, axis=1) < 0).any():
            continue
        seen.add(k)
        fixed, ascending = pack(ids, bits), pack_ids(ids, vocabulary)
        gaps = np.diff(ids, axis=1, prepend=0)
        bytes_of_gaps = np.searchsorted([2**7, 2**14, 2**21], gaps, side="right") + 1
        codes = (
            ("ids of fixed width", fixed.shape[1], partial(unpack, fixed, k, bits)),
            ("ids ascending", ids_width(k, vocabulary), partial(unpack_ids, ascending, k, vocabulary)),
            ("ids as gaps of 7 bits a byte", float(bytes_of_gaps.sum(1).mean()), None),
            ("ids, least for any set", math.log2(math.comb(vocabulary, k)) / 8, None),
        )  # fmt: skip
        for name, size, read in codes:
            best = ""
            if read is not None:
                times = []
                for _ in range(5):
                    begin = time.process_time()
                    read()
                    times.append(time.process_time() - begin)
                best = round(len(ids) / min(times))
            empty = dict.fromkeys(("angle", "norm_ratio", "not_kept", "kl", "encoded_per_second"), "")
            row = like | empty | {
                "tokens": len(ids), "version": name, "setting": f"{k} ids ({case.version}, {case.setting})", "tail": "",
                "bytes": round(size, 1), "decoded_per_second": best,
            }  # fmt: skip
            rows.append(row)
    return rows


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vocabularies", nargs="+", type=int, choices=SECONDS, default=list(SECONDS))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    small_lm.CACHE.mkdir(parents=True, exist_ok=True)
    small_lm.packages()
    rows = []
    if RESULTS.exists():  # a vocabulary that is not measured now keeps its rows
        with RESULTS.open() as file:
            rows = [row for row in csv.DictReader(file) if int(row["vocabulary"]) not in arguments.vocabularies]
    for vocabulary in arguments.vocabularies[:1] if arguments.quick else arguments.vocabularies:
        rows += measure(vocabulary, quick=arguments.quick)
    if arguments.quick:
        return
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
