"""Pictures that are named as their stimuli are: by a path inside a folder or archive, a name, or a name without suffix.

Enters: the folder or archive, and the stimuli of a study. Leaves: its Pictures; several stimuli may be one picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from jaxtyping import UInt8
from numpy import ndarray

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES, picture_names, read_pictures
from brainjanus.data.study import Found, Pictures


def pictures_by_name(source: Path, ids: Sequence[str], remedy: str, found: list[Found], notices: list[str]) -> Pictures:
    """The pictures of those stimuli that have one. remedy: what else to do where names do not meet.

    Fills `found` and `notices`. Raises UserError if a name fits several pictures, or none fits any.
    """
    names = picture_names(str(source))
    called: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        for alias in {name, path.name, path.stem, path.with_suffix("").as_posix()}:
            called.setdefault(alias, set()).add(name)
    shown: dict[str, list[str]] = {}
    without: list[str] = []
    for stimulus in ids:
        fitting = _called(stimulus, set(names), called)
        if len(fitting) > 1:
            raise UserError(
                f"{source}: expected one picture for stimulus '{stimulus}', got {listed(sorted(fitting), 3)}. "
                "Name the stimulus by its path inside the folder."
            )
        if fitting:
            shown.setdefault(next(iter(fitting)), []).append(stimulus)
        else:
            without.append(stimulus)
    if not shown:
        raise UserError(
            f"{source}: expected pictures named as the stimuli are ({listed(ids, 3)}), got {listed(names, 3)}. Rename "
            f"them, {remedy}."
        )
    if without:
        notices.append(f"{len(without)} of {len(ids)} stimuli have no picture ({listed(without, 3)}).")
    files = tuple(source / name for name in sorted(shown)) if source.is_dir() else (source,)
    found.append(Found("pictures", files, tuple(without), required=False))
    num_bytes = sum(file.stat().st_size for file in files) // len(shown)
    having = sorted(stimulus for stimuli in shown.values() for stimulus in stimuli)
    return Pictures(having, partial(_read, str(source), shown), num_bytes)


def _called(stimulus: str, names: set[str], called: Mapping[str, set[str]]) -> set[str]:
    path = stimulus.removeprefix("./").removeprefix("stimuli/")
    if path in names:
        return {path}
    bare = PurePosixPath(path)
    stem = bare.with_suffix("").as_posix() if bare.suffix.lower() in PICTURE_SUFFIXES else path
    for alias in (path, stem, PurePosixPath(stem).name):
        if alias in called:
            return called[alias]
    return set()


def _read(
    source: str, shown: Mapping[str, Sequence[str]], ids: Sequence[str], size: int
) -> Iterator[tuple[str, UInt8[ndarray, "h w 3"]]]:
    wanted = set(ids)
    stimuli_of = {name: [s for s in stimuli if s in wanted] for name, stimuli in shown.items()}
    for name, pixels in read_pictures(source, [name for name, stimuli in stimuli_of.items() if stimuli], size):
        for stimulus in stimuli_of[name]:
            yield stimulus, pixels
