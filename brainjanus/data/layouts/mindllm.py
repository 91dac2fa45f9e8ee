"""MindLLM's files (Qiu et al. 2025): one HDF5 file a subject, one group a trial.

    PATH/subject_1.h5 (or nsd0/subject_1.h5)   train/SAMPLE/visual_voxels [voxels], train/SAMPLE/coco_id; test/ likewise
         nsd_stim_info_merged.csv              of NSD, if it is there: the 73k id of each cocoId

Samples are single trials (three an image) and are known by their cocoId alone. With NSD's table stimuli are named as
everywhere ("nsd-00042"); without it "coco-000000262145", which no other layout has. Files say nothing of sessions:
parts of them count as such, and responses are z-scored over all training trials. They hold no pictures, and COCO's are
not what was shown: NSD cropped them.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from brainjanus.core.errors import UserError
from brainjanus.data.captions import COCO_PREFIX, Numbers, caption_sources
from brainjanus.data.dataset import SPLITS
from brainjanus.data.layouts.asked import (
    chosen_subjects,
    folder_of,
    nsd_captions,
    refuse_unused,
    shown_in,
    space_of,
    stim_info,
)
from brainjanus.data.layouts.nsd_captions import read_stim_info
from brainjanus.data.layouts.nsd_ids import stimulus_id, voxel_notice
from brainjanus.data.readers.hdf5 import dataset_in, group_in, number_in, open_hdf5
from brainjanus.data.study import Found, Recorded, Session, Study, StudyOptions

VOXELS, COCO = "visual_voxels", "coco_id"
TABLE = "nsd_stim_info_merged.csv"
PART = 750  # trials that are read at once: 47 MB of subj01


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through MindLLM's files: the cocoId of every sample is read, of the voxels only their number.

    Raises UserError for what keeps it from being prepared.
    """
    refuse_unused("mindllm", options, ("mask", "files"))
    folder_of("mindllm", path)
    files = {
        f"subj{int(match[1]):02}": file
        for folder in (path / "nsd0", path)
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if (match := re.fullmatch(r"subject_(\d+)\.h5", file.name))
    }
    chosen = chosen_subjects(path, files, options.subjects, "subject_1.h5 (or nsd0/subject_1.h5)")
    table = stim_info(path, options)
    images_of: dict[int, list[int]] | None = None if table is None else {}
    if table is not None and images_of is not None:
        for image, coco in enumerate(read_stim_info(table)):
            images_of.setdefault(coco, []).append(image)
    notices = [
        f"MindLLM's files do not say in which session a trial was: parts of at most {PART} samples count as sessions, "
        "and responses are z-scored over all training trials.",
        "MindLLM's files hold no pictures (NSD showed crops of COCO's): nothing but captions can be decoded from them.",
    ]
    if table is None:
        notices.append(
            f"{TABLE} is not there: stimuli are named by cocoId and do not meet those of other layouts of NSD."
        )
    subjects: list[Recorded] = []
    split: dict[str, str] = {}
    coco_of: dict[str, int] = {}
    found = [Found(f"voxels of {subject}", (files[subject],)) for subject in chosen]
    for subject in chosen:
        subjects.append(_recorded(subject, files[subject], images_of, split, coco_of, options, found, notices))
    shown = shown_in(subjects)
    if table is None:
        found.append(Found("73k ids", (), (TABLE,), required=False))
    if images_of is not None:
        captions = nsd_captions(path, options, shown, found, notices)
    else:
        numbers = Numbers(
            "cocoId", {coco: [name] for name, coco in coco_of.items()}, frozenset(coco_of.values()), COCO_PREFIX
        )
        more = caption_sources(options.captions, shown, [numbers])
        captions, notices = more.captions, notices + more.notices
    return Study(
        "mindllm",
        "nsd-mindllm",
        "fMRI",
        subjects,
        None,
        captions,
        split,
        zscore="all",
        found=found,
        notices=notices,
    )


def _recorded(
    subject: str,
    file: Path,
    images_of: Mapping[int, Sequence[int]] | None,
    split: dict[str, str],
    coco_of: dict[str, int],
    options: StudyOptions,
    found: list[Found],
    notices: list[str],
) -> Recorded:
    """Fills `split`, `coco_of`, `found` and `notices`."""
    sessions: list[Session] = []
    num_voxels = 0
    with open_hdf5(file) as hdf5:
        for part in (name for name in SPLITS if name != "val" or name in hdf5):
            samples = group_in(file, hdf5, part)
            keys = list(samples)
            ids = [_stimulus(file, samples, key, images_of, coco_of) for key in keys]
            if not keys:
                raise UserError(f"{file}: expected samples in {part}, got none. Download the file again.")
            for name in ids:
                before = split.setdefault(name, part)
                if before != part:
                    raise UserError(
                        f"{file}: expected each image in train or in test, got '{name}' in {before} and in {part}. "
                        "What is tested would have been trained on: leave one out."
                    )
            voxels = dataset_in(file, samples, f"{keys[0]}/{VOXELS}", ndim=1)
            num_voxels = num_voxels or len(voxels)
            for first in range(0, len(keys), PART):
                some = keys[first : first + PART]
                read = partial(_read, file, part, some, num_voxels)
                num_bytes = len(some) * voxels.nbytes
                sessions.append(Session(len(sessions) + 1, ids[first : first + PART], read, num_bytes=num_bytes))
    notices += voxel_notice(subject, num_voxels)
    return Recorded(space_of(subject, num_voxels, options.mask, found, notices), sessions)


def _stimulus(
    file: Path, samples: Any, key: str, images_of: Mapping[int, Sequence[int]] | None, coco_of: dict[str, int]
) -> str:
    """The name of what a sample was shown. Raises UserError for a cocoId that NSD's table does not have once."""
    value = number_in(file, samples, f"{key}/{COCO}")
    sample = f"{samples.name.strip('/')}/{key}"
    coco = int(value) if 0 <= value < 2**31 else -1  # NaN is refused too
    if coco != value:
        raise UserError(f"{file}, {sample}/{COCO}: expected a cocoId, got {value}. Is it of another layout?")
    if images_of is not None and len(images_of.get(coco, ())) != 1:
        raise UserError(
            f"{file}, {sample}: expected the cocoId of one image of NSD, as {TABLE} lists them, got {coco}, of "
            f"{len(images_of.get(coco, ()))}. Does the table belong to another dataset, or does the file hold 73k ids?"
        )
    name = f"coco-{coco:012}" if images_of is None else stimulus_id(images_of[coco][0])
    coco_of[name] = coco
    return name


def _read(file: Path, part: str, keys: Sequence[str], num_voxels: int) -> Float[np.ndarray, "t v"]:
    responses = np.empty((len(keys), num_voxels), np.float32)
    with open_hdf5(file) as hdf5:
        samples = group_in(file, hdf5, part)
        for row, key in zip(responses, keys, strict=True):
            voxels = dataset_in(file, samples, f"{key}/{VOXELS}", ndim=1)
            if len(voxels) != num_voxels:
                raise UserError(
                    f"{file}, {part}/{key}: expected {num_voxels} voxels, as in the first sample, got {len(voxels)}. "
                    "Were samples of two subjects put into one file?"
                )
            row[:] = voxels[()]
    return responses
