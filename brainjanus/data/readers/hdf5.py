"""One dataset of an HDF5 file, as a handle that reads what is sliced.

Enters: a file and the name of the dataset. Leaves: the dataset while the file is open, if its numbers lie in that file:
links to other files, external storage and virtual datasets are refused, since they make a reader open any path.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import MOST_GROWTH, SMALL, check_growth, check_not_empty, inflated_bytes, reading


@contextmanager
def open_dataset(path: Path, key: str) -> Iterator[Any]:
    """Yield the dataset `key`, of numbers. Raises UserError if it is not there, damaged, or lies in another file."""
    import h5py

    check_not_empty(path)
    with reading(path, f"an HDF5 file with '{key}'"), h5py.File(path, "r") as file:
        yield _found(path, file, key)


def _found(path: Path, file: Any, key: str, kinds: str = "fiu") -> Any:
    import h5py

    found = file["/"].id if isinstance(file, h5py.File) else file.id  # h5py's own objects cost three times as much
    for name in key.strip("/").split("/"):
        link = _link(found, name)
        if link is None:
            raise UserError(
                f"{path}: expected the dataset '{_called(file, key)}', got {listed(sorted(file.keys()))}. "
                "Is it another file than its name says, or was it not written to its end?"
            )
        if link != h5py.h5l.TYPE_HARD:
            raise UserError(
                f"{path}: expected the dataset '{_called(file, key)}' in the file itself, got a link. "
                "Copy what it points to into one file."
            )
        found = h5py.h5o.open(found, name.encode())
    dataset = h5py.Dataset(found) if isinstance(found, h5py.h5d.DatasetID) else None
    key = _called(file, key)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in kinds:
        raise UserError(f"{path}: expected numbers in '{key}', got something else. Is it another file?")
    if dataset.is_virtual or dataset.external:
        raise UserError(
            f"{path}: expected the numbers of '{key}' in the file itself, got a dataset that refers to other files. "
            "Copy it into one file."
        )
    check_growth(path, f"'{key}'", inflated_bytes(dataset), dataset.id.get_storage_size())
    return dataset


def _link(group: Any, name: str) -> int | None:
    """Which kind of link to `name` an open group has, by its id; None: there is none, or it is no group."""
    import h5py

    if not isinstance(group, h5py.h5g.GroupID) or not group.links.exists(name.encode()):
        return None
    kind: int = group.links.get_info(name.encode()).type
    return kind


def _called(file: Any, key: str) -> str:
    """The whole name of what is in an open file, or in a group of it."""
    return f"{file.name}/{key}".strip("/")


MOST_COMPRESSED = 1_000  # more than deflate can: no program that stores measurements wrote such a file


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Yield the file, to take several datasets out of it. Raises UserError if it is missing or damaged."""
    import h5py

    check_not_empty(path)
    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        yield file


def dataset_in(path: Path, file: Any, key: str, ndim: int | Collection[int], sparse: bool = False) -> Any:
    """The dataset `key` of an open file, of numbers with `ndim` axes. Raises UserError as `open_dataset` does.

    ndim: one number, or those that are allowed.
    sparse: most of it may never have been written, since little of it is read at a time; otherwise refused.
    """
    found, key = _found(path, file, key), _called(file, key)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if found.ndim not in allowed:
        raise UserError(
            f"{path}: expected '{key}' with {' or '.join(map(str, allowed))} axes, got {found.dtype} "
            f"{list(found.shape)}. Is it a file of another layout or release?"
        )
    stored = found.id.get_storage_size()
    most = MOST_COMPRESSED if found.nbytes <= SMALL else MOST_GROWTH
    if not sparse and found.nbytes > most * max(stored, 4096):
        raise UserError(
            f"{path}: expected '{key}' to be written, got {stored} bytes for {found.dtype} {list(found.shape)}. "
            "It was not written to its end, or made to fill the memory: download it again."
        )
    return found


def flags_in(path: Path, file: Any, key: str, length: int) -> Bool[np.ndarray, "n"]:
    """The dataset `key` of an open file, of `length` booleans, or zeros and ones. Raises UserError as `open_dataset`
    does, and for any other."""
    found, key = _found(path, file, key, "biuf"), _called(file, key)
    if found.shape != (length,):
        raise UserError(
            f"{path}: expected '{key}' to say yes or no of each of {length} sites, got {list(found.shape)}. Does it "
            "belong to another subject, or to other files than those beside it? Download both of one release."
        )
    values = np.asarray(found[()])
    if not np.isin(values, (0, 1)).all():
        raise UserError(f"{path}: expected booleans in '{key}', got other numbers. Is it another file?")
    return values.astype(bool)


def group_in(path: Path, file: Any, key: str) -> Any:
    """The group `key` of an open file, to take many datasets out of it. Raises UserError if it is not there, or
    elsewhere."""
    import h5py

    group = file[key] if _link(file["/"].id, key) == h5py.h5l.TYPE_HARD else None
    if not isinstance(group, h5py.Group):
        raise UserError(
            f"{path}: expected the group '{key}' in the file itself, got {listed(sorted(file.keys()))}. "
            "Is it a file of another layout, or was it not written to its end?"
        )
    return group


def number_in(path: Path, file: Any, key: str) -> float:
    """The one number that the dataset `key` holds, whatever its shape. Raises UserError as `open_dataset` does."""
    found, key = _found(path, file, key), _called(file, key)
    if found.size != 1:
        raise UserError(
            f"{path}: expected one number in '{key}', got {found.dtype} {list(found.shape or ())}. "
            "Is it a file of another layout or release?"
        )
    return float(found[()].reshape(-1)[0])
