"""One array out of a file of any of the formats that labs export.

Enters: "FILE" or "FILE:KEY", FILE being npy, npz, mat (also v7.3), HDF5 or safetensors; KEY names the array inside,
with dots into MATLAB structs ("roistack.betas"). Leaves: a NumPy array in the orientation that the writing program
shows. Nothing is ever unpickled, and nothing that makes much more of a file than measurements ever do is inflated.
"""

import csv
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from tarfile import TarError
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed

HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")
SUFFIXES = (".npy", ".npz", ".mat", ".safetensors", *HDF5_SUFFIXES)
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,  # of shapes that no number holds
    MemoryError,  # of headers that declare more than there is
    RuntimeError,  # of h5py, of archives with a password, and of JSON that is nested too deep
    csv.Error,
    struct.error,
    zlib.error,
    LZMAError,
    BadZipFile,
    TarError,
    SafetensorError,
    TokenError,  # of NumPy, which reads the headers of old npy files token by token
)
_MOST_SAID = 300  # characters of what a library says
_MAT_COMPRESSED = 15
SMALL = 128 << 20  # bytes that anything may take
MOST_GROWTH = 200  # measurements become some ten times smaller when they are compressed; zeros a thousand times


def split_source(source: str) -> tuple[Path, str]:
    """The file and the key of "FILE:KEY"; the key is "" if there is none."""
    file, colon, key = source.rpartition(":")
    return (Path(file), key) if colon and file.lower().endswith(SUFFIXES) else (Path(source), "")


def is_array(source: str) -> bool:
    """Whether `source` names a file that `read_array` reads."""
    return split_source(source)[0].suffix.lower() in SUFFIXES


def read_array(source: str) -> Shaped[np.ndarray, "..."]:
    """Read one array. npy files are mapped, the others loaded.

    Raises UserError if the file is missing, empty, truncated or of another kind, or the key does not name an array.
    """
    with open_array(source) as array:
        if isinstance(array, np.ndarray):
            return array
        check_growth(split_source(source)[0], f"'{array.name}'", array.nbytes, array.id.get_storage_size())
        return array[()]


@contextmanager
def open_array(source: str) -> Iterator[Any]:
    """Yield the array of `source`; from HDF5 as a handle that reads what is sliced. Raises as `read_array` does."""
    path, key = split_source(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: expected an array file ({', '.join(SUFFIXES)}), got '{path.suffix or 'no suffix'}'. "
            "Export it in one of these formats, or rename it if the suffix is wrong."
        )
    check_not_empty(path)
    with reading(path, f"a {suffix} file"):
        if suffix == ".npy":
            yield _checked(np.load(path, mmap_mode="r", allow_pickle=False), source)
        elif suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                name = _key(path, key, list(arrays))
                _check_npz(path, name, arrays.zip)
                yield _checked(arrays[name], source)
        elif suffix == ".safetensors":
            with safe_open(path, framework="numpy") as tensors:
                yield tensors.get_tensor(_key(path, key, list(tensors.keys())))
        elif suffix == ".mat" and not _is_hdf5(path):
            yield _checked(_read_mat(path, key), source)
        else:
            import h5py

            with h5py.File(path, "r") as hdf5:
                names: list[str] = []
                hdf5.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
                names = [name for name in names if not name.startswith("#refs#")]
                dataset = hdf5[_key(path, key.replace(".", "/") if suffix == ".mat" else key.strip("/"), names)]
                if dataset.is_virtual or dataset.external:
                    raise UserError(
                        f"{path}: expected the numbers of '{dataset.name}' in the file itself, got one that refers to "
                        "other files. Copy it into one file."
                    )
                taken = dataset.nbytes if suffix == ".mat" else inflated_bytes(dataset)
                check_growth(path, f"'{dataset.name}'", taken, dataset.id.get_storage_size())
                # MATLAB writes v7.3 with the axes reversed
                yield np.asarray(dataset[()]).transpose() if suffix == ".mat" else dataset


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn what the readers of damaged files raise into one sentence."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        said = (" ".join(str(error).split()) or type(error).__name__)[:_MOST_SAID]
        if "allow_pickle" in said or "Python objects" in said:
            raise UserError(
                f"{path}: expected {expected} of numbers, got Python objects, which are never unpickled. "
                "Save it as a plain array."
            ) from error
        if isinstance(error, MemoryError):
            raise UserError(
                f"{path}: expected {expected} that fits into memory, got '{said}'. "
                "Is its header damaged? If not, read it where there is more memory."
            ) from error
        raise UserError(
            f"{path}: expected {expected}, got '{said}'. "
            "The file is truncated or of another kind: copy or export it again."
        ) from error


def check_growth(path: Path, what: str, num_bytes: int, num_stored: int) -> None:
    """Raises UserError if so few stored bytes are to become so many: a bomb, or a file that was never filled."""
    if num_bytes > SMALL and num_bytes > MOST_GROWTH * num_stored:
        raise UserError(
            f"{path}: expected {what} as it was measured, got {num_bytes} bytes out of {num_stored} that are stored. "
            "It was not written to its end, or made to fill the memory: export it again."
        )


def inflated_bytes(dataset: Any) -> int:
    """What HDF5 has in memory to read a little of a dataset: the chunk that holds it."""
    return math.prod(dataset.chunks or ()) * dataset.dtype.itemsize


def check_not_empty(path: Path) -> None:
    """Raises UserError if there is no such file, or nothing in it."""
    if not os.path.isfile(path):  # a name that is too long for the system has no file either
        raise UserError(
            f"{path}: expected a file, got none there. Correct the path; a spec's are relative to its folder."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: expected data, got an empty file. It was not written to its end: export it again.")


def _key(path: Path, key: str, names: list[str]) -> str:
    if not key and len(names) == 1:
        return names[0]
    if key not in names:
        raise UserError(
            f"{path}: expected the key of one of its arrays ({listed(names)}), got {repr(key) if key else 'none'}. "
            f"Write it after a colon: '{path.name}:{names[0] if names else 'KEY'}'."
        )
    return key


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an npz file. Raises UserError if it is none."""
    check_not_empty(path)
    with reading(path, "an npz file"), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return list(arrays)


def _check_npz(path: Path, name: str, archive: zipfile.ZipFile) -> None:
    """Before NumPy makes room for what the header of an array says."""
    entry = next((one for one in archive.infolist() if one.filename.removesuffix(".npy") == name), None)
    if entry is not None:
        check_growth(path, f"'{name}'", entry.file_size, entry.compress_size)


def _checked(array: Any, source: str) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        fields = getattr(getattr(array, "dtype", None), "names", None) or ()
        raise UserError(
            f"{source}: expected an array of numbers, got a struct, cell or other object (fields: {listed(fields)}). "
            "Add the name of a field to the key, after a dot."
        )
    return array


def _is_hdf5(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"MATLAB 7.3" in file.read(128)


def _read_mat(path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatlabFunction, MatReadError

    _check_mat(path)
    try:
        content: dict[str, Any] = loadmat(path)
    except MatReadError as error:
        raise ValueError(str(error)) from error
    names = [name for name in content if not name.startswith("__")]
    first, *fields = key.split(".")
    value = content[_key(path, first, names)]
    for name in fields:
        value = _unwrapped(value)
        if value.dtype.names is None or name not in value.dtype.names:
            raise UserError(
                f"{path}: expected a field that its struct has ({listed(value.dtype.names or ())}), got '{name}'. "
                "Correct the key after the colon."
            )
        value = value[name]
    value = _unwrapped(value)
    if isinstance(value, MatlabFunction):
        raise ValueError("a function of MATLAB")
    return value


def _check_mat(path: Path) -> None:
    """What the compressed variables of a MATLAB 5 file say they become."""
    with open(path, "rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:])
        while order and len(tag := file.read(8)) == 8:
            kind, num_stored = struct.unpack(f"{order}II", tag)
            start = file.tell()
            if kind == _MAT_COMPRESSED:
                first = zlib.decompressobj().decompress(file.read(64), 8)
                num_bytes = int.from_bytes(first[4:], "little" if order == "<" else "big")
                check_growth(path, "each variable", num_bytes, num_stored)
            file.seek(start + num_stored)


def _unwrapped(value: np.ndarray) -> Any:
    """What a 1 x 1 cell or struct array holds."""
    while isinstance(value, np.ndarray) and value.dtype.hasobject and value.dtype.names is None and value.size == 1:
        value = value.reshape(-1)[0]
    return value
