"""The padding-hacking control has to pass every encode-then-decode score, and to be exposed by the brain metrics."""

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.brain import identification_ranks, pattern_scores, voxel_r
from brainjanus.evaluate.control import padding_control, resized
from brainjanus.evaluate.image import pixcorr_scores, two_way_scores

RNG = np.random.default_rng(0)


def pictures(num: int, size: int) -> np.ndarray:
    """Smooth colours, a little noise: like pictures, not like static."""
    coarse = RNG.integers(0, 256, (num, 8, 8, 3)).astype(np.uint8)
    return (resized(coarse, size, size) * 0.9 + RNG.integers(0, 25, (num, size, size, 3))).astype(np.uint8)


SEEN = pictures(30, 64)


def test_a_picture_that_fits_comes_back_with_the_colours_that_were_kept():
    control = padding_control(SEEN, 1500)  # 4,500 pixels: more than 64 x 64
    error = np.abs(control.decode(control.responses).astype(int) - SEEN).max(axis=(0, 1, 2))
    assert (error <= np.array([255 / 63, 255 / 63, 255 / 31]) / 2 + 1).all()
    once = control.decode(control.responses)
    again = padding_control(once, 1500)
    np.testing.assert_array_equal(again.decode(again.responses), once)


@pytest.mark.parametrize(("num_sites", "least"), [(1500, 0.999), (400, 0.95), (50, 0.8)])
def test_it_has_perfect_encode_then_decode_scores(num_sites, least):
    control = padding_control(SEEN, num_sites)
    similarity = pixcorr_scores(list(SEEN[:, None]), control.decode(control.responses))
    assert np.trace(similarity) / len(SEEN) > least
    assert np.trace(two_way_scores(similarity)) / len(SEEN) == 1


def test_the_brain_metrics_expose_it():
    space = RNG.standard_normal((300, 64 * 64 * 3)) / 100
    measured = (SEEN.reshape(30, -1) - 128.0) @ space.T / 100 + RNG.standard_normal((30, 300))
    control = padding_control(SEEN, 300).responses
    assert abs(voxel_r(measured, control).mean()) < 0.05
    assert np.diag(identification_ranks(pattern_scores(measured, control))).mean() > 8  # of 30; chance is 15


def test_responses_are_zero_beyond_the_copy():
    responses = padding_control(SEEN, 5000).responses
    used = -(-64 * 64 // 3)
    assert responses[:, :used].any(axis=0).mean() > 0.99
    assert not responses[:, used:].any()
    assert responses.min() >= 0 and responses.max() < 1


@pytest.mark.parametrize(
    ("height", "width", "num_sites"), [(64, 64, 1), (100, 2, 3), (2, 100, 3), (5, 9, 15), (1, 1, 9)]
)
def test_any_shape_comes_back_in_its_size(height, width, num_sites):
    seen = RNG.integers(0, 256, (4, height, width, 3)).astype(np.uint8)
    control = padding_control(seen, num_sites)
    assert control.responses.shape == (4, num_sites)
    assert control.decode(control.responses).shape == seen.shape


def test_white_and_black_survive():
    seen = np.stack([np.zeros((6, 6, 3)), np.full((6, 6, 3), 255)]).astype(np.uint8)
    control = padding_control(seen, 12)
    np.testing.assert_array_equal(control.decode(control.responses), seen)


def test_what_lies_outside_is_decoded_to_a_picture():
    control = padding_control(SEEN, 1500)
    assert control.decode(np.full((2, 1500), -3.0)).max() == 0
    assert control.decode(np.full((2, 1500), 7.0)).min() == 255


def test_without_sites_nothing_can_be_written():
    with pytest.raises(UserError, match="padding control: expected at least 1 site, got 0"):
        padding_control(SEEN, 0)
