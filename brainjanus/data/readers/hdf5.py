"""Datasets inside an HDF5 file that is read in parts, and nothing outside of it.

Enters: a path and a key. Leaves: h5py's handle, which reads what is sliced. HDF5 can point to other files (external
links, external storage, virtual datasets), which is refused: a file from elsewhere must not choose what is read here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, reading

MOST_COMPRESSED = 1_000  # more than deflate can: such a file was not written by a program that stores measurements


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Yield an h5py.File. Raises UserError for a missing or damaged file, also where it turns out while it is read."""
    import h5py

    check_not_empty(path)
    with reading(path, "an HDF5 file"):
        try:
            with h5py.File(path, "r") as file:
                yield file
        except (RuntimeError, OverflowError, MemoryError) as error:  # what h5py makes of some damaged files
            raise ValueError(str(error)) from error


def member(path: Path, group: Any, name: str) -> Any:
    """What `name` is in a group (or file). Raises UserError if it is not there, or lies in another file."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise UserError(
            f"{path}: expected '{name}' in {group.name}, got {listed(group.keys())}. Is it a file of this layout, or of "
            "another release of it?"
        )
    if not isinstance(link, h5py.HardLink):
        raise UserError(
            f"{path}: expected '{name}' to be in this file, got a link to somewhere else. "
            "Links are not followed: copy the data into the file."
        )
    return group[name]


def dataset(path: Path, group: Any, name: str, ndim: int | None = None, sparse: bool = False) -> Any:
    """A dataset of numbers, to slice. Raises UserError for another kind of thing, or data in other files.

    sparse: most of it may never have been written, since little of it is read at a time.
    """
    import h5py

    found = member(path, group, name)
    what = f"{path}, {group.name.rstrip('/')}/{name}"
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub" or ndim not in (None, found.ndim):
        kind = f"{found.dtype} {list(found.shape or ())}" if isinstance(found, h5py.Dataset) else "a group"
        raise UserError(
            f"{what}: expected an array of numbers{f' with {ndim} axes' if ndim is not None else ''}, got {kind}. "
            "Is it a file of this layout?"
        )
    if found.is_virtual or found.external:
        raise UserError(
            f"{what}: expected its numbers in this file, got some in another one. Other files are not followed: copy the "
            "data into the file."
        )
    stored = found.id.get_storage_size()
    if not sparse and found.nbytes > MOST_COMPRESSED * max(stored, 4096):
        raise UserError(
            f"{what}: expected an array that was written, got {stored} bytes for {found.dtype} {list(found.shape)}. "
            "It was not written to its end, or made to fill the memory: download it again."
        )
    return found
