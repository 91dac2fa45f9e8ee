"""The two things every stage owes its user: one clear sentence, and no half-written file.

`UserError` is what a person can mend: a wrong file, shape, name, or a full disk. The command line prints its
sentence and exits with status 2; from Python it is a ValueError. Everything else that is raised is our own
mistake and keeps its traceback.
"""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class UserError(ValueError):
    """A mistake that the user can mend; the message names the thing, expected, received, cause and remedy."""

    def __str__(self) -> str:
        """One line, whatever the names have in them that it quotes."""
        return " ".join(super().__str__().splitlines())


class Preempted(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back. What was made is saved; the message says where it stands."""


@contextmanager
def written_beside(target: Path | str) -> Iterator[Path]:
    """Yield a path beside `target` to write to (a file or a folder); rename it to `target` only if all went well.

    Whatever happens inside (an error, Ctrl-C, a full disk), `target` is either what it was before or complete.
    An existing file is replaced. An existing folder is replaced as a whole.
    Raises UserError when the disk is full or the place cannot be written to.
    """
    target = Path(target)
    beside: Path | None = None
    try:
        with reported(target):
            make_parent(target)
            beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
            written = beside / target.name
            yield written
            if target.is_dir():
                os.replace(target, beside / f"{target.name}.replaced")
            os.replace(written, target)
    finally:
        if beside is not None:
            replaced = beside / f"{target.name}.replaced"
            if replaced.exists() and not target.exists():  # stopped between the two renames
                os.replace(replaced, target)
            shutil.rmtree(beside, ignore_errors=True)


def make_parent(target: Path) -> None:
    """Make the folder that `target` will stand in. Raises UserError where the system has no such place, as in /proc."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{target}: expected a place that can be written to, got '{error.strerror}'. Choose another --out."
        ) from error


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn a full disk, or a place that cannot be written to, into a sentence about `target`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = errno_of(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{target}: expected room to write it, got a full disk ({os.strerror(number)}). Nothing was left "
                "half-written. Free some space or choose another --out, then run the same command again."
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise UserError(
                f"{target}: expected a place that can be written to, got '{os.strerror(number)}'. "
                "Choose another --out or change its permissions."
            ) from error
        raise


def errno_of(error: OSError | SafetensorError) -> int:
    """The system's number of an error; safetensors has errors of its own, which only name it. 0 is unknown."""
    if isinstance(error, OSError):
        short = error.errno is None and re.search(r"\d requested and \d+ written", str(error))  # numpy's
        return errno.ENOSPC if short else error.errno or 0
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def short_of(error: BaseException) -> str | None:
    """Whose memory did not suffice, of this machine or of a graphics card; None: it is another error."""
    text, torch = str(error), sys.modules.get("torch")
    on_card = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if on_card or any(words in text for words in ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")):
        return "a graphics card"
    return "this machine" if isinstance(error, MemoryError) or "can't allocate memory" in text else None


def first_line(error: BaseException) -> str:
    """What an error says first; its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
