"""NIfTI betas and a mask become responses and a space that predictions can be written back to.

Enters: 4-D images (x, y, z, trials), .nii or .nii.gz, one or several in order; a 3-D mask (> 0). Leaves: responses
[trials, voxels], voxels in C order of the mask, and the volume's shape and affine (mm, right-anterior-superior).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.data.readers.arrays import check_not_empty, reading

SUFFIXES = (".nii", ".nii.gz")


class Volume(NamedTuple):
    """Where the voxels of a mask lie: flat C-order positions, mm, and the grid they are on."""

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    voxels: Int[np.ndarray, "v"]
    coordinates_mm: Float[np.ndarray, "v 3"]

    @property
    def geometry(self) -> dict[str, Any]:
        """As BrainSpace keeps it."""
        return {"type": "volume", "shape": list(self.shape), "affine": self.affine.tolist()}


def is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith(SUFFIXES)


def volume_of(mask: Bool[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], order: str = "C") -> Volume:
    """The voxels of a mask, in C order (NumPy, nibabel) or Fortran order (MATLAB's `betas(mask)`)."""
    flat = np.flatnonzero(mask.reshape(-1, order="F" if order == "F" else "C"))
    ijk = np.stack(np.unravel_index(flat, mask.shape, order="F" if order == "F" else "C"), axis=1)
    coordinates = ijk @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = mask.shape
    voxels = np.ravel_multi_index(tuple(ijk.T), mask.shape)
    return Volume((x, y, z), affine, voxels.astype(np.int64), coordinates.astype(np.float32))


def read_mask(path: str, order: str = "C") -> Volume:
    """The voxels of the mask in `path` that are above 0.

    Raises UserError if it is damaged, not 3-D, or empty.
    """
    data, affine = _load(path)
    if data.ndim != 3 or not (data > 0).any():
        raise UserError(
            f"{path}: expected a 3-D mask with voxels above 0, got shape {list(data.shape)} with "
            f"{int((data > 0).sum())} such voxels. Give the mask that the betas are to be read from."
        )
    return volume_of(data > 0, affine, order)


def read_betas(paths: Sequence[str], mask: Volume) -> Float[np.ndarray, "t v"]:
    """The betas of a mask's voxels, of all images one after the other, float32.

    Raises UserError for an image that is damaged, not 4-D, or on another grid than the mask.
    """
    parts = []
    for path in paths:
        data, affine = _load(path)
        if data.ndim != 4:
            raise UserError(
                f"{path}: expected a 4-D image of betas (x, y, z, trials), got shape {list(data.shape)}. "
                "Merge single betas into one image, or give one 4-D image for each session."
            )
        _check_grid(path, data.shape[:3], affine, mask)
        parts.append(np.ascontiguousarray(data.reshape(-1, data.shape[3])[mask.voxels].T))
    return np.concatenate(parts)


def read_roi(path: str, mask: Volume) -> Bool[np.ndarray, "v"]:
    """Which voxels of the mask are above 0 in the ROI image `path`. Raises UserError as `read_betas` does."""
    data, affine = _load(path)
    _check_grid(path, data.shape, affine, mask)
    return data.reshape(-1)[mask.voxels] > 0


def _load(path: str) -> tuple[Shaped[np.ndarray, "..."], Float[np.ndarray, "4 4"]]:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    check_not_empty(Path(path))
    with reading(Path(path), "a NIfTI image"):
        try:
            image: Any = nibabel.load(path)
        except ImageFileError as error:
            raise ValueError(str(error)) from error
        return image.get_fdata(dtype=np.float32, caching="unchanged"), np.asarray(image.affine, dtype=np.float64)


def _check_grid(path: str, shape: Iterable[int], affine: np.ndarray, mask: Volume) -> None:
    shape = tuple(shape)
    if shape != mask.shape or not np.allclose(affine, mask.affine, atol=1e-3):
        raise UserError(
            f"{path}: expected the mask's grid, {list(mask.shape)} with its affine, got {list(shape)}"
            f"{'' if shape != mask.shape else ' with another affine'}. One of them was resampled or comes from another "
            "space: export both in the same one."
        )
