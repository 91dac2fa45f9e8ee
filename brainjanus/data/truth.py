"""What a simulated study knows of itself, for scores: the noise-free responses to held-out stimuli."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import safe_open

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset


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
        with safe_open(path, framework="np") as file:
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
