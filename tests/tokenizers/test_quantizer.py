"""The quantizer against vector-quantize-pytorch, and what it adds."""

import math

import pytest
import torch
import torch.nn.functional as F

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.quantizer import Quantizer, QuantizerConfig, perplexity

N, DIM = 24, 6


@pytest.fixture
def latents():
    return torch.randn(2, N // 2, DIM, generator=torch.Generator().manual_seed(1))


def test_agrees_with_vector_quantize_pytorch(latents):
    """Codes, vectors, commitment, and the codebook after an update by N latents (our sums are per latent)."""
    from vector_quantize_pytorch import VectorQuantize

    ours = Quantizer(QuantizerConfig(N, DIM, decay=0.9, commitment=0.25, dead_below=0.0))
    theirs = VectorQuantize(DIM, N, decay=0.9, use_cosine_sim=True, commitment_weight=0.25, rotation_trick=False)
    theirs._codebook.embed.data.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.data.copy_(ours.codebook[None])
    mine, other = (F.normalize(latents, dim=-1).requires_grad_() for _ in range(2))
    out = ours(mine)
    ours.update(mine, out.codes, torch.Generator())
    theirs.train()
    values, codes, loss = theirs(other)
    assert out.codes.tolist() == codes.tolist()
    torch.testing.assert_close(out.values, values)
    torch.testing.assert_close(out.loss, loss.reshape(()) * DIM, check_dtype=False)
    torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0])


def test_gradients_pass_straight_through(latents):
    unit = F.normalize(latents, dim=-1).requires_grad_()
    wanted = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    (Quantizer(QuantizerConfig(N, DIM))(unit).values * wanted).sum().backward()
    tangent = wanted - (wanted * unit).sum(-1, keepdim=True) * unit  # latents are normalised inside
    torch.testing.assert_close(unit.grad, tangent.detach())


def test_commitment_pulls_latents_to_their_codes(latents):
    quantizer = Quantizer(QuantizerConfig(N, DIM, commitment=0.5))
    leaf = latents.clone().requires_grad_()
    out = quantizer(leaf)
    unit = F.normalize(latents, dim=-1)
    assert float(out.loss.detach()) == pytest.approx(
        0.5 * float((unit - quantizer.codebook[out.codes]).square().sum(-1).mean()), rel=1e-5
    )
    out.loss.backward()
    closer = F.normalize(latents - leaf.grad, dim=-1)
    codes = quantizer.codebook[out.codes]
    assert ((closer * codes).sum(-1) >= (unit * codes).sum(-1)).all()


def test_only_the_direction_of_latents_counts(latents):
    quantizer = Quantizer(QuantizerConfig(N, DIM))
    one, other = quantizer(latents), quantizer(latents * 7)
    torch.testing.assert_close(one.values, other.values)
    assert torch.equal(one.codes, other.codes)


def test_the_codebook_moves_by_what_the_decay_leaves(latents):
    quantizer = Quantizer(QuantizerConfig(N, DIM, decay=0.75, dead_below=0.0))
    usage, sums = quantizer.usage.clone(), quantizer.sums.clone()
    codes = quantizer(latents).codes
    quantizer.update(latents, codes, torch.Generator())
    counts = torch.bincount(codes.flatten(), minlength=N) / codes.numel()
    torch.testing.assert_close(quantizer.usage, 0.75 * usage + 0.25 * counts)
    unit = F.normalize(latents, dim=-1).flatten(0, 1)
    totals = torch.stack([unit[codes.flatten() == code].sum(0) for code in range(N)]) / codes.numel()
    torch.testing.assert_close(quantizer.sums, 0.75 * sums + 0.25 * totals)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(N))


def test_dead_codes_are_drawn_from_the_batch_and_living_ones_are_not(latents):
    quantizer = Quantizer(QuantizerConfig(4, DIM, decay=0.5, dead_below=0.6))
    quantizer.usage.copy_(torch.tensor([0.25, 0.25, 0.29, 0.31]))  # after the update codes 2 and 3 have half of it
    before = quantizer.codebook.clone()
    quantizer.sums.copy_(before * quantizer.usage[:, None])
    codes = torch.arange(N) % 2
    quantizer.update(latents, codes.reshape(2, -1), torch.Generator().manual_seed(0))
    unit = F.normalize(latents, dim=-1).flatten(0, 1)
    from_batch = ((quantizer.codebook @ unit.T) > 1 - 1e-6).any(dim=1)
    assert from_batch.tolist() == [False, False, True, False]
    assert quantizer.usage[2] == 0.25
    torch.testing.assert_close(quantizer.codebook[3], before[3])


def test_a_used_code_may_be_rare_but_not_dead():
    """The threshold is a share of uniform usage: 0.03 of 1/N, whatever the batch size."""
    quantizer = Quantizer(QuantizerConfig(4, DIM, dead_below=0.03))
    quantizer.usage[3] = 0.03 / 4 / 0.97 + 1e-6
    before = quantizer.codebook.clone()
    quantizer.update(before[:3].repeat(5, 1), torch.arange(3).repeat(5), torch.Generator())
    torch.testing.assert_close(quantizer.codebook[3], before[3])


def test_nothing_moves_without_an_update(latents):
    quantizer = Quantizer(QuantizerConfig(N, DIM)).train()
    before = quantizer.codebook.clone()
    quantizer(latents)
    assert torch.equal(quantizer.codebook, before)


def test_planted_clusters_are_found():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(8, DIM, generator=generator), dim=-1)
    quantizer = Quantizer(QuantizerConfig(8, DIM, decay=0.8))
    for _ in range(150):
        which = torch.randint(8, (64,), generator=generator)
        latents = centres[which] + 0.03 * torch.randn(64, DIM, generator=generator)
        quantizer.update(latents, quantizer(latents).codes, generator)
    assert (centres @ quantizer.codebook.T).max(dim=1).values.min() > 0.99


def test_perplexity_by_hand():
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)
    assert perplexity(torch.zeros(5, dtype=torch.long), 8) == pytest.approx(1)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert perplexity(torch.tensor([[0, 0], [1, 2]]), 8) == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 0}, "num_codes must be at least 1, got 0"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"decay": 1.0}, "decay must lie between 0 and 1, got 1.0"),
        ({"num_codes": 0, "decay": 0.0}, "num_codes must be .*; decay must"),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        QuantizerConfig(**settings)
