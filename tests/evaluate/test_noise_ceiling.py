"""The noise ceiling against the truth of the simulated cortex, against split halves of V4, and where there is none.

With N repeated stimuli the estimate of signal variance has a standard deviation that falls as 1 / sqrt(N); the ceiling
is a concave function of it, so that a mean over sites is too low by about 2 / N (at ceilings near .6): .01 for 200
stimuli, nothing for NSD's thousands. An error that sites share, because they saw the same stimuli, falls as
1 / sqrt(N) and does not average out.
"""

from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.space import BrainSpace
from brainjanus.data.simulate import SimulationConfig, Truth, simulate
from brainjanus.data.truth import load_truth
from brainjanus.data.write import signal_and_noise

TOLERANCE = 0.02
MIN_REPEATS = 6  # of each picture in session 210325; most have 7 or 8


def ceiling_of(signal: np.ndarray, noise: np.ndarray, num_repeats: int) -> np.ndarray:
    space = BrainSpace("s1", len(signal), signal_variance=signal, noise_variance=noise)
    ceiling = space.noise_ceiling(num_repeats)
    assert ceiling is not None
    return ceiling


# --- the truth ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> list[tuple[BrainSpace, Truth]]:
    out = tmp_path_factory.mktemp("study")
    config = SimulationConfig(num_subjects=2, num_train=400, num_test=10, num_sites=(600, 620), trials_per_session=410)
    dataset = simulate(out, config)
    return [(dataset.space(subject), load_truth(Truth, out, subject)) for subject in dataset.subjects]


@pytest.mark.parametrize("num_repeats", [1, 3])
def test_the_mean_ceiling_is_that_of_the_simulated_cortex(simulated, num_repeats):
    for space, truth in simulated:
        true = ceiling_of(truth.signal_variance, truth.noise_variance, num_repeats)
        assert space.noise_ceiling(num_repeats).mean() == pytest.approx(true.mean(), abs=TOLERANCE)


def test_the_ceiling_of_each_roi_is_that_of_the_simulated_cortex(simulated):
    """Stimuli are shared by the sites of a region: with 400 of them a region may be off by two standard errors."""
    errors = [
        space.noise_ceiling(3)[sites].mean() - ceiling_of(truth.signal_variance, truth.noise_variance, 3)[sites].mean()
        for space, truth in simulated
        for sites in space.rois.values()
    ]
    assert np.abs(errors).max() < 2 * TOLERANCE
    assert np.mean(np.abs(errors) < TOLERANCE) > 0.7


@pytest.mark.parametrize(("num_stimuli", "tolerance"), [(50, 0.06), (200, 0.02), (800, 0.005)])
def test_the_bias_falls_as_the_number_of_stimuli(num_stimuli, tolerance):
    rng = np.random.default_rng(0)
    share = rng.uniform(0.1, 0.3, 2000)
    signal = np.sqrt(share) * rng.standard_normal((num_stimuli, 1, 2000))
    trials = (signal + np.sqrt(1 - share) * rng.standard_normal((num_stimuli, 3, 2000))).reshape(-1, 2000)
    found = signal_and_noise(trials.astype(np.float32), [str(i) for i in np.repeat(np.arange(num_stimuli), 3)])
    assert found is not None
    bias = (ceiling_of(found.signal, found.noise, 3) - ceiling_of(share, 1 - share, 3)).mean()
    assert -tolerance < bias < tolerance / 3


def test_what_is_known_of_the_signal_correlates_up_to_the_ceiling():
    """The meaning of the ceiling: r of the noise-free response with a mean over repeats."""
    rng = np.random.default_rng(1)
    signal = rng.standard_normal((4000, 3))
    for num_repeats in (1, 2, 5):
        mean = signal + 1.5 * rng.standard_normal((num_repeats, 4000, 3)).mean(axis=0)
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(signal.T, mean.T, strict=True)]
        np.testing.assert_allclose(ceiling_of(np.ones(3), np.full(3, 2.25), num_repeats), r, atol=0.02)


# --- split halves ---------------------------------------------------------------------------------------------------


def split_half(trials: np.ndarray, rng: np.random.Generator, num_splits: int = 30) -> np.ndarray:
    """Square root of the Spearman-Brown reliability of a mean over MIN_REPEATS trials [neurons, pictures, repeats]."""
    reliability = []
    for _ in range(num_splits):
        chance = np.where(np.isnan(trials), np.inf, rng.random(trials.shape))  # a random order of those that there are
        drawn = np.take_along_axis(trials, chance.argsort(axis=2)[..., :MIN_REPEATS], axis=2)
        halves = drawn[..., ::2].mean(axis=2), drawn[..., 1::2].mean(axis=2)
        r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*halves, strict=True)])
        reliability.append(2 * r / (1 + r))
    return np.sqrt(np.mean(reliability, axis=0).clip(min=0))


def test_it_agrees_with_split_halves_of_real_neurons(real_data):
    path: Path = real_data / "v4_cowley" / "responses_raw_210325.npy"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    raw = np.load(path)
    assert raw.shape == (50, 640, 10) and (~np.isnan(raw)).sum(axis=2).min() == MIN_REPEATS
    known = ~np.isnan(raw[0])
    pictures = np.repeat(np.arange(640), known.sum(axis=1))
    found = signal_and_noise(raw[:, known].T, [str(picture) for picture in pictures])
    assert found is not None
    ceiling = ceiling_of(found.signal, found.noise, MIN_REPEATS)
    difference = ceiling - split_half(raw, np.random.default_rng(0))
    assert abs(difference.mean()) < 0.002
    assert np.abs(difference).max() < 0.015


# --- degenerate -----------------------------------------------------------------------------------------------------


def test_without_repeats_there_is_no_ceiling():
    assert signal_and_noise(np.random.default_rng(0).standard_normal((5, 2)), list("abcde")) is None
    assert BrainSpace("s1", 2).noise_ceiling(3) is None


def test_a_site_without_variance_has_the_ceiling_zero():
    trials = np.zeros((6, 3))
    trials[:, 1] = [1, 1, 2, 2, 3, 3]  # signal only
    trials[:, 2] = [1, -1, 1, -1, 1, -1]  # noise only
    found = signal_and_noise(trials, list("aabbcc"))
    assert found is not None
    assert ceiling_of(found.signal, found.noise, 2).tolist() == [0, 1, 0]


def test_more_repeats_raise_it_towards_one():
    ceilings = [float(ceiling_of(np.array([0.2]), np.array([0.8]), n)[0]) for n in (1, 2, 10, 10**6)]
    assert ceilings == sorted(ceilings)
    assert ceilings[0] == pytest.approx(np.sqrt(0.2)) and ceilings[-1] == pytest.approx(1, abs=1e-5)
