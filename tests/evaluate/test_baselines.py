import time

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from brainjanus.core.errors import UserError
from brainjanus.core.ridge import fit_ridge
from brainjanus.evaluate import baselines
from brainjanus.evaluate.baselines import BagOfWords, linear_baseline

RNG = np.random.default_rng(0)


def problem(n: int, p: int, t: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = RNG.standard_normal((n + 20, p)) * np.linspace(2, 0.1, p) + 3
    weights = RNG.standard_normal((p, t)) * (RNG.random((p, 1)) < 0.3)
    y = x @ weights + np.linspace(0.1, 12, t) * RNG.standard_normal((n + 20, t)) + 5
    return x[:n], y[:n], x[n:]


@pytest.mark.parametrize(("n", "p"), [(60, 15), (25, 60), (30, 30)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 300.0])
def test_ridge_is_that_of_scikit_learn(n, p, penalty):
    x, y, new = problem(n, p)
    expected = Ridge(alpha=penalty).fit(x, y).predict(new)
    np.testing.assert_allclose(fit_ridge(x, y, np.array([penalty])).predict(new), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(60, 15), (25, 60)])
def test_the_penalty_minimises_the_generalised_cross_validation_error(n, p):
    x, y, _ = problem(n, p)
    grid = np.logspace(-2, 5, 15)
    ridge = fit_ridge(x, y, grid)
    centred = x - x.mean(axis=0)
    errors = []
    for penalty in grid:
        hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(p), centred.T) + 1 / n
        residual = y - hat @ y
        errors.append((residual**2).mean(axis=0) / (1 - np.trace(hat) / n) ** 2)
    np.testing.assert_allclose(ridge.penalties, grid[np.argmin(errors, axis=0)])
    np.testing.assert_allclose(ridge.r2, 1 - np.min(errors, axis=0) / y.var(axis=0), atol=1e-8)


def test_the_penalty_is_close_to_that_of_leave_one_out():
    x, y, _ = problem(200, 30)
    grid = np.logspace(-2, 5, 15)
    reference = RidgeCV(grid, alpha_per_target=True).fit(x, y).alpha_
    steps = np.log10(fit_ridge(x, y, grid).penalties / reference) / 0.5
    assert np.abs(steps).max() <= 1.01  # the same or the next on the grid


def test_targets_with_more_noise_get_larger_penalties():
    penalties = fit_ridge(*problem(200, 30)[:2]).penalties
    assert penalties[-1] > penalties[0]


def test_single_precision_suffices():
    x, y, new = problem(60, 200)
    exact = fit_ridge(x, y).predict(new)
    single = fit_ridge(x.astype(np.float32), y.astype(np.float32)).predict(new.astype(np.float32))
    for target in range(exact.shape[1]):  # where two penalties do as well, rounding decides
        assert np.corrcoef(single[:, target], exact[:, target])[0, 1] > 0.999


def test_constant_features_and_targets_predict_the_mean():
    x, y, new = problem(30, 5)
    y[:, 0] = 4
    assert fit_ridge(x, y).predict(new)[:, 0] == pytest.approx(4)
    constant = fit_ridge(np.ones_like(x), y)
    np.testing.assert_allclose(constant.predict(new), np.tile(y.mean(axis=0), (len(new), 1)))
    assert (constant.r2 <= 0).all()


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="at least 3 training samples"):
        fit_ridge(np.ones((2, 4)), np.ones((2, 1)))


def test_many_targets_are_fast():
    x, y = RNG.standard_normal((1000, 3000)).astype(np.float32), RNG.standard_normal((1000, 4000)).astype(np.float32)
    start = time.perf_counter()
    fit_ridge(x, y)
    assert time.perf_counter() - start < 5  # 0.3 s on a quiet core


def test_bag_of_words_counts_captions_and_knows_training_words_only():
    bag = BagOfWords([["a red dog", "the dog"], ["a red car"]])
    assert bag.words == ["red", "car", "dog"]
    np.testing.assert_allclose(bag.encode([["a dog", "dog in red"], ["a horse"], []]), [[0.5, 0, 1], [0] * 3, [0] * 3])
    assert bag.decode(np.array([[0.1, 0.3, 0.2]]), 2) == ["car dog"]


def test_linear_models_find_the_planted_signal(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    measured = tiny.averages("s1", "test").responses
    for direction, least in (("image->brain", 0.6), ("text->brain", 0.3)):
        predicted = linear_baseline(tiny, "s1", direction, ids)
        assert np.mean([np.corrcoef(measured[:, v], predicted[:, v])[0, 1] for v in range(39)]) > least
    pictures = linear_baseline(tiny, "s1", "brain->image", ids)
    assert pictures.shape == tiny.images(ids).shape
    assert np.corrcoef(pictures.ravel(), tiny.images(ids).ravel())[0, 1] > 0.8


def test_predictions_follow_the_order_of_ids(tiny):
    ids = tiny.averages("s1", "test").stimulus_ids
    forward = linear_baseline(tiny, "s1", "image->brain", ids)
    backward = linear_baseline(tiny, "s1", "image->brain", ids[::-1])
    np.testing.assert_array_equal(forward, backward[::-1])


@pytest.mark.parametrize("direction", ["brain->text", "brain->image", "image->brain", "text->brain"])
def test_nothing_is_fitted_to_test_responses(tiny, direction, monkeypatch):
    """What is predicted for the first test stimulus does not change when all other test responses do."""
    ids = tiny.averages("s1", "test").stimulus_ids
    expected = linear_baseline(tiny, "s1", direction, ids)
    averages = type(tiny).averages

    def spoiled(self, subject, split):
        found = averages(self, subject, split)
        if split != "train":
            found.responses[1:] = 1e3 * RNG.standard_normal(found.responses[1:].shape)
        return found

    monkeypatch.setattr(type(tiny), "averages", spoiled)
    monkeypatch.setattr(baselines, "_fitted", {})
    found = linear_baseline(tiny, "s1", direction, ids)
    if direction == "brain->text":
        assert found[0] == expected[0]
    else:
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert np.array_equal(found[1:], expected[1:]) == direction.endswith("->brain")


def test_the_linear_model_reads_the_caption_that_the_model_reads(tiny, monkeypatch):
    ids = tiny.averages("s1", "test").stimulus_ids
    expected = linear_baseline(tiny, "s1", "text->brain", ids)
    captions = type(tiny).captions
    monkeypatch.setattr(baselines, "_fitted", {})
    monkeypatch.setattr(type(tiny), "captions", lambda self, name: captions(self, name)[: 1 if name in ids else None])
    np.testing.assert_array_equal(linear_baseline(tiny, "s1", "text->brain", ids), expected)
