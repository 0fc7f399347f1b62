"""potstill, asked through its public functions."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from serve import attempt, serve
from torch import Tensor, nn
from toys import CLASSES, FEATURES, Watch, models, samples

import potstill
from potstill import losses
from potstill.core.signals import Batch
from potstill.data import Stream
from potstill.data.samples import Data, Rows, make_samples
from potstill.losses import sequence
from potstill.models import Preprocessor
from potstill.recipe.schema import Training
from potstill.teachers import LiveTeacher
from potstill.training import Spec
from potstill.training import train as potstill_train


@dataclass(frozen=True)
class Asked:
    """How one loss is asked: what it reads, what it claims, and its arguments where they are not two tensors.

    ``wrap`` turns each side's tensor into what the loss takes, ``wrap_teacher`` the teacher's where it differs;
    ``options`` are required keyword arguments.
    """

    reads: str
    claims: str
    wrap: Callable[[Tensor], Any] = lambda side: side
    wrap_teacher: Callable[[Tensor], Any] | None = None
    options: Callable[[Tensor], dict[str, Any]] = lambda _: {}


def two(side: Tensor) -> list[Tensor]:
    """Return two layers for losses that read several."""
    return [side, side.flip(1)]


def weights(side: Tensor) -> Tensor:
    """Return attention weights, exact in the dtype they are asked in, or in float32 where that is too coarse."""
    return (side if side.dtype == torch.float64 else side.float()).softmax(dim=-1)


def tokens(side: Tensor) -> Tensor:
    """Return maps as tokens (b, t, d)."""
    return side.flatten(2)


KL = "divergence minimum shift classifier temperature classes samples keep logits"
LINEAR = "divergence minimum shift temperature classes samples keep logits"
DIVERGENCE = "divergence minimum samples keep"
RELATION = "divergence minimum keep"
LOSSES = {
    "forward_kl": Asked("logits", f"soft {KL}"),
    "reverse_kl": Asked("logits", KL),
    "jsd": Asked("logits", KL),
    "decoupled_kd": Asked("logits", f"{KL} targets"),
    "normalized_kd": Asked("logits", "shift classifier classes samples keep logits targets"),
    "weighted_soft_labels": Asked("logits", "shift classifier classes samples keep logits targets"),
    "dist": Asked("logits", f"{RELATION} shift classifier logits"),
    "multi_level_kd": Asked("logits", f"{RELATION} shift classifier logits"),
    "soft_cross_entropy": Asked("logits", "soft minimum shift classifier temperature classes samples keep logits"),
    "skew_forward_kl": Asked("logits", KL),
    "skew_reverse_kl": Asked("logits", KL),
    "total_variation": Asked("logits", KL),
    "alpha_beta": Asked("logits", KL),
    "bernoulli_kl": Asked("logits", f"{DIVERGENCE} logits"),
    "linear_forward_kl": Asked("logits", f"soft {LINEAR}"),
    "linear_reverse_kl": Asked("logits", LINEAR),
    "linear_jsd": Asked("logits", LINEAR),
    "linear_skew_forward_kl": Asked("logits", LINEAR),
    "linear_skew_reverse_kl": Asked("logits", LINEAR),
    "linear_total_variation": Asked("logits", LINEAR),
    "logit_mse": Asked("logits", f"{DIVERGENCE} logits"),
    "teacher_mse": Asked("vectors", DIVERGENCE),
    "teacher_huber": Asked("vectors", DIVERGENCE),
    "hint_mse": Asked("vectors", DIVERGENCE),
    "reused_classifier": Asked("vectors", DIVERGENCE),
    "activation_boundary": Asked("vectors", "samples keep"),
    "overhaul": Asked("maps", DIVERGENCE, options=lambda side: {"margin": torch.full_like(side[0], -1.0)}),
    "attention_transfer": Asked("maps", DIVERGENCE),
    "channel_wise": Asked("maps", DIVERGENCE),
    "neuron_selectivity": Asked("maps", DIVERGENCE),
    "factor_transfer": Asked("maps", DIVERGENCE),
    "masked_generative": Asked("maps", DIVERGENCE),
    "flow_of_solution": Asked("maps", DIVERGENCE, wrap=two),
    "review": Asked("maps", DIVERGENCE, wrap=two),
    "pearson_features": Asked("vectors", RELATION),
    "similarity_preserving": Asked("vectors", RELATION),
    "relational_distance": Asked("vectors", RELATION),
    "relational_angle": Asked("vectors", RELATION),
    "probabilistic": Asked("vectors", RELATION),
    "correlation_congruence": Asked("vectors", RELATION),
    "contrastive": Asked("vectors", "keep"),
    "contrastive_bank": Asked(
        "vectors", "samples keep", options=lambda side: {"teacher_negatives": torch.eye(5, dtype=side.dtype) - 0.5}
    ),
    "token_mse": Asked("vectors", DIVERGENCE),
    "hidden_cosine": Asked("vectors", DIVERGENCE),
    "patient_hidden": Asked("vectors", DIVERGENCE),
    "embedding_mse": Asked("vectors", DIVERGENCE),
    "embedding_cosine": Asked("vectors", DIVERGENCE),
    "jacobian_matching": Asked("vectors", DIVERGENCE),
    "margin_mse": Asked("vectors", f"{DIVERGENCE} shift"),
    "score_kl": Asked("vectors", f"{DIVERGENCE} shift"),
    "attention_mse": Asked("maps", DIVERGENCE),
    "attention_kl": Asked("maps", DIVERGENCE, wrap=weights),
    "value_relation": Asked("maps", DIVERGENCE, wrap=tokens, options=lambda _: {"relation_heads": 3}),
    "qkv_relation": Asked(
        "maps", DIVERGENCE, wrap=lambda side: [tokens(side)] * 3, options=lambda _: {"relation_heads": 3}
    ),
    "gaussian_nll": Asked("vectors", "minimum samples keep", wrap_teacher=lambda side: (side, side.clamp(-8, 8) / 8)),
    "variational_information": Asked(
        "vectors", "minimum samples keep", options=lambda side: {"variance": torch.ones_like(side[0])}
    ),
}
"""Every loss that reads a teacher; a test compares the names with those that potstill exports."""
ELSEWHERE = frozenset({"teacher_bounded", *(name for name in losses.__all__ if name.startswith("sparse_linear_"))})
"""Losses whose arguments are their own, so that the suite does not ask them; tests/losses does."""


def link(thing: Any) -> str:
    """Return the line of a function, relative to the page of results."""
    code = thing.__code__
    return f"../../src/{code.co_filename.rpartition('/src/')[2]}#L{code.co_firstlineno}"


def loss_list() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "call": f"{name}(student, teacher{_options(asked.claims)})",
            "link": link(getattr(losses, name)),
            "reads": asked.reads,
            "claims": asked.claims.split(),
        }
        for name, asked in LOSSES.items()
        if name in losses.__all__
    ]


def _heads(name: str, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """Return identities as the output layers of a fused loss, so that its hidden states are the logits."""
    if not name.startswith("linear_"):
        return {}
    shared = min(student.shape[1], teacher.shape[1]) if student.shape[1] != teacher.shape[1] else None
    heads = [torch.eye(side.shape[1], dtype=side.dtype) for side in (student, teacher)]
    return {"student_head": heads[0], "teacher_head": heads[1], "shared_vocabulary": shared}


def elsewhere() -> list[str]:
    return sorted(ELSEWHERE)


def loss(
    name: str,
    student: list[Any],
    teacher: list[Any],
    temperature: float | None = None,
    targets: list[int] | None = None,
    keep: list[bool] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    one = torch.tensor(student, dtype=getattr(torch, dtype), requires_grad=True)
    other = torch.tensor(teacher, dtype=getattr(torch, dtype))
    asked = LOSSES[name]
    options = {**asked.options(other), **_heads(name, one, other)}
    if temperature is not None:
        options["temperature"] = temperature
    if keep is not None:
        options["where"] = torch.tensor(keep)
    arguments = [asked.wrap(one), (asked.wrap_teacher or asked.wrap)(other)]
    if targets is not None:
        arguments.append(torch.tensor(targets))
    values = getattr(losses, name)(*arguments, **options)
    # One sum over one count, as the training step does it.
    value = values.sum() / max(len(values) if keep is None else sum(keep), 1)
    value.backward()
    return {"value": value.item(), "gradient": one.grad.double().tolist()}


def mixed(
    student: list[Any], teacher: list[Any], targets: list[int], hard_weight: float, temperature: float
) -> dict[str, Any]:
    objective = potstill.Objective(
        [
            potstill.Term(losses.cross_entropy, hard_weight),
            potstill.Term(losses.forward_kl, 1 if isinstance(hard_weight, int) else 1.0, temperature=temperature),
        ]
    )
    batch = _batch(torch.zeros(len(student), 1), torch.tensor(targets))
    total = objective({"logits": torch.tensor(student)}, {"logits": torch.tensor(teacher)}, batch).total
    call = f"Objective([Term(cross_entropy, {hard_weight}), Term(forward_kl, 1.0, temperature={temperature})])"
    return {"value": (total / len(batch)).item(), "call": call, "link": link(potstill.Objective.__call__)}


def jsd(student: list[Any], teacher: list[Any], beta: float) -> dict[str, Any]:
    value = losses.jsd(torch.tensor(student), torch.tensor(teacher), beta=beta).mean().item()
    return {"value": value, "call": f"jsd(student, teacher, beta={beta:g})", "link": link(losses.jsd)}


def defaults() -> list[dict[str, Any]]:
    tried = []
    for name, asked in LOSSES.items():
        if name not in losses.__all__:
            continue
        student, teacher = (torch.randn(6, 5, 3, 3) if asked.reads == "maps" else torch.randn(6, 5) for _ in range(2))
        arguments = [asked.wrap(student), (asked.wrap_teacher or asked.wrap)(teacher)]
        if "targets" in asked.claims:
            arguments.append(torch.arange(6) % 5)
        call = f"{name}(student, teacher{', targets' if len(arguments) > 2 else ''})"
        run = partial(getattr(losses, name), *arguments, **asked.options(teacher), **_heads(name, student, teacher))
        tried.append(attempt(call, link(getattr(losses, name)), run))
    for name in ("auto", "kd", "alone", "label_free", "hidden"):
        run = partial(potstill.preset, name, "classification")
        tried.append(attempt(f"preset({name!r}, 'classification')", link(potstill.preset), run))
    return tried


def fused(
    student_hidden: list[Any],
    student_head: list[Any],
    teacher_hidden: list[Any],
    teacher_head: list[Any],
    student_bias: list[float] | None = None,
    teacher_bias: list[float] | None = None,
    keep: list[bool] | None = None,
    softcap: float | None = None,
    dtype: str = "float64",
) -> dict[str, Any]:
    kind = getattr(torch, dtype)
    hidden, head, other, other_head = (
        torch.tensor(side, dtype=kind) for side in (student_hidden, student_head, teacher_hidden, teacher_head)
    )
    biases = [None if bias is None else torch.tensor(bias, dtype=kind) for bias in (student_bias, teacher_bias)]
    values = sequence.linear_forward_kl(
        hidden.requires_grad_(),
        other,
        student_head=sequence.Head(head.requires_grad_(), bias=biases[0], softcap=softcap),
        teacher_head=sequence.Head(other_head, bias=biases[1], softcap=softcap),
        where=None if keep is None else torch.tensor(keep),
        # A few rows at a time.
        workspace_bytes=512,
    )
    value = values.sum() / (len(values) if keep is None else sum(keep))
    value.backward()
    return {
        "value": value.item(), "hidden": hidden.grad.double().tolist(), "head": head.grad.double().tolist(),
        "call": "linear_forward_kl(student_hidden, teacher_hidden, student_head=Head(...), teacher_head=Head(...))",
        "link": link(sequence.linear_forward_kl),
    }  # fmt: skip


def train(
    count: int,
    batch: int,
    accumulate: int,
    epochs: int,
    norm: bool,
    dropout: float,
    validate: bool,  # noqa: ARG001 - potstill always validates
    hidden: bool = False,
    second: bool = False,
    repeat: int = 1,
) -> dict[str, Any]:
    student, teacher = models(norm=norm, dropout=dropout)
    settings = _settings(epochs, batch, accumulate)
    taps = {"hidden": "hidden"} if hidden else {}
    with tempfile.TemporaryDirectory() as folder:
        if second:
            other = copy.deepcopy(student)
            _train(other, copy.deepcopy(teacher), _settings(1, 4, 2), Path(folder) / "other", count, {}, hidden=False)
        with Watch(student, teacher) as watch:
            _train(student, teacher, settings, Path(folder) / "run", count, taps, hidden=hidden, repeat=repeat)
    call = (
        f"train(student, data, objective=preset('kd'), teacher=LiveTeacher(teacher), Training(accumulate={accumulate}))"
    )
    return dict(watch.report(call, link(potstill_train), micro_batches=epochs * -(-count // batch)))


def projector() -> dict[str, Any]:
    """Stop a training half way, as a power cut does, and look into the checkpoint that is on disk."""
    student, teacher = models(norm=False, dropout=0.0, teacher_width=8)
    taps = {"hidden": "hidden"}
    seen: list[dict[str, Tensor]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        class Cut(LiveTeacher):
            def __call__(self, batch: Batch) -> Any:
                found = sorted(folder.glob("checkpoint/state-*.safetensors"))
                seen.extend(load_file(path) for path in found if path.stat().st_size)
                if len(found) and int(found[-1].stem.rpartition("-")[2]) >= 4:
                    raise KeyboardInterrupt
                return super().__call__(batch)

        try:
            _train(student, teacher, _settings(4, 8, 1), folder, 24, taps, hidden=True, kind=Cut)
        except KeyboardInterrupt:
            pass
        index = json.loads((folder / "checkpoint" / "checkpoint.json").read_text())
        kept = load_file(folder / "checkpoint" / index["state"])
    usual = ("student/", "optimiser/", "average/", "epoch/")
    adapters = sorted(name for name in kept if not name.startswith(usual))
    trained = [name for name in adapters if not torch.equal(kept[name], seen[0][name])]
    call = "train(..., objective=Objective([..., Term(hint_mse, on='hidden')])), student 5 wide, teacher 8 wide"
    return {
        "call": call, "link": link(potstill_train), "trained": trained, "saved": adapters, "file": index["state"],
    }  # fmt: skip


def _options(claims: str) -> str:
    targets = ", targets" if "targets" in claims.split() else ""
    return targets + (", temperature={T}" if "temperature" in claims.split() else "")


def _settings(epochs: int, batch: int, accumulate: int) -> Training:
    return Training(
        epochs=epochs, batch_size=batch, accumulate=accumulate, learning_rate=0.1, momentum=0.0, weight_decay=0.0,
        schedule="constant", warmup=0.0, precision="float32", checkpoint_every=1,
    )  # fmt: skip


def _batch(inputs: Tensor, targets: Tensor) -> Batch:
    numbers = torch.arange(len(inputs))
    return Batch(ids=numbers, views=torch.zeros_like(numbers), inputs=inputs, targets=targets)


def _data(count: int, repeat: int) -> Data:
    some, more = samples(count, repeat), samples(count + 12)
    inputs, targets = (torch.cat([one, other[count:]]) for one, other in zip(some, more, strict=True))
    bounds = (0, count, count + 6, count + 12)
    splits = [
        make_samples(np.arange(low, high), targets[low:high].numpy(), Rows(inputs[low:high]))
        for low, high in pairwise(bounds)
    ]
    return Data(*splits, "classification", tuple("abcd")[:CLASSES], "vector", (FEATURES,), CLASSES)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    settings: Training,
    folder: Path,
    count: int,
    taps: dict[str, str],
    *,
    hidden: bool,
    repeat: int = 1,
    kind: type[LiveTeacher] = LiveTeacher,
) -> None:
    objective = potstill.preset("hidden" if hidden else "kd", "classification")
    with kind(teacher, preprocess=Preprocessor(), taps=taps) as frozen:
        data = _data(count, repeat)
        spec = Spec(data, Stream(data.train), objective, settings, Preprocessor(), teacher=frozen, taps=taps)
        potstill_train(student, spec, folder, device="cpu")


CAPABILITIES = {
    "losses": loss_list, "loss": loss, "mixed": mixed, "jsd": jsd, "defaults": defaults, "train": train,
    "projector": projector, "elsewhere": elsewhere,
    "fused": fused,
}  # fmt: skip

if __name__ == "__main__":
    serve(potstill.__version__, CAPABILITIES, {})
