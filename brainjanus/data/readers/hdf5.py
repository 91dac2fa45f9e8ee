"""One dataset of an HDF5 file, as a handle that reads what is sliced.

Enters: a file and the name of the dataset. Leaves: the dataset while the file is open, if its numbers lie in that file:
links to other files, external storage and virtual datasets are refused, since they make a reader open any path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, reading


@contextmanager
def open_dataset(path: Path, key: str) -> Iterator[Any]:
    """Yield the dataset `key`, of numbers. Raises UserError if it is not there, damaged, or lies in another file."""
    import h5py

    check_not_empty(path)
    with reading(path, f"an HDF5 file with '{key}'"):
        try:
            with h5py.File(path, "r") as file:
                yield _found(path, file, key)
        except RuntimeError as error:  # what h5py raises for some damages
            raise OSError(str(error)) from error


def _found(path: Path, file: Any, key: str) -> Any:
    import h5py

    group, names = file, key.strip("/").split("/")
    for name in names:
        if not isinstance(group, h5py.Group) or group.get(name, getlink=True) is None:
            raise UserError(
                f"{path}: expected the dataset '{key}', got {listed(sorted(file.keys()))}. "
                "Is it another file than its name says, or was it not written to its end?"
            )
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UserError(
                f"{path}: expected the dataset '{key}' in the file itself, got a link. "
                "Copy what it points to into one file."
            )
        group = group[name]
    if not isinstance(group, h5py.Dataset) or group.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected numbers in '{key}', got something else. Is it another file?")
    if group.is_virtual or group.external:
        raise UserError(
            f"{path}: expected the numbers of '{key}' in the file itself, got a dataset that refers to other files. "
            "Copy it into one file."
        )
    return group
