"""Tensors of a safetensors file, read where they lie, bfloat16 among them.

Enters: a path. Leaves: name -> dtype, shape, and a read-only view of the bytes, or rows of it one by one. NumPy has no
bfloat16: it is the upper half of a float32, so that a shift by 16 bits is exact.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from safetensors import safe_open

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import TensorPlace, tensor_place
from brainjanus.data.readers.arrays import check_not_empty, reading

_DTYPES = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
}


def tensors_of(path: Path) -> dict[str, TensorPlace]:
    """Every tensor of a file, none of them read. Raises UserError for a missing, truncated or damaged file."""
    check_not_empty(path)
    with reading(path, "a safetensors file"):
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
        return {name: tensor_place(path, name) for name in sorted(names)}


def described(tensors: Mapping[str, TensorPlace]) -> str:
    """The tensors of a file for a sentence: "voxels BF16 [27750, 15724], ids I64 [27750]"."""
    return ", ".join(f"{name} {place.dtype} {list(place.shape)}" for name, place in tensors.items()) or "none"


def mapped(path: Path, name: str, place: TensorPlace) -> Shaped[np.ndarray, "..."]:
    """A read-only view of a tensor; bfloat16 as the uint16 that `as_float32` takes."""
    if place.dtype not in _DTYPES:
        raise UserError(
            f"{path}, {name}: expected numbers ({', '.join(_DTYPES)}), got {place.dtype}. Convert it to one of these."
        )
    if 0 in place.shape:
        return np.empty(place.shape, _DTYPES[place.dtype])
    return np.memmap(path, _DTYPES[place.dtype], "r", place.offset, place.shape)


def read_rows(path: Path, place: TensorPlace, rows: Iterable[int]) -> Iterator[Shaped[np.ndarray, "..."]]:
    """One row after the other, each read when it is its turn; none is mapped, so that memory holds one."""
    dtype, shape = np.dtype(_DTYPES[place.dtype]), place.shape[1:]
    size = dtype.itemsize * math.prod(shape)
    with reading(path, "a safetensors file"), open(path, "rb", buffering=0) as file:
        for row in rows:
            data = os.pread(file.fileno(), size, place.offset + row * size)
            if len(data) < size:
                raise EOFError(f"an end in row {row}")
            yield np.frombuffer(data, dtype).reshape(shape)


def as_float32(values: Shaped[np.ndarray, "..."], dtype: str) -> Float[np.ndarray, "..."]:
    """Values of a tensor of this dtype, as float32; exact for bfloat16 and float16."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, dtype=np.float32)


def as_bfloat16(values: Float[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The bits of the nearest bfloat16 to each finite float32, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
