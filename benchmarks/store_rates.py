"""How fast the store reads, writes, decodes and records, each beside the plain thing it competes with.

- reading: `StoredTeacher` and `Store.read`, 128 random samples, beside a plain memory map of the same bytes;
- writing: `record` with answers that are there already, beside one buffered write of the same bytes and fsync;
- decoding: every codec beside what a student consumes: ResNet-20 (images/s) or a language model of 6 layers (tokens/s),
  forward and backward;
- recording: ResNet-56 on CIFAR-10 and language models of 6 layers with top-k records, beside the bare forward pass.

Everything runs on one thread. Rates are in processor time, which neighbours on the core disturb little, except for
writing, which waits for the disk; ``wall`` is told beside it. The sides of each comparison take turns; medians.

Predicted: 128 rows of 10 float16 are 2.5 kB: a plain look-up is 2 calls, 3 to 5 µs, while finding rows by id and view,
with every check, is about 12 small array operations of 0.5 µs: 10 µs in all, ratio 0.4. At 1,000 classes 256 kB are
copied and 512 kB written, 25 µs: ratio 0.75. Sequences: 128 x 210 x 48 B = 1.3 MB, 130 µs of copying: 0.8. Writing
syncs every block (2,048 rows) of every file and its journal, twice 1 ms each: small records are written at a few MB/s,
which is still 10^5 rows a second. Decoding top-k is about 20 array operations over k numbers: 5 to 10 µs a token at
k = 50, beside 400 µs of a small student's step: 40 to 80 times. Encoding top-k of 8,192 logits is an exponential and a
partition of each: 100 µs, beside 1 ms of a forward pass of width 768 and 0.2 ms of width 256: ratios 0.9 and 0.65.

    POTSTILL_DATA=... python benchmarks/store_rates.py [--only read write decode record]
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packs import cifar10_part
from small_lm import CONTEXT, LanguageModel
from torch import Tensor, nn
from torch.nn import functional as F

import potstill
from potstill.core.signals import Batch, Ragged
from potstill.data import Stream, make_samples
from potstill.models import Preprocessor, zoo
from potstill.store import Store, describe, record
from potstill.store.codecs import Codec, Full, LowRank, RandomSampling, ThresholdSampling, TopK
from potstill.teachers import LiveTeacher, StoredTeacher, describe_recording

HERE = Path(__file__).parent
BATCH, VOCABULARY = 128, 8192
CLOCKS = ("processor time", "wall time")
Action = Callable[[], object]


def rounds(actions: Mapping[str, Action], count: int, *, seconds: float) -> dict[str, tuple[float, float]]:
    """Return the median processor and wall time of each action.

    They take turns, each repeated for some time in every round; the first round warms up and is not counted.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(count + 1):
        for name, action in actions.items():
            times: list[tuple[float, float]] = []
            while sum(processor for processor, _ in times) < seconds or not times:
                begin = time.process_time(), time.perf_counter()
                action()
                times.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
            if number:
                seen[name].append(_medians(times))
    return {name: _medians(times) for name, times in seen.items()}


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    processor, wall = zip(*times, strict=True)
    return statistics.median(processor), statistics.median(wall)


def row(what: str, case: str, baseline: str, ours: float, plain: float, unit: str, target: float) -> dict[str, Any]:
    """Return a row of the table: two rates, and their ratio."""
    found = {
        "measured": what,
        "case": case,
        "baseline": baseline,
        "rate": float(f"{ours:.4g}"),
        "baseline_rate": float(f"{plain:.4g}"),
        "unit": unit,
        "ratio": round(ours / plain, 3),
        "target": target,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "potstill": potstill.__version__,
    }
    print(found, flush=True)
    return found


def by_id(ids: Tensor) -> Batch:
    return Batch(ids, torch.zeros_like(ids), torch.zeros(1))


def ranges_of_ids(ranges: Any) -> Iterator[Batch]:
    for start, stop in ranges:
        yield by_id(torch.arange(start, stop))


def answers(folder: Path, values: Tensor, offsets: np.ndarray[Any, Any] | None, codec: Codec) -> Store:
    """Record answers that are there already."""

    def answer(batch: Batch) -> dict[str, Tensor | Ragged]:
        start, stop = int(batch.ids[0]), int(batch.ids[-1]) + 1
        if offsets is None:
            return {"logits": values[start:stop]}
        lengths = torch.from_numpy(np.diff(offsets[start : stop + 1]))
        return {"logits": Ragged(values[offsets[start] : offsets[stop]], lengths)}

    ids = np.arange(len(values) if offsets is None else len(offsets) - 1)
    manifest = describe(
        ids=ids,
        data="random numbers",
        teacher={},
        shapes={"logits": tuple(values.shape[1:])},
        codecs={"logits": codec},
        sequences=() if offsets is None else ["logits"],
    )
    return record(answer, ranges_of_ids, folder, manifest, ids)


def plain_map(folder: Path, values: Tensor) -> np.ndarray[Any, Any]:
    (folder / "plain.bin").write_bytes(values.numpy().tobytes())
    return np.memmap(folder / "plain.bin", values.numpy().dtype, "r", shape=tuple(values.shape))


def reading(count: int) -> Iterator[dict[str, Any]]:
    draws = torch.Generator().manual_seed(0)
    for classes, samples in ((10, 50_000), (100, 50_000), (1000, 20_000)):
        logits = torch.randn(samples, classes, generator=draws).half()
        picks = [by_id(torch.randint(0, samples, (BATCH,), generator=draws)) for _ in range(64)]
        with tempfile.TemporaryDirectory() as folder:
            store, plain = (
                answers(Path(folder) / "store", logits.float(), None, Full()),
                plain_map(Path(folder), logits),
            )
            yield from compared(f"{classes} classes float16", store, plain, None, picks, count)
    lengths = torch.randint(20, 401, (4000,), generator=draws)
    offsets = np.concatenate([[0], np.cumsum(lengths.numpy())])
    tokens = torch.randint(0, 256, (int(offsets[-1]), 48), generator=draws).to(torch.uint8)
    picks = [by_id(torch.randint(0, 4000, (BATCH,), generator=draws)) for _ in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        store = answers(Path(folder) / "store", tokens, offsets, Full("uint8"))
        yield from compared("20 to 400 tokens of 48 B", store, plain_map(Path(folder), tokens), offsets, picks, count)


def compared(
    case: str, store: Store, plain: Any, offsets: Any, picks: list[Batch], count: int
) -> Iterator[dict[str, Any]]:
    """Read the same samples from the store and from a plain map of the records."""
    bare = np.asarray(plain)  # without the subclass, whose every look-up costs more

    def look_up(array: Any) -> Callable[[Batch], Tensor]:
        def fixed(batch: Batch) -> Tensor:
            return torch.from_numpy(array.take(batch.ids.numpy(), axis=0)).float()

        def runs(batch: Batch) -> Tensor:
            rows = batch.ids.numpy()
            begins, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
            ends = np.cumsum(lengths)
            return torch.from_numpy(
                array.take(np.arange(ends[-1]) + np.repeat(begins - ends + lengths, lengths), axis=0)
            )

        return fixed if offsets is None else runs

    def read(batch: Batch) -> Tensor:
        found = store.read("logits", batch.ids, batch.views)
        return found.values if isinstance(found, Ragged) else found

    readers: dict[str, Callable[[Batch], Tensor]] = {
        "numpy.memmap, take, torch float32": look_up(plain),
        "the same without the memmap subclass": look_up(bare),
        "Store.read": read,
    }
    if offsets is None:
        teacher = StoredTeacher(store)
        readers["StoredTeacher"] = lambda batch: teacher(batch)["logits"]
    store.verify()
    for batch in picks:
        if any(not torch.equal(one(batch), look_up(bare)(batch)) for one in readers.values()):
            raise SystemExit("the readers disagree")
    turn = iter(range(10**9))
    actions = {name: lambda one=one: one(picks[next(turn) % len(picks)]) for name, one in readers.items()}
    times = rounds(actions, count, seconds=0.05)
    baselines = list(readers)[:2]
    for name in list(readers)[2:]:
        for baseline in baselines:
            yield row(
                "read", f"{case}, {name}", baseline, BATCH / times[name][0], BATCH / times[baseline][0], "rows/s", 0.7
            )


def writing(count: int) -> Iterator[dict[str, Any]]:
    for classes, samples in ((10, 50_000), (100, 50_000), (1000, 20_000)):
        logits = torch.randn(samples, classes)
        half = logits.half().numpy()
        with tempfile.TemporaryDirectory() as root:
            folders = iter(Path(root) / str(number) for number in range(10**6))

            def plain(half: Any = half, folders: Iterator[Path] = folders) -> None:
                with next(folders).open("wb") as file:
                    file.write(half.data)
                    file.flush()
                    os.fsync(file.fileno())

            def ours(logits: Tensor = logits, folders: Iterator[Path] = folders) -> None:
                answers(next(folders), logits, None, Full())

            times = rounds({"plain": plain, "ours": ours}, count, seconds=0)
            for number, clock in enumerate(CLOCKS):
                rates = [half.nbytes / 1e6 / times[name][number] for name in ("ours", "plain")]
                case = f"{classes} classes float16, {samples} rows, {clock}"
                yield row("write", case, "one write and fsync", *rates, "MB/s", 0.0)


def resnet20_rate(count: int) -> float:
    """Return images/s of a student's forward and backward pass, as it is trained by default."""
    student = zoo.resnet20().to(memory_format=torch.channels_last)
    inputs = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = student(inputs)
        F.cross_entropy(logits.float(), targets).backward()

    return BATCH / rounds({"step": step}, count, seconds=0.5)["step"][0]


def language_rate(count: int) -> float:
    """Return tokens/s of a student of 6 layers, width 256, forward and backward, with its vocabulary of 8,192."""
    student, pieces = LanguageModel(VOCABULARY, 256, 6), torch.randint(0, VOCABULARY, (4, CONTEXT + 1))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = student.hidden(pieces[:, :-1]) @ student.head.T
        F.cross_entropy(logits.flatten(0, 1).float(), pieces[:, 1:].flatten()).backward()

    return 4 * CONTEXT / rounds({"step": step}, count, seconds=0.5)["step"][0]


def decoding(count: int) -> Iterator[dict[str, Any]]:
    images, tokens = resnet20_rate(count), language_rate(count)
    logits = peaked(1024)
    keys = np.arange(2048, dtype=np.uint64)
    small = torch.randn(2048, 10).numpy()
    cases: list[tuple[str, Codec, Any, float, str]] = [
        (f"full {kind}, 10 classes", Full(kind), small, images, "resnet20")  # type: ignore[arg-type]
        for kind in ("float32", "float16", "bfloat16", "int8")
    ]
    for codec in (TopK(50), TopK(300), RandomSampling(50), ThresholdSampling(50), Full("float16"), Full("int8")):
        cases.append((f"{codec.to_json()}, {VOCABULARY} classes", codec, logits, tokens, "language model"))
    low = LowRank(64)
    cases.append((f"{low.to_json()}, coefficients", low, logits[:, :64].copy(), tokens, "language model"))
    for case, codec, values, consumed, student in cases:
        records, shape = (
            codec.encode(values, keys[: len(values)] if len(values) <= len(keys) else None),
            values.shape[1:],
        )  # type: ignore[arg-type]
        ways: dict[str, Callable[[], object]] = {"dense": lambda: codec.decode(records, shape)}  # noqa: B023
        if hasattr(codec, "decode_sparse"):
            ways["sparse"] = lambda: codec.decode_sparse(records, shape)  # noqa: B023
        times = rounds(ways, count, seconds=0.1)
        for way, (seconds, _) in times.items():
            rate, unit = len(values) / seconds, "images/s" if student == "resnet20" else "tokens/s"
            yield row("decode", f"{case}, {way}", f"{student} step", rate, consumed, unit, 20.0)


def peaked(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return logits (count, vocabulary) whose probabilities fall with their rank about as those of a trained model."""
    draws = torch.Generator().manual_seed(0)
    ranks = torch.rand(count, VOCABULARY, generator=draws).argsort(1).float()
    found: np.ndarray[Any, np.dtype[np.float32]] = (-1.3 * (1 + ranks).log() + torch.randn(ranks.shape)).numpy()
    return found


def recording(count: int) -> Iterator[dict[str, Any]]:
    images, labels = cifar10_part("train-1of5")
    samples = make_samples(np.arange(1024), labels[:1024], lambda rows: torch.from_numpy(images[rows]))
    teacher = LiveTeacher(
        zoo.resnet56(),
        preprocess=Preprocessor(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
        precision="bfloat16",
    )  # fmt: skip

    def batches(ranges: Any = None) -> Iterator[Batch]:
        return Stream(samples).recording(256, ranges=ranges)

    manifest = describe_recording(teacher, next(batches()), ids=samples.ids, data=samples.fingerprint)
    yield from recorded("resnet56 bfloat16, CIFAR-10, full float16", teacher, batches, manifest, samples.ids, 1, count)

    for width in (256, 768):
        model = LanguageModel(VOCABULARY, width, 6).eval()
        pieces = torch.randint(0, VOCABULARY, (8, CONTEXT))
        ids = np.arange(len(pieces))

        @torch.inference_mode()
        def answer(batch: Batch, model: nn.Module = model, pieces: Tensor = pieces) -> dict[str, Ragged]:
            logits = (model.hidden(pieces[batch.ids]) @ model.head.T).flatten(0, 1)  # type: ignore[operator, union-attr]
            return {"logits": Ragged(logits, torch.full((len(batch),), CONTEXT))}

        def sequences(ranges: Any = ((0, 8),)) -> Iterator[Batch]:
            for start, stop in ranges:
                yield from (by_id(torch.arange(first, min(first + 4, stop))) for first in range(start, stop, 4))

        for codec in (TopK(50), ThresholdSampling(50)):
            described = describe(
                ids=ids, data="random tokens", teacher={}, shapes={"logits": (VOCABULARY,)}, sequences=["logits"],
                codecs={"logits": codec},
            )  # fmt: skip
            case = f"language model of width {width} float32, {codec.to_json()}"
            yield from recorded(case, answer, sequences, described, ids, CONTEXT, count)


def recorded(
    case: str, teacher: Any, batches: Any, manifest: Any, ids: Any, items: int, count: int
) -> Iterator[dict[str, Any]]:
    """Compare recording with asking the teacher about the same batches."""
    with tempfile.TemporaryDirectory() as root:
        folders = iter(Path(root) / str(number) for number in range(10**6))

        def bare() -> None:
            for batch in batches():
                teacher(batch)

        def ours() -> None:
            record(teacher, batches, next(folders), manifest, ids)

        times = rounds({"bare": bare, "ours": ours}, count, seconds=0)
        unit = "images/s" if items == 1 else "tokens/s"
        for number, clock in enumerate(CLOCKS):
            rates = [len(ids) * items / times[name][number] for name in ("ours", "bare")]
            yield row("record", f"{case}, {clock}", "bare forward", *rates, unit, 0.95)


PARTS: dict[str, tuple[Callable[[int], Iterator[dict[str, Any]]], int]] = {
    "read": (reading, 7),
    "write": (writing, 3),
    "decode": (decoding, 3),
    "record": (recording, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = HERE / "results" / "store_rates.csv"
    for part in given.only:
        measure, count = PARTS[part]
        kept = list(csv.DictReader(path.open())) if path.exists() else []
        rows = [old for old in kept if old["measured"] != part] + list(measure(count))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda one: list(PARTS).index(one["measured"])))


if __name__ == "__main__":
    main()
