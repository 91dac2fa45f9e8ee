"""Densities, repeats, consistency: against direct loops and planted truth; every picture is drawn."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy.integrate import trapezoid
from scipy.stats import norm, pearsonr

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.analyses import (
    AGREEMENT,
    FIRST_REFERENCE,
    caption_agreement,
    caption_density,
    draw_caption_density,
    draw_repeat_distribution,
    draw_voxel_consistency,
    repeat_distribution,
    voxel_consistency,
)

RNG = np.random.default_rng(0)


def picture(png):
    """The pixels of a PNG that is as wide as all are, and is not blank."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1280
    assert (pixels < 128).any()
    return pixels


def recording(path, shown, responses, *, split=None, session=None, zscore="none", sites=6):
    """A dataset of one subject: `shown` names the stimulus of each trial."""
    ids = sorted(set(shown))
    zeros = np.zeros(len(shown), np.int64)
    counts: dict[str, int] = {}
    repeat = [counts.setdefault(name, -1) for name in shown]
    for trial, name in enumerate(shown):
        counts[name] += 1
        repeat[trial] = counts[name]
    split = split or ["test" if name == ids[-1] else "train" for name in shown]
    session = zeros if session is None else np.array(session)
    trials = Trials(list(shown), session, zeros, np.array(repeat), split)
    subject = Subject(BrainSpace("s1", sites), np.asarray(responses, np.float32), trials)
    return write_dataset(path, name="t", modality="m", subjects=[subject], stimuli=Stimuli(ids), zscore=zscore)


# ---------------------------------------------------------------------------------------------------- captions


def test_density_mean_n_and_overlap():
    """The overlap of two normal densities d apart is 2 Phi(-d / 2)."""
    drawn = norm.ppf((np.arange(4000) + 0.5) / 4000)
    found = caption_density({"a": drawn, "b": drawn[::2] + 1.5}, bounds=(None, None))
    assert found.sources == ("a", "b")
    assert found.num_captions.tolist() == [4000, 2000]
    np.testing.assert_allclose(found.mean, [0, 1.5], atol=1e-3)
    np.testing.assert_allclose(found.std, [1, 1], atol=0.01)
    np.testing.assert_allclose(trapezoid(found.densities, found.grid, axis=1), 1, atol=0.01)
    assert found.overlap[0, 1] == found.overlap[1, 0] == pytest.approx(2 * norm.cdf(-0.75), abs=0.03)
    np.testing.assert_allclose(np.diag(found.overlap), 1, atol=0.01)


def test_no_density_lies_beyond_the_bounds():
    found = caption_density({"a": RNG.random(500) * 0.2, "b": 1 - RNG.random(500) * 0.2}, bounds=(0.0, 1.0))
    assert (found.grid[0], found.grid[-1]) == (0, 1)
    np.testing.assert_allclose(trapezoid(found.densities, found.grid, axis=1), 1, atol=0.01)


def test_caption_figures_are_json_and_the_picture_is_drawn():
    sources = {f"a source {i}": RNG.random(40 + i).astype(np.float32) for i in range(7)}  # more than there are colours
    found = caption_density(sources, label="CLIP-S")
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert figures["sources"] == list(sources)
    assert figures["num_captions"][2] == 42
    picture(draw_caption_density(found))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"COCO": [0.1, 0.2]}, r"at least 2 sources to compare, got 1 \(COCO\)"),
        ({"a": [0.1, 0.2], "b": [0.3]}, "caption scores of 'b': .* got 1 different ones among 1"),
        ({"a": [0.1, 0.2], "b": [0.3, 0.3]}, "caption scores of 'b': .* got 1 different ones among 2"),
        ({"a": [0.1, np.nan, 0.2], "b": [0.3, 0.4]}, "caption scores of 'a': expected at least 2 different finite"),
        ({"a": [0.1, 0.2], "b": [-0.3, 0.4]}, "within its bounds 0.0 and None, got -0.3 to 0.4"),
    ],
)
def test_scores_that_have_no_density_are_refused(scores, message):
    with pytest.raises(UserError, match=message):
        caption_density({name: np.array(values) for name, values in scores.items()})


def test_agreement_with_the_other_captions():
    references = {"1": ["a red cup", "red cup", "blue"], "2": ["dog", "a cat sits"], "3": ["alone"]}
    found = caption_agreement(references, {"model": {"1": "blue car", "2": "cat", "9": "x"}})
    assert found.stimulus_ids == ("1", "2")
    assert found.num_left_out == 1
    assert found.scores[FIRST_REFERENCE].tolist() == [1, 0]
    # the first reference is held out for the model too: "blue" is in both, 2 / (2 + 1); "cat" in "cat sits"
    np.testing.assert_allclose(found.scores["model"], [2 / 3, 2 / 3])


def test_agreement_without_captions_is_refused():
    with pytest.raises(UserError, match="at least 2 references, got 1 stimuli with fewer"):
        caption_agreement({"1": ["a cup"]})
    with pytest.raises(UserError, match=r"captions of 'm': expected one for each of the 1 stimuli, got none for 1 .*1"):
        caption_agreement({"1": ["a cup", "cup"]}, {"m": {}})


def test_published_captions_rank_as_they_are_known_to(real_data):
    folder = real_data / "brainhub/captions"
    references = json.loads((folder / "fmri_cococap.json").read_text())
    systems = {
        name: json.loads((folder / name / "sub01_decoded_caption.json").read_text())
        for name in ("umbrae-v-1-4", "onellm")
    }
    few = list(references)[::8]
    found = caption_density(
        caption_agreement({name: references[name] for name in few}, systems).scores, label=AGREEMENT, bounds=(0.0, 1.0)
    )
    human, umbrae, onellm = found.mean
    assert human > umbrae + 0.1 > onellm + 0.15


# ---------------------------------------------------------------------------------------------------- one stimulus


SHOWN = ["c", "b", "a", "b", "c", "a", "b", "d", "d"]


@pytest.fixture
def nine(tmp_path):
    return recording(tmp_path / "d", SHOWN, RNG.standard_normal((9, 6)), session=[1, 1, 1, 2, 2, 2, 3, 3, 3])


def test_the_stimulus_with_most_repeats_is_the_default(nine):
    found = repeat_distribution(nine, "s1")
    assert (found.stimulus_id, found.split) == ("b", "train")
    np.testing.assert_array_equal(found.responses, nine.responses("s1", np.array([1, 3, 6])))
    assert found.repeats == ("repeat 1 (session 1)", "repeat 2 (session 2)", "repeat 3 (session 3)")
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    expected = [pearsonr(found.responses[i], found.responses[j]).statistic for i, j in found.pairs]
    np.testing.assert_allclose(found.r, expected)
    assert found.unit == "response"


def test_ties_go_to_the_first_id(tmp_path):
    dataset = recording(
        tmp_path / "d", ["c", "c", "b", "b"], RNG.standard_normal((4, 6)), split=["train", "train"] + ["test"] * 2
    )
    assert repeat_distribution(dataset, "s1").stimulus_id == "b"


def test_densities_of_repeats_and_of_their_differences(nine):
    found = repeat_distribution(nine, "s1", "a")
    assert len(found.densities) == 2
    assert len(found.difference_densities) == 1
    np.testing.assert_allclose(trapezoid(found.densities, found.grid, axis=1), 1, atol=0.02)
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    np.testing.assert_allclose(figures["mean"], found.responses.mean(axis=1))
    np.testing.assert_allclose(figures["difference_mean"], [(found.responses[1] - found.responses[0]).mean()])
    assert figures["num_sites"] == 6


@pytest.mark.parametrize("repeats", [2, 4, 30])
def test_any_number_of_repeats_is_drawn(tmp_path, repeats):
    shown = ["a"] * repeats + ["b"] * 2
    dataset = recording(tmp_path / "d", shown, RNG.standard_normal((repeats + 2, 6)), zscore="all")
    found = repeat_distribution(dataset, "s1", "a")
    assert found.unit == "response (z)"
    picture(draw_repeat_distribution(found))


def test_repeats_that_do_not_exist_are_refused(nine, tmp_path):
    with pytest.raises(UserError, match=r"expected one of the 4 stimuli that s1 saw \(a, b, c, ...\), got 'z'"):
        repeat_distribution(nine, "s1", "z")
    with pytest.raises(UserError, match="expected one of its subjects"):
        repeat_distribution(nine, "nobody")
    once = recording(tmp_path / "once", ["a", "b", "c"], RNG.standard_normal((3, 6)))
    with pytest.raises(UserError, match="a stimulus that s1 saw at least twice, got none among 3"):
        repeat_distribution(once, "s1")
    with pytest.raises(UserError, match="stimulus 'a': expected at least 2 repeats in s1, got 1"):
        repeat_distribution(once, "s1", "a")
    flat = recording(tmp_path / "flat", ["a", "a", "b"], [[1.0] * 6, [2.0] * 6, [3.0] * 6])
    with pytest.raises(UserError, match="responses that vary over at least 2 sites of s1, got 6 sites"):
        repeat_distribution(flat, "s1", "a")


# ---------------------------------------------------------------------------------------------------- all stimuli


def test_consistency_by_a_direct_loop(tmp_path):
    shown = ["a", "b", "a", "c", "a", "b", "once", "z"]
    values = RNG.standard_normal((8, 6)).astype(np.float32).astype(np.float64)
    found = voxel_consistency(recording(tmp_path / "d", shown, values), "s1", "train")
    assert found.stimulus_ids == ("a", "b")
    assert found.num_repeats.tolist() == [3, 2]
    assert (found.num_single, found.num_pairs, found.num_sites) == (2, 4, 6)
    for number, rows in enumerate(([0, 2, 4], [1, 5])):
        mean = values[rows].mean(axis=0)
        others = [values[[other for other in rows if other != row]].mean(axis=0) for row in rows]
        compared = {
            "pairwise": [(values[i], values[j]) for i in rows for j in rows if i < j],
            "to mean": [(values[i], mean) for i in rows],
            "to mean of others": [(values[i], other) for i, other in zip(rows, others, strict=True)],
        }
        for comparison, pairs in compared.items():
            expected = {
                "mse": np.mean([((a - b) ** 2).mean() for a, b in pairs]),
                "cosine": np.mean([a @ b / np.sqrt(a @ a * (b @ b)) for a, b in pairs]),
                "r": np.mean([pearsonr(a, b).statistic for a, b in pairs]),
            }
            for metric, value in expected.items():
                assert found.values[comparison, metric][number] == pytest.approx(value), (comparison, metric)


def test_the_floor_holds_other_stimuli_as_often(tmp_path):
    """With two stimuli, the floor of one is made with the other."""
    values = RNG.standard_normal((6, 6)).astype(np.float32).astype(np.float64)
    found = voxel_consistency(recording(tmp_path / "d", ["a", "a", "a", "b", "b", "z"], values), "s1", "train")
    a, b = values[:3], values[3:5]
    expected = [((a[i] - b[j]) ** 2).mean() for i, j in ((0, 1), (0, 0), (1, 0))]
    assert found.floor["pairwise", "mse"][0] == pytest.approx(np.mean(expected))
    assert found.floor["to mean", "mse"][1] == pytest.approx(((b - a.mean(axis=0)) ** 2).mean())
    rest = [a[[1, 2]].mean(axis=0), a[[0, 2]].mean(axis=0)]
    assert found.floor["to mean of others", "mse"][1] == pytest.approx(((b - rest) ** 2).mean())


def test_planted_reliability_is_found_and_the_mean_of_all_flatters(tmp_path):
    """Signal and noise of equal variance: r .5 in pairs, sqrt(1 / 3) with the mean of two others, 0 for the floor."""
    sites, stimuli = 300, 40
    signal = RNG.standard_normal((stimuli, 1, sites))
    values = (signal + RNG.standard_normal((stimuli, 3, sites))).reshape(-1, sites)
    shown = np.repeat([f"s{i:02}" for i in range(stimuli)], 3).tolist()
    found = voxel_consistency(recording(tmp_path / "d", shown, values, sites=sites), "s1", "train")
    r = {comparison: values.mean() for (comparison, metric), values in found.values.items() if metric == "r"}
    assert r["pairwise"] == pytest.approx(0.5, abs=0.02)
    assert r["to mean of others"] == pytest.approx(1 / np.sqrt(3), abs=0.02)
    assert r["to mean"] > 0.8  # it holds the response itself
    assert found.values["pairwise", "mse"].mean() == pytest.approx(2, abs=0.05)
    assert found.floor["pairwise", "mse"].mean() == pytest.approx(4, abs=0.1)
    for comparison in r:
        assert found.floor[comparison, "r"].mean() == pytest.approx(0, abs=0.03)


def test_the_seed_draws_the_floor_and_nothing_else(tmp_path):
    shown = [f"s{i}" for i in range(8)] * 2
    dataset = recording(tmp_path / "d", shown, RNG.standard_normal((16, 6)))
    one, again, other = (voxel_consistency(dataset, "s1", "train", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.floor["pairwise", "r"], again.floor["pairwise", "r"])
    assert not np.array_equal(one.floor["pairwise", "r"], other.floor["pairwise", "r"])
    np.testing.assert_array_equal(one.values["pairwise", "r"], other.values["pairwise", "r"])


def test_constant_responses_have_no_correlation(tmp_path):
    values = np.concatenate([np.zeros((2, 6)), np.full((2, 6), 3.0), RNG.standard_normal((2, 6))])
    found = voxel_consistency(recording(tmp_path / "d", ["a", "a", "b", "b", "z", "z"], values), "s1", "train")
    assert found.values["pairwise", "r"].tolist() == [0, 0]
    assert found.values["pairwise", "cosine"].tolist() == [0, 1]
    assert found.values["pairwise", "mse"].tolist() == [0, 0]


def test_a_single_stimulus_has_no_floor_and_a_split_without_repeats_no_stimuli(tmp_path):
    dataset = recording(tmp_path / "d", ["a", "b", "z", "z"], RNG.standard_normal((4, 6)))
    train, test = (voxel_consistency(dataset, "s1", split) for split in ("train", "test"))
    assert (train.stimulus_ids, train.num_single, train.num_pairs) == ((), 2, 0)
    assert test.stimulus_ids == ("z",)
    assert np.isnan(test.floor["pairwise", "r"]).all()
    figures = json.loads(json.dumps([train.figures(), test.figures()], allow_nan=False))
    assert figures[0]["consistency"]["pairwise"]["r"] == {"mean": None, "std": None, "floor": None, "stimuli": []}
    assert figures[1]["consistency"]["pairwise"]["r"]["floor"] is None
    picture(draw_voxel_consistency([train, test]))
    with pytest.raises(UserError, match="consistency of s1 train: expected a stimulus that was shown at least twice"):
        draw_voxel_consistency([train])


def test_consistency_of_what_does_not_exist_is_refused(nine):
    with pytest.raises(UserError, match="split: expected one of train, val, test, got 'holdout'"):
        voxel_consistency(nine, "s1", "holdout")
    with pytest.raises(UserError, match="expected one of its subjects"):
        voxel_consistency(nine, "nobody", "test")


def test_repeats_of_neurons_are_consistent(real_data, tmp_path):
    """V4, session 210325: ten repeats, of which some are missing."""
    raw = np.load(real_data / "v4_cowley/responses_raw_210325.npy")[:, :120]
    image, repeat = np.nonzero(np.isfinite(raw).all(axis=0))
    shown = [f"image{i:04d}" for i in image]
    split = ["test" if i % 5 == 0 else "train" for i in image]
    dataset = recording(tmp_path / "d", shown, raw[:, image, repeat].T, split=split, zscore="all", sites=len(raw))
    train, test = (voxel_consistency(dataset, "s1", split) for split in ("train", "test"))
    for found in (train, test):
        assert 0.2 < found.values["pairwise", "r"].mean() < found.values["to mean of others", "r"].mean() < 0.6
        assert abs(found.floor["pairwise", "r"].mean()) < 0.05
    picture(draw_voxel_consistency([train, test]))
    most = repeat_distribution(dataset, "s1")
    assert len(most.repeats) == 10
    picture(draw_repeat_distribution(most))
