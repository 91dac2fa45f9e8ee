"""The patch encoder: before training it is the linear estimate of axes.py, and training adds to that."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.axes import cortical_axes, own_axes
from brainjanus.tokenizers.patch import ContextBlock, Form, PatchCoder, PatchConfig
from brainjanus.tokenizers.sites import Sites

K, P, V, DIM = 4, 3, 11, 2  # the last patch lacks a site
EUCLIDEAN, COSINE, FSQ = Form(False, 1.0, False), Form(False, 2.0, True), Form(True, 1.5, False)
NOTHING = np.zeros((0, K * P), np.float32)


@pytest.fixture(scope="module")
def patches():
    """Neighbours agree, sites differ in their spread; the place behind the last site is zero."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, K * P)) @ np.exp(-0.5 * np.subtract.outer(range(K * P), range(K * P)) ** 2)
    values = (values * np.linspace(1, 3, K * P)).astype(np.float32)
    values[:, V:] = 0
    return torch.from_numpy(values - values.mean(axis=0)).unflatten(1, (K, P))


def make(patches=None, form=EUCLIDEAN, dim=DIM, trained=False, **settings):
    torch.manual_seed(0)
    config = PatchConfig(**{"width": 8, "depth": 1, "heads": 2} | settings)
    sites = {"a": Sites(torch.arange(V), P), "b": Sites(torch.arange(4), P)}
    coder = PatchCoder(config, dim, sites, constant=form.constant)
    if patches is not None:
        coder.map_of("a").load(patches.flatten(1).numpy(), NOTHING, 0.0, form)
    for parameter in coder.parameters():
        if trained:
            nn.init.normal_(parameter, std=0.3)
    return coder.eval().requires_grad_(False)


@pytest.mark.parametrize("form", [EUCLIDEAN, COSINE, FSQ], ids=["euclidean", "cosine", "fsq"])
def test_before_training_it_is_the_linear_estimate(patches, form):
    """Whatever the units of the latents."""
    coder = make(patches, form)
    flat = patches.flatten(1).numpy()
    axes = cortical_axes(flat, NOTHING, 0.0, patch_size=P, per_patch=DIM - form.constant, rank=768)
    numbers = np.einsum("nc,krc->nkr", flat @ axes.principal.T, axes.turn)
    wanted = np.einsum("nkr,krc->nc", numbers, axes.back) @ axes.principal
    latents = coder.encode(patches, "a")
    torch.testing.assert_close(latents, coder.solved(patches, "a"))
    torch.testing.assert_close(coder.decode(latents, "a").flatten(1), torch.from_numpy(wanted), atol=1e-4, rtol=1e-4)
    assert np.square(wanted - flat).mean() < 0.5 * np.square(flat).mean()


def test_latents_are_in_units_that_suit_the_quantizer(patches):
    """By distance: a patch's numbers keep their proportions, its spread is one. FSQ: each has its own, 1 / 1.5."""
    latents = make(patches, EUCLIDEAN).encode(patches, "a")
    spread = latents.std(dim=0, correction=0)
    torch.testing.assert_close(spread.square().mean(dim=1), torch.ones(K))
    assert not torch.allclose(spread, torch.ones(K, DIM), atol=0.1)
    latents = make(patches, FSQ).encode(patches, "a")
    torch.testing.assert_close(latents.std(dim=0, correction=0), torch.full((K, DIM), 1 / 1.5))


def test_a_quantizer_that_sees_directions_alone_sees_lengths_too(patches):
    """The last number is constant: nothing is read into it, and it writes nothing."""
    coder = make(patches, COSINE, dim=3)
    latents = coder.encode(patches, "a")
    assert torch.equal(latents[..., 2], torch.ones(len(patches), K))
    torch.testing.assert_close(latents[..., :2].std(dim=0, correction=0).square().mean(dim=1), torch.full((K,), 0.25))
    decoded = coder.decode(latents, "a")
    latents[..., 2] = 9
    torch.testing.assert_close(coder.decode(latents, "a"), decoded)


def test_bare_patches_read_and_write_their_own_principal_axes(patches):
    coder = make(patches, reach="patch", depth=0)
    own = torch.from_numpy(own_axes(patches.flatten(1).numpy(), P, DIM))
    wanted = torch.einsum("nkp,krp,krq->nkq", patches, own, own)
    torch.testing.assert_close(coder.decode(coder.encode(patches, "a"), "a"), wanted, atol=1e-5, rtol=1e-4)
    spread = coder.encode(patches, "a").std(dim=0, correction=0)
    torch.testing.assert_close(spread.square().mean(dim=1), torch.ones(K))


@pytest.mark.parametrize(
    ("settings", "trained", "alone"),
    [
        ({"reach": "patch", "depth": 0}, True, True),
        ({"reach": "patch", "depth": 1}, False, True),
        ({"reach": "patch", "depth": 1}, True, False),
        ({"reach": "cortex", "depth": 0}, False, False),
    ],
)
def test_what_a_token_sees_of_other_patches(patches, settings, trained, alone):
    """Bare patches see none; the transformer and axes over the whole response see all."""
    coder = make(patches, trained=trained, **settings)
    other = patches[:5].clone()
    other[:, 0, 1] += 3
    moved = (coder.encode(other, "a") - coder.encode(patches[:5], "a")).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [True] + [not alone] * 3
    latents = coder.encode(patches[:5], "a")
    changed = latents.clone()
    changed[:, 0] += 3
    moved = (coder.decode(changed, "a") - coder.decode(latents, "a")).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [True] + [not alone] * 3


def test_solving_anew_forgets_what_was_solved_before(patches):
    """Also where less varies the second time."""
    less = torch.zeros_like(patches)
    less[:, 0] = patches[:, 0]
    for reach in ("cortex", "patch"):
        twice, once = make(patches, reach=reach), make(less, reach=reach)
        twice.map_of("a").load(less.flatten(1).numpy(), NOTHING, 0.0, EUCLIDEAN)
        for (name, one), other in zip(twice.map_of("a").named_buffers(), once.map_of("a").buffers(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("reach", ["cortex", "patch"])
def test_what_never_varies_is_no_division_by_zero(patches, reach):
    """Neither a silent patch, nor a recording in which nothing comes again."""
    silent = patches.clone()
    silent[:, 1] = 0
    coder = make(silent, FSQ, reach=reach)
    assert coder.decode(coder.encode(silent, "a"), "a").isfinite().all()
    flat = patches.flatten(1).numpy()
    coder.map_of("a").load(flat, flat, 1.5, EUCLIDEAN)
    decoded = coder.decode(coder.encode(patches, "a"), "a")
    assert decoded.isfinite().all() and (reach == "patch" or not decoded.any())


def test_noise_is_left_out_of_what_is_written(patches):
    """Noise as large as half of everything: what is written has half the size."""
    coder = make(patches)
    whole = coder.decode(coder.encode(patches, "a"), "a")
    flat = patches.flatten(1).numpy()
    coder.map_of("a").load(flat, flat, 0.5, EUCLIDEAN)
    torch.testing.assert_close(coder.decode(coder.encode(patches, "a"), "a"), whole / 2, atol=1e-4, rtol=1e-3)


def test_rank_is_the_most_that_tokens_share(patches):
    coder = make(patches, rank=3)
    assert coder.map_of("a").principal.shape == (3, K * P)
    decoded = coder.decode(coder.encode(patches, "a"), "a").flatten(1)
    assert torch.linalg.matrix_rank(decoded, atol=1e-3) == 3


def test_each_subject_has_its_own_maps_and_shares_the_rest(patches):
    coder = make(patches, trained=True).requires_grad_()
    coder.decode(coder.encode(patches, "a"), "a").square().sum().backward()
    untouched = {name for name, p in coder.named_parameters() if p.grad is None or not p.grad.any()}
    assert untouched == {f"maps.brain:b.{name}" for name in ("into", "out", "bias", "position")}
    assert coder.of_subject("b") is coder.map_of("b")
    assert sum(p.numel() for p in coder.of_subject("a").parameters()) == 2 * K * P * 8 + K * P + K * 8


@pytest.mark.parametrize("settings", [{}, {"depth": 0}, {"reach": "patch"}, {"depth": 2, "rank": 5}])
def test_work_is_what_torch_counts(patches, settings, fused_attention):
    coder = make(patches, **settings)
    with FlopCounterMode(display=False, custom_mapping=fused_attention) as counter:
        coder.decode(coder.encode(patches[:1], "a"), "a")
    assert coder.flops(K, P) == counter.get_total_flops()


def test_a_row_does_not_depend_on_its_neighbours(patches):
    coder = make(patches, trained=True)
    latents = coder.encode(patches, "a")
    torch.testing.assert_close(latents[1:2], coder.encode(patches[1:2], "a"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coder.decode(latents, "a")[1:2], coder.decode(latents[1:2], "a"), atol=1e-4, rtol=1e-4)


def test_equal_patches_are_told_apart_by_their_place(patches):
    """With the same maps everywhere, the transformer still knows the position of each."""
    coder = make(trained=True)
    patch_map = coder.map_of("a")
    for weights in (patch_map.into, patch_map.out, patch_map.bias):
        weights.copy_(weights[:1].expand_as(weights).clone())
    for told in (True, False):
        encoded, decoded = coder.encode(torch.ones(1, K, P), "a")[0], coder.decode(torch.ones(1, K, DIM), "a")[0]
        assert torch.allclose(encoded[0], encoded[1]) == torch.allclose(decoded[0], decoded[1]) == (not told)
        patch_map.position.zero_()


def test_context_is_a_transformer_encoder_layer():
    torch.manual_seed(0)
    ours = ContextBlock(16, 4)
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = (
        (theirs.self_attn.out_proj, ours.out), (theirs.norm1, ours.norm), (theirs.norm2, ours.mlp[0]),
        (theirs.linear1, ours.mlp[1]), (theirs.linear2, ours.mlp[3]),
    )  # fmt: skip
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for to, source in pairs:
            to.load_state_dict(source.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_maps_start_small_enough():
    """A z-scored patch enters the transformer with the scale of one, whatever its size."""
    torch.manual_seed(0)
    for size in (4, 64):
        coder = PatchCoder(PatchConfig(width=64), 3, {"a": Sites(torch.arange(8 * size), size)})
        entered = torch.einsum("bkp,kpw->bkw", torch.randn(50, 8, size), coder.map_of("a").into)
        assert float(entered.detach().std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": -1}, "expected depth >= 0 and a width divisible by heads, got depth -1, width 128, heads 4"),
        ({"width": 10}, "got depth 2, width 10, heads 4"),
        ({"width": 0}, "got depth 2, width 0, heads 4"),
        ({"heads": 0}, "got depth 2, width 128, heads 0"),
        ({"rank": 0, "heads": 3}, "heads 3; rank must be at least 1, got 0. Correct the config"),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        PatchConfig(**settings)


def test_says_which_reaches_there_are():
    config = PatchConfig()
    object.__setattr__(config, "reach", "head")  # where types are checked, as here, nothing else passes
    with pytest.raises(UserError, match="reach must be cortex or patch, got 'head'"):
        config.__post_init__()
