"""The small files beside the arrays: trials, captions, coordinates, ROIs, features by name.

Enters: TSV with a header line (as in BIDS), JSON, or arrays. Leaves: columns, dictionaries and arrays, checked for
form; whether their stimuli and sites exist is checked where these are known.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from brainjanus.core.config import shown
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import check_not_empty, is_array, read_array, reading, split_source
from brainjanus.data.readers.nifti import Volume, is_nifti, read_roi

WHOLE = ("session", "run", "repeat", "fold")


class TrialTable(NamedTuple):
    """Trials as a user lists them: columns holds those of session, run, repeat, fold, split that are there."""

    stimulus_id: list[str]
    columns: dict[str, Any]
    ignored: list[str]


def read_table(path: Path, required: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a TSV file with a header line.

    Raises UserError for a missing file, column or cell.
    """
    check_not_empty(path)
    with reading(path, "a TSV file in UTF-8"), open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row] or [[]]
    missing = [name for name in required if name not in header]
    if missing or len(set(header)) < len(header):
        raise UserError(
            f"{path}: expected a header line with the columns {', '.join(required)}, each once, got "
            f"{listed(header)}. Are the columns separated by tabs?"
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header) or not row[header.index(required[0])]:
            raise UserError(
                f"{path}: expected {len(header)} cells in each row, none empty in '{required[0]}', got "
                f"{shown(row)} in row {number} after the header. Are they separated by tabs?"
            )
    if not rows:
        raise UserError(f"{path}: expected rows after the header, got none. It was not written to its end.")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def read_trials(path: Path) -> TrialTable:
    """Read a TSV of trials. Raises UserError as `read_table` does, and for a number that is none."""
    table: dict[str, Any] = read_table(path, ["stimulus_id"])
    for name in WHOLE:
        if name in table:
            table[name] = whole_numbers(path, name, table[name])
    ids = table.pop("stimulus_id")
    columns = {name: table.pop(name) for name in (*WHOLE, "split") if name in table}
    return TrialTable(ids, columns, list(table))


def whole_numbers(path: Path, name: str, cells: Sequence[str]) -> Shaped[np.ndarray, "n"]:
    """A column of integers. Raises UserError naming the first cell that is none."""
    for row, cell in enumerate(cells, start=1):
        if not re.fullmatch(r"-?\d{1,18}", cell):
            raise UserError(
                f"{path}: expected whole numbers in '{name}', got {shown(cell)} in row {row} after the header. "
                "Correct it, or leave the column out."
            )
    return np.array([int(cell) for cell in cells], np.int64)


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by stimulus id, from JSON {id: [caption, ...]} or a TSV of stimulus_id and caption."""
    if path.suffix.lower() != ".json":
        table = read_table(path, ["stimulus_id", "caption"])
        captions: dict[str, list[str]] = {}
        for name, caption in zip(table["stimulus_id"], table["caption"], strict=True):
            captions.setdefault(name, []).append(caption)
        return captions
    content = read_json(path)
    texts = {name: [value] if isinstance(value, str) else value for name, value in content.items()}
    for name, value in texts.items():
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise UserError(
                f"{path}: expected a list of captions for each stimulus id, got {shown(value)} for '{name[:80]}'. "
                'Write {"id": ["a caption", "another"]}.'
            )
    return texts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError if the file holds something else."""
    with reading(path, "a JSON object"):
        content = parse_json(path, object_pairs_hook=once)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    return content


def parse_json(path: Path, **hooks: Any) -> Any:
    """What a JSON file holds. Raises as json.loads does, also for half a character, which no file could be made of."""
    check_not_empty(path)
    text = path.read_text(encoding="utf-8-sig")
    content = json.loads(text, **hooks)
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
        json.dumps(content, ensure_ascii=False).encode()
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once each; the parser itself would keep the last of two."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' twice")
    return content


def read_coordinates(source: str) -> Float[np.ndarray, "v 3"]:
    """Where sites lie in mm, one row each, from a TSV with the columns x, y, z or from an array [sites, 3]."""
    if is_array(source):
        found = np.asarray(read_array(source))
        if found.ndim != 2 or found.shape[1] != 3 or found.dtype.kind not in "fiu":
            raise UserError(
                f"{source}: expected coordinates [sites, 3] in mm, got {found.dtype} {list(found.shape)}. "
                "Give x, y and z of each site in one row."
            )
        return found.astype(np.float32)
    path = Path(source)
    table = read_table(path, ["x", "y", "z"])
    with reading(path, "numbers in x, y and z"):
        return np.array([table["x"], table["y"], table["z"]], dtype=np.float32).T.copy()


def read_sensors(path: Path, in_head: bool) -> tuple[list[str], Float[np.ndarray, "s 3"] | None]:
    """Names of sensors, and where they are in mm (None without the columns x, y, z), in the order of the responses.

    in_head: they stand around a head, which shows whether mm are mm.
    Raises UserError for a name that comes twice, or a place that is none.
    """
    table = read_table(path, ["name"])
    names = table["name"]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{path}: expected each sensor once, got '{twice}' twice. Give each sensor a name of its own.")
    if not table.keys() & set("xyz"):
        return names, None
    places = read_coordinates(str(path))
    reach = float(np.abs(places - places.mean(axis=0)).max())
    if in_head and not 20 < reach < 500:  # NaN is refused too
        raise UserError(
            f"{path}: expected places of sensors around a head in mm, got some that reach {reach:.3g} from their "
            "middle. Are they in m or cm, or missing for one sensor? Convert them, or leave x, y and z out."
        )
    return names, places


def read_rois(
    entries: Sequence[str], num_sites: int, volume: Volume | None, sensors: Mapping[str, Any] | None = None
) -> dict[str, Bool[np.ndarray, "v"]]:
    """ROI name -> mask over the sites, from any number of files.

    entries: "NAME=roi.nii.gz" (voxels above 0, on the mask's grid), JSON {name: [sites]}, a TSV with one row for each
    member (columns site, roi), or an array of one label per site ("" and 0 for none). Sites count from 0.
    sensors: the geometry of a recording over time, whose ROIs may also be JSON {name: {"sensors": [names],
    "window_sec": [start, stop]}}: all times of some sensors, a window (its end left out) of all sensors, or both.
    Raises UserError for a site, sensor or window that does not exist, or an image without a mask.
    """
    rois: dict[str, np.ndarray] = {}
    for entry in entries:
        name, _, source = entry.rpartition("=")
        if is_nifti(source):
            if volume is None or not name:
                raise UserError(
                    f"ROI {entry}: expected NAME=IMAGE and a mask to read it with, got no "
                    f"{'name' if volume is not None else 'mask'}. Give `mask`, or ROIs as JSON."
                )
            rois[name] = read_roi(source, volume)
            continue
        for roi, sites in _members(source).items():
            if isinstance(sites, dict) and sensors is not None:
                rois[roi] = _sensor_roi(f"{source}, ROI {roi}", sites, sensors)
                continue
            if not isinstance(sites, list):
                raise UserError(
                    f"{source}: expected a list of sites for each ROI, got {sites!r} for {roi}. "
                    'Write {"ROI": [0, 1]}, also for a single site.'
                )
            wrong = [site for site in sites if not (type(site) is int and 0 <= site < num_sites)]
            if wrong:
                raise UserError(
                    f"{source}: expected sites from 0 to {num_sites - 1} in ROI {roi}, got {wrong[0]!r}. "
                    "Was it made with another mask, or does it count from 1?"
                )
            rois[roi] = np.zeros(num_sites, bool)
            rois[roi][sites] = True
    return rois


def _sensor_roi(what: str, chosen: Mapping[str, Any], sensors: Mapping[str, Any]) -> Bool[np.ndarray, "v"]:
    names, times = chosen.get("sensors", sensors["names"]), np.array(sensors["times_sec"])
    window = chosen.get("window_sec", [-np.inf, np.inf])
    strangers = set(chosen) - {"sensors", "window_sec"}
    if strangers or not chosen or not isinstance(names, list) or not set(map(str, names)) <= set(sensors["names"]):
        raise UserError(
            f'{what}: expected "sensors" among {listed(sensors["names"], 3)} and "window_sec", got {dict(chosen)!r}. '
            "Spell them as the table of sensors does."
        )
    if not (isinstance(window, list) and len(window) == 2 and all(isinstance(end, int | float) for end in window)):
        raise UserError(f'{what}: expected "window_sec" [start, stop], got {window!r}. Write two numbers, in seconds.')
    inside = (times >= window[0]) & (times < window[1])
    if not inside.any():
        raise UserError(
            f"{what}: expected a window that meets {times[0]:g} to {times[-1]:g} s, got {window!r}. "
            "Is it in milliseconds, or start_sec wrong?"
        )
    return (np.isin(sensors["names"], names)[:, None] & inside).ravel()


def _members(source: str) -> dict[str, Any]:
    if is_array(source):
        labels = np.asarray(read_array(source)).reshape(-1)
        return {str(label): np.flatnonzero(labels == label).tolist() for label in np.unique(labels) if label}
    path = Path(source)
    if path.suffix.lower() == ".json":
        return read_json(path)
    table = read_table(path, ["site", "roi"])
    members: dict[str, list[int]] = {}
    for site, roi in zip(whole_numbers(path, "site", table["site"]), table["roi"], strict=True):
        members.setdefault(roi, []).append(int(site))
    return members


def read_features(path: str) -> tuple[list[str], Shaped[np.ndarray, "n t c"]]:
    """Names, and features [names, tokens, channels]: from npz (names, features), or from an array with a list of names
    in a text file beside it (features.npy, features.txt). [names, channels] becomes one token.

    Raises UserError if their numbers differ or the array has another form.
    """
    if path.endswith(".npz"):
        names, features = [str(name) for name in read_array(f"{path}:names")], read_array(f"{path}:features")
    else:
        features = read_array(path)
        listing = split_source(path)[0].with_suffix(".txt")
        check_not_empty(listing)
        with reading(listing, "names in UTF-8"):
            names = listing.read_text(encoding="utf-8").split("\n")
        names = names[:-1] if names[-1] == "" else names
    if features.ndim == 2:
        features = features[:, None, :]
    if features.ndim != 3 or len(features) != len(names) or features.dtype.kind != "f":
        raise UserError(
            f"{path}: expected float features [{len(names)} names, tokens, channels], got {features.dtype} "
            f"{list(features.shape)}. Give one row for each name."
        )
    return names, features
