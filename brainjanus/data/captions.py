"""Captions from elsewhere: COCO's annotations, and any number of further sources, joined to stimuli by id.

Enters: captions_{train,val}2017.json as COCO publishes them; NAME=FILE.json of a model's or a lab's own captions, keyed
by stimulus id, by the number a dataset gives its images, or by COCO's. Leaves: {stimulus: [caption, ...]} of each
source, and a sentence about how many stimuli it covers. Keys of one file are all understood in one way: the one that
fits most of them; where two ways fit alike, the file is refused.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from brainjanus.core.config import shown
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import reading
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES
from brainjanus.data.readers.tables import once, parse_json

Captions = dict[str, list[str]]
COCO_PREFIX = r"COCO_(?:train|val|test)\d{4}_|coco[-_:]?"
LEAST_POSITIONS = 20  # numbers without a gap, from the first on, that are taken for positions
_RECORD_KEYS = ("stimulus_id", "stimulus", "nsdId", "nsd_id", "cocoId", "coco_id", "image_id", "id")


class Numbers(NamedTuple):
    """One way in which images are numbered.

    of: number -> the stimuli that are that image. known: all numbers that there are, also of images that nobody in this
    study saw; a range, where they are counted. prefix: what may stand before a number (a regular expression).
    """

    what: str  # "73k id, from 0", "cocoId"
    of: Mapping[int, Sequence[str]]
    known: Collection[int]
    prefix: str = ""


class Sources(NamedTuple):
    """Captions by source, by stimulus, and what is to be said about them."""

    captions: dict[str, Captions]
    notices: list[str]


def coco_captions(files: Sequence[Path], stimuli_of: Mapping[int, Sequence[str]]) -> Captions:
    """The captions of COCO's annotation files, in the order in which they stand there, by stimulus.

    stimuli_of: cocoId -> the stimuli that show this image. White space is made single.
    Raises UserError for a file that is damaged or has no annotations with captions.
    """
    captions: Captions = {}
    for path in files:
        num_found = 0

        def keep(record: dict[str, Any]) -> dict[str, Any] | None:
            """Of the file's 600,000 annotations only the wanted ones are kept in memory."""
            nonlocal num_found
            if "caption" not in record or "image_id" not in record:
                return record if "annotations" in record else None
            num_found += 1
            return record if record["image_id"] in stimuli_of else None

        with reading(path, "COCO's captions as JSON"):
            content = parse_json(path, object_hook=keep)
            records = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(records, list) or not num_found:
            raise UserError(
                f"{path}: expected COCO's annotations with 'image_id' and 'caption', got none. "
                "Is it instances_ or person_keypoints_ instead of captions_?"
            )
        for record in records:
            if record is None:
                continue
            text = _clean(path, record["image_id"], record["caption"])
            for stimulus in stimuli_of[record["image_id"]]:
                captions.setdefault(stimulus, []).append(text)
    return captions


def caption_sources(
    entries: Sequence[str], stimuli: Collection[str], numbers: Sequence[Numbers] = (), taken: Collection[str] = ()
) -> Sources:
    """Read NAME=FILE.json for each entry, and find the stimuli that its keys name.

    A file is {key: caption or [captions]}, or a list of records with a key and a caption, as captioning tools write it.
    stimuli: those of the study. numbers: ways in which keys may count images. taken: names of sources that exist.
    Raises UserError for an entry of another form, a damaged file, and keys that fit nothing or two ways.
    """
    captions: dict[str, Captions] = {}
    notices = []
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not equals or not re.fullmatch(r"\w[\w-]*", name) or not file:
            raise UserError(
                f"--captions {entry}: expected NAME=FILE.json, got no name of letters, digits, '-' and '_' before the "
                "'='. The name is how the source is called later: write vlm=recaptions.json."
            )
        if name in captions or name in taken:
            raise UserError(
                f"--captions {entry}: expected a name that no other source has, got '{name}' again "
                f"({listed(sorted({*captions, *taken}))} are there). Give this one another name."
            )
        path = Path(file)
        texts = _read(path)
        way, found = _joined(path, texts, stimuli, numbers)
        captions[name] = found
        others = len(texts) - sum(1 for key in texts if way.stimuli(key))
        notices.append(
            f"Captions '{name}' ({path.name}, read by {way.what}) cover {len(found)} of {len(stimuli)} stimuli"
            + (f"; {others} keys are of images that are not in this study." if others else ".")
        )
    return Sources(captions, notices)


class _Way(NamedTuple):
    """One understanding of keys: by name, or by one of the numberings."""

    what: str
    names: Mapping[str, str]
    numbers: Numbers | None

    def stimuli(self, key: str) -> Sequence[str]:
        if self.numbers is None:
            name = self.names.get(key) or self.names.get(_stem(key))
            return (name,) if name else ()
        number = _number(key, self.numbers.prefix)
        return () if number is None else self.numbers.of.get(number, ())

    def fits(self, key: str) -> bool:
        if self.numbers is None or self.stimuli(key):
            return bool(self.stimuli(key))
        return _number(key, self.numbers.prefix) in self.numbers.known


def _joined(
    path: Path, texts: Mapping[str, list[str]], stimuli: Collection[str], numbers: Sequence[Numbers]
) -> tuple[_Way, Captions]:
    """How keys are to be understood, and the captions by stimulus."""
    names = {name: name for name in stimuli}
    for name in stimuli:
        names.setdefault(_stem(name), name)
    ways = [_Way("stimulus id", names, None), *(_Way(number.what, {}, number) for number in numbers)]
    fitting = [sum(way.fits(key) for key in texts) for way in ways]
    if not max(fitting) or not any(way.stimuli(key) for way in ways for key in texts):
        raise UserError(
            f"{path}: expected keys that name stimuli ({listed(sorted(stimuli), 3)}"
            + "".join(f", or a {number.what} ({listed(map(str, sorted(number.of)), 2)})" for number in numbers)
            + f"), got {listed(texts, 3)}, of which none is in this study. "
            "Is the file of another dataset, or are keys positions in a list? Key captions by id."
        )
    best = [way for way, num in zip(ways, fitting, strict=True) if num == max(fitting)]
    found = [_captions_of(path, way, texts) for way in best]
    if any(other != found[0] for other in found[1:]):
        raise UserError(
            f"{path}: expected keys of one meaning, got numbers ({listed(texts, 3)}) that fit as well as "
            f"{' and as '.join(way.what for way in best)}. Write stimulus ids ({listed(sorted(stimuli), 2)}) instead."
        )
    counted = best[0].numbers
    if counted is not None and isinstance(counted.known, range):
        used = {_number(key, counted.prefix) for key in texts}
        if counted.known.stop in used and counted.known.start not in used:
            raise UserError(
                f"{path}: expected a {counted.what}, up to {counted.known.stop - 1}, got {counted.known.stop} and no "
                f"{counted.known.start}. The file counts from {counted.known.start + 1}: subtract 1 from each key."
            )
        _check_counting(path, best[0], texts)
    return best[0], found[0]


def _check_counting(path: Path, way: _Way, texts: Mapping[str, list[str]]) -> None:
    """Raises UserError for numbers that count from 1, or that are positions in a list, as far as it can be told."""
    numbers = way.numbers
    assert numbers is not None
    used = {number for key in texts if (number := _number(key, numbers.prefix)) is not None}
    own, moved = (len(used & {number + by for number in numbers.of}) for by in (0, 1))
    if moved - own > 3 * math.sqrt(moved + own):
        raise UserError(
            f"{path}: expected a {numbers.what}, got numbers of which {own} are of its stimuli, and {moved} if "
            "they count from 1. Subtract 1 from each key."
        )
    positions = range(min(used, default=0), min(used, default=0) + len(used))
    if (
        positions.start in (0, 1)
        and LEAST_POSITIONS <= len(used) < len(numbers.known) - 1
        and used == set(positions)
        and 2 * own < len(used)
    ):
        example = listed(sorted(name for names in numbers.of.values() for name in names), 2)
        raise UserError(
            f"{path}: expected a {numbers.what}, got all from {positions.start} to {positions.stop - 1}, of which "
            f"{own} are of stimuli of this study: they look like positions in a list. Key captions by id ({example})."
        )


def _captions_of(path: Path, way: _Way, texts: Mapping[str, list[str]]) -> Captions:
    captions: Captions = {}
    key_of: dict[str, str] = {}
    for key, more in texts.items():
        for stimulus in way.stimuli(key):
            if key_of.setdefault(stimulus, key) != key:
                raise UserError(
                    f"{path}: expected one key for each stimulus, got '{key_of[stimulus]}' and '{key}' for {stimulus}. "
                    "Keep one of them."
                )
            captions[stimulus] = list(more)
    return captions


def _read(path: Path) -> dict[str, list[str]]:
    """Key -> captions. Raises UserError for a file of another form."""
    with reading(path, "captions as JSON"):
        content = parse_json(path, object_pairs_hook=once)
    texts: dict[str, list[str]] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if isinstance(content, dict):
        for key, value in content.items():
            texts[key] = _texts(path, key, value)
    elif isinstance(content, list) and all(isinstance(record, dict) for record in content):
        for record in content:
            named = [key for key in _RECORD_KEYS if key in record]
            value = record.get("captions", record.get("caption"))
            if not named or value is None:
                raise UserError(
                    f"{path}: expected records with a key ({', '.join(_RECORD_KEYS)}) and a 'caption', got "
                    f'{listed(record)}. Or write {{"id": "a caption"}}.'
                )
            key = str(record[named[0]])
            texts.setdefault(key, []).extend(_texts(path, key, value))
    if not texts:
        raise UserError(
            f'{path}: expected {{"id": "a caption"}}, {{"id": ["a caption", "another"]}} or a list of records, got '
            f"{'nothing in it' if content in ({}, []) else 'a ' + type(content).__name__}. Write one of these forms."
        )
    return texts


def _texts(path: Path, key: object, value: object) -> list[str]:
    return [_clean(path, key, text) for text in (value if isinstance(value, list) else [value])]


def _clean(path: Path, key: object, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{path}: expected captions that are text, none empty, got {shown(text)} for {shown(key)}. "
            "Correct it, or leave this key out."
        )
    return " ".join(text.split())


def _stem(key: str) -> str:
    """A key without its folder and the suffix of a picture."""
    name = key.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES else name


def _number(key: str, prefix: str) -> int | None:
    """The number in "42", "000000000042.jpg", or, where `prefix` has it, "coco-42"; None in other keys."""
    found = re.fullmatch(rf"(?:{prefix})?(\d{{1,12}})", _stem(key), re.ASCII | re.IGNORECASE)
    return int(found[1]) if found else None
