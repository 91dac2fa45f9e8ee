"""The localizer finds planted preferences, tells them from noise, and refuses what has no contrast."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_ind

from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.insilico.experiment import opened
from brainjanus.insilico.localize import (
    Source,
    contrast,
    last_place,
    localize,
    measured_contrast,
    ranking,
    welch,
)


def planted(rng):
    """30 sites; the first 10 answer more to the first kind, by one standard deviation."""
    first, second = rng.normal(size=(24, 30)), rng.normal(size=(60, 30))
    first[:, :10] += 1.5
    return first, second


def test_welch_is_that_of_scipy():
    first, second = planted(np.random.default_rng(0))
    labels = np.arange(84) < 24
    expected = ttest_ind(first, second, equal_var=False).statistic
    np.testing.assert_allclose(welch(np.concatenate([first, second]), labels[None])[0], expected)


def test_planted_sites_are_found_and_others_are_not():
    found = contrast(*planted(np.random.default_rng(0)), np.random.default_rng(1))
    assert (found.q[:10] < 0.05).all()
    assert (found.q[10:] < 0.05).mean() < 0.1
    np.testing.assert_array_less(found.p[:10], 0.02)
    assert found.contrast[:10].mean() == pytest.approx(1.5, abs=0.2)


def test_p_of_exemplars_of_one_kind_is_uniform():
    rng = np.random.default_rng(0)
    found = contrast(rng.normal(size=(10, 400)), rng.normal(size=(30, 400)), rng)
    assert 0.02 < (found.p < 0.05).mean() < 0.09


def test_two_exemplars_have_a_contrast_and_no_statistics():
    found = contrast(np.ones((2, 3)), np.zeros((9, 3)), np.random.default_rng(0))
    assert found.contrast.tolist() == [1, 1, 1]
    assert found.t is None and found.p is None and found.q is None


def test_regions_are_ranked_with_their_interval():
    first, second = planted(np.random.default_rng(0))
    found = contrast(first, second, np.random.default_rng(0))
    regions = {"rest": np.arange(30) >= 10, "planted": np.arange(30) < 10}
    ranked = ranking(found, first, second, regions, np.random.default_rng(0))
    assert list(ranked) == ["planted", "rest"]
    low, high = ranked["planted"]["interval"]
    assert 1 < low < ranked["planted"]["contrast"] < high < 2
    assert ranked["planted"]["auc"] > 0.99 and ranked["planted"]["significant"] == 1


def test_places_of_captions():
    assert last_place("a red dog on the left on the beach") == "on the beach"
    assert last_place("in the room a red cup") is None
    assert last_place("a dog in") is None


def test_words_of_the_training_captions_give_a_map_for_each_subject(tiny_run, tmp_path):
    found = localize(tiny_run, ["red"], ["blue", "green"], out=tmp_path / "out", settings=0)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results == found.results
    assert results["exemplars"] == {"shown": 1, "against": 2}
    assert set(results["subjects"]["s1"]["regions"]) == {"V1"}
    maps = np.load(tmp_path / "out/s2/contrast.npy")
    np.testing.assert_allclose(maps[0], found.contrasts["s2"].contrast, rtol=1e-5)
    with Image.open(tmp_path / "out/figure.png") as figure:
        assert figure.width > 300


def test_the_baseline_is_captions_of_other_things(tiny_run):
    found = localize(tiny_run, ["red"], subjects=["s1"])
    assert list(found.contrasts) == ["s1"]
    assert found.results["examples"]["against"] and "red" not in " ".join(found.results["examples"]["against"])
    assert "training captions" in found.results["against"]


def test_the_measured_contrast_is_of_stimuli_whose_captions_say_it(tiny_run, study):
    averages = study.averages("s1", "test")
    left = np.array(["left" in study.captions(one)[0] for one in averages.stimulus_ids])
    expected = averages.responses[left].mean(axis=0) - averages.responses[~left].mean(axis=0)
    said = ([frozenset({"left"})], [frozenset({"right"})])
    found, _ = measured_contrast(opened(tiny_run), "s1", said, "test")
    assert found.num == (8, 8)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_too_few_stimuli_have_no_measured_contrast(tiny_run):
    found = localize(tiny_run, ["stimuli:red"], subjects=["s1"]).results["subjects"]["s1"]
    assert found["measured"] is None
    assert "4 and 12 test stimuli" in found["measured_note"]


def test_stimuli_and_folders_of_pictures(tiny_run, tmp_path):
    for number in range(3):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (200, 10 * number, 0)).save(tmp_path / f"pictures/{number}.png")
    found = localize(tiny_run, ["stimuli:red"], [str(tmp_path / "pictures")], subjects=["s1"])
    assert found.results["exemplars"] == {"shown": 4, "against": 3}
    assert found.contrasts["s1"].t is not None


def test_pictures_against_a_baseline_of_other_pictures(tiny_run):
    found = localize(tiny_run, ["stimuli:red"], subjects=["s1"])
    assert found.results["exemplars"] == {"shown": 4, "against": 12}


def test_responses_that_were_trained_on_are_no_measure(tiny_run):
    found = localize(tiny_run, ["stimuli:left"], ["stimuli:right"], split="train", subjects=["s1"]).results
    assert found["subjects"]["s1"]["measured"] is None
    assert "trained on the responses to these stimuli" in found["subjects"]["s1"]["measured_note"]
    assert found["trained_on"] == found["exemplars"] == {"shown": 32, "against": 32}
    held_out = localize(tiny_run, ["stimuli:left"], ["stimuli:right"], subjects=["s1"]).results
    assert held_out["subjects"]["s1"]["measured"]["stimuli"] == [8, 8]
    assert held_out["trained_on"] == {"shown": 0, "against": 0}


def test_features_are_of_held_out_stimuli_where_there_are_enough(tiny_run, monkeypatch):
    """Of a model that reads text by features; 8 test captions say left, 4 red."""
    source = Source(opened(tiny_run), 0, "test")
    source.by_words = False
    monkeypatch.setattr(source, "rows", lambda _modality, ids: list(ids))
    left, red = source.exemplars(["left"]), source.exemplars(["red"])
    learnt = set(source.found.dataset.split_ids("train"))
    assert len(left.rows) == 8 and not learnt & set(left.rows) and left.trained == 0
    assert len(red.rows) == 20 and red.trained == len(learnt & set(red.rows)) == 16
    other, told = source.baseline(left, np.random.default_rng(0))
    assert len(other.rows) == 8 and not learnt & set(other.rows) and told.startswith("8 other stimuli")


def test_a_long_sentence_is_no_file(tiny_run):
    with pytest.raises(UserError, match="expected words that training captions have"):
        localize(tiny_run, ["a zebra " * 60])


@pytest.mark.parametrize(
    ("shown", "against", "more", "message"),
    [
        (["red"], ["Red"], {}, "expected something else than what is localized"),
        (["a zebra"], [], {}, "expected words that training captions have"),
        (["a rad"], [], {}, "did you mean red"),
        (["of the"], [], {}, "expected a word with content"),
        ([], [], {}, "expected what is to be localized"),
        (["stimuli:purple"], [], {}, "expected test stimuli whose captions say 'purple'"),
        (["red"], ["stimuli:blue"], {}, "a contrast of media"),
        (["red", "stimuli:blue"], [], {}, "expected words, or pictures, got both"),
        (["red"], [], {"subjects": ["s9"]}, "expected some of s1, s2, got 's9'"),
        (["red"], [], {"settings": -1}, "--settings: expected a number of 0 or more, got -1"),
        (["red " * 70], [], {"settings": 0}, "red red"),
    ],
)
def test_mistakes_are_told(tiny_run, shown, against, more, message):
    with pytest.raises(UserError, match=message):
        localize(tiny_run, shown, against, **more)


def test_an_empty_folder_is_told(tiny_run, tmp_path):
    with pytest.raises(UserError, match="expected a folder of pictures"):
        localize(tiny_run, [str(tmp_path)])


def test_an_existing_folder_is_left_alone(tiny_run, tmp_path, capsys):
    assert cli.main(["localize", str(tiny_run), "red", "--out", str(tmp_path)]) == 2
    assert "expected a new folder" in capsys.readouterr().err


def test_the_command(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["localize", str(tiny_run), "red", "--against", "blue", "--against", "green", "--out", str(out)]
    assert cli.main([*argv, "--subjects", "s1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("s1: V1 ") and told[-1] == str(out)


def test_words_that_are_never_said_alone_are_told(tiny_run):
    """Captions say "face" with "hair" nearly always, "house" with other words as often as without."""
    source = Source(opened(tiny_run), 0, "test")
    faces = [f"a {face} with white hair" for face in ("face", "head") * 10]
    source.captions = faces + ["a red house", "a house", "a cup"] * 20
    told = source.remark("a face")
    assert told is not None and "nearly always say 'hair', 'white', too" in told and "'a face with white hair'" in told
    assert source.remark("a house") is None and source.remark("a face with white hair") is None
    assert source.remark("a zebra") is None
    assert source.is_sentence("a face") and not source.is_sentence("stimuli:face")
    source.captions = [*faces, "a red house at night", "a house at night", "a cup at night", "a cup"] * 20
    assert source.remark("a house") is not None, "night is said with every house"
    source.captions = [f"{caption} at night" for caption in ["a red house", "a house", "a cup"] * 20]
    assert source.remark("a house") is None, "night is said with everything"
