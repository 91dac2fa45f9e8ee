"""NIfTI betas and a mask become responses and a space that predictions can be written back to.

Enters: 4-D images (x, y, z, trials), .nii or .nii.gz, one or several in order; a 3-D mask (> 0). Leaves: responses
[trials, voxels], voxels in C order of the mask, and the volume's shape and affine (mm, right-anterior-superior).
A large image is read one volume after the other, of which only the mask's voxels are kept (`stream_betas`).
"""

import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.data.readers.arrays import check_growth, check_not_empty, reading

SUFFIXES = (".nii", ".nii.gz")
_BLOCK = 1 << 20
_SMALLEST = 1100  # deflate makes no more than 1,032 bytes of one
_MOST_VOXELS = 1 << 27  # of one volume: a head at 0.4 mm


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


def restricted(volume: Volume, voxels: Int[np.ndarray, "n"]) -> Volume:
    """The volume with these voxels (flat, C order) instead of its own."""
    mask = np.zeros(volume.shape, bool)
    mask.reshape(-1)[voxels] = True
    return volume_of(mask, volume.affine)


def read_mask(path: str, order: str = "C") -> Volume:
    """The voxels of the mask in `path` that are above 0.

    Raises UserError if it is damaged, not 3-D, or empty.
    """
    data, affine = _load(path, _MOST_VOXELS)
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


def on_grid(path: str, shape: Sequence[int], affine: Float[np.ndarray, "4 4"]) -> bool:
    """Whether an image has this shape, in its first three axes, and affine. Raises UserError if it is damaged."""
    image = _image(path)
    return tuple(image.shape[:3]) == tuple(shape[:3]) and np.allclose(image.affine, affine, atol=1e-3)


def grid_of(path: str) -> tuple[tuple[int, ...], Float[np.ndarray, "4 4"]]:
    """The shape and affine of an image, from its header. Raises UserError if it is damaged."""
    image = _image(path)
    return tuple(image.shape), np.asarray(image.affine, dtype=np.float64)


def betas_shape(path: str, mask: Volume, same_affine: bool = True) -> tuple[int, int, int, int]:
    """The shape of an image of betas, from its header. Raises UserError as `read_betas` does."""
    return _proxy(path, mask, same_affine).shape


def stream_betas(path: str, mask: Volume, same_affine: bool = True) -> Float[np.ndarray, "t v"]:
    """The betas of a mask's voxels, float32; of the image, one volume at a time is in memory.

    same_affine: whether the image has to lie where the mask does, or only to have its shape.
    Raises UserError as `read_betas` does, also for an image that ends too early.
    """
    proxy = _proxy(path, mask, same_affine)
    where = _fortran(mask)
    num_trials, num_bytes = proxy.shape[3], int(np.prod(proxy.shape[:3])) * proxy.dtype.itemsize
    betas = np.empty((num_trials, len(where)), np.float32)
    with reading(Path(path), "a whole NIfTI image"), open(path, "rb") as file:
        content = _Inflated(file) if path.lower().endswith(".gz") else _Plain(file)
        content.read(proxy.offset)
        for trial in range(num_trials):
            volume = np.frombuffer(content.read(num_bytes), proxy.dtype)[where]
            betas[trial] = volume if proxy.slope == 1 and proxy.inter == 0 else volume * proxy.slope + proxy.inter
        content.finish()
    return betas


class _Plain:
    """A file, of which all bytes that are asked for must be there."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, num: int) -> bytes:
        data = self.file.read(num)
        if len(data) < num:
            raise EOFError(f"an end {num - len(data)} bytes too early")
        return data

    def finish(self) -> None:
        """What follows the last volume does not matter."""


class _Inflated:
    """The same of a gzip file, in blocks that are larger than those of the standard library."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.member = zlib.decompressobj(wbits=31)
        self.waiting = b""

    def read(self, num: int) -> bytes:
        parts, missing = [], num
        while missing:
            part = self._some(missing)
            if not part:
                raise EOFError(f"an end {missing} bytes too early")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end of the member, where its checksum is compared."""
        while self._some(_BLOCK):
            pass
        if not self.member.eof:
            raise EOFError("no end of the gzip file")

    def _some(self, most: int) -> bytes:
        """At least one byte, unless nothing is left."""
        while True:
            if self.member.eof:
                self.waiting = self.member.unused_data or self.file.read(_BLOCK)
                if not self.waiting.strip(b"\0"):
                    return b""
                self.member = zlib.decompressobj(wbits=31)
            data = self.waiting or self.file.read(_BLOCK)
            part = self.member.decompress(data, most)
            self.waiting = self.member.unconsumed_tail
            if part or (not data and not self.member.eof):
                return part


def _proxy(path: str, mask: Volume, same_affine: bool) -> Any:
    """nibabel's view of a 4-D image on the mask's grid, of which nothing but the header is read."""
    image = _image(path)
    proxy = image.dataobj
    if len(proxy.shape) != 4:
        raise UserError(
            f"{path}: expected a 4-D image of betas (x, y, z, trials), got shape {list(proxy.shape)}. "
            "Merge single betas into one image, or give one 4-D image for each session."
        )
    _check_grid(path, proxy.shape[:3], np.asarray(image.affine) if same_affine else mask.affine, mask)
    return proxy


def _fortran(mask: Volume) -> Int[np.ndarray, "v"]:
    """Where the voxels of a mask are in a volume as NIfTI stores it, x running fastest."""
    return np.ravel_multi_index(np.unravel_index(mask.voxels, mask.shape), mask.shape, order="F")


def read_labels(path: str, mask: Volume, same_affine: bool = True) -> Float[np.ndarray, "v"]:
    """The value of each of the mask's voxels in the 3-D image `path`. Raises UserError as `read_betas` does."""
    data, affine = _load(path, _MOST_VOXELS)
    _check_grid(path, data.shape, affine if same_affine else mask.affine, mask)
    return data.reshape(-1)[mask.voxels]


def read_roi(path: str, mask: Volume) -> Bool[np.ndarray, "v"]:
    """Which voxels of the mask are above 0 in the ROI image `path`. Raises UserError as `read_betas` does."""
    data, affine = _load(path, _MOST_VOXELS)
    _check_grid(path, data.shape, affine, mask)
    return data.reshape(-1)[mask.voxels] > 0


def _load(path: str, most: int | None = None) -> tuple[Shaped[np.ndarray, "..."], Float[np.ndarray, "4 4"]]:
    image = _image(path)
    if most is not None and math.prod(int(n) for n in image.shape) > most:
        raise UserError(
            f"{path}: expected a volume of at most {most} voxels, got {list(image.shape)}. "
            "Is it of betas instead of a mask, or damaged? Give another."
        )
    with reading(Path(path), "a NIfTI image"):
        return image.get_fdata(dtype=np.float32, caching="unchanged"), np.asarray(image.affine, dtype=np.float64)


def _image(path: str) -> Any:
    image = load_image(Path(path), "Nifti1Image", "a NIfTI image")
    declared = math.prod(int(n) for n in image.shape) * image.dataobj.dtype.itemsize
    there = os.path.getsize(path)
    if declared > there * (_SMALLEST if path.lower().endswith(".gz") else 1):
        raise UserError(
            f"{path}: expected the {declared} bytes that its header declares, got a file of {there}. "
            "The file is truncated or of another kind: copy or export it again."
        )
    check_growth(Path(path), "an image", declared, there)
    return image


def load_image(path: Path, kind: str, expected: str) -> Any:
    """nibabel's image, of one of its classes (the suffix does not say it all: CIFTI is .nii too).

    Raises UserError, that `expected` was expected, for a file that is damaged or of another class.
    """
    import nibabel

    check_not_empty(path)
    with reading(path, expected):
        try:
            image: Any = nibabel.load(path)
        except Exception as error:  # of damaged headers and XML it raises whatever comes
            raise ValueError(str(error)) from error
        if not isinstance(image, getattr(nibabel, kind)):
            raise ValueError(f"a {type(image).__name__}")
        return image


def _check_grid(path: str, shape: Iterable[int], affine: np.ndarray, mask: Volume) -> None:
    shape = tuple(shape)
    if shape != mask.shape or not np.allclose(affine, mask.affine, atol=1e-3):
        raise UserError(
            f"{path}: expected the mask's grid, {list(mask.shape)} with its affine, got {list(shape)}"
            f"{'' if shape != mask.shape else ' with another affine'}. One of them was resampled or comes from another "
            "space: export both in the same one."
        )
