"""What a store holds and what it belongs to, and how that lies in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, UsageError
from potstill.core.scale import TargetScale
from potstill.store.codecs import Codec, numbers
from potstill.store.codecs import from_json as codec_from_json
from potstill.store.columns import Column

FORMAT = "potstill-store"
FORMAT_VERSION = 2
IDS = "ids.npy"
Per = Literal["sample", "item"]
Order = Literal["counting", "rising", "any"]


@dataclass(frozen=True)
class HeadSpec:
    """What makes logits of the few numbers that are kept of each item; see `store.heads`.

    Attributes:
        classes: how many logits there are.
        sha256: of the head's file; empty in the description of a store that is to be recorded.

    """

    classes: int
    sha256: str = ""


@dataclass(frozen=True)
class SignalSpec:
    """How one signal lies on disk.

    Attributes:
        shape: shape of one record's numbers: of a sample, or of an item where samples have several.
        codec: how numbers become the bytes of a record.
        per: ``"sample"`` for one record a sample; ``"item"`` where a sample has any number of them, such as tokens.
        source: where in the teacher it comes from: ``"output"`` or the name of the tapped module.
        file: first part of the names of its files in each shard.
        head: what makes logits of its numbers, where its codec reduces.
        converted_from: the codec that had taken something away before this one was applied; None where the records are
            those of the teacher's own numbers. Told, and compared only to continue or repair a store.

    """

    shape: tuple[int, ...]
    codec: Codec = field(default_factory=lambda: numbers("float16"))
    per: Per = "sample"
    source: str = "output"
    file: str = ""
    head: HeadSpec | None = None
    converted_from: Mapping[str, Any] | None = None

    @property
    def width(self) -> int | None:
        """Bytes of one record; None where records differ in length."""
        return None if self.codec.facts.varies else self.codec.width(self.shape)

    @property
    def records(self) -> Column:
        """The records: one an entry where all have the same width, else their bytes one after the other."""
        plain = self.codec.facts.plain
        if plain is not None:
            return Column(f"{self.file}.npy", plain, self.shape)
        return Column(f"{self.file}.npy", "|u1", () if self.width is None else (self.width,))

    @property
    def items(self) -> Column | None:
        """At which item of the shard each sample begins, and the last one ends."""
        return Column(f"{self.file}.items.npy", "<i8") if self.per == "item" else None

    @property
    def starts(self) -> Column | None:
        """At which byte of the shard each sample begins, and the last one ends."""
        return Column(f"{self.file}.starts.npy", "<i8") if self.width is None else None

    @property
    def lengths(self) -> Column | None:
        """How many bytes each item's record has."""
        return Column(f"{self.file}.lengths.npy", "<u2") if self.per == "item" and self.width is None else None

    @property
    def columns(self) -> tuple[Column, ...]:
        """All files of the signal in a shard."""
        return tuple(column for column in (self.records, self.items, self.starts, self.lengths) if column is not None)


@dataclass(frozen=True)
class Manifest:
    """What a store holds, and everything the numbers in it depend on.

    Attributes:
        signals: the recorded signals by name.
        num_samples: how many samples; there are ``num_samples * views`` rows, view after view.
        views: how many augmented views of each sample.
        ids: sha256 of the sample ids in row order.
        ids_order: how they follow each other.
        first_id: the first id where the ids count up by one, else None.
        data: fingerprint of the samples.
        teacher: JSON-like parts that identify the teacher: model, weights, preprocessing, precision.
        augmentation: JSON-like settings and seed of the augmentation; empty when nothing is augmented.
        sampling_seed: seed of codecs that sample, None where none does.
        rows_per_block: how many rows share a checksum.
        blocks_per_shard: how many blocks share a folder and a writer.
        bound: whether the journals name what they belong to, see `binding`; stores of before do not.
        potstill: version that recorded it; told, never compared.

    """

    signals: Mapping[str, SignalSpec]
    num_samples: int
    views: int
    ids: str
    ids_order: Order
    first_id: int | None
    data: str
    teacher: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    sampling_seed: int | None
    rows_per_block: int
    blocks_per_shard: int
    bound: bool = True
    potstill: str = ""

    @property
    def scale(self) -> TargetScale | None:
        """The standard units that values of a regression are kept in; None where they are as the teacher said them."""
        units = self.teacher.get("units")
        return None if units is None else TargetScale.from_json(units)

    @property
    def num_rows(self) -> int:
        """Rows of every signal."""
        return self.num_samples * self.views

    @property
    def num_blocks(self) -> int:
        """Blocks of every signal; the last may be shorter."""
        return -(-self.num_rows // self.rows_per_block)

    @property
    def rows_per_shard(self) -> int:
        """Rows of every shard but the last."""
        return self.rows_per_block * self.blocks_per_shard

    @property
    def num_shards(self) -> int:
        """Shards of the store; the last may be shorter."""
        return -(-self.num_blocks // self.blocks_per_shard)

    @property
    def num_bytes(self) -> int:
        """Bytes of the records whose size is known beforehand: all but those of sequences."""
        return self.num_rows * sum(spec.width or 0 for spec in self.signals.values() if spec.per == "sample")

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything but the layout of blocks and the potstill version."""
        value = to_json(self)
        for key in ("potstill", "rows_per_block", "blocks_per_shard", "bound", "checksum"):
            value.pop(key, None)
        return fingerprint.of_json(value)

    @cached_property
    def binding(self) -> str:
        """What every line of a journal repeats: a shard of another teacher, data or codec is no shard of this store."""
        signals = {name: [list(spec.shape), spec.per, spec.codec.to_json()] for name, spec in self.signals.items()}
        value = [self.ids, self.data, dict(self.teacher), dict(self.augmentation), self.sampling_seed, signals]
        return fingerprint.of_json(value)[:16]

    def block_rows(self, block: int) -> tuple[int, int]:
        """Return the first row of ``block`` and the row after its last."""
        start = block * self.rows_per_block
        return start, min(start + self.rows_per_block, self.num_rows)

    def shard_blocks(self, shard: int) -> range:
        """Return the numbers of the blocks of ``shard``."""
        start = shard * self.blocks_per_shard
        return range(start, min(start + self.blocks_per_shard, self.num_blocks))


def to_json(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as plain JSON-like data, with a checksum of itself."""
    value = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "signals": {
            name: {
                "file": spec.file,
                "shape": list(spec.shape),
                "codec": spec.codec.to_json(),
                "per": spec.per,
                "source": spec.source,
                **({"head": asdict(spec.head)} if spec.head else {}),
                **({"converted_from": dict(spec.converted_from)} if spec.converted_from else {}),
            }
            for name, spec in manifest.signals.items()
        },
        "num_samples": manifest.num_samples,
        "views": manifest.views,
        "rows_per_block": manifest.rows_per_block,
        "blocks_per_shard": manifest.blocks_per_shard,
        **({"bound": True} if manifest.bound else {}),
        "ids": manifest.ids,
        "ids_order": manifest.ids_order,
        "first_id": manifest.first_id,
        "data": manifest.data,
        "teacher": dict(manifest.teacher),
        "augmentation": dict(manifest.augmentation),
        "sampling_seed": manifest.sampling_seed,
        "potstill": manifest.potstill,
    }
    return {**value, "checksum": fingerprint.of_json(value)}


def from_json(value: Any, path: Path) -> Manifest:
    """Return the manifest read from ``path``.

    Raises:
        PotstillError: it is not a manifest, or of a newer format, or damaged.

    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise PotstillError(f"{path} does not describe a store of teacher signals. Choose another folder.")
    if value.get("version") != FORMAT_VERSION:
        raise PotstillError(
            f"{path} is of store format {value.get('version')}, this potstill reads format {FORMAT_VERSION}. "
            f"It was written by potstill {value.get('potstill')}: install that version, or delete the folder."
        )
    try:
        manifest = Manifest(
            signals={str(name): _signal(name, spec, path) for name, spec in value["signals"].items()},
            num_samples=int(value["num_samples"]),
            views=int(value["views"]),
            ids=str(value["ids"]),
            ids_order=value["ids_order"],
            first_id=None if value["first_id"] is None else int(value["first_id"]),
            data=str(value["data"]),
            teacher=dict(value["teacher"]),
            augmentation=dict(value["augmentation"]),
            sampling_seed=None if value["sampling_seed"] is None else int(value["sampling_seed"]),
            rows_per_block=int(value["rows_per_block"]),
            blocks_per_shard=int(value["blocks_per_shard"]),
            bound=value.get("bound") is True,
            potstill=str(value.get("potstill", "")),
        )
        whole = value == to_json(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PotstillError(f"{path} is damaged ({error!r}). Delete {path.parent} to record anew.") from error
    if min(manifest.num_rows, manifest.rows_per_block, manifest.blocks_per_shard) < 1 or not manifest.signals:
        raise PotstillError(f"{path} is damaged: it describes no rows. Delete {path.parent} to record anew.")
    if not whole:
        raise PotstillError(f"{path} is damaged: its checksum is wrong. Delete {path.parent} to record anew.")
    return manifest


def _signal(name: Any, value: Any, path: Path) -> SignalSpec:
    shape, file, per = tuple(int(size) for size in value["shape"]), str(value["file"]), str(value["per"])
    try:
        codec = codec_from_json(value["codec"])
    except UsageError as error:
        raise PotstillError(
            f"{path}: signal '{name}' cannot be read by this potstill: {error} "
            "Use the version of potstill that recorded it, or delete the folder to record anew."
        ) from error
    if Path(file).name != file or min(shape, default=1) < 1 or per not in get_args(Per):
        raise ValueError(f"signal {name}: file {file!r}, shape {shape}, per {per}")
    head = HeadSpec(**value["head"]) if "head" in value else None
    converted = dict(value["converted_from"]) if "converted_from" in value else None
    return SignalSpec(shape, codec, cast(Per, per), str(value["source"]), file, head, converted)
