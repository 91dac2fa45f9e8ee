"""Study: someone else's files, found but not read. A layout's folder enters; what `prepare` streams from leaves.

A layout (`data/layouts/NAME.py`) looks through a folder, says what is there and what is missing, and returns a Study in
which nothing large has been read: each session of a subject, and each picture, is read when it is its turn, so that
memory holds one session at a time. Stimuli are named, never counted: whatever order files have, the id decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.write import How


class Found(NamedTuple):
    """One kind of file that a layout has. missing: what should be there and is not; empty: nothing.

    required: whether nothing can be prepared without it.
    """

    what: str  # "betas of subj01"
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    required: bool = True


# T trials, V sites
@dataclass(frozen=True, eq=False)
class Session:
    """One session of one subject.

    number: as the layout counts, kept in the dataset. stimulus_id: of each trial. run: of each trial, or None: 1.
    read: the responses, raw betas (any affine unit per site), float32; called once, and again where a preparation goes
    on. num_bytes: that reading takes from the disk, for the plan and its progress bar.
    """

    number: int
    stimulus_id: Sequence[str]
    read: Callable[[], Float[np.ndarray, "t v"]]
    run: Int[np.ndarray, "t"] | None = None
    num_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Recorded:
    """One subject: where its sites lie, with its ROIs, and its sessions in their order.

    num_readers: how many sessions may be read side by side, more than one where each takes a core to decompress."""

    space: BrainSpace
    sessions: Sequence[Session]
    num_readers: int = 1


# H height, W width
@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a study. ids: the stimuli that have one. read: (ids, size) -> each of these once, in whatever
    order they lie in, square RGB of `size` pixels a side. num_bytes: of one, on the disk."""

    ids: Sequence[str]
    read: Callable[[Sequence[str], int], Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]]
    num_bytes: int = 0


NUM_READERS = 2  # of compressed sessions
Place = Literal["file", "folder", "path"]
Layout = Literal["nsd", "mindeye2", "mindeye1", "mindllm", "brainjanus", "things-eeg2", "things-meg", "bids", "arrays"]


@dataclass(frozen=True)
class StudyOptions:
    """What a user may say about any layout; a layout refuses, in one sentence, what it has no use for."""

    subjects: tuple[str, ...] = ()
    """Which subjects ("subj01", ...). Default: all that are there."""
    mask: str = ""
    """Which voxels: the name of a ROI volume ("nsdgeneral"), a label ("V1v"), several ("V1v+V1d"), or a path."""
    sessions: int = 0
    """The first so many sessions of each subject; 0: all."""
    captions: tuple[str, ...] = ()
    """Further sources of captions, NAME=FILE.json ({id or cocoId: caption or captions}), beside those of the layout."""
    betas: str = ""
    """Which version of the responses, where a layout has several (raw NSD: the folder under func1pt8mm)."""
    keys: tuple[str, ...] = ()
    """Names of tensors or datasets inside files, NAME=KEY, where a layout does not fix them."""
    files: tuple[str, ...] = ()
    """Files and folders that lie elsewhere, NAME=PATH: of NSD and its peers expdesign (nsd_expdesign.mat), stim-info
    (nsd_stim_info_merged.csv) and coco (the folder of captions_*.json), of raw NSD also stimuli (nsd_stimuli.hdf5), of
    BIDS stimuli (pictures) and events (a folder), of THINGS images and data (folders)."""

    def __post_init__(self) -> None:
        if self.sessions < 0:
            raise UserError(
                f"--sessions: expected how many sessions to take, or 0 for all, got {self.sessions}. Correct it."
            )


def given_files(options: StudyOptions, places: Mapping[str, Place], layout: str) -> dict[str, Path]:
    """The paths of --files NAME=PATH. places: what each name has to be. Raises UserError for anything else."""
    given: dict[str, Path] = {}
    for entry in options.files:
        name, equals, text = entry.partition("=")
        path = Path(text).expanduser()
        if not equals or name not in places or not text:
            allowed = ", ".join(f"{known}={kind.upper()}" for known, kind in places.items())
            raise UserError(f"--files {entry}: expected one of {allowed} for {layout}, got another name. Correct it.")
        kind = places[name]
        if not (path.is_file() if kind == "file" else path.is_dir() if kind == "folder" else path.exists()):
            what = "a file or a folder" if kind == "path" else f"a {kind}"
            there = "nothing there" if not path.exists() else "a folder" if path.is_dir() else "a file"
            raise UserError(f"--files {entry}: expected {what}, got {there}. Correct the path.")
        given[name] = path
    return given


@dataclass(frozen=True, eq=False)
class Study:
    """What a layout found.

    captions: by source ("coco", "vlm"), by stimulus. split: of each stimulus, by the dataset's own rule; None: drawn at
    random by stimulus. zscore: how responses are z-scored unless the user says otherwise. found: what the folder holds
    and lacks. notices: what was left out or is uncertain, one sentence each, which end in the dataset's provenance.
    asked: what the user said of the layout.
    """

    layout: str
    name: str
    modality: str
    subjects: Sequence[Recorded]
    pictures: Pictures | None = None
    captions: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    split: Mapping[str, str] | None = None
    zscore: How = "session"
    found: Sequence[Found] = ()
    notices: Sequence[str] = ()
    asked: StudyOptions = StudyOptions()
