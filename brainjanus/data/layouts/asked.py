"""What a user asked of a layout, checked the same way by all that use it.

Enters: StudyOptions and what a folder holds. Leaves: subjects, keys, spaces and captions, or one sentence that says
what a layout has no use for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.captions import Numbers, caption_sources
from brainjanus.data.dataset import listed
from brainjanus.data.layouts.nsd import FILES, STIM_INFO, check_coco
from brainjanus.data.layouts.nsd_captions import COCO_PLACES, captions_of_images
from brainjanus.data.layouts.nsd_rois import labels_near, rois_of
from brainjanus.data.readers.arrays import reading
from brainjanus.data.readers.nifti import is_nifti, read_mask
from brainjanus.data.readers.tables import read_json, read_table
from brainjanus.data.study import Found, Recorded, Session, StudyOptions, given_files

RECORDING = "recording.json"  # beside an exported layout: its name and what was recorded
SUBJECT_NAMES = "subjects.tsv"  # beside an exported layout: who each subject is
NAMES = "stimuli.tsv"  # beside an exported layout: which stimulus each number stands for


def refuse_unused(layout: str, options: StudyOptions, uses: Collection[str]) -> None:
    """Raise UserError for an option that a layout has no use for."""
    for name in ("mask", "sessions", "betas", "keys", "files"):
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
        raise UserError(
            f"{path}: expected {files}, got none there. Is it the folder that was downloaded, or one above?"
        )
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


def space_of(
    subject: str,
    num_voxels: int,
    mask: str,
    found: list[Found],
    notices: list[str],
    rois: Mapping[str, Bool[np.ndarray, "v"]] | None = None,
) -> BrainSpace:
    """A space of voxels, with the ROIs that are known of them.

    mask: their mask image ("{subject}" in its path stands for the subject) gives them coordinates, and, in NSD's folder
    roi/, the ROIs that are beside it. Voxels are taken to be in C order, as `betas[mask]` has them in NumPy.
    Fills `found` and `notices`. Raises UserError if the mask has another number of voxels.
    """
    rois = dict(rois or {})
    if not is_nifti(mask):
        if mask not in ("", "nsdgeneral"):
            raise UserError(
                f"--mask {mask}: expected the mask image of the voxels that the files hold (PATH.nii.gz, "
                f"'{{subject}}' in it stands for {subject}), got another name. This layout holds the voxels of one "
                "mask: others cannot be chosen; prepare from raw NSD for that."
            )
        say(
            f"Voxels have no coordinates{'' if rois else ' and no ROIs'}, and patches follow their order: their mask "
            "would give them (NSD's: --mask nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz).",
            notices,
        )
        return BrainSpace(subject, num_voxels, rois=rois)
    file = Path(mask.replace("{subject}", subject))
    volume = read_mask(str(file))
    if len(volume.voxels) != num_voxels:
        raise UserError(
            f"{file}: expected the mask of the {num_voxels} voxels of {subject}, got one with {len(volume.voxels)}. "
            "Give the mask that the files were made with; '{subject}' in its path stands for each subject."
        )
    found.append(Found(f"mask of {subject}", (file,)))
    if file.absolute().parent.name == "roi":
        rois |= rois_of(file.parent, labels_near(file.parent, subject), volume, notices, subject)
        found.append(Found(f"ROIs of {subject}", tuple(sorted(file.parent.glob("*.nii.gz"))), required=False))
    if not rois:
        say("Voxels have no ROIs: their mask lies in no folder roi/ of NSD, with others beside it.", notices)
    return BrainSpace(
        subject,
        num_voxels,
        coordinates_mm=volume.coordinates_mm,
        rois=rois,
        geometry=volume.geometry,
        index=volume.voxels,
    )


def say(notice: str, notices: list[str]) -> None:
    """Once, of all subjects."""
    if notice not in notices:
        notices.append(notice)


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


def recording_of(folder: Path, name: str) -> tuple[str, str]:
    """The name of a dataset, and what was recorded, as an export says them; otherwise `name`, of fMRI."""
    file = folder / RECORDING
    if not file.is_file():
        return name, "fMRI"
    facts = read_json(file)
    if not isinstance(facts.get("name"), str) or not isinstance(facts.get("modality"), str):
        raise UserError(f"{file}: expected a name and a modality, got {listed(facts)}. Export it again.")
    return facts["name"], facts["modality"]


def named_subjects(folder: Path, subjects: Sequence[Recorded]) -> list[Recorded]:
    """The subjects by their own names, where an export says them."""
    file = folder / SUBJECT_NAMES
    if not file.is_file():
        return list(subjects)
    table = read_table(file, ["name", "subject"])
    name_of = dict(zip(table["name"], table["subject"], strict=True))
    if len(set(name_of.values())) < len(table["name"]):
        raise UserError(f"{file}: expected each name and each subject once, got one twice. Export it again.")
    spaces = (replace(one.space, subject=name_of.get(one.space.subject, one.space.subject)) for one in subjects)
    return [replace(one, space=space) for one, space in zip(subjects, spaces, strict=True)]


def given_file(options: StudyOptions, wanted: str) -> Path | None:
    """The path of --files NAME=PATH; None: not given. Raises UserError for another name, or a path of nothing."""
    given = given_files(options, FILES, "this layout")
    check_coco(given)
    return given.get(wanted)


def stim_info(root: Path, options: StudyOptions) -> Path | None:
    """NSD's table of images, where it was given or lies in the folder; None: nowhere."""
    places = [root / STIM_INFO, root / Path(STIM_INFO).name, root / "data" / Path(STIM_INFO).name]
    return given_file(options, "stim-info") or next((file for file in places if file.is_file()), None)


def nsd_captions(
    root: Path,
    options: StudyOptions,
    ids: Collection[str],
    found: list[Found],
    notices: list[str],
    taken: Sequence[str] = (),
) -> dict[str, dict[str, list[str]]]:
    """Captions of images of NSD: COCO's, where these and NSD's table of images are there, and those asked for.

    taken: names of sources that the layout has itself. Fills `found` and `notices`.
    """
    given = given_file(options, "coco")
    folders = [given] if given is not None else [root / place for place in COCO_PLACES]
    return captions_of_images(stim_info(root, options), folders, options, ids, found, notices, taken)


def captions_of(
    root: Path,
    options: StudyOptions,
    ids: Collection[str],
    found: list[Found],
    notices: list[str],
    numbers_of: Mapping[int, str] | None,
    taken: Sequence[str] = (),
) -> dict[str, dict[str, list[str]]]:
    """As `nsd_captions`, or, where numbers stand for other stimuli, the sources that were asked for."""
    if numbers_of is None:
        return nsd_captions(root, options, ids, found, notices, taken)
    refuse_unused("of an export", options, ("mask", "sessions", "betas", "keys"))
    counted = Numbers("number, from 0", {number: [name] for number, name in numbers_of.items()}, frozenset(numbers_of))
    more = caption_sources(options.captions, ids, [counted], taken)
    notices += more.notices
    return more.captions
