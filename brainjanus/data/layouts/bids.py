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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from brainjanus.core.errors import UserError
from brainjanus.data.captions import caption_sources
from brainjanus.data.dataset import SPLITS, listed
from brainjanus.data.layouts.bids_sites import Context, Name, Part, check_count, place_sites
from brainjanus.data.layouts.pictured import pictures_by_name
from brainjanus.data.readers.arrays import check_not_empty, reading
from brainjanus.data.readers.tables import read_json, read_table, whole_numbers
from brainjanus.data.study import NUM_READERS, Found, Pictures, Recorded, Session, Study, StudyOptions, given_files

COLUMNS = ("stim_file", "stimulus", "stimulus_id", "trial_type")
_MISSING = ("n/a", "")


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
        parts = [_part(*one, column, has_split) for one in zip(groups, events[who], strict=True)]
        if left_out := sum(part.left_out for part in parts):
            context.notices.append(f"{left_out} rows of the events of {who} name no stimulus and are no trials.")
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
    return given_files(options, {"stimuli": "path", "events": "folder"}, "BIDS")


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
    found: list[tuple[Name, ...]] = []
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


def _part(files: tuple[Name, ...], tables: Sequence[Path], column: str, has_split: bool) -> Part:
    ids: list[str] = []
    runs: list[int] = []
    split: list[str] = []
    left_out = 0
    for number, path in enumerate(tables, start=1):
        table = read_table(path, [column])
        rows = [row for row, name in enumerate(table[column]) if name not in _MISSING]
        left_out += len(table[column]) - len(rows)
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
    return Part(files, ids, np.array(runs, np.int64), split if has_split else None, left_out)


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
    placed = place_sites(context, subject, [part for group in chosen for part in group])
    sessions = []
    for number, group in zip(numbers, chosen, strict=True):
        ids = [name for part in group for name in part.ids]
        run = np.concatenate([part.run for part in group])
        num_bytes = sum(name.path.stat().st_size for part in group for name in part.files)
        sessions.append(
            Session(number, ids, partial(_read_parts, placed.read, group, placed.space.num_sites), run, num_bytes)
        )
    return Recorded(placed.space, sessions, NUM_READERS)


def _read_parts(
    read: Callable[[Part], Float[np.ndarray, "t v"]], parts: Sequence[Part], num_sites: int
) -> Float[np.ndarray, "t v"]:
    if len(parts) == 1:
        betas = read(parts[0])
        check_count(parts[0], len(betas))
        return betas
    betas, start = np.empty((sum(len(part.ids) for part in parts), num_sites), np.float32), 0
    for part in parts:
        maps = read(part)
        check_count(part, len(maps))
        betas[start : start + len(maps)] = maps
        start += len(maps)
    return betas


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
    places = [context.files["stimuli"]] if "stimuli" in context.files else [r / "stimuli" for r in context.raw]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        context.found.append(Found("pictures", (), (str(places[0]),), required=False))
        context.notices.append(f"There are no pictures: {listed((str(place) for place in places), 3)} is missing.")
        return None
    remedy = "add a column stim_file to the events, or give another folder with --files stimuli=PATH"
    return pictures_by_name(source, ids, remedy, context.found, context.notices)
