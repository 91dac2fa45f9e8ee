"""Drafts: conditional means against a dense Gaussian, ranks found, and what they leave alone."""

import numpy as np
import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.model.draft import (
    GUESS,
    Carry,
    Drafts,
    Gaussian,
    Scatter,
    beyond_codes,
    chosen,
    draft_of,
    fit_gaussian,
    guess_of,
    lean_of,
    principal,
)
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

NAN = float("nan")


@pytest.fixture
def gaussian():
    torch.manual_seed(0)
    found = Gaussian(8, 3)
    found.axes.copy_(torch.randn(3, 8))
    found.mean.copy_(torch.randn(8))
    found.noise.fill_(0.3)
    return found


def test_the_rest_is_the_conditional_mean_of_the_gaussian(gaussian):
    """Against the textbook formula with the whole covariance, for rows with different parts."""
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    known = torch.rand(5, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    known[4] = known[0]
    filled = gaussian.complete(values.masked_fill(~known, NAN))
    covariance = (gaussian.axes.T @ gaussian.axes).double() + 0.3 * torch.eye(8, dtype=torch.float64)
    for row, mask in enumerate(known):
        difference = (values[row] - gaussian.mean)[mask].double()
        told = covariance[~mask][:, mask] @ torch.linalg.solve(covariance[mask][:, mask], difference)
        torch.testing.assert_close(filled[row, ~mask].double(), gaussian.mean[~mask] + told, atol=1e-4, rtol=1e-4)
        assert torch.equal(filled[row, mask], values[row, mask])


def test_nothing_known_is_the_mean(gaussian):
    torch.testing.assert_close(gaussian.complete(torch.full((2, 8), NAN)), gaussian.mean.expand(2, 8))
    assert gaussian.latents(torch.zeros(0, 8)).shape == (0, 3)


def planted(rank=8, sites=60, count=400, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((rank, sites)).astype(np.float32)
    x = rng.standard_normal((count, rank)) @ axes + noise * rng.standard_normal((count, sites))
    return x.astype(np.float32), axes


def test_the_planted_rank_is_chosen():
    assert chosen(planted(rank=8)[0])[0] == 8
    assert chosen(planted(rank=16, count=600)[0])[0] == 16


def test_hidden_sites_are_predicted_as_well_as_the_plant_allows():
    x, axes = planted()
    found = fit_gaussian(x[:300], *chosen(x[:300]))
    new = torch.from_numpy(x[300:])
    known = torch.arange(60) % 2 == 0
    error = (found.complete(new.masked_fill(~known, NAN)) - new)[:, ~known].square().mean()
    ideal = Gaussian(60, 8)
    ideal.axes.copy_(torch.from_numpy(axes))
    ideal.noise.fill_(0.25)
    best = (ideal.complete(new.masked_fill(~known, NAN)) - new)[:, ~known].square().mean()
    assert float(error) < 1.25 * float(best)
    assert float(error) < 0.1 * float(new.var(dim=0).mean())


def test_principal_axes_are_those_of_the_svd():
    x, _ = planted()
    mean, axes = principal(x, 8)
    _, singular, rows = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), singular[:8] / np.sqrt(len(x)), rtol=1e-4)
    np.testing.assert_allclose(np.abs((axes * rows[:8]).sum(axis=1)), singular[:8] / np.sqrt(len(x)), rtol=1e-3)
    np.testing.assert_allclose(mean, x.mean(axis=0), atol=1e-5)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    principal(x, 8)
    assert torch.equal(before, torch.random.get_rng_state()), "it draws from a generator of its own"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_responses_are_enough(count):
    x, _ = planted(count=count)
    found = fit_gaussian(x, *chosen(x))
    values = torch.from_numpy(x).masked_fill(torch.arange(60) < 30, NAN)
    assert found.complete(values).isfinite().all()


@pytest.fixture
def drafts(gaussian):
    made = Drafts({"a": (8, 3), "b": (5, 2), "c": (4, 2)}, [("a", "b"), ("c", "b")])
    torch.manual_seed(3)
    for module in made.modules():
        if isinstance(module, Gaussian | Carry):
            for buffer in module.buffers():
                buffer.copy_(torch.rand(buffer.shape) + 0.1)
    return made


def test_a_response_is_carried_over_through_both_gaussians(drafts):
    values = torch.randn(3, 8)
    z = drafts.gaussian("a").latents(values)
    carry = drafts.carries["brain:a->b"]
    wanted = drafts.gaussian("b").mean + (z @ carry.weight + carry.offset) @ drafts.gaussian("b").axes
    torch.testing.assert_close(drafts.carried(values, "a", "b"), wanted)
    assert drafts.carried(torch.randn(3, 5), "b", "a") is None


def test_the_draft_is_the_part_or_the_mean_of_other_brains(drafts):
    a, c, part = torch.randn(2, 8), torch.randn(2, 4), torch.randn(2, 5).masked_fill(torch.arange(5) < 2, NAN)
    both = (drafts.carried(a, "a", "b") + drafts.carried(c, "c", "b")) / 2
    torch.testing.assert_close(draft_of(drafts, {"brain:a": a, "brain:c": c}, "b").values, both)
    found = draft_of(drafts, {"brain:a": a, "part:b": part}, "b")
    torch.testing.assert_close(found.values, drafts.complete(part, "b"))
    assert found.kind == "part"
    assert draft_of(drafts, {"brain:b": torch.randn(2, 5)}, "a") is None
    hidden = a.masked_fill(torch.arange(8) < 3, NAN)
    assert draft_of(drafts, {"part:a": hidden}, "b").values.isfinite().all(), "a part of one brain tells of another"


def test_an_unknown_subject_is_named(drafts):
    with pytest.raises(UserError, match=r"draft: expected one of the subjects a, b, c, got 'z'"):
        drafts.complete(torch.zeros(1, 3), "z")


def test_a_model_that_agrees_with_the_draft_returns_it():
    config = BrainTokenizerConfig(patch_size=4, patch=PatchConfig(8, 1, 1))
    torch.manual_seed(0)
    tokenizer = BrainTokenizer(config, {"a": torch.arange(10)}).eval()
    x = torch.randn(50, 10)
    tokenizer.solve("a", x, x[:0])
    with torch.no_grad():
        lean = lean_of(tokenizer, x, "a", 2.0)
        decoded = tokenizer.decode_probabilities(lean.softmax(dim=-1), "a")
        torch.testing.assert_close(decoded + beyond_codes(tokenizer, x, "a", lean), x)


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(similarity="euclidean", num_codes=16, dim=3),
        QuantizerConfig("residual", num_codes=16, dim=3, stages=2),
    ],
)
def test_a_draft_leans_to_the_codes_that_are_near_it(quantizer):
    torch.manual_seed(0)
    config = BrainTokenizerConfig(patch_size=4, patch=PatchConfig(8, 1, 1), quantizer=quantizer)
    tokenizer = BrainTokenizer(config, {"a": torch.arange(10)}).eval()
    x = torch.randn(6, 10)
    with torch.no_grad():
        first = lean_of(tokenizer, x, "a", 1e4)[:, :: quantizer.stages]
        near = torch.cdist(tokenizer.latents(x, "a"), tokenizer.quantizer.codebook[: quantizer.num_codes])
        assert torch.equal(first.argmax(dim=-1), near.argmin(dim=-1))
        flat = lean_of(tokenizer, x, "a", 0.0)[:, :: quantizer.stages]
        assert (flat[..., : quantizer.num_codes] == 0).all()


def test_scatter_has_the_covariance_that_it_was_solved_from():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.2, 2, 20)
    common = rng.standard_normal((3, 20))
    residuals = rng.standard_normal((4000, 3)) @ common + spread * rng.standard_normal((4000, 20))
    scatter = Scatter(20)
    scatter.solve(residuals.astype(np.float32))
    drawn = scatter.draw(400, range(10)).flatten(0, 1).numpy()
    wanted = common.T @ common + np.diag(spread**2)
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=0.15 * wanted.max())
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(np.diag(wanted)), rtol=0.08)


def test_a_draw_of_scatter_depends_on_its_seed_alone():
    scatter = Scatter(6)
    scatter.solve(np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32))
    both = scatter.draw(2, [7, 8])
    assert torch.equal(both[1:], scatter.draw(2, [8]))
    assert not torch.equal(both[0], both[1])


def test_a_guess_is_the_mean_of_what_each_brain_tells():
    made = Drafts({"a": (8, 3), "b": (5, 2)}, [], guessed=64)
    torch.manual_seed(0)
    for reading in made.guesses.values():
        for buffer in reading.buffers():
            buffer.normal_()
    a, b = torch.randn(4, 8), torch.randn(4, 5)
    guess = guess_of(made, {"brain:a": a, "brain:b": b})
    each = [made.guesses["brain:a"](a), made.guesses["brain:b"](b)]
    assert guess.vectors.shape == (4, 2, 32) and guess.features == GUESS
    torch.testing.assert_close(guess.vectors.flatten(1), (each[0] + each[1]) / 2)
    partly = b.masked_fill(torch.arange(5) < 2, NAN)
    filled = made.guesses["brain:b"](made.complete(partly, "b"))
    torch.testing.assert_close(guess_of(made, {"part:b": partly}).vectors.flatten(1), filled)
    assert guess_of(made, {}) is None and guess_of(Drafts({"a": (8, 3)}, []), {"brain:a": a}) is None
