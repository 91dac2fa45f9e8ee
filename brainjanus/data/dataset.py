"""The Dataset on disk: responses, and what was shown, keyed by stimulus id and never by position.

Enters: a folder that `write_dataset` wrote. Leaves: trials, responses, pictures, captions, features, spaces.

    DIR/dataset.json                        the manifest: format, version, names, provenance, checksums, fingerprint
        stimuli.tsv                         stimulus_id, num_pictures, num_captions; the row order of what follows
        images.safetensors                  pixels uint8 [pictures, H, W, 3]; stimulus int64 [pictures], the row
        captions.json                       {stimulus_id: [caption, ...]}, of the first source of captions
        captions/SOURCE.json                the same of each further source
        features/NAME.safetensors           features float16 or float32 [stimuli, tokens, channels]
        subjects/S/responses.safetensors    responses float32 or float16 [trials, sites], z-scored with training trials
        subjects/S/zscore.safetensors       mean, std [groups, sites] and session [groups] (-1: all sessions)
        subjects/S/trials.tsv               stimulus_id session run repeat split [fold]; one row per response
        subjects/S/space.json, space.safetensors
        README.md                           the card, of which the manifest knows nothing: it may be written to

A stimulus may have several pictures (a response to a block or to a category) and several captions. Arrays are mapped,
not loaded: what is not asked for is not read.
"""

import csv
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from safetensors import SafetensorError, safe_open

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units

FORMAT = "brainjanus-dataset"
VERSION = 1
SPLITS = ("train", "val", "test")
FIRST_SOURCE = "captions"  # of captions.json, where nobody named it
_MANIFEST = {
    "name": str,
    "modality": str,
    "subjects": list,
    "image_size": int | None,
    "files": dict,
    "fingerprint": str,
}
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64}


class Trials(NamedTuple):
    """One row per response: what was shown, when, for the how many-eth time, and the split it belongs to."""

    stimulus_id: list[str]
    session: Int[np.ndarray, "t"]
    run: Int[np.ndarray, "t"]
    repeat: Int[np.ndarray, "t"]
    split: list[str]
    fold: Int[np.ndarray, "t"] | None = None

    def rows(self, split: str) -> Int[np.ndarray, "n"]:
        """The rows of one split, in order."""
        return np.flatnonzero(np.array(self.split) == split)

    def stimuli(self, split: str) -> tuple[str, ...]:
        """The stimuli of one split, sorted, each once."""
        return tuple(sorted({self.stimulus_id[row] for row in self.rows(split)}))

    def save(self, path: Path) -> None:
        columns = {name: column for name, column in self._asdict().items() if column is not None}
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(columns)
            table.writerows(zip(*columns.values(), strict=True))

    @classmethod
    def load(cls, path: Path) -> "Trials":
        with as_written(path):
            return cls._load(path)

    @classmethod
    def _load(cls, path: Path) -> "Trials":
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))

        def whole(name: str) -> np.ndarray:
            return np.array([row[name] for row in rows], dtype=np.int64)

        fold = whole("fold") if "fold" in rows[0] else None
        ids, split = [row["stimulus_id"] for row in rows], [row["split"] for row in rows]
        return cls(ids, whole("session"), whole("run"), whole("repeat"), split, fold)


class Averages(NamedTuple):
    """The mean response to each stimulus, sorted by stimulus id."""

    stimulus_ids: list[str]
    responses: Float[np.ndarray, "n v"]
    num_repeats: Int[np.ndarray, "n"]


class ZScore(NamedTuple):
    """What was subtracted and divided by: `raw = response * std + mean`. Session -1 stands for all sessions."""

    session: Int[np.ndarray, "g"]
    mean: Float[np.ndarray, "g v"]
    std: Float[np.ndarray, "g v"]


# P pictures, H height = W width
@dataclass(frozen=True, eq=False)
class Stimuli:
    """What was shown, before it is written.

    ids: unique names. pixels: uint8 RGB [p, h, w, 3], or None. picture_of: for each picture the position of its
    stimulus in `ids`; None when there is one picture for each id, in order. captions: id -> captions.
    features: name -> [num ids, tokens, channels], rows in the order of `ids`. caption_source: the name of where
    `captions` come from. further_captions: source -> id -> captions, beside them.
    """

    ids: Sequence[str]
    pixels: UInt8[np.ndarray, "p h w 3"] | None = None
    picture_of: Int[np.ndarray, "p"] | None = None
    captions: Mapping[str, Sequence[str]] | None = None
    features: Mapping[str, Shaped[np.ndarray, "n _ _"]] = field(default_factory=dict)
    caption_source: str = FIRST_SOURCE
    further_captions: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject's recording, before it is written: raw betas (any unit), one row per row of `trials`."""

    space: BrainSpace
    responses: Shaped[np.ndarray, "t v"]
    trials: Trials


class Dataset:
    """A dataset on disk, opened. Unknown subjects, stimuli and features are refused with the names that exist."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.modality: str = manifest["modality"]
        self.fingerprint: str = manifest["fingerprint"]
        self.subjects: tuple[str, ...] = tuple(manifest["subjects"])
        self.image_size: int | None = manifest["image_size"]
        features = (Path(file) for file in manifest["files"] if file.startswith("features/"))
        self.feature_names: tuple[str, ...] = tuple(sorted(file.stem for file in features))
        unnamed = [FIRST_SOURCE] if "captions.json" in manifest["files"] else []
        self.caption_sources: tuple[str, ...] = tuple(manifest.get("caption_sources", unnamed))

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Open the dataset in the folder `path`, without loading it.

        Raises UserError if it is not a dataset, was written by a newer version, or misses a file or a part of one.
        Only `verify` finds changed bytes in a file of the right size.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: expected a dataset folder with a readable dataset.json, got '{error}'. "
                "Is the path right? `brainjanus prepare` makes such a folder."
            ) from error
        found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
        if found[0] != FORMAT or not isinstance(found[1], int):
            raise UserError(
                f"{path}/dataset.json: expected format '{FORMAT}', got {found[0]!r}. "
                "It was written by another program: give the folder that `brainjanus prepare` wrote."
            )
        if found[1] > VERSION:
            raise UserError(
                f"{path}: expected dataset version {VERSION} or older, got {found[1]}. "
                "It was written by a newer brainjanus: update brainjanus, or prepare the data again with this one."
            )
        missing = _MANIFEST.keys() - manifest.keys()
        if missing:
            raise UserError(
                f"{path}/dataset.json: expected the keys {', '.join(sorted(missing))}, got a manifest without them. "
                "It was edited or cut short: copy it again or run `brainjanus prepare` again."
            )
        with as_written(path / "dataset.json"):
            wrong = [key for key, kind in _MANIFEST.items() if not isinstance(manifest[key], kind)]
            if wrong or not all(isinstance(name, str) for name in manifest["subjects"]):
                raise ValueError(f"{wrong[0] if wrong else 'subjects'} of another kind")
            for name, facts in manifest["files"].items():
                _check_file(path / name, facts["bytes"])
            return cls(path, manifest)

    def verify(self) -> None:
        """Read every file and compare its checksum. Raises UserError naming the first file that was changed."""
        for name, facts in self.manifest["files"].items():
            found = checksum(self.path / name)
            if found != facts["sha256"]:
                raise UserError(
                    f"{self.path / name}: expected SHA-256 {facts['sha256'][:12]}..., got {found[:12]}.... The file "
                    "was changed after it was written: copy the dataset again or run `brainjanus prepare` again."
                )

    @cached_property
    def stimulus_ids(self) -> tuple[str, ...]:
        file = self.path / "stimuli.tsv"
        with as_written(file), open(file, newline="", encoding="utf-8") as table:
            return tuple(row["stimulus_id"] for row in csv.DictReader(table, delimiter="\t"))

    def space(self, subject: str) -> BrainSpace:
        return BrainSpace.load(self._folder(subject))

    def trials(self, subject: str) -> Trials:
        """Which stimulus each row of the responses belongs to. Read once."""
        if subject not in self._trials:
            self._trials[subject] = Trials.load(self._folder(subject) / "trials.tsv")
        return self._trials[subject]

    @cached_property
    def _trials(self) -> dict[str, Trials]:
        return {}

    def zscore(self, subject: str) -> ZScore:
        """The statistics that were used to z-score one subject."""
        file = self._folder(subject) / "zscore.safetensors"
        return ZScore(*(np.array(map_tensor(file, name)) for name in ZScore._fields))

    def units(self, subject: str) -> Units:
        """The way from one subject's raw betas, as `prepare` read them, to z-scored responses."""
        statistics, scale = self.zscore(subject), self._scale(subject)
        mean, std = (x.mean(axis=0, dtype=np.float64) * scale for x in (statistics.mean, statistics.std))
        with as_written(self.path / "dataset.json"):
            return Units(mean, std, self.manifest.get("provenance", {}).get("dropped_sites", {}).get(subject, 0))

    def _scale(self, subject: str) -> float:
        """What `prepare` divided a subject's responses by; 1 for a dataset that it did not make."""
        config = self.manifest.get("provenance", {}).get("config")
        if not isinstance(config, dict):
            return 1.0
        files = [who for who in (*(config.get("subjects") or ()), config) if isinstance(who, dict)]
        return next((float(who["scale"]) for who in files if who.get("subject") == subject and "scale" in who), 1.0)

    def responses(self, subject: str, rows: Int[np.ndarray, "n"] | None = None) -> Float[np.ndarray, "n v"]:
        """The z-scored responses of the trials `rows` (default: of all trials), float32; only these are read."""
        mapped = map_tensor(self.responses_file(subject), "responses")
        with as_written(self.responses_file(subject)):
            if mapped.ndim != 2 or len(mapped) != len(self.trials(subject).stimulus_id):
                raise ValueError(f"{list(mapped.shape)} for {len(self.trials(subject).stimulus_id)} trials")
        return np.array(mapped if rows is None else mapped[rows], dtype=np.float32)

    def responses_file(self, subject: str) -> Path:
        """Where `responses` [trials, sites] lie, as they are stored."""
        return self._folder(subject) / "responses.safetensors"

    @property
    def pictures_file(self) -> Path:
        """Where `pixels` [pictures, H, W, 3] lie; `picture_rows` says which are those of a stimulus."""
        return self.path / "images.safetensors"

    def averages(self, subject: str, split: str, among: Collection[str] | None = None) -> Averages:
        """The mean over the repeats of each stimulus of a split, sorted by stimulus id.

        among: of these stimuli alone; nothing else is read.
        """
        trials = self.trials(subject)
        rows = trials.rows(split)
        if among is not None:
            rows = rows[np.isin(np.array(trials.stimulus_id, dtype=str)[rows], list(among))]
        names, where = np.unique(np.array(trials.stimulus_id, dtype=str)[rows], return_inverse=True)
        responses = self.responses(subject, rows)
        num_repeats = np.bincount(where, minlength=len(names))
        order = np.argsort(where, kind="stable")
        starts = np.cumsum(num_repeats) - num_repeats
        total = np.add.reduceat(responses[order], starts, axis=0, dtype=np.float64) if len(rows) else responses
        mean = (total / num_repeats[:, None]).astype(np.float32)
        return Averages([str(name) for name in names], mean, num_repeats)

    def split_ids(self, split: str) -> tuple[str, ...]:
        """The stimuli of a split that any subject saw, sorted."""
        seen: set[str] = set()
        for subject in self.subjects:
            trials = self.trials(subject)
            seen.update(trials.stimulus_id[row] for row in trials.rows(split))
        return tuple(sorted(seen))

    def images(self, ids: Sequence[str]) -> UInt8[np.ndarray, "n h w 3"]:
        """The first picture of each stimulus, RGB. Raises UserError for a stimulus without one."""
        first = np.array([self.picture_rows(name)[0] for name in ids], dtype=np.int64)
        with as_written(self.pictures_file):
            return np.asarray(map_tensor(self.pictures_file, "pixels")[first])

    def pictures(self, stimulus_id: str) -> UInt8[np.ndarray, "m h w 3"]:
        """All pictures of one stimulus, RGB. Raises UserError if it has none."""
        rows = self.picture_rows(stimulus_id)
        with as_written(self.pictures_file):
            return np.asarray(map_tensor(self.pictures_file, "pixels")[rows])

    def captions(self, stimulus_id: str, source: str | None = None) -> tuple[str, ...]:
        """The captions of one stimulus; empty if it has none. source: one of `caption_sources`; the first, if None.

        Raises UserError for a source that the dataset does not have.
        """
        self._row(stimulus_id)
        if source is not None and source not in self.caption_sources:
            raise UserError(
                f"{self.path}: expected one of its sources of captions ({listed(self.caption_sources)}), got "
                f"'{source}'. Give one of these names, or prepare the dataset again with this source."
            )
        if source is None or source == self.caption_sources[0]:
            return tuple(self._captions.get(stimulus_id, ()))
        if source not in self._further:
            self._further[source] = _read_captions(self.path / f"captions/{source}.json")
        return tuple(self._further[source].get(stimulus_id, ()))

    def features(self, name: str, ids: Sequence[str]) -> Float[np.ndarray, "n t c"]:
        """The features `name` of the stimuli, float32."""
        with as_written(self.features_file(name)):
            return map_tensor(self.features_file(name), "features")[self.rows_of(ids)].astype(np.float32)

    def features_file(self, name: str) -> Path:
        """Where `features` [stimuli, tokens, channels] lie, as they are stored; `rows_of` says which are whose."""
        if name not in self.feature_names:
            raise UserError(
                f"{self.path}: expected features that it has ({listed(self.feature_names)}), got '{name}'. "
                "Prepare the dataset again with `features`, or give another name."
            )
        return self.path / f"features/{name}.safetensors"

    def rows_of(self, ids: Sequence[str]) -> Int[np.ndarray, "n"]:
        """Where these stimuli are among `stimulus_ids`."""
        return np.array([self._row(stimulus) for stimulus in ids], dtype=np.int64)

    def _folder(self, subject: str) -> Path:
        if subject not in self.subjects:
            raise UserError(
                f"{self.path}: expected one of its subjects ({listed(self.subjects)}), got '{subject}'. "
                "Give one of these names."
            )
        return self.path / "subjects" / subject

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.stimulus_ids)}

    def _row(self, stimulus_id: str) -> int:
        if stimulus_id not in self._rows:
            raise UserError(
                f"{self.path}: expected one of its {len(self._rows)} stimuli ({listed(self.stimulus_ids)}), got "
                f"'{stimulus_id}'. Does it come from another dataset? `stimuli.tsv` lists the names."
            )
        return self._rows[stimulus_id]

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        return _read_captions(self.path / "captions.json") if "captions.json" in self.manifest["files"] else {}

    @cached_property
    def _further(self) -> dict[str, dict[str, list[str]]]:
        return {}

    @cached_property
    def _pictures(self) -> dict[int, list[int]]:
        pictures: dict[int, list[int]] = {}
        if self.image_size is not None:
            for picture, stimulus in enumerate(map_tensor(self.pictures_file, "stimulus").tolist()):
                pictures.setdefault(stimulus, []).append(picture)
        return pictures

    def picture_rows(self, stimulus_id: str) -> list[int]:
        """Which rows of the pictures' file show this stimulus. Raises UserError if none does."""
        rows = self._pictures.get(self._row(stimulus_id))
        if rows is None:
            raise UserError(
                f"{self.path}: expected a picture of stimulus '{stimulus_id}', got none: "
                f"{len(self._pictures)} of its {len(self._rows)} stimuli have one. Prepare it again with `pictures`."
            )
        return rows


class TensorPlace(NamedTuple):
    """Where a tensor lies in a safetensors file. dtype: as the format calls it. offset: of its first byte."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Turn what is raised where a file of a dataset is not as it was written into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
            csv.Error) as error:  # fmt: skip
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: expected the file as it was written, got one whose contents make no sense ('{said}'). "
            "It was edited, or is damaged: copy the dataset again or run `brainjanus prepare` again."
        ) from error


def _read_captions(path: Path) -> dict[str, list[str]]:
    with as_written(path):
        captions = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(text, str) for texts in captions.values() for text in texts):
            raise ValueError("captions that are no text")
        return captions


def tensor_place(path: Path, name: str) -> TensorPlace:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    return TensorPlace(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])


def map_tensor(path: Path, name: str) -> np.ndarray:
    """A read-only view of one tensor of a safetensors file; bytes are read where it is indexed."""
    with as_written(path):
        dtype, shape, offset = tensor_place(path, name)
        return np.memmap(path, _DTYPES[dtype], "r", offset, shape)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: expected this file, as dataset.json lists it, got '{error.strerror}'. "
            "The dataset is incomplete: copy it again or run `brainjanus prepare` again."
        ) from error
    problem = f"{found} bytes" if found != num_bytes else None
    if problem is None and path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            problem = f"a header that cannot be read ({error})"
    if problem is not None:
        raise UserError(
            f"{path}: expected the {num_bytes} bytes that dataset.json lists, got {problem}. "
            "The file is truncated or damaged: copy the dataset again or run `brainjanus prepare` again."
        )


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a sentence: the first few of them."""
    names = list(names)
    return (", ".join(names[:most]) + (", ..." if len(names) > most else "")) or "none"
