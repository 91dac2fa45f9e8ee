"""Where the sites of BIDS derivatives lie: voxels of a mask, vertices of both hemispheres, grayordinates of the cortex.

Enters: the files of one subject's betas, and what lies beside them: masks, segmentations, labels, surfaces. Leaves: the
space, with its ROIs, and how betas are read from there.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import MOST_GROWTH, SMALL, check_growth, check_not_empty, reading
from brainjanus.data.readers.nifti import (
    Volume,
    betas_shape,
    grid_of,
    load_image,
    on_grid,
    read_labels,
    read_mask,
    restricted,
    stream_betas,
)
from brainjanus.data.readers.tables import read_table, whole_numbers
from brainjanus.data.study import Found, StudyOptions

VOLUMES, SURFACES, CIFTI = (".nii.gz", ".nii"), (".func.gii",), (".dscalar.nii", ".dtseries.nii")
TEMPLATES = {10_242: "fsaverage5", 40_962: "fsaverage6", 163_842: "fsaverage", 32_492: "fsLR"}  # by vertices
_BLOCK = 1 << 20
_CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


class Name(NamedTuple):
    """A file of BIDS: "sub-01_task-x_betas.nii.gz"."""

    path: Path
    entities: dict[str, str]
    suffix: str
    extension: str

    @classmethod
    def of(cls, path: Path) -> "Name":
        stem, dot, extension = path.name.partition(".")
        *pairs, last = stem.split("_")
        parts = [part.partition("-") for part in (*pairs, last)]
        entities = {key: value for key, dash, value in parts if dash}
        return cls(path, entities, "" if "-" in last else last, dot + extension)

    def has_betas(self) -> bool:
        named = self.suffix in ("betas", "beta") or self.entities.get("stat") in ("effect", "beta")
        named |= "beta" in self.entities.get("desc", "").lower()
        return named and self.suffix != "mask" and self.extension in (*VOLUMES, *SURFACES, *CIFTI)


class Part(NamedTuple):
    """Betas that were estimated together: one file, or one for each hemisphere (left, right).

    left_out: rows of the events that are no trials."""

    files: tuple[Name, ...]
    ids: list[str]
    run: Int[np.ndarray, "t"]
    split: list[str] | None
    left_out: int


class Placed(NamedTuple):
    """Where a subject's sites lie, and how a part is read from there."""

    space: BrainSpace
    read: Callable[[Part], Float[np.ndarray, "t v"]]


class Context(NamedTuple):
    """What is the same for all subjects; what is found and is to be said is added to the lists."""

    root: Path
    raw: tuple[Path, ...]
    options: StudyOptions
    files: Mapping[str, Path]
    found: list[Found]
    notices: list[str]


def place_sites(context: Context, subject: str, parts: Sequence[Part]) -> Placed:
    """Where one subject's sites lie. Raises UserError without a mask, and for files that do not fit each other."""
    kind = parts[0].files[0].extension
    if kind in SURFACES:
        return _on_surface(context, subject, parts)
    return _on_cifti(context, subject, parts) if kind in CIFTI else _in_volume(context, subject, parts)


def check_count(part: Part, num_maps: int) -> None:
    if num_maps != len(part.ids):
        raise UserError(
            f"{part.files[0].path}: expected a map for each of the {len(part.ids)} trials of its events, got "
            f"{num_maps}. Do the events list rows that were not modelled (mark them n/a, or take them out), or is it a "
            "file of conditions instead of single trials?"
        )


# ---- volumes


def _in_volume(context: Context, subject: str, parts: Sequence[Part]) -> Placed:
    betas = parts[0].files[0]
    candidates = [Name.of(file) for file in sorted((context.root / subject).rglob("*")) if file.is_file()]
    near = [
        name
        for name in candidates
        if name.extension in VOLUMES and name.entities.get("space") == betas.entities.get("space")
    ]
    labelled = [name for name in near if name.suffix == "dseg" or (name.suffix == "mask" and "label" in name.entities)]
    volume, mask = _mask(context, subject, betas, near, labelled)
    for part in parts:
        check_count(part, betas_shape(str(part.files[0].path), volume)[3])
    rois: dict[str, np.ndarray] = {}
    elsewhere = []
    for name in labelled:
        if not on_grid(str(name.path), volume.shape, volume.affine):
            elsewhere.append(name.path.name)
        elif name.path not in mask or name.suffix == "dseg":
            _add_rois(rois, name, read_labels(str(name.path), volume), _names(context, name))
    if elsewhere:
        context.notices.append(
            f"ROIs of {subject} on another grid than the betas were left out: {listed(elsewhere, 4)}. "
            "Resample them (nearest neighbour) to have them."
        )
    context.found.append(Found(f"mask of {subject}", tuple(mask)))
    context.found.append(Found(f"ROIs of {subject}", tuple(name.path for name in labelled), required=False))
    space = BrainSpace(
        subject,
        len(volume.voxels),
        coordinates_mm=volume.coordinates_mm,
        rois=rois,
        geometry=volume.geometry,
        index=volume.voxels,
    )
    return Placed(space, lambda part: stream_betas(str(part.files[0].path), volume))


def _mask(
    context: Context, subject: str, betas: Name, near: Sequence[Name], labelled: Sequence[Name]
) -> tuple[Volume, list[Path]]:
    """The voxels that are read: of the mask that was asked for, or that all masks of the subject have."""
    wanted = context.options.mask.replace("{subject}", subject)
    if wanted and Path(wanted).is_file():
        return read_mask(wanted), [Path(wanted)]
    if wanted:
        for name in labelled:
            labels = _names(context, name)
            if name.suffix == "mask" and name.entities["label"] == wanted:
                return read_mask(str(name.path)), [name.path]
            value = next((value for value, label in labels.items() if label == wanted), None)
            if value is not None:
                whole = read_mask(str(name.path))
                chosen = whole.voxels[read_labels(str(name.path), whole) == value]
                if len(chosen):
                    return restricted(whole, chosen), [name.path]
        there = {n.entities["label"] for n in labelled if n.suffix == "mask"}
        there.update(label for n in labelled for label in _names(context, n).values())
        raise UserError(
            f"mask of {subject}: expected a path or the name of a ROI ({listed(sorted(there), 12)}), got '{wanted}'. "
            "Correct --mask; a path may hold {subject}."
        )
    masks = [name for name in near if name.suffix == "mask" and "label" not in name.entities]
    masks = [name for name in masks if name.entities.get("desc") == "brain"] or masks
    shape, affine = grid_of(str(betas.path))
    others = [name.path.name for name in masks]
    masks = [name for name in masks if on_grid(str(name.path), shape, affine)]
    if not masks:
        raise UserError(
            f"mask of {subject}: expected {subject}_*_mask.nii.gz in the space and on the grid of {betas.path.name} "
            f"{list(shape[:3])}, got {f'others ({listed(others, 3)})' if others else 'none'}. "
            "Give --mask, a path (it may hold {subject}) or the name of a ROI."
        )
    volumes = [read_mask(str(name.path)) for name in masks]
    voxels = volumes[0].voxels
    for other in volumes[1:]:
        voxels = np.intersect1d(voxels, other.voxels)
    if not len(voxels):
        raise UserError(
            f"mask of {subject}: expected voxels that all of {listed((name.path.name for name in masks), 4)} have, got "
            "none. Say with --mask which of them is meant."
        )
    if len(masks) > 1:
        context.notices.append(f"{subject}: {len(voxels)} voxels are in all of its {len(masks)} masks; these are read.")
    return restricted(volumes[0], voxels), [name.path for name in masks]


def _names(context: Context, name: Name) -> dict[int, str]:
    """The names of a segmentation's labels: of the TSV beside it, or of one at the top whose entities it has."""
    if name.suffix != "dseg":
        return {}
    stem = name.path.name.partition(".")[0]
    tables = [name.path.with_name(f"{stem}.tsv")]
    for file in sorted({file for folder in context.raw for file in folder.glob("*dseg.tsv")}):
        if Name.of(file).entities.items() <= name.entities.items():
            tables.append(file)
    for path in tables:
        if path.is_file():
            table = read_table(path, ["index", "name"])
            values = whole_numbers(path, "index", table["index"]).tolist()
            return {value: label for value, label in zip(values, table["name"], strict=True) if value > 0}
    return {}


def _add_rois(
    rois: dict[str, Bool[np.ndarray, "v"]], name: Name, values: Shaped[np.ndarray, "v"], labels: Mapping[int, str]
) -> None:
    """Named by label, after the atlas or segmentation if the file names one, and the hemisphere."""
    hemisphere = {"L": "lh.", "R": "rh."}.get(name.entities.get("hemi", ""), "")
    if name.suffix == "mask":
        rois[hemisphere + name.entities["label"]] = values > 0
        return
    atlas = next((f"{name.entities[key]}." for key in ("atlas", "seg") if key in name.entities), "")
    for value in np.unique(values[values > 0]).astype(int).tolist():
        rois[f"{hemisphere}{atlas}{labels.get(value, value)}"] = values == value


# ---- surfaces


def _on_surface(context: Context, subject: str, parts: Sequence[Part]) -> Placed:
    sizes = [len(_gifti(name.path)[0]) for name in parts[0].files]
    vertices = [np.arange(size) for size in sizes]
    return _surface(context, subject, parts[0].files[0], sizes, vertices, partial(_read_gifti, sizes))


def _on_cifti(context: Context, subject: str, parts: Sequence[Part]) -> Placed:
    name = parts[0].files[0]
    _, vertices, sizes = _grayordinates(name.path)
    others = _cifti(name.path).shape[1] - sum(len(part) for part in vertices)
    if others:
        context.notices.append(f"{subject}: {others} grayordinates below the cortex were left out: vertices are read.")

    def read(part: Part) -> Float[np.ndarray, "t v"]:
        return _read_cifti(part, vertices)

    return _surface(context, subject, name, sizes, vertices, read)


def _surface(
    context: Context,
    subject: str,
    name: Name,
    sizes: Sequence[int],
    vertices: Sequence[Int[np.ndarray, "_"]],
    read: Callable[[Part], Float[np.ndarray, "t v"]],
) -> Placed:
    """Sites are vertices, of the left hemisphere first; those of the right count on from `left_vertices`."""
    left = max(sizes)  # of a native surface the right hemisphere may have more
    index = np.concatenate([vertices[0], vertices[1] + left])
    number = np.concatenate([vertices[0], vertices[1] + sizes[0]])  # among the vertices of both
    space_name = name.entities.get("space", "")
    known = TEMPLATES.get(sizes[0]) if sizes[0] == sizes[1] else None
    template = known if known and space_name in ("", "fsaverage", "fsLR", known) else space_name or "native"
    rois = {roi: values[number] for roi, values in _surface_rois(context, subject, sizes).items()}
    coordinates = _coordinates(context, subject, name, sizes)
    wanted = context.options.mask
    if wanted and wanted not in rois:
        raise UserError(
            f"mask of {subject}: expected the name of a ROI ({listed(sorted(rois), 12)}), got '{wanted}'. "
            "On surfaces --mask names a ROI of the .label.gii files."
        )
    keep = rois[wanted] if wanted else np.ones(len(index), bool)
    space = BrainSpace(
        subject,
        int(keep.sum()),
        "vertices",
        coordinates_mm=None if coordinates is None else coordinates[number][keep],
        rois={roi: values[keep] for roi, values in rois.items() if roi != wanted and values[keep].any()},
        geometry={"type": "surface", "template": template, "left_vertices": left},
        index=index[keep],
    )
    return Placed(space, lambda part: _kept(part, read(part), keep))


def _kept(part: Part, betas: Float[np.ndarray, "t n"], keep: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "t v"]:
    if betas.shape[1] != len(keep):
        raise UserError(
            f"{part.files[0].path}: expected {len(keep)} vertices, as the first file of the subject has, got "
            f"{betas.shape[1]}. Are they on different surfaces? Resample them to one."
        )
    return betas if keep.all() else betas[:, keep]


def _check_gifti(path: Path) -> None:
    """Before it is parsed, which opens any file that it names, and inflates all of its numbers."""
    check_not_empty(path)
    with reading(path, "a GIfTI file"):
        text = path.read_bytes()
        if b"\0" in text or re.search(rb"ExternalFileName\s*=\s*[\"'][^\"']", text):
            raise UserError(
                f"{path}: expected the numbers in the file itself, got one that refers to other files. "
                "Export it as GZipBase64Binary."
            )
        for data in re.findall(rb"<Data[^>]*>([^<]+)<", text):
            num_bytes = 0
            with suppress(binascii.Error, zlib.error):  # of numbers that are not compressed
                inflate, rest = zlib.decompressobj(), base64.b64decode(data)
                while rest and num_bytes <= max(SMALL, MOST_GROWTH * len(data)):
                    num_bytes += len(inflate.decompress(rest, _BLOCK))
                    rest = inflate.unconsumed_tail
            check_growth(path, "an array", num_bytes, len(data))


def _load_gifti(path: Path) -> Any:
    _check_gifti(path)
    image = load_image(path, "GiftiImage", "a GIfTI file")
    if not image.darrays:
        raise UserError(f"{path}: expected a GIfTI file with data, got none. Export it again.")
    return image


def _gifti(path: Path) -> Sequence[Float[np.ndarray, "n"]]:
    """The maps of one hemisphere."""
    arrays = [np.asarray(array.data) for array in _load_gifti(path).darrays]
    if len(arrays) == 1 and arrays[0].ndim == 2:
        return list(arrays[0].T)
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
        raise UserError(
            f"{path}: expected arrays of one value a vertex, got {listed({str(list(a.shape)) for a in arrays}, 3)}. "
            "Export one array for each trial."
        )
    return arrays


def _read_gifti(sizes: Sequence[int], part: Part) -> Float[np.ndarray, "t n"]:
    """Both hemispheres, one after the other, into one array; a file is let go before the next."""
    betas = np.empty((len(part.ids), sum(sizes)), np.float32)
    start = 0
    for name, size in zip(part.files, sizes, strict=True):
        maps = _gifti(name.path)
        if not start:
            check_count(part, len(maps))
        if len(maps) != len(betas):
            raise UserError(
                f"{name.path}: expected {len(betas)} maps, as the left hemisphere has, got {len(maps)}. "
                "Export both with the same trials."
            )
        if len(maps[0]) != size:
            raise UserError(
                f"{name.path}: expected {size} vertices, as the first file of the subject has, got {len(maps[0])}. Are "
                "they on different surfaces? Resample them to one."
            )
        for row, values in zip(betas, maps, strict=True):
            row[start : start + size] = values
        start += size
        del maps
    return betas


def _cifti(path: Path) -> Any:
    image = load_image(path, "Cifti2Image", "a CIFTI file")
    if image.ndim != 2:
        raise UserError(f"{path}: expected maps x grayordinates, got {image.ndim} axes. Export it as dscalar.")
    return image


def _grayordinates(path: Path) -> tuple[list[slice], list[Int[np.ndarray, "_"]], list[int]]:
    """Of the left and the right cortex: their columns, vertices, and the number of vertices of the whole surface."""
    from nibabel.cifti2 import BrainModelAxis

    with reading(path, "a CIFTI file"):
        axis = _cifti(path).header.get_axis(1)
    models = {}
    if isinstance(axis, BrainModelAxis):
        models = {name: (columns, model) for name, columns, model in axis.iter_structures()}
    if not set(_CORTEX) <= models.keys():
        raise UserError(
            f"{path}: expected maps of the left and the right cortex, got {listed(models) if models else 'parcels'}. "
            "Export vertices (dscalar) of both hemispheres."
        )
    columns, vertices, sizes = [], [], []
    for name in _CORTEX:
        part, model = models[name]
        vertices.append(np.asarray(model.vertex, np.int64))
        columns.append(slice(part.start, part.start + len(model.vertex)))  # the last has no stop
        sizes.append(int(model.nvertices[name]))
    return columns, vertices, sizes


def _read_cifti(part: Part, vertices: Sequence[Int[np.ndarray, "_"]]) -> Float[np.ndarray, "t n"]:
    path = part.files[0].path
    columns, here, _ = _grayordinates(path)
    if not all(np.array_equal(a, b) for a, b in zip(here, vertices, strict=True)):
        raise UserError(
            f"{path}: expected the grayordinates that the first file of the subject has, got others. "
            "Were they made with another mask? Export all with one."
        )
    image = _cifti(path)
    betas = np.empty((image.shape[0], sum(of.stop - of.start for of in columns)), np.float32)
    with reading(path, "a whole CIFTI file"):
        for trial, row in enumerate(betas):
            start = 0
            for of in columns:
                row[start : start + of.stop - of.start] = image.dataobj[trial, of]
                start += of.stop - of.start
    return betas


def _surface_rois(context: Context, subject: str, sizes: Sequence[int]) -> dict[str, Bool[np.ndarray, "n"]]:
    """By label, over the vertices of both hemispheres; a label that both have is one ROI."""
    rois: dict[str, np.ndarray] = {}
    files = sorted((context.root / subject).rglob("*.label.gii"))
    used = []
    for file in files:
        name = Name.of(file)
        side = "LR".find(name.entities.get("hemi", "?"))
        image = _load_gifti(file)
        values = np.asarray(image.darrays[0].data).reshape(-1)
        if side < 0 or len(values) != sizes[side]:
            context.notices.append(f"{file.name} was left out: it names no hemisphere, or has other vertices.")
            continue
        used.append(file)
        names = {int(key): label for key, label in image.labeltable.get_labels_as_dict().items()}
        first = 0 if side == 0 else sizes[0]
        for value in np.unique(values[values > 0]).tolist():
            label = name.entities.get("label") or names.get(value) or str(value)
            roi = rois.setdefault(label, np.zeros(sum(sizes), bool))
            roi[first : first + sizes[side]] |= values == value
    if used:
        context.found.append(Found(f"ROIs of {subject}", tuple(used), required=False))
    return rois


def _coordinates(context: Context, subject: str, betas: Name, sizes: Sequence[int]) -> Float[np.ndarray, "n 3"] | None:
    """Where the vertices of both hemispheres lie, if the subject has a surface with as many of them."""
    surfaces = [Name.of(file) for file in sorted((context.root / subject).rglob("*.surf.gii"))]
    for kind in ("midthickness", "pial", "white"):
        sides = [
            [
                name
                for name in surfaces
                if name.suffix == kind
                and name.entities.get("hemi") == side
                and name.entities.get("space", "") in ("", betas.entities.get("space", ""))
            ]
            for side in "LR"
        ]
        if not all(sides):
            continue
        places = [np.asarray(_load_gifti(names[0].path).darrays[0].data, np.float32) for names in sides]
        if [place.shape for place in places] == [(size, 3) for size in sizes]:
            return np.concatenate(places)
    remedy = "Add one to have them"
    if [TEMPLATES.get(size) for size in sizes] == ["fsaverage5"] * 2:
        from brainjanus.data.simulate import load_surfaces

        try:
            template = load_surfaces()
        except UserError:
            remedy = "Add one, or install nilearn, which brings fsaverage5 (pip install 'brainjanus[cortex]')"
        else:
            context.notices.append(f"{subject}: its vertices are placed on the mid-surface of fsaverage5.")
            return np.concatenate([template[side].mid_mm for side in ("left", "right")]).astype(np.float32)
    context.notices.append(
        f"{subject}: there is no surface (midthickness, pial or white .surf.gii) of its vertices, so that they have no "
        f"coordinates, and patches follow the order of the vertices. {remedy}."
    )
    return None
