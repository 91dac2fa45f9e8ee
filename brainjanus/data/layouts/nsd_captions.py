"""Captions of NSD's images, one way for all of its layouts: COCO's, joined by cocoId, and further sources.

Enters: NSD's table of images and COCO's annotations, where they are there, and what the user added. Leaves: captions by
source and stimulus, and what there is to say of them.
"""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from brainjanus.core.errors import UserError
from brainjanus.data.captions import COCO_PREFIX, Numbers, caption_sources, coco_captions
from brainjanus.data.dataset import listed
from brainjanus.data.layouts.nsd_ids import NUM_IMAGES, image_of
from brainjanus.data.readers.arrays import check_not_empty, reading
from brainjanus.data.study import Found, StudyOptions

COCO_FILES = ("captions_train2017.json", "captions_val2017.json")
COCO_PLACES = (
    "annotations",
    "coco/annotations",
    "coco",
    "nsddata_stimuli/stimuli/nsd/annotations",
    "nsddata_stimuli/stimuli/nsd",
    "nsddata/experiments/nsd",
    ".",
)


def captions_of_images(
    table: Path | None,
    folders: Sequence[Path],
    options: StudyOptions,
    ids: Collection[str],
    found: list[Found],
    notices: list[str],
    taken: Sequence[str] = (),
) -> dict[str, dict[str, list[str]]]:
    """table: nsd_stim_info_merged.csv; None: it is nowhere. folders: where COCO's annotations may lie. taken: names of
    sources that the layout has itself. Fills `found` and `notices`. Raises UserError for a damaged file."""
    coco = None if table is None else read_stim_info(table)
    missing = () if table is not None else ("nsd_stim_info_merged.csv",)
    found.append(Found("cocoIds of NSD", () if table is None else (table,), missing, required=False))
    captions: dict[str, dict[str, list[str]]] = {}
    numbers = [Numbers("73k id, from 0", {image_of(name): [name] for name in ids}, range(NUM_IMAGES), "nsd[-_:]?")]
    if coco is not None:
        stimuli_of: dict[int, list[str]] = {}
        for name in sorted(ids):
            stimuli_of.setdefault(coco[image_of(name)], []).append(name)
        numbers.append(Numbers("cocoId", stimuli_of, frozenset(coco), COCO_PREFIX))
        if "coco" not in taken:
            captions |= _of_coco(folders, stimuli_of, len(ids), found, notices)
    elif "coco" not in taken:
        notices.append(
            "There are no captions of COCO: they need NSD's nsd_stim_info_merged.csv, which says which image is which, "
            "and captions_{train,val}2017.json (--files stim-info=PATH coco=FOLDER)."
        )
    more = caption_sources(options.captions, ids, numbers, taken=["coco", *taken])
    notices += more.notices
    return captions | more.captions


def _of_coco(
    folders: Sequence[Path],
    stimuli_of: Mapping[int, Sequence[str]],
    num_stimuli: int,
    found: list[Found],
    notices: list[str],
) -> dict[str, dict[str, list[str]]]:
    files = [next((f / name for f in folders if (f / name).is_file()), None) for name in COCO_FILES]
    there = [file for file in files if file is not None]
    absent = [name for name, file in zip(COCO_FILES, files, strict=True) if file is None]
    found.append(Found("captions of COCO", tuple(there), tuple(absent), required=False))
    texts = coco_captions(there, stimuli_of)
    if without := num_stimuli - len(texts):
        why = f"{listed(absent)} {'is' if len(absent) == 1 else 'are'} in none of " if absent else "not in "
        notices.append(
            f"{without} of {num_stimuli} stimuli have no captions of COCO: {why}"
            f"{listed([str(folder) for folder in folders] if absent else [file.name for file in there], 8)}."
        )
    return {"coco": texts} if texts else {}


def read_stim_info(path: Path) -> list[int]:
    """The cocoId of each 73k id, from nsd_stim_info_merged.csv. Raises UserError if it has not each 73k id once."""
    check_not_empty(path)
    coco = [-1] * NUM_IMAGES
    with reading(path, "NSD's table of images"), open(path, newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        columns = next(table, [])
        missing = [name for name in ("nsdId", "cocoId") if name not in columns]
        if missing:
            raise UserError(
                f"{path}: expected the columns nsdId and cocoId, got {listed(columns)}. "
                "Is it another table? NSD has it as nsd_stim_info_merged.csv."
            )
        of_image, of_coco = columns.index("nsdId"), columns.index("cocoId")
        for row in table:
            image = int(row[of_image])
            if not 0 <= image < NUM_IMAGES or coco[image] != -1:
                raise UserError(
                    f"{path}: expected each nsdId from 0 to {NUM_IMAGES - 1} once, got {image}"
                    f"{' again' if 0 <= image < NUM_IMAGES else ''}. "
                    "Was it edited so that it counts from 1? Download it again."
                )
            coco[image] = int(row[of_coco])
    if -1 in coco:
        raise UserError(
            f"{path}: expected each of {NUM_IMAGES} images, got {NUM_IMAGES - coco.count(-1)}, without nsdId "
            f"{coco.index(-1)}. The file was cut short: download it again."
        )
    return coco
