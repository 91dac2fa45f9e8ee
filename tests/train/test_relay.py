"""The maps of a relay: planted cortices whose sites answer alike where they lie together."""

import numpy as np
import pytest
import torch

from brainjanus.core.ridge import PENALTIES, fit_ridge
from brainjanus.core.space import BrainSpace
from brainjanus.train.relay import Known, best_width, mean_r, neighbours, scales, solve_relay

FEATURES = 6


def cortex(seed: int, num_sites: int, subject: str = "x") -> tuple[BrainSpace, np.ndarray]:
    """Sites at random places, and what each answers to: smooth over the cortex, another map on each side."""
    places = np.random.default_rng(seed).uniform(-40, 40, (num_sites, 3)).astype(np.float32)
    waves = np.random.default_rng(99).normal(0, 1 / 18, (FEATURES, 3))
    tuning = np.cos(places @ waves.T + np.arange(FEATURES) + 2.0 * (places[:, :1] >= 0))
    return BrainSpace(subject, num_sites, coordinates_mm=places), tuning.T


@pytest.fixture(scope="module")
def planted():
    """Two known subjects and a new one, 200 stimuli, and 100 held-out ones."""
    rng = np.random.default_rng(5)
    stimuli = rng.standard_normal((300, FEATURES))
    spaces, tunings = zip(*(cortex(seed, 300, f"s{seed}") for seed in (1, 2, 3)), strict=True)
    expected = [(stimuli @ tuning).astype(np.float32) for tuning in tunings]
    measured = (expected[2] / expected[2].std() + 1.5 * rng.standard_normal(expected[2].shape)).astype(np.float32)
    known = [Known.of(space, x[:200], 5) for space, x in zip(spaces[:2], expected[:2], strict=True)]
    return (
        spaces[2],
        known,
        [x[:200] for x in expected[:2]],
        measured[:200],
        [x[200:] for x in expected],
        measured[200:],
    )


def told_by(fit, known, held) -> np.ndarray:
    return fit.relay.respond({k.subject: torch.from_numpy(x) for k, x in zip(known, held, strict=False)}).numpy()


@pytest.fixture(scope="module")
def zero_shot(planted):
    space, known, expected, measured, *_ = planted
    return solve_relay(space, known, expected, np.arange(0), measured[:0])


def test_without_responses_sites_answer_as_those_nearby(planted, zero_shot):
    _, known, _, _, held, _ = planted
    assert mean_r(told_by(zero_shot, known, held), held[2]) > 0.8
    assert zero_shot.r2 is None and zero_shot.width_mm is not None


def test_few_responses_beat_both_anatomy_and_ridge_from_the_stimuli(planted, zero_shot):
    space, known, expected, measured, held, _ = planted
    rows = np.arange(20)
    fit = solve_relay(space, known, expected, rows, measured[rows])
    found = mean_r(told_by(fit, known, held), held[2])
    features = np.concatenate(expected, axis=1)
    ridge = fit_ridge(features[rows], measured[rows]).predict(np.concatenate(held[:2], axis=1))
    assert found > mean_r(told_by(zero_shot, known, held), held[2])
    assert found > mean_r(ridge, held[2]) + 0.05
    assert fit.r2 is not None and 0 < fit.r2 < 1


def test_responses_tell_what_known_subjects_would_have(planted, zero_shot):
    space, known, expected, measured, held, held_measured = planted
    fit = solve_relay(space, known, expected, np.arange(60), measured[:60])
    for relay, least in ((zero_shot.relay, 0.5), (fit.relay, 0.8)):
        back = relay.voice("s1").expected(torch.from_numpy(held_measured)).numpy()
        assert mean_r(back, held[0]) > least


def test_without_coordinates_responses_suffice(planted):
    space, known, expected, measured, held, _ = planted
    nowhere = BrainSpace(space.subject, space.num_sites)
    fit = solve_relay(nowhere, known, expected, np.arange(100), measured[:100])
    assert fit.width_mm is None
    assert mean_r(told_by(fit, known, held), held[2]) > 0.8


def test_rows_pair_responses_with_their_stimuli(planted):
    space, known, expected, measured, *_ = planted
    straight = solve_relay(space, known, expected, np.arange(50), measured[:50])
    shuffled = np.random.default_rng(0).permutation(50)
    same = solve_relay(space, known, expected, shuffled, measured[shuffled])
    torch.testing.assert_close(same.relay.telling.weights, straight.relay.telling.weights, atol=2e-3, rtol=1e-2)


def test_who_explains_best_speaks_first(planted):
    space, known, expected, measured, *_ = planted
    noise = np.random.default_rng(1).standard_normal(expected[0].shape).astype(np.float32)
    known = [Known.of(BrainSpace("s1", 300, coordinates_mm=known[0].points_mm), noise, 5), known[1]]
    fit = solve_relay(space, known, [noise, expected[1]], np.arange(100), measured[:100])
    assert list(fit.relay.known) == ["s2", "s1"]


def test_neighbours_stay_on_their_side_and_the_nearest_speaks_for_a_far_site():
    points = np.array([[-1.0, 0, 0], [1.0, 0, 0], [500.0, 0, 0]])
    others = np.array([[-3.0, 0, 0], [3.0, 0, 0], [9.0, 0, 0]])
    weights = neighbours(points, others, 2.0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert weights[0].tolist() == [1, 0, 0]
    assert weights[1, 0] == 0 and weights[1, 1] > weights[1, 2] > 0
    assert weights[2].argmax() == 2 and weights[2, 2] > 0.99
    np.testing.assert_allclose(weights[1, 2] / weights[1, 1], np.exp((2**2 - 8**2) / (2 * 2.0**2)))


def test_the_width_is_that_of_the_maps(planted):
    """Of a known subject that is told by one with the same sites, the narrowest is best; of noise, the widest."""
    _, known, expected, *_ = planted
    twin = Known("twin", known[0].mean, known[0].axes, known[0].points_mm)
    z = known[0].coordinates(expected[0])
    assert best_width([known[0], twin], [z, z]) == 2.0
    rng = np.random.default_rng(0)
    rough = known[0].axes + 3 * rng.standard_normal(known[0].axes.shape)
    assert best_width([Known("a", known[0].mean, rough, known[0].points_mm), known[0]], [z, z]) > 2.0


def test_scales_find_a_planted_factor_and_hold_few_to_that_of_all():
    rng = np.random.default_rng(0)
    prior = rng.standard_normal((400, 50))
    factor = np.linspace(0.5, 2, 50)
    found = scales(prior, prior * factor + 0.1 * rng.standard_normal(prior.shape))
    assert np.corrcoef(found, factor)[0, 1] > 0.99
    few = scales(prior[:4], (prior * factor)[:4] + 2 * rng.standard_normal((4, 50)))
    assert few.std() < 0.5 * factor.std()


def test_a_shared_penalty_is_that_of_the_smallest_summed_error():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 10)).astype(np.float32)
    y = (x @ rng.standard_normal((10, 6)) * np.array([0, 0, 0.1, 1, 3, 9]) + rng.standard_normal((40, 6))).astype("f4")
    own, shared = fit_ridge(x, y), fit_ridge(x, y, shared=True)
    assert len(set(own.penalties)) > 1 and len(set(shared.penalties)) == 1
    scatter = np.linalg.eigvalsh(np.cov(x.T, bias=True) * len(x)).mean()
    errors = [((1 - fit_ridge(x, y, np.array([p * scatter])).r2) * y.var(axis=0)).sum() for p in PENALTIES]
    np.testing.assert_allclose(shared.penalties[0], PENALTIES[int(np.argmin(errors))] * scatter, rtol=1e-3)
