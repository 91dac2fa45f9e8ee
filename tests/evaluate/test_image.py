import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from brainjanus.evaluate.image import SIZE, pixcorr_scores, two_way_scores

RNG = np.random.default_rng(0)


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (count, *size, 3)).astype(np.uint8)


def resized(picture: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(tensor, (SIZE, SIZE), mode="bilinear", antialias=True)
    return out.flatten().double().numpy()


@pytest.mark.parametrize(("seen_size", "decoded_size"), [((8, 8), (8, 8)), ((8, 12), (5, 5)), ((440, 430), (16, 16))])
def test_pixcorr_is_pearson_of_the_resized_pictures(seen_size, decoded_size):
    seen, decoded = pictures(3, seen_size), pictures(3, decoded_size)
    scores = pixcorr_scores(list(seen[:, None]), decoded)
    for i in range(3):
        for j in range(3):
            assert scores[i, j] == pytest.approx(pearsonr(resized(seen[i]), resized(decoded[j])).statistic, abs=1e-5)


def test_a_stimulus_with_several_pictures_scores_their_mean():
    first, second, decoded = pictures(4, (8, 8)), pictures(4, (8, 8)), pictures(4, (8, 8))
    both = pixcorr_scores([np.stack(pair) for pair in zip(first, second, strict=True)], decoded)
    one, other = (pixcorr_scores(list(group[:, None]), decoded) for group in (first, second))
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)


def test_scale_and_offset_do_not_matter():
    seen = pictures(3, (8, 8))
    scores = pixcorr_scores(list(seen[:, None]), seen.astype(np.float32) / 255 - 3)
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-4)


def test_a_constant_picture_scores_zero():
    seen, grey = pictures(2, (8, 8)), np.full((2, 8, 8, 3), 77, np.uint8)
    assert (pixcorr_scores(list(seen[:, None]), grey) == 0).all()
    assert (pixcorr_scores(list(grey[:, None]), seen) == 0).all()


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
