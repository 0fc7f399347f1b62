"""How often the intervals of "distilled minus alone" are wrong, over data sets that are drawn.

Each set has students of both kinds that are equally good (or, for power, the distilled ones 2 points better). From
three seeds on, an interval errs when it excludes the true mean difference; with one or two seeds it is about these
weights, so it errs when it excludes the true difference of these students. Beside it stands the rule that it replaced
(resampled examples, and Student's t over seeds added on top), with infinitely many resamples.

Three kinds of sets: *independent* (each answer is right with the student's chance), *shared* (all students find the
same examples hard) and *opposed* (besides, distilled students find other examples hard than those alone).

    python -m benchmarks.interval_simulation [--sets 4000] [--out FILE.csv]      accuracy, every cell: some minutes
    python -m benchmarks.interval_simulation --metrics [--sets 1000]             the other metrics, and single models
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from potstill.evaluation.evaluate import OVER_CLASSES
from potstill.evaluation.intervals import half_width, interval, mean_squares, spare
from potstill.tasks import delete_one, kinds, metrics

SEEDS, EXAMPLES = (1, 2, 3, 5, 10), (60, 300, 2000)
ACCURACIES, SPREADS = (0.8, 0.9, 0.95, 0.98), (0.0, 0.005, 0.01, 0.02)
KINDS = {"independent": (0.0, 0.0), "shared": (0.6, 0.0), "opposed": (0.6, 0.3)}
FEWER = (0.9, 0.98), (0.0, 0.01)  # accuracies and spreads of the kinds that take longer to draw
EFFECT = 0.02
BLOCK = 2**20
RESULTS = Path(__file__).parent / "results"
# Half a width of (normal of one error) + (Student's t of another) by the share of the second, per number of seeds.
SHARES = np.linspace(0, 1, 101)


def rights(
    generator: np.random.Generator, kind: str, chances: np.ndarray, n: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (sets, 2, S, n): whether each student is right, with chances (sets, 2, S) over all possible examples."""
    difficult, apart = KINDS[kind]
    sets, arms, seeds = chances.shape
    if not difficult:
        return generator.random((sets, arms, seeds, n), dtype=np.float32) < chances[..., None].astype(np.float32)
    shared = generator.standard_normal((sets, 1, 1, n), dtype=np.float32)
    own = generator.standard_normal((sets, arms, 1, n), dtype=np.float32)
    noise = generator.standard_normal((sets, arms, seeds, n), dtype=np.float32)
    hard = np.sqrt(difficult) * (np.sqrt(1 - apart) * shared + np.sqrt(apart) * own) + np.sqrt(1 - difficult) * noise
    return hard < stats.norm.ppf(chances).astype(np.float32)[..., None]


def earlier_quantiles(seeds: int) -> np.ndarray:
    """Return the 97.5 % quantile of normal and t errors whose squares sum to 1, for each of SHARES."""
    generator = np.random.default_rng(seeds)
    normal, t = generator.standard_normal(400_000), generator.standard_t(seeds - 1, 400_000)
    return np.array([np.quantile(np.sqrt(1 - share) * normal + np.sqrt(share) * t, 0.975) for share in SHARES])


def earlier_half_width(values: np.ndarray, deviations: np.ndarray, quantiles: np.ndarray | None) -> np.ndarray:
    """Return half the width by the replaced rule."""
    n = deviations.shape[-1]
    examples = np.square(deviations.mean(axis=-2)).mean(axis=-1) / n + 2 / n**2
    if quantiles is None:
        return stats.norm.ppf(0.975) * np.sqrt(examples)
    seeds = values.var(axis=-1, ddof=1) / values.shape[-1]
    return np.interp(seeds / (seeds + examples), SHARES, quantiles) * np.sqrt(seeds + examples)


def cell(kind: str, accuracy: float, n: int, spread: float, seeds: int, sets: int, quantiles: Any) -> dict[str, Any]:
    """Return one row: errors and widths of both rules without effect, and how often a true effect is seen."""
    row: dict[str, Any] = {
        "kind": kind,
        "accuracy": accuracy,
        "num_examples": n,
        "seed_spread": spread,
        "seeds": seeds,
        "sets": sets,
    }
    generator = np.random.default_rng([list(KINDS).index(kind), int(1000 * accuracy), n, int(1000 * spread), seeds])
    for effect in (0.0, EFFECT):
        parts = [
            drawn(generator, kind, accuracy, n, spread, seeds, size, effect, quantiles)
            for size in sizes(sets, n, seeds)
        ]
        truth, value, now, before = (np.concatenate(column) for column in zip(*parts, strict=True))
        for name, reach in (("", now), ("_before", before)):
            if effect:
                row[f"power{name}"] = float((np.abs(value) > reach).mean())
            else:
                row[f"error{name}"] = float((np.abs(value - truth) > reach).mean())
                row[f"half_width{name}"] = float(reach.mean())
    return row


def sizes(sets: int, n: int, seeds: int) -> Iterator[int]:
    """Yield how many sets to draw at a time."""
    block = max(1, BLOCK // (2 * n * seeds))
    for start in range(0, sets, block):
        yield min(block, sets - start)


def drawn(
    generator: np.random.Generator,
    kind: str,
    accuracy: float,
    n: int,
    spread: float,
    seeds: int,
    sets: int,
    effect: float,
    quantiles: np.ndarray | None,
) -> tuple[np.ndarray, ...]:
    """Return, per set: the truth, the difference, and half the width by the new and the earlier rule."""
    middle = accuracy + effect * np.array([0.0, 1.0])[:, None]
    chances = np.clip(middle + generator.normal(0, spread, (sets, 2, seeds)), 0.0, 1.0)
    alone, distilled = np.moveaxis(rights(generator, kind, chances, n), 1, 0)
    difference = distilled.astype(np.float32) - alone
    values = difference.mean(axis=-1)
    deviations = difference - values[..., None]
    # A chance that is cut off at 1 moves the mean: the truth is the mean of the chances as they are drawn.
    theirs = (chances[:, 1] - chances[:, 0]).mean(axis=-1)
    truth = theirs if seeds < 3 else np.zeros(sets)
    now = half_width(mean_squares(values, deviations), spare(n))
    return truth, values.mean(axis=-1), now, earlier_half_width(values, deviations, quantiles)


def run(sets: int, out: Path) -> list[dict[str, Any]]:
    """Simulate every cell and write one row each."""
    rows = []
    for seeds in SEEDS:
        quantiles = earlier_quantiles(seeds) if seeds >= 3 else None
        for kind, n, accuracy, spread in itertools.product(KINDS, EXAMPLES, ACCURACIES, SPREADS):
            if kind == "independent" or (accuracy in FEWER[0] and spread in FEWER[1]):
                rows.append(cell(kind, accuracy, n, spread, seeds, sets, quantiles))
    write(out, rows)
    return rows


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, numbers with four digits."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(
            {name: f"{one:.4g}" if isinstance(one, float) else one for name, one in row.items()} for row in rows
        )


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the worst and the mean error of each number of seeds, as aligned text."""
    lines = ["seeds  worst error (before)   where seeds matter: least (before)   power at n = 2,000 (before)"]
    for seeds in SEEDS:
        own = [row for row in rows if row["seeds"] == seeds]
        matter = [row for row in own if row["num_examples"] == 2000 and row["seed_spread"]]
        power = [row for row in own if row["num_examples"] == 2000]
        lines.append(
            f"{seeds:5}  {max(r['error'] for r in own):.1%} ({max(r['error_before'] for r in own):.1%})"
            f"   {min(r['error'] for r in matter):.1%} ({min(r['error_before'] for r in matter):.1%})"
            f"   {np.mean([r['power'] for r in power]):.1%} ({np.mean([r['power_before'] for r in power]):.1%})"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- the other metrics

SETTINGS = (  # name, classes (shares of the examples), strength of the signal
    ("two classes, even", (0.5, 0.5), 2.0),
    ("two classes, 1 in 10", (0.9, 0.1), 2.0),
    ("ten classes, even", (0.1,) * 10, 3.0),
    ("five classes, 3 % to 50 %", (0.5, 0.25, 0.15, 0.07, 0.03), 2.5),
    ("values", (), 1.0),
)


def measures(kind: str) -> dict[str, Any]:
    """Return metric -> its jackknife, of classes or of values."""
    if kind == "values":
        return {
            "r2": delete_one.r2,
            "rmse": delete_one.rmse,
            "mae": lambda values, targets: delete_one.of_mean(metrics.example_absolute_error(values, targets)),
        }
    return {
        "balanced_accuracy": delete_one.balanced_accuracy,
        "auc": delete_one.auc,
        "macro_f1": delete_one.macro_f1,
        "nll": lambda logits, targets: delete_one.of_mean(metrics.example_nll(logits, targets)),
        "ece": delete_one.ece,
    }


def outputs(
    generator: np.random.Generator, shares: tuple[float, ...], strength: float, n: int, seeds: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets (n,) and the outputs (2, S, n, c) of students of equal worth that share hard examples."""
    worth = strength * (1 + spread * generator.standard_normal((2, seeds, 1, 1)))
    if not shares:
        targets = generator.normal(size=n)
        noise = generator.standard_t(5, (1, 1, n, 1)) + generator.normal(size=(2, seeds, n, 1))
        return targets, targets[:, None] + 0.4 * noise / worth
    targets = generator.choice(len(shares), n, p=shares)
    hard = generator.normal(size=(1, 1, n, len(shares)))
    own = generator.normal(size=(2, seeds, n, len(shares)))
    return targets, worth * np.eye(len(shares))[targets] + hard + own


def metric_rows(sets: int) -> list[dict[str, Any]]:
    """Return one row per setting and metric: errors of the difference, and of one model's score around its mean."""
    rows = []
    for (kind, shares, strength), (seeds, spread), n in itertools.product(
        SETTINGS, ((1, 0.0), (3, 0.0), (3, 0.05), (5, 0.05)), (60, 300)
    ):
        generator = np.random.default_rng([len(kind), seeds, int(100 * spread), n])
        missed: dict[str, list[bool]] = {}
        scores: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(sets):
            targets, answers = outputs(generator, shares, strength, n, seeds, spread)
            for name, measure in measures(kind).items():
                each = [[measure(answer, targets) for answer in arm] for arm in answers]
                if any(one is None for arm in each for one in arm):
                    continue
                values = np.array([[one.value for one in arm] for arm in each])
                moved = np.array([[one.deviations for one in arm] for arm in each])
                about = kinds.about(name)
                extra = spare(n) if about.rate else 0.0
                change = interval(values[1] - values[0], moved[1] - moved[0], extra=extra)
                missed.setdefault(name, []).append(change.clear)
                if name in OVER_CLASSES:
                    extra = spare(np.unique(targets, return_counts=True)[1])
                single = interval(values[0], moved[0], extra=extra, low=about.low, high=about.high)
                scores.setdefault(name, []).append((single.value, single.low, single.high))
        for name, found in missed.items():
            value, low, high = np.array(scores[name]).T
            rows.append(
                {
                    "setting": kind,
                    "num_examples": n,
                    "seeds": seeds,
                    "seed_spread": spread,
                    "metric": name,
                    "sets": len(found),
                    "error": float(np.mean(found)),
                    "error_of_a_score": float(((low > value.mean()) | (high < value.mean())).mean()),
                }
            )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=4000)
    parser.add_argument("--metrics", action="store_true", help="the other metrics, and scores of single models")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began = time.perf_counter()
    out = given.out or RESULTS / f"interval_simulation{'_metrics' if given.metrics else ''}.csv"
    if given.metrics:
        rows = metric_rows(given.sets)
        write(out, rows)
        for name in dict.fromkeys(row["metric"] for row in rows):
            worst = [max(row[key] for row in rows if row["metric"] == name) for key in ("error", "error_of_a_score")]
            print(f"{name:18} worst error of a difference {worst[0]:.1%}, of one model's score {worst[1]:.1%}")
    else:
        print(summary(run(given.sets, out)))
    print(f"{time.perf_counter() - began:.0f} s, {out}")


if __name__ == "__main__":
    main()
