"""Pictures by every name that a table may call them, and the stimuli that they make up.

Enters: folders, archives and arrays of pictures; the stimulus ids of the trials. Leaves: each stimulus once, with its
pictures. Two ids that show the same pictures, pixel for pixel once resized, are one stimulus, and stimuli that share a
picture are grouped: a split by name would test on pictures that were trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.data.dataset import listed
from brainjanus.data.readers.pictures import picture_names, read_pictures
from brainjanus.data.write import digest_of


class Catalogue:
    """All pictures, by every name by which a table may call them.

    In this order: the path in its folder or archive (with or without a top folder that holds everything), the path
    without suffix, a folder (which stands for all pictures in it), the file name, its stem; after the prefix.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self.sources: list[str] = []
        self.pictures: list[tuple[int, str]] = []
        self.ids: list[str] = []
        self._named: list[dict[str, list[int]]] = [{} for _ in range(5)]
        for entry in entries:
            prefix, _, source = entry.rpartition("=")
            names = picture_names(source)
            tops = {name.split("/")[0] for name in names}
            top = tops.pop() + "/" if len(tops) == 1 and all("/" in name for name in names) else ""
            for name in names:
                inner = PurePosixPath(name.removeprefix(top))
                self._add(prefix, {PurePosixPath(name), inner}, len(self.pictures))
                self.pictures.append((len(self.sources), name))
                self.ids.append(prefix + inner.with_suffix("").as_posix())
            self.sources.append(source)

    def _add(self, prefix: str, paths: set[PurePosixPath], picture: int) -> None:
        called: list[set[str]] = [
            {path.as_posix() for path in paths},
            {path.with_suffix("").as_posix() for path in paths},
            {folder.as_posix() for path in paths for folder in path.parents if folder.name},
            {path.name for path in paths},
            {path.stem for path in paths},
        ]
        for named, names in zip(self._named, called, strict=True):
            for name in names:
                named.setdefault(prefix + name, []).append(picture)

    def find(self, name: str) -> tuple[int, ...]:
        """The pictures that `name` stands for; none if nothing is called so. Raises UserError if it is ambiguous."""
        folders = self._named[2]
        for named in self._named:
            found = named.get(name, [])
            if len(found) > 1 and named is not folders:
                raise UserError(
                    f"stimulus '{name}': expected the name of one picture, got {len(found)} of them "
                    f"({listed((self.pictures[i][1] for i in found), 3)}). Name it with its folder and suffix, or give "
                    "each archive a prefix."
                )
            if found:
                return tuple(found)
        return ()


@dataclass(frozen=True, eq=False)
class Shown:
    """The stimuli of all trials, those that show the same pictures as one."""

    ids: list[str]
    kept_as: Mapping[str, str]  # every id of the trials -> the id under which it is kept
    shows: Mapping[int, set[str]]  # picture of the catalogue -> ids that are kept
    groups: list[list[str]]  # ids that share a picture, directly or through others
    pixels: UInt8[np.ndarray, "p h w 3"] | None
    picture_of: Int[np.ndarray, "p"] | None
    notices: list[str]

    def merged(self) -> dict[str, str]:
        return {name: kept for name, kept in self.kept_as.items() if name != kept}

    def called(self, name: str, catalogue: Catalogue) -> list[str]:
        """The stimuli that a row of captions or features is about: by id, or by one of their pictures."""
        if name in self.kept_as:
            return [self.kept_as[name]]
        return sorted({kept for picture in catalogue.find(name) for kept in self.shows.get(picture, ())})


def without_pictures(names: Sequence[str]) -> Shown:
    """The stimuli that the sorted `names` stand for, when there are no pictures."""
    return Shown(list(names), {name: name for name in names}, {}, [[name] for name in names], None, None, [])


def stimuli_shown(names: Sequence[str], catalogue: Catalogue, size: int) -> Shown:
    """The stimuli that the sorted `names` stand for, with their pictures at `size` x `size`."""
    pictures = {name: catalogue.find(name) for name in names}
    slots = [(name, picture) for name in names for picture in pictures[name]]
    pixels = np.empty((len(slots), size, size, 3), np.uint8)
    rows_of: dict[int, list[int]] = {}
    for row, (_, picture) in enumerate(slots):
        rows_of.setdefault(picture, []).append(row)
    digests: dict[int, bytes] = {}
    for picture, image in _decoded(catalogue, rows_of, size):
        pixels[rows_of[picture]] = image
        digests[picture] = digest_of(image)

    first: dict[tuple[bytes, ...], str] = {}
    kept_as = {name: first.setdefault(tuple(sorted(digests[p] for p in pictures[name])), name) for name in names}
    ids = [name for name in names if kept_as[name] == name]
    keep = np.array([kept_as[name] == name for name, _ in slots])
    row_of = {name: row for row, name in enumerate(ids)}
    shows: dict[int, set[str]] = {}
    for name, picture in slots:
        shows.setdefault(picture, set()).add(kept_as[name])

    notices = []
    merged = [(name, kept) for name, kept in kept_as.items() if name != kept]
    if merged:
        notices.append(
            f"{len(merged)} stimuli show the same picture as another and were merged with it, for example "
            f"'{merged[0][0]}' with '{merged[0][1]}'."
        )
    if len(digests) < len(catalogue.pictures):
        notices.append(f"{len(catalogue.pictures) - len(digests)} pictures are in no trial and were left out.")
    return Shown(
        ids,
        kept_as,
        shows,
        _groups(ids, {name: [digests[p] for p in pictures[name]] for name in ids}),
        pixels if keep.all() else pixels[keep],
        np.array([row_of[name] for (name, _), kept in zip(slots, keep, strict=True) if kept]),
        notices,
    )


def _decoded(
    catalogue: Catalogue, wanted: Mapping[int, Any], size: int
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    done = 0
    with progress("decoding pictures", len(wanted)) as advance:
        for number, source in enumerate(catalogue.sources):
            named = {name: p for p, (where, name) in enumerate(catalogue.pictures) if where == number and p in wanted}
            for name, image in read_pictures(source, named, size):
                done += 1
                advance(done, None)
                yield named[name], image


def _groups(ids: Sequence[str], digests: Mapping[str, Sequence[bytes]]) -> list[list[str]]:
    """Stimuli that share a picture, directly or through others, together."""
    group_of: dict[str, list[str]] = {}
    owner: dict[bytes, str] = {}
    for name in ids:
        group_of[name] = [name]
        for digest in digests[name]:
            other = group_of[owner.setdefault(digest, name)]
            mine = group_of[name]
            if other is not mine:
                other.extend(mine)
                group_of.update(dict.fromkeys(mine, other))
    return list({id(group): group for group in group_of.values()}.values())
