"""A score that rests on a leak is refused, or says so: test stimuli in training, statistics from the test set, ids."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset, Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.compare import compare
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.record import Predictions
from brainjanus.evaluate.score import LEAKED, ScoreOptions, score

QUICK = ScoreOptions(baseline=False, permutations=50, resamples=20, extras=Extras(java=False))


def predictions_for(dataset, noise=1.0):
    averages = dataset.averages("s1", "test")
    values = averages.responses + noise * np.random.default_rng(0).standard_normal(averages.responses.shape)
    return Predictions("image->brain", "s1", averages.stimulus_ids, "mean", values.astype(np.float32))


def zscored_elsewhere(tiny, folder, *, with_test):
    """The same recording, z-scored before it was prepared, with or without the test trials."""
    trials, responses = tiny.trials("s1"), tiny.responses("s1").astype(np.float64)[:, :-1]  # the last one is constant
    rows = slice(None) if with_test else trials.rows("train")
    values = (responses - responses[rows].mean(axis=0)) / responses[rows].std(axis=0)
    space = tiny.space("s1")
    space = replace(
        space,
        num_sites=39,
        coordinates_mm=space.coordinates_mm[:-1],
        rois={},
        order=None,
        index=None,
        signal_variance=None,
        noise_variance=None,
    )
    stimuli = Stimuli(
        tiny.stimulus_ids, tiny.images(tiny.stimulus_ids), captions={i: tiny.captions(i) for i in tiny.stimulus_ids}
    )
    subject = Subject(space, values.astype(np.float32), trials)
    return write_dataset(folder, name="peer", modality="fMRI", subjects=[subject], stimuli=stimuli, zscore="none")


def test_test_stimuli_in_training_are_refused(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / "data")
    table = tmp_path / "data" / "subjects" / "s1" / "trials.tsv"
    lines = table.read_text().splitlines()
    last = lines[-1].split("\t")
    lines[1] = "\t".join([last[0], *lines[1].split("\t")[1:]])  # the first training trial shows a test stimulus
    table.write_text("\n".join(lines) + "\n")
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    manifest["files"]["subjects/s1/trials.tsv"]["bytes"] = table.stat().st_size
    manifest["fingerprint"] = "0" * 64
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(manifest))
    dataset = Dataset.open(tmp_path / "data")
    with pytest.raises(UserError, match="expected each stimulus in one split, got them in train and in test"):
        score(dataset, predictions_for(dataset), QUICK)


def test_statistics_from_the_test_set_are_told_and_not_compared_with_clean_ones(tiny, tmp_path):
    leaky = zscored_elsewhere(tiny, tmp_path / "leaky", with_test=True)
    scored = score(leaky, predictions_for(leaky), QUICK)
    assert any("test" in warning and "s1" in warning for warning in scored.warnings)
    assert all(LEAKED in record.protocol.responses for record in scored.records)
    clean = zscored_elsewhere(tiny, tmp_path / "clean", with_test=False)
    other = score(clean, predictions_for(clean), QUICK)
    assert other.warnings == []
    assert not any(LEAKED in record.protocol.responses for record in other.records)
    with pytest.raises(UserError, match=LEAKED):
        compare({"leaky": scored.records, "clean": other.records}, allow=["fingerprint"])


@pytest.mark.parametrize("shift", [1, -3])
def test_shifted_ids_are_told(tiny, shift):
    right = predictions_for(tiny)
    assert score(tiny, right, QUICK).warnings == []
    wrong = replace(right, values=np.roll(right.values, shift, axis=0))
    (warning,) = score(tiny, wrong, QUICK).warnings
    assert "image->brain predictions for s1 (mean)" in warning
    assert str(abs(shift)) in warning


def test_a_decoder_with_shuffled_ids_is_told(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    pictures = np.roll(tiny.images(ids), 1, axis=0)
    (warning,) = score(tiny, Predictions("brain->image", "s1", ids, "mean", pictures), QUICK).warnings
    assert "1" in warning


def test_a_bad_model_is_not_taken_for_a_shuffled_one(tiny):
    right = predictions_for(tiny)
    noise = np.random.default_rng(1).standard_normal(right.values.shape).astype(np.float32)
    assert score(tiny, replace(right, values=noise), QUICK).warnings == []
