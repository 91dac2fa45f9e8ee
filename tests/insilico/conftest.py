"""A run that a subject was added to."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def adapted_run(study, tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with n1 of a dataset that holds n2, too, whom it does not know."""
    from brainjanus.adapting import adapt
    from brainjanus.core.space import BrainSpace
    from brainjanus.data.dataset import Stimuli, Subject, Trials
    from brainjanus.data.write import write_dataset

    rng = np.random.default_rng(1)
    ids = list(study.stimulus_ids)
    split = ["train" if i < 64 else "test" for i in range(len(ids))]
    zeros = np.zeros(len(ids), np.int64)
    subjects = [
        Subject(
            BrainSpace(name, 30),
            rng.standard_normal((len(ids), 30)).astype(np.float32),
            Trials(ids, zeros, zeros, zeros, split),
        )
        for name in ("n1", "n2")
    ]
    folder = tmp_path_factory.mktemp("adapted")
    stimuli = Stimuli(ids, study.images(ids), captions={one: list(study.captions(one)) for one in ids})
    data = write_dataset(
        folder / "data", name="new", modality="fMRI (simulated)", subjects=subjects, stimuli=stimuli, zscore="all"
    )
    adapt(tiny_run, data, folder / "run", "n1", stimuli=16)
    return folder / "run"
