"""``potstill store``: looking at what a teacher said, moving it about, and changing how it is kept."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import show
from potstill.cli.guard import guarded
from potstill.cli.options import Json, Quiet
from potstill.core.errors import UsageError

if TYPE_CHECKING:
    from potstill.store.codecs import Codec
    from potstill.store.inspect import Verification

app = typer.Typer(
    name="store",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Look at recorded signals, check, merge, convert, export and import them.",
    help="""Look at what a teacher said: check it, merge, convert, export, import and send it.

    \b
    Examples:
      potstill store inspect runs/store
      potstill store verify runs/store
    """,
)

Folder = Annotated[
    str, typer.Argument(metavar="STORE", help="The store's folder, or an address such as s3://bucket/store.")
]
New = Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the new store.", show_default=False)]


def inspect(folder: Folder, json: Json = False) -> None:
    """Show what a store holds.

    Its signals and their codecs, bytes, rows and shards, what it was recorded from, and what is missing. Reads no
    recorded numbers.

    \b
    Examples:
      potstill store inspect runs/store
      potstill store inspect s3://bucket/store --json
    """
    from potstill.store import is_remote
    from potstill.store.inspect import inspect as look
    from potstill.store.remote import local_copy

    if is_remote(folder):
        with TemporaryDirectory() as temporary:
            found = {**look(local_copy(folder, Path(temporary))), "folder": folder}
    else:
        found = look(Path(folder))
    if json:
        show.print_json(found)
    else:
        _print(found)


def verify(folder: Folder, json: Json = False, quiet: Quiet = False) -> None:
    """Compare every byte of a store with its checksums.

    Names all that is damaged, and exits with 1 if anything is.

    \b
    Examples:
      potstill store verify runs/store
      potstill store verify runs/store --quiet && echo right
    """
    _be_quiet(quiet or json)
    from potstill.store import is_remote
    from potstill.store.inspect import verify as compare
    from potstill.store.remote import local_copy

    found = compare(local_copy(folder) if is_remote(folder) else Path(folder))
    if json:
        show.print_json(
            {
                "folder": folder,
                "finished": found.finished,
                "bytes": found.num_bytes,
                "seconds": found.seconds,
                "bytes_per_second": found.rate,
                "damage": list(found.damage),
            }
        )
    elif not quiet:
        _print_verification(found)
    if found.damage:
        raise typer.Exit(1)


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The merged store.", show_default=False)],
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="The folders of the parts.")],
    move: Annotated[bool, typer.Option("--move", help="Remove from the parts what was taken.")] = False,
    check: Annotated[bool, typer.Option("--verify", help="Compare every byte with its checksum.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring parts that were recorded in folders of their own together.

    Nothing is written anew: files are hard-linked, and copied only across file systems. Can be repeated as parts
    arrive.

    \b
    Examples:
      potstill store merge runs/store part-1 part-2 part-3
      potstill store merge runs/store part-* --move
    """
    _be_quiet(quiet or json)
    from potstill.store.merge import merge as bring_together

    merged = bring_together(parts, out, move=move, verify=check)
    if json:
        show.print_json(
            {
                "folder": str(merged.folder),
                "finished": not merged.missing,
                "added": {shard: str(part) for shard, part in merged.added.items()},
                "present": list(merged.present),
                "doubled": list(merged.doubled),
                "missing": list(merged.missing),
            }
        )
    elif not quiet:
        rows = [[str(shard), show.short(part)] for shard, part in sorted(merged.added.items())]
        show.table(["shard", "from"], rows, right=[0])
        if merged.doubled:
            show.echo(f"in several parts, equal: {_listed(merged.doubled)}")
        if merged.missing:
            show.echo(f"missing: {_listed(merged.missing)}; record or merge them to finish {show.short(merged.folder)}")
        else:
            show.echo(f"{show.short(merged.folder)} is finished")


def convert(
    folder: Folder,
    out: New,
    codec: Annotated[
        str,
        typer.Option(
            "--codec",
            "-c",
            metavar="CODEC",
            help='As in a recipe: \'{"codec": "top_k", "k": 50}\'; or the format of full numbers, such as float16.',
        ),
    ],
    signal: Annotated[str, typer.Option("--signal", help="The signal to keep in another way.")] = "logits",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="NUMBER", help="Of codecs that sample.  [default: the store's]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a store again, with another codec for a signal.

    From float32, the result is what recording with that codec would have written. Digits and classes that were not
    recorded cannot be asked for.

    \b
    Examples:
      potstill store convert runs/store half --codec float16
      potstill store convert runs/store small --codec '{"codec": "threshold", "size": 16}'
      potstill store convert runs/store small --signal hidden --codec int8
    """
    _be_quiet(quiet)
    from potstill.store.convert import convert as write_again
    from potstill.store.inspect import inspect as look

    wanted = _codec(codec)
    before = write_again(Path(folder) if "://" not in folder else folder, out, {signal: wanted}, seed=seed)
    if not quiet:
        found = look(before.folder)["signals"][signal]
        show.echo(f"{show.short(out)}: {signal} in {_codec_text(found)}, {show.megabytes(found['bytes'])} MB")


def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The Parquet file.", show_default=False)],
    signals: Annotated[
        list[str] | None,
        typer.Option("--signal", metavar="NAME", help="Only this signal; several times for more.  [default: all]"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a store as a Parquet file.

    Columns: id, view, and one for each signal.

    \b
    Examples:
      potstill store export runs/store store.parquet
      potstill store export runs/store logits.parquet --signal logits
    """
    _be_quiet(quiet)
    if out.suffix != ".parquet":
        raise UsageError(f"{out} has the ending '{out.suffix}': stores are exported as .parquet.")
    from potstill.store.export import export as write_table

    rows = write_table(folder, out, signals=signals or None)
    if not quiet:
        show.echo(f"{show.short(out)}: {rows:,} rows, {show.megabytes(out.stat().st_size)} MB")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet, .jsonl or .npz file.", show_default=False)],
    out: New,
    classes: Annotated[
        int | None, typer.Option("--classes", metavar="NUMBER", help="How many classes or tokens there are.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="The log-probabilities, or an array.  [default: found by name]"),
    ] = None,
    classes_column: Annotated[
        str | None, typer.Option("--classes-column", metavar="NAME", help="The class ids that belong to them.")
    ] = None,
    tokens_column: Annotated[
        str | None, typer.Option("--tokens-column", metavar="NAME", help="Token ids, kept as the signal tokens.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", metavar="NAME", help="Sample ids.  [default: numbers from 0]")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--top-k", metavar="NUMBER", help="Classes kept.  [default: all of the file]")
    ] = None,
    bits: Annotated[int, typer.Option("--bits", metavar="NUMBER", help="Of a log-probability.")] = 8,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The values are probabilities, not their logarithms.")
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option("--codec", "-c", metavar="CODEC", help="Of a .npz file's array.  [default: float16]"),
    ] = None,
    signal: Annotated[str, typer.Option("--signal", metavar="NAME", help="What the signal is called.")] = "logits",
    quiet: Quiet = False,
) -> None:
    """Make a store of a file in which another tool kept what a teacher said.

    Likeliest classes of tokens or samples from Parquet or JSON lines (two columns of lists, or tables from token ids to
    log-probabilities), or whole arrays from .npz.

    \b
    Examples:
      potstill store import logprobs.jsonl store --classes 50257
      potstill store import top.parquet store --classes 151936 --column top_logprobs --classes-column top_ids
      potstill store import logits.npz store
    """
    _be_quiet(quiet)
    from potstill.store import imports

    if file.suffix == ".npz":
        kept = None if codec is None else _codec(codec)
        store = imports.import_arrays(file, out, array=column, codec=kept, signal=signal)
    else:
        if codec is not None:
            raise UsageError("--codec is for .npz files: others hold the likeliest classes, see --top-k and --bits.")
        if classes is None:
            raise UsageError("--classes is missing: how many classes, or tokens of the vocabulary, are there?")
        if column is None and (classes_column or tokens_column or id_column):
            raise UsageError("--column is missing: which column holds the log-probabilities?")
        columns = None if column is None else imports.Columns(column, classes_column, tokens_column, id_column)
        store = imports.import_top_k(
            file,
            out,
            num_classes=classes,
            columns=columns,
            k=k,
            bits=bits,
            probabilities=probabilities,
            signal=signal,
        )
    if not quiet:
        from potstill.store.inspect import inspect as look

        _print(look(store.folder))


def push(
    folder: Annotated[Path, typer.Argument(metavar="STORE", help="The store's folder.", show_default=False)],
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as s3://bucket/store.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Send a store to an address.

    What is there already is not sent again. An unfinished store's finished shards are sent; the last part to come
    finishes the store.

    \b
    Examples:
      potstill store push runs/store s3://bucket/store
    """
    _be_quiet(quiet)
    from potstill.store import is_remote
    from potstill.store.remote import push as send

    if not is_remote(url):
        raise UsageError(f"{url} is no address: give one such as s3://bucket/store.")
    sent = send(folder, url)
    if not quiet:
        state = "finished" if sent.finished else "not finished yet"
        show.echo(f"{url}: {len(sent.sent)} shards sent, {len(sent.present)} were there; {state}")


for command in (inspect, verify, merge, convert, export, push):
    app.command()(guarded(command))
app.command("import")(guarded(import_))


def _be_quiet(wanted: bool) -> None:
    if wanted:
        os.environ["POTSTILL_QUIET"] = "1"


def _codec(text: str) -> Codec:
    """Return the codec of an option: JSON as in a recipe, or the name of a number format."""
    from potstill.store import codecs

    if not text.lstrip().startswith("{"):
        return codecs.numbers(text)  # type: ignore[arg-type]  # refuses what it does not know
    try:
        value = json_format.loads(text)
    except ValueError as error:
        raise UsageError(f"--codec {text}: no JSON ({error}).") from error
    return codecs.from_json(value)


def _print(found: Mapping[str, Any]) -> None:
    shards, rows = found["shards"], found["rows"]
    state = "finished" if found["finished"] else "unfinished"
    show.echo(f"{found['folder']}: {state}, {show.megabytes(found['bytes'])} MB")
    show.echo(f"{found['samples']:,} samples, {found['views']} views, {rows['recorded']:,} of {rows['all']:,} rows")
    missing = f"; missing: {_listed(found['missing_shards'])}" if found["missing_shards"] else ""
    show.echo(f"{shards['finished']} of {shards['all']} shards{missing}")
    show.echo()
    lines = [
        [
            name,
            " x ".join(map(str, signal["shape"])) or "1",
            signal["per"],
            _codec_text(signal),
            f"{signal['items']:,}",
            show.number(signal["bytes_per_sample"]),
            show.number(signal["bytes_per_item"]),
            signal["source"],
        ]
        for name, signal in found["signals"].items()
    ]
    header = ["signal", "shape", "one a", "codec", "records", "bytes/sample", "bytes/record", "source"]
    show.table(header, lines, right=[4, 5, 6])
    show.echo()
    for name in ("teacher", "augmentation"):
        for key, value in found[name].items():
            show.echo(f"{name} {key}: {value if isinstance(value, str) else json_format.dumps(value)}")
    show.echo(f"data: {found['data']}")
    if found["sampling_seed"] is not None:
        show.echo(f"sampling seed: {found['sampling_seed']}")
    show.echo(f"recorded by potstill {found['potstill']}, store format {found['format']}")


def _codec_text(signal: Mapping[str, Any]) -> str:
    settings = dict(signal["codec"])
    name = settings.pop("codec")
    text = " ".join([name, *(f"{key}={value}" if key != "dtype" else str(value) for key, value in settings.items())])
    before = signal["converted_from"]
    return text if before is None else f"{text} (from {before['codec']})"


def _print_verification(found: Verification) -> None:
    for sentence in found.damage:
        show.echo(f"damaged: {sentence}")
    state = "" if found.finished else ", unfinished: what is recorded so far"
    verdict = f"{len(found.damage)} damaged" if found.damage else "every byte is right"
    show.echo(
        f"{show.megabytes(found.num_bytes)} MB in {show.duration(found.seconds)} "
        f"({show.megabytes(found.rate)} MB/s){state}: {verdict}"
    )


def _listed(numbers: Any) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 20 else [*shown[:20], f"and {len(shown) - 20} more"])
