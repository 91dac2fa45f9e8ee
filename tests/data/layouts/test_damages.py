"""Bytes that are flipped, cut or put in: each layout reads on, or says one sentence; nothing else is ever raised.

Whatever happens, no file appears and none changes: the fuzzed folder is compared with itself.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.study import StudyOptions

from . import test_brainjanus_release, test_mindeye1, test_mindeye2, test_mindllm, test_things
from .conftest import Planted

CASES = 12  # of each layout here; more where there is time
BUILDERS: dict[str, Callable[[Path], object]] = {
    "mindeye2": lambda root: test_mindeye2.build(root, Planted()),
    "mindeye1": lambda root: test_mindeye1.build(root, Planted()),
    "mindeye1 as published": lambda root: test_mindeye1.build(root, Planted(), numbered=False),
    "mindllm": lambda root: test_mindllm.build(root, Planted()),
    "brainjanus": lambda root: test_brainjanus_release.build(root, Planted()),
    "things-eeg2": lambda root: test_things.build(root, "things-eeg2"),
    "things-meg": lambda root: test_things.build(root, "things-meg", suffix=".h5"),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files break, most often near their beginning, where headers are."""
    if not data:
        return b"\x00"
    place = (
        int(min(rng.exponential(len(data) / 20), len(data) - 1)) if rng.random() < 0.7 else int(rng.integers(len(data)))
    )
    kind = rng.integers(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(int(rng.integers(1, 9))):
            flipped[min(place + int(rng.integers(64)), len(data) - 1)] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if kind == 2:
        return data[:place] + rng.bytes(int(rng.integers(1, 600))) + data[place:]
    if kind == 3:
        return data[:place] + data[place + int(rng.integers(1, 600)) :]
    return data[:place] + b"\xff" * 16 + data[place + 16 :]


def state(root: Path) -> dict[str, str]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


def read_everything(layout: str, root: Path) -> None:
    study = open_study(layout.split()[0], root, StudyOptions())
    for subject in study.subjects:
        for session in subject.sessions:
            responses = session.read()
            assert responses.shape == (len(session.stimulus_id), subject.space.num_sites)
            assert responses.dtype == np.float32
    if study.pictures is not None:
        for _, picture in study.pictures.read(list(study.pictures.ids), 8):
            assert picture.shape == (8, 8, 3)


def fuzz(layout: str, root: Path, whole: Path, seeds: range) -> dict[str, int]:
    """How many cases were refused, and how many read on."""
    counts = {"refused": 0, "read": 0}
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and file.stat().st_size)
    # HDF5 and safetensors of pictures are large and mostly empty: their headers are what breaks
    for seed in seeds:
        rng = np.random.default_rng(seed)
        file = files[int(rng.integers(len(files)))]
        target = root / file
        before = target.read_bytes()
        target.unlink()
        target.write_bytes(damaged(before, rng))
        there = state(root)
        try:
            read_everything(layout, root)
            counts["read"] += 1
        except UserError as error:
            counts["refused"] += 1
            said = str(error)
            if "\n" in said or len(said) > 1500:
                raise AssertionError(f"{layout}, seed {seed}, {file}: {said}") from error
        except Exception as error:  # the case has to be known to be mended
            raise AssertionError(f"{layout}, seed {seed}, {file}: {type(error).__name__}: {error}") from error
        assert state(root) == there
        target.write_bytes(before)
    return counts


@pytest.mark.parametrize("layout", list(BUILDERS))
@pytest.mark.filterwarnings("ignore")  # of what a damaged picture or header makes Pillow and NumPy say
def test_damages_are_one_sentence(tmp_path, layout):
    BUILDERS[layout](tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "spoiled")
    counts = fuzz(layout, tmp_path / "spoiled", tmp_path / "whole", range(CASES))
    assert sum(counts.values()) == CASES
    read_everything(layout, tmp_path / "spoiled")  # whole again
