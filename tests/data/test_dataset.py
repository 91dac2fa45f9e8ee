"""The Dataset on disk: what was written is what is read, and what is damaged is said to be."""

import json
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset, Trials, map_tensor


def test_everything_that_was_written_is_read(dataset, recording):
    again = Dataset.open(dataset.path)
    assert (again.name, again.modality, again.subjects, again.image_size) == ("small", "fMRI", ("subj01",), 8)
    assert again.stimulus_ids == tuple(recording.ids)
    assert again.feature_names == ("deep",)
    assert again.manifest["provenance"] == {"why": "a test"}
    assert again.trials("subj01").stimulus_id == recording.trial_ids
    assert again.trials("subj01").split == recording.split
    assert again.trials("subj01").session.tolist() == recording.session.tolist()
    assert again.trials("subj01").fold is None
    np.testing.assert_array_equal(again.space("subj01").coordinates_mm, recording.space.coordinates_mm)
    assert again.captions("s01") == ("a red cup", "a cup")
    assert again.captions("s02") == ()


def test_raw_betas_follow_from_responses_and_statistics(dataset, recording):
    session, mean, std = dataset.zscore("subj01")
    group = np.searchsorted(session, recording.session)
    np.testing.assert_allclose(dataset.responses("subj01") * std[group] + mean[group], recording.responses, rtol=1e-5)


def test_responses_of_rows(dataset):
    np.testing.assert_array_equal(dataset.responses("subj01", np.array([5, 2])), dataset.responses("subj01")[[5, 2]])


def test_averages_are_means_over_repeats_sorted_by_id(dataset):
    names, responses, num_repeats = dataset.averages("subj01", "test")
    assert names == ["s00", "s01", "s02", "s03"]
    assert num_repeats.tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(responses[1], dataset.responses("subj01")[[1, 13]].mean(axis=0), rtol=1e-6)


def test_averages_of_some_stimuli_are_those_of_all(dataset):
    every = dataset.averages("subj01", "test")
    few = [every.stimulus_ids[2], every.stimulus_ids[0], "unknown"]
    some = dataset.averages("subj01", "test", few)
    assert some.stimulus_ids == [every.stimulus_ids[0], every.stimulus_ids[2]]
    np.testing.assert_array_equal(some.responses, every.responses[[0, 2]])
    np.testing.assert_array_equal(some.num_repeats, every.num_repeats[[0, 2]])


def test_everything_is_keyed_by_stimulus_id(dataset, recording):
    np.testing.assert_array_equal(dataset.images(["s07", "s03"]), recording.pixels[[7, 3]])
    np.testing.assert_array_equal(dataset.features("deep", ["s07", "s03"]), recording.features["deep"][[7, 3]])
    assert dataset.features("deep", ["s07"]).dtype == np.float32
    assert dataset.split_ids("test") == ("s00", "s01", "s02", "s03")


def test_a_stimulus_may_have_several_pictures_or_none(recording, tmp_path):
    recording.picture_of = np.array([0, 0, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9])
    dataset = recording.write(tmp_path / "ds")
    np.testing.assert_array_equal(dataset.pictures("s00"), recording.pixels[:3])
    np.testing.assert_array_equal(dataset.images(["s01"])[0], recording.pixels[3])
    with pytest.raises(UserError, match=r"expected a picture of stimulus 's02', got none"):
        dataset.images(["s02"])


def test_trials_with_folds_round_trip(tmp_path):
    trials = Trials(
        ["a", "b"], np.array([1, 2]), np.array([3, 4]), np.array([1, 1]), ["train", "test"], np.array([7, 8])
    )
    trials.save(tmp_path / "trials.tsv")
    again = Trials.load(tmp_path / "trials.tsv")
    assert again.fold.tolist() == [7, 8]
    assert again.run.tolist() == [3, 4]
    assert again.rows("test").tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.responses("subj09"), r"one of its subjects \(subj01\), got 'subj09'"),
        (lambda d: d.images(["nope"]), r"one of its 12 stimuli .*got 'nope'"),
        (lambda d: d.captions("nope"), r"one of its 12 stimuli .*got 'nope'"),
        (lambda d: d.features("shallow", ["s00"]), r"features that it has \(deep\), got 'shallow'"),
        (lambda d: d.features("deep", ["nope"]), r"one of its 12 stimuli .*got 'nope'"),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(dataset, call, message):
    with pytest.raises(UserError, match=message):
        call(dataset)


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(manifest | changes))


def test_foreign_newer_and_cut_manifests_are_refused(dataset):
    edit(dataset.path, version=2)
    with pytest.raises(UserError, match=r"version 1 or older, got 2\. It was written by a newer brainjanus"):
        Dataset.open(dataset.path)
    edit(dataset.path, format="something-else")
    with pytest.raises(UserError, match=r"expected format 'brainjanus-dataset', got 'something-else'"):
        Dataset.open(dataset.path)
    (dataset.path / "dataset.json").write_text('{"format": "brainjanus-dataset", "version": 1}')
    with pytest.raises(UserError, match=r"expected the keys .*files"):
        Dataset.open(dataset.path)
    (dataset.path / "dataset.json").write_text('{"format": "brain')
    with pytest.raises(UserError, match=r"a readable dataset.json"):
        Dataset.open(dataset.path)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a dataset folder .*No such file"):
        Dataset.open(tmp_path / "nowhere")


def test_a_truncated_file_is_named(dataset):
    file = dataset.path / "subjects/subj01/responses.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"responses.safetensors: expected the \d+ bytes .*truncated or damaged"):
        Dataset.open(dataset.path)


def test_a_header_that_cannot_be_read_is_named(dataset):
    file = dataset.path / "images.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(UserError, match=r"images.safetensors: .*a header that cannot be read"):
        Dataset.open(dataset.path)


def test_a_missing_file_is_named(dataset):
    (dataset.path / "stimuli.tsv").unlink()
    with pytest.raises(UserError, match=r"stimuli.tsv: expected this file, .*The dataset is incomplete"):
        Dataset.open(dataset.path)


def test_verify_finds_a_changed_byte(dataset):
    dataset.verify()
    file = dataset.path / "subjects/subj01/responses.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"responses.safetensors: expected SHA-256 .*was changed after it was written"):
        Dataset.open(dataset.path).verify()


def test_tensors_are_mapped_and_read_only(dataset):
    mapped = map_tensor(dataset.path / "images.safetensors", "pixels")
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
