import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation
from scipy.stats import pearsonr

from brainjanus.core.errors import UserError
from brainjanus.evaluate import image
from brainjanus.evaluate.brain import pattern_scores
from brainjanus.evaluate.image import (
    feature_distance_scores,
    feature_scores,
    feature_two_way,
    pixcorr_scores,
    retrieval,
    retrieval_scores,
    ssim_pairs,
    two_way_scores,
)

RNG = np.random.default_rng(0)


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (count, *size, 3)).astype(np.uint8)


def resized(picture: np.ndarray) -> np.ndarray:
    """As the field does it: to 256 pixels, then to 425."""
    tensor = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    for size in (256, 425):
        tensor = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
    return tensor[0].permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize(
    ("seen_size", "decoded_size"), [((8, 8), (8, 8)), ((8, 12), (5, 5)), ((440, 430), (16, 16)), ((30, 20), (256, 300))]
)
def test_pixcorr_is_pearson_of_the_resized_pictures(seen_size, decoded_size):
    seen, decoded = pictures(3, seen_size), pictures(3, decoded_size)
    scores = pixcorr_scores(list(seen[:, None]), decoded)
    for i in range(3):
        for j in range(3):
            r = pearsonr(resized(seen[i]).ravel(), resized(decoded[j]).ravel()).statistic
            assert scores[i, j] == pytest.approx(r, abs=1e-6)


def test_pixcorr_in_small_batches_is_the_same(monkeypatch):
    seen = [pictures(count, (8, 8)) for count in (2, 1, 3, 1, 1)]
    decoded = pictures(5, (9, 7))
    whole = pixcorr_scores(seen, decoded)
    monkeypatch.setattr(image, "_BATCH_VALUES", 2 * 8 * 8 * 3)
    np.testing.assert_allclose(pixcorr_scores(seen, decoded), whole, atol=1e-6)
    monkeypatch.setattr(image, "_BATCH_VALUES", 1)
    np.testing.assert_allclose(pixcorr_scores(seen, decoded), whole, atol=1e-6)


def test_batches_hold_what_they_may_and_leave_nothing_out():
    assert list(image._batches([1, 1, 3, 1, 5, 1], 2, 8)) == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)]


def test_a_stimulus_with_several_pictures_scores_their_mean():
    first, second, decoded = pictures(4, (8, 8)), pictures(4, (8, 8)), pictures(4, (8, 8))
    both = [np.stack(pair) for pair in zip(first, second, strict=True)]
    for score in (pixcorr_scores, ssim_pairs):
        one, other = (score(list(group[:, None]), decoded) for group in (first, second))
        np.testing.assert_allclose(score(both, decoded), (one + other) / 2, atol=1e-6)


def test_scale_and_offset_do_not_matter():
    seen = pictures(3, (8, 8))
    scores = pixcorr_scores(list(seen[:, None]), seen.astype(np.float32) / 255 - 3)
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-4)


@pytest.mark.parametrize("size", [8, 300])
def test_a_constant_picture_scores_zero(size):
    seen, grey = pictures(2, (size, size)), np.full((2, size, size, 3), 77, np.uint8)
    assert (pixcorr_scores(list(seen[:, None]), grey) == 0).all()
    assert (pixcorr_scores(list(grey[:, None]), seen) == 0).all()


def structural_similarity(seen: np.ndarray, decoded: np.ndarray) -> float:
    metrics, color = pytest.importorskip("skimage.metrics"), pytest.importorskip("skimage.color")
    grey = [color.rgb2gray(resized(picture) / 255) for picture in (seen, decoded)]
    return metrics.structural_similarity(
        *grey, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )


@pytest.mark.parametrize("size", [(8, 12), (256, 256), (425, 300)])
def test_ssim_is_that_of_scikit_image(size):
    seen = pictures(2, (24, 24))
    smooth = (np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] % 256).repeat(3, axis=2)
    decoded = np.stack([pictures(1, size)[0], smooth.astype(np.uint8)])
    expected = [structural_similarity(*pair) for pair in zip(seen, decoded, strict=True)]
    np.testing.assert_allclose(ssim_pairs(list(seen[:, None]), decoded)[0], expected, atol=1e-5)


def test_ssim_of_degenerate_pictures():
    noise, grey = pictures(1, (16, 16))[0], np.full((16, 16, 3), 77, np.uint8)
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    seen, decoded = np.stack([noise, grey, noise, black]), np.stack([noise, grey, grey, white])
    expected = [1, 1, structural_similarity(noise, grey), 1e-4 / (1 + 1e-4)]
    np.testing.assert_allclose(ssim_pairs(list(seen[:, None]), decoded)[0], expected, atol=1e-5)


def test_ssim_of_any_pairing_by_order():
    seen, decoded = [pictures(count, (16, 16)) for count in (1, 2, 1)], pictures(3, (16, 16))
    orders = np.array([[2, 0, 1], [0, 1, 2], [1, 1, 1]])
    expected = np.concatenate([ssim_pairs(seen, decoded[order]) for order in orders])
    np.testing.assert_array_equal(ssim_pairs(seen, decoded, orders), expected)
    assert not np.allclose(expected[0], expected[1])


def test_ssim_does_not_depend_on_how_many_pictures_are_held(monkeypatch):
    seen, decoded, orders = (
        list(pictures(3, (16, 16))[:, None]),
        pictures(3, (16, 16)),
        np.array([[0, 1, 2], [2, 0, 1]]),
    )
    expected = ssim_pairs(seen, decoded, orders)
    monkeypatch.setattr(image, "_KEPT_WINDOWS", 1)
    np.testing.assert_array_equal(ssim_pairs(seen, decoded, orders), expected)


def test_ssim_takes_floats_in_8_bit_units_and_no_others():
    seen, decoded = pictures(2, (16, 16)), pictures(2, (16, 16))
    whole = ssim_pairs(list(seen[:, None]), decoded)
    np.testing.assert_allclose(ssim_pairs(list(seen[:, None]), decoded.astype(np.float64)), whole, atol=1e-6)
    with pytest.raises(UserError, match=r"decoded pictures: expected pixel values up to 255, .* Multiply them by 255"):
        ssim_pairs(list(seen[:, None]), decoded / 255)
    with pytest.raises(UserError, match="seen pictures: expected pixel values"):
        ssim_pairs(list(seen[:, None] / 255), decoded)
    ssim_pairs(list(seen[:, None] // 255), decoded // 255)  # integers of 0 and 1 are very dark pictures


def test_nan_in_a_picture_is_an_error():
    seen, decoded = pictures(2, (8, 8)), pictures(2, (8, 8)).astype(np.float32)
    decoded[1, 2, 3, 0] = np.nan
    for score in (pixcorr_scores, ssim_pairs):
        with pytest.raises(UserError, match="pictures: expected finite pixels, got nan"):
            score(list(seen[:, None]), decoded)


def test_two_way_by_a_direct_loop():
    similarity = np.round(RNG.standard_normal((9, 9)), 1)  # rounded: with ties
    scores = two_way_scores(similarity)
    for j in range(9):
        beaten = [similarity[k, j] < similarity[j, j] for k in range(9) if k != j]
        assert scores[j, j] == pytest.approx(np.mean(beaten))


def test_two_way_chance_is_one_half():
    scores = two_way_scores(RNG.standard_normal((40, 40)))
    assert scores.mean() == pytest.approx(0.5)
    assert np.trace(scores) / 40 == pytest.approx(0.5, abs=0.15)


def test_identical_decoded_pictures_are_at_chance():
    seen = pictures(10, (8, 8))
    same = np.repeat(pictures(1, (8, 8)), 10, axis=0)
    scores = two_way_scores(pixcorr_scores(list(seen[:, None]), same))
    assert np.trace(scores) / 10 == pytest.approx(0.5)


def test_constant_reconstructions_win_no_comparison():
    seen = RNG.standard_normal((5, 7)).astype(np.float32)
    assert (feature_two_way(seen, np.full((5, 7), 0.1, np.float32)) == 0).all()


def test_one_stimulus_cannot_be_identified():
    with pytest.raises(UserError, match="two-way identification: expected at least 2 stimuli, got 1"):
        two_way_scores(np.ones((1, 1)))
    with pytest.raises(UserError, match="retrieval: expected at least 2 stimuli, got 1"):
        retrieval(np.ones((1, 3)), np.ones((1, 3)), np.random.default_rng(0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_feature_scores_are_pattern_scores(monkeypatch, dtype):
    monkeypatch.setattr(image, "_BATCH_VALUES", 12 * 7)  # seven columns at a time
    seen, decoded = RNG.standard_normal((2, 6, 50)) + 100  # far from zero, where products lose digits
    seen[2], decoded[4] = 3.3, 0
    seen, decoded = seen.astype(dtype), decoded.astype(dtype)
    scores = feature_scores(seen, decoded)
    np.testing.assert_allclose(scores, pattern_scores(seen, decoded), atol=1e-6)
    assert (scores[2] == 0).all() and (scores[:, 4] == 0).all()
    loops = [
        np.mean([scores[k, j] < scores[j, j] for k in range(6) if k != j]) for j in range(6)
    ]  # MindEye2's formula: success = r < congruents
    np.testing.assert_allclose(feature_two_way(seen, decoded).diagonal(), loops)


def test_feature_scores_with_several_pictures_a_stimulus():
    seen, decoded = RNG.standard_normal((5, 20)), RNG.standard_normal((3, 20))
    owner = np.array([0, 0, 1, 2, 2])
    each = pattern_scores(np.concatenate([seen, decoded]), np.concatenate([seen, decoded]))[:5, 5:]
    expected = np.stack([each[:2].mean(axis=0), each[2], each[3:].mean(axis=0)])
    np.testing.assert_allclose(feature_scores(seen, decoded, owner), expected, atol=1e-6)
    np.testing.assert_allclose(feature_distance_scores(seen, decoded, owner), 1 - expected, atol=1e-6)
    np.testing.assert_allclose(feature_two_way(seen, decoded, owner), two_way_scores(expected))


def test_feature_distance_is_scipys(monkeypatch):
    monkeypatch.setattr(image, "_BATCH_VALUES", 100)  # two or three rows at a time
    seen, decoded = RNG.standard_normal((2, 7, 20)).astype(np.float32) + 2
    expected = [correlation(*pair) for pair in zip(seen.astype(float), decoded.astype(float), strict=True)]
    np.testing.assert_allclose(feature_distance_scores(seen, decoded).diagonal(), expected, atol=1e-6)
    decoded[3] = 0.1
    assert feature_distance_scores(seen, decoded)[3, 3] == 1
    np.testing.assert_allclose(feature_distance_scores(seen, 2 * seen + 1).diagonal(), 0, atol=1e-6)


def test_features_that_do_not_fit_are_an_error():
    seen = RNG.standard_normal((3, 5))
    with pytest.raises(UserError, match=r"features: .* as for what was seen \(5\), got 4.* different networks"):
        feature_scores(seen, seen[:, :4])
    broken = seen.copy()
    broken[1, 2] = np.inf
    for score in (feature_scores, feature_distance_scores):
        with pytest.raises(UserError, match=r"features, second array: expected finite values, .* in row 1"):
            score(seen, broken)


def test_feature_scores_hold_no_copy_of_the_features(monkeypatch):
    """Whatever is larger than a batch is only ever read in slices."""
    monkeypatch.setattr(image, "_BATCH_VALUES", 1000)
    held = []
    original = np.ndarray.astype

    class Watched(np.ndarray):
        def astype(self, *args, **kwargs):
            held.append(self.size)
            return original(self, *args, **kwargs)

    features = RNG.standard_normal((10, 900)).astype(np.float32)
    feature_scores(features.view(Watched), features.view(Watched))
    assert held and max(held) <= 1000


def test_retrieval_by_a_direct_loop():
    query, gallery = RNG.standard_normal((2, 12, 3, 4))
    query = gallery + 1.5 * query
    found = retrieval(query, gallery, np.random.default_rng(3), draws=5, candidates=6)
    rng, shares = np.random.default_rng(3), []
    hits, times = np.zeros(12), np.zeros(12)
    for _ in range(5):
        chosen = rng.choice(12, 6, replace=False)
        for i in chosen:
            cosines = {
                k: query[i].ravel() @ gallery[k].ravel() / np.linalg.norm(query[i]) / np.linalg.norm(gallery[k])
                for k in chosen
            }
            hits[i] += max(cosines, key=cosines.__getitem__) == i
            times[i] += 1
        shares.append(hits.sum())
    np.testing.assert_allclose(found.draws, np.diff([0, *shares]) / 6)
    assert found.value == pytest.approx(np.mean(found.draws)) and 0.2 < found.value < 1
    np.testing.assert_allclose(found.stimuli, np.where(times > 0, hits / np.maximum(times, 1), np.nan))
    assert found.candidates == 6 and found.chance == pytest.approx(1 / 6)


def test_retrieval_goes_from_query_to_gallery():
    gallery = np.eye(3)
    query = np.array([[1, 0, 0], [0, 1, 0], [0.9, 0, 0.1]])  # the third asks for the first
    forward, backward = (retrieval(*pair, np.random.default_rng(0)) for pair in ((query, gallery), (gallery, query)))
    np.testing.assert_array_equal(forward.stimuli, [1, 1, 0])
    np.testing.assert_array_equal(backward.stimuli, [1, 1, 1])
    assert forward.candidates == 3 and len(forward.draws) == 30


def test_ties_count_against_retrieval():
    same = np.repeat(RNG.standard_normal((1, 4)), 5, axis=0).astype(np.float32)
    assert retrieval(same, same, np.random.default_rng(0)).value == 0
    assert retrieval(np.zeros((4, 4)), np.eye(4), np.random.default_rng(0)).value == 0
    twice = np.eye(6, 4)[[0, 1, 2, 0]]
    np.testing.assert_array_equal(retrieval(twice, twice, np.random.default_rng(0)).stimuli, [0, 1, 1, 0])


def test_a_stimulus_that_was_never_drawn_has_no_score():
    items = np.eye(40)
    found = retrieval(items, items, np.random.default_rng(0), draws=1, candidates=5)
    assert np.isnan(found.stimuli).sum() == 35 and found.value == 1


def test_the_expected_retrieval_is_that_of_many_draws():
    query, gallery = RNG.standard_normal((2, 9, 4))
    gallery[2] = gallery[5]  # a tie
    exact = retrieval_scores(query, gallery, 4)
    drawn = retrieval(query, gallery, np.random.default_rng(0), draws=4000, candidates=4)
    np.testing.assert_allclose(exact.diagonal(), drawn.stimuli, atol=0.04)
    assert exact.diagonal().mean() == pytest.approx(drawn.value, abs=0.01)
    whole = retrieval_scores(query, gallery, 9)
    assert set(np.unique(whole.round(9))) <= {0, 1}  # all are candidates: the nearest is picked, unless it is a tie
    assert (whole.sum(axis=1) <= 1 + 1e-9).all()
