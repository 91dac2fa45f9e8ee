"""Ridge regression under several priors, with leave-one-out by leverage."""

import numpy as np
import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.ridge import LESS_SAY, fit_among, fit_ridge


@pytest.fixture
def planted():
    """The first target reads features 0 to 4, the second features 5 to 9."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 40, generator=generator)
    weights = torch.zeros(40, 2)
    weights[:5, 0] = weights[5:10, 1] = 0.5
    return x, x @ weights + torch.randn(120, 2, generator=generator)


def windows():
    flat, first, second = torch.ones(40), torch.full((40,), 0.1), torch.full((40,), 0.1)
    first[:5] = second[5:10] = 1
    return torch.stack([flat, first, second])


def test_the_prior_that_generalises_has_the_most_to_say(planted):
    x, y = planted
    fit = fit_among(x[:80], y[:80], windows())
    share = fit.say.sum(dim=1)
    assert share.argmax(dim=0).tolist() == [1, 2]
    assert float(share[[1, 2], [0, 1]].min()) > 0.9
    flat = fit_among(x[:80], y[:80], windows()[:1])
    error = [(((x[80:] - f.feature_mean) @ f.weights + f.target_mean) - y[80:]).square().mean() for f in (fit, flat)]
    assert error[0] < 0.9 * error[1]


def test_with_one_flat_prior_and_penalty_it_is_ridge(planted):
    x, y = planted
    fit = fit_among(x, y, torch.ones(1, 40), np.array([0.3]))
    scale = float(torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean())
    ridge = fit_ridge(x.numpy(), y.numpy(), np.array([0.3]) * scale)
    made = (x - fit.feature_mean) @ fit.weights + fit.target_mean
    np.testing.assert_allclose(made, ridge.predict(x.numpy()), atol=1e-4)
    np.testing.assert_allclose(fit.r2, ridge.r2, atol=1e-4)


@pytest.mark.parametrize("num", [15, 120])
def test_penalties_have_a_say_by_their_likelihood(planted, num):
    """Of few samples several, of many samples those that are nearly the best."""
    x, y = (values[:num] for values in planted)
    penalties = np.logspace(-2, 2, 5)
    fit = fit_among(x, y, torch.ones(1, 40), penalties)
    alone = [fit_among(x, y, torch.ones(1, 40), one[None]) for one in np.sort(penalties)[::-1]]
    error = 1 - torch.stack([one.r2 for one in alone])
    likely = (error / error.amin(dim=0)).pow(-num / 2)
    torch.testing.assert_close(fit.say[0], likely / likely.sum(dim=0), atol=1e-3, rtol=1e-2)
    wanted = sum(say * one.weights for say, one in zip(fit.say[0], alone, strict=True))
    torch.testing.assert_close(fit.weights, wanted, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(fit.r2, 1 - error.amin(dim=0), atol=1e-5, rtol=1e-3)


def test_priors_that_generalise_alike_have_as_much_to_say(planted):
    """What is fitted is the mean of what each of them alone makes, the better the more."""
    x, y = planted
    alike = torch.stack([windows()[0], 1.5 * windows()[0], windows()[1]])
    fit, alone = fit_among(x, y, alike), [fit_among(x, y, prior[None]) for prior in alike]
    shares = fit.say.sum(dim=1)
    torch.testing.assert_close(fit.say[0], fit.say[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(2))
    wanted = sum(share * one.weights for share, one in zip(shares, alone, strict=True))
    torch.testing.assert_close(fit.weights, wanted, atol=1e-5, rtol=1e-4)
    ratio = shares[2].log() - shares[0].log()
    torch.testing.assert_close(ratio, (alone[2].r2 - alone[0].r2) / LESS_SAY, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(fit.r2, sum(s * one.r2 for s, one in zip(shares, alone, strict=True)))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_leaving_a_sample_out_is_exact(planted, wide, number):
    """Against fits without the sample, its centring included."""
    x, y = planted
    x, y = (x[:25], y[:25]) if wide else (x, y)
    scale = windows()[number]
    fit = fit_among(x, y, scale[None], np.array([0.5]))
    fitted = (x - fit.feature_mean) @ fit.weights
    own = fit.leverage(torch.arange(len(x)))
    made = (fitted - own * (y - fit.target_mean)) / (1 - own) + fit.target_mean
    for row in (0, 7):
        others = torch.arange(len(x)) != row
        for target in range(2):
            penalty = fit.penalties[0, 0]
            mean, offset = x[others].mean(0), y[others, target].mean()
            a = (x[others] - mean) * scale
            weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(40), a.T @ (y[others, target] - offset))
            torch.testing.assert_close(
                made[row, target], ((x[row] - mean) * scale) @ weights + offset, atol=2e-3, rtol=1e-3
            )


def test_of_several_priors_leverage_is_the_mean(planted):
    x, y = planted
    fit = fit_among(x, y, windows())
    alone = [fit_among(x, y, prior[None]) for prior in windows()]
    rows = torch.tensor([3, 5])
    wanted = sum(share * one.leverage(rows) for share, one in zip(fit.say.sum(dim=1), alone, strict=True))
    torch.testing.assert_close(fit.leverage(rows), wanted)


def test_too_few_samples_are_named():
    with pytest.raises(UserError, match="expected at least 3 training samples"):
        fit_among(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(1, 3))
