"""What makes a dataset unsound is refused by name, and nothing is left half-written."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors import SafetensorError

from brainjanus.core.errors import UserError
from brainjanus.data import write
from brainjanus.data.dataset import Dataset, Stimuli, Subject, map_tensor
from brainjanus.data.write import restricted, signal_and_noise, zscored


def test_zscore_uses_training_trials_alone(recording, tmp_path):
    plain = recording.write(tmp_path / "a").responses("subj01")
    test = np.array(recording.split) == "test"
    recording.responses[test] += 100
    moved = recording.write(tmp_path / "b").responses("subj01")
    np.testing.assert_array_equal(moved[~test], plain[~test])
    for session in (1, 2):
        rows = ~test & (recording.session == session)
        np.testing.assert_allclose(plain[rows].mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(plain[rows].std(axis=0), 1, rtol=1e-6)


def test_zscore_over_all_sessions_and_none(recording):
    train = np.arange(4, 12)
    scored, statistics, _ = zscored(recording.responses, recording.session, train, "all")
    assert statistics.session.tolist() == [-1]
    np.testing.assert_allclose(scored[train].std(axis=0), 1, rtol=1e-6)
    scored, statistics, _ = zscored(recording.responses, recording.session, train, "none")
    np.testing.assert_allclose(scored, recording.responses, rtol=1e-6)
    assert (statistics.mean == 0).all()
    assert (statistics.std == 1).all()


def test_planted_signal_and_noise_are_recovered():
    rng = np.random.default_rng(0)
    signal, noise = np.array([0.0, 0.5, 2.0]), np.array([1.0, 0.5, 0.1])
    stimuli = rng.normal(size=(4000, 1, 3)) * np.sqrt(signal)
    trials = (stimuli + rng.normal(size=(4000, 3, 3)) * np.sqrt(noise)).reshape(-1, 3)
    found = signal_and_noise(trials, np.repeat(np.arange(4000), 3).astype(str).tolist())
    np.testing.assert_allclose(found.noise, noise, rtol=0.03)
    np.testing.assert_allclose(found.signal, signal, atol=0.06)


def test_noise_variance_is_the_unbiased_one_over_repeats_of_any_number():
    responses = np.array([[0.0], [2.0], [5.0], [5.0], [8.0], [100.0]])
    found = signal_and_noise(responses, ["a", "a", "b", "b", "b", "c"])
    assert found.noise[0] == pytest.approx((2 + 3) / 2)
    assert found.signal[0] == pytest.approx(responses.var(ddof=1) - 2.5)


def test_without_repeats_there_are_no_variances(recording, tmp_path):
    assert signal_and_noise(recording.responses, [str(i) for i in range(24)]) is None


def test_variances_come_from_training_repeats_or_else_from_the_test_split(recording, tmp_path):
    def planted(split: str) -> float:
        """Repeats of `split` differ by much, all others by nothing."""
        recording.responses[12:] = recording.responses[:12]
        recording.responses[12:][np.array(recording.split[:12]) == split] += 50
        noise = recording.write(tmp_path / split, zscore="none").space("subj01").noise_variance
        return float(noise.mean())

    assert planted("train") == pytest.approx(1250)
    assert planted("test") == pytest.approx(0)
    once = [i for i in range(24) if i < 12 or recording.split[i] == "test"]  # training stimuli shown once
    recording.responses = recording.responses[once]
    trials = recording.trials()
    part = trials._replace(
        stimulus_id=[trials.stimulus_id[i] for i in once],
        split=[trials.split[i] for i in once],
        **{name: getattr(trials, name)[once] for name in ("session", "run", "repeat")},
    )
    subject = Subject(recording.space, recording.responses, part)
    found = recording.write(tmp_path / "once", subjects=[subject], zscore="none")
    np.testing.assert_allclose(found.space("subj01").noise_variance, 1250, rtol=1e-5)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e39, r"1e\+39")])
def test_responses_that_are_not_finite_are_refused(recording, refuses, value, name):
    recording.responses[5, 3] = value
    refuses(rf"responses of subj01: expected finite numbers, got {name} at trial 5, site 3")


def test_another_number_of_voxels_is_refused(recording, refuses):
    recording.responses = recording.responses[:, :4]
    refuses(r"responses of subj01: expected 5 sites \(voxels\), as its space has, got 4")


def test_another_number_of_trials_is_refused(recording, refuses):
    recording.responses = recording.responses[:-1]
    refuses("trials of subj01: expected one row for each of the 23 responses, got 24")


def test_responses_that_are_no_numbers_are_refused(recording, refuses):
    recording.responses = recording.responses.astype(str)
    refuses(r"responses of subj01: expected numbers \[trials, sites\], got <U")


def test_unknown_stimulus_is_refused(recording, refuses):
    recording.trial_ids[7] = "nope"
    refuses(r"trials of subj01: expected a stimulus among the 12 .*got 'nope' at trial 7")


def test_unknown_split_is_refused(recording, refuses):
    recording.split[0] = "Test"
    refuses("expected a split among train, val, test, got 'Test' at trial 0")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused(recording, refuses, split):
    recording.split = ["val" if s == split else s for s in recording.split]
    refuses(f"expected trials in train and in test, got none in {split}")


def test_a_stimulus_in_two_splits_is_refused_in_one_subject_and_across_two(recording, refuses):
    recording.split[0] = "train"
    refuses(r"stimulus 's00': expected one split, over all subjects, got train \(subj01\) and test \(subj01\)")
    recording.split[0] = "test"
    other = replace(recording.subject(), space=replace(recording.space, subject="subj02"))
    other = replace(
        other, trials=other.trials._replace(split=[{"test": "train", "train": "test"}[s] for s in other.trials.split])
    )
    refuses(r"got test \(subj01\) and train \(subj02\)", subjects=[recording.subject(), other])


def test_identical_pictures_in_two_splits_are_refused(recording, refuses, tmp_path):
    recording.pixels[2] = recording.pixels[9]
    refuses("stimuli 's02' and 's09': expected identical pictures in one split, got test and train")
    recording.pixels[2] = recording.pixels[3]
    recording.write(tmp_path / "one_split")


def test_an_identical_picture_of_a_stimulus_nobody_saw_hides_no_leak(recording, refuses):
    recording.ids = ["s", *recording.ids]
    recording.pixels = np.concatenate([recording.pixels[9:10], recording.pixels])
    recording.pixels[3] = recording.pixels[10]
    recording.features = {}
    refuses("stimuli 's02' and 's09': expected identical pictures in one split")


def test_constant_sites_are_refused_by_number_or_dropped(recording, refuses, tmp_path):
    train = np.array(recording.split) == "train"
    recording.responses[train & (recording.session == 2), 1] = 7
    refuses(r"of each session, got 1 constant ones of 5 \(sites 1\)")
    dataset = recording.write(tmp_path / "ds", drop_constant_sites=True)
    assert dataset.manifest["provenance"]["dropped_sites"] == {"subj01": 1}
    assert dataset.responses("subj01").shape[1] == dataset.space("subj01").num_sites == 4
    assert dataset.zscore("subj01").mean.shape == (2, 4)
    np.testing.assert_array_equal(dataset.space("subj01").coordinates_mm, recording.space.coordinates_mm[[0, 2, 3, 4]])


def test_all_sites_constant_is_refused_even_when_dropping(recording, refuses):
    recording.responses[:] = 1
    refuses("got 5 constant ones of 5", drop_constant_sites=True)


def test_a_restricted_space_keeps_its_order(recording):
    space = replace(recording.space, order=np.array([4, 0, 2, 3, 1]))
    kept = restricted(space, np.array([True, False, True, True, True]))
    assert kept.order.tolist() == [3, 0, 1, 2]
    assert kept.index.tolist() == [0, 2, 3, 4]
    assert kept.rois["V1"].tolist() == [True, False, False, False]


def test_a_session_without_training_trials_is_refused(recording, refuses, tmp_path):
    recording.session[:] = 1
    recording.session[[0, 1]] = 2
    refuses(r"subj01, session 2: expected at least 2 training trials to z-score with, got 0\. .*zscore = \"all\"")
    recording.write(tmp_path / "ds", zscore="all")


def test_stimuli_are_checked(recording, refuses):
    recording.ids[3] = "s02"
    refuses("stimulus 's02': expected each stimulus id once, got it twice")
    recording.ids[3] = "s\t3"
    refuses(r"stimulus 's\\t3': expected a name without tabs")
    recording.ids[3] = "s03"
    recording.captions = {"s99": ["a cup"]}
    refuses("captions of 's99': expected at least one caption")
    recording.captions = {"s01": ["a cup", " "]}
    refuses("captions of 's01': .*none empty")
    recording.captions = None
    recording.features["deep"] = recording.features["deep"][:-1]
    refuses(r"features 'deep': expected floats \[12 stimuli, tokens, channels\], got float16 \[11, 2, 3\]")
    recording.features["deep"] = np.full((12, 2, 3), np.inf, np.float16)
    refuses("features 'deep': expected finite numbers, got NaN or infinity for stimulus 's00'")
    recording.features = {}
    recording.pixels = recording.pixels[:, :4]
    refuses(r"pictures: expected square uint8 RGB .*got uint8 \[12, 4, 8, 3\]")
    recording.pixels = recording.pixels[:-1, :, :4]
    refuses("pictures: expected 11 pictures with a stimulus among 12 each, got 12")


def test_subject_names_are_checked(recording, refuses):
    refuses("subject 'subj01': expected a name of its own", subjects=[recording.subject(), recording.subject()])
    recording.space = replace(recording.space, subject="../escape")
    refuses("subject '../escape': expected a name of letters, digits, '-' and '_'")
    refuses("expected at least one subject, got none", subjects=[])


@pytest.mark.parametrize("name", ["a.b", "a/b", "..", "", "-a", "a b", "brain:a"])
def test_names_that_would_break_paths_or_modules_are_refused(recording, refuses, name):
    recording.features = {name: recording.features["deep"]}
    refuses(f"features '{name}': expected a name of letters, digits, '-' and '_'")
    recording.features = {}
    recording.space = replace(recording.space, subject=name)
    refuses(f"subject '{name}': expected a name of letters, digits, '-' and '_'")


def test_names_may_have_dashes_and_underscores(recording, tmp_path):
    recording.features = {"clip-vit_L14": recording.features["deep"]}
    recording.space = replace(recording.space, subject="sub-01_a")
    dataset = recording.write(tmp_path / "ds")
    assert (dataset.subjects, dataset.feature_names) == (("sub-01_a",), ("clip-vit_L14",))


def test_a_dataset_is_replaced_only_when_asked_and_nothing_else_ever(recording, dataset, tmp_path):
    with pytest.raises(UserError, match=r"already holds a dataset\. Give --overwrite"):
        recording.write(dataset.path)
    recording.responses[0, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        recording.write(dataset.path, overwrite=True)
    dataset.verify()
    recording.responses[0, 0] = 0
    assert recording.write(dataset.path, overwrite=True).fingerprint != dataset.fingerprint
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else than a dataset"):
        recording.write(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("file", ["responses.safetensors", "images.safetensors"])
def test_a_full_disk_leaves_nothing_behind(recording, refuses, monkeypatch, file):
    real = write.save_file

    def full(arrays, path):
        if path.name == file:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(arrays, path)

    monkeypatch.setattr(write, "save_file", full)
    refuses("expected room to write it, got a full disk")


def test_the_fingerprint_depends_on_content_alone(recording, tmp_path):
    first = recording.write(tmp_path / "a", name="one")
    assert recording.write(tmp_path / "b", name="two").fingerprint == first.fingerprint
    recording.pixels[0, 0, 0, 0] ^= 1
    assert recording.write(tmp_path / "c", name="one").fingerprint != first.fingerprint


def test_a_dataset_of_words_alone(recording, tmp_path):
    stimuli = Stimuli(recording.ids, captions={name: [name] for name in recording.ids})
    dataset = write.write_dataset(
        tmp_path / "ds", name="words", modality="fMRI", subjects=[recording.subject()], stimuli=stimuli
    )
    assert dataset.image_size is None
    assert not (dataset.path / "images.safetensors").exists()
    with pytest.raises(UserError, match="expected a picture of stimulus 's00', got none"):
        Dataset.open(dataset.path).images(["s00"])


# --- captions of several sources


def test_captions_of_several_sources_are_kept_side_by_side(recording, tmp_path):
    stimuli = replace(
        recording.stimuli(), caption_source="coco", further_captions={"vlm": {"s01": ["red"], "s05": ["blue", "navy"]}}
    )
    dataset = write.write_dataset(
        tmp_path / "ds", name="small", modality="fMRI", subjects=[recording.subject()], stimuli=stimuli
    )
    assert dataset.caption_sources == ("coco", "vlm")
    assert dataset.captions("s01") == dataset.captions("s01", "coco") == ("a red cup", "a cup")
    assert dataset.captions("s05", "vlm") == ("blue", "navy") and dataset.captions("s05") == ()
    assert (dataset.path / "captions.json").exists() and (dataset.path / "captions" / "vlm.json").exists()
    dataset.verify()
    with pytest.raises(UserError, match=r"expected one of its sources of captions \(coco, vlm\), got 'git'"):
        dataset.captions("s01", "git")


def test_captions_that_nobody_named_have_a_name_also_in_datasets_of_old(recording, dataset, tmp_path):
    assert dataset.caption_sources == ("captions",)
    old = {key: fact for key, fact in dataset.manifest.items() if key != "caption_sources"}
    assert Dataset(dataset.path, old).captions("s01", "captions") == ("a red cup", "a cup")
    recording.captions = None
    bare = recording.write(tmp_path / "bare")
    assert bare.caption_sources == () and bare.captions("s01") == ()


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"captions": {"s01": ["x"]}}, "source of captions 'captions': expected further captions to have another name"),
        ({"a/b": {"s01": ["x"]}}, "source of captions 'a/b': expected a name of letters"),
        ({"vlm": {"s99": ["x"]}}, "captions of 's99': expected at least one caption"),
    ],
)
def test_further_captions_are_checked(recording, tmp_path, further, message):
    stimuli = replace(recording.stimuli(), further_captions=further)
    with pytest.raises(UserError, match=message):
        write.check_stimuli(stimuli)
    with pytest.raises(UserError, match="and some to stand first"):
        write.check_stimuli(replace(stimuli, captions=None, further_captions={"vlm": {"s01": ["x"]}}))


# --- moments


def test_moments_of_parts_are_those_of_the_whole():
    """Also far from zero, where sums of squares would cancel."""
    rows = np.random.default_rng(0).normal(1e6, 1, (30, 4)).astype(np.float32)
    parts = [write.Moments.of(rows, part) for part in (range(10), range(0), range(10, 30))]
    whole = parts[0].and_of(parts[1]).and_of(parts[2])
    assert whole.num_rows == 30 and parts[1].and_of(parts[0]) is parts[0]
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-14)
    np.testing.assert_allclose(whole.squares / 30, rows.var(axis=0, dtype=np.float64), rtol=1e-9)


# --- half precision


def test_responses_may_be_stored_in_half_the_room(recording, tmp_path):
    """Read as float32, off by no more than float16 is; everything else is as it was."""
    full, half = recording.write(tmp_path / "full"), recording.write(tmp_path / "half", responses_dtype="float16")
    stored = map_tensor(half.responses_file("subj01"), "responses")
    assert stored.dtype == np.float16
    read, rows = half.responses("subj01"), np.array([3, 1])
    assert read.dtype == half.responses("subj01", rows).dtype == half.averages("subj01", "train").responses.dtype
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, full.responses("subj01"), rtol=2**-11, atol=1e-6)
    assert not np.array_equal(read, full.responses("subj01"))
    np.testing.assert_array_equal(half.responses("subj01", rows), read[rows])
    np.testing.assert_array_equal(half.space("subj01").noise_variance, full.space("subj01").noise_variance)
    assert half.fingerprint != full.fingerprint


def test_what_float16_cannot_hold_is_refused(recording, refuses):
    recording.responses[5, 2] = 1e5
    refuses(
        r"responses of subj01: expected z-scored numbers of at most 65504, as float16 holds, got 100000. Look for outl",
        zscore="none", responses_dtype="float16",
    )  # fmt: skip
