import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.baselines import BagOfWords, fit_ridge, linear_captions, linear_decoder
from brainjanus.evaluate.brain import voxel_r
from brainjanus.evaluate.captions import score_captions
from brainjanus.evaluate.downstream import DownstreamScore, LinearProbe
from brainjanus.evaluate.image import pixcorr_scores, two_way_scores
from brainjanus.evaluate.text import content_f1_scores
from brainjanus.train.codes import features_of


def by_name(scores: list[DownstreamScore]) -> dict[tuple[str, str], DownstreamScore]:
    return {(score.direction, score.metric): score for score in scores}


@pytest.fixture(scope="module")
def probe(tiny: Dataset) -> LinearProbe:
    return LinearProbe(tiny, "s1")


@pytest.fixture(scope="module")
def responses(tiny: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return tiny.averages("s1", "train").responses, tiny.averages("s1", "test").responses


def test_measured_responses_score_as_the_linear_baseline(tiny, probe, responses):
    found = by_name(probe.score(*responses))
    train, held = tiny.averages("s1", "train"), tiny.averages("s1", "test")
    ids = held.stimulus_ids
    similarity = pixcorr_scores([tiny.pictures(one) for one in ids], linear_decoder(tiny, "s1", held.responses))
    assert found["brain->image", "pixcorr"].value == pytest.approx(similarity.diagonal().mean(), abs=1e-4)
    assert found["brain->image", "pixcorr"].floor == pytest.approx(similarity.mean(), abs=1e-4)
    two_way = two_way_scores(similarity).diagonal().mean()
    assert found["brain->image", "two_way"].value == pytest.approx(two_way, abs=0.01)

    references, said = [tiny.captions(one) for one in ids], linear_captions(tiny, "s1", ids)
    assert found["brain->text", "content_f1"].value == pytest.approx(
        content_f1_scores(references, said).diagonal().mean()
    )
    cider = score_captions(references, said, metrics=["cider"], java=False).scores["cider"].value
    assert found["brain->text", "cider"].value == pytest.approx(cider)

    features = [features_of(tiny, "wavelet", part).flatten(1).numpy() for part in (train.stimulus_ids, ids)]
    predicted = fit_ridge(features[0], train.responses).predict(features[1])
    assert found["image->brain", "voxel_r"].value == pytest.approx(voxel_r(held.responses, predicted).mean(), abs=1e-6)
    bag = BagOfWords([tiny.captions(one) for one in train.stimulus_ids])
    words = [bag.encode([tiny.captions(one) for one in part]) for part in (train.stimulus_ids, ids)]
    predicted = fit_ridge(words[0], train.responses).predict(words[1])
    assert found["text->brain", "voxel_r"].value == pytest.approx(voxel_r(held.responses, predicted).mean(), abs=1e-6)


def test_noise_in_place_of_responses_earns_the_floor(probe, responses):
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(part.shape).astype(np.float32) for part in responses]
    measured, nothing = by_name(probe.score(*responses)), by_name(probe.score(*noise))
    for name, score in measured.items():
        assert score.n == 30
        gap = score.value - score.floor
        assert gap > 0.1, name
        assert nothing[name].value - nothing[name].floor < gap / 2, name
    assert measured["brain->image", "two_way"].floor == pytest.approx(0.5, abs=0.02)


def test_coarser_responses_are_worth_less(probe, responses):
    measured, coarse = (by_name(probe.score(*parts)) for parts in (responses, [np.sign(p) * 0.5 for p in responses]))
    assert coarse["brain->image", "pixcorr"].value < measured["brain->image", "pixcorr"].value


def test_encoders_do_not_see_held_out_responses_that_are_handed_in(probe, responses):
    train, held = responses
    one, other = by_name(probe.score(train, held)), by_name(probe.score(train, held[::-1].copy()))
    for direction in ("image->brain", "text->brain"):
        assert one[direction, "voxel_r"] == other[direction, "voxel_r"]
    assert one["brain->image", "two_way"].value > other["brain->image", "two_way"].value + 0.1


def dataset_with(folder, captions=None, features=None) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [f"im{row}" for row in range(20)]
    split = ["train"] * 14 + ["test"] * 6
    zeros = np.zeros(20, np.int64)
    trials = Trials(ids, session=zeros, run=zeros, repeat=zeros, split=split)
    subject = Subject(BrainSpace("s1", 5), rng.standard_normal((20, 5)).astype(np.float32), trials)
    stimuli = Stimuli(ids, captions=captions, features=features or {})
    return write_dataset(folder, name="few", modality="fMRI", subjects=[subject], stimuli=stimuli, zscore="all")


def test_stimuli_without_captions_are_left_out(tmp_path):
    captions = {f"im{row}": [f"a {('red', 'blue')[row % 2]} one"] for row in range(20) if row not in (3, 15)}
    dataset = dataset_with(tmp_path / "data", captions)
    responses = [dataset.averages("s1", split).responses for split in ("train", "test")]
    found = by_name(LinearProbe(dataset, "s1").score(*responses))
    assert {direction for direction, _ in found} == {"brain->text", "text->brain"}
    assert {score.n for score in found.values()} == {5}


def test_stored_features_stand_in_for_pictures(tmp_path):
    rng = np.random.default_rng(1)
    features = {name: rng.standard_normal((20, 2, 3)).astype(np.float32) for name in ("seen", "word2vec")}
    dataset = dataset_with(tmp_path / "data", features=features)
    responses = [dataset.averages("s1", split).responses for split in ("train", "test")]
    probe = LinearProbe(dataset, "s1")
    held = dataset.averages("s1", "test").stimulus_ids
    np.testing.assert_allclose(probe.features[1], dataset.features("seen", held).reshape(6, 6))
    assert set(by_name(probe.score(*responses))) == {("brain->image", "feature_two_way"), ("image->brain", "voxel_r")}


def test_nothing_to_decode_is_said(tmp_path):
    with pytest.raises(UserError, match="expected pictures, picture features or captions to decode from responses"):
        LinearProbe(dataset_with(tmp_path / "data"), "s1")
