"""What `prepare` is told: the options, as flags or as a TOML spec, checked before anything is read.

Enters: a TOML file, or keyword arguments. Leaves: one frozen PrepareConfig. All problems are reported at once.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from brainjanus.core.errors import UserError
from brainjanus.core.space import MM_PER_MS, Kind
from brainjanus.data.readers.nifti import is_nifti
from brainjanus.data.write import MOST_SIDE, How, ResponsesDtype

IN_ORDER = "in-order"
_PATHS = {"responses", "trials", "mask", "coordinates", "sensors", "rois", "pictures", "captions", "features"}
_OF_SENSORS = {"start_sec", "sensors", "mm_per_ms"}


@dataclass(frozen=True)
class SubjectFiles:
    """One subject's files."""

    subject: str = "subj01"
    """Its name; names a folder of the dataset."""
    responses: tuple[str, ...] = ()
    """Betas: FILE or FILE:KEY (npy, npz, mat, HDF5, safetensors), or 4-D NIfTI images; several follow one another.
    With `sampling_hz`: arrays [trials, sensors, times]."""
    orientation: Literal["infer", "trials-first", "sites-first"] = "infer"
    """Which axis of an array counts trials, the first or the last; inferred if only one has the number of trials."""
    scale: float = 1.0
    """Responses are divided by this (300 for the integers of NSD)."""
    trials: str = ""
    """TSV with one row for each response: stimulus_id [session run repeat split fold]; or "in-order": response i
    belongs to picture i in the order of sorted names."""
    prefix: str = ""
    """Put before each stimulus id of this subject's trials; "in-order" takes the pictures with this prefix."""
    mask: str = ""
    """3-D NIfTI mask (> 0) of the voxels: gives their coordinates and the way back to a volume."""
    mask_order: Literal["C", "F"] = "C"
    """Order of an array's sites in the mask: C (NumPy), F (MATLAB). NIfTI betas are read in C order."""
    coordinates: str = ""
    """Where sites lie in mm: TSV with the columns x, y, z, or an array [sites, 3]. Not with a mask."""
    sampling_hz: float | None = None
    """EEG, MEG, neurons over time: times a second; responses are then [trials, sensors, times]."""
    start_sec: float = 0.0
    """When the first of these times is; 0 is when the stimulus came."""
    sensors: str = ""
    """TSV with one row for each sensor: name [x y z in mm: to the right, to the front, upwards]."""
    mm_per_ms: float = MM_PER_MS
    """How many mm a millisecond counts where patches of sensors x times are cut: the more, the shorter and wider."""
    rois: tuple[str, ...] = ()
    """JSON {name: [sites]}, a TSV of site and roi, an array of labels, or NAME=IMAGE.nii.gz. Sites count from 0. Of
    sensors: JSON {name: {"sensors": [names], "window_sec": [start, stop]}}, either or both."""
    kind: Kind = "voxels"
    """What a site is: with `sampling_hz`, sensors or neurons, at one time."""


@dataclass(frozen=True)
class PrepareConfig(SubjectFiles):
    """What to prepare. With `subjects`, these are prepared; otherwise the one subject that the fields above name."""

    name: str = "dataset"
    """The dataset's name."""
    modality: str = "fMRI"
    """What was measured, as reports should say it: "fMRI", "spike counts", ..."""
    pictures: tuple[str, ...] = ()
    """Folders, zip or tar archives, or arrays (FILE:KEY) of pictures; PREFIX=PATH puts PREFIX before their names."""
    image_size: int = 64
    """Height and width of the stored pictures: the square in the centre, resized with an antialiased bicubic filter."""
    captions: str = ""
    """JSON {stimulus_id: [caption, ...]}, or a TSV of stimulus_id and caption."""
    features: tuple[str, ...] = ()
    """NAME=FILE.npz (names, features), or NAME=PREFIX=FILE.npz; the same NAME may come in several files."""
    zscore: How = "session"
    """Z-score each site with the training trials of each session, of all sessions, or not at all."""
    test_fraction: float = 0.2
    """Without a split column: the part of the stimuli that is held out."""
    val_fraction: float = 0.0
    """Without a split column: the part of the stimuli that is put in "val"."""
    test_fold: int | None = None
    """The fold of the trials' fold column that is held out."""
    seed: int = 0
    """Seed of the split."""
    drop_constant_sites: bool = False
    """Leave out sites whose training responses never vary, which are refused otherwise."""
    responses_dtype: ResponsesDtype = "float32"
    """As which z-scored responses are stored; float16 takes half of the room."""
    subjects: tuple[SubjectFiles, ...] = ()
    """Several subjects (from a spec: [[subjects]] tables; what they do not set is as at the top of the spec)."""

    def __post_init__(self) -> None:
        problems = []
        for who in self.each_subject():
            nifti = [is_nifti(source) for source in who.responses]
            if not who.responses:
                problems.append(f"{who.subject}: no responses")
            if not who.trials:
                problems.append(f'{who.subject}: no trials (a TSV, or "{IN_ORDER}")')
            if who.trials == IN_ORDER and not self.pictures:
                problems.append(f'{who.subject}: trials "{IN_ORDER}" without pictures')
            if any(nifti) and not (all(nifti) and who.mask):
                problems.append(f"{who.subject}: NIfTI responses need a mask, and no other files among them")
            if who.mask and who.coordinates:
                problems.append(f"{who.subject}: coordinates beside a mask, which gives them already")
            problems += _sensor_problems(who)
            if not (np.isfinite(who.scale) and who.scale != 0):
                problems.append(f"{who.subject}: scale {who.scale}")
        if self.subjects:
            defaults = {f.name: f.default for f in fields(SubjectFiles)}
            unused = [name for name, default in defaults.items() if getattr(self, name) != default]
            problems += [f"{name} has no effect beside `subjects`: give it to each of them" for name in unused]
        names = [who.subject for who in self.each_subject()]
        problems += [f"{name}: given twice" for name in sorted({name for name in names if names.count(name) > 1})]
        if not (self.pictures or self.captions or self.features):
            problems.append("no pictures, captions or features, so nothing was shown")
        if not 1 <= self.image_size <= MOST_SIDE:
            problems.append(f"image_size {self.image_size}")
        if not (0 < self.test_fraction < 1 and 0 <= self.val_fraction < 1 - self.test_fraction):
            problems.append(
                f"test_fraction {self.test_fraction} and val_fraction {self.val_fraction} leave no training"
            )
        if any("=" not in entry for entry in self.features):
            problems.append("features without a name (NAME=FILE)")
        _refuse("the options of `prepare`", problems)

    def each_subject(self) -> tuple[SubjectFiles, ...]:
        """The subjects to prepare."""
        return self.subjects or (SubjectFiles(**{f.name: getattr(self, f.name) for f in fields(SubjectFiles)}),)

    @classmethod
    def load(cls, path: Path | str) -> "PrepareConfig":
        """Read a TOML spec. Paths in it are relative to its folder, or start with $VARIABLE.

        Raises UserError listing all unknown keys, wrong types and variables that are not set.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected a TOML spec, got '{error}'. Correct the path or the line.") from error
        problems: list[str] = []
        tables = content.pop("subjects", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            _refuse(str(path), ["subjects is no list of [[subjects]] tables"])
        values = _typed(cls, content, path.parent, "", problems)
        shared = {f.name: values.pop(f.name) for f in fields(SubjectFiles) if tables and f.name in values}
        subjects = []
        for number, table in enumerate(tables, start=1):
            own = _typed(SubjectFiles, table, path.parent, f"subjects[{number}].", problems)
            if "subject" not in own:
                problems.append(f"subjects[{number}].subject is missing")
            subjects.append(SubjectFiles(**shared | own))
        _refuse(str(path), problems)
        return cls(**values, subjects=tuple(subjects))


def _sensor_problems(who: SubjectFiles) -> list[str]:
    """What does not fit together in the options of one recording over time."""
    if who.sampling_hz is None:
        unused = [f.name for f in fields(who) if f.name in _OF_SENSORS and getattr(who, f.name) != f.default]
        return [f"{who.subject}: {name} without sampling_hz" for name in unused]
    problems = []
    if not 0 < who.sampling_hz < np.inf:
        problems.append(f"{who.subject}: sampling_hz {who.sampling_hz}")
    if not np.isfinite(who.start_sec):
        problems.append(f"{who.subject}: start_sec {who.start_sec}")
    if not 0 < who.mm_per_ms < np.inf:
        problems.append(f"{who.subject}: mm_per_ms {who.mm_per_ms}")
    if who.kind not in ("sensors", "neurons"):
        problems.append(f'{who.subject}: sampling_hz with {who.kind}; set kind = "sensors" or "neurons"')
    if who.mask or who.coordinates:
        problems.append(f"{who.subject}: a mask or coordinates beside sampling_hz: places are given in `sensors`")
    return problems


def _typed(kind: type, content: Mapping[str, Any], base: Path, where: str, problems: list[str]) -> dict[str, Any]:
    """The values of one table of a spec as the fields of `kind` have them; what is wrong is added to `problems`."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in content.items():
        hint = hints.get(key)
        if hint is None or key == "subjects":
            problems.append(f"{where}{key} is no option (these are: {', '.join(sorted(hints.keys() - {'subjects'}))})")
            continue
        if get_origin(hint) is tuple:
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
            fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        elif get_origin(hint) is Literal:
            fits = value in get_args(hint)
        else:
            kinds = get_args(hint) or (hint,)
            value = float(value) if float in kinds and type(value) is int else value
            fits = isinstance(value, kinds) and isinstance(value, bool) == (hint is bool)
        if not fits:
            expected = " or ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else str(hint)
            problems.append(f"{where}{key} is {value!r}, not {expected}")
        elif key in _PATHS and isinstance(value, tuple):
            values[key] = tuple(_located(item, base, problems) for item in value)
        else:
            values[key] = _located(value, base, problems) if key in _PATHS and value not in ("", IN_ORDER) else value
    return values


def _located(entry: str, base: Path, problems: list[str]) -> str:
    """The path of an entry ([NAME=]PATH) made absolute, with its variables expanded."""
    before, equals, path = entry.rpartition("=")
    path = os.path.expandvars(path)
    if left := re.search(r"\$\{?(\w+)", path):
        problems.append(f"the environment variable {left[1]} is not set ('{entry}')")
    return f"{before}{equals}{base.resolve() / path}"


def _refuse(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise UserError(
            f"{what}: expected options that fit together, got {len(problems)} "
            f"problem{'s' if len(problems) > 1 else ''}: {'; '.join(problems)}. Correct all of them."
        )
