"""Raw NSD: the folders in which the Natural Scenes Dataset is published (Allen et al. 2022; the NSD Data Manual).

Enters the folder that holds these; what is in brackets may be missing:

    nsddata_betas/ppdata/subjXX/func1pt8mm/VERSION/betas_sessionNN.nii.gz or .hdf5    int16, 300 x percent signal change
    nsddata/ppdata/subjXX/func1pt8mm/roi/*.nii.gz       nsdgeneral chooses the voxels; labels of the others become ROIs
    [nsddata/freesurfer/{subjXX,fsaverage}/label/*.ctab]                              names of those labels
    nsddata/experiments/nsd/nsd_expdesign.mat           which image each trial showed; counts from 1
    [nsddata/ppdata/subjXX/behav/responses.tsv]         what each trial showed, once more: compared
    [nsddata/ppdata/subjXX/func1pt8mm/valid_sessionNN.nii.gz]   which voxels have data in a session: others are said
    [nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5]      imgBrick [73000, 425, 425, 3] uint8
    [nsddata/experiments/nsd/nsd_stim_info_merged.csv]  nsdId (from 0), cocoId, cocoSplit
    [annotations/captions_{train,val}2017.json]         COCO's captions; other places: COCO_PLACES, or files coco=FOLDER

Leaves a Study: betas in percent signal change; stimuli named by their 73k id ("nsd-00042"); the 1,000 images that all
subjects were to see are test. An HDF5 file is preferred to a NIfTI image of the same session: of it only the voxels of
the mask are read.

Affines are not compared: all volumes of func1pt8mm are on one grid, and only the mask's affine is used.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import listed
from brainjanus.data.layouts.nsd_captions import COCO_FILES, COCO_PLACES, captions_of_images
from brainjanus.data.layouts.nsd_ids import (
    NUM_IMAGES,
    NUM_SESSIONS,
    NUM_SHARED,
    SUBJECTS,
    TRIALS_PER_SESSION,
    image_of,
    session_notice,
    split_of,
    stimulus_id,
    voxel_notice,
)
from brainjanus.data.layouts.nsd_rois import MASK, find_mask, rois_of
from brainjanus.data.readers.arrays import read_array, reading
from brainjanus.data.readers.hdf5 import open_dataset
from brainjanus.data.readers.nifti import Volume, betas_shape, read_labels, stream_betas
from brainjanus.data.readers.pictures import fit
from brainjanus.data.study import (
    NUM_READERS,
    Found,
    Pictures,
    Place,
    Recorded,
    Session,
    Study,
    StudyOptions,
    given_files,
)

VERSIONS = ("betas_fithrf_GLMdenoise_RR", "betas_fithrf", "betas_assumehrf")
SCALE = 300
NUM_TRIALS, IMAGES_PER_SUBJECT = 30_000, 10_000
MOST_SESSIONS = NUM_TRIALS // TRIALS_PER_SESSION
RUNS = np.tile(np.repeat(np.arange(1, 13), [63, 62] * 6), (MOST_SESSIONS, 1))  # odd runs have 63 trials, even ones 62
EXPDESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
FILES: dict[str, Place] = {"expdesign": "file", "stim-info": "file", "coco": "folder"}  # for --files
_SESSION = re.compile(r"betas_session(\d{2})\.(hdf5|nii|nii\.gz)", re.ASCII)


class Design(NamedTuple):
    """The experiment. image: 73k id, from 0, of each trial of each subject; run: from 1, of each trial of a session;
    shared: 73k ids of the images for all subjects."""

    image: Int[np.ndarray, "8 t"]
    run: Int[np.ndarray, "40 n"]
    shared: frozenset[int]


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through raw NSD. Raises UserError without betas, masks or the design, and where they do not fit."""
    places = _places(path, options)
    subjects, version = _subjects(path, options)
    design = read_design(places["expdesign"])
    found = [Found("experimental design", (places["expdesign"],))]
    notices: list[str] = []
    recorded = []
    for subject in subjects:
        recorded.append(_recorded(path, subject, version, design, options, found, notices))
    ids = sorted({name for who in recorded for session in who.sessions for name in session.stimulus_id})
    if not places["stimuli"].is_file():
        notices.append(f"There are no pictures: {places['stimuli']} is missing. NSD has it as {STIMULI}.")
        found.append(Found("pictures", (), (str(places["stimuli"]),), required=False))
        pictures = None
    else:
        found.append(Found("pictures", (places["stimuli"],), required=False))
        pictures = _pictures(places["stimuli"], ids)
    table = places["stim-info"] if places["stim-info"].is_file() else None
    folders = [places["coco"]] if "coco" in places else [path / place for place in COCO_PLACES]
    return Study(
        layout="nsd",
        name="nsd",
        modality="fMRI",
        subjects=recorded,
        pictures=pictures,
        captions=captions_of_images(table, folders, options, ids, found, notices),
        split=split_of(ids, {stimulus_id(image) for image in design.shared}),
        zscore="session",
        found=found,
        notices=notices,
    )


def _places(path: Path, options: StudyOptions) -> dict[str, Path]:
    """Where the files lie that no subject has of its own. Raises UserError for an option that NSD has no use for."""
    if options.keys:
        raise UserError(
            f"--keys {listed(options.keys)}: expected none for raw NSD, whose keys are fixed, got some. Leave them out."
        )
    places = {"expdesign": path / EXPDESIGN, "stim-info": path / STIM_INFO, "stimuli": path / STIMULI}
    given = given_files(options, {"stimuli": "file", **FILES}, "raw NSD")
    check_coco(given)
    return places | given


def _subjects(path: Path, options: StudyOptions) -> tuple[list[str], str]:
    """Who is to be read, and which version of betas, which all of them have."""
    folder = path / "nsddata_betas/ppdata"
    there = {
        who: sorted(version.name for version in (folder / who / "func1pt8mm").glob("betas_*") if _sessions(version))
        for who in SUBJECTS
    }
    there = {who: versions for who, versions in there.items() if versions}
    if not there:
        raise UserError(
            f"{path}: expected raw NSD, with nsddata_betas/ppdata/subjXX/func1pt8mm/{VERSIONS[0]}/"
            "betas_sessionNN.nii.gz or .hdf5, got no such file. "
            "Give the folder that holds nsddata and nsddata_betas; only the 1.8 mm volumes are read."
        )
    strangers = [who for who in options.subjects if who not in there]
    if strangers:
        raise UserError(
            f"{path}: expected subjects whose betas are there ({listed(there)}), got {listed(strangers)}. "
            "Download their betas, or leave them out of --subjects."
        )
    chosen = [who for who in there if not options.subjects or who in options.subjects]
    if options.betas:
        common = [options.betas]
    else:
        common = [version for version in VERSIONS if all(version in there[who] for who in chosen)]
    without = [who for who in chosen if not common or common[0] not in there[who]]
    if without:
        raise UserError(
            f"{path}: expected betas '{common[0] if common else VERSIONS[0]}' of each subject, got none of "
            f"{listed(without)} ({without[0]} has {listed(there[without[0]])}). "
            "Download them, name another version with --betas, or choose subjects with --subjects."
        )
    return chosen, common[0]


def check_coco(given: Mapping[str, Path]) -> None:
    """Raises UserError for a folder that was given for COCO's captions and has none."""
    if "coco" in given and not any((given["coco"] / name).is_file() for name in COCO_FILES):
        raise UserError(
            f"--files coco={given['coco']}: expected {' or '.join(COCO_FILES)} in it, got neither. Give the folder "
            "that COCO's annotations were unpacked to."
        )


def _sessions(folder: Path) -> dict[int, Path]:
    """The file of each session; of two the HDF5, which need not be decompressed."""
    files: dict[int, Path] = {}
    if not folder.is_dir():
        return files
    for file in sorted(folder.iterdir()):
        match = _SESSION.fullmatch(file.name)
        if match and file.is_file():
            files.setdefault(int(match[1]), file)  # .hdf5 sorts before .nii
    return dict(sorted(files.items()))


def read_design(path: Path) -> Design:
    """Which image each trial of each subject shows. Raises UserError if the file is not NSD's."""
    arrays = {name: read_array(f"{path}:{name}") for name in ("masterordering", "subjectim", "sharedix")}
    expected = {
        "masterordering": (NUM_TRIALS, IMAGES_PER_SUBJECT),
        "subjectim": (len(SUBJECTS) * IMAGES_PER_SUBJECT, NUM_IMAGES),
        "sharedix": (NUM_SHARED, NUM_IMAGES),
    }
    for name, (size, largest) in expected.items():
        array = arrays[name]
        low, high = (array.min(), array.max()) if array.size else (0, 0)
        if array.size != size or array.dtype.kind not in "fiu" or low < 1 or high > largest:
            raise UserError(
                f"{path}: expected {size} numbers from 1 to {largest} in '{name}', got {array.dtype} "
                f"{list(array.shape)} from {low} to {high}. Is it the nsd_expdesign.mat of another release, or was it "
                "edited? Download it again."
            )
    order = arrays["masterordering"].ravel().astype(np.int64) - 1
    if arrays["subjectim"].shape[0] != len(SUBJECTS):
        raise UserError(
            f"{path}: expected 'subjectim' [{len(SUBJECTS)}, {IMAGES_PER_SUBJECT}], got "
            f"{list(arrays['subjectim'].shape)}. Its axes are swapped: download the file again."
        )
    images = arrays["subjectim"].astype(np.int64) - 1
    shared = frozenset((arrays["sharedix"].ravel().astype(np.int64) - 1).tolist())
    for who, row in zip(SUBJECTS, images, strict=True):
        if set(row[:NUM_SHARED].tolist()) != shared:
            raise UserError(
                f"{path}: expected the first {NUM_SHARED} images of {who} in 'subjectim' to be those of 'sharedix', "
                "got others: masterordering <= 1000 would not mean shared. Download the file again."
            )
    return Design(images[:, order], _runs(path), shared)


def _runs(path: Path) -> Int[np.ndarray, "40 750"]:
    """The run of each trial: as 'stimpattern' [sessions, runs, 75 slots] says (1: a trial), or as the manual does."""
    try:
        pattern = np.asarray(read_array(f"{path}:stimpattern"))
    except UserError:  # not every copy has it
        return RUNS
    if pattern.shape != (MOST_SESSIONS, 12, 75) or (pattern.astype(bool).sum(axis=(1, 2)) != TRIALS_PER_SESSION).any():
        return RUNS
    return np.stack([np.nonzero(session)[0] + 1 for session in pattern])


def _recorded(
    root: Path,
    subject: str,
    version: str,
    design: Design,
    options: StudyOptions,
    found: list[Found],
    notices: list[str],
) -> Recorded:
    """One subject; what is found and what is to be said is added to the lists."""
    files = _sessions(root / "nsddata_betas/ppdata" / subject / "func1pt8mm" / version)
    if options.sessions:
        files = {number: file for number, file in files.items() if number <= options.sessions}
    if not files:
        raise UserError(
            f"betas of {subject}: expected sessions among the first {options.sessions}, got none of them. "
            "Download session 1 and those that follow it, or raise --sessions."
        )
    numbers = list(files)
    if numbers[-1] > MOST_SESSIONS:
        raise UserError(
            f"{files[numbers[-1]]}: expected sessions 1 to {MOST_SESSIONS}, got {numbers[-1]}. Is it a file of NSD?"
        )
    gaps = sorted(set(range(1, numbers[-1] + 1)) - files.keys())
    if gaps:
        remedy = f", or give --sessions {gaps[0] - 1}" if gaps[0] > 1 else ""
        raise UserError(
            f"betas of {subject}: expected sessions 1 to {numbers[-1]}, got none for {listed(map(str, gaps))}. The "
            f"download is not complete: get betas_session{gaps[0]:02} again{remedy}."
        )
    published = min(options.sessions or MOST_SESSIONS, NUM_SESSIONS[subject])
    absent = tuple(f"betas_session{number:02}" for number in range(numbers[-1] + 1, published + 1))
    found.append(Found(f"betas of {subject} ({version})", tuple(files.values()), absent))
    notices += session_notice(subject, numbers)
    folder = root / "nsddata/ppdata" / subject / "func1pt8mm"
    labels = [root / "nsddata/freesurfer" / who / "label" for who in (subject, "fsaverage")]
    mask = find_mask(folder, labels, subject, options.mask or MASK)
    volume = mask.volume
    if (options.mask or MASK) == MASK:
        notices += voxel_notice(subject, len(volume.voxels))
    rois = rois_of(folder / "roi", labels, volume, notices, subject)
    found.append(Found(f"mask of {subject}", mask.files))
    found.append(Found(f"ROIs of {subject}", tuple(sorted((folder / "roi").glob("*.nii.gz"))), required=False))
    valid = {number: folder / f"valid_session{number:02}.nii.gz" for number in files}
    valid = {number: file for number, file in valid.items() if file.is_file()}
    if valid:
        found.append(Found(f"voxels of {subject} that have data", tuple(valid.values()), required=False))
        notices += _without_data(subject, valid, volume)
    images = design.image[SUBJECTS.index(subject)].reshape(MOST_SESSIONS, TRIALS_PER_SESSION)
    behaviour = root / "nsddata/ppdata" / subject / "behav/responses.tsv"
    if behaviour.is_file():
        _compare(behaviour, images)
        found.append(Found(f"behaviour of {subject}, which shows the same images", (behaviour,), required=False))
    sessions = []
    for number, file in files.items():
        read, num_bytes = _reader(file, volume, mask.files[0])
        ids = [stimulus_id(image) for image in images[number - 1].tolist()]
        sessions.append(Session(number, ids, read, design.run[number - 1], num_bytes))
    space = BrainSpace(
        subject,
        len(volume.voxels),
        coordinates_mm=volume.coordinates_mm,
        rois=rois,
        geometry=volume.geometry,
        index=volume.voxels,
    )
    return Recorded(space, sessions, NUM_READERS)


def _without_data(subject: str, valid: Mapping[int, Path], volume: Volume) -> list[str]:
    """What there is to say of voxels of the mask that some sessions have no data of: their betas are 0 there."""
    lacking = {number: read_labels(str(file), volume, same_affine=False) <= 0 for number, file in valid.items()}
    sessions = [str(number) for number, voxels in lacking.items() if voxels.any()]
    num = int(np.any(list(lacking.values()), axis=0).sum())
    if not num:
        return []
    return [
        f"{num} of {len(volume.voxels)} voxels of {subject} have no data in some sessions ({listed(sessions)}): they "
        "are refused when such a session is read, unless --drop-constant-sites leaves them out."
    ]


def _compare(behaviour: Path, images: Int[np.ndarray, "40 750"]) -> None:
    """Raises UserError if a subject's behaviour is of other images than the design has; 73KID counts from 1."""
    trial: Counter[int] = Counter()
    with reading(behaviour, "NSD's table of responses"), open(behaviour, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            session, image = int(row["SESSION"]), int(row["73KID"]) - 1
            expected = int(images[session - 1, trial[session]])
            trial[session] += 1
            if image != expected:
                raise UserError(
                    f"{behaviour}: expected {stimulus_id(expected)} in trial {trial[session]} of session {session}, as "
                    f"{EXPDESIGN} has it, got 73KID {image + 1}. Are both of one subject and one release? Download "
                    "them again."
                )


def _reader(file: Path, volume: Volume, mask: Path) -> tuple[Callable[[], Float[np.ndarray, "t v"]], int]:
    """How a session is read, and how many bytes that takes from the disk. Raises UserError for another shape."""
    if file.suffix == ".hdf5":
        with open_dataset(file, "betas") as dataset:
            shape, itemsize = tuple(dataset.shape)[::-1], dataset.dtype.itemsize
            whole = not _by_voxel(dataset)
        num_bytes = (int(np.prod(volume.shape)) if whole else len(volume.voxels)) * TRIALS_PER_SESSION * itemsize
        read: Callable[[], np.ndarray] = partial(_read_hdf5, file, volume)
    else:
        shape, num_bytes = betas_shape(str(file), volume, same_affine=False), file.stat().st_size
        read = partial(_read_nifti, file, volume)
    if shape != (*volume.shape, TRIALS_PER_SESSION):
        raise UserError(
            f"{file}: expected betas {[*volume.shape, TRIALS_PER_SESSION]}, on the grid of {mask.name} and with "
            f"{TRIALS_PER_SESSION} trials, got {list(shape)}. Do mask and betas belong to one subject, and to "
            "func1pt8mm both?"
        )
    return read, num_bytes


def _read_nifti(file: Path, volume: Volume) -> Float[np.ndarray, "t v"]:
    betas = stream_betas(str(file), volume, same_affine=False)
    betas /= SCALE
    return betas


def _read_hdf5(file: Path, volume: Volume) -> Float[np.ndarray, "t v"]:
    """h5py shows MATLAB's [x, y, z, trials] as [trials, z, y, x]; NSD stores all trials of a voxel in one chunk."""
    x, y, z = np.unravel_index(volume.voxels, volume.shape)
    betas = np.empty((TRIALS_PER_SESSION, len(volume.voxels)), np.float32)
    with open_dataset(file, "betas") as dataset:
        if not _by_voxel(dataset):
            for trial in range(TRIALS_PER_SESSION):
                betas[trial] = dataset[trial][z, y, x]
        else:
            order = np.lexsort((x, y, z))
            steps = np.flatnonzero((np.diff(x[order]) != 1) | np.diff(y[order]) | np.diff(z[order])) + 1
            for start, stop in pairwise([0, *steps.tolist(), len(order)]):
                row = order[start:stop]  # neighbours along x
                first = row[0]
                betas[:, row] = dataset[:, z[first], y[first], x[first] : x[first] + len(row)]
    betas /= SCALE
    return betas


def _by_voxel(dataset: Any) -> bool:
    """Whether a chunk has many trials of few voxels."""
    return dataset.chunks is not None and dataset.chunks[0] > 1


def _pictures(path: Path, ids: Sequence[str]) -> Pictures:
    with open_dataset(path, "imgBrick") as brick:
        shape = tuple(brick.shape)
        if len(shape) != 4 or shape[0] != NUM_IMAGES or shape[3] != 3 or brick.dtype != np.uint8:
            raise UserError(
                f"{path}: expected 'imgBrick' uint8 [{NUM_IMAGES}, 425, 425, 3], got {brick.dtype} {list(shape)}. "
                "Row and 73k id would not agree: download NSD's own nsd_stimuli.hdf5."
            )
    return Pictures(ids, partial(_read_pictures, path), int(np.prod(shape[1:])))


def _read_pictures(path: Path, ids: Sequence[str], size: int) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """In the order of the file."""
    with open_dataset(path, "imgBrick") as brick:
        for name in sorted(ids):
            picture = brick[image_of(name)]
            yield name, picture if picture.shape[:2] == (size, size) else fit(Image.fromarray(picture), size)
