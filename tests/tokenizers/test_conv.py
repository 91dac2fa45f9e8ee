"""The published encoder: its architecture against a second writing of it, its size, its work, its mask."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.conv import Attention, ConvCoder, PaperConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

TINY = PaperConfig(base_channels=4, multipliers=(1, 2, 4), blocks=2, latent_channels=6)


def make(config=TINY, dim=3):
    torch.manual_seed(0)
    return ConvCoder(config, dim).requires_grad_(False)


class Written:
    """LlamaGen's encoder and decoder as functions in one dimension, over the weights in the order of their use."""

    def __init__(self, layers, config):
        self.weights = iter(list(layers.parameters()))
        self.groups, self.config = min(32, config.base_channels), config

    def norm(self, x):
        return F.group_norm(x, self.groups, next(self.weights), next(self.weights), eps=1e-6)

    def conv(self, x, **settings):
        weight, bias = next(self.weights), next(self.weights)
        return F.conv1d(x, weight, bias, **{"padding": weight.shape[-1] // 2} | settings)

    def block(self, x, width):
        y = x
        for _ in range(2):
            y = self.norm(y)
            y = self.conv(y * y.sigmoid())
        return y + (x if x.shape[1] == width else self.conv(x))

    def attend(self, x):
        query, key, value = self.conv(self.norm(x)).chunk(3, dim=1)
        scores = torch.einsum("bcl,bcm->blm", query, key) * x.shape[1] ** -0.5
        return x + self.conv(torch.einsum("blm,bcm->bcl", scores.softmax(dim=-1), value))

    def middle(self, x):
        return self.block(self.attend(self.block(x, x.shape[1])), x.shape[1])

    def end(self, x):
        x = self.norm(x)
        return self.conv(x * x.sigmoid())

    def encode(self, x):
        x, lowest = self.conv(x), len(self.config.multipliers) - 1
        for level, multiplier in enumerate(self.config.multipliers):
            for _ in range(self.config.blocks):
                x = self.block(x, self.config.base_channels * multiplier)
                x = self.attend(x) if level == lowest else x
            x = x if level == lowest else self.conv(F.pad(x, (0, 1)), stride=2, padding=0)
        return self.conv(self.end(self.middle(x)))

    def decode(self, x):
        x, lowest = self.middle(self.conv(self.conv(x))), len(self.config.multipliers) - 1
        for level in range(lowest, -1, -1):
            for _ in range(self.config.blocks + 1):
                x = self.block(x, self.config.base_channels * self.config.multipliers[level])
                x = self.attend(x) if level == lowest else x
            x = self.conv(x.repeat_interleave(2, dim=2)) if level > 0 else x
        return self.end(x)


def patches(num_patches=6, batch=2):
    return torch.randn(batch, num_patches, 4, generator=torch.Generator().manual_seed(1))


def test_agrees_with_a_second_writing_of_llamagen():
    coder = make()
    latents = coder.encode(patches(), "one")
    written = Written(coder.encoder, TINY)
    wanted = written.encode(patches().reshape(2, 1, 24))
    torch.testing.assert_close(latents, wanted.transpose(1, 2), atol=1e-5, rtol=1e-4)
    back = Written(coder.decoder, TINY)
    torch.testing.assert_close(coder.decode(latents, "one"), back.decode(wanted).reshape(2, 6, 4), atol=1e-5, rtol=1e-4)
    assert not list(written.weights) and not list(back.weights)


def test_the_published_size_and_work():
    """64 sites a token; 32.5 GFLOP for the 246 tokens of 15,724 sites."""
    coder = ConvCoder(PaperConfig(), 32)
    assert coder.config.patch_size == 64
    assert sum(weights.numel() for weights in coder.parameters()) == 13_091_937
    assert coder.flops(246, 64) == 32_512_241_664


@pytest.mark.parametrize("num_patches", [1, 6])
def test_work_is_what_torch_counts(num_patches, fused_attention):
    coder = make()
    with FlopCounterMode(display=False, custom_mapping=fused_attention) as counter:
        coder.decode(coder.encode(patches(num_patches, batch=1), "one"), "one")
    assert coder.flops(num_patches, 4) == counter.get_total_flops()


def test_subjects_share_all_weights_and_differ_in_length_only():
    coder = make()
    assert coder.encode(patches(6), "one").shape == (2, 6, 3)
    latents = coder.encode(patches(2), "two")
    assert latents.shape == (2, 2, 3) and coder.decode(latents, "two").shape == (2, 2, 4)
    torch.testing.assert_close(coder.encode(patches(2), "one"), latents)
    assert not list(coder.of_subject("one").parameters())


def test_neighbouring_patches_share_their_border():
    """With attention switched off, so that only convolutions reach over the border."""
    coder = make()
    for module in coder.modules():
        if isinstance(module, Attention):
            module.out.weight.zero_()
    changed = patches()
    changed[:, 3] += 1
    moved = (coder.encode(changed, "one") - coder.encode(patches(), "one")).abs().amax(dim=(0, 2))
    assert moved[3] > 0 and moved[2] > 0 and moved[4] > 0


def test_no_loss_sees_what_is_decoded_behind_the_last_site():
    """The mask: of 21 sites in 6 patches of 4, the last 3 places touch neither the values nor a gradient."""
    order = torch.arange(21)
    config = BrainTokenizerConfig("paper", 4, paper=TINY, quantizer=QuantizerConfig(num_codes=8, dim=3))
    tokenizer = BrainTokenizer(config, {"one": order})
    seen = []
    tokenizer.coder.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    decoded = tokenizer(torch.randn(2, 21), "one").values
    (gradient,) = torch.autograd.grad(decoded.square().sum(), seen[0])
    assert decoded.shape == (2, 21) and seen[0].shape == (2, 1, 24)
    assert gradient[:, 0, :21].all() and not gradient[:, 0, 21:].any()


def test_what_is_learnt_reaches_every_weight():
    coder = make().requires_grad_()
    coder.decode(coder.encode(patches(), "one"), "one").square().sum().backward()
    assert all(weights.grad is not None and weights.grad.any() for weights in coder.parameters())


def test_it_trains_in_bfloat16():
    coder = make()
    with torch.autocast("cpu", torch.bfloat16):
        low = coder.encode(patches(), "one")
        back = coder.decode(low, "one")
    assert torch.corrcoef(torch.stack([low.float().flatten(), coder.encode(patches(), "one").flatten()]))[0, 1] > 0.99
    assert back.shape == (2, 6, 4)


@pytest.mark.parametrize("multipliers", [(1,), (2, 1), (1, 3, 2, 1)])
@pytest.mark.parametrize("base_channels", [1, 32, 64])
def test_any_levels_and_channels(multipliers, base_channels):
    config = PaperConfig(base_channels, multipliers, 1, 5)
    coder = ConvCoder(config, 2)
    latents = coder.encode(torch.randn(2, 3, config.patch_size), "one")
    assert config.patch_size == 2 ** (len(multipliers) - 1) and latents.shape == (2, 3, 2)
    assert coder.decode(latents, "one").shape == (2, 3, config.patch_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_channels": 0}, "base_channels must be at least 1, got 0"),
        ({"base_channels": 40}, "base_channels must be a multiple of 32, or less, got 40"),
        ({"multipliers": ()}, r"multipliers must be one number a level, each at least 1, got \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers must .* got \(1, 0\)"),
        (
            {"blocks": 0, "latent_channels": 0},
            "blocks must .* got 0; latent_channels must .* got 0.* Correct the config",
        ),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        PaperConfig(**settings)
