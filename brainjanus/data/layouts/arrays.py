"""Plain arrays: for each subject one array of responses and a table that says which trial saw what.

    PATH/SUBJECT.npy                    responses [trials, sites] (or [sites, trials]); also npz, mat, h5, safetensors
         SUBJECT_trials.tsv             stimulus_id; where known session, run, split (train, val, test)
         [SUBJECT_mask.nii.gz]          the voxels that the sites are, for coordinates and the way back to NIfTI
         [SUBJECT_coordinates.tsv]      or x, y, z in mm; also npy
         [SUBJECT_rois.json]            {"V1": [0, 1, 2]}; also tsv (site, roi)
         [pictures/]                    or pictures.zip, .tar, ..: named as the stimuli are
         [captions.json]                {"id": ["a caption"]}; also tsv (stimulus_id, caption)

Leaves a Study, of which one session is in memory at a time where the array is npy or HDF5. `prepare` with a spec takes
more: names and places of one's own, features, several pictures a stimulus, sensors, folds, scales.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.captions import caption_sources
from brainjanus.data.dataset import FIRST_SOURCE, SPLITS, listed
from brainjanus.data.layouts.asked import (
    chosen_subjects,
    first_sessions,
    folder_of,
    named_keys,
    refuse_unused,
    shown_in,
)
from brainjanus.data.layouts.pictured import pictures_by_name
from brainjanus.data.readers.arrays import SUFFIXES, open_array
from brainjanus.data.readers.nifti import read_mask
from brainjanus.data.readers.pictures import TAR_SUFFIXES
from brainjanus.data.readers.tables import read_captions, read_coordinates, read_rois, read_trials
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions

TRIALS = "_trials.tsv"
PICTURES = ("pictures", "pictures.zip", *(f"pictures{suffix}" for suffix in TAR_SUFFIXES), "pictures.npy")
CAPTIONS = ("captions.json", "captions.tsv")


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through the folder; of arrays only their headers are read, where they are npy or HDF5.

    options.keys: responses=KEY, the name of the responses in files that hold several arrays.
    Raises UserError for what keeps it from being prepared.
    """
    refuse_unused("arrays", options, ("sessions", "keys"))
    folder_of("arrays", path)
    key = named_keys(options, {"responses": "name of the array inside the files"}).get("responses", "")
    tables = {file.name.removesuffix(TRIALS): file for file in sorted(path.glob(f"*{TRIALS}")) if file.is_file()}
    expected = f"SUBJECT{TRIALS} (stimulus_id, ...) and SUBJECT.npy (responses)"
    found: list[Found] = []
    notices: list[str] = []
    split: dict[str, str] = {}
    subjects = []
    has_split = []
    for who in chosen_subjects(path, tables, options.subjects, expected):
        recorded, splits = _recorded(path, who, tables[who], key, found, notices)
        subjects.append(first_sessions(recorded, options.sessions))
        has_split.append(splits is not None)
        for name, mine in (splits or {}).items():
            if split.setdefault(name, mine) != mine:
                raise UserError(
                    f"{tables[who]}: expected each stimulus in one split, for all subjects, got '{name}' in "
                    f"{split[name]} and {mine}. Split by stimulus, or leave the column out."
                )
    if len(set(has_split)) > 1:
        raise UserError(
            f"{path}: expected a column 'split' in the trials of all subjects or of none, got one in some. Add it, or "
            "leave it out everywhere."
        )
    ids = sorted(shown_in(subjects))
    captions = _captions(path, ids, options, found, notices)
    pictures = _pictures(path, ids, found, notices)
    if pictures is None and not captions:
        raise UserError(
            f"{path}: expected pictures/ or captions.json, or both, got neither. What was shown has to be known."
        )
    return Study(
        "arrays", path.resolve().name, "fMRI", subjects, pictures, captions, split if has_split[0] else None,
        found=found, notices=list(dict.fromkeys(notices)),
    )  # fmt: skip


def _recorded(
    path: Path, who: str, table: Path, key: str, found: list[Found], notices: list[str]
) -> tuple[Recorded, dict[str, str] | None]:
    """One subject, and the split of its stimuli, if its table says it."""
    trials = read_trials(table)
    if trials.ignored:
        notices.append(f"The columns {listed(trials.ignored)} of the trials are not used.")
    file = _one_of(path, [f"{who}{suffix}" for suffix in SUFFIXES])
    if file is None:
        raise UserError(
            f"responses of {who}: expected {path / who}.npy (or {', '.join(SUFFIXES[1:])}) beside {table.name}, got "
            "none. Is it called otherwise?"
        )
    source, num_trials = f"{file}:{key}" if key else str(file), len(trials.stimulus_id)
    with open_array(source) as array:
        first = _trials_first(who, file, array, num_trials)
        num_sites, itemsize = array.shape[1 if first else 0], array.dtype.itemsize
    found += [Found(f"responses of {who}", (file,)), Found(f"trials of {who}", (table,))]
    session = trials.columns.get("session", np.ones(num_trials, np.int64))
    run = trials.columns.get("run", np.ones(num_trials, np.int64))
    sessions = []
    for number in np.unique(session).tolist():
        rows = np.flatnonzero(session == number)
        names = [trials.stimulus_id[row] for row in rows]
        read = partial(_read, source, rows, first)
        sessions.append(Session(number, names, read, run[rows], len(rows) * num_sites * itemsize))
    splits: dict[str, str] | None = None
    if "split" in trials.columns:
        splits = {}
        for name, mine in zip(trials.stimulus_id, trials.columns["split"], strict=True):
            if mine not in SPLITS or splits.setdefault(name, mine) != mine:
                raise UserError(
                    f"{table}: expected one split among {', '.join(SPLITS)} for each stimulus, got '{mine}' for "
                    f"'{name}'. Correct it, or leave the column out."
                )
    return Recorded(_space(path, who, num_sites, found), sessions), splits


def _trials_first(who: str, file: Path, array: Any, num_trials: int) -> bool:
    """Whether the first axis counts trials. Raises UserError if neither does, or both could."""
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise UserError(
            f"{file}: expected responses [trials, sites] of {who}, got {array.dtype} {list(array.shape)}. For epochs "
            "[trials, sensors, times] write a spec (sampling_hz); otherwise export one row for each trial."
        )
    fits = [size == num_trials for size in array.shape]
    if fits[0] == fits[1]:
        remedy = "Write a spec with its orientation" if fits[0] else "Does the table belong to these responses?"
        raise UserError(
            f"{file}: expected one axis of {num_trials} trials, as {who}{TRIALS} has, got {list(array.shape)}, where "
            f"{'both fit' if fits[0] else 'neither fits'}. {remedy}"
        )
    return fits[0]


def _read(source: str, rows: Int[np.ndarray, "t"], first: bool) -> Float[np.ndarray, "t v"]:
    """These trials, which grow; in one sweep where they lie close together."""
    with open_array(source) as array:
        start, end = int(rows[0]), int(rows[-1]) + 1
        if end - start <= 2 * len(rows):
            part = array[start:end] if first else np.asarray(array[:, start:end]).T
            part = part[rows - start]
        else:
            part = array[rows] if first else np.asarray(array[:, rows]).T
        return np.asarray(part, dtype=np.float32)


def _space(path: Path, who: str, num_sites: int, found: list[Found]) -> BrainSpace:
    mask = path / f"{who}_mask.nii.gz"
    volume = read_mask(str(mask)) if mask.is_file() else None
    if volume is not None and len(volume.voxels) != num_sites:
        raise UserError(
            f"{mask}: expected the {num_sites} sites of {who}, got {len(volume.voxels)} voxels. Were the responses "
            "exported with another mask? Give that one, or none."
        )
    places = _one_of(path, [f"{who}_coordinates{suffix}" for suffix in (".tsv", *SUFFIXES)])
    placed: dict[str, Any] = {}
    if volume is not None:
        placed = {"coordinates_mm": volume.coordinates_mm, "geometry": volume.geometry, "index": volume.voxels}
    elif places is not None:
        placed = {"coordinates_mm": read_coordinates(str(places))}
    regions = _one_of(path, [f"{who}_rois{suffix}" for suffix in (".json", ".tsv", *SUFFIXES)])
    files = (mask if volume is not None else places, regions)
    for what, file in zip(("places", "ROIs"), files, strict=True):
        found.append(Found(f"{what} of {who}", () if file is None else (file,), required=False))
    rois = read_rois([] if regions is None else [str(regions)], num_sites, volume)
    return BrainSpace(who, num_sites, rois=rois, **placed)


def _captions(
    path: Path, ids: Sequence[str], options: StudyOptions, found: list[Found], notices: list[str]
) -> Mapping[str, Mapping[str, Sequence[str]]]:
    file, captions = _one_of(path, CAPTIONS), {}
    found.append(Found("captions", () if file is None else (file,), required=False))
    if file is not None:
        texts, known = read_captions(file), set(ids)
        captions[FIRST_SOURCE] = {name: more for name, more in texts.items() if name in known}
        if not captions[FIRST_SOURCE]:
            raise UserError(
                f"{file}: expected names of stimuli ({listed(ids, 3)}), got none that was shown "
                f"({listed(texts, 3)}). Name them as the trials name the stimuli."
            )
    more = caption_sources(options.captions, ids, taken=list(captions))
    notices += more.notices
    return captions | more.captions


def _pictures(path: Path, ids: Sequence[str], found: list[Found], notices: list[str]) -> Pictures | None:
    source = _one_of(path, PICTURES)
    if source is None:
        found.append(Found("pictures", (), ("pictures/",), required=False))
        notices.append(f"There are no pictures: {path / 'pictures'} is missing.")
        return None
    return pictures_by_name(source, ids, "or rename the stimuli in the trials", found, notices)


def _one_of(path: Path, names: Sequence[str]) -> Path | None:
    """The only one of these that is there. Raises UserError for several."""
    there = [path / name for name in names if (path / name).exists()]
    if len(there) > 1:
        raise UserError(
            f"{path}: expected one of {listed((file.name for file in there), 4)}, got {len(there)} of them. Which is "
            "meant? Take the others out."
        )
    return there[0] if there else None
