"""What all layouts of the Natural Scenes Dataset (NSD) share: names of stimuli, the test set, and published counts.

Enters: 73k ids, from 0 as MindEye's files count them; NSD's own tables count from 1, and who reads those subtracts 1.
Leaves: the name of a stimulus, the same whichever layout it came by ("nsd-00042"), its split, and what a complete
subject has (Allen et al. 2022, Nature Neuroscience 25, 116).
"""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from brainjanus.core.errors import UserError

NUM_IMAGES = 73_000
NUM_SHARED = 1_000
TRIALS_PER_SESSION = 750
SUBJECTS = tuple(f"subj{number:02}" for number in range(1, 9))
NSDGENERAL_VOXELS = dict(zip(SUBJECTS, (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386), strict=True))
NUM_SESSIONS = dict(zip(SUBJECTS, (40, 40, 32, 30, 40, 32, 40, 30), strict=True))
SHARED_SEEN = dict(zip(SUBJECTS, (1000, 1000, 930, 907, 1000, 930, 1000, 907), strict=True))  # at least once
_NAME = re.compile(r"nsd-(\d{5})", re.ASCII)


def stimulus_id(image: int | np.integer) -> str:
    """The name of the image with this 73k id, from 0: 42 -> "nsd-00042".

    Raises UserError for a number outside 0 to 72,999.
    """
    if not 0 <= image < NUM_IMAGES:
        raise UserError(
            f"NSD image {image}: expected a 73k id from 0 to {NUM_IMAGES - 1}, got {image}. "
            + ("Does the file count from 1? Subtract 1." if image == NUM_IMAGES else "Is the file of another dataset?")
        )
    return f"nsd-{int(image):05}"


def image_of(name: str) -> int:
    """The 73k id, from 0, of a stimulus: "nsd-00042" -> 42. Raises UserError for any other name."""
    found = _NAME.fullmatch(name)
    if found is None or int(found[1]) >= NUM_IMAGES:
        raise UserError(
            f"stimulus '{name}': expected a name from {stimulus_id(0)} to {stimulus_id(NUM_IMAGES - 1)}, got this one. "
            "Does it belong to another dataset than NSD?"
        )
    return int(found[1])


def split_of(ids: Iterable[str], shared: Collection[str]) -> dict[str, str]:
    """The split of each stimulus by NSD's own rule: what all subjects were to see (`shared`) is test."""
    shared = frozenset(shared)
    return {name: "test" if name in shared else "train" for name in ids}


def voxel_notice(subject: str, num_voxels: int) -> list[str]:
    """One sentence if a subject of NSD has another number of voxels than nsdgeneral at 1.8 mm; else nothing."""
    published = NSDGENERAL_VOXELS.get(subject, num_voxels)
    if published == num_voxels:
        return []
    return [
        f"{subject} has {num_voxels} voxels; nsdgeneral at 1.8 mm has {published} as published: numbers of models "
        "that used those are not comparable one to one."
    ]


def session_notice(subject: str, sessions: Sequence[int]) -> list[str]:
    """One sentence if a subject of NSD has fewer sessions than were published; else nothing."""
    published = NUM_SESSIONS.get(subject, len(sessions))
    if published <= len(sessions):
        return []
    return [
        f"{subject} has {len(sessions)} of the {published} sessions that NSD published: fewer stimuli, and fewer "
        "repeats of test stimuli, than published results rest on."
    ]
