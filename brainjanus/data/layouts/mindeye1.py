"""MindEye1's shards (Scotti et al. 2023), which UMBRAE and MindBridge use too: one sample an image, with its repeats.

    PATH/webdataset_avg_split/train/train_subj01_{0..17}.tar      (or PATH itself, or webdataset_avg_new)
                              val/val_subj01_0.tar
                              test/test_subj01_{0..1}.tar
    each with KEY.nsdgeneral.npy [3, voxels] float16, KEY.jpg, KEY.coco73k.npy [1] (from 0), KEY.num_uniques.npy [1],
    KEY.trial.npy [1]

Folders of unpacked samples (train/subj01/KEY.nsdgeneral.npy, as MindBridge has them) are read too.

Repeats are trials here. An image that was seen less than three times has rows that are copies, beyond num_uniques; they
are left out, as are samples that come again. Rows are read one session at a time, each at its offset.

trial.npy has one number a sample, whose meaning was never published, and not one for each row, so that the files do
not say in which session a row was recorded. NSD's nsd_expdesign.mat does, if rows are in the order of presentation: it
is used where it lies in the folder or is given (--files expdesign=PATH), and the number of rows of every image agrees
with it. Otherwise parts of the files count as sessions, and responses are z-scored over all training trials. Where
trial.npy does have a number for each row, that number decides.

The split is that of the folders: test is NSD's shared images, and val the authors' own, which they chose models with.
It stays val, so that numbers compare with theirs; training trials, of which z-scores are made, are then fewer than
those of NSD or of MindEye2's files. Without val/ the three agree.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import SPLITS, listed
from brainjanus.data.layouts.asked import (
    chosen_subjects,
    first_sessions,
    folder_of,
    given_file,
    nsd_captions,
    refuse_unused,
    shown_in,
    space_of,
)
from brainjanus.data.layouts.nsd import EXPDESIGN, Design, read_design
from brainjanus.data.layouts.nsd_ids import (
    NUM_IMAGES,
    SUBJECTS,
    TRIALS_PER_SESSION,
    session_notice,
    stimulus_id,
    voxel_notice,
)
from brainjanus.data.readers.pictures import decode, fit
from brainjanus.data.readers.shards import (
    Piece,
    Samples,
    npy_of,
    parse_npy,
    read_npy_rows,
    read_pieces,
    shard_samples,
    whole,
)
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions
from brainjanus.data.write import How

VOXELS, IMAGE, TRIALS, UNIQUES = "nsdgeneral.npy", "coco73k.npy", "trial.npy", "num_uniques.npy"
PICTURES = ("jpg", "png")
USUAL_SHARDS = {"train": 18, "val": 1, "test": 2}


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through MindEye1's shards: of each sample its numbers are read, voxels and pictures are not.

    Raises UserError for what keeps it from being prepared.
    """
    refuse_unused("mindeye1", options, ("mask", "sessions", "files"))
    root = _root(folder_of("mindeye1", path))
    places = {split: _places(root / split, split) for split in SPLITS}
    there = {subject for split in ("train", "test") for subject in places[split]}
    chosen = chosen_subjects(root, there, options.subjects, "train/train_subj0X_0.tar and test/test_subj0X_0.tar")
    subjects: list[Recorded] = []
    found: list[Found] = []
    notices: list[str] = []
    split: dict[str, str] = {}
    pictures: dict[str, Piece] = {}
    design = _design(path, options, found)
    zscore: How = "session"
    for subject in chosen:
        shown = _shown(root, subject, places, design, split, pictures, found, notices)
        if shown.trial is None:
            zscore = "all"
            if options.sessions:
                raise UserError(
                    f"--sessions: expected to know in which session a trial of {subject} was, got shards that do not "
                    "say it. Leave it out, or give NSD's design (--files expdesign=nsd_expdesign.mat)."
                )
        recorded = _recorded(subject, shown, options, found, notices)
        subjects.append(first_sessions(recorded, options.sessions))
    names = shown_in(subjects)
    pictures = {name: piece for name, piece in pictures.items() if name in names}
    if len(pictures) < len(names):
        notices.append(f"{len(names) - len(pictures)} of {len(names)} stimuli have no picture (jpg) in the shards.")
    size = sum(piece.size for piece in pictures.values()) // max(len(pictures), 1)
    return Study(
        "mindeye1",
        "nsd-mindeye1",
        "fMRI",
        subjects,
        Pictures(sorted(pictures), partial(_read_pictures, pictures), size) if pictures else None,
        nsd_captions(path, options, names, found, notices),
        {name: part for name, part in split.items() if name in names},
        zscore=zscore,
        found=found,
        notices=notices,
    )


def _root(path: Path) -> Path:
    """The folder that holds train/ and test/: `path`, or the one below it."""
    if (path / "train").is_dir():
        return path
    below = sorted(folder for folder in path.glob("webdataset_avg_*") if (folder / "train").is_dir())
    if len(below) > 1:
        raise UserError(
            f"{path}: expected one release, got {listed(folder.name for folder in below)}. webdataset_avg_new has the "
            "sessions that NSD published last, webdataset_avg_split has not: give the path of one."
        )
    return below[0] if below else path


def _places(folder: Path, split: str) -> dict[str, dict[int, Path]]:
    """Of each subject its shards, by number; a folder of unpacked samples is shard 0."""
    places: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(rf"(?:{split}_)?(subj\d+)(?:_(\d+)\.tar)?", file.name)
        if match and file.is_dir() != bool(match[2]):
            places.setdefault(match[1], {})[int(match[2] or 0)] = file
    return places


class Sample(NamedTuple):
    """One image with its rows. trials: what trial.npy has. uniques: rows that are no copies."""

    name: str
    image: int
    trials: Int[np.ndarray, "r"]
    uniques: int
    parts: Mapping[str, Piece]


class Shown(NamedTuple):
    """Every trial of a subject once: what was shown, and which row of which member has its voxels.

    trial: its number, from 0, by which they are sorted; None: unknown.
    """

    stimulus_id: list[str]
    trial: Int[np.ndarray, "t"] | None
    row: list[tuple[Piece, int]]


def _design(path: Path, options: StudyOptions, found: list[Found]) -> Design | None:
    """NSD's design of the experiment, where it is given or lies in the folder."""
    file = given_file(options, "expdesign") or next(
        (place for place in (path / EXPDESIGN, path / Path(EXPDESIGN).name) if place.is_file()), None
    )
    missing = () if file is not None else (Path(EXPDESIGN).name,)
    found.append(Found("experimental design of NSD", () if file is None else (file,), missing, required=False))
    return None if file is None else read_design(file)


def _shown(
    root: Path,
    subject: str,
    places: Mapping[str, Mapping[str, Mapping[int, Path]]],
    design: Design | None,
    split: dict[str, str],
    pictures: dict[str, Piece],
    found: list[Found],
    notices: list[str],
) -> Shown:
    """Read the numbers of all samples of a subject. Fills `split`, `pictures`, `found` and `notices`."""
    samples: list[Sample] = []
    for part in SPLITS:
        shards = places[part].get(subject, {})
        if not shards and part != "val":
            raise UserError(
                f"{root}: expected {part}/{part}_{subject}_0.tar, got none. Download all shards of {subject}."
            )
        if any(shard.is_dir() for shard in shards.values()):
            wanted = (VOXELS, IMAGE, TRIALS, UNIQUES, *PICTURES)
            inside = (file for shard in shards.values() for file in sorted(shard.iterdir()))
            files = tuple(file for file in inside if file.name.partition(".")[2] in wanted and file.is_file())
            found.append(Found(f"{part} samples of {subject}", files, required=part != "val"))
        else:
            gone = [number for number in range(max([*shards, USUAL_SHARDS[part] - 1]) + 1) if number not in shards]
            names = tuple(f"{part}/{part}_{subject}_{number}.tar" for number in gone)
            found.append(Found(f"{part} shards of {subject}", tuple(shards.values()), names, required=part != "val"))
            if gone:
                notices.append(f"{subject} lacks the shards {listed(names)}: their images are not there.")
        for shard in (shards[number] for number in sorted(shards)):
            for sample in _samples(shard):
                before = split.setdefault(sample.name, part)
                if before != part:
                    raise UserError(
                        f"{shard}: expected each image in one of train, val and test, got image '{sample.name}' in "
                        f"{before} and {part}. Do shards of two releases lie in one folder? Keep those of one."
                    )
                for extension in PICTURES:
                    if extension in sample.parts:
                        pictures.setdefault(sample.name, sample.parts[extension])
                samples.append(sample)
    if any(len(sample.trials) > 1 for sample in samples):
        return _numbered(subject, samples, notices)
    return _unnumbered(subject, samples, design, notices)


def _numbered(subject: str, samples: Sequence[Sample], notices: list[str]) -> Shown:
    """Trials by the number that each row has."""
    of_trial: dict[int, tuple[str, Piece, int]] = {}
    num_copies = num_again = 0
    for sample in samples:
        kept = _own_rows(sample.parts[TRIALS], sample.trials, sample.uniques)
        num_copies += len(sample.trials) - len(kept)
        for row in kept:
            mine = (sample.name, sample.parts[VOXELS], row)
            other = of_trial.setdefault(int(sample.trials[row]), mine)
            if other[0] != sample.name:
                raise UserError(
                    f"{sample.parts[TRIALS]}: expected trial {sample.trials[row]} to show '{other[0]}', as in "
                    f"{other[1]}, got '{sample.name}'. Do shards of two subjects lie in one place? Copy them again."
                )
            num_again += other != mine
    _say_copies(subject, num_copies, num_again, notices)
    numbers = sorted(of_trial)
    ordered = [of_trial[number] for number in numbers]
    trial = np.array(numbers, np.int64) - _first_number(numbers, subject, notices)
    return Shown([name for name, _, _ in ordered], trial, [(piece, row) for _, piece, row in ordered])


def _unnumbered(subject: str, samples: Sequence[Sample], design: Design | None, notices: list[str]) -> Shown:
    """Trials by NSD's design, if every image was shown as often as it has rows; otherwise in the order of the files."""
    once: dict[str, Sample] = {}
    for sample in samples:
        once.setdefault(sample.name, sample)
    num_copies = sum(max(3 - sample.uniques, 0) for sample in once.values())
    _say_copies(subject, num_copies, sum(s.uniques for s in samples if once[s.name] is not s), notices)
    trials = None if design is None else _presented(subject, once, design)
    if design is not None and trials is None:
        notices.append(
            f"{subject} does not have as many rows of each image as NSD's design has presentations, in any number of "
            "sessions: the design was not used."
        )
    if trials is None:
        notices.append(
            f"The files do not say in which session a trial of {subject} was: parts of at most {TRIALS_PER_SESSION} "
            "trials, in the order of the files, count as sessions, and responses are z-scored over all training "
            "trials. NSD's nsd_expdesign.mat would tell (--files expdesign=PATH)."
        )
        pairs = [(sample, row) for sample in once.values() for row in range(sample.uniques)]
        return Shown([sample.name for sample, _ in pairs], None, [(sample.parts[VOXELS], row) for sample, row in pairs])
    notices.append(
        f"Sessions of {subject} are those of NSD's design; rows of an image were taken to be in the order of "
        "presentation, which the files do not say."
    )
    ordered = sorted((number, name, row) for name, numbers in trials.items() for row, number in enumerate(numbers))
    rows = [(once[name].parts[VOXELS], row) for _, name, row in ordered]
    return Shown([name for _, name, _ in ordered], np.array([number for number, _, _ in ordered], np.int64), rows)


def _presented(subject: str, samples: Mapping[str, Sample], design: Design) -> dict[str, list[int]] | None:
    """The trials of each image, from 0, in as many sessions as agree with the number of its rows; None: in none."""
    if subject not in SUBJECTS:
        return None
    image = design.image[SUBJECTS.index(subject)]
    order = np.argsort(image, kind="stable")
    wanted = np.array([sample.image for sample in samples.values()])
    first, end = (np.searchsorted(image[order], wanted, side=side) for side in ("left", "right"))
    shown = {name: order[a:b] for name, a, b in zip(samples, first.tolist(), end.tolist(), strict=True)}
    for num_sessions in range(len(image) // TRIALS_PER_SESSION, 0, -1):
        last = num_sessions * TRIALS_PER_SESSION
        within = {name: trials[trials < last] for name, trials in shown.items()}
        if all(len(within[name]) == sample.uniques for name, sample in samples.items()):
            return {name: trials.tolist() for name, trials in within.items()}
    return None


def _say_copies(subject: str, num_copies: int, num_again: int, notices: list[str]) -> None:
    if num_copies:
        notices.append(f"{num_copies} rows of {subject} are copies (beyond num_uniques) and were left out.")
    if num_again:
        notices.append(f"{num_again} rows of {subject} come again in another sample and were read once.")


def _samples(shard: Path) -> Iterator[Sample]:
    """The samples of a shard; of each its numbers are read."""
    samples: Samples = shard_samples(shard, (VOXELS, IMAGE, TRIALS, UNIQUES, *PICTURES))
    for key, parts in samples.items():
        missing = [name for name in (VOXELS, IMAGE, TRIALS, UNIQUES) if name not in parts]
        if missing:
            raise UserError(
                f"{shard}: expected {listed((VOXELS, IMAGE, TRIALS, UNIQUES))} of sample {key}, got none of "
                f"{listed(missing)}. Is it a shard of MindEye1 (webdataset_avg_split/), or of MindEye2 (wds/)?"
            )
    if not samples:
        raise UserError(f"{shard}: expected samples with {VOXELS}, got none. Download the shard again.")
    pieces = [parts[name] for parts in samples.values() for name in (IMAGE, TRIALS, UNIQUES)]
    values = [
        whole(piece, parse_npy(piece, data), "image, trial and number of repeats")
        for piece, data in zip(pieces, read_pieces(pieces), strict=True)
    ]
    for parts, image, trials, uniques in zip(samples.values(), values[::3], values[1::3], values[2::3], strict=True):
        most = len(trials) if len(trials) > 1 else 3
        if len(image) != 1 or len(uniques) != 1 or not len(trials) or not 1 <= uniques[0] <= most:
            raise UserError(
                f"{parts[UNIQUES]}: expected one image, one trial number (or one for each repeat), and how many "
                f"repeats are no copies, got {image.tolist()}, {trials.tolist()} and {uniques.tolist()}. "
                "Is it of another layout?"
            )
        if not 0 <= image[0] < NUM_IMAGES:
            raise UserError(
                f"{parts[IMAGE]}: expected a 73k id from 0 to {NUM_IMAGES - 1}, got {image[0]}. Does it count from 1, "
                "or is the file damaged?"
            )
        yield Sample(stimulus_id(int(image[0])), int(image[0]), trials, int(uniques[0]), parts)


def _own_rows(piece: Piece, trials: Int[np.ndarray, "r"], uniques: int) -> list[int]:
    """The rows that are no copies: those with a trial number of their own, or the first ones if all have one."""
    first: dict[int, int] = {}
    for row, trial in enumerate(trials.tolist()):
        if trial >= 0:  # -1: there is no such repeat
            first.setdefault(trial, row)
    own = sorted(first.values())
    if len(own) < uniques:
        raise UserError(
            f"{piece}: expected {uniques} trial numbers that differ, as num_uniques says, got {trials.tolist()}. "
            "The file is damaged or of another release: download it again."
        )
    return own[:uniques]


def _first_number(numbers: Sequence[int], subject: str, notices: list[str]) -> int:
    """Whether trials count from 0 or from 1: of all sessions of NSD the first or the last trial says so."""
    if numbers[0] == 0:
        return 0
    if numbers[0] == 1 and numbers[-1] % TRIALS_PER_SESSION == 0:
        notices.append(f"Trials of {subject} count from 1 (1 to {numbers[-1]}): 1 was subtracted.")
        return 1
    notices.append(
        f"Trials of {subject} go from {numbers[0]} to {numbers[-1]} and were taken to count from 0; if they count from "
        "1, the first trial of each session belongs to the one before."
    )
    return 0


def _recorded(subject: str, shown: Shown, options: StudyOptions, found: list[Found], notices: list[str]) -> Recorded:
    """Fills `found` and `notices`."""
    shape = npy_of(shown.row[0][0]).shape
    if len(shape) != 2:
        raise UserError(f"{shown.row[0][0]}: expected [3 repeats, voxels], got {list(shape)}. Is it of another layout?")
    num_voxels = shape[1]
    counted = np.arange(len(shown.row)) if shown.trial is None else shown.trial
    session = counted // TRIALS_PER_SESSION + 1
    sessions = []
    for number in np.unique(session):
        at = np.flatnonzero(session == number).tolist()
        rows = [shown.row[i] for i in at]
        num_bytes = sum(piece.size // 3 for piece, _ in rows)
        ids = [shown.stimulus_id[i] for i in at]
        sessions.append(Session(int(number), ids, partial(_read, rows, num_voxels), num_bytes=num_bytes))
    notices += voxel_notice(subject, num_voxels)
    notices += [] if shown.trial is None else session_notice(subject, [one.number for one in sessions])
    return Recorded(space_of(subject, num_voxels, options.mask, found, notices), sessions)


def _read(rows: Sequence[tuple[Piece, int]], num_voxels: int) -> Float[np.ndarray, "t v"]:
    """The voxels of these trials; read in the order of the files, which is kind to disks, and returned in theirs."""
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    responses = np.empty((len(rows), num_voxels), np.float32)
    for i, values in zip(order, read_npy_rows([rows[i] for i in order], num_voxels), strict=True):
        responses[i] = values
    return responses


def _read_pictures(
    pictures: Mapping[str, Piece], ids: Sequence[str], size: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """The pictures of these stimuli, in the order in which they lie."""
    ordered = sorted(ids, key=lambda name: pictures[name])
    for name, data in zip(ordered, read_pieces(pictures[name] for name in ordered), strict=True):
        yield name, fit(decode(str(pictures[name]), data), size)
