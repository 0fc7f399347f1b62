"""Folders of recordings with a label.json, made from small real and drawn data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge

from potstill.core.files import write_json
from potstill.evaluation.labelling import LabelFacts, Recording, describe_labels, describe_texts, describe_values

FIDELITY = (
    {
        "codec": "top_k 3",
        "bytes": 9,
        "kl": 0.021,
        "angle": 11.2,
        "norm_ratio": 1.04,
        "uncovered": 0.013,
        "chosen": True,
    },
    {"codec": "float16", "bytes": 20, "kl": 1e-7, "angle": 0.02, "norm_ratio": 1.0, "uncovered": 0.0},
    {"codec": "random 12", "bytes": 7.5, "kl": None, "angle": 21.0, "norm_ratio": 1.01, "uncovered": 0.06},
)
KINDS = ("digits", "unlabelled", "values", "texts", "many", "hostile")


@cache
def digits() -> dict[str, np.ndarray]:
    """Digits with 3 % wrong labels, and a teacher that was fitted on the first half of them."""
    pixels, truth = load_digits(return_X_y=True)
    generator = np.random.default_rng(5)
    wrong = generator.choice(len(truth), round(0.03 * len(truth)), replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + generator.integers(1, 10, len(wrong))) % 10
    half = len(truth) // 2
    teacher = LogisticRegression(C=0.02, max_iter=300).fit(pixels[:half] / 4, labels[:half])
    images = np.repeat(np.repeat(np.uint8(pixels.reshape(-1, 8, 8, 1) * 15), 3, axis=1), 3, axis=2)
    return {"labels": labels, "probabilities": teacher.predict_proba(pixels / 4), "images": images}


def digit_facts() -> LabelFacts:
    """Two views, a teacher that has seen the samples, and a validation split."""
    found = digits()
    half = len(found["labels"]) // 2
    first, second = slice(0, half), slice(half, None)
    generator = np.random.default_rng(0)
    top = found["probabilities"].argmax(1)[first]
    views = np.stack([top, np.where(generator.random(half) < 0.04, (top + 1) % 10, top)], axis=1)
    kept = ("logits: top_k 3", "no inputs and no labels")
    return describe_labels(
        Recording("digits", half, 2, 17_000, seconds=4.2, rate=427.0, fidelity=FIDELITY, kept=kept),
        found["probabilities"][first],
        found["labels"][first],
        ids=np.arange(half),
        names=[f"digits/{row:04d}.png" for row in range(half)],
        classes=tuple("0123456789"),
        validation=(found["probabilities"][second], found["labels"][second]),
        view_classes=views,
        seen=True,
    )


def unlabelled_facts() -> LabelFacts:
    """No labels, and nothing but the answers is known."""
    found = digits()["probabilities"]
    recording = Recording("unlabelled", len(found), 1, 36_000)
    return describe_labels(recording, found, None, ids=np.arange(len(found)), classes=tuple("0123456789"))


def hostile_facts(name: str) -> LabelFacts:
    """Class, sample and codec names that try to break the page."""
    found = digits()
    num = len(found["labels"])
    return describe_labels(
        Recording(name, num, 1, 16_000, fidelity=[{**FIDELITY[0], "codec": name}], kept=(name,)),
        found["probabilities"],
        found["labels"],
        ids=np.arange(num),
        names=[name + str(row) for row in range(num)],
        classes=(name, "a & b", 'c"d', "e" * 60, *"456789"),
    )


def many_facts() -> LabelFacts:
    """120 classes, a teacher whose order is shifted by one, and a poor codec."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 120, 4000)
    logits = generator.normal(size=(4000, 120))
    logits[np.arange(4000), (labels + 1) % 120] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    row = {**FIDELITY[0], "uncovered": 0.12, "norm_ratio": 1.9}
    recording = Recording("shifted", 4000, 1, 48_000, num_items=40_000, fidelity=[row], sampled=True)
    names = [f"class {number}" for number in range(120)]
    return describe_labels(recording, probabilities, labels, ids=np.arange(4000) + 10**12, classes=names)


def value_facts() -> LabelFacts:
    inputs, wanted = load_diabetes(return_X_y=True)
    teacher = Ridge(0.01).fit(inputs[:300], wanted[:300])
    recording = Recording("diabetes", 300, 1, 1200, rate=51_234.0, seconds=0.006)
    found = teacher.predict(inputs)
    return describe_values(
        recording, found[:300], wanted[:300], ids=np.arange(300), validation=(found[300:], wanted[300:]), seen=True
    )


def text_facts() -> LabelFacts:
    generator = np.random.default_rng(2)
    lengths = generator.integers(0, 257, 500)
    return describe_texts(
        Recording("questions", 500, 1, 90_000, full_bytes=lengths.sum() * 4 * 512, num_items=int(lengths.sum())),
        lengths=lengths,
        finish_reasons={"stop": 430, "length": 70},
        failed=3,
        retried=11,
        tokens_in=123_456,
        tokens_out=int(lengths.sum()),
        money=1.375,
        logprobs=-generator.exponential(0.4, 500),
    )


def make(kind: str, folder: Path, hostile: str = "") -> LabelFacts:
    """Write ``label.json`` (and pictures, for digits) of one kind into ``folder``."""
    facts = {
        "digits": digit_facts,
        "unlabelled": unlabelled_facts,
        "values": value_facts,
        "texts": text_facts,
        "many": many_facts,
        "hostile": lambda: hostile_facts(hostile),
    }[kind]()
    folder.mkdir(parents=True)
    write_json(folder / "label.json", facts.to_json())
    if kind == "digits":
        ids: Any = np.array(facts.shown_ids())
        np.savez(folder / "label-samples.npz", ids=ids, images=digits()["images"][ids])
    return facts
