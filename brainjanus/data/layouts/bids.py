"""BIDS derivatives with single-trial betas: volumes (NIfTI), surfaces (GIfTI) or grayordinates (CIFTI).

Enters the derivatives folder (or the dataset that holds exactly one with betas); what is in brackets may be missing:

    [dataset_description.json]
    sub-XX/[ses-YY/]func/*_{betas,statmap,..}.{nii.gz,nii,func.gii,dscalar.nii}   one map a trial, in the events' order
                         suffix "betas", or stat-effect, or a desc- with "beta" in it
    sub-XX/[ses-YY/]func/*_events.tsv     here or in the raw dataset; or a .tsv named as the betas; one row a trial
    sub-XX/**/*_mask.nii.gz               without label-: the mask; with it: a ROI [surfaces: *_mask.label.gii]
    [sub-XX/**/*_dseg.nii.gz]             ROIs by label, named by the TSV beside it or at the top [*.label.gii]
    [sub-XX/**/*_{midthickness,pial,white}.surf.gii]   where vertices lie
    [stimuli/]                            pictures; here, in the raw dataset, or files stimuli=PATH

Leaves a Study. A stimulus is named as the events name it: by the first of the columns COLUMNS that all of them have.
Rows with n/a there are no trials. Differs from BIDS: entities are compared, never inherited through the hierarchy.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.captions import caption_sources
from brainjanus.data.dataset import SPLITS, listed
from brainjanus.data.readers.arrays import check_not_empty, reading
from brainjanus.data.readers.nifti import (
    Volume,
    betas_shape,
    grid_of,
    on_grid,
    read_labels,
    read_mask,
    stream_betas,
    volume_of,
)
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES, picture_names, read_pictures
from brainjanus.data.readers.tables import read_json, read_table, whole_numbers
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions

COLUMNS = ("stim_file", "stimulus", "stimulus_id", "trial_type")
VOLUMES, SURFACES, CIFTI = (".nii.gz", ".nii"), (".func.gii",), (".dscalar.nii", ".dtseries.nii")
TEMPLATES = {10_242: "fsaverage5", 40_962: "fsaverage6", 163_842: "fsaverage", 32_492: "fsLR"}  # by vertices
_CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
_MISSING = ("n/a", "")


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
    """Betas that were estimated together: one file, or one for each hemisphere (left, right)."""

    files: tuple[Name, ...]
    ids: list[str]
    run: Int[np.ndarray, "t"]
    split: list[str] | None


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


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through derivatives. Raises UserError without betas, events or a mask, and where they do not fit."""
    root = _derivatives(path)
    context = Context(root, _raw(path, root), options, _files(options), [], [])
    subjects = {who: _betas(root, who, options) for who in _subjects(root, options)}
    events = {who: [_events(context, who, files) for files in groups] for who, groups in subjects.items()}
    column, has_split = _column([table for tables in events.values() for of_part in tables for table in of_part])
    context.notices.append(f"Stimuli are named by the column '{column}' of the events.")
    split: dict[str, str] = {}
    recorded = []
    for who, groups in subjects.items():
        parts = [
            _part(context, files, tables, column, has_split) for files, tables in zip(groups, events[who], strict=True)
        ]
        tables = sorted({table for of_part in events[who] for table in of_part})
        context.found.append(Found(f"betas of {who}", tuple(name.path for files in groups for name in files)))
        context.found.append(Found(f"events of {who}", tuple(tables)))
        for part in parts:
            _add_split(split, part)
        recorded.append(_recorded(context, who, parts))
    ids = sorted({name for who in recorded for session in who.sessions for name in session.stimulus_id})
    more = caption_sources(options.captions, ids)
    pictures = _pictures(context, ids)
    return Study(
        layout="bids",
        name=_name(context),
        modality="fMRI",
        subjects=recorded,
        pictures=pictures,
        captions=more.captions,
        split=split if has_split else None,
        zscore="session",
        found=context.found,
        notices=[*context.notices, *more.notices],
    )


# ---- what is where


def _derivatives(path: Path) -> Path:
    """The folder whose sub-XX have betas: `path`, or the only one under its derivatives."""
    folders = [path, *sorted((path / "derivatives").glob("*"))]
    there = [folder for folder in folders if any(name.has_betas() for name in _in_func(folder))]
    if len(there) == 1 or (there and there[0] == path):
        return there[0]
    if there:
        raise UserError(
            f"{path}: expected one derivatives folder with betas, got {listed(folder.name for folder in there)}. "
            f"Give the one that is meant: {there[0]}."
        )
    raise UserError(
        f"{path}: expected BIDS derivatives with betas, sub-XX/[ses-YY/]func/sub-XX_*_betas.nii.gz (or stat-effect, or "
        "desc-betas; .func.gii and .dscalar.nii for surfaces), got none. "
        "Is it the raw dataset? Betas of single trials come from a GLM (GLMsingle, nilearn)."
    )


def _in_func(root: Path, subject: str = "sub-*") -> Iterator[Name]:
    for pattern in (f"{subject}/func/*", f"{subject}/ses-*/func/*"):
        for file in sorted(root.glob(pattern)):
            if file.is_file():
                yield Name.of(file)


def _raw(path: Path, root: Path) -> tuple[Path, ...]:
    """Where what belongs to the raw dataset may be: the folders themselves, and the dataset around derivatives."""
    around = [root.parent.parent] if root.parent.name == "derivatives" else []
    return tuple(dict.fromkeys([root, path, *around]))


def _files(options: StudyOptions) -> dict[str, Path]:
    if options.keys:
        raise UserError(
            f"--keys {listed(options.keys)}: expected none for BIDS, which has no keys, got some. Leave them out."
        )
    files = {}
    for entry in options.files:
        name, equals, file = entry.partition("=")
        if not equals or name not in ("stimuli", "events") or not Path(file).exists():
            raise UserError(
                f"--files {entry}: expected stimuli=PATH or events=FOLDER, with a path that exists, got another. "
                "Correct it; what lies where BIDS has it need not be given."
            )
        files[name] = Path(file)
    return files


def _subjects(root: Path, options: StudyOptions) -> list[str]:
    there = sorted({name.path.relative_to(root).parts[0] for name in _in_func(root) if name.has_betas()})
    wanted = [who if who.startswith("sub-") else f"sub-{who}" for who in options.subjects]
    strangers = [who for who in wanted if who not in there]
    if strangers:
        raise UserError(
            f"{root}: expected subjects with betas ({listed(there)}), got {listed(strangers)}. "
            "Correct --subjects, or leave it out to take all."
        )
    return [who for who in there if not wanted or who in wanted]


def _betas(root: Path, subject: str, options: StudyOptions) -> list[tuple[Name, ...]]:
    """One subject's files of betas, hemispheres together, in the order of session, task and run.

    Raises UserError if there are several versions of the same trials, or one hemisphere alone.
    """
    wanted = set(options.betas.split("_")) if options.betas else set()
    groups: dict[tuple[str, ...], list[Name]] = {}
    names = [name for name in _in_func(root, subject) if name.has_betas()]
    for name in names:
        labels = {f"{key}-{value}" for key, value in name.entities.items()} | {name.suffix}
        if wanted <= labels:
            place = tuple(name.entities.get(key, "") for key in ("ses", "task", "acq", "run"))
            groups.setdefault(place, []).append(name)
    if not groups:
        raise UserError(
            f"betas of {subject}: expected files whose name has {options.betas}, got "
            f"{listed((name.path.name for name in names), 3)}. Correct --betas: parts of a name, joined by '_'."
        )
    found = []
    for _, files in sorted(groups.items(), key=lambda item: [_natural(label) for label in item[0]]):
        hemispheres = [name.entities.get("hemi", "") for name in files]
        if hemispheres not in ([""], ["L", "R"]):
            alone = len(files) == 1
            raise UserError(
                f"betas of {subject}: expected one file, or hemi-L and hemi-R, for each run, got "
                f"{listed((name.path.name for name in files), 4)}. "
                + ("Export the other hemisphere too." if alone else "Choose with --betas, as space-T1w or desc-x.")
            )
        if len({name.extension for name in files} | {found[0][0].extension if found else files[0].extension}) > 1:
            raise UserError(
                f"betas of {subject}: expected files of one kind, got {found[0][0].path.name} and "
                f"{files[0].path.name}. Choose with --betas, as space-T1w or desc-x."
            )
        found.append(tuple(files))
    return found


def _natural(label: str) -> tuple[int, str]:
    digits = re.search(r"\d+", label, re.ASCII)
    return (int(digits[0]) if digits else 0, label)


# ---- trials


def _events(context: Context, subject: str, files: tuple[Name, ...]) -> list[Path]:
    """The table of a part's trials; tables of several runs, if the betas are of a whole session."""
    betas = files[0]
    stem = betas.path.name.partition(".")[0]
    beside = [betas.path.with_name(f"{stem}.tsv"), betas.path.with_name(f"{stem.replace('_hemi-L', '')}.tsv")]
    for file in beside:
        if file.is_file():
            return [file]
    session = betas.entities.get("ses")
    inside = Path(subject) / (f"ses-{session}" if session else "") / "func"
    given = [context.files["events"] / inside, context.files["events"]] if "events" in context.files else []
    places = [betas.path.parent, *given, *(folder / inside for folder in context.raw)]
    for place in places:
        fitting = []
        for file in sorted(place.glob(f"{subject}_*events.tsv")):
            name = Name.of(file)
            shared = name.entities.keys() & betas.entities.keys()
            if all(name.entities[key] == betas.entities[key] for key in shared):
                fitting.append(name)
        if fitting:
            fitting.sort(key=lambda name: [_natural(name.entities.get(key, "")) for key in ("task", "run")])
            return [name.path for name in fitting]
    raise UserError(
        f"{betas.path}: expected {stem}.tsv or an events.tsv of the same subject, session, task and run, got none in "
        f"{listed((str(place) for place in places), 4)}. Which stimulus each map belongs to has to be said: add the "
        "table, one row for each map, or give --files events=FOLDER."
    )


def _column(tables: Sequence[Path]) -> tuple[str, bool]:
    """The column that names stimuli in all tables, and whether they have a split."""
    headers = {}
    for path in dict.fromkeys(tables):
        check_not_empty(path)
        with reading(path, "a TSV file in UTF-8"), open(path, encoding="utf-8-sig") as file:
            headers[path] = file.readline().rstrip("\r\n").split("\t")
    common = [name for name in COLUMNS if all(name in header for header in headers.values())]
    if not common:
        path = min(headers, key=lambda path: len(set(COLUMNS) & set(headers[path])))
        raise UserError(
            f"{path}: expected one of the columns {', '.join(COLUMNS)}, the same in all events, got "
            f"{listed(headers[path])}. Add a column of stimulus names to each table."
        )
    with_split = [path for path, header in headers.items() if "split" in header]
    if with_split and len(with_split) < len(headers):
        without = next(path for path in headers if path not in with_split)
        raise UserError(
            f"{without}: expected a column 'split', as {with_split[0].name} has, got none. "
            "Add it to all events or to none."
        )
    return common[0], bool(with_split)


def _part(context: Context, files: tuple[Name, ...], tables: Sequence[Path], column: str, has_split: bool) -> Part:
    ids: list[str] = []
    runs: list[int] = []
    split: list[str] = []
    for number, path in enumerate(tables, start=1):
        table = read_table(path, [column])
        rows = [row for row, name in enumerate(table[column]) if name not in _MISSING]
        if len(rows) < len(table[column]):
            context.notices.append(
                f"{path.name}: {len(table[column]) - len(rows)} rows without a stimulus are no trials."
            )
        ids += [PurePosixPath(table[column][row]).as_posix() for row in rows]
        label = Name.of(path).entities.get("run", files[0].entities.get("run", ""))
        run = _natural(label)[0] or number
        if "run" in table:
            of_row = whole_numbers(path, "run", [table["run"][row] for row in rows])
            runs += of_row.tolist()
        else:
            runs += [run] * len(rows)
        if has_split:
            split += [table["split"][row] for row in rows]
    return Part(files, ids, np.array(runs, np.int64), split if has_split else None)


def _add_split(split: dict[str, str], part: Part) -> None:
    for name, value in zip(part.ids, part.split or (), strict=part.split is not None):
        if value not in SPLITS or split.setdefault(name, value) != value:
            raise UserError(
                f"events of {part.files[0].path.name}: expected one split among {', '.join(SPLITS)} for each stimulus, "
                f"got '{value}' for '{name}'{'' if value not in SPLITS else f' beside {split[name]!r}'}. "
                "Correct the column, or take it out to split at random."
            )


def _recorded(context: Context, subject: str, parts: Sequence[Part]) -> Recorded:
    labels = list(dict.fromkeys(part.files[0].entities.get("ses", "") for part in parts))
    numbers = [_natural(label)[0] for label in labels]
    if len(labels) == 1 and not labels[0]:
        numbers = [1]
    elif 0 in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(labels) + 1))
        context.notices.append(f"Sessions of {subject} are numbered in the order {listed(labels, 20)}.")
    if context.options.sessions:
        numbers = numbers[: context.options.sessions]
    chosen = [[part for part in parts if part.files[0].entities.get("ses", "") == label] for label in labels]
    chosen = chosen[: len(numbers)]
    kind = parts[0].files[0].extension
    place = _on_surface if kind in SURFACES else _on_cifti if kind in CIFTI else _in_volume
    placed = place(context, subject, [part for group in chosen for part in group])
    sessions = []
    for number, group in zip(numbers, chosen, strict=True):
        ids = [name for part in group for name in part.ids]
        run = np.concatenate([part.run for part in group])
        num_bytes = sum(name.path.stat().st_size for part in group for name in part.files)
        sessions.append(Session(number, ids, partial(_read_parts, placed.read, group), run, num_bytes))
    return Recorded(placed.space, sessions)


def _read_parts(read: Callable[[Part], Float[np.ndarray, "t v"]], parts: Sequence[Part]) -> Float[np.ndarray, "t v"]:
    read_parts = []
    for part in parts:
        read_parts.append(read(part))
        _check_count(part, len(read_parts[-1]))
    return np.concatenate(read_parts)


def _check_count(part: Part, num_maps: int) -> None:
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
        _check_count(part, betas_shape(str(part.files[0].path), volume)[3])
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
                    return _volume(whole, chosen), [name.path]
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
    return _volume(volumes[0], voxels), [name.path for name in masks]


def _volume(whole: Volume, voxels: Int[np.ndarray, "v"]) -> Volume:
    mask = np.zeros(int(np.prod(whole.shape)), bool)
    mask[voxels] = True
    return volume_of(mask.reshape(whole.shape), whole.affine)


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
    sizes = [_gifti(name.path).shape[1] for name in parts[0].files]
    vertices = [np.arange(size) for size in sizes]
    return _surface(context, subject, parts[0].files[0], sizes, vertices, _read_gifti)


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


def _load_gifti(path: Path) -> Any:
    import xml.parsers.expat

    import nibabel
    from nibabel.filebasedimages import ImageFileError

    check_not_empty(path)
    with reading(path, "a GIfTI file"):
        try:
            image: Any = nibabel.load(path)
        except (ImageFileError, xml.parsers.expat.ExpatError) as error:
            raise ValueError(str(error)) from error
        if not isinstance(image, nibabel.GiftiImage) or not image.darrays:
            raise ValueError("no data in it")
        return image


def _gifti(path: Path) -> Float[np.ndarray, "t n"]:
    """The maps of one hemisphere, one a row."""
    arrays = [np.asarray(array.data) for array in _load_gifti(path).darrays]
    if len(arrays) == 1 and arrays[0].ndim == 2:
        return arrays[0].T.astype(np.float32)
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
        raise UserError(
            f"{path}: expected arrays of one value a vertex, got {listed({str(list(a.shape)) for a in arrays}, 3)}. "
            "Export one array for each trial."
        )
    return np.stack(arrays).astype(np.float32)


def _read_gifti(part: Part) -> Float[np.ndarray, "t n"]:
    left, right = (_gifti(name.path) for name in part.files)
    if len(left) != len(right):
        raise UserError(
            f"{part.files[1].path}: expected {len(left)} maps, as the left hemisphere has, got {len(right)}. "
            "Export both with the same trials."
        )
    return np.concatenate([left, right], axis=1)


def _cifti(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    check_not_empty(path)
    with reading(path, "a CIFTI file"):
        try:
            image: Any = nibabel.load(path)
        except (ImageFileError, HeaderDataError) as error:
            raise ValueError(str(error)) from error
        if not isinstance(image, nibabel.Cifti2Image) or image.ndim != 2:
            raise ValueError(f"a {type(image).__name__}")
        return image


def _grayordinates(path: Path) -> tuple[list[slice], list[Int[np.ndarray, "_"]], list[int]]:
    """Of the left and the right cortex: their columns, vertices, and the number of vertices of the whole surface."""
    from nibabel.cifti2 import BrainModelAxis

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
    with reading(path, "a whole CIFTI file"):
        rows = [
            np.concatenate([np.asarray(image.dataobj[trial, of], np.float32) for of in columns])
            for trial in range(image.shape[0])
        ]
    return np.stack(rows)


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
    context.notices.append(
        f"{subject}: there is no surface (midthickness, pial or white .surf.gii) of its vertices, so that they have no "
        "coordinates, and patches follow the order of the vertices."
    )
    return None


# ---- stimuli


def _name(context: Context) -> str:
    file = context.root / "dataset_description.json"
    if not file.is_file():
        context.notices.append(f"There is no {file.name}: the dataset is called after its folder.")
        return context.root.resolve().name
    name = read_json(file).get("Name")
    context.found.append(Found("description", (file,), required=False))
    return name if isinstance(name, str) and name else context.root.resolve().name


def _pictures(context: Context, ids: Sequence[str]) -> Pictures | None:
    """A picture is named as its stimulus is: by its path inside the folder, its name, or its name without suffix."""
    places = [context.files["stimuli"]] if "stimuli" in context.files else [r / "stimuli" for r in context.raw]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        context.found.append(Found("pictures", (), (str(places[0]),), required=False))
        context.notices.append(f"There are no pictures: {listed((str(place) for place in places), 3)} is missing.")
        return None
    names = picture_names(str(source))
    called: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        for alias in {name, path.name, path.stem, path.with_suffix("").as_posix()}:
            called.setdefault(alias, set()).add(name)
    shown: dict[str, list[str]] = {}
    without, unclear = [], []
    for stimulus in ids:
        found = _called(stimulus, set(names), called)
        if len(found) == 1:
            shown.setdefault(next(iter(found)), []).append(stimulus)
        else:
            (unclear if found else without).append(stimulus)
    if unclear:
        raise UserError(
            f"{source}: expected one picture for stimulus '{unclear[0]}', got "
            f"{listed(sorted(_called(unclear[0], set(names), called)), 3)}. "
            "Write its path inside the folder into the events."
        )
    if not shown:
        raise UserError(
            f"{source}: expected pictures named as the stimuli are ({listed(ids, 3)}), got {listed(names, 3)}. Rename "
            "them, add a column stim_file to the events, or give another folder with --files stimuli=PATH."
        )
    if without:
        context.notices.append(f"{len(without)} of {len(ids)} stimuli have no picture ({listed(without, 3)}).")
    context.found.append(Found("pictures", (source,), tuple(without), required=False))
    having = sorted(stimulus for stimuli in shown.values() for stimulus in stimuli)
    return Pictures(having, partial(_read_pictures, str(source), shown), 0)


def _called(stimulus: str, names: set[str], called: Mapping[str, set[str]]) -> set[str]:
    path = stimulus.removeprefix("./").removeprefix("stimuli/")
    if path in names:
        return {path}
    bare = PurePosixPath(path)
    stem = bare.with_suffix("").as_posix() if bare.suffix.lower() in PICTURE_SUFFIXES else path
    for alias in (path, stem, PurePosixPath(stem).name):
        if alias in called:
            return called[alias]
    return set()


def _read_pictures(
    source: str, shown: Mapping[str, Sequence[str]], ids: Sequence[str], size: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    wanted = set(ids)
    stimuli_of = {name: [s for s in stimuli if s in wanted] for name, stimuli in shown.items()}
    for name, pixels in read_pictures(source, [name for name, stimuli in stimuli_of.items() if stimuli], size):
        for stimulus in stimuli_of[name]:
            yield stimulus, pixels
