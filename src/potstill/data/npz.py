"""NPZ files, whose members may lie about what they hold."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from potstill.core.errors import DataError
from potstill.data.samples import Array

_RATIO = 1100
"""No member of a zip file unpacks to more than this many times its size; deflate reaches 1,032."""


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an NPZ file by name.

    Sizes are compared before memory is taken: what an array declares, what its member holds, what the file has, what
    is free.

    Raises:
        DataError: the file is damaged, holds something else than plain arrays, or does not fit into memory.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) < len(names):
                raise DataError("it holds two arrays of one name")
            needed, free = sum(member.file_size for member in members), psutil.virtual_memory().available
            if needed > free:
                raise DataError(f"it unpacks to {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except DataError as error:
        raise DataError(f"{path} cannot be read as npz: {error}.") from error
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files
        raise DataError(f"{path} cannot be read as npz: {error}. It may be cut or damaged.") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    name = member.filename.removesuffix(".npy")
    if name == member.filename:
        raise DataError(f"'{name}' is no array")
    if member.file_size > _RATIO * member.compress_size + 1000:
        raise DataError(f"'{name}' says that {member.compress_size:,} bytes unpack to {member.file_size:,}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header: Any = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read_header = np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject or dtype.names or dtype.itemsize == 0:
            raise DataError(f"'{name}' holds {dtype}. Arrays of objects are not read")
        declared, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if declared != held or min(shape, default=0) < 0:
            raise DataError(f"'{name}' declares the shape {shape} of {dtype}, {declared:,} bytes, but holds {held:,}")
        content = file.read()  # to the end: its checksum is compared there
    array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if by_columns else "C")
    return np.atleast_1d(array)
