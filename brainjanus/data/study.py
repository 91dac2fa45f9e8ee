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
    """One subject: where its sites lie, with its ROIs, and its sessions in their order."""

    space: BrainSpace
    sessions: Sequence[Session]


# H height, W width
@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a study. ids: the stimuli that have one. read: (ids, size) -> each of these once, in whatever
    order they lie in, square RGB of `size` pixels a side. num_bytes: of one, on the disk."""

    ids: Sequence[str]
    read: Callable[[Sequence[str], int], Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]]
    num_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Study:
    """What a layout found.

    captions: by source ("coco", "vlm"), by stimulus. split: of each stimulus, by the dataset's own rule; None: drawn at
    random by stimulus. zscore: how responses are z-scored unless the user says otherwise. found: what the folder holds
    and lacks. notices: what was left out or is uncertain, one sentence each, which end in the dataset's provenance.
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


Layout = Literal["nsd", "mindeye2", "mindeye1", "mindllm", "brainjanus", "things-eeg2", "things-meg", "bids"]


@dataclass(frozen=True)
class StudyOptions:
    """What a user may say about any layout; a layout refuses, in one sentence, what it has no use for."""

    subjects: tuple[str, ...] = ()
    """Which subjects ("subj01", ...). Default: all that are there."""
    mask: str = ""
    """Name of the ROI volume that chooses voxels ("nsdgeneral"), or a path."""
    sessions: int = 0
    """At most so many sessions of each subject; 0: all."""
    captions: tuple[str, ...] = ()
    """Further sources of captions, NAME=FILE.json ({id or cocoId: caption or captions}), beside those of the layout."""
    betas: str = ""
    """Which version of the responses, where a layout has several (raw NSD: the folder under func1pt8mm)."""
    keys: tuple[str, ...] = ()
    """Names of tensors or datasets inside files, NAME=KEY, where a layout does not fix them."""
    files: tuple[str, ...] = ()
    """Where something lies that is not in its usual place, NAME=PATH ("coco=FOLDER"); see docs/guide/layouts.md."""
