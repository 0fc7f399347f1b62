"""What a store holds and what it belongs to, and what changed between two such descriptions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, UsageError

FORMAT = "potstill-store"
FORMAT_VERSION = 1
Dtype = Literal["float32", "float16"]
NUMPY_DTYPES: Mapping[str, str] = {"float32": "<f4", "float16": "<f2"}

# Small enough that a kill costs seconds of a slow teacher, large enough that syncing costs a fast one little.
_MAX_ROWS_PER_BLOCK = 2048
_MAX_BYTES_PER_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class SignalSpec:
    """How one signal lies on disk.

    Attributes:
        shape: shape of one row; ``()`` for one number a row.
        dtype: number format on disk.
        source: where in the teacher it comes from: ``"output"`` or the name of the tapped module.
        codec: how rows are encoded; ``"dense"`` is plain numbers, row after row.
        file: name of the file inside the store's folder.

    """

    shape: tuple[int, ...]
    dtype: Dtype
    source: str = "output"
    codec: str = "dense"
    file: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(NUMPY_DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class Manifest:
    """What a store holds, and everything the numbers in it depend on.

    Attributes:
        signals: the recorded signals by name.
        num_samples: how many samples; there are ``num_samples * views`` rows, view after view.
        views: how many augmented views of each sample.
        ids: sha256 of the sample ids in row order.
        data: fingerprint of the samples.
        teacher: JSON-like parts that identify the teacher: model, weights, preprocessing, precision.
        augmentation: JSON-like settings and seed of the augmentation; empty when nothing is augmented.
        rows_per_block: how many rows share a checksum.
        potstill: version that recorded it; told, never compared.

    """

    signals: Mapping[str, SignalSpec]
    num_samples: int
    views: int
    ids: str
    data: str
    teacher: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    rows_per_block: int
    potstill: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of every signal."""
        return self.num_samples * self.views

    @property
    def num_blocks(self) -> int:
        """Blocks of every signal; the last may be shorter."""
        return -(-self.num_rows // self.rows_per_block)

    @property
    def num_bytes(self) -> int:
        """Bytes of all signals on disk."""
        return self.num_rows * sum(spec.row_bytes for spec in self.signals.values())

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything but the layout of blocks and the potstill version."""
        value = to_json(self)
        for key in ("potstill", "rows_per_block"):
            del value[key]
        return fingerprint.of_json(value)

    def block_rows(self, block: int) -> tuple[int, int]:
        """Return the first row of ``block`` and the row after its last."""
        start = block * self.rows_per_block
        return start, min(start + self.rows_per_block, self.num_rows)


def describe(
    *,
    ids: np.ndarray[Any, Any],
    data: str,
    teacher: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, str] | None = None,
    dtype: Dtype = "float16",
    views: int = 1,
    augmentation: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Manifest:
    """Return the manifest of a store to be recorded, or to be expected of one on disk.

    Args:
        ids: (n,) int64 sample ids in row order, unique.
        data: fingerprint of the samples.
        teacher: JSON-like parts that identify the teacher, such as `LiveTeacher.parts`.
        shapes: shape of one row of each signal, without the batch dimension.
        sources: module each signal is tapped at; the model's output when absent.
        dtype: number format on disk.
        views: augmented views of each sample.
        augmentation: settings of the augmentation; settings that are all off count as none.
        seed: seed of the augmentation; ignored when it is off.

    Raises:
        UsageError: no samples, no signals, a signal without numbers, an unknown dtype or no views.

    """
    if len(ids) == 0 or not shapes or views < 1:
        raise UsageError(
            f"A store needs samples, signals and views: got {len(ids)} samples, {len(shapes)} signals, {views} views."
        )
    if dtype not in NUMPY_DTYPES:
        raise UsageError(f"A store keeps float16 or float32 numbers, not '{dtype}'.")
    settings = {key: value for key, value in (augmentation or {}).items() if value}
    if settings:
        settings["seed"] = seed
    sources = sources or {}
    signals = {
        name: SignalSpec(tuple(shape), dtype, sources.get(name, "output"), file=file)
        for (name, shape), file in zip(sorted(shapes.items()), _file_names(sorted(shapes), dtype), strict=True)
    }
    for name, spec in signals.items():
        if spec.row_bytes <= 0:
            raise UsageError(f"Signal '{name}' has shape {spec.shape} for one sample: there is nothing to store.")
    widest = max(spec.row_bytes for spec in signals.values())
    return Manifest(
        signals=signals,
        num_samples=len(ids),
        views=views,
        ids=ids_fingerprint(ids),
        data=data,
        teacher=json.loads(json.dumps(teacher)),
        augmentation=json.loads(json.dumps(settings)),
        rows_per_block=max(1, min(_MAX_ROWS_PER_BLOCK, _MAX_BYTES_PER_BLOCK // widest)),
        potstill=_potstill_version(),
    )


def ids_fingerprint(ids: np.ndarray[Any, Any]) -> str:
    """Return the sha256 of sample ids in row order."""
    return fingerprint.of_array(np.ascontiguousarray(ids, dtype="<i8"))


def to_json(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as plain JSON-like data."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "signals": {
            name: {
                "file": spec.file,
                "shape": list(spec.shape),
                "dtype": spec.dtype,
                "codec": spec.codec,
                "source": spec.source,
            }
            for name, spec in manifest.signals.items()
        },
        "num_samples": manifest.num_samples,
        "views": manifest.views,
        "rows_per_block": manifest.rows_per_block,
        "ids": manifest.ids,
        "data": manifest.data,
        "teacher": dict(manifest.teacher),
        "augmentation": dict(manifest.augmentation),
        "potstill": manifest.potstill,
    }


def from_json(value: Any, path: Path) -> Manifest:
    """Return the manifest read from ``path``.

    Raises:
        PotstillError: it is not a manifest, or of a newer format.

    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise PotstillError(f"{path} does not describe a store of teacher signals. Choose another folder.")
    if value.get("version") != FORMAT_VERSION:
        raise PotstillError(
            f"{path} is of store format {value.get('version')}, this potstill reads format {FORMAT_VERSION}. "
            f"It was written by potstill {value.get('potstill')}: install that version, or delete the folder."
        )
    try:
        signals = {str(name): _signal(name, spec, path) for name, spec in value["signals"].items()}
        manifest = Manifest(
            signals=signals,
            num_samples=int(value["num_samples"]),
            views=int(value["views"]),
            ids=str(value["ids"]),
            data=str(value["data"]),
            teacher=dict(value["teacher"]),
            augmentation=dict(value["augmentation"]),
            rows_per_block=int(value["rows_per_block"]),
            potstill=str(value.get("potstill", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PotstillError(f"{path} is damaged ({error!r}). Delete {path.parent} to record anew.") from error
    if min(manifest.num_rows, manifest.rows_per_block) < 1 or not signals:
        raise PotstillError(f"{path} is damaged: it describes no rows. Delete {path.parent} to record anew.")
    return manifest


def differences(recorded: Manifest, wanted: Manifest, *, exact: bool = False) -> list[str]:
    """Return, in words, why a store described by ``recorded`` cannot serve ``wanted``; empty when it can.

    A store with more signals or more views than wanted serves, unless ``exact`` is set, as it is to continue an
    unfinished recording. The potstill version and the size of blocks do not matter.
    """
    old, new = _facts(recorded), _facts(wanted)
    lines = [
        f"{name}: recorded {_show(old.get(name))}, now {_show(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if recorded.views < wanted.views or (exact and recorded.views != wanted.views):
        lines.append(f"views: recorded {recorded.views}, now {wanted.views}")
    for name, spec in wanted.signals.items():
        kept = recorded.signals.get(name)
        if kept is None:
            lines.append(f"signal '{name}': not recorded, only {', '.join(sorted(recorded.signals))}")
            continue
        for part in ("shape", "dtype", "source", "codec"):
            if getattr(kept, part) != getattr(spec, part):
                lines.append(
                    f"signal '{name}' {part}: recorded {_show(getattr(kept, part))}, now {_show(getattr(spec, part))}"
                )
    if exact:
        lines += [f"signal '{name}': recorded, now none" for name in recorded.signals if name not in wanted.signals]
    return lines


def _facts(manifest: Manifest) -> dict[str, Any]:
    facts = _flat("teacher", dict(manifest.teacher))
    facts |= {"data": manifest.data, "sample ids": manifest.ids, "number of samples": manifest.num_samples}
    facts |= _flat("augmentation", dict(manifest.augmentation))
    return facts


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(f"{prefix} {key}", part)
    return flat


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return f"{value[:8]}…" if re.fullmatch(r"[0-9a-f]{16,}", value) else value
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _file_names(names: list[str], dtype: Dtype) -> list[str]:
    """Return a file name for each signal: readable, safe on any file system, different in more than case."""
    taken: set[str] = set()
    files = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "signal"
        if stem.lower() in taken:
            stem = f"{stem}-{number}"
        taken.add(stem.lower())
        files.append(f"{stem[:100]}.{dtype}")
    return files


def _signal(name: Any, value: Any, path: Path) -> SignalSpec:
    shape = tuple(int(size) for size in value["shape"])
    dtype, codec, file = str(value["dtype"]), str(value["codec"]), str(value["file"])
    if dtype not in NUMPY_DTYPES or codec != "dense":
        raise PotstillError(
            f"{path}: signal '{name}' is stored as {codec} {dtype}, which this potstill cannot read. "
            "Use the version of potstill that recorded it, or delete the folder to record anew."
        )
    if Path(file).name != file or min(shape, default=1) < 1:
        raise ValueError(f"signal {name}: file {file!r}, shape {shape}")
    return SignalSpec(shape, cast(Dtype, dtype), str(value["source"]), codec, file)


def _potstill_version() -> str:
    try:
        return version("potstill")
    except PackageNotFoundError:
        return "unknown"
