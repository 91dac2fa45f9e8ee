"""The quantizers against vector-quantize-pytorch, and what they add."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError
from brainjanus.tokenizers.quantizer import (
    FixedQuantizer,
    Quantizer,
    QuantizerConfig,
    entropy_loss,
    make_quantizer,
    perplexity,
)

N, DIM = 24, 6


@pytest.fixture
def latents():
    return torch.randn(2, N // 2, DIM, generator=torch.Generator().manual_seed(1))


def test_agrees_with_vector_quantize_pytorch(latents):
    """Codes, vectors, commitment, and the codebook after an update by N latents (our sums are per latent)."""
    from vector_quantize_pytorch import VectorQuantize

    ours = Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM, decay=0.9, commitment=0.25, dead_below=0.0))
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
    (Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM))(unit).values * wanted).sum().backward()
    tangent = wanted - (wanted * unit).sum(-1, keepdim=True) * unit  # latents are normalised inside
    torch.testing.assert_close(unit.grad, tangent.detach())


def test_commitment_pulls_latents_to_their_codes(latents):
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM, commitment=0.5))
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


def test_entropy_by_hand():
    """Two latents, two codes: the entropies of (.9, .1) and (.3, .7) against that of their mean (.6, .4)."""

    def entropy(*shares):
        return -sum(share * math.log(share) for share in shares)

    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log() + torch.tensor([[5.0], [-3.0]])
    wanted = (entropy(0.9, 0.1) + entropy(0.3, 0.7)) / 2 - entropy(0.6, 0.4)
    assert float(entropy_loss(logits)) == pytest.approx(wanted, abs=1e-6)


def test_entropy_agrees_with_vector_quantize_pytorch():
    """Theirs stands in LFQ, whose codes are binary; ours is fed the same similarities."""
    from vector_quantize_pytorch import LFQ

    theirs = LFQ(dim=4, entropy_loss_weight=1.0, diversity_gamma=1.0, commitment_loss_weight=0.0)
    latents = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    wanted = theirs.train()(latents, inv_temperature=0.7).entropy_aux_loss
    torch.testing.assert_close(entropy_loss(2 * 0.7 * latents @ theirs.codebook.T), wanted)


def test_entropy_is_part_of_the_loss_of_vq(latents):
    """Of squared distances at temperature .01, in full precision."""
    without, weighted = (
        Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM, entropy=weight)) for weight in (0.0, 0.5)
    )
    squared = torch.cdist(F.normalize(latents, dim=-1), weighted.codebook.expand(2, -1, -1)).square()
    wanted = without(latents).loss + 0.5 * entropy_loss(-squared / 0.01)
    torch.testing.assert_close(weighted(latents).loss, wanted, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(weighted(latents).loss, wanted, atol=1e-2, rtol=0)


def test_only_the_direction_of_latents_counts(latents):
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM))
    one, other = quantizer(latents), quantizer(latents * 7)
    torch.testing.assert_close(one.values, other.values)
    assert torch.equal(one.codes, other.codes)


def test_the_codebook_moves_by_what_the_decay_leaves(latents):
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM, decay=0.75, dead_below=0.0))
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
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=4, dim=DIM, decay=0.5, dead_below=0.6))
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
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=4, dim=DIM, dead_below=0.03))
    quantizer.usage[3] = 0.03 / 4 / 0.97 + 1e-6
    before = quantizer.codebook.clone()
    quantizer.update(before[:3].repeat(5, 1), torch.arange(3).repeat(5), torch.Generator())
    torch.testing.assert_close(quantizer.codebook[3], before[3])


def test_nothing_moves_without_an_update(latents):
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=N, dim=DIM)).train()
    before = quantizer.codebook.clone()
    quantizer(latents)
    assert torch.equal(quantizer.codebook, before)


def test_planted_clusters_are_found():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(8, DIM, generator=generator), dim=-1)
    quantizer = Quantizer(QuantizerConfig("vq", num_codes=8, dim=DIM, decay=0.8))
    for _ in range(150):
        which = torch.randint(8, (64,), generator=generator)
        latents = centres[which] + 0.03 * torch.randn(64, DIM, generator=generator)
        quantizer.update(latents, quantizer(latents).codes, generator)
    assert (centres @ quantizer.codebook.T).max(dim=1).values.min() > 0.99


def test_vq_by_euclidean_distance_is_one_stage_of_residual(latents):
    """Lengths count: the codes of a latent and of seven times it differ; the codebook moves to the means."""
    quantizer = make_quantizer(QuantizerConfig("vq", similarity="euclidean", num_codes=4, dim=DIM))
    other = make_quantizer(QuantizerConfig("residual", num_codes=4, dim=DIM))
    assert quantizer.stages == 1 and torch.equal(quantizer.prepare(7 * latents), 7 * latents)
    for step in range(3):
        codes = quantizer(latents).codes
        assert codes.shape == latents.shape[:-1] and torch.equal(codes, other(latents).codes)
        for each in (quantizer, other):
            each.update(latents, codes, torch.Generator().manual_seed(step))
    distances = torch.cdist(7 * latents, quantizer.codebook.expand(2, -1, -1))
    out = quantizer(7 * latents)
    assert torch.equal(out.codes, distances.argmin(dim=-1)) and not torch.equal(out.codes, quantizer(latents).codes)
    assert torch.equal(quantizer.codebook, other.codebook)
    assert not torch.allclose(quantizer.codebook.norm(dim=-1), torch.ones(4), atol=0.05)


def residual_pair(latents, stages=3, decay=0.9):
    """Ours, started by its first update, and vector-quantize-pytorch's with the same codebooks and averages."""
    from vector_quantize_pytorch import ResidualVQ

    config = QuantizerConfig("residual", num_codes=N, dim=DIM, decay=decay, stages=stages, dead_below=0.0)
    ours = make_quantizer(config)
    ours.update(latents, ours(latents).codes, torch.Generator().manual_seed(3))
    theirs = ResidualVQ(
        dim=DIM, num_quantizers=stages, codebook_size=N, decay=decay, commitment_weight=0.25, rotation_trick=False,
        threshold_ema_dead_code=0, eps=1e-12,
    )  # fmt: skip
    ours.usage.fill_(1 / N)
    for stage, layer in enumerate(theirs.layers):
        book = ours.codebook[stage * N : (stage + 1) * N]
        layer._codebook.embed.data.copy_(book[None])
        layer._codebook.embed_avg.data.copy_(book[None])
        ours.sums[stage * N : (stage + 1) * N] = book / N
    return ours, theirs.train()


@pytest.mark.parametrize("stages", [1, 3])
def test_residual_agrees_with_vector_quantize_pytorch(latents, stages):
    """Codes, vectors, losses, gradients, and the codebooks after an update by N latents (our sums are per latent)."""
    ours, theirs = residual_pair(latents, stages)
    new = latents + 0.3 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    mine, other = new.clone().requires_grad_(), new.clone().requires_grad_()
    out = ours(ours.prepare(mine))
    ours.update(mine, out.codes, torch.Generator())
    values, codes, losses = theirs(other)
    assert out.codes.shape == (2, N // 2 * stages)
    assert torch.equal(out.codes, (codes + torch.arange(stages) * N).flatten(1))
    torch.testing.assert_close(out.values, values)
    torch.testing.assert_close(out.loss, losses.sum())
    for stage, layer in enumerate(theirs.layers):
        torch.testing.assert_close(
            ours.codebook[stage * N : (stage + 1) * N], layer._codebook.embed[0], atol=1e-5, rtol=1e-5
        )
    (of_loss,) = torch.autograd.grad(out.loss, mine, retain_graph=True)
    torch.testing.assert_close(of_loss, torch.autograd.grad(losses.sum(), other)[0])
    (of_values,) = torch.autograd.grad(out.values.square().sum(), mine)
    torch.testing.assert_close(of_values, 2 * out.values.detach())  # straight through once; theirs once for each stage


def test_the_codes_of_a_latent_add_up_to_it(latents):
    quantizer, _ = residual_pair(latents)
    out = quantizer(latents)
    vectors = quantizer.codebook[out.codes].unflatten(1, (N // 2, 3))
    torch.testing.assert_close(vectors.sum(2), out.values)
    assert torch.equal(out.codes.unflatten(1, (N // 2, 3)) // N, torch.arange(3).expand(2, N // 2, 3))


def test_each_stage_leaves_less_and_no_code_lies_idle():
    """Whatever the scale and the place of the latents: after a few batches all codes of all stages are used."""
    generator = torch.Generator().manual_seed(0)
    quantizer = make_quantizer(QuantizerConfig("residual", num_codes=16, dim=DIM, stages=3, decay=0.8))
    for _ in range(60):
        latents = 50 + 20 * torch.randn(256, DIM, generator=generator)
        quantizer.update(latents, quantizer(latents).codes, generator)
    out = quantizer(latents)
    steps = quantizer.codebook[out.codes.unflatten(0, (256, 3))].cumsum(1)
    left = (latents[:, None] - steps).square().mean(dim=(0, 2))
    assert left[0] < 0.7 * 400 and left[1] < 0.75 * left[0] and left[2] < 0.75 * left[1]
    assert len(out.codes.unique()) == quantizer.config.num_entries == 48
    assert perplexity(out.codes, 48) > 36


def test_the_first_batch_starts_each_stage_where_its_latents_are(latents):
    """The means of what falls to each code, weighted by how much that is, are the mean of all latents."""
    quantizer = make_quantizer(QuantizerConfig("residual", num_codes=4, dim=DIM, stages=2, dead_below=0.0))
    before = quantizer.codebook.clone()
    latents = latents * 9 + 100
    quantizer.update(latents, quantizer(latents).codes, torch.Generator().manual_seed(0))
    assert not torch.isclose(quantizer.codebook, before).any()
    torch.testing.assert_close((quantizer.usage[:4] * quantizer.codebook[:4].T).sum(1), latents.mean(dim=(0, 1)))
    assert quantizer.codebook[4:].abs().max() < 60  # residuals, where the latents are around 100
    assert quantizer.usage[:4].sum() == pytest.approx(1)


def test_dead_codes_of_a_stage_are_drawn_from_what_was_left_for_it(latents):
    quantizer = make_quantizer(QuantizerConfig("residual", num_codes=2, dim=DIM, stages=2, dead_below=0.5, decay=0.5))
    quantizer.usage.copy_(torch.tensor([0.5, 0.5, 0.5, 0.2]))  # after the update the last has a tenth
    quantizer.sums.copy_(quantizer.codebook * quantizer.usage[:, None])
    staged = torch.stack([torch.arange(N) % 2, torch.full((N,), 2)], dim=1)
    left = latents.flatten(0, 1) - quantizer.codebook[staged[:, 0]]
    quantizer.update(latents, staged.reshape(2, -1), torch.Generator().manual_seed(0))
    assert ((quantizer.codebook[3] - left).abs().max(dim=1).values < 1e-5).any()
    assert quantizer.usage[3] == 0.5


@pytest.mark.parametrize("levels", [(8, 8), (8, 4, 4), (5, 3), (7,)])
def test_fsq_agrees_with_vector_quantize_pytorch(levels):
    """Values and gradients; ids differ in their order, and are one to one with theirs and with the codebook."""
    from vector_quantize_pytorch import FSQ

    ours, theirs = make_quantizer(QuantizerConfig("fsq", num_codes=math.prod(levels), levels=levels)), FSQ(list(levels))
    latents = 4 * torch.rand(50, 100, len(levels), generator=torch.Generator().manual_seed(0)) - 2
    mine, other = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    out = ours(ours.prepare(mine))
    values, ids = theirs(other)
    torch.testing.assert_close(out.values, values)
    torch.testing.assert_close(ours.codebook[out.codes], out.values.detach())
    pairs = set(zip(out.codes.flatten().tolist(), ids.flatten().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == math.prod(levels)
    wanted = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    (out.values * wanted).sum().backward()
    (values * wanted).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    assert float(out.loss) == 0


def test_a_fixed_codebook_gives_its_nearest_vectors_and_stays(latents):
    codebook = torch.randn(N, DIM, generator=torch.Generator().manual_seed(3))
    quantizer = FixedQuantizer(QuantizerConfig(num_codes=N, dim=DIM, commitment=0.5), codebook.clone())
    leaf = latents.clone().requires_grad_()
    values, codes, loss = quantizer(leaf)
    assert codes.tolist() == torch.cdist(latents, codebook).argmin(dim=-1).tolist()
    torch.testing.assert_close(values.detach(), codebook[codes])
    assert float(loss.detach()) == pytest.approx(0.5 * float((latents - codebook[codes]).square().mean()), rel=1e-5)
    wanted = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    (values * wanted).sum().backward()
    torch.testing.assert_close(leaf.grad, wanted)
    quantizer.update(latents, codes, torch.Generator())
    assert torch.equal(quantizer.codebook, codebook)
    with pytest.raises(UserError, match=f"'vq': expected num_codes {N} and dim {DIM}, as.*got {N} and {DIM + 1}"):
        FixedQuantizer(QuantizerConfig(num_codes=N, dim=DIM + 1), codebook)


def test_fsq_learns_nothing_and_its_codebook_is_its_own_code():
    quantizer = make_quantizer(QuantizerConfig("fsq", num_codes=128))
    before = quantizer.codebook.clone()
    quantizer.update(torch.randn(5, 3), torch.arange(5), torch.Generator())
    assert torch.equal(quantizer.codebook, before) and len(before.unique(dim=0)) == 128
    assert torch.equal(quantizer(before).codes, torch.arange(128))
    assert torch.equal(quantizer.prepare(torch.zeros(1, 3)), torch.zeros(1, 3))
    assert quantizer(torch.tensor([[9.0, -9.0, 9.0]])).codes.tolist() == [7 * 16 + 3]  # never out of the grid


@pytest.mark.parametrize(
    ("num_codes", "levels"),
    [(4, (4,)), (8, (8,)), (64, (4, 4, 4)), (128, (8, 4, 4)), (256, (4,) * 4), (512, (8, 4, 4, 4)), (1024, (4,) * 5)],
)
def test_levels_and_dim_follow_from_the_number_of_codes(num_codes, levels):
    config = QuantizerConfig("fsq", num_codes=num_codes)
    assert (config.levels, config.dim, config.num_entries) == (levels, len(levels), num_codes)
    assert from_dict(QuantizerConfig, to_dict(config)) == config
    assert make_quantizer(config).codebook.shape == (num_codes, len(levels))


@pytest.mark.parametrize("kind", ["vq", "residual", "fsq"])
def test_all_kinds_keep_to_one_form(kind):
    """Any leading sizes; ids within num_entries; latents under autocast; nothing but `update` changes anything."""
    config = QuantizerConfig(kind, num_codes=64, stages=2 if kind == "residual" else 1)
    quantizer = make_quantizer(config)
    assert quantizer.config == config and quantizer.codebook.shape == (config.num_entries, config.dim)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = torch.randn(2, 3, 5, config.dim, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(quantizer.prepare(latents.bfloat16()))
    assert out.values.shape == latents.shape and out.values.dtype == torch.float32
    assert out.codes.shape == (2, 3, 5 * quantizer.stages) and out.loss.shape == ()
    assert int(out.codes.min()) >= 0 and int(out.codes.max()) < config.num_entries
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


WORKER = """
import sys, torch
from torch import distributed
from brainjanus.tokenizers.quantizer import QuantizerConfig, make_quantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
saved = {}
for kind, settings, batches in torch.load(f"{folder}/work.pt"):
    quantizer = make_quantizer(QuantizerConfig(kind, **settings))
    for step, batch in enumerate(batches):
        part = batch[:5] if rank == 0 else batch[5:]
        quantizer.update(part, quantizer(part).codes, torch.Generator().manual_seed(step))
    saved[kind] = quantizer.state_dict()
torch.save(saved, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_give_the_codebooks_of_one(tmp_path):
    """Of unequal parts of each batch, dead codes included."""
    batches = torch.randn(6, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    common = {"num_codes": 6, "dim": 4, "decay": 0.5, "dead_below": 0.9}
    work = [("vq", common, batches), ("residual", common | {"stages": 2}, batches)]
    torch.save(work, tmp_path / "work.pt")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", WORKER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for kind, settings, _ in work:
        alone, redrawn = make_quantizer(QuantizerConfig(kind, **settings)), 0
        for step, batch in enumerate(batches):
            alone.update(batch, alone(batch).codes, torch.Generator().manual_seed(step))
            redrawn += int((alone.usage == 1 / 6).sum())
        assert redrawn > 3
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(first[kind][name], value)
            assert torch.equal(first[kind][name], second[kind][name])


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
        ({"commitment": -1.0}, "commitment must be at least 0, got -1.0"),
        ({"entropy": -1.0, "dead_below": -0.5}, "entropy must be at least 0, got -1.0; dead_below must .* got -0.5"),
        ({"stages": 2}, "stages belong to kind 'residual', got 2 for 'vq'"),
        (
            {"kind": "residual", "entropy": 0.1},
            "entropy belongs to kind 'vq' with cosine similarity, got 0.1 for 'residual'",
        ),
        ({"similarity": "euclidean", "entropy": 0.1}, "entropy belongs to kind 'vq' with cosine similarity, got 0.1"),
        ({"levels": (16, 16)}, r"levels belong to kind 'fsq', got \(16, 16\) for 'vq'"),
        ({"kind": "fsq", "num_codes": 100}, "num_codes must be a power of two from 4 on, or levels given, got 100"),
        ({"kind": "fsq", "levels": (8, 8)}, r"multiply to num_codes 256, got \(8, 8\)"),
        ({"kind": "fsq", "levels": (2, 128)}, r"levels must be at least 3 each .* got \(2, 128\)"),
        (
            {"kind": "fsq", "num_codes": 100, "stages": 2},
            "stages belong .*; num_codes must be a power of two .*, got 100",
        ),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        QuantizerConfig(**settings)
