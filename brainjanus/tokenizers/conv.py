"""The published encoder (`paper`): patches in storage order enter, one latent each leaves, and back.

Source: the Unified Brain Tokenizer of BrainJanus (arXiv 2606.30319, table 6), the convolutional autoencoder of
LlamaGen's image tokenizer (Sun et al. 2024, after VQGAN, Esser et al. 2021) in one dimension. Differs: nothing that
changes a result.

The mask: a response is filled up with zeros, the mean of a z-scored site, to a multiple of 64 (sites.py). What is
decoded at the filled-up places is left out there, so that no loss and no score sees it. The convolutions get no mask as
input.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.attention import attention
from brainjanus.core.errors import UserError
from brainjanus.tokenizers.coder import Coder

GROUPS = 32  # of channels that are normalised together


@dataclass(frozen=True)
class PaperConfig:
    """The published hyperparameters.

    base_channels: of the first level. multipliers: of them, one a level, each level at half the resolution. blocks:
    residual blocks a level; the decoder has one more. latent_channels: before the quantizer's dimension.
    """

    base_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2, 4, 4, 4)
    blocks: int = 2
    latent_channels: int = 512

    def __post_init__(self) -> None:
        numbers = {"base_channels": self.base_channels, "blocks": self.blocks, "latent_channels": self.latent_channels}
        problems = [f"{name} must be at least 1, got {value}" for name, value in numbers.items() if value < 1]
        if not self.multipliers or min(self.multipliers) < 1:
            problems.append(f"multipliers must be one number a level, each at least 1, got {self.multipliers}")
        if self.base_channels > GROUPS and self.base_channels % GROUPS:
            problems.append(f"base_channels must be a multiple of {GROUPS}, or less, got {self.base_channels}")
        if problems:
            raise UserError("paper encoder config: " + "; ".join(problems) + ". Correct the config.")

    @property
    def patch_size(self) -> int:
        """How many sites become one latent."""
        return 2 ** (len(self.multipliers) - 1)


# B batch, K patches, P sites per patch, D quantizer's dimension, C channels, L positions at a level
class ConvCoder(Coder):
    """The encoder and the decoder around the quantizer. All weights are shared by all subjects, of any length."""

    def __init__(self, config: PaperConfig, dim: int):
        super().__init__()
        self.config = config
        widths = [config.base_channels * multiplier for multiplier in config.multipliers]
        self.groups = min(GROUPS, config.base_channels)
        self.encoder = nn.Sequential(*self.encoder_layers(widths, dim))
        self.decoder = nn.Sequential(*self.decoder_layers(widths, dim))

    def encoder_layers(self, widths: list[int], dim: int) -> list[nn.Module]:
        layers: list[nn.Module] = [conv(1, widths[0])]
        for level, (width, before) in enumerate(zip(widths, [widths[0], *widths], strict=False)):
            if level > 0:
                layers.append(Down(before))
            layers += self.level(before, width, self.config.blocks, attends=level == len(widths) - 1)
        layers += [*self.middle(widths[-1]), Norm(self.groups, widths[-1])]
        return [*layers, conv(widths[-1], self.config.latent_channels), conv(self.config.latent_channels, dim, size=1)]

    def decoder_layers(self, widths: list[int], dim: int) -> list[nn.Module]:
        layers: list[nn.Module] = [conv(dim, self.config.latent_channels, size=1)]
        layers += [conv(self.config.latent_channels, widths[-1]), *self.middle(widths[-1])]
        for level, (width, before) in enumerate(zip(widths[::-1], [widths[-1], *widths[::-1]], strict=False)):
            if level > 0:
                layers.append(Up(before))
            layers += self.level(before, width, self.config.blocks + 1, attends=level == 0)
        return [*layers, Norm(self.groups, widths[0]), conv(widths[0], 1)]

    def level(self, before: int, width: int, blocks: int, *, attends: bool) -> list[nn.Module]:
        """The blocks of one resolution; at the lowest, each looks at all positions."""
        layers: list[nn.Module] = []
        for block in range(blocks):
            layers.append(Block(self.groups, width if block else before, width))
            layers += [Attention(self.groups, width)] if attends else []
        return layers

    def middle(self, width: int) -> list[nn.Module]:
        return [Block(self.groups, width, width), Attention(self.groups, width), Block(self.groups, width, width)]

    def encode(self, patches: Float[Tensor, "b k p"], subject: str) -> Float[Tensor, "b k d"]:
        return self.encoder(patches.flatten(1)[:, None]).transpose(1, 2)

    def decode(self, vectors: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b k p"]:
        return self.decoder(vectors.transpose(1, 2))[:, 0].unflatten(1, (-1, self.config.patch_size))

    def flops(self, num_patches: int, patch_size: int) -> int:
        """Floating-point operations of one response forward, two a multiplication with its addition.

        Counts convolutions and attention's products; norms, activations and sums are less than a hundredth of them.
        """
        length = num_patches * patch_size
        total = 0
        for layer in (*self.encoder, *self.decoder):
            length = length // 2 if isinstance(layer, Down) else length * 2 if isinstance(layer, Up) else length
            weights = sum(part.weight.numel() for part in layer.modules() if isinstance(part, nn.Conv1d))
            total += 2 * weights * length
            if isinstance(layer, Attention):
                total += 2 * 2 * layer.out.out_channels * length**2
        return total


def conv(before: int, after: int, size: int = 3) -> nn.Conv1d:
    return nn.Conv1d(before, after, size, padding=size // 2)


class Norm(nn.GroupNorm):
    """Group norm, then swish."""

    def __init__(self, groups: int, width: int):
        super().__init__(groups, width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c l"]:
        return F.silu(super().forward(x))


class Block(nn.Module):
    """Residual block: twice norm, swish and convolution."""

    def __init__(self, groups: int, before: int, after: int):
        super().__init__()
        self.change = nn.Sequential(Norm(groups, before), conv(before, after), Norm(groups, after), conv(after, after))
        self.skip = nn.Identity() if before == after else conv(before, after, size=1)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b e l"]:
        return self.skip(x) + self.change(x)


class Attention(nn.Module):
    """Each position looks at all positions, with one head."""

    def __init__(self, groups: int, width: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(groups, width, eps=1e-6), conv(width, 3 * width, size=1)
        self.out = conv(width, width, size=1)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c l"]:
        q, k, v = self.qkv(self.norm(x)).transpose(1, 2)[:, None].chunk(3, dim=-1)
        return x + self.out(attention(q, k, v, causal=False)[:, 0].transpose(1, 2))


class Down(nn.Module):
    """Half the resolution; as in LlamaGen, the window of an output starts at its even input."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c m"]:
        return self.conv(F.pad(x, (0, 1)))


class Up(nn.Module):
    """Twice the resolution: each position twice, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c m"]:
        return self.conv(F.interpolate(x, scale_factor=2.0))
