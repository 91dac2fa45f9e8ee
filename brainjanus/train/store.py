"""Store: what was encoded once lies in files, of which a training step reads its rows and nothing else.

Enters: tensors in safetensors files, or a function that makes their rows. Leaves: `Rows`, which are indexed like a
tensor.

Rows are read into memory of their own. Were the files mapped, each page that was ever touched would count as memory of
the process, and random rows would touch all of them in the end.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import rank, wait, world
from brainjanus.core.progress import progress
from brainjanus.data.dataset import TensorPlace, tensor_place

ROWS = "rows"  # what the tensor of a part is called
PART_ROWS = 1024  # rows of a part, so many at most are made again after a stop
MOST_HELD = 100_000_000  # bytes; the codes of all 73,000 pictures of NSD are 84 MB
BATCH_ROWS = 32  # rows that are made at once, by which the bar advances
_FILE = 1 << 40  # more rows than a file has
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


class File(NamedTuple):
    """One tensor of a safetensors file. state: the file's inode, bytes and time of change as it was first opened."""

    path: Path
    state: tuple[int, int, int]
    place: TensorPlace

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to read from. Raises UserError if the file is no longer what it was."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise changed(self.path, "the file that was opened before", f"'{error.strerror}'") from error
        try:
            state = state_of(os.fstat(descriptor))
            if state != self.state:
                was, now = (
                    f"{size} bytes of time {changed_ns / 1e9:.3f}" for _, size, changed_ns in (self.state, state)
                )
                raise changed(self.path, f"the file that was opened before ({was})", f"another ({now})")
            yield descriptor
        finally:
            os.close(descriptor)


# N rows
class Rows:
    """Rows of one tensor that lies in files. `rows[which]` reads them, each once, into a tensor of their own.

    which: an integer tensor, a number or a slice, as for a tensor. Rows hold no file open, only where each row lies.
    Raises UserError if a file was changed or cut short since it was opened first.
    """

    def __init__(self, files: Sequence[File], places: Int[Tensor, "n"]):
        self.files, self.places = tuple(files), places  # file * _FILE + row in it
        (self.dtype,) = {_DTYPES[file.place.dtype] for file in self.files}
        ((*row_shape,),) = {file.place.shape[1:] for file in self.files}
        self.shape = torch.Size([len(places), *row_shape])
        self.row_bytes = self.shape[1:].numel() * self.dtype.itemsize

    @classmethod
    def of(cls, path: Path, name: str, rows: Int[Tensor, "n"] | None = None) -> "Rows":
        """The rows of the tensor `name` of a safetensors file, or those of its rows that are named, in this order."""
        place = tensor_place(path, name)
        file = File(path, state_of(path.stat()), place)
        return cls([file], torch.arange(place.shape[0]) if rows is None else rows)

    @classmethod
    def behind(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of several, one behind the other. All have rows of one shape and dtype."""
        files: list[File] = []
        places = []
        for part in parts:
            places.append(part.places + len(files) * _FILE)
            files += part.files
        return cls(files, torch.cat(places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, which: Int[Tensor, "..."] | int | slice) -> Tensor:
        places = self.places[which]
        out = torch.empty((*places.shape, *self.shape[1:]), dtype=self.dtype)
        if out.numel():
            ordered, order = places.flatten().sort(stable=True)
            first = torch.cat([torch.tensor([True]), ordered.diff() != 0])
            place, slot = ordered[first], order[first]
            self._read(place, slot, out.flatten().view(torch.uint8).numpy().data)
            again, same_as = order[~first], slot[(first.cumsum(0) - 1)[~first]]
            if len(again):
                flat = out.view(len(order), -1)
                flat[again] = flat[same_as]
        return out

    def _read(self, place: Int[Tensor, "m"], slot: Int[Tensor, "m"], into: memoryview) -> None:
        """Read rows, sorted by their place, into these slots; neighbours that stay neighbours are read at once.

        The system is told of all of them before the first is waited for, so that a disk can do them side by side.
        """
        cuts = [0, *(1 + ((place.diff() != 1) | (slot.diff() != 1)).nonzero()[:, 0]).tolist(), len(place)]
        places, slots = place.tolist(), slot.tolist()
        with ExitStack() as stack:
            descriptors: dict[int, int] = {}
            runs = []
            for start, stop in pairwise(cuts):
                number, row = divmod(places[start], _FILE)
                file = self.files[number]
                if number not in descriptors:
                    descriptors[number] = stack.enter_context(file.opened())
                offset = file.place.offset + row * self.row_bytes
                view = into[slots[start] * self.row_bytes : (slots[start] + stop - start) * self.row_bytes]
                runs.append((descriptors[number], view, offset, file.path))
                if hasattr(os, "posix_fadvise"):  # macOS has none
                    os.posix_fadvise(descriptors[number], offset, len(view), os.POSIX_FADV_WILLNEED)
            for run in runs:
                read_into(*run)


Stored = Rows | Tensor


def held(rows: Rows) -> Stored:
    """The same in memory, if it takes little; many rows stay on disk, so that memory does not grow with the dataset."""
    return rows[:] if len(rows) * rows.row_bytes <= MOST_HELD else rows


def read_into(descriptor: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` with what lies at `offset`. Raises UserError if the file ends before."""
    done = 0
    while done < len(view):
        try:
            found = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise changed(path, f"{len(view)} bytes at {offset}", f"'{error.strerror}'") from error
        if not found:
            raise changed(path, f"{len(view)} bytes at {offset}", f"{done}")
        done += found


def state_of(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def changed(path: Path, expected: str, found: str) -> UserError:
    return UserError(
        f"{path}: expected {expected}, got {found}. Was it changed, cut short or removed under the run? Of a "
        "dataset, copy it again; of a run's codes, delete the file. Then give the same command again."
    )


def in_chunks(rows: Stored, size: int) -> Iterator[Tensor]:
    """All rows, at most `size` of them in memory at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def stored(
    store: Path,
    name: str,
    key: Sequence[str],
    num_rows: int,
    make: Callable[[slice], Tensor],
    title: str,
    part_rows: int = PART_ROWS,
) -> Rows:
    """The rows that `make` returns for slices of range(num_rows), read back where they were made before.

    They lie in store/NAME-KEY/part-00000.safetensors and so on. Each part is written whole, so that what was stopped
    goes on at the part where it stopped; one that is damaged is made again. key: the fingerprints of all that the rows
    follow from. Several processes make every other part each, and each waits for all of them.
    """
    assert num_rows > 0, "there is nothing to store"
    folder = store / f"{name}-{hashlib.sha256(' '.join(key).encode()).hexdigest()[:16]}"
    parts = [slice(start, min(start + part_rows, num_rows)) for start in range(0, num_rows, part_rows)]
    paths = [folder / f"part-{number:05}.safetensors" for number in range(len(parts))]
    own = list(zip(paths, parts, strict=True))[rank() % world() :: world()]
    missing = [(path, part) for path, part in own if not is_whole(path, part.stop - part.start)]

    def made() -> int:  # of all processes
        return sum(part.stop - part.start for path, part in zip(paths, parts, strict=True) if path.exists())

    if missing:
        for path, _ in missing:
            path.unlink(missing_ok=True)
        with progress(title, num_rows, made()) as advance:
            for path, part in missing:
                before, batches = made(), []
                for start in range(part.start, part.stop, BATCH_ROWS):
                    stop = min(start + BATCH_ROWS, part.stop)
                    with torch.no_grad():
                        batches.append(make(slice(start, stop)).cpu())
                    if stop < part.stop:
                        advance(before + stop - part.start, None)
                with written_beside(path) as beside:
                    save_file({ROWS: torch.cat(batches)}, beside)
                advance(made(), None)
    wait()
    return Rows.behind([Rows.of(path, ROWS) for path in paths])


def is_whole(path: Path, num_rows: int) -> bool:
    """Whether a part is there, with all of its rows."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(ROWS).get_shape()[0] == num_rows
    except (OSError, SafetensorError):
        return False
