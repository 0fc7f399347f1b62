"""How much of what a teacher says its store loses: asked before a long recording, and of a store that is there.

Shape legend: b samples, k outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.core.names import parse
from potstill.core.signals import Batch, Ragged, Signals
from potstill.pipeline.build import Job
from potstill.store import Manifest, Store
from potstill.store.codecs import Codec, Sparse, numbers
from potstill.store.codecs.records import BadItem
from potstill.store.heads import Head

MOST_VARIANCE = 0.01
"""Share of the variance of a signal that a store may lose: 1 - R2 of what is stored against what was said."""
MOST_NATS = 0.05
"""Mean KL(said | stored) in nats that logits of classes may have, kept as numbers or made of few."""

_NUMBERS_AT_ONCE = 2**22

Kept = Mapping[str, Tensor | Sparse]


def encoded(manifest: Manifest, answers: Signals, head: Head | None = None) -> Kept:
    """Return what a store would give back of some answers, (b, ...) a signal; ``head`` makes logits of few numbers.

    What a codec cannot keep at all is left out: recording it ends with an error that names the sample.
    """
    found: dict[str, Tensor | Sparse] = {}
    keys = torch.arange(len(next(iter(answers.values())))).numpy().astype("uint64")
    for name, spec in manifest.signals.items():
        if spec.per != "sample" or name not in answers:
            continue
        try:
            values = answers[name][: _few(spec.shape)].float().cpu()
            records = spec.codec.encode(values.numpy(), keys[: len(values)])
        except BadItem:
            continue
        if hasattr(spec.codec, "decode_sparse"):
            found[name] = spec.codec.decode_sparse(records, spec.shape)
            continue
        values = spec.codec.decode(records, spec.shape)
        if spec.head is not None and head is not None:
            values = torch.addmm(torch.from_numpy(head.bias), values, torch.from_numpy(head.weight).T)
        found[name] = values
    return found


def read_back(store: Store, batch: Batch) -> Kept:
    """Return what a store gives back of some samples' views, (b, ...) a signal."""
    rows = store.rows(batch.ids, batch.views)
    found: dict[str, Tensor | Sparse] = {}
    for name, spec in store.manifest.signals.items():
        if spec.per == "sample" and hasattr(spec.codec, "decode_sparse"):
            found[name] = store.gather_sparse(name, rows[: _few(spec.shape)])[0]
        elif spec.per == "sample" and not isinstance(values := store.gather(name, rows[: _few(spec.shape)]), Ragged):
            found[name] = values
    return found


def refuse_lossy(job: Job, manifest: Manifest, said: Signals, kept: Kept) -> None:
    """Refuse a store that loses too much of what the teacher says, unless the recipe accepts that.

    Raises:
        UsageError: names the signal, what is lost and what to set.

    """
    if job.recipe.store.accept_loss:
        return
    for name, values in kept.items():
        codec = manifest.signals[name].codec
        is_class = parse(name).is_answer and job.task.exclusive
        if name not in said or (is_class and codec.facts.samples):
            continue
        truth = said[name][: len(values)].float().cpu()
        if is_class:
            # Only differences between classes matter: a common offset may hide them in the steps of a number format.
            exact = codec.facts.reduced is None and isinstance(values, Tensor)
            lost = _lost_classes(truth, values) or (_lost_differences(truth, values) if exact else "")
        else:
            lost = _lost_values(truth, values, by_output=parse(name).is_answer)
        if lost:
            every = ", ".join(f"{key}: {value}" for key, value in numbers("float32").to_json().items())
            own = name in job.recipe.store.codecs
            better = f"store.codecs.{name}: {{{every}}}" if own else "store.dtype: float32"
            shown = name.replace("logits", job.task.signal)
            raise UsageError(
                f"What the store keeps of the teacher's {shown} ({describe_codec(codec)}) is not what it says: of "
                f"{len(truth)} samples, {lost}. Set {better}, or store.accept_loss: true to record it all the same."
            )


def describe_codec(codec: Codec) -> str:
    """Return a codec in a few words: its name and settings."""
    settings = codec.to_json()
    name = str(settings.pop("codec")).replace("_", " ")
    return ", ".join([name, *(f"{value}" if key == "dtype" else f"{key} {value}" for key, value in settings.items())])


def explained(said: Tensor, kept: Tensor | Sparse) -> Tensor:
    """Return R2 (k,) of what is kept (b, k) against what was said (b, k); 1 for a constant that is kept."""
    wide = said.double()
    error = (wide - _dense(kept).reshape(wide.shape)).square().sum(0)
    spread = (wide - wide.mean(0)).square().sum(0)
    exact = error <= 1e-4 * wide.square().sum(0)
    return torch.where(spread > 0, 1.0 - error / spread.clamp_min(1e-300), exact.double())


def _dense(kept: Tensor | Sparse) -> Tensor:
    return (kept.dense() if isinstance(kept, Sparse) else kept).double()


def _few(shape: tuple[int, ...]) -> int:
    """Return how many samples of a signal are compared: all but of large hidden layers."""
    return max(8, _NUMBERS_AT_ONCE // max(1, math.prod(shape)))


def _lost_values(said: Tensor, kept: Tensor | Sparse, *, by_output: bool) -> str:
    numbers, columns = _dense(kept).reshape(len(said), -1), said.reshape(len(said), -1)
    shares = explained(columns, numbers)
    if not by_output:  # a hidden layer: all of its numbers together, some of which may hardly move
        centred = columns.double() - columns.double().mean(0)
        total = centred.square().sum()
        shares = (1.0 - (columns.double() - numbers).square().sum() / total)[None] if total > 0 else shares
    worst = int(shares.argmin())
    if not float(shares[worst]) < 1.0 - MOST_VARIANCE:
        return ""
    return _left(float(shares[worst]), f" of output {worst + 1}" if by_output and columns.shape[1] > 1 else "")


def _left(share: float, place: str) -> str:
    what = f"only {100 * share:.1f} %" if share > 0 else "nothing"
    return f"{what} of their variance{place} would be left (at least {100 * (1 - MOST_VARIANCE):g} % must be)"


def _lost_differences(said: Tensor, kept: Tensor | Sparse) -> str:
    truth, stored = (side - side.mean(1, keepdim=True) for side in (said.double(), _dense(kept)))
    total = float(truth.square().sum())
    left = 1.0 - float((truth - stored).square().sum()) / total if total > 0 else 1.0
    return "" if left >= 1.0 - MOST_VARIANCE else _left(left, " between classes")


def _lost_classes(said: Tensor, kept: Tensor | Sparse) -> str:
    if isinstance(kept, Sparse):  # which classes are kept was chosen; the page says what they cover
        return ""
    p, log_q = said.double().softmax(1), _dense(kept).log_softmax(1)
    nats = float(torch.where(p > 0, p * (p.log() - log_q), 0.0).sum(1).mean())
    return f"the mean divergence would be {nats:.3g} nats (at most {MOST_NATS:g})" if not nats <= MOST_NATS else ""
