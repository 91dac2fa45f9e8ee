"""What tokens read and write: planted structure is found, and nothing better can be had linearly."""

import numpy as np
import pytest

from brainjanus.tokenizers import axes as module
from brainjanus.tokenizers.axes import cortical_axes, own_axes, repeated_axes

K, P, V, N = 6, 4, 24, 300
NOTHING = np.zeros((0, V))


def low_rank(rank, seed=0):
    """Responses of so many independent parts, spread over all sites."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, rank)) @ rng.standard_normal((rank, V))


def smooth(seed=0):
    """Responses of full rank in which neighbours agree."""
    places = np.arange(V)
    root = np.exp(-0.5 * ((places[:, None] - places) / 2.0) ** 2)
    return np.random.default_rng(seed).standard_normal((N, V)) @ root


def solve(means, residuals=NOTHING, noise=0.0, per_patch=2, rank=99):
    return cortical_axes(means, residuals, noise, patch_size=P, per_patch=per_patch, rank=rank)


def read(axes):
    return np.concatenate(list(axes.turn)) @ axes.principal


def written(axes, means):
    return (means @ read(axes).T) @ np.concatenate(list(axes.back)) @ axes.principal


@pytest.mark.parametrize("rank", [1, 4, 6, 9, 12])
def test_planted_responses_of_low_rank_are_given_back_exactly(rank):
    """By fewer axes than tokens, as many, and more: 12 numbers in all hold up to 12 dimensions."""
    means = low_rank(rank)
    axes = solve(means)
    assert axes.principal.shape == (rank, V) and axes.turn.shape == axes.back.shape == (K, 2, rank)
    np.testing.assert_allclose(axes.principal @ axes.principal.T, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(written(axes, means), means, atol=2e-4)


def test_no_linear_code_of_as_many_numbers_keeps_more():
    means = smooth()
    axes = solve(means, per_patch=1)
    eigenvalues = np.linalg.eigvalsh(means.T @ means / N)[::-1]
    lost = np.square(written(axes, means) - means).sum(axis=1).mean()
    assert lost == pytest.approx(eigenvalues[K:].sum(), rel=1e-4)


def test_axes_are_orthonormal_and_keep_the_variance_of_the_principal_ones():
    means = smooth()
    axes = solve(means)
    np.testing.assert_allclose(read(axes) @ read(axes).T, np.eye(2 * K), atol=1e-5)
    variance = np.square(means @ read(axes).T).mean(axis=0).reshape(K, 2)
    eigenvalues = np.linalg.eigvalsh(means.T @ means / N)[::-1]
    np.testing.assert_allclose(variance.sum(axis=0), [eigenvalues[:K].sum(), eigenvalues[K : 2 * K].sum()], rtol=1e-4)
    np.testing.assert_allclose(axes.spread, (means @ read(axes).T).std(axis=0).reshape(K, 2), rtol=1e-4)


def test_with_fewer_axes_than_tokens_the_tokens_share_them():
    axes = solve(low_rank(4))
    band = axes.turn[:, 0]
    np.testing.assert_allclose(band.T @ band, np.eye(4), atol=1e-5)
    assert not axes.turn[:, 1].any() and np.abs(axes.back[:, 1]).max() < 1e-6


def share_at_home(axes):
    """How much of the squares of what each token reads first lies in its own patch."""
    squares = np.square(axes.turn[:, 0] @ axes.principal).reshape(K, K, P).sum(axis=2)
    return np.diag(squares) / squares.sum(axis=1)


def test_a_token_is_a_place():
    at_home = share_at_home(solve(smooth()))
    assert at_home.min() > 2 / K and at_home.mean() > 0.5  # chance: 1 / K


def test_of_all_turns_it_is_the_one_nearest_to_the_patches_own_axes():
    means = smooth()
    axes, own = solve(means), own_axes(means, P, 2)
    span = axes.principal[:K].reshape(K, K, P)

    def agreement(turn):
        return sum(float(turn[k] @ span[:, k] @ own[k, 0]) for k in range(K))

    best, rng = agreement(axes.turn[:, 0, :K]), np.random.default_rng(0)
    for _ in range(200):
        rotation, _ = np.linalg.qr(np.eye(K) + rng.choice([0.02, 1.0]) * rng.standard_normal((K, K)))
        assert agreement(rotation @ axes.turn[:, 0, :K]) < best


def planted_noise():
    """Signal of five parts and, uncorrelated with it in this very sample, noise of three larger ones."""
    rng = np.random.default_rng(0)
    parts, _ = np.linalg.qr(rng.standard_normal((N, 8)))
    ways, _ = np.linalg.qr(rng.standard_normal((V, 8)))
    parts *= np.sqrt(N) * np.array([3, 2.5, 2, 1.5, 1, 6, 5, 4])
    return parts[:, :5] @ ways[:, :5].T, parts[:, 5:] @ ways[:, 5:].T, ways


def test_planted_noise_vanishes_and_the_repeated_signal_stays():
    signal, noise, ways = planted_noise()
    axes, variances = repeated_axes(signal + noise, noise, 1.0, 8)
    assert len(axes) == 5
    np.testing.assert_allclose(np.abs(axes @ ways[:, :5]), np.eye(5), atol=1e-5)
    np.testing.assert_allclose(axes @ ways[:, 5:], 0, atol=1e-5)
    np.testing.assert_allclose(variances, np.square([3, 2.5, 2, 1.5, 1]), rtol=1e-5)
    unaware, _ = repeated_axes(signal + noise, noise, 0.0, 3)
    np.testing.assert_allclose(np.abs(unaware @ ways[:, 5:]), np.eye(3), atol=1e-5)
    half, halved = repeated_axes(signal + noise, noise, 0.5, 8)
    assert len(half) == 8
    np.testing.assert_allclose(
        halved, np.sort(np.square([3, 2.5, 2, 1.5, 1, *np.sqrt([18, 12.5, 8])]))[::-1], rtol=1e-5
    )
    _, more_trials = repeated_axes(signal + noise, np.concatenate([noise, noise]), 0.5, 8)  # are no more noise
    np.testing.assert_allclose(more_trials, halved, rtol=1e-5)


def test_what_is_written_is_the_best_linear_estimate_of_what_comes_again():
    """Against least squares on the signal itself; here noise lies along the signal's own ways too."""
    signal, _, _ = planted_noise()
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((N, V))
    noise -= signal @ np.linalg.lstsq(signal, noise, rcond=None)[0]  # uncorrelated with the signal in this sample
    means = signal + noise
    axes = solve(means, noise, 1.0)
    assert len(axes.principal) == 5
    numbers = means @ read(axes).T
    wanted = numbers @ np.linalg.lstsq(numbers, signal, rcond=1e-6)[0]
    np.testing.assert_allclose(written(axes, means), wanted, atol=1e-3)
    assert (
        np.square(written(axes, means) - signal).mean()
        < 0.95 * np.square(means @ axes.principal.T @ axes.principal - signal).mean()
    )


def test_where_nothing_comes_again_nothing_is_read():
    noise = smooth()
    axes = solve(noise, noise, 1.0 + 1e-3)
    assert len(axes.principal) == 0 and axes.turn.shape == (K, 2, 0)
    assert not axes.spread.any() and not written(axes, noise).any()


def test_there_are_no_more_axes_than_asked_for():
    means = smooth()
    axes = solve(means, rank=5)
    assert len(axes.principal) == 5
    largest = np.linalg.eigvalsh(means.T @ means / N)[-5:].sum()
    assert np.square(means @ axes.principal.T).mean(axis=0).sum() == pytest.approx(largest, rel=1e-4)


def test_many_sites_are_decomposed_by_random_projections(monkeypatch):
    signal, noise, _ = planted_noise()
    exact, values = repeated_axes(signal + noise, noise, 1.0, 5)
    monkeypatch.setattr(module, "SMALL", 10)
    found, variances = repeated_axes(signal + noise, noise, 1.0, 5)
    np.testing.assert_allclose(np.abs(found @ exact.T), np.eye(5), atol=1e-4)
    np.testing.assert_allclose(variances, values, rtol=1e-4)


def test_the_axes_of_a_patch_by_itself_are_its_principal_ones():
    means = smooth()
    own = own_axes(means, P, 6)
    assert own.shape == (K, 6, P) and not own[:, P:].any()  # a patch has no more axes than sites
    for k in range(K):
        _, _, rows = np.linalg.svd(means[:, k * P : (k + 1) * P])
        np.testing.assert_allclose(np.abs(own[k, :P] @ rows.T), np.eye(P), atol=1e-4)
