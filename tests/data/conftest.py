"""A small recording that is sound, for tests to spoil one thing at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset

NUM_STIMULI, NUM_SITES, SIZE = 12, 5, 8


@dataclass
class Recording:
    """Twelve stimuli, each seen twice, once in each of two sessions; the first four are the test split."""

    ids: list[str] = field(default_factory=lambda: [f"s{i:02}" for i in range(NUM_STIMULI)])
    trial_ids: list[str] = field(default_factory=lambda: [f"s{i:02}" for i in range(NUM_STIMULI)] * 2)
    split: list[str] = field(default_factory=lambda: (["test"] * 4 + ["train"] * 8) * 2)
    session: np.ndarray = field(default_factory=lambda: np.repeat([1, 2], NUM_STIMULI))
    responses: np.ndarray = field(
        default_factory=lambda: np.random.default_rng(0).normal(3, 2, (2 * NUM_STIMULI, NUM_SITES))
    )
    pixels: np.ndarray = field(
        default_factory=lambda: np.random.default_rng(1).integers(0, 256, (NUM_STIMULI, SIZE, SIZE, 3), dtype=np.uint8)
    )
    picture_of: np.ndarray | None = None
    captions: dict[str, list[str]] | None = field(default_factory=lambda: {"s01": ["a red cup", "a cup"]})
    features: dict[str, np.ndarray] = field(
        default_factory=lambda: {"deep": np.arange(NUM_STIMULI * 6, dtype=np.float16).reshape(NUM_STIMULI, 2, 3)}
    )
    space: BrainSpace = field(
        default_factory=lambda: BrainSpace(
            "subj01",
            NUM_SITES,
            coordinates_mm=np.random.default_rng(2).normal(size=(NUM_SITES, 3)).astype(np.float32),
            rois={"V1": np.arange(NUM_SITES) < 2},
        )
    )

    def trials(self) -> Trials:
        repeat = np.repeat([1, 2], NUM_STIMULI)
        return Trials(self.trial_ids, self.session, np.ones_like(repeat), repeat, self.split)

    def subject(self) -> Subject:
        return Subject(self.space, self.responses, self.trials())

    def stimuli(self) -> Stimuli:
        return Stimuli(self.ids, self.pixels, self.picture_of, self.captions, self.features)

    def write(self, path: Path, **options: Any) -> Dataset:
        options = {"name": "small", "modality": "fMRI", "subjects": [self.subject()], **options}
        return write_dataset(path, stimuli=self.stimuli(), **options)


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def dataset(recording: Recording, tmp_path: Path) -> Dataset:
    return recording.write(tmp_path / "ds", provenance={"why": "a test"})


@pytest.fixture
def refuses(recording: Recording, tmp_path: Path) -> Callable[..., None]:
    """Assert that writing `recording` is refused with words of `message`, and leaves nothing behind."""

    def check(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            recording.write(tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []

    return check
