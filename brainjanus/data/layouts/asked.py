"""What a user asked of a layout, checked the same way by all that use it.

Enters: StudyOptions and what a folder holds. Leaves: subjects, keys, spaces and captions, or one sentence that says
what a layout has no use for.
"""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, reading
from brainjanus.data.readers.nifti import is_nifti, read_mask
from brainjanus.data.readers.tables import read_captions, read_table
from brainjanus.data.study import Recorded, Session, StudyOptions

NAMES = "stimuli.tsv"  # beside an exported layout: which stimulus each number stands for


def refuse_unused(layout: str, options: StudyOptions, uses: Collection[str]) -> None:
    """Raise UserError for an option that a layout has no use for."""
    for name in ("mask", "sessions", "betas", "keys"):
        if getattr(options, name) and name not in uses:
            raise UserError(
                f"--{name}: expected options that the layout {layout} has a use for ({listed(sorted(uses))}), got "
                f"{getattr(options, name)!r}. Leave it out."
            )


def folder_of(layout: str, path: Path) -> Path:
    """Raises UserError unless `path` is a folder."""
    if not path.is_dir():
        raise UserError(
            f"{path}: expected the folder that holds the files of the layout {layout}, got "
            f"{'a file' if path.exists() else 'none there'}. Correct the path."
        )
    return path


def chosen_subjects(path: Path, there: Iterable[str], asked: Sequence[str], files: str) -> list[str]:
    """The subjects to prepare, sorted. Raises UserError if there are none, or one that was asked for is not there."""
    there = sorted(set(there))
    if not there:
        raise UserError(f"{path}: expected {files}, got none there. Is it the folder that was downloaded, or one above?")
    unknown = [subject for subject in asked if subject not in there]
    if unknown:
        raise UserError(
            f"{path}: expected subjects that are there ({listed(there)}), got '{unknown[0]}'. Name one of these, or "
            "download its files."
        )
    return [subject for subject in there if not asked or subject in asked]


def named_keys(options: StudyOptions, known: Mapping[str, str]) -> dict[str, str]:
    """What `keys` (NAME=KEY) says of the names that a layout knows. Raises UserError for another name."""
    keys: dict[str, str] = {}
    for entry in options.keys:
        name, equals, key = entry.partition("=")
        if not equals or not key or name not in known:
            meanings = ", ".join(f"{name} ({meaning})" for name, meaning in known.items())
            raise UserError(f"--keys: expected NAME=KEY with NAME one of {meanings}, got '{entry}'. Correct it.")
        keys[name] = key
    return keys


def space_of(subject: str, num_voxels: int, mask: str) -> BrainSpace:
    """A space of voxels; with a mask image ("{subject}" in its path stands for the subject), one that has coordinates.

    Voxels are taken to be in C order of the mask, as `betas[mask]` has them in NumPy.
    Raises UserError if the mask has another number of voxels.
    """
    if not is_nifti(mask):
        if mask not in ("", "nsdgeneral"):
            raise UserError(
                f"--mask {mask}: expected the mask image of the voxels that the files hold (PATH.nii.gz, "
                f"'{{subject}}' in it stands for {subject}), got another name. This layout holds the voxels of one mask: "
                "others cannot be chosen; prepare from raw NSD for that."
            )
        return BrainSpace(subject, num_voxels)
    file = mask.replace("{subject}", subject)
    volume = read_mask(file)
    if len(volume.voxels) != num_voxels:
        raise UserError(
            f"{file}: expected the mask of the {num_voxels} voxels of {subject}, got one with {len(volume.voxels)}. "
            "Give the mask that the files were made with; '{subject}' in its path stands for each subject."
        )
    return BrainSpace(
        subject,
        num_voxels,
        coordinates_mm=volume.coordinates_mm,
        geometry=volume.geometry,
        index=volume.voxels,
    )


def first_sessions(recorded: Recorded, num_sessions: int) -> Recorded:
    """The sessions with the lowest numbers, at most so many; 0: all."""
    numbers = sorted({session.number for session in recorded.sessions})
    if not num_sessions or num_sessions >= len(numbers):
        return recorded
    kept: list[Session] = [one for one in recorded.sessions if one.number in numbers[:num_sessions]]
    return Recorded(recorded.space, kept)


def shown_in(subjects: Iterable[Recorded]) -> set[str]:
    """The stimuli of all trials."""
    return {name for subject in subjects for session in subject.sessions for name in session.stimulus_id}


def named_numbers(folder: Path) -> dict[int, str] | None:
    """The stimulus that each number stands for, where an export says so; None: they are 73k ids of NSD."""
    file = folder / NAMES
    if not file.is_file():
        return None
    table = read_table(file, ["number", "stimulus_id"])
    with reading(file, "whole numbers"):
        names = {int(number): name for number, name in zip(table["number"], table["stimulus_id"], strict=True)}
    if len(set(names.values())) < len(table["number"]):
        raise UserError(f"{file}: expected each number and each stimulus once, got one twice. Export it again.")
    return names


def coco_ids(file: Path) -> dict[int, int]:
    """COCO id -> 73k id (from 0) of NSD's nsd_stim_info_merged.csv. Raises UserError for another file."""
    check_not_empty(file)
    with reading(file, "nsd_stim_info_merged.csv of NSD"), open(file, newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
        if not rows or not {"cocoId", "nsdId"} <= rows[0].keys():
            raise ValueError(f"a table of {listed(rows[0] if rows else ())}")
        table = {int(row["cocoId"]): int(row["nsdId"]) for row in rows}
        if len(table) < len(rows):
            raise ValueError("the same cocoId in two rows")
    return table


def more_captions(options: StudyOptions, ids: Collection[str], coco_of: Mapping[str, int]) -> dict[str, dict]:
    """The further sources of captions that were asked for (NAME=FILE.json), of these stimuli.

    coco_of: the COCO id of each stimulus, by which a file may name it too, as far as it is known.
    """
    called = {str(number): name for name, number in coco_of.items()} | {name: name for name in ids}
    sources: dict[str, dict] = {}
    for entry in options.captions:
        source, equals, file = entry.partition("=")
        if not equals or not source or source in sources:
            raise UserError(f"--captions: expected NAME=FILE.json, each name once, got '{entry}'. Name the source.")
        texts = read_captions(Path(file))
        found = {called[name]: list(captions) for name, captions in texts.items() if called.get(name) in ids}
        if not found:
            raise UserError(
                f"{file}: expected captions by stimulus id ({listed(sorted(ids), 3)}) or cocoId, got none of them "
                f"({listed(texts, 3)}). Does it belong to another dataset?"
            )
        sources[source] = found
    return sources
