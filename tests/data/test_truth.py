"""Noise-free responses are found by stimulus, and refused if they belong to another study."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from brainjanus.core.errors import UserError
from brainjanus.data.simulate import SimulationConfig, Truth, simulate
from brainjanus.data.truth import load_truth, noise_free


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    tiny = SimulationConfig(num_subjects=1, num_train=8, num_test=4, repeats=2, num_sites=(60, 60),
                            trials_per_session=12)  # fmt: skip
    return simulate(tmp_path_factory.mktemp("simulated") / "study", tiny)


def write(folder, dataset, ids_of):
    """A truth in which each site of a stimulus is the number of the stimulus."""
    for subject in dataset.subjects:
        ids = ids_of(subject)
        rows = np.array([[float(i[1:])] * dataset.space(subject).num_sites for i in ids], np.float32)
        folder.mkdir(exist_ok=True)
        save_file({"responses": rows}, folder / f"{subject}.safetensors", metadata={"stimulus_ids": json.dumps(ids)})


@pytest.mark.parametrize("split", ["test", "train"])
def test_rows_are_those_of_the_averages_whatever_their_order_in_the_file(study, tmp_path, split):
    write(tmp_path, study, lambda _: list(study.stimulus_ids[::-1]))
    truth = noise_free(study, tmp_path, split)
    for subject in study.subjects:
        expected = [float(i[1:]) for i in study.averages(subject, split).stimulus_ids]
        assert truth[subject][:, 0].tolist() == expected
        assert truth[subject].shape == (len(expected), study.space(subject).num_sites)


def test_the_truth_of_a_simulated_study_is_found_beside_it(simulated):
    (subject,) = simulated.subjects
    known = load_truth(Truth, simulated.path.parent, subject)
    ids = simulated.averages(subject, "test").stimulus_ids
    expected = known.responses[[known.stimulus_ids.index(i) for i in ids]]
    found = noise_free(simulated)
    assert list(found) == [subject]
    np.testing.assert_array_equal(found[subject], expected)
    np.testing.assert_array_equal(noise_free(simulated, simulated.path.parent / "truth")[subject], expected)


def test_where_nothing_is_known_there_is_nothing(study):
    assert noise_free(study) == {}


def test_a_folder_that_was_named_has_to_hold_it(study, tmp_path):
    with pytest.raises(UserError, match=r"s1\.safetensors: expected the noise-free responses of s1, got no such file"):
        noise_free(study, tmp_path / "nowhere")
    write(tmp_path, study, lambda _: list(study.stimulus_ids))
    (tmp_path / "s2.safetensors").unlink()
    with pytest.raises(UserError, match=r"s2\.safetensors: .* Only simulated studies have them"):
        noise_free(study, tmp_path)


@pytest.mark.parametrize("content", [b"", b"cut short", None])
def test_a_damaged_truth_is_refused(study, tmp_path, content):
    (tmp_path / "truth").mkdir()
    if content is None:  # arrays that do not say which stimuli they belong to
        save_file({"other": np.zeros(3)}, tmp_path / "truth/s1.safetensors")
    else:
        (tmp_path / "truth/s1.safetensors").write_bytes(content)
    for read in (lambda: load_truth(Truth, tmp_path, "s1"), lambda: noise_free(study, tmp_path / "truth")):
        with pytest.raises(UserError, match=r"s1\.safetensors: expected the truth of a simulated subject, got"):
            read()


def test_the_truth_of_another_study_is_refused(study, tmp_path):
    write(tmp_path, study, lambda _: list(study.stimulus_ids[:70]))
    with pytest.raises(UserError, match=r"expected a noise-free response to every test stimulus, got none to 's070'\. "
                       "Does the truth belong to another study"):  # fmt: skip
        noise_free(study, tmp_path)
