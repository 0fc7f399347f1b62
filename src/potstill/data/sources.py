"""Reading any kind of source: a name, a file, a folder, a function, arrays, a dataset.

Shape legend: n samples, ``...`` the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import TensorDataset

from potstill.core.errors import DataError, UsageError, did_you_mean
from potstill.core.optional import require
from potstill.data import functions, images, tables
from potstill.data.pictures import Form
from potstill.data.raw import Raw, as_array, ids_of, missing, stored_array
from potstill.data.samples import Array
from potstill.tasks import TaskName, task_of
from potstill.tasks.base import Finding

_ROLES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_ACCEPTED = (
    "'digits', a folder of images by class, a .csv, .parquet, .jsonl or .npz file, 'file.py:name' or "
    "'package.module:name', (inputs, targets), {'inputs': ..., 'targets': ..., 'ids': ...}, a map-style dataset of "
    "(input, target), or a Hugging Face dataset"
)


@dataclass(frozen=True)
class Options:
    """How sources are read; the fields are those of the recipe's data section."""

    task: TaskName = "classification"
    inputs: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    target: str | Sequence[str] = "label"
    id_column: str | None = None
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    background: str | None = None
    encoding: str | None = None
    args: Mapping[str, Any] | None = None
    base: Path = Path()

    @property
    def form(self) -> Form:
        """What pictures become."""
        return Form(self.image_size, self.channels, self.background or "white")


def splits_of(source: Any, role: str, options: Options) -> dict[str, Any]:
    """Return the sources of the splits that a source gives, by role: a dictionary of splits gives several.

    Args:
        source: any of the accepted kinds.
        role: which split the source was given for.
        options: how to read it.

    Raises:
        DataError: a dictionary of something else, or a function that fails.

    """
    if isinstance(source, str) and functions.is_function(source):
        source = functions.call(source, options.args or {}, options.base)
    if isinstance(source, Mapping) and "inputs" not in source:
        roles = {key: _ROLES.get(str(key)) for key in source}
        strange = [str(key) for key, value in roles.items() if value is None]
        if strange or not source:
            raise DataError(
                f"{role}: a dictionary has the keys {sorted(map(str, source))}; expected 'inputs' and 'targets', "
                "or 'train' and optionally 'validation' and 'test'."
            )
        if len(set(roles.values())) < len(roles):
            raise DataError(f"{role}: a dictionary names a split twice: {sorted(map(str, source))}.")
        if role != "train":
            raise DataError(f"data.{role} returned several splits {sorted(map(str, source))}; give them as data.train.")
        return {str(roles[key]): value for key, value in source.items()}
    return {role: source}


def read_unlabelled(source: Any, role: str, options: Options) -> Raw:
    """Read a source without looking at labels: a table need not have the target, and arrays are inputs alone.

    Args:
        source: any of the accepted kinds, or inputs alone, or ``{'inputs': ..., 'ids': ...}``. A folder has its images
            at any depth.
        role: which split it is for.
        options: how to read it.

    Raises:
        UsageError: not a kind of source, or options that do not fit it.
        DataError: the source cannot be read.

    """
    if isinstance(source, str) and functions.is_function(source):
        source = functions.call(source, options.args or {}, options.base)
    path = Path(options.base) / Path(source).expanduser() if isinstance(source, str | Path) else None
    if path is not None and path.is_file() and path.suffix.lower() in tables.SUFFIXES:
        _refuse_pictures(options, f"of a folder or dataset, not for {source}. Remove it.")
        columns, target = tables.read_columns(path, encoding=options.encoding), _one_column(options)
        nothing = np.zeros(len(next(iter(columns.values()), ())))
        raw = tables.from_columns(
            {**columns, target: nothing},
            str(path),
            inputs=options.inputs,
            target=target,
            id_column=options.id_column,
            exclude=options.exclude,
        )
    elif path is not None and path.is_dir():
        _refuse_columns(options, f"the folder {source}")
        raw = images.read_folder(path, options.form, classless=True)
    elif _is_array(source) or (isinstance(source, Mapping) and "inputs" in source):
        inputs, ids = (source, None) if _is_array(source) else (source["inputs"], source.get("ids"))
        raw = _arrays(inputs, np.zeros(len(inputs)), ids, role, options)
    else:
        raw = _read(source, role, options)
    rows_of = None if raw.own_ids else path.name if path is not None else f"data.{role}"
    return replace(raw, labels=np.zeros(len(raw)), rows_of=rows_of, blind=True)


def read(source: Any, role: str, options: Options) -> Raw:
    """Read the source of one split; rows without a usable label are marked bad.

    Raises:
        UsageError: not a kind of source, or options that do not fit it.
        DataError: the source cannot be read.

    """
    raw = _read(source, role, options)
    if options.encoding is not None and not _is_plain_text(source):
        raise UsageError(f"data.encoding is for CSV and JSONL files, not for data.{role}. Remove it.")
    if raw.labels.shape[0] != len(raw.ids) or not raw.labels.ndim:
        raise DataError(f"{role}: {len(raw)} inputs but targets of shape {raw.labels.shape}; expected one for each.")
    asked = task_of(options.task).targets
    labels = asked.read(raw.labels, role)
    rows_of = None if raw.own_ids else Path(source).name if isinstance(source, str | Path) else f"data.{role}"
    return replace(raw, labels=labels, bad={**missing(labels, gaps=asked.gaps), **raw.bad}, rows_of=rows_of)


def _is_plain_text(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in (".csv", ".jsonl")


def _read(source: Any, role: str, options: Options) -> Raw:
    if isinstance(source, str) and source == "digits":
        _refuse_columns(options, "'digits'")
        _refuse_pictures(options, "of a folder or dataset; 'digits' are 8x8. Remove it.")
        return _digits()
    if isinstance(source, str | Path):
        return _read_path(Path(options.base) / Path(source).expanduser(), str(source), options)
    if _is_hugging_face(source):
        return _read_hugging_face(source, role, options)
    _refuse_columns(options, f"data.{role} ({type(source).__name__})")
    if isinstance(source, TensorDataset):
        source = source.tensors
    if isinstance(source, Mapping):
        strange = sorted(set(map(str, source)) - {"inputs", "targets", "ids"})
        if strange or "targets" not in source:
            keys = sorted(map(str, source))
            raise DataError(f"{role}: a dictionary has the keys {keys}; expected inputs, targets and maybe ids.")
        return _arrays(source["inputs"], source["targets"], source.get("ids"), role, options)
    if isinstance(source, tuple | list) and len(source) == 2 and all(map(_is_array, source)):
        return _arrays(source[0], source[1], None, role, options)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not _is_array(source):
        return images.read_dataset(source, options.form, f"data.{role}")
    raise UsageError(f"data.{role} is {type(source).__name__}, which is not a source of samples. Expected {_ACCEPTED}.")


def _read_path(path: Path, given: str, options: Options) -> Raw:
    if path.is_dir():
        _refuse_columns(options, f"the folder {given}")
        return images.read_folder(path, options.form)
    suffix = path.suffix.lower()
    if not path.exists():
        known = ["digits"] + ([entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else [])
        close = did_you_mean(path.name, known)
        hint = close if "Did you mean" in close else ""
        raise DataError(f"'{given}' does not exist (looked at {path.absolute()}).{hint} Expected {_ACCEPTED}.")
    if suffix not in tables.SUFFIXES:
        raise DataError(f"'{given}' is a {suffix or 'plain'} file, which cannot be read. Expected {_ACCEPTED}.")
    _refuse_pictures(options, f"of a folder or dataset, not for {given}. Remove it.")
    return tables.read_table(
        path,
        inputs=options.inputs,
        target=options.target,
        id_column=options.id_column,
        exclude=options.exclude,
        encoding=options.encoding,
        text_target=task_of(options.task).exclusive,
    )


def _arrays(inputs: Any, targets: Any, ids: Any, role: str, options: Options) -> Raw:
    _refuse_pictures(
        options, "of a folder or dataset; arrays stay as they are. Remove it, or set preprocess.size of the models."
    )
    labels = _labels(targets, f"the targets of {role}")
    _refuse_other_order(inputs, targets, role)
    if _is_frame(inputs):
        raw = _frame(inputs, labels, role)
        numbers = raw.ids if ids is None else ids_of(as_array(ids, f"the ids of {role}"), f"data.{role}")
        return replace(raw, ids=numbers, own_ids=ids is not None)
    array = as_array(inputs, f"the inputs of {role}")
    if array.ndim > 1 and 0 in array.shape[1:]:
        raise DataError(f"{role}: inputs have shape {array.shape}: there is nothing in them to learn from.")
    if array.ndim < 1 or labels.ndim < 1 or len(array) != len(labels):
        raise DataError(
            f"{role}: inputs have shape {array.shape} and targets {labels.shape}; expected (n, ...) and (n,)."
        )
    content, bad = stored_array(np.ma.getdata(array))
    if isinstance(array, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(array).any(axis=tuple(range(1, array.ndim)))
        bad |= dict.fromkeys(np.flatnonzero(hidden).tolist(), "inputs are masked (missing)")
    findings = () if array.ndim > 2 else tuple(tables.merged_numbers(np.ma.getdata(array), f"the inputs of {role}"))
    findings += images.pixel_range(content, role)
    numbers = np.arange(len(array), dtype=np.int64)
    if ids is not None:
        numbers = ids_of(as_array(ids, f"the ids of {role}"), f"data.{role}")
    return Raw(numbers, labels, content, own_ids=ids is not None, bad=bad, findings=findings)


def _is_frame(value: Any) -> bool:
    return len(getattr(value, "shape", ())) == 2 and not callable(getattr(value, "columns", len))


def _frame(inputs: Any, labels: Array, role: str) -> Raw:
    """Return a DataFrame of pandas or polars as a table: its columns have names, and keep them."""
    arrow = require("pyarrow", feature="reading DataFrames", extra="tables")
    try:
        table = (
            inputs.to_arrow() if hasattr(inputs, "to_arrow") else arrow.Table.from_pandas(inputs, preserve_index=False)
        )
    except (ValueError, TypeError, arrow.ArrowException) as error:
        raise DataError(f"the inputs of {role} cannot be read: {error}") from error
    columns = tables.from_arrow(table, f"the inputs of {role}")
    target = "the targets"
    while target in columns:
        target += "'"
    return tables.from_columns(
        {**columns, target: labels}, f"the inputs of {role}", inputs=None, target=target, id_column=None
    )


def _refuse_other_order(inputs: Any, targets: Any, role: str) -> None:
    """Refuse inputs and targets with the same labels of rows in another order: which belongs to which is a guess."""
    ours, theirs = getattr(inputs, "index", None), getattr(targets, "index", None)
    if callable(ours) or callable(theirs) or ours is None or theirs is None or len(ours) != len(theirs):
        return
    if not ours.equals(theirs) and ours.sort_values().equals(theirs.sort_values()):
        raise DataError(
            f"{role}: inputs and targets have the same row labels in another order, and rows are taken by their place. "
            "Align them first: targets = targets.loc[inputs.index]."
        )


def _digits() -> Raw:
    found = require("sklearn.datasets", feature="the bundled 'digits' data", extra="demo").load_digits()
    # 17 grey levels, 0 to 16, stretched to the range of pixels.
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    content, _ = stored_array(pixels)
    return Raw(np.arange(len(pixels), dtype=np.int64), found.target.astype(np.int64), content)


def _one_column(options: Options) -> str:
    if not isinstance(options.target, str):
        raise UsageError("data.target: a list of columns is for CSV, Parquet, JSONL and NPZ files. Name one column.")
    return options.target


def _read_hugging_face(dataset: Any, role: str, options: Options) -> Raw:
    features, source, target = dataset.features, f"data.{role}", _one_column(options)
    if target not in features:
        hint = did_you_mean(target, features)
        raise DataError(f"{source} has no column '{target}' (data.target).{hint}")
    dropped = set(options.exclude or ())
    others = [name for name in features if name not in {target, options.id_column, *dropped}]
    chosen = list(options.inputs) if options.inputs else others
    pictures = [name for name in chosen if type(features.get(name)).__name__ == "Image"]
    label_names = getattr(features[target], "names", None)
    names = tuple(map(str, label_names)) if isinstance(label_names, list) else None
    wanted = [name for name in chosen if name in features and name not in pictures] if not pictures else []
    if dropped & {*(options.inputs or ()), target, options.id_column}:
        raise DataError(f"{source}: data.exclude names the target, the id or an input.")
    kept = [*wanted, target, *([options.id_column] if options.id_column else [])]
    unknown = [name for name in [*chosen, *kept, *sorted(dropped)] if name not in features]
    if unknown:
        raise DataError(f"{source} has no column '{unknown[0]}'.{did_you_mean(unknown[0], features)}")
    columns = tables.from_arrow(dataset.select_columns(kept).with_format("arrow")[:], source)
    if names is not None:
        columns[target] = _class_labels(columns[target], names)
    if not pictures:
        _refuse_pictures(options, f"of a folder or dataset, but {source} has no image column. Remove it.")
        return tables.from_columns(
            columns,
            source,
            inputs=options.inputs,
            target=target,
            id_column=options.id_column,
            label_names=names,
        )
    if len(pictures) > 1 or (options.inputs and len(chosen) > 1):
        raise DataError(f"{source}: data.inputs names {', '.join(chosen)}; expected one image column and nothing else.")
    content, bad, remarks = images.read_images(
        images.DatasetColumn(dataset, pictures[0], options.form), len(dataset), None, source
    )
    ignored = [name for name in others if name != pictures[0]]
    text = f"{source}: only the image column '{pictures[0]}' is used; ignored: {', '.join(ignored)}."
    if ignored and not options.inputs:
        remarks = (Finding("info", "ignored-columns", text, len(ignored)), *remarks)
    ids = np.arange(len(dataset), dtype=np.int64)
    if options.id_column:
        ids = ids_of(columns[options.id_column], f"{source}, column '{options.id_column}',")
    return Raw(
        ids,
        columns[target],
        content,
        label_names=names,
        own_ids=bool(options.id_column),
        bad=bad,
        findings=remarks,
    )


def _class_labels(codes: Array, names: tuple[str, ...]) -> Array:
    """Return names for the numbers of a ClassLabel column; -1 stands for no label there."""
    found = np.empty(len(codes), dtype=object)
    found[:] = [names[int(code)] if 0 <= code < len(names) else None for code in codes]
    return found


def _is_hugging_face(source: Any) -> bool:
    return (
        type(source).__module__.split(".")[0] == "datasets"
        and hasattr(source, "features")
        and hasattr(source, "select_columns")
    )


def _refuse_columns(options: Options, what: str) -> None:
    for key, value in (("inputs", options.inputs), ("exclude", options.exclude), ("id", options.id_column)):
        if value is not None:
            raise UsageError(f"data.{key} names columns, but {what} has no named columns. Remove it.")


def _refuse_pictures(options: Options, why: str) -> None:
    for key in ("image_size", "channels", "background"):
        if getattr(options, key) is not None:
            raise UsageError(f"data.{key} is for images {why}")


def _is_array(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray | torch.Tensor)
        or (isinstance(value, list) and bool(value) and isinstance(value[0], int | float | str | bytes | list))
        or hasattr(value, "to_numpy")
        or _is_sparse(value)
    )


def _is_sparse(value: Any) -> bool:
    return type(value).__module__.startswith("scipy.sparse")


def _labels(value: Any, what: str) -> Array:
    """Return targets as an array; NumPy alone would make texts of numbers, or numbers of booleans, in a mixed list."""
    parts = isinstance(value, list) and bool(value) and isinstance(value[0], list | tuple | set)
    inner = [name for part in value for name in part] if parts else []
    uneven = parts and (len(set(map(len, value))) > 1 or any(isinstance(name, str | list | tuple) for name in inner))
    if uneven or (isinstance(value, list) and not parts and len(set(map(type, value))) > 1):
        found = np.empty(len(value), dtype=object)
        found[:] = value
        return found
    return as_array(value, what)
