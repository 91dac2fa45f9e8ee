"""What any software predicted or what it is held against, keyed by stimulus id and never by position.

Enters: captions as JSON {id: caption} or TSV; pictures as a folder, an archive or an array; responses as an array
(safetensors, npy, npz, mat, HDF5) or a 4-D NIfTI image. Leaves: ids, and captions, pictures or responses in order.

The ids of an array's rows come from --ids, from the array `ids`, `names` or `stimulus_ids` beside it in an npz, or
from a list beside the file: FILE.txt (one a line), FILE.json, or rows.json, which `brainjanus generate` writes. A
safetensors file may also hold one tensor per stimulus, called by its id.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from safetensors import safe_open

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, is_array, npz_names, read_array, reading, split_source
from brainjanus.data.readers.nifti import Volume, is_nifti, read_betas
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES, native_pictures, picture_names
from brainjanus.data.readers.tables import parse_json, read_captions

ID_KEYS = ("ids", "names", "stimulus_ids")


def read_caption_predictions(path: Path) -> dict[str, str]:
    """One caption for each stimulus id, from JSON {id: caption} or {id: [caption]}, or a TSV of stimulus_id, caption.

    Raises UserError for a stimulus with several captions: which one is meant would be a guess.
    """
    captions = read_captions(path)
    several = [stimulus for stimulus, group in captions.items() if len(group) != 1]
    if several:
        raise UserError(
            f"{path}: expected one predicted caption for each stimulus, got {len(captions[several[0]])} for "
            f"'{several[0]}'. Is it the file of references? Choose one sample, or score each in a file of its own."
        )
    return {stimulus: group[0] for stimulus, group in captions.items()}


def read_picture_predictions(
    source: str, ids: Path | None = None
) -> tuple[list[str], list[UInt8[np.ndarray, "h w 3"]]]:
    """Pictures at the size they have, by id: a picture file's name without its suffix, or the row of an array.

    Raises UserError for a picture that is not square, or an array whose rows have no ids.
    """
    source = only_array(source)
    names = picture_names(source)
    stems = row_ids(source, len(names), ids) if is_array(source) else [_stem(name) for name in names]
    twice = [stem for stem in stems if stems.count(stem) > 1] if len(set(stems)) < len(stems) else []
    if twice:
        raise UserError(
            f"{source}: expected one picture for each stimulus, got several called '{twice[0]}'. Keep one of them."
        )
    found = dict(native_pictures(source, names))
    for name in names:
        height, width = found[name].shape[:2]
        if height != width:
            raise UserError(
                f"{source}: expected square pictures, got {width} x {height} pixels for '{name}'. They are compared "
                "pixel by pixel: crop them as the stimuli were."
            )
    return stems, [found[name] for name in names]


def read_response_predictions(
    source: str, ids: Path | None = None, space: BrainSpace | None = None
) -> tuple[list[str], Float[np.ndarray, "n v"]]:
    """Responses [stimuli, sites] by id, float32.

    space: needed for NIfTI, whose voxels are those of its volume. Raises UserError for another form of array, rows
    without ids, or an image on another grid.
    """
    if is_nifti(source):
        values = read_betas([source], volume_in(source, space))
        return _finite(source, row_ids(source, len(values), ids), values)
    source = only_array(source)
    keyed = _keyed_tensors(source) if ids is None else None
    if keyed is not None:
        return _finite(source, *keyed)
    values = np.asarray(read_array(source))
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise UserError(
            f"{source}: expected responses [stimuli, sites], got {values.dtype} {list(values.shape)}. "
            "Average over samples or repeats first; one row for each stimulus."
        )
    return _finite(source, row_ids(source, len(values), ids), values.astype(np.float32))


def only_array(source: str) -> str:
    """`source` with the key of the one array of an npz file that is no list of ids, or of the responses that
    `brainjanus generate` wrote beside their standard errors; as it is otherwise."""
    path, key = split_source(source)
    if path.suffix.lower() not in (".npz", ".safetensors") or key:
        return source
    check_not_empty(path)
    if path.suffix.lower() == ".safetensors":
        with reading(path, "a .safetensors file"), safe_open(path, framework="numpy") as tensors:
            written = set(tensors.keys()) - {"standard_error", "samples"} == {"responses"}
        return f"{source}:responses" if written else source
    others = [name for name in npz_names(path) if name not in ID_KEYS]
    return f"{source}:{others[0]}" if len(others) == 1 else source


def _finite(
    source: str, names: list[str], values: Float[np.ndarray, "n v"]
) -> tuple[list[str], Float[np.ndarray, "n v"]]:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, site = bad[0]
        raise UserError(
            f"{source}: expected finite responses, got {values[row, site]} for stimulus '{names[row]}', site {site} "
            f"({len(bad)} in all). Leave out sites without data, in the measured responses too."
        )
    return names, values


def row_ids(source: str, num_rows: int, ids: Path | None) -> list[str]:
    """The stimulus ids of an array's rows; the head of this file says where they are looked for.

    Raises UserError if there are none, or another number of them.
    """
    path, _ = split_source(source)
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    beside = [path.with_name(name) for name in (f"{stem}.txt", f"{stem}.json", "rows.json")]
    where: Path | str | None = ids
    found = None if ids is None else read_ids(ids)
    if found is None and path.suffix.lower() == ".npz":
        names = npz_names(path)
        where = f"{path}:{next((name for name in ID_KEYS if name in names), '')}"
        found = None if where.endswith(":") else [str(name) for name in read_array(where).reshape(-1)]
    if found is None:
        where = next((file for file in beside if file.is_file()), None)
        found = None if where is None else read_ids(Path(where))
    if found is None:
        raise UserError(
            f"{source}: expected the stimulus id of each of its {num_rows} rows, got none: rows are never matched by "
            f"their position. Give --ids FILE (one id a line, or a JSON list), or put {beside[0].name} beside it."
        )
    if len(found) != num_rows:
        raise UserError(
            f"{where}: expected one id for each of the {num_rows} rows of {path.name}, got {len(found)}. "
            "Does the list belong to another file, or has it a header line?"
        )
    return found


def read_ids(path: Path) -> list[str]:
    """A list of ids: JSON, npy, or text with one id a line."""
    check_not_empty(path)
    if is_array(str(path)):
        return [str(name) for name in np.asarray(read_array(str(path))).reshape(-1)]
    if path.suffix.lower() != ".json":
        with reading(path, "text in UTF-8"):
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().splitlines()]
    with reading(path, "a JSON list of stimulus ids"):
        content = parse_json(path)
        if not isinstance(content, list):
            raise ValueError(f"a {type(content).__name__}")
        return [str(name) for name in content]


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name


def volume_in(source: str, space: BrainSpace | None) -> Volume:
    """The mask that a subject's space is. Raises UserError naming the image `source` if it is no volume."""
    if space is None or space.geometry.get("type") != "volume" or space.index is None:
        raise UserError(
            f"{source}: expected a dataset whose subject is a volume, to read NIfTI voxels with its mask, got "
            f"{'none' if space is None else space.kind + ' without one'}. Give --dataset, or the responses as an array."
        )
    x, y, z = space.geometry["shape"]
    coordinates = np.zeros((space.num_sites, 3), np.float32) if space.coordinates_mm is None else space.coordinates_mm
    return Volume((x, y, z), np.asarray(space.geometry["affine"]), space.index, coordinates)


def _keyed_tensors(source: str) -> tuple[list[str], Shaped[np.ndarray, "n v"]] | None:
    """The rows of a safetensors file that holds one vector per stimulus; None for any other file."""
    path, key = split_source(source)
    if path.suffix.lower() != ".safetensors" or key:
        return None
    check_not_empty(path)
    with reading(path, "a .safetensors file"), safe_open(path, framework="numpy") as tensors:
        names: Sequence[str] = list(tensors.keys())
        shapes = {tuple(tensors.get_slice(name).get_shape()) for name in names}
        if any(len(shape) == 2 for shape in shapes):
            return None
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise UserError(
                f"{path}: expected one array [stimuli, sites], or one vector of the same length for each stimulus id, "
                f"got shapes {listed([str(list(shape)) for shape in sorted(shapes)])}. Give one form or the other."
            )
        return list(names), np.stack([tensors.get_tensor(name) for name in names]).astype(np.float32)
