import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.metrics.pairwise import cosine_similarity

from brainjanus.core.errors import UserError
from brainjanus.evaluate import brain
from brainjanus.evaluate.brain import (
    MIN_CEILING,
    all_pattern_scores,
    ceiling_weights,
    cosine,
    identification_ranks,
    mse,
    pattern_r,
    pattern_scores,
    r2,
    r2_scores,
    resampled,
    voxel_r,
    voxel_scores,
)

RNG = np.random.default_rng(0)
MEASURED = RNG.standard_normal((12, 7))
PREDICTED = MEASURED + RNG.standard_normal((12, 7))
ALL = np.ones(7, dtype=bool)


@pytest.fixture(params=[2, 1024], ids=["blocks of 2", "one block"])
def block(request, monkeypatch):
    """Every figure is the same however many sites are taken at a time."""
    monkeypatch.setattr(brain, "BLOCK", request.param)
    monkeypatch.setattr(brain, "RESAMPLED_BLOCK", request.param)
    monkeypatch.setattr(brain._blocks, "__defaults__", (request.param,))
    return request.param


# --- against an oracle ----------------------------------------------------------------------------------------------


def test_voxel_r_is_pearson_of_each_site(block):
    expected = [pearsonr(MEASURED[:, v], PREDICTED[:, v]).statistic for v in range(7)]
    np.testing.assert_allclose(voxel_r(MEASURED, PREDICTED), expected)


def test_pattern_r_is_pearson_of_each_stimulus(block):
    expected = [pearsonr(MEASURED[n], PREDICTED[n]).statistic for n in range(12)]
    np.testing.assert_allclose(pattern_r(MEASURED, PREDICTED), expected)


def test_r2_is_that_of_scikit_learn(block):
    np.testing.assert_allclose(r2(MEASURED, PREDICTED), r2_score(MEASURED, PREDICTED, multioutput="raw_values"))


def test_r2_is_that_of_himalaya_constant_sites_too():
    scoring = pytest.importorskip("himalaya.scoring", reason="needs himalaya")
    measured = MEASURED.copy()
    measured[:, 3] = 2.0
    for predicted in (PREDICTED, measured):
        with np.errstate(divide="ignore", invalid="ignore"):  # which it does, before it puts a 0 there
            expected = scoring.r2_score(measured, predicted)
        np.testing.assert_allclose(r2(measured, predicted), expected)
        assert r2(measured, predicted)[3] == 0


def test_cosine_and_mse_are_those_of_scikit_learn(block):
    np.testing.assert_allclose(cosine(MEASURED, PREDICTED), np.diag(cosine_similarity(MEASURED, PREDICTED)))
    np.testing.assert_allclose(
        mse(MEASURED, PREDICTED), mean_squared_error(MEASURED.T, PREDICTED.T, multioutput="raw_values")
    )


def test_float32_with_a_large_offset_keeps_its_precision():
    shifted = (MEASURED + 1000).astype(np.float32)
    np.testing.assert_allclose(voxel_r(shifted, PREDICTED), voxel_r(MEASURED, PREDICTED), atol=1e-4)
    np.testing.assert_allclose(r2(shifted, PREDICTED + 1000), r2(MEASURED, PREDICTED), atol=1e-3)
    np.testing.assert_allclose(pattern_scores(shifted, PREDICTED), pattern_scores(MEASURED, PREDICTED), atol=1e-4)


# --- degenerate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_a_constant_prediction_scores_zero(value):
    predicted = PREDICTED.copy()
    predicted[:, 2] = value
    assert voxel_r(MEASURED, predicted)[2] == 0
    assert voxel_r(predicted, MEASURED)[2] == 0
    assert r2(predicted, MEASURED)[2] == 0
    constant = np.full_like(MEASURED, value)
    assert pattern_r(MEASURED, constant).tolist() == [0] * 12
    assert not pattern_scores(MEASURED, constant).any() and not pattern_scores(constant, MEASURED).any()


def test_the_mean_response_explains_nothing_and_worse_ones_less():
    mean = np.broadcast_to(MEASURED.mean(axis=0), MEASURED.shape)
    np.testing.assert_allclose(r2(MEASURED, mean), 0, atol=1e-12)
    np.testing.assert_allclose(r2(MEASURED, MEASURED), 1)
    assert (r2(MEASURED, -MEASURED) < 0).all()


def test_a_pattern_of_zeros_has_no_direction():
    predicted = PREDICTED.copy()
    predicted[4] = 0
    assert cosine(MEASURED, predicted)[4] == 0
    assert not all_pattern_scores(MEASURED, predicted).cosine[:, 4].any()


def test_a_single_site():
    assert voxel_r(MEASURED[:, :1], PREDICTED[:, :1]).shape == (1,)
    assert pattern_r(MEASURED[:, :1], PREDICTED[:, :1]).tolist() == [0] * 12


PAIRED = [voxel_r, r2, pattern_r, cosine, mse, voxel_scores, r2_scores, pattern_scores, all_pattern_scores]


@pytest.mark.parametrize("function", PAIRED)
def test_nan_is_refused_with_its_place(function):
    broken = PREDICTED.copy()
    broken[4, 5] = np.nan
    with pytest.raises(UserError, match=r"predicted responses: .* got nan at stimulus 4, site 5"):
        function(MEASURED, broken)


@pytest.mark.parametrize("function", PAIRED)
def test_one_stimulus_is_refused(function):
    with pytest.raises(UserError, match="at least 2 stimuli"):
        function(MEASURED[:1], PREDICTED[:1])


# --- score matrices -------------------------------------------------------------------------------------------------


def test_the_score_matrix_holds_every_shuffle(block):
    order = RNG.permutation(12)
    for scores, score in ((voxel_scores, voxel_r), (r2_scores, r2)):
        matrix = scores(MEASURED, PREDICTED)
        assert np.trace(matrix) / 12 == pytest.approx(score(MEASURED, PREDICTED).mean())
        assert matrix[np.arange(12), order].mean() == pytest.approx(score(MEASURED, PREDICTED[order]).mean())
    patterns = all_pattern_scores(MEASURED, PREDICTED)
    for matrix, score in ((patterns.r, pattern_r), (patterns.cosine, cosine), (patterns.mse, mse)):
        np.testing.assert_allclose(matrix[np.arange(12), order], score(MEASURED, PREDICTED[order]))


def test_the_matrix_of_identical_patterns():
    patterns = all_pattern_scores(MEASURED + 1e3, MEASURED + 1e3)
    np.testing.assert_allclose(np.diag(patterns.mse), 0, atol=1e-12)
    np.testing.assert_allclose(np.diag(patterns.r), 1)
    assert (patterns.mse >= 0).all()


def test_the_shuffled_voxel_r_is_zero_on_average():
    assert voxel_scores(MEASURED, PREDICTED).mean() == pytest.approx(0, abs=1e-12)


def test_a_constant_site_adds_nothing_to_the_matrices():
    measured = MEASURED.copy()
    measured[:, 3] = 0.1
    for scores, score in ((voxel_scores, voxel_r), (r2_scores, r2)):
        assert np.trace(scores(measured, PREDICTED)) / 12 == pytest.approx(score(measured, PREDICTED).mean())


@pytest.mark.parametrize(("scores", "score"), [(voxel_scores, voxel_r), (r2_scores, r2)])
def test_weights_choose_sites(scores, score, block):
    matrix = scores(MEASURED, PREDICTED, np.eye(7)[3])
    assert np.trace(matrix) / 12 == pytest.approx(score(MEASURED, PREDICTED)[3])


def test_ceiling_weights_leave_out_sites_without_signal():
    ceiling = np.array([0.6, 0.05, 0.0, 0.3])
    np.testing.assert_allclose(ceiling_weights(ceiling), [0.5 / 0.6, 0, 0, 0.5 / 0.3])
    assert ceiling_weights(np.full(3, MIN_CEILING / 2)) is None


def test_identification_ranks_by_a_direct_loop():
    similarity = np.round(RNG.standard_normal((9, 9)), 1)  # rounded: with ties
    ranks = identification_ranks(similarity)
    for i in range(9):
        for j in range(9):
            assert ranks[i, j] == sum(similarity[i, k] >= similarity[i, j] for k in range(9))


def test_identical_predictions_identify_nothing():
    similarity = pattern_scores(MEASURED, np.repeat(PREDICTED[:1], 12, axis=0))
    assert (identification_ranks(similarity) == 12).all()
    one_ulp = similarity * (1 + 2e-16 * RNG.integers(0, 2, similarity.shape))
    assert (identification_ranks(one_ulp) == 12).all()


# --- resamples ------------------------------------------------------------------------------------------------------


def counts_of(resamples, num):
    return np.stack([np.bincount(drawn, minlength=num) for drawn in resamples])


def directly(measured, predicted, resamples, mask, ceiling):
    """Mean r, mean r / ceiling and mean R2 of the sites in `mask`, by a loop over samples and scipy."""
    rows = []
    for drawn in resamples:
        x, y = measured[drawn][:, mask], predicted[drawn][:, mask]
        varies = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
        r = np.array([pearsonr(a, b).statistic if ok else 0.0 for a, b, ok in zip(x.T, y.T, varies, strict=True)])
        total = ((x - x.mean(axis=0)) ** 2).sum(axis=0)
        known = np.ptp(x, axis=0) > 0
        explained = np.where(known, 1 - ((x - y) ** 2).sum(axis=0) / np.where(known, total, 1), 0)
        counted = ceiling[mask] >= MIN_CEILING
        rows.append([r.mean(), (r[counted] / ceiling[mask][counted]).mean(), explained.mean()])
    return np.array(rows)


def degenerate() -> tuple[np.ndarray, np.ndarray]:
    """Sites that are constant, constant in many samples, offset, or of another unit; predictions likewise."""
    measured, predicted = MEASURED.copy(), PREDICTED.copy()
    measured[:, 0] = 0.1
    measured[1:, 1] = 0.3  # constant in every sample without the first stimulus
    predicted[:-1, 2] = -0.7
    measured[:, 3] += 1000
    predicted[:, 4] *= 50
    predicted[:, 5] = 0.1
    measured[2:, 6] = 0.01 * measured[2:, 6]  # a variance that hangs on two stimuli
    return measured, predicted


@pytest.mark.parametrize("case", ["random", "degenerate"])
def test_resampled_is_a_direct_loop(case, block):
    measured, predicted = (MEASURED, PREDICTED) if case == "random" else degenerate()
    resamples = RNG.integers(0, 12, (40, 12))
    resamples[0] = 5  # one stimulus only
    ceiling = np.array([0.5, 0.9, 0.05, 0.7, 0.3, 0.2, 0.4])
    groups = {None: ALL, "few": np.arange(7) < 3, "one": np.arange(7) == 4}
    found = resampled(measured, predicted, counts_of(resamples, 12), groups, ceiling)
    for name, mask in groups.items():
        expected = directly(measured, predicted, resamples, mask, ceiling)
        for column, values in enumerate(found[name]):
            scale = np.maximum(1, np.abs(expected[:, column]))
            assert (np.abs(values - expected[:, column]) / scale).max() < 1e-6, (name, column)
    assert found[None].voxel_r[0] == found[None].r2[0] == 0


def test_resampling_every_stimulus_once_gives_the_score():
    found = resampled(MEASURED, PREDICTED, np.ones((1, 12), np.int64), {None: ALL})[None]
    assert found.voxel_r[0] == pytest.approx(voxel_r(MEASURED, PREDICTED).mean(), abs=1e-6)
    assert found.r2[0] == pytest.approx(r2(MEASURED, PREDICTED).mean(), abs=1e-6)
    assert found.normalised_r is None


def test_single_precision_costs_less_than_a_millionth():
    measured = RNG.standard_normal((300, 20)).astype(np.float32) + 5
    predicted = 0.3 * measured + RNG.standard_normal((300, 20)).astype(np.float32)
    resamples = RNG.integers(0, 300, (30, 300))
    sites = np.ones(20, dtype=bool)
    expected = directly(measured.astype(np.float64), predicted.astype(np.float64), resamples, sites, np.ones(20))
    found = resampled(measured, predicted, counts_of(resamples, 300), {None: sites})[None]
    np.testing.assert_allclose(found.voxel_r, expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.r2, expected[:, 2], rtol=1e-6)


def test_a_group_without_a_ceiling_has_no_normalised_r():
    ceiling = np.where(np.arange(7) < 3, 0.01, 0.5)
    found = resampled(
        MEASURED, PREDICTED, np.ones((1, 12), np.int64), {"low": ceiling < 0.1, "rest": ceiling > 0.1}, ceiling
    )
    assert found["low"].normalised_r is None
    np.testing.assert_allclose(found["rest"].normalised_r, 2 * found["rest"].voxel_r)


def test_more_draws_than_stimuli_and_fewer():
    for size in (5, 30):
        resamples = RNG.integers(0, 12, (6, size))
        expected = directly(MEASURED, PREDICTED, resamples, ALL, np.ones(7))
        found = resampled(MEASURED, PREDICTED, counts_of(resamples, 12), {None: ALL})[None]
        np.testing.assert_allclose(found.voxel_r, expected[:, 0], atol=1e-6)
