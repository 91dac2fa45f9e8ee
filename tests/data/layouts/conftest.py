"""What was planted, and what a layout's reader made of it, in the same form: trial by trial, by number and by name."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainjanus.data.study import Study

NUM_VOXELS, SIZE = 7, 8
FAR = 72_999  # the last image: a reader that counts from 1 has no place for it


@dataclass
class Planted:
    """Two sessions of 40 trials: 20 images, four of them shared, each seen up to three times, in no order.

    trial counts from 0, 750 a session, as in NSD; betas have a row for each trial that there could have been.
    """

    trial: np.ndarray = field(default_factory=lambda: np.concatenate([np.arange(40), 750 + np.arange(40)]))
    image: np.ndarray = field(default_factory=lambda: np.empty(0))
    betas: np.ndarray = field(default_factory=lambda: np.empty(0))
    shared: frozenset[int] = frozenset()
    pixels: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        images = np.concatenate([[0, FAR], rng.choice(np.arange(1, FAR), 30, replace=False)])
        # 16 images thrice, 16 twice: 80 trials; the first four are for everyone
        self.image = rng.permutation(np.concatenate([np.repeat(images[:16], 3), np.repeat(images[16:], 2)]))
        self.shared = frozenset(images[:4].tolist())
        self.betas = rng.normal(2, 3, (1500, NUM_VOXELS)).astype(np.float32)
        self.pixels = {int(i): rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for i in images}

    @property
    def names(self) -> list[str]:
        return [f"nsd-{image:05}" for image in self.image]

    @property
    def session(self) -> np.ndarray:
        return self.trial // 750 + 1

    @property
    def run(self) -> np.ndarray:
        return self.trial % 750 // 10 + 1

    @property
    def split(self) -> dict[str, str]:
        return {f"nsd-{i:05}": "test" if i in self.shared else "train" for i in set(self.image.tolist())}

    def responses(self) -> np.ndarray:
        return self.betas[self.trial]


@pytest.fixture
def planted() -> Planted:
    return Planted()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def jpg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")  # decoded by what it is, whatever it is called: no loss to compare with
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in dict(members).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read_all(study: Study, subject: int = 0) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, sessions, runs and responses of every trial of a subject, in the order of the study."""
    sessions = study.subjects[subject].sessions
    names = [name for session in sessions for name in session.stimulus_id]
    number = np.concatenate([np.full(len(session.stimulus_id), session.number) for session in sessions])
    run = [np.ones(len(one.stimulus_id), int) if one.run is None else one.run for one in sessions]
    parts = [session.read() for session in sessions]
    for session, part in zip(sessions, parts, strict=True):
        assert part.dtype == np.float32
        assert part.shape == (len(session.stimulus_id), study.subjects[subject].space.num_sites)
    return names, number, np.concatenate(run), np.concatenate(parts)


def read_all_pictures(study: Study, size: int = SIZE) -> dict[str, np.ndarray]:
    assert study.pictures is not None
    ids = list(study.pictures.ids)
    found = list(study.pictures.read(ids, size))
    assert sorted(name for name, _ in found) == sorted(ids)
    return dict(found)
