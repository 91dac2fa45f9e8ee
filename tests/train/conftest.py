"""Planted data for the training of brain tokenizers: a few facts about each stimulus decide its response."""

import pytest


@pytest.fixture(scope="session")
def plant(tmp_path_factory):
    """A function that writes such a dataset: responses are linear in `rank` facts about the stimulus, plus noise.

    counts: repeats of the training stimuli, in turn; test stimuli have four. The facts are the features "facts",
    four of them "some".
    Subjects differ by their sites and by how these see the facts, which `seed` decides; stimuli do not.
    """
    import numpy as np

    from brainjanus.core.space import BrainSpace
    from brainjanus.data.dataset import Stimuli, Subject, Trials
    from brainjanus.data.write import write_dataset

    def write(subjects=(("a", 32),), *, train=120, test=30, counts=(2,), rank=4, noise=0.5, seed=0, captions=None):
        rng = np.random.default_rng(0)
        ids = [f"s{i:04}" for i in range(train + test)]
        facts = rng.standard_normal((len(ids), rank)).astype(np.float32)
        repeats = [counts[i % len(counts)] for i in range(train)] + [4] * test
        shown = np.repeat(np.arange(len(ids)), repeats)
        rng.shuffle(shown)
        zeros = np.zeros(len(shown), int)
        trials = Trials([ids[i] for i in shown], zeros, zeros, zeros, ["train" if i < train else "test" for i in shown])
        rng = np.random.default_rng(seed + 1)
        recorded = []
        for name, sites in subjects:
            seen = facts[shown] @ rng.standard_normal((rank, sites)) / rank**0.5
            responses = seen + noise * rng.standard_normal(seen.shape)
            recorded.append(Subject(BrainSpace(name, sites), responses.astype(np.float32), trials))
        stimuli = Stimuli(ids, captions=captions, features={"facts": facts[:, None], "some": facts[:, None, :4]})
        folder = tmp_path_factory.mktemp("planted") / "data"
        return write_dataset(
            folder, name="planted", modality="fMRI (simulated)", subjects=recorded, stimuli=stimuli, zscore="none"
        )

    return write
