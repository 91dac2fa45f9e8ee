"""NSD's ROI volumes: which voxels the name of a mask means, and which ROIs voxels belong to.

Enters: nsddata/ppdata/subjXX/func1pt8mm/roi/*.nii.gz, whose values are labels (0 and below: none), and the tables of
their names, nsddata/freesurfer/{subjXX,fsaverage}/label/ATLAS.mgz.ctab. Leaves: a Volume, and ROIs by name.

Regions that were mapped in the subject (prf-, floc-) go by their label ("V1v", "FFA-1"), those of an atlas by both
names ("Kastner2015.V1v"), a volume with one label by its own ("nsdgeneral"), labels without a name by their number
("prf-visualrois.2"). A mask is called in the same way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import reading
from brainjanus.data.readers.nifti import Volume, is_nifti, read_labels, read_mask, restricted

MASK = "nsdgeneral"
SUFFIX = ".nii.gz"


class Mask(NamedTuple):
    """The voxels that are read, and the volumes that say so."""

    volume: Volume
    files: tuple[Path, ...]


def find_mask(folder: Path, labels: Sequence[Path], subject: str, asked: str) -> Mask:
    """The voxels that are above 0 in a ROI volume ("nsdgeneral"), in one beside the ROIs ("brainmask") or at a path, or
    that have a label ("V1v", "prf-visualrois.V1v"); or those of several of these ("V1v+V1d").

    folder: func1pt8mm. labels: folders with tables of names. asked: "{subject}" in it stands for the subject.
    Raises UserError for what is none of these, with what there is.
    """
    whole = asked.replace("{subject}", subject)
    names = [whole] if Path(whole).is_file() else whole.split("+")
    parts = [_one(folder, labels, subject, name) for name in names]
    volume = parts[0].volume
    for other in parts[1:]:
        if other.volume.shape != volume.shape:
            raise UserError(
                f"{other.files[0]}: expected the grid of {parts[0].files[0].name}, {list(volume.shape)}, got "
                f"{list(other.volume.shape)}. Join masks of one grid."
            )
        volume = restricted(volume, np.union1d(volume.voxels, other.volume.voxels))
    return Mask(volume, tuple(dict.fromkeys(file for part in parts for file in part.files)))


def _one(folder: Path, labels: Sequence[Path], subject: str, name: str) -> Mask:
    for file in (folder / "roi" / f"{name}{SUFFIX}", folder / f"{name}{SUFFIX}", Path(name)):
        if file.is_file():
            return Mask(read_mask(str(file)), (file,))
    atlases = _atlases(folder / "roi")
    of_atlas = {atlas: _label_names(labels, atlas) for atlas in atlases}
    for atlas, names in of_atlas.items():
        mapped = atlas.startswith(("prf-", "floc-"))
        for value, label in names.items():
            if name == f"{atlas}.{label}" or (mapped and name == label):
                return _labelled(atlases[atlas], value, subject, name)
    atlas, _, number = name.rpartition(".")
    if atlas in atlases and number.isdecimal():
        return _labelled(atlases[atlas], int(number), subject, name)
    if is_nifti(name):
        raise UserError(f"mask of {subject}: expected a file at {name}, got none there. Correct --mask.")
    if name == MASK:
        raise UserError(
            f"mask of {subject}: expected the volume {folder / 'roi' / f'{MASK}{SUFFIX}'}, got none there. Download "
            f"it, or name another with --mask ({listed(atlases, 12)})."
        )
    bare = [label for atlas, names in of_atlas.items() if atlas[:4] in ("prf-", "floc") for label in names.values()]
    raise UserError(
        f"mask of {subject}: expected a volume in {folder / 'roi'} ({listed(atlases, 12)}), a label of one of them "
        f"({listed(dict.fromkeys(bare), 24)}), several with '+' between them, or a path, got '{name}'. Correct --mask."
    )


def _labelled(file: Path, value: int, subject: str, name: str) -> Mask:
    whole = read_mask(str(file))
    voxels = whole.voxels[read_labels(str(file), whole) == value]
    if not len(voxels):
        raise UserError(
            f"mask of {subject}: expected voxels with the label {value} ('{name}') in {file}, got none. Not every "
            "region was found in every subject: name another with --mask, or leave this subject out."
        )
    return Mask(restricted(whole, voxels), (file,))


def rois_of(
    folder: Path, labels: Sequence[Path], volume: Volume, notices: list[str], subject: str
) -> dict[str, Bool[np.ndarray, "v"]]:
    """A ROI for each label in the volumes of `folder` that any voxel, but not every voxel, of `volume` has.

    Of lh.X, rh.X and X only X is read. Fills `notices`.
    """
    rois: dict[str, np.ndarray] = {}
    unnamed = []
    atlases = _atlases(folder)
    for atlas, file in atlases.items():
        if atlas.startswith(("lh.", "rh.")) and atlas[3:] in atlases:
            continue
        values = read_labels(str(file), volume, same_affine=False)
        present = np.unique(values[values > 0])
        if (present != present.round()).any():
            notices.append(f"{atlas} of {subject} is no ROI: it has values between whole numbers. It was left out.")
            continue
        names = _label_names(labels, atlas)
        if not names and len(present) > 1:
            unnamed.append(atlas)
        for value in present.astype(int).tolist():
            label = names.get(value, atlas if len(present) == 1 and not names else str(value))
            bare = label == atlas or (atlas.startswith(("prf-", "floc-")) and value in names and label not in rois)
            rois[label if bare else f"{atlas}.{label}"] = values == value
    if unnamed:
        where = (labels[0] if labels else Path("nsddata/freesurfer") / subject / "label") / f"{unnamed[0]}.mgz.ctab"
        notices.append(
            f"ROIs of {subject} in {listed(unnamed)} go by the number of their label: their names would be in {where}."
        )
    return {name: mask for name, mask in rois.items() if not mask.all()}


def labels_near(folder: Path, subject: str) -> list[Path]:
    """The folders with tables of labels that belong to a folder of ROIs: freesurfer/, beside one that it lies in."""
    for place in folder.absolute().parents:
        found = [place / "freesurfer" / who / "label" for who in (subject, "fsaverage")]
        if any(labels.is_dir() for labels in found):
            return found
    return []


def _atlases(folder: Path) -> Mapping[str, Path]:
    """The volumes by name, those of both hemispheres before those of one."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: (file.name.startswith(("lh.", "rh.")), file.name))
    return {file.name.removesuffix(SUFFIX): file for file in files}


def _label_names(folders: Sequence[Path], atlas: str) -> dict[int, str]:
    """The names of an atlas's labels above 0, from "1 V1v" in each line of ATLAS.mgz.ctab; {} without such a file."""
    bare = atlas.removeprefix("lh.").removeprefix("rh.")
    for file in (folder / f"{bare}.mgz.ctab" for folder in folders):
        if not file.is_file():
            continue
        with reading(file, "a table of labels"):
            cells = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        return {int(row[0]): row[1] for row in cells if len(row) > 1 and row[0].isdecimal() and int(row[0]) > 0}
    return {}
