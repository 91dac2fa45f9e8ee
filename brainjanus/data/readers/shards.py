"""Samples of a WebDataset, read where they lie: in uncompressed tar shards, or in a folder they were unpacked to.

Enters: a tar file, or a folder. Leaves: samples, by key, as pieces of files (path, offset, size) by extension. None is
extracted, so that a member's name is never a path, and only the members and rows that are asked for are read. npy
members are parsed by hand: their size has to be what their header says, and nothing is ever unpickled.
"""

import io
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.data.readers.arrays import check_not_empty, reading

_LONGEST_HEADER = 10_240  # NumPy itself refuses longer ones


class Piece(NamedTuple):
    """Some bytes of a file. name: what to call them in a sentence."""

    path: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"


Samples = dict[str, dict[str, Piece]]


def shard_samples(path: Path, wanted: Collection[str]) -> Samples:
    """The samples of a tar file, or of a folder, in its order: key -> extension (of those `wanted`) -> where it lies.

    As in WebDataset, the key ends at the first dot of the file's name ("sample000000012.behav.npy").
    Raises UserError for a damaged or compressed archive, links, and members that point outside of it.
    """
    samples: Samples = {}
    for piece in _folder(path) if path.is_dir() else _members(path):
        name = PurePosixPath(piece.name)
        stem, _, extension = name.name.partition(".")
        if extension not in wanted:
            continue
        parts = samples.setdefault((name.parent / stem).as_posix(), {})
        if extension in parts:
            raise UserError(
                f"{piece}: expected each member once, got two of this name. Pack or copy the archive again."
            )
        parts[extension] = piece
    return samples


def _folder(path: Path) -> Iterator[Piece]:
    for file in sorted(path.iterdir()):
        if file.is_file():
            yield Piece(file, 0, file.stat().st_size, file.name)


def _members(path: Path) -> Iterator[Piece]:
    check_not_empty(path)
    end = path.stat().st_size
    with reading(path, "an uncompressed tar archive"), tarfile.open(path, "r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise UserError(
                    f"{path}: expected members inside the archive, got '{member.name}', which points outside. It is no "
                    "archive of this dataset: download it again from its authors."
                )
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise UserError(
                    f"{path}: expected plain files as members, got '{member.name}', which is a link or a device. "
                    "Pack the files themselves."
                )
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"unexpected end of data in {member.name}")
            yield Piece(path, member.offset_data, member.size, member.name)
        # tarfile takes an archive that was cut between two members, or in a header, for a whole one
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of archive")


def read_pieces(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The bytes of each piece, in order; a file stays open while pieces of it follow each other."""
    file: IO[bytes] | None = None
    try:
        for piece in pieces:
            if file is None or Path(file.name) != piece.path:
                if file is not None:
                    file.close()
                with reading(piece.path, "a file that can be read"):
                    file = open(piece.path, "rb")  # noqa: SIM115 (closed below, or when the next one is opened)
            with reading(piece.path, f"a whole member {piece.name}"):
                there = os.fstat(file.fileno()).st_size - piece.offset
                if there < piece.size:  # asked before reading: a damaged header may ask for any size
                    raise EOFError(f"{there} of {piece.size} bytes")
                file.seek(piece.offset)
                data = file.read(piece.size)
            yield data
    finally:
        if file is not None:
            file.close()


class Npy(NamedTuple):
    """What the header of an npy file says. start: of its numbers, in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int


def npy_header(piece: Piece, head: bytes, kinds: str = "fiub") -> Npy:
    """Parse the header of an npy member, of which `head` are the first bytes. kinds: of dtypes that are expected.

    Raises UserError for what is none, holds Python objects, or has another size than it says.
    """
    with reading(piece.path, f"an npy array in {piece.name}"):
        stream = io.BytesIO(head)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the npy format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        start = stream.tell()
        if dtype.hasobject:
            raise UserError(
                f"{piece}: expected an npy array of numbers, got Python objects, which are never unpickled. "
                "Save it as a plain array."
            )
        if dtype.kind not in kinds:
            raise ValueError(f"an array of {dtype}")
        size = dtype.itemsize
        for length in shape:
            size *= length
        if min(shape, default=0) < 0 or piece.size != start + size:
            raise ValueError(f"{piece.size - start} bytes for {dtype} {list(shape)}")
        return Npy(dtype, tuple(shape), fortran, start)


def parse_npy(piece: Piece, data: bytes, kinds: str = "fiub") -> Shaped[np.ndarray, "..."]:
    """The array of an npy member whose bytes are `data`. Raises as `npy_header` does."""
    header = npy_header(piece, data, kinds)
    flat = np.frombuffer(data, header.dtype, offset=header.start)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def npy_of(piece: Piece) -> Npy:
    """What the header of an npy member says; its numbers are not read."""
    head = piece._replace(size=min(piece.size, _LONGEST_HEADER))
    return npy_header(piece, next(read_pieces([head])))


def read_npy_rows(wanted: Iterable[tuple[Piece, int]], num_columns: int) -> Iterator[Shaped[np.ndarray, "v"]]:
    """One row of each npy member [rows, columns]; of C-ordered members no other row is read.

    Raises UserError for a member of another shape, or a row that it has not.
    """
    wanted = list(wanted)
    heads = read_pieces([piece._replace(size=min(piece.size, _LONGEST_HEADER)) for piece, _ in wanted])
    headers = [npy_header(piece, head) for (piece, _), head in zip(wanted, heads, strict=True)]
    parts: list[Piece] = []
    for (piece, row), header in zip(wanted, headers, strict=True):
        if len(header.shape) != 2 or header.shape[1] != num_columns or not 0 <= row < header.shape[0]:
            raise UserError(
                f"{piece}: expected [{row + 1} or more repeats, {num_columns} voxels], as the subject's first sample "
                f"has, got {list(header.shape)}. Do the files of two subjects lie in one place? Copy them again."
            )
        if header.fortran:
            parts.append(piece)
        else:
            length = header.dtype.itemsize * num_columns
            parts.append(Piece(piece.path, piece.offset + header.start + row * length, length, piece.name))
    for (piece, row), header, data in zip(wanted, headers, read_pieces(parts), strict=True):
        yield parse_npy(piece, data)[row] if header.fortran else np.frombuffer(data, header.dtype)


def whole(piece: Piece, values: Shaped[np.ndarray, "..."], what: str) -> Int[np.ndarray, "n"]:
    """Values that count or name something, as integers, flat. Raises UserError for a fraction, NaN or infinity."""
    flat = values.reshape(-1)
    numbers = flat.astype(np.float64)
    if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any() or (np.abs(numbers) > 2**53).any():
        raise UserError(
            f"{piece}: expected whole numbers as {what}, got {flat[:5].tolist()}. The file is damaged or of another "
            "kind: copy it again."
        )
    return numbers.astype(np.int64)
