import numpy as np
import pytest
from scipy.stats import pearsonr

from brainjanus.core.errors import UserError
from brainjanus.evaluate.brain import (
    identification_ranks,
    normalised_r,
    pattern_r,
    pattern_scores,
    voxel_r,
    voxel_scores,
)

RNG = np.random.default_rng(0)
MEASURED = RNG.standard_normal((12, 7))
PREDICTED = MEASURED + RNG.standard_normal((12, 7))


def test_voxel_r_is_pearson_of_each_site():
    expected = [pearsonr(MEASURED[:, v], PREDICTED[:, v]).statistic for v in range(7)]
    np.testing.assert_allclose(voxel_r(MEASURED, PREDICTED), expected)


def test_pattern_r_is_pearson_of_each_stimulus():
    expected = [pearsonr(MEASURED[n], PREDICTED[n]).statistic for n in range(12)]
    np.testing.assert_allclose(pattern_r(MEASURED, PREDICTED), expected)


def test_float32_with_a_large_offset_keeps_its_precision():
    shifted = (MEASURED + 1000).astype(np.float32)
    np.testing.assert_allclose(voxel_r(shifted, PREDICTED), voxel_r(MEASURED, PREDICTED), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_a_constant_prediction_scores_zero(value):
    predicted = PREDICTED.copy()
    predicted[:, 2] = value
    assert voxel_r(MEASURED, predicted)[2] == 0
    assert voxel_r(predicted, MEASURED)[2] == 0
    assert pattern_r(MEASURED, np.full_like(MEASURED, value)).tolist() == [0] * 12


def test_the_score_matrix_holds_every_shuffle():
    order = RNG.permutation(12)
    scores = voxel_scores(MEASURED, PREDICTED)
    assert np.trace(scores) / 12 == pytest.approx(voxel_r(MEASURED, PREDICTED).mean())
    shuffled = scores[np.arange(12), order].mean()
    assert shuffled == pytest.approx(voxel_r(MEASURED, PREDICTED[order]).mean())
    patterns = pattern_scores(MEASURED, PREDICTED)[np.arange(12), order]
    np.testing.assert_allclose(patterns, pattern_r(MEASURED, PREDICTED[order]))


def test_the_shuffled_voxel_r_is_zero_on_average():
    assert voxel_scores(MEASURED, PREDICTED).mean() == pytest.approx(0, abs=1e-12)


def test_weights_choose_sites():
    weights = np.eye(7)[3]
    scores = voxel_scores(MEASURED, PREDICTED, weights)
    assert np.trace(scores) / 12 == pytest.approx(voxel_r(MEASURED, PREDICTED)[3])


def test_normalised_r_leaves_out_sites_without_signal():
    found = normalised_r(np.array([0.3, 0.3, 0.3]), np.array([0.6, 0.05, 0.0]))
    np.testing.assert_allclose(found, [0.5, np.nan, np.nan])


def test_identification_ranks_by_a_direct_loop():
    similarity = np.round(RNG.standard_normal((9, 9)), 1)  # rounded: with ties
    ranks = identification_ranks(similarity)
    for i in range(9):
        for j in range(9):
            assert ranks[i, j] == sum(similarity[i, k] >= similarity[i, j] for k in range(9))


def test_identical_predictions_identify_nothing():
    similarity = pattern_scores(MEASURED, np.repeat(PREDICTED[:1], 12, axis=0))
    assert (identification_ranks(similarity) == 12).all()


@pytest.mark.parametrize("function", [voxel_r, pattern_r, voxel_scores, pattern_scores])
def test_nan_is_refused_with_its_place(function):
    broken = PREDICTED.copy()
    broken[4, 5] = np.nan
    with pytest.raises(UserError, match=r"predicted responses: .* got nan at stimulus 4, site 5"):
        function(MEASURED, broken)


def test_one_stimulus_is_refused():
    with pytest.raises(UserError, match="at least 2 stimuli"):
        voxel_r(MEASURED[:1], PREDICTED[:1])
