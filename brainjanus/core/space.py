"""BrainSpace: what makes a vector of numbers a brain.

Enters: the sites that were measured in one subject (voxels of a mask, vertices of a surface, sensors x time bins,
neurons), with whatever is known of them: coordinates in mm, ROIs, signal and noise variance, the way back to a
volume, a surface or a table of sensors and times. Leaves: the cortical order that patches are cut along, noise
ceilings, NIfTI images, surface maps, sensors x times.

The cortical order is a Hilbert curve through the coordinates, one hemisphere after the other (Skilling 2004,
"Programming the Hilbert curve"). For sensors x times the curve runs through their places and through time at once, so
that a patch is a few neighbouring sensors for a short while. Without coordinates the given order stands.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from brainjanus.core.errors import UserError

Kind = Literal["voxels", "vertices", "sensors", "neurons"]
HILBERT_BITS = 10  # 1,024 steps along each axis: under 0.2 mm over a human brain
MM_PER_MS = 3.0  # EEG and MEG: what is 1 ms later counts as 3 mm away; 10 ms, 30 mm: one electrode


# V sites of one subject
@dataclass(frozen=True, eq=False)
class BrainSpace:
    """The measured sites of one subject.

    subject: its name, e.g. "subj01". num_sites: V.
    coordinates_mm: where each site lies, or None. rois: name -> mask; ROIs may overlap.
    order: a permutation; `values[order]` is in cortical order.
    signal_variance, noise_variance: per site, of one trial, in squared units of the z-scored response (Allen et al.
    2022), or None when no stimulus was repeated.
    geometry: the way back. {"type": "volume", "shape": [x, y, z], "affine": 4x4} with `index` the flat voxel
    (C order) of each site, or {"type": "surface", "template": "fsaverage5", "left_vertices": N} with `index` the
    vertex, right-hemisphere vertices counted on from N; or {"type": "sensors", "names": S names, "times_sec": T times,
    "mm_per_ms": how far a millisecond counts} with `index` = sensor * T + time; or {"type": "none"} with `index` =
    0..V-1. `of_sensors` makes those of sensors, also for recorded neurons followed over time.
    Raises UserError if an array does not have V rows, if `order` is no permutation, or a site has no sensor.
    """

    subject: str
    num_sites: int
    kind: Kind = "voxels"
    coordinates_mm: Float[np.ndarray, "v 3"] | None = None
    rois: Mapping[str, Bool[np.ndarray, "v"]] = field(default_factory=dict)
    order: Int[np.ndarray, "v"] | None = None
    signal_variance: Float[np.ndarray, "v"] | None = None
    noise_variance: Float[np.ndarray, "v"] | None = None
    geometry: Mapping[str, Any] = field(default_factory=lambda: {"type": "none"})
    index: Int[np.ndarray, "v"] | None = None

    def __post_init__(self) -> None:
        if self.coordinates_mm is not None and not np.isfinite(self.coordinates_mm).all():
            bad = int(np.flatnonzero(~np.isfinite(self.coordinates_mm).all(axis=1))[0])
            raise UserError(
                f"coordinates of {self.subject}: expected finite mm for every site, got NaN or infinity at site {bad}. "
                "Leave the coordinates out or give one for each site."
            )
        arrays = {f"ROI {name}": mask for name, mask in self.rois.items()}
        arrays |= {
            name: getattr(self, name)
            for name in ("coordinates_mm", "order", "signal_variance", "noise_variance", "index")
        }
        for name, array in arrays.items():
            if array is not None and len(array) != self.num_sites:
                raise UserError(
                    f"{name} of {self.subject}: expected one row for each of its {self.num_sites} sites, got "
                    f"{len(array)}. Was it made with another mask? Export it again with the mask of the responses."
                )
        if self.index is None:
            object.__setattr__(self, "index", np.arange(self.num_sites))
        if self.geometry.get("type") == "sensors":
            self._check_sensors()
        if self.order is None:
            object.__setattr__(self, "order", self._curve())
        assert self.order is not None
        if not np.array_equal(np.sort(self.order), np.arange(self.num_sites)):
            raise UserError(
                f"order of {self.subject}: expected each site from 0 to {self.num_sites - 1} once, got others or one "
                "twice. Leave the order out to have it made from the coordinates."
            )

    @classmethod
    def of_sensors(
        cls,
        subject: str,
        names: Sequence[str],
        times_sec: Float[np.ndarray, "t"],
        positions_mm: Float[np.ndarray, "s 3"] | None = None,
        *,
        kind: Kind = "sensors",
        mm_per_ms: float = MM_PER_MS,
    ) -> "BrainSpace":
        """Sensors (or neurons) x time bins: the sites run through all times of the first sensor, then of the second.

        positions_mm: where each sensor is; x to the right, y to the front, z upwards. mm_per_ms: how many mm apart two
        sites count that are a millisecond apart in time; the larger, the shorter and wider a patch.
        """
        geometry = {
            "type": "sensors",
            "names": list(names),
            "times_sec": [round(float(time), 9) for time in times_sec],
            "mm_per_ms": mm_per_ms,
        }
        coordinates = None if positions_mm is None else np.repeat(positions_mm, len(times_sec), axis=0)
        return cls(subject, len(names) * len(times_sec), kind, coordinates_mm=coordinates, geometry=geometry)

    @property
    def points_mm(self) -> Float[np.ndarray, "v d"] | None:
        """Where the sites lie, among which the cortical order goes to neighbours: x, y, z, and time for sensors.

        Distances between them are mm, of which a millisecond counts `mm_per_ms`. None without coordinates.
        """
        if self.coordinates_mm is None or self.geometry.get("type") != "sensors":
            return self.coordinates_mm
        assert self.index is not None
        times = np.array(self.geometry["times_sec"])
        later = (times - times[0])[self.index % len(times)] * 1000 * self.geometry["mm_per_ms"]
        return np.column_stack([self.coordinates_mm, later])

    def _curve(self) -> Int[np.ndarray, "v"]:
        points = self.points_mm
        if points is None:
            return np.arange(self.num_sites)
        if points.shape[1] > 3:  # a scalp has no hemispheres to keep apart
            return np.argsort(hilbert_index(points), kind="stable")
        return cortical_order(points)

    def _check_sensors(self) -> None:
        assert self.index is not None
        names, times = self.geometry["names"], self.geometry["times_sec"]
        if len(set(names)) < len(names) or not names or (np.diff(times) <= 0).any() or not len(times):
            raise UserError(
                f"sensors of {self.subject}: expected names that differ and times that grow, got {len(names)} sensors "
                f"with {len(set(names))} names and {len(times)} times. Give each sensor its name, and times in order."
            )
        if not 0 <= self.index.min() <= self.index.max() < len(names) * len(times):
            raise UserError(
                f"sensors of {self.subject}: expected sites among {len(names)} sensors x {len(times)} times, got "
                f"{self.num_sites} sites up to number {self.index.max()}. Does the table of sensors belong to them?"
            )

    def noise_ceiling(self, num_repeats: int) -> Float[np.ndarray, "v"] | None:
        """The largest correlation that any prediction can reach with a mean over `num_repeats` trials, per site.

        NC = sqrt(s2 / (s2 + n2 / num_repeats)), Allen et al. 2022. None when no stimulus was repeated.
        """
        if self.signal_variance is None or self.noise_variance is None:
            return None
        total = self.signal_variance + self.noise_variance / num_repeats
        return np.sqrt(np.divide(self.signal_variance, total, out=np.zeros_like(total), where=total > 0))

    def to_nifti(self, values: Float[np.ndarray, "v"]) -> Any:
        """A nibabel image of one value per site, NaN elsewhere. Raises UserError for a space without a volume."""
        if self.geometry.get("type") != "volume":
            raise UserError(
                f"{self.subject}: expected a volume to write a NIfTI image, got a space of {self.kind} "
                f"({self.geometry.get('type')}). Prepare it from NIfTI betas and a mask."
            )
        import nibabel

        volume = np.full(int(np.prod(self.geometry["shape"])), np.nan, np.float32)
        volume[self.index] = values
        return nibabel.Nifti1Image(volume.reshape(self.geometry["shape"]), np.asarray(self.geometry["affine"]))

    def to_surface(self, values: Float[np.ndarray, "v"]) -> dict[str, Float[np.ndarray, "n"]]:
        """One value per vertex of each hemisphere, NaN where nothing was measured. Raises UserError off a surface."""
        if self.geometry.get("type") != "surface":
            raise UserError(
                f"{self.subject}: expected a surface, got a space of {self.kind} ({self.geometry.get('type')}). "
                "Use to_nifti() for volumes."
            )
        left = int(self.geometry["left_vertices"])
        whole = np.full(2 * left, np.nan, np.float32)
        whole[self.index] = values
        return {"left": whole[:left], "right": whole[left:]}

    def to_grid(self, values: Float[np.ndarray, "*b v"]) -> Float[np.ndarray, "*b s t"]:
        """Values of sites as [.., sensors, times], NaN where a site was left out. Raises UserError without sensors."""
        sensors, times = self._grid_shape()
        grid = np.full((*values.shape[:-1], sensors * times), np.nan, values.dtype)
        grid[..., self.index] = values
        return grid.reshape(*values.shape[:-1], sensors, times)

    def from_grid(self, grid: Float[np.ndarray, "*b s t"]) -> Float[np.ndarray, "*b v"]:
        """What `to_grid` made a grid of. Raises UserError without sensors, or for a grid of another size."""
        sensors, times = self._grid_shape()
        if grid.shape[-2:] != (sensors, times):
            raise UserError(
                f"grid of {self.subject}: expected [.., {sensors} sensors, {times} times], got {list(grid.shape)}. "
                "Does it belong to another recording, or are its axes swapped?"
            )
        return grid.reshape(*grid.shape[:-2], sensors * times)[..., self.index]

    def _grid_shape(self) -> tuple[int, int]:
        if self.geometry.get("type") != "sensors":
            raise UserError(
                f"{self.subject}: expected sensors x times, got a space of {self.kind} ({self.geometry.get('type')}). "
                "Prepare it from responses [trials, sensors, times], with their sampling_hz."
            )
        return len(self.geometry["names"]), len(self.geometry["times_sec"])

    def save(self, folder: Path) -> None:
        """Write space.json and space.safetensors into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"order": self.order, "index": self.index}
        arrays |= {f"roi.{name}": mask for name, mask in self.rois.items()}
        arrays |= {
            name: getattr(self, name)
            for name in ("coordinates_mm", "signal_variance", "noise_variance")
            if getattr(self, name) is not None
        }
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "space.safetensors")
        facts = {
            "subject": self.subject,
            "num_sites": self.num_sites,
            "kind": self.kind,
            "rois": list(self.rois),
            "geometry": dict(self.geometry),
        }
        (folder / "space.json").write_text(json.dumps(facts, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "BrainSpace":
        """Read what `save` wrote. Raises UserError if a file is missing or damaged."""
        try:
            facts = json.loads((folder / "space.json").read_text())
            arrays: dict[str, Any] = load_file(folder / "space.safetensors")
            rois = {name: arrays.pop(f"roi.{name}").astype(bool) for name in facts.pop("rois")}
            return cls(rois=rois, **facts, **arrays)
        except UserError:
            raise
        except (
            OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
            SafetensorError,
        ) as error:  # fmt: skip
            raise UserError(
                f"{folder}: expected space.json and space.safetensors, got '{error}'. "
                "The folder is damaged: copy it again or run `brainjanus prepare` again."
            ) from error


def cortical_order(coordinates_mm: Float[np.ndarray, "v 3"]) -> Int[np.ndarray, "v"]:
    """A permutation in which neighbours on the cortex are neighbours in the vector; left hemisphere (x < 0) first."""
    right = coordinates_mm[:, 0] >= 0
    position = hilbert_index(coordinates_mm)
    return np.lexsort((position, right))


def hilbert_index(points: Float[np.ndarray, "v d"], bits: int = HILBERT_BITS) -> Int[np.ndarray, "v"]:
    """How far along a Hilbert curve through their bounding cube each point lies.

    Source: Skilling 2004, AIP Conf. Proc. 707, 381: axes to transpose, then the bits interleaved.
    """
    low = points.min(axis=0)
    span = max(float((points.max(axis=0) - low).max()), 1e-9)
    x = ((points - low) / span * (2**bits - 1)).round().astype(np.int64)
    dims = x.shape[1]
    q = 1 << (bits - 1)
    while q > 1:  # undo the rotations, from the coarsest cell to the finest
        for i in range(dims):
            flip = (x[:, i] & q) > 0
            swap = np.where(flip, 0, (x[:, 0] ^ x[:, i]) & (q - 1))
            x[:, 0] = np.where(flip, x[:, 0] ^ (q - 1), x[:, 0] ^ swap)
            x[:, i] ^= swap
        q >>= 1
    for i in range(1, dims):  # Gray code
        x[:, i] ^= x[:, i - 1]
    toggle = np.zeros(len(x), np.int64)
    q = 1 << (bits - 1)
    while q > 1:
        toggle = np.where((x[:, -1] & q) > 0, toggle ^ (q - 1), toggle)
        q >>= 1
    x ^= toggle[:, None]
    index = np.zeros(len(x), np.int64)
    for bit in reversed(range(bits)):
        for i in range(dims):
            index = (index << 1) | ((x[:, i] >> bit) & 1)
    return index
