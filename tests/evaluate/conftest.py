"""A small dataset whose responses are linear in the pictures, the captions being names of what fills them."""

from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset

NUM_TRAIN, NUM_TEST, REPEATS, SITES, SIDE = 150, 30, 3, 40, 8
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1), "yellow": (1, 1, 0)}


def build(folder: Path, subjects: tuple[str, ...] = ("s1", "s2"), pictures_each: int = 1) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [f"im{i:04d}" for i in range(NUM_TRAIN + NUM_TEST)]
    names = list(COLOURS)
    pairs = rng.integers(len(names), size=(len(ids), 2))
    halves = np.array([list(COLOURS.values())])[0][pairs] * 200.0
    pixels = np.repeat(halves[:, None, :, None, :], SIDE, axis=1).repeat(SIDE // 2, axis=3)
    pixels = pixels.reshape(len(ids), SIDE, SIDE, 3)
    pixels = np.repeat(pixels, pictures_each, axis=0)
    pixels = (pixels + rng.integers(0, 56, pixels.shape)).astype(np.uint8)
    captions = {
        name: [f"A {names[a]} area beside a {names[b]} one.", f"{names[b]} next to {names[a]}"]
        for name, (a, b) in zip(ids, pairs, strict=True)
    }
    people = []
    for subject in subjects:
        shown = np.concatenate([np.arange(NUM_TRAIN), np.repeat(np.arange(NUM_TRAIN, len(ids)), REPEATS)])
        signal = halves.reshape(len(ids), -1) / 100 @ rng.standard_normal((6, SITES))
        signal[:, -1] = 0
        noise = np.linspace(0.5, 6, SITES) * rng.standard_normal((len(shown), SITES))
        trials = Trials(
            [ids[i] for i in shown],
            session=np.zeros(len(shown), np.int64),
            run=np.zeros(len(shown), np.int64),
            repeat=np.where(shown < NUM_TRAIN, 0, (np.arange(len(shown)) - NUM_TRAIN) % REPEATS),
            split=["train" if i < NUM_TRAIN else "test" for i in shown],
        )
        rois = {"V1": np.arange(SITES) < 10, "late": np.arange(SITES) >= 20}
        space = BrainSpace(subject, SITES, coordinates_mm=rng.standard_normal((SITES, 3)) * 30, rois=rois)
        people.append(Subject(space, (signal[shown] + noise).astype(np.float32), trials))
    stimuli = Stimuli(ids, pixels, np.repeat(np.arange(len(ids)), pictures_each), captions)
    return write_dataset(
        folder, name="tiny", modality="fMRI (simulated)", subjects=people, stimuli=stimuli, zscore="all"
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Several pictures per stimulus."""
    return build(tmp_path_factory.mktemp("blocks") / "data", ("s1",), pictures_each=3)
