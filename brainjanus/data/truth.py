"""What a simulated study knows of itself: OUT/truth/SUBJECT.safetensors, apart from the dataset, which never reads it.

A truth is a NamedTuple of arrays with `stimulus_ids`, the rows of its `responses` (noise-free, as z-scored).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset

T = TypeVar("T")


def save_truth(path: Path, truth: Any) -> None:
    arrays = {name: np.ascontiguousarray(value) for name, value in truth._asdict().items() if name != "stimulus_ids"}
    save_file(arrays, path, metadata={"stimulus_ids": json.dumps(truth.stimulus_ids)})


def load_truth(kind: Callable[..., T], out: Path | str, subject: str) -> T:
    """What the simulation in `out` knows of one subject, as the `kind` that it wrote. Raises UserError without one."""
    path = Path(out) / "truth" / f"{subject}.safetensors"
    if not path.is_file():
        raise UserError(
            f"{path}: expected the truth of {subject}, got no such file. Only simulated studies have one; give the "
            "folder that `brainjanus simulate` wrote to and a subject of its dataset."
        )
    with opened(path) as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return kind(**arrays, stimulus_ids=json.loads(file.metadata()["stimulus_ids"]))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A truth's file. Raises UserError if it is damaged, or misses something that is looked for in it."""
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected the truth of a simulated subject, got '{error}'. "
            "The file is damaged or of another kind: simulate the study again, or copy the file again."
        ) from error


def noise_free(
    dataset: Dataset, folder: Path | None = None, split: str = "test"
) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Noise-free responses to each subject's stimuli of a split, in the order of its averages; {} if none are known.

    folder: default: `truth` beside the dataset, if there is one. Raises UserError if it belongs to another study.
    """
    folder = dataset.path.parent / "truth" if folder is None else Path(folder)
    if folder == dataset.path.parent / "truth" and not folder.is_dir():
        return {}
    truth = {}
    for subject in dataset.subjects:
        path = folder / f"{subject}.safetensors"
        if not path.is_file():
            raise UserError(
                f"{path}: expected the noise-free responses of {subject}, got no such file. Only simulated studies "
                "have them: give the `truth` folder of this one, or leave it out."
            )
        with opened(path) as file:
            responses = file.get_tensor("responses")
            row_of = {name: row for row, name in enumerate(json.loads(file.metadata()["stimulus_ids"]))}
        ids = dataset.averages(subject, split).stimulus_ids
        if missing := [stimulus for stimulus in ids if stimulus not in row_of]:
            raise UserError(
                f"{path}: expected a noise-free response to every {split} stimulus, got none to '{missing[0]}'. "
                "Does the truth belong to another study? Give the one that was written with this dataset."
            )
        truth[subject] = responses[[row_of[stimulus] for stimulus in ids]]
    return truth
