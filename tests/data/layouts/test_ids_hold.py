"""Damage to files that do not say who saw what changes no id: each layout refuses, or has the same trials as before."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.study import StudyOptions

from . import test_arrays, test_bids, test_brainjanus_release, test_mindeye1, test_mindeye2, test_nsd, test_things
from .conftest import Planted

CASES = 8
# of each layout: how it is built, and the files that say who saw what; of MindLLM that is the only one
LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nsd": (test_nsd.Miniature, "*nsd_expdesign.mat"),
    "bids": (test_bids.Volumes, "*events.tsv"),
    "arrays": (test_arrays.build, "*_trials.tsv"),
    "mindeye2": (lambda root: test_mindeye2.build(root, Planted()), "*.tar"),
    "mindeye1": (lambda root: test_mindeye1.build(root, Planted(), unpacked=True), "*.[cnt][our]*.npy"),
    "brainjanus": (lambda root: test_brainjanus_release.build(root, Planted()), "*/voxel/*"),
    "things-eeg2": (lambda root: test_things.build(root, "things-eeg2"), "*.tsv"),
    "things-meg": (lambda root: test_things.build(root, "things-meg", suffix=".h5"), "*.tsv"),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, lengthened, or with other bytes somewhere, most often near the beginning, where headers are."""
    place = int(rng.integers(min(len(data), 400) if rng.random() < 0.5 else len(data)))
    other = rng.bytes(int(rng.integers(1, 40)))
    return [data[:place], data[:place] + other + data[place:], data[:place] + other + data[place + len(other) :]][
        int(rng.integers(3))
    ]


def trials(layout: str, root: Path) -> list[tuple[str, int, list[str]]]:
    """Subject, session and stimuli; responses are read too, since a reader may find out only then."""
    who = "anna" if layout == "arrays" else "sub-01" if layout[:2] in ("bi", "th") else "subj01"
    study = open_study(layout, root, StudyOptions(subjects=(who,)))
    found = []
    for who in study.subjects:
        for session in who.sessions:
            assert session.read().shape == (len(session.stimulus_id), who.space.num_sites)
            found.append((who.space.subject, session.number, list(session.stimulus_id)))
    return found


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.filterwarnings("ignore")  # of what damaged headers make libraries say
def test_what_is_read_after_damage_has_the_same_ids(tmp_path, layout):
    build, says_who = LAYOUTS[layout]
    build(tmp_path)
    before = trials(layout, tmp_path)
    files = [
        f for f in sorted(tmp_path.rglob("*")) if f.is_file() and f.stat().st_size and not fnmatch(str(f), says_who)
    ]
    counts = {"read": 0, "refused": 0}
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        file = files[int(rng.integers(len(files)))]
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng))
        try:
            assert trials(layout, tmp_path) == before, f"seed {seed}, {file}"
            counts["read"] += 1
        except UserError:
            counts["refused"] += 1
        file.write_bytes(content)
    assert sum(counts.values()) == CASES
    assert trials(layout, tmp_path) == before
