"""MindEye2's files (Scotti et al. 2024): betas in HDF5, and who saw what in WebDataset shards.

    PATH/betas_all_subj01_fp32_renorm.hdf5     betas [trials, voxels], row = global trial, z-scored per session
         coco_images_224_float16.hdf5          images [73000, 3, 224, 224], floats from 0 to 1, row = 73k id
         [brain_region_masks.hdf5]             subj01/{V1, .., higher_vis, nsd_general} [voxels]: which ones are in it
         wds/subj01/train/{0..}.tar            KEY.behav.npy (1 x 17) and neighbours; one tar a session
         wds/subj01/new_test/0.tar             the shared images (test/0.tar: fewer, of an older release)

Columns of behav: 0 the 73k id from 0, 2 session, 3 run, 5 global trial, 16 shared1000; -1 is missing. Trials are joined
to their betas by column 5 and to pictures by column 0, whatever order shards have. A stimulus is test where column 16
or its folder says so. `stimuli.tsv`, which our export writes, names stimuli that are not NSD's.

Differs from MindEye2: the same trials are z-scored again, with training trials only. Its published notebook takes the
mean and deviation of each session over test images too, and says that the paper did not; the files do not say which.
Since these are affine for each voxel and session, z-scoring per session undoes either.

That notebook reads NSD's betas_fithrf, where raw NSD is prepared from betas_fithrf_GLMdenoise_RR unless --betas says
otherwise: to compare the two, prepare raw NSD with --betas betas_fithrf.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.layouts.asked import (
    captions_of,
    chosen_subjects,
    first_sessions,
    folder_of,
    named_numbers,
    named_subjects,
    recording_of,
    refuse_unused,
    shown_in,
    space_of,
)
from brainjanus.data.layouts.nsd_ids import (
    SHARED_SEEN,
    TRIALS_PER_SESSION,
    session_notice,
    stimulus_id,
    voxel_notice,
)
from brainjanus.data.readers.hdf5 import dataset_in, flags_in, group_in, open_hdf5
from brainjanus.data.readers.pictures import read_pictures
from brainjanus.data.readers.shards import parse_npy, read_pieces, shard_samples
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions

IMAGE, SUBJECT, SESSION, RUN, TRIAL, ISOLD, SHARED = 0, 1, 2, 3, 5, 7, 16
NUM_COLUMNS = 17
USUAL = "fp32_renorm"
REGIONS = "brain_region_masks.hdf5"
_BETAS = re.compile(r"betas(?:_all)?_(subj\d+)(?:_(\w+))?\.hdf5")
_IMAGES = re.compile(r"coco_images_\d+_float16\.hdf5")


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through MindEye2's folder. Of the shards all of behav.npy is read (a few MB), of the betas nothing.

    options.betas: which of several files of betas, by what follows the subject in their names ("fp32_renorm").
    Raises UserError for what keeps it from being prepared.
    """
    refuse_unused("mindeye2", options, ("mask", "sessions", "betas", "files"))
    folder_of("mindeye2", path)
    betas = _betas_files(path, options.betas)
    chosen = chosen_subjects(path, betas, options.subjects, "betas_all_subj0X_fp32_renorm.hdf5")
    names = named_numbers(path)
    subjects: list[Recorded] = []
    split: dict[str, str] = {}
    found: list[Found] = []
    notices: list[str] = []
    if names is None:
        notices.append(
            "MindEye2's betas are z-scored per session, and the files do not say with which trials: they are z-scored "
            "again with training trials only."
        )
    regions = (path / REGIONS,) if (path / REGIONS).is_file() else ()
    found.append(Found("ROIs", regions, () if regions else (REGIONS,), required=False))
    for subject in chosen:
        behaviour = _behaviour(path / "wds" / subject, names, notices)
        found += behaviour.found
        recorded = _recorded(subject, betas[subject], behaviour, options, found, notices, nsd=names is None)
        subjects.append(first_sessions(recorded, options.sessions))
        found.append(Found(f"betas of {subject}", (betas[subject],)))
        for name, part in behaviour.split.items():
            split[name] = _stricter(split.get(name, part), part)
    shown = shown_in(subjects)
    pictures = _pictures(path, shown, names)
    images = () if pictures is None else tuple(file for file in path.iterdir() if _IMAGES.fullmatch(file.name))
    found.append(Found("images", images, () if images else ("coco_images_224_float16.hdf5",), required=False))
    called, modality = recording_of(path, "nsd-mindeye2")
    return Study(
        "mindeye2",
        called,
        modality,
        named_subjects(path, subjects),
        pictures,
        captions_of(path, options, shown, found, notices, names),
        {name: part for name, part in split.items() if name in shown},
        found=found,
        notices=notices,
    )


def _betas_files(path: Path, asked: str) -> dict[str, Path]:
    """The file of betas of each subject. Raises UserError if there are several, and which one is not said."""
    there: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        match = _BETAS.fullmatch(file.name)
        if match:
            there.setdefault(match[1], {})[match[2] or ""] = file
    chosen = {}
    for subject, files in there.items():
        suffix = asked or (USUAL if USUAL in files else next(iter(files)))
        if suffix not in files or (not asked and len(files) > 1 and USUAL not in files):
            raise UserError(
                f"{path}: expected one file of betas of {subject}, or --betas to say which "
                f"({listed(sorted(files))}), got {asked or 'several'!r}. Name one of these."
            )
        chosen[subject] = files[suffix]
    return chosen


class Behaviour(NamedTuple):
    """Of each trial that has a stimulus and betas, in their order: stimulus, session, run, and row of the betas."""

    stimulus_id: list[str]
    session: Int[np.ndarray, "t"]
    run: Int[np.ndarray, "t"]
    row: Int[np.ndarray, "t"]
    split: Mapping[str, str]
    found: Sequence[Found]


def _behaviour(folder: Path, names: Mapping[int, str] | None, notices: list[str]) -> Behaviour:
    subject = folder.name
    shards, found = _shards(folder, notices)
    parts: list[np.ndarray] = []
    places: list[str] = []
    for place, shard in shards:
        rows = _rows(shard)
        parts.append(rows)
        places += [place] * len(rows)
    rows, where = np.concatenate(parts), np.array(places)
    there = (rows[:, IMAGE] >= 0) & (rows[:, TRIAL] >= 0)
    if not there.all():
        notices.append(
            f"{int((~there).sum())} of {len(there)} trials of {subject} have no image or no betas (-1 in behav.npy) "
            "and were left out."
        )
        rows, where = rows[there], where[there]
    order = np.argsort(rows[:, TRIAL], kind="stable")
    rows, where = rows[order], where[order]
    twice = np.flatnonzero(np.diff(rows[:, TRIAL]) == 0)
    if len(twice):
        raise UserError(
            f"{folder}: expected each trial once, got global trial {rows[twice[0], TRIAL]} twice. Do shards of two "
            "releases lie in one folder? Keep those of one."
        )
    ids = [_name(int(image), names, folder) for image in rows[:, IMAGE]]
    split: dict[str, str] = {}
    says = {1: "test", 0: "train"}
    for name, place, shared in zip(ids, where.tolist(), rows[:, SHARED].tolist(), strict=True):
        part = _stricter(place, says.get(shared, place))
        split[name] = _stricter(split.get(name, part), part)
    moved = {name for name, place in zip(ids, where.tolist(), strict=True) if place != split[name]}
    if moved:
        notices.append(
            f"{len(moved)} stimuli of {subject} ({listed(sorted(moved), 3)}) are test by shared1000 or in one shard, "
            "and train or val in another: they count as test."
        )
    counted = rows[:, TRIAL] // TRIALS_PER_SESSION + 1
    session = np.where(rows[:, SESSION] >= 1, rows[:, SESSION], counted)
    if names is None and (session != counted).any():
        notices.append(
            f"{int((session != counted).sum())} trials of {subject} have another session in behav.npy than their "
            f"number says ({TRIALS_PER_SESSION} a session): that of behav.npy was kept."
        )
    return Behaviour(ids, session, np.maximum(rows[:, RUN], 1), rows[:, TRIAL], split, found)


def _stricter(a: str, b: str) -> str:
    """The split of what is in both: what is tested anywhere is trained on nowhere."""
    return max(a, b, key=("train", "val", "test").index)


def _name(image: int, names: Mapping[int, str] | None, folder: Path) -> str:
    if names is None:
        return stimulus_id(image)
    if image not in names:
        raise UserError(
            f"{folder}: expected images that stimuli.tsv names, got number {image}. Export the dataset again."
        )
    return names[image]


def _shards(folder: Path, notices: list[str]) -> tuple[list[tuple[str, Path]], list[Found]]:
    """The shards of a subject, each with its split by folder, and what was found and is missing."""
    subject = folder.name
    train = sorted(
        (file for file in (folder / "train").glob("*.tar") if file.stem.isdecimal()),  # not macOS's "._0.tar"
        key=lambda file: int(file.stem),
    )
    tests = {name: folder / name / "0.tar" for name in ("new_test", "test")}
    there = [name for name, file in tests.items() if file.is_file()]
    if not train or not there:
        raise UserError(
            f"{folder}: expected train/{{0..}}.tar and new_test/0.tar, got "
            f"{'no training shards' if not train else 'no test shard'}. Download wds/{subject} of MindEye2's dataset, "
            "all of it."
        )
    numbers = {file.stem for file in train}
    gone = [str(number) for number in range(len(train)) if str(number) not in numbers]
    if gone:
        notices.append(
            f"{subject} lacks the training shards {listed(gone)}: trials of these sessions are not trained on."
        )
    val = sorted(file for file in (folder / "val").glob("*.tar") if file.stem.isdecimal())
    shards = [("train", file) for file in train] + [("val", file) for file in val] + [("test", tests[there[0]])]
    missing = tuple(f"wds/{subject}/train/{number}.tar" for number in gone)
    return shards, [
        Found(f"training shards of {subject}", tuple(train), missing),
        Found(f"test shard of {subject}", (tests[there[0]],)),
    ]


def _rows(shard: Path) -> Int[np.ndarray, "t 17"]:
    """behav of every sample of a shard, as integers. Raises UserError for an array of another form."""
    samples = shard_samples(shard, ("behav.npy",))
    pieces = [parts["behav.npy"] for parts in samples.values()]
    if not pieces:
        raise UserError(
            f"{shard}: expected samples with behav.npy, got none. Is it a shard of MindEye2 (wds/), or of MindEye1?"
        )
    rows = np.empty((len(pieces), NUM_COLUMNS))
    for row, piece, data in zip(rows, pieces, read_pieces(pieces), strict=True):
        values = parse_npy(piece, data)
        if values.shape not in ((1, NUM_COLUMNS), (NUM_COLUMNS,)):
            raise UserError(
                f"{piece}: expected behav of 1 x {NUM_COLUMNS}, got {list(values.shape)}. Is it of another release?"
            )
        row[:] = values.reshape(-1)
    used = rows[:, [IMAGE, SESSION, RUN, TRIAL, SHARED]]
    if not np.isfinite(used).all() or (used != np.round(used)).any() or (np.abs(used) > 2**31).any():
        at = int(np.argmin((np.isfinite(used) & (used == np.round(used)) & (np.abs(used) <= 2**31)).all(axis=1)))
        raise UserError(
            f"{pieces[at]}: expected whole numbers in the columns {IMAGE}, {SESSION}, {RUN}, {TRIAL} and {SHARED}, got "
            f"{used[at].tolist()}. The file is damaged or of another kind: copy it again."
        )
    return np.where(np.isfinite(rows), rows, -1).clip(-(2**31), 2**31).astype(np.int64)


def _recorded(
    subject: str,
    file: Path,
    behaviour: Behaviour,
    options: StudyOptions,
    found: list[Found],
    notices: list[str],
    nsd: bool,
) -> Recorded:
    """Fills `found` and `notices`."""
    with open_hdf5(file) as hdf5:
        betas = dataset_in(file, hdf5, "betas", ndim=2)
        num_trials, num_voxels = betas.shape
        num_bytes = num_voxels * betas.dtype.itemsize
    if len(behaviour.row) and behaviour.row.max() >= num_trials:
        raise UserError(
            f"{file}: expected betas of every trial up to number {behaviour.row.max()}, as the shards count from 0, "
            f"got {num_trials} rows. Are the shards of a release with more sessions? Download both of one release."
        )
    sessions = []
    for number in np.unique(behaviour.session):
        at = np.flatnonzero(behaviour.session == number)
        ids = [behaviour.stimulus_id[i] for i in at]
        read = partial(_read, file, behaviour.row[at])
        sessions.append(Session(int(number), ids, read, behaviour.run[at], num_bytes * len(at)))
    if nsd:
        notices += _test_notice(subject, behaviour.split)
        notices += voxel_notice(subject, num_voxels) + session_notice(subject, [one.number for one in sessions])
    rois = _regions(file.parent / REGIONS, subject, num_voxels, notices)
    return Recorded(space_of(subject, num_voxels, options.mask, found, notices, rois), sessions)


def _test_notice(subject: str, split: Mapping[str, str]) -> list[str]:
    """One sentence if the shards have fewer test images than a subject of NSD saw."""
    found, seen = list(split.values()).count("test"), SHARED_SEEN.get(subject, 0)
    if found >= seen:
        return []
    return [
        f"{subject} has {found} of the {seen} shared images that it saw as test stimuli: numbers differ from those on "
        f"all of them{' (releases before all sessions of NSD were published have 982)' if found == 982 else ''}."
    ]


def _regions(file: Path, subject: str, num_voxels: int, notices: list[str]) -> dict[str, Bool[np.ndarray, "v"]]:
    """The ROIs of a subject, where the file is there; one of all voxels (nsd_general), or of none, is left out."""
    if not file.is_file():
        return {}
    with open_hdf5(file) as hdf5:
        if subject not in hdf5:
            notices.append(f"{file.name} has no ROIs of {subject}.")
            return {}
        regions = group_in(file, hdf5, subject)
        rois = {name: flags_in(file, regions, name, num_voxels) for name in regions}
    return {name: mask for name, mask in rois.items() if mask.any() and not mask.all()}


def _read(file: Path, rows: Int[np.ndarray, "t"]) -> Float[np.ndarray, "t v"]:
    """These rows of the betas, which grow; in one sweep where they lie close together."""
    with open_hdf5(file) as hdf5:
        betas: Any = dataset_in(file, hdf5, "betas", ndim=2)
        first, end = int(rows[0]), int(rows[-1]) + 1
        taken = betas[first:end][rows - first] if end - first <= 2 * len(rows) else betas[rows]
        return np.asarray(taken, dtype=np.float32)


def _pictures(path: Path, shown: set[str], names: Mapping[int, str] | None) -> Pictures | None:
    """Raises UserError if a stimulus has no row in the file."""
    files = sorted(file for file in path.iterdir() if _IMAGES.fullmatch(file.name))
    if not files:
        return None
    with open_hdf5(files[0]) as hdf5:
        images = dataset_of_pictures(files[0], hdf5)
        num_images, num_bytes = len(images), images.dtype.itemsize * int(np.prod(images.shape[1:]))
    if names is None:
        number_of = {name: int(name.removeprefix("nsd-")) for name in shown}
    else:
        number_of = {name: number for number, name in names.items() if name in shown}
    beyond = max(number_of.values(), default=0)
    if beyond >= num_images:
        raise UserError(
            f"{files[0]}: expected a picture of image {beyond}, got {num_images} pictures. "
            "Download the whole file: it has all 73,000."
        )
    return Pictures(sorted(number_of), partial(read_numbered, f"{files[0]}:images", number_of), num_bytes)


def dataset_of_pictures(file: Path, hdf5: Any) -> Any:
    """The images of the file, as a handle. Pictures are read one at a time, so that a sparse file may be one."""
    images = dataset_in(file, hdf5, "images", ndim=4, sparse=True)
    if images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.dtype.kind not in "fu":
        raise UserError(
            f"{file}: expected images [73000, 3, 224, 224], got {images.dtype} {list(images.shape)}. "
            "Is it the file of another layout?"
        )
    return images


def read_numbered(
    source: str, number_of: Mapping[str, int], ids: Sequence[str], size: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """The pictures of these stimuli out of an array of pictures, in its order."""
    name_of = {str(number_of[name]): name for name in ids}
    for number, picture in read_pictures(source, name_of, size):
        yield name_of[number], picture
