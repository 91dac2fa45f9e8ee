"""The release of BrainJanus (arXiv 2606.30319): voxels in bfloat16, pictures and captions.

    PATH/voxel/subj01_{train,train_avg,test_avg}_bf16.safetensors    voxels [trials, voxels], ids [trials]
         image/nsd_stimuli_384_uint8.safetensors                     images [73000, 3, 384, 384] or [73000, 384, 384, 3]
         captions/SOURCE.json                                        {73k id or stimulus id: captions}

The names of tensors are unpublished. They are found by their usual names, or as the only tensor of their form; where
that is not enough, --keys says them (voxels=KEY ids=KEY images=KEY session=KEY run=KEY). Which stimulus a row shows is
never guessed: without ids nothing is read.

Single trials are read (train); train_avg only without them. Test responses are there as averages over repeats and are
kept as one trial each. Our export writes what this leaves out beside them: test and val as single trials, with their
sessions and runs, and `stimuli.tsv` for stimuli that are not NSD's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.data.captions import Numbers, caption_sources
from brainjanus.data.dataset import TensorPlace, listed
from brainjanus.data.layouts.asked import (
    captions_of,
    chosen_subjects,
    first_sessions,
    folder_of,
    named_keys,
    named_numbers,
    named_subjects,
    recording_of,
    refuse_unused,
    shown_in,
    space_of,
)
from brainjanus.data.layouts.nsd_ids import NUM_IMAGES, session_notice, stimulus_id, voxel_notice
from brainjanus.data.readers.pictures import fit
from brainjanus.data.readers.tensors import as_float32, described, mapped, read_rows, tensors_of
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions
from brainjanus.data.write import How

KEYS = {
    "voxels": "responses [trials, voxels]",
    "ids": "73k ids [trials]",
    "images": "pictures [73000, ...]",
    "session": "session of each trial",
    "run": "run of each trial",
}
_USUAL = {
    "voxels": ("voxels", "voxel", "betas", "beta", "fmri", "responses", "data"),
    "ids": (
        "ids",
        "id",
        "nsd_ids",
        "nsd_id",
        "coco73k",
        "cocoidx",
        "image_ids",
        "image_id",
        "stim_ids",
        "stimulus_ids",
    ),
    "images": ("images", "image", "stimuli", "nsd_stimuli", "imgBrick", "pixels"),
    "session": ("session", "sessions"),
    "run": ("run", "runs"),
}
_INTEGERS = ("I64", "I32", "I16", "U64", "U32", "U16")
_VOXELS = re.compile(r"(\w[\w-]*?)_(train|train_avg|val|val_avg|test|test_avg)_bf16\.safetensors")
_IMAGES = re.compile(r"nsd_stimuli_\d+_uint8\.safetensors")
PART = 750  # trials that are read at once


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through the release: headers and ids are read, no voxels and no pictures.

    Raises UserError for what keeps it from being prepared, with the keys that are there if one is not known.
    """
    refuse_unused("brainjanus", options, ("mask", "sessions", "keys", "files"))
    folder_of("brainjanus", path)
    keys = named_keys(options, KEYS)
    files: dict[str, dict[str, Path]] = {}
    for file in sorted((path / "voxel").iterdir()) if (path / "voxel").is_dir() else ():
        if match := _VOXELS.fullmatch(file.name):
            files.setdefault(match[1], {})[match[2]] = file
    chosen = chosen_subjects(path, files, options.subjects, "voxel/subjXX_{train,test_avg}_bf16.safetensors")
    names = named_numbers(path)
    subjects: list[Recorded] = []
    split: dict[str, str] = {}
    notices: list[str] = []
    found: list[Found] = []
    zscore: How = "session"
    for subject in chosen:
        parts = _parts(path, subject, files[subject], notices)
        tables = [_table(file, part, keys) for part, file in parts.items()]
        if any(table.session is None for table in tables):
            zscore = "all"
            if options.sessions:
                raise UserError(
                    f"--sessions: expected files that say in which session a trial was, got {listed(parts)} of "
                    f"{subject} that do not. Leave it out, or name the tensor that says so (--keys session=KEY)."
                )
        recorded = _recorded(subject, tables, names, split, options, found, notices)
        subjects.append(first_sessions(recorded, options.sessions))
        found.append(Found(f"voxels of {subject}", tuple(parts.values())))
    if zscore == "all":
        notices.append(
            f"The files do not say in which session a trial was: parts of at most {PART} trials count as sessions, and "
            "responses are z-scored over all training trials."
        )
    shown = shown_in(subjects)
    number_of = {name: number for number, name in (names or {}).items()} or {
        name: int(name.removeprefix("nsd-")) for name in shown
    }
    pictures = _pictures(path, {name: number_of[name] for name in shown}, keys, found)
    captions = _captions(path, shown, {number: name for name, number in number_of.items()}, found, notices)
    captions |= captions_of(path, options, shown, found, notices, names, taken=list(captions))
    called, modality = recording_of(path, "nsd-brainjanus")
    return Study(
        "brainjanus",
        called,
        modality,
        named_subjects(path, subjects),
        pictures,
        captions,
        {name: part for name, part in split.items() if name in shown},
        zscore=zscore,
        found=found,
        notices=notices,
    )


def _parts(path: Path, subject: str, files: Mapping[str, Path], notices: list[str]) -> dict[str, Path]:
    """The file of each split: of single trials, or of averages where there are no others."""
    chosen = {}
    for split in ("train", "val", "test"):
        average = f"{split}_avg"
        if split in files:
            chosen[split] = files[split]
        elif average in files:
            chosen[split] = files[average]
            notices.append(
                f"{files[average].name} has averages over repeats: each is one trial here, and its noise is less than "
                "that of the trials that a noise ceiling is made of."
            )
        elif split != "val":
            raise UserError(
                f"{path / 'voxel'}: expected {subject}_{split}_bf16.safetensors or "
                f"{subject}_{average}_bf16.safetensors, got {listed(file.name for file in files.values())}. "
                f"Download all files of {subject}."
            )
    return chosen


class Table(NamedTuple):
    """The trials of one file, in its order. repeats: rows of the file that one id stands for."""

    file: Path
    split: str
    voxels: str
    place: TensorPlace
    ids: Int[np.ndarray, "t"]
    session: Int[np.ndarray, "t"] | None
    run: Int[np.ndarray, "t"] | None


def _table(file: Path, split: str, keys: Mapping[str, str]) -> Table:
    tensors = tensors_of(file)
    numbers = {name: place for name, place in tensors.items() if place.dtype in _INTEGERS}
    voxels = _key(file, "voxels", keys, tensors, {n: p for n, p in tensors.items() if n not in numbers}, (2, 3))
    place = tensors[voxels]
    num_rows = place.shape[0]
    ids = _key(file, "ids", keys, tensors, {n: p for n, p in numbers.items() if p.shape[:1] == (num_rows,)}, (1, 2))
    columns: dict[str, np.ndarray | None] = {}
    for name, key in (("ids", ids), ("session", keys.get("session")), ("run", keys.get("run"))):
        key = key or next((usual for usual in _USUAL[name] if usual in numbers), None)
        columns[name] = None if key is None else _column(file, name, key, tensors, num_rows)
    numbers_of = columns["ids"]
    assert numbers_of is not None
    return Table(file, split, voxels, place, numbers_of, columns["session"], columns["run"])


def _key(
    file: Path,
    name: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, TensorPlace],
    fitting: Mapping[str, TensorPlace],
    ndim: Sequence[int],
) -> str:
    """The key of a tensor: as asked, by a usual name, or the only one that fits. Raises UserError otherwise."""
    fitting = {key: place for key, place in fitting.items() if len(place.shape) in ndim}
    asked = keys.get(name)
    usual = [key for key in _USUAL[name] if key in fitting]
    if asked is not None and asked in fitting:
        return asked
    if asked is None and usual:
        return usual[0]
    if asked is None and len(fitting) == 1:
        return next(iter(fitting))
    raise UserError(
        f"{file}: expected {KEYS[name]} called {repr(asked) if asked else listed(_USUAL[name], 3)}, got the tensors "
        f"{described(tensors)}. Say which it is: --keys {name}=KEY."
    )


def _column(file: Path, name: str, key: str, tensors: Mapping[str, TensorPlace], num_rows: int) -> Int[np.ndarray, "t"]:
    if key not in tensors or tensors[key].dtype not in _INTEGERS or np.prod(tensors[key].shape) != num_rows:
        raise UserError(
            f"{file}: expected '{key}' to be {KEYS[name]}, {num_rows} integers, got the tensors {described(tensors)}. "
            f"Say which it is: --keys {name}=KEY."
        )
    return np.array(mapped(file, key, tensors[key]), dtype=np.int64).reshape(-1)


def _recorded(
    subject: str,
    tables: Sequence[Table],
    names: Mapping[int, str] | None,
    split: dict[str, str],
    options: StudyOptions,
    found: list[Found],
    notices: list[str],
) -> Recorded:
    """Fills `split`, `found` and `notices`."""
    num_voxels = tables[0].place.shape[-1]
    for table in tables:
        if table.place.shape[-1] != num_voxels:
            raise UserError(
                f"{table.file}: expected {num_voxels} voxels, as in {tables[0].file.name}, got "
                f"{table.place.shape[-1]}. Are they files of two subjects, or is the tensor transposed?"
            )
        for number in table.ids.tolist():
            name = _name(table.file, number, names)
            if split.setdefault(name, table.split) != table.split:
                raise UserError(
                    f"{table.file}: expected each image in one split, got '{name}' in {split[name]} and {table.split}. "
                    "What is tested would have been trained on: leave one out."
                )
    known = all(table.session is not None for table in tables)
    rows: list[list[tuple[Table, Int[np.ndarray, "_"]]]] = []
    if known:
        numbers = sorted({number for table in tables if table.session is not None for number in table.session.tolist()})
        for number in numbers:
            rows.append([(table, np.flatnonzero(table.session == number)) for table in tables])
    else:
        for table in tables:
            step = max(PART // (table.place.shape[1] if len(table.place.shape) == 3 else 1), 1)
            rows += [[(table, part)] for part in np.split(np.arange(len(table.ids)), range(step, len(table.ids), step))]
        numbers = list(range(1, len(rows) + 1))
    if names is None:
        notices += voxel_notice(subject, num_voxels)
        notices += session_notice(subject, numbers) if known else []
    sessions = [_session(number, parts, names) for number, parts in zip(numbers, rows, strict=True)]
    return Recorded(space_of(subject, num_voxels, options.mask, found, notices), sessions)


def _session(
    number: int, parts: Sequence[tuple[Table, Int[np.ndarray, "_"]]], names: Mapping[int, str] | None
) -> Session:
    ids: list[str] = []
    runs: list[np.ndarray] = []
    for table, rows in parts:
        num_repeats = table.place.shape[1] if len(table.place.shape) == 3 else 1
        ids += [_name(table.file, image, names) for image in table.ids[rows].tolist() for _ in range(num_repeats)]
        of_rows = np.ones(len(rows), np.int64) if table.run is None else table.run[rows]
        runs.append(np.repeat(of_rows, num_repeats))
    num_bytes = 2 * len(ids) * parts[0][0].place.shape[-1]
    return Session(number, ids, partial(_read, parts), np.concatenate(runs), num_bytes)


def _name(file: Path, number: int, names: Mapping[int, str] | None) -> str:
    if names is None:
        if not 0 <= number < NUM_IMAGES:
            raise UserError(
                f"{file}: expected 73k ids from 0 to {NUM_IMAGES - 1}, got {number}. Does it count from 1, or is "
                "another tensor meant (--keys ids=KEY)?"
            )
        return stimulus_id(number)
    if number not in names:
        raise UserError(f"{file}: expected numbers that stimuli.tsv names, got {number}. Export the dataset again.")
    return names[number]


def _read(parts: Sequence[tuple[Table, Int[np.ndarray, "_"]]]) -> Float[np.ndarray, "t v"]:
    found = []
    for table, rows in parts:
        values = mapped(table.file, table.voxels, table.place)[rows]
        found.append(as_float32(values.reshape(-1, table.place.shape[-1]), table.place.dtype))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _pictures(path: Path, number_of: Mapping[str, int], keys: Mapping[str, str], found: list[Found]) -> Pictures | None:
    """Raises UserError for pictures of another form, or a stimulus without a row."""
    folder = path / "image"
    files = sorted(file for file in folder.iterdir() if _IMAGES.fullmatch(file.name)) if folder.is_dir() else []
    missing = () if files else ("image/nsd_stimuli_384_uint8.safetensors",)
    found.append(Found("pictures", tuple(files), missing, required=False))
    if not files:
        return None
    tensors = tensors_of(files[0])
    fitting = {name: place for name, place in tensors.items() if place.dtype == "U8"}
    key = _key(files[0], "images", keys, tensors, fitting, (4,))
    place = tensors[key]
    first, last = place.shape[1] == 3, place.shape[3] == 3
    if first == last:
        raise UserError(
            f"{files[0]}, {key}: expected pictures [73000, 3, 384, 384] or [73000, 384, 384, 3], got "
            f"{list(place.shape)}. Is it another tensor (--keys images=KEY)?"
        )
    beyond = max(number_of.values(), default=0)
    if beyond >= place.shape[0]:
        raise UserError(
            f"{files[0]}: expected a picture of image {beyond}, got {place.shape[0]} pictures. Download the whole file."
        )
    read = partial(_read_pictures, files[0], place, first, dict(number_of))
    return Pictures(sorted(number_of), read, int(np.prod(place.shape[1:])))


def _read_pictures(
    file: Path,
    place: TensorPlace,
    channels_first: bool,
    number_of: Mapping[str, int],
    ids: Sequence[str],
    size: int,
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    names = sorted(ids, key=lambda name: number_of[name])
    for name, picture in zip(names, read_rows(file, place, (number_of[name] for name in names)), strict=True):
        picture = picture.transpose(1, 2, 0) if channels_first else picture
        yield name, fit(Image.fromarray(np.ascontiguousarray(picture)), size)


def _captions(
    path: Path, shown: set[str], name_of: Mapping[int, str], found: list[Found], notices: list[str]
) -> dict[str, dict[str, list[str]]]:
    """The captions of each JSON file, by its name; a file of another form is left out, and said."""
    sources: dict[str, dict[str, list[str]]] = {}
    numbers = Numbers("73k id, from 0", {number: [name] for number, name in name_of.items()}, range(NUM_IMAGES))
    for file in sorted((path / "captions").glob("*.json")) if (path / "captions").is_dir() else ():
        name = re.sub(r"[^\w-]", "_", file.stem).lstrip("-")
        found.append(Found(f"captions {name}", (file,), required=False))
        try:
            more = caption_sources([f"{name}={file}"], shown, [numbers], taken=list(sources))
        except UserError as error:
            notices.append(f"captions/{file.name} was left out: {error}")
            continue
        sources |= more.captions
        notices += more.notices
    return sources
