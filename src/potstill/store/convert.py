"""A store's signals in other codecs, without asking the teacher again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.signals import Batch
from potstill.store import layout
from potstill.store.codecs import Codec, numbers
from potstill.store.description import describe
from potstill.store.heads import read_head, write_head
from potstill.store.manifest import Manifest, SignalSpec, from_json, to_json
from potstill.store.open import open_store
from potstill.store.reader import Store
from potstill.store.writer import Encoded, Ranges, record

_NUMBERS_AT_ONCE = 2**22


def convert(folder: Path | str, into: Path, codecs: Mapping[str, Codec], *, seed: int | None = None) -> Store:
    """Write a store again with other codecs for some signals; everything else stays as it is, byte for byte.

    When to use it: to make a large recording small, or to try codecs on one recording. From float32 the result is the
    store that recording with the new codec would have made, bytes included. From anything else the signal's
    ``converted_from`` in the manifest tells what it went through. An interrupted conversion is continued.

    Args:
        folder: a finished store, or an address of one.
        into: the folder of the new store.
        codecs: the new codec of each signal that is to change.
        seed: of codecs that sample, as ``seed`` of the recipe; that of the store, or of its augmentation, when absent.

    Returns:
        The new store.

    Raises:
        UsageError: no such signal, or the new codec would pretend to know more than was recorded.
        PotstillError: the store is damaged or the disk full.

    """
    old = open_store(folder)
    if Path(into).resolve() == old.folder.resolve():
        raise UsageError(f"{into} is the store itself: name another folder for the converted one.")
    manifest = converted_manifest(old, codecs, seed=seed)
    changed = {name for name, spec in manifest.signals.items() if spec.codec != old.manifest.signals[name].codec}
    if not changed:
        raise UsageError("Every signal is already kept like that: there is nothing to convert.")
    for name in sorted(changed ^ set(manifest.signals)):
        spec = manifest.signals[name]
        head = None if spec.head is None else read_head(old.folder, spec.file)
        if head is not None:
            write_head(Path(into), spec.file, head)
    return record(_answer(old, changed), _batches(old), into, manifest, np.asarray(old.ids), description="converting")


def converted_manifest(old: Store, codecs: Mapping[str, Codec], *, seed: int | None = None) -> Manifest:
    """Return the manifest that `convert` writes.

    Raises:
        UsageError: as `convert`.

    """
    have = old.manifest
    for name, codec in codecs.items():
        if name not in have.signals:
            raise UsageError(f"The store {old.folder} has no signal '{name}'.{did_you_mean(name, have.signals)}")
        problem = _problem(have.signals[name], codec)
        if problem:
            raise UsageError(f"Signal '{name}' of {old.folder} {problem}")
    settings = dict(have.augmentation)
    drawn = settings.pop("seed", None) if have.sampling_seed is None else have.sampling_seed
    settings.pop("seed", None)
    wanted = {name: codecs.get(name, spec.codec) for name, spec in have.signals.items()}
    new = describe(
        ids=np.asarray(old.ids),
        data=have.data,
        teacher=have.teacher,
        shapes={name: spec.shape for name, spec in have.signals.items()},
        sources={name: spec.source for name, spec in have.signals.items()},
        codecs=wanted,
        sequences=[name for name, spec in have.signals.items() if spec.per == "item"],
        views=have.views,
        seed=seed if seed is not None else int(drawn or 0),
    )
    sampling = new.sampling_seed if have.sampling_seed is None else have.sampling_seed
    signals = {
        name: replace(
            spec,
            file=have.signals[name].file,
            head=have.signals[name].head,
            converted_from=_history(have.signals[name], spec.codec),
        )
        for name, spec in new.signals.items()
    }
    new = replace(new, signals=signals, augmentation=have.augmentation, sampling_seed=sampling)
    return from_json(to_json(new), Path(layout.MANIFEST))


def _history(spec: SignalSpec, codec: Codec) -> Mapping[str, Any] | None:
    """Return what a signal went through before its new codec: nothing where it was recorded bit for bit."""
    if codec == spec.codec or spec.codec == numbers("float32"):
        return spec.converted_from
    return {**spec.codec.to_json(), **({"before": dict(spec.converted_from)} if spec.converted_from else {})}


def _problem(spec: SignalSpec, new: Codec) -> str | None:
    """Return why a signal cannot be kept with another codec; None where it can."""
    if new == spec.codec:
        return None
    why = spec.codec.becomes(new)
    if why is None and new.facts.reduced is not None:
        why = f"and {new.name} needs the teacher's own layer: record the teacher again."
    if why is None:
        new.width(spec.shape)  # refuses shapes that are no distribution
    return why and f"is kept with {spec.codec.to_json()}, {why}"


def _batches(old: Store) -> Callable[[Ranges], Iterator[Batch]]:
    manifest, ids = old.manifest, old.ids
    widest = max(int(np.prod(shape)) for shape in old.shapes.values())
    sequences = any(spec.per == "item" for spec in manifest.signals.values())
    rows = max(1, min(256, _NUMBERS_AT_ONCE // widest // (64 if sequences else 1)))

    def batches(ranges: Ranges) -> Iterator[Batch]:
        for first, last in ranges:
            for low in range(first, last, rows):
                view, place = np.divmod(np.arange(low, min(low + rows, last)), manifest.num_samples)
                samples = torch.from_numpy(np.asarray(ids[place]).astype(np.int64))
                yield Batch(samples, torch.from_numpy(view.astype(np.int64)), torch.zeros(len(view), 0))

    return batches


def _answer(old: Store, changed: set[str]) -> Callable[[Batch], dict[str, Any]]:
    def answer(batch: Batch) -> dict[str, Any]:
        rows = old.rows(batch.ids, batch.views)
        found: dict[str, Any] = {}
        for name in old.manifest.signals:
            if name not in changed:
                found[name] = Encoded(*old.gather_records(name, rows))
            else:
                found[name] = old.gather(name, rows)
        return found

    return answer
