import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from brainjanus.core.errors import UserError
from brainjanus.evaluate.rate import (
    MAX_BITS,
    PCAQuantizer,
    allocate,
    gaussian_bound,
    gaussian_distortion,
    held_out_bound,
    lloyd_max,
    principal_axes,
    water_level,
)


def gaussian(num: int, variances: np.ndarray, seed: int = 0) -> np.ndarray:
    """Gaussian responses whose axes are no sites."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(9).standard_normal((len(variances), len(variances))))[0]
    return rng.standard_normal((num, len(variances))) * np.sqrt(variances) @ turned


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_axes_are_those_of_the_covariance(shape):
    train = np.random.default_rng(0).standard_normal(shape) * np.linspace(1, 3, shape[1])
    axes = principal_axes(train)
    rank = min(shape[0] - 1, shape[1])
    covariance = np.cov(train.T)
    assert axes.variances == pytest.approx(np.linalg.eigvalsh(covariance)[::-1][:rank])
    directions = axes.directions(rank)
    assert directions @ directions.T == pytest.approx(np.eye(rank), abs=1e-9)
    assert directions.T @ (axes.variances[:, None] * directions) == pytest.approx(covariance)
    assert axes.directions(3) == pytest.approx(directions[:3])
    assert axes.shrinkage == pytest.approx(ledoit_wolf_shrinkage(train))


def test_water_fills_a_known_gaussian():
    """Variances 16, 4, 1/4: at 3 bits the level is 1, so that 2 + 1 bits go to the first two and none to the third."""
    assert water_level(np.array([16.0, 4.0, 0.25]), 3.0) == (pytest.approx(1.0), 2)
    assert water_level(np.array([16.0, 4.0, 0.25]), 6.0) == (pytest.approx(16 ** (1 / 3) * 2**-4.0), 3)
    assert water_level(np.array([2.0, 1.0]), 0.0) == (2.0, 0)
    assert water_level(np.zeros(3), 5.0) == (0.0, 0)


def test_the_bound_is_the_analytic_one_and_is_spread_over_sites():
    variances = np.array([16.0, 4.0, 0.25, 0.25])
    bound = gaussian_bound(gaussian(200_000, variances), 3.0)
    assert bound.mse == pytest.approx((1 + 1 + 0.25 + 0.25) / 4, rel=0.02)
    assert bound.sites.mean() == pytest.approx(bound.mse)
    assert bound.components == 2 and bound.shrinkage == 0
    alone = np.random.default_rng(0).standard_normal((100_000, 2)) * [4.0, 0.5]  # axes are sites
    assert gaussian_bound(alone, 2.0).sites == pytest.approx([1.0, 0.25], rel=0.03)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
@pytest.mark.parametrize("bits", [0.0, 7.0, 400.0])
def test_the_bound_of_a_shrunk_covariance_is_that_of_the_covariance_itself(shape, bits):
    train = np.random.default_rng(0).standard_normal(shape) * np.linspace(1, 5, shape[1])
    bound = gaussian_bound(train, bits, shrink=True)
    covariance, share = np.cov(train.T), bound.shrinkage
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / shape[1] * np.eye(shape[1])
    values, vectors = np.linalg.eigh(shrunk)
    left = np.minimum(values, water_level(values[::-1], bits)[0])
    assert share > 0.05
    assert bound.mse == pytest.approx(left.mean())
    assert bound.sites == pytest.approx((vectors**2) @ left, abs=1e-9)


def test_the_true_bound_lies_between_those_of_few_samples():
    variances = 10 * np.exp(-np.arange(120) / 15.0)
    truth = np.minimum(variances, water_level(variances, 60)[0]).mean()
    axes = principal_axes(gaussian(80, variances))
    held_out = held_out_bound(axes, gaussian(400, variances, seed=1), 60)
    assert gaussian_bound(axes, 60).mse < 0.8 * truth < truth < held_out < 2 * truth
    assert held_out_bound(axes, gaussian(400, variances, seed=1), 0) == pytest.approx(variances.mean(), rel=0.1)


def test_levels_are_those_of_max_1960():
    assert gaussian_distortion()[:5] == pytest.approx([1, 0.3634, 0.1175, 0.03454, 0.009497], rel=2e-3)
    values = np.random.default_rng(0).standard_normal(200_000)
    assert lloyd_max(values, 4) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=0.01)
    assert lloyd_max(np.array([0.0, 0.0, 8.0, 8.0]), 2) == pytest.approx([0, 8])


def test_bits_go_to_where_they_save_most():
    """One bit of variance 4 saves 2.5 and its second 0.98; the first of variance 1 saves 0.64."""
    variances = np.array([4.0, 1.0, 0.01])
    assert [allocate(variances, bits).tolist() for bits in range(5)] == [[], [1], [2], [2, 1], [3, 1]]
    assert allocate(variances, 10_000).tolist() == [MAX_BITS] * 3


@pytest.mark.parametrize("bits", [0, 1, 17, 40.9])
def test_the_linear_code_keeps_to_its_bits_and_comes_back(bits):
    variances = 10 * np.exp(-np.arange(30) / 5.0)
    quantizer = PCAQuantizer.fit(gaussian(2000, variances), bits)
    held_out = gaussian(2000, variances, seed=1)
    codes = quantizer.encode(held_out)
    decoded = quantizer.decode(codes)
    assert quantizer.bits == int(bits)
    assert (quantizer.encode(decoded) == codes).all()
    error = np.square(decoded - held_out).mean()
    assert gaussian_bound(gaussian(2000, variances), bits).mse <= error * 1.02 and error <= 1.02 * variances.mean()


def test_one_bit_of_a_gaussian_leaves_what_max_says():
    train = gaussian(50_000, np.array([9.0, 1e-9]))
    for bits, left in ((1, 0.3634), (2, 0.1175)):
        quantizer = PCAQuantizer.fit(train, bits)
        decoded = quantizer.decode(quantizer.encode(train))
        assert np.square(decoded - train).sum(axis=1).mean() / 9 == pytest.approx(left, rel=0.02)


def test_what_cannot_be_is_refused():
    train = np.random.default_rng(0).standard_normal((10, 4))
    with pytest.raises(UserError, match=r"bits of a response: expected a finite number .* got -1"):
        gaussian_bound(train, -1)
    with pytest.raises(UserError, match=r"bits of a response: .* got nan"):
        PCAQuantizer.fit(train, float("nan"))
    with pytest.raises(UserError, match=r"principal axes: expected at least 2 training responses .* got 1\."):
        principal_axes(train[:1])
    train[0, 0] = np.nan
    with pytest.raises(UserError, match="got 10 with NaN or infinity"):
        principal_axes(train)
    with pytest.raises(UserError, match="PCA quantizer: expected 4 sites, got 3"):
        PCAQuantizer.fit(np.eye(4), 3).encode(np.zeros((2, 3)))
