"""Recordings over time in one array [images, repeats, sensors, times], read a few images at a time.

Enters: npz or HDF5, with the names of the sensors and the times beside the array, which may have concepts as a first
axis of its own, [concepts, images of one, ...]. Leaves: its shape, and parts of it as float32. Of an npz that was not
compressed only the bytes of a part are read; a compressed one is inflated once, as long as parts are read in their
order. Nothing is ever unpickled.
"""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, reading
from brainjanus.data.readers.hdf5 import dataset_in, open_hdf5
from brainjanus.data.readers.shards import Npy, Piece, npy_header, npy_of, parse_npy, read_pieces

HDF5 = (".h5", ".hdf5")
_LONGEST_HEADER = 10_240
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # PKZIP's: signature, then the lengths of name and extra field at 26
_MOST_WORDS = 64 << 20  # bytes that names and times may take


class Epochs(NamedTuple):
    """An array of epochs, found but not read. stored: its shape in the file, with or without an axis of concepts."""

    file: Path
    key: str
    stored: tuple[int, ...]
    itemsize: int
    sensors: list[str]
    times_sec: Float[np.ndarray, "t"]
    inflating: "_Inflating"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, repeats, sensors, times."""
        *images, repeats, sensors, times = self.stored
        return int(np.prod(images)), repeats, sensors, times

    @property
    def bytes_per_image(self) -> int:
        return self.itemsize * int(np.prod(self.shape[1:]))

    def read(self, first: int, end: int) -> Float[np.ndarray, "n r s t"]:
        """The epochs of the images from `first` to `end` (left out), float32."""
        if self.file.suffix not in HDF5:
            part = _npz_part(self, first, end)
            return np.asarray(part.reshape(-1, *self.shape[1:]), dtype=np.float32)
        of_concept = self.stored[1] if len(self.stored) == 5 else 1
        start = first // of_concept
        with open_hdf5(self.file) as hdf5:
            array: Any = dataset_in(self.file, hdf5, self.key, ndim=len(self.stored))
            rows = array[start : -(-end // of_concept)].reshape(-1, *self.shape[1:])
            return np.asarray(rows[first - start * of_concept :][: end - first], dtype=np.float32)


class _Inflating:
    """A compressed member of an npz, which is read on from where it was left."""

    def __init__(self) -> None:
        self.stream: IO[bytes] | None = None
        self.at = 0

    def read(self, file: Path, entry: zipfile.ZipInfo, start: int, length: int) -> bytes:
        stream, self.stream = self.stream, None  # if reading fails, the next one begins anew
        if stream is None or start < self.at:
            stream = zipfile.ZipFile(file).open(entry)  # noqa: SIM115 (closed when the last part of it was read)
        stream.seek(start)
        data = stream.read(length)
        if len(data) < length:
            raise EOFError(f"{len(data)} of {length} bytes")
        if start + length < entry.file_size:
            self.stream, self.at = stream, start + length
        else:
            stream.read()  # its end, where the checksum is compared
        return data


def find_epochs(file: Path, data: str, sensors: str, times: str) -> Epochs:
    """The epochs of a file, whose arrays have these names.

    Raises UserError for a missing or damaged file, another form, and names or times that are not those of the array.
    """
    check_not_empty(file)
    words = (sensors, times)
    (shape, itemsize), found = (_in_hdf5 if file.suffix in HDF5 else _in_npz)(file, data, words)
    names = [str(name) for name in found[sensors].reshape(-1).tolist()]
    if len(shape) not in (4, 5) or 0 in shape:
        raise UserError(
            f"{file}, {data}: expected [images, repeats, sensors, times], got {list(shape)}. Were repeats averaged, or "
            "axes left out? Export single trials."
        )
    num_sensors, num_times = shape[-2:]
    with reading(file, f"numbers of seconds in {times}"):
        times_sec = np.asarray(found[times].reshape(-1), dtype=np.float64)
    if len(names) != num_sensors or len(times_sec) < num_times:
        raise UserError(
            f"{file}: expected names of {num_sensors} sensors and {num_times} times, as {data} {list(shape)} has, got "
            f"{len(names)} and {len(times_sec)}. Are sensors and times swapped, or do they belong to another recording?"
        )
    return Epochs(file, data, shape, itemsize, names, times_sec, _Inflating())


def _in_hdf5(file: Path, data: str, words: Sequence[str]) -> tuple[tuple[tuple[int, ...], int], dict[str, np.ndarray]]:
    import h5py

    with open_hdf5(file) as hdf5:
        array = dataset_in(file, hdf5, data, ndim=(4, 5))
        found = {}
        for name in words:
            link = hdf5.get(name, getlink=True)
            dataset = hdf5[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(dataset, h5py.Dataset) or dataset.size > _MOST_WORDS // 64 or dataset.external:
                raise UserError(
                    f"{file}: expected '{name}' in the file itself, got {listed(sorted(hdf5.keys()))}. "
                    "Write it beside the data."
                )
            text = h5py.check_string_dtype(dataset.dtype) is not None
            found[name] = np.array(dataset.asstr()[()].tolist()) if text else np.asarray(dataset[()])
        return (tuple(array.shape), array.dtype.itemsize), found


def _in_npz(file: Path, data: str, words: Sequence[str]) -> tuple[tuple[tuple[int, ...], int], dict[str, np.ndarray]]:
    with reading(file, "an npz file"), zipfile.ZipFile(file) as archive:
        entries = _entries(file, archive, (data, *words))
        found = {}
        for name in words:
            entry = entries[name]
            if entry.file_size > _MOST_WORDS:
                raise ValueError(f"{entry.file_size} bytes in {name}")
            found[name] = parse_npy(_piece(file, entry), archive.read(entry), kinds="fiubUS")
        header = _npz_header(file, archive, entries[data])
        return (header.shape, header.dtype.itemsize), found


def _entries(file: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> Mapping[str, zipfile.ZipInfo]:
    there = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{file}: expected the arrays {listed(names)}, got {listed(there)}. Write all of them into one file, or "
            "say how they are called (--keys)."
        )
    return there


def _piece(file: Path, entry: zipfile.ZipInfo) -> Piece:
    """Where an entry would lie if it were stored from the beginning of the file; its size is what counts here."""
    return Piece(file, 0, entry.file_size, entry.filename)


def _npz_header(file: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Npy:
    with archive.open(entry) as stream:
        header = npy_header(_piece(file, entry), stream.read(_LONGEST_HEADER))
    if header.fortran:
        raise UserError(
            f"{file}, {entry.filename}: expected numbers in C order, got them in Fortran order, of which no part can "
            "be read alone. Save np.ascontiguousarray of it."
        )
    return header


def _npz_part(epochs: Epochs, first: int, end: int) -> Shaped[np.ndarray, "n"]:
    """The numbers of these images, flat."""
    file = epochs.file
    check_not_empty(file)
    with reading(file, "an npz file"), zipfile.ZipFile(file) as archive:
        entry = _entries(file, archive, (epochs.key,))[epochs.key]
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        place = _stored(file, entry) if stored else _piece(file, entry)
        header = npy_of(place) if stored else _npz_header(file, archive, entry)
        start = header.start + first * epochs.bytes_per_image
        length = (min(end, epochs.shape[0]) - first) * epochs.bytes_per_image
        if stored:
            data = next(read_pieces([Piece(file, place.offset + start, length, entry.filename)]))
        else:
            data = epochs.inflating.read(file, entry, start, length)
    return np.frombuffer(data, header.dtype)


def _stored(file: Path, entry: zipfile.ZipInfo) -> Piece:
    """Where the bytes of an entry lie that was not compressed: behind its local header, whose length varies."""
    with open(file, "rb") as stream:
        stream.seek(entry.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header of {entry.filename}")
    offset = entry.header_offset + _LOCAL_HEADER.size + name + extra
    return Piece(file, offset, entry.file_size, entry.filename)


def sensors_and_times(epochs: Sequence[Epochs]) -> Any:
    """The sensors and times of the first; raises UserError if the others have not the same."""
    first = epochs[0]
    for other in epochs[1:]:
        if other.sensors != first.sensors or other.shape[2:] != first.shape[2:]:
            raise UserError(
                f"{other.file}: expected the sensors and times of {first.file.name} ({list(first.shape[2:])}), got "
                f"{list(other.shape[2:])}{'' if other.shape[2:] != first.shape[2:] else ' with other names'}. "
                "Preprocess both alike."
            )
    return first
