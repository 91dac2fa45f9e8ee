"""Large tensors in safetensors files, written a few rows at a time, with a record of what was written.

Enters: rows, in any order. Leaves: the file that `save_file` makes of the whole tensor, and records (npz) that are
whole or not there, from which a process that was stopped knows what is done.
"""

import hashlib
import json
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import tensor_place

_DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int64": "I64"}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # by name, dtype and shape


def bytes_of(rows: Shaped[np.ndarray, "n ..."]) -> memoryview:
    """The memory of a contiguous array."""
    return rows.reshape(-1).view(np.uint8).data


class Stored:
    """One tensor of a safetensors file, of which rows are read and written where they lie, in memory of their own.

    The file is open for as long as this is there."""

    def __init__(self, path: Path, name: str) -> None:
        place = tensor_place(path, name)
        self.path, self.shape, self.offset = path, place.shape, place.offset
        self.dtype = np.dtype(next(name for name, code in _DTYPES.items() if code == place.dtype))
        self.row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)

    def write(self, first: int, rows: Shaped[np.ndarray, "n ..."]) -> int:
        """Write rows from number `first` on; return their checksum."""
        data = bytes_of(np.ascontiguousarray(rows, self.dtype))
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], self.offset + first * self.row_bytes + done)
        return zlib.crc32(data)

    def read(self, first: int, count: int) -> Shaped[np.ndarray, "n ..."]:
        rows = np.empty((count, *self.shape[1:]), self.dtype)
        self._fill(rows, first)
        return rows

    def __getitem__(self, which: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n ..."]:
        rows = np.empty((len(which), *self.shape[1:]), self.dtype)
        for place, row in enumerate(which.tolist()):
            self._fill(rows[place : place + 1], row)
        return rows

    def _fill(self, rows: np.ndarray, first: int) -> None:
        data, done = bytes_of(rows), 0
        while done < len(data):
            got = os.preadv(self._descriptor, [data[done:]], self.offset + first * self.row_bytes + done)
            if not got:
                raise UserError(f"{self.path}: expected {self.shape[0]} rows, got a shorter file. Run it again.")
            done += got


def lay_out(path: Path, tensors: Tensors) -> None:
    """Make a safetensors file of tensors (dtype, shape) that are yet to be written, in the order of `save_file`."""
    order = sorted(tensors.items(), key=lambda entry: (-np.dtype(entry[1][0]).itemsize, entry[0]))
    header, end = {}, 0
    for name, (dtype, shape) in order:
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        file.truncate(8 + len(told) + end)
    os.replace(beside, path)


def opened(path: Path, name: str, tensors: Tensors) -> Stored:
    """The file that is there, if it is the one that is wanted; else a new one, without any records."""
    dtype, shape = tensors[name]
    try:
        place = tensor_place(path, name)
        whole = place.shape == shape and place.dtype == _DTYPES[dtype]
        whole = whole and path.stat().st_size >= place.offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        lay_out(path, tensors)
    return Stored(path, name)


def record(path: Path, **arrays: Any) -> None:
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        np.savez(file, **arrays)
    os.replace(beside, path)


def recorded(path: Path) -> dict[str, np.ndarray] | None:
    """A record; None if there is none, or a damaged one."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zlib.error, BadZipFile):
        return None


class Segment(NamedTuple):
    first: int
    num_rows: int
    crc: int


@dataclass(frozen=True)
class Finished:
    """A large file as the dataset will have it, and the checksums of its rows, in order, as they were computed."""

    path: Path
    name: str
    tensor: str
    segments: Iterable[Segment]
    num_sites: int = 0


def verified(file: Finished, advance: Callable[[int], None]) -> str:
    """SHA-256 of a file. Raises UserError if it does not hold what was written to it."""
    stored, digest = Stored(file.path, file.tensor), hashlib.sha256()
    with open(file.path, "rb", buffering=0) as raw:
        digest.update(raw.read(stored.offset))
        for segment in file.segments:
            crc = 0
            left = segment.num_rows * stored.row_bytes
            while left:
                data = raw.read(min(left, 1 << 20))
                if not data:
                    break
                digest.update(data)
                crc = zlib.crc32(data, crc)
                left -= len(data)
                advance(len(data))
            if crc != segment.crc:
                last = segment.first + segment.num_rows - 1
                raise UserError(
                    f"{file.path}: expected rows {segment.first} to {last} as they were written, got others. "
                    "The disk lost or changed them: run the same command again."
                )
        os.fsync(raw.fileno())  # while what follows is made
    return digest.hexdigest()
