"""Image tokenizer: a picture in, a grid of codes out, and back.

A small convolutional VQ autoencoder. Pixels are folded into channels first (4 x 4 pixels a position), so that all
convolutions run at a quarter of the resolution or less and it trains in minutes on a CPU.
Source: van den Oord et al. 2017; the fold and unfold are Shi et al. 2016 (sub-pixel convolution).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.quantizer import Quantized, QuantizerConfig, make_quantizer

FOLD = 4  # pixels along a side that enter as one position
GROUPS = 8  # of channels that are normalised together


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """image_size: pixels along a side. codes_per_side: of the grid of codes. width, blocks: of the convolutions."""

    image_size: int = 64
    codes_per_side: int = 8
    width: int = 64
    blocks: int = 2
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(num_codes=512, dim=16))

    def __post_init__(self) -> None:
        side = self.image_size // FOLD
        steps = side // self.codes_per_side if self.codes_per_side > 0 else 0
        problems = []
        if self.image_size % FOLD or steps < 1 or side != self.codes_per_side * steps or steps & (steps - 1):
            problems.append(
                f"image_size must be codes_per_side x {FOLD} x a power of two, got image_size {self.image_size}, "
                f"codes_per_side {self.codes_per_side}"
            )
        if self.width < 1 or self.width % GROUPS:
            problems.append(f"width must be a multiple of {GROUPS}, got {self.width}")
        if self.blocks < 0:
            problems.append(f"blocks must be at least 0, got {self.blocks}")
        if self.quantizer.stages > 1:
            problems.append(f"a picture has one code a place: stages must be 1, got {self.quantizer.stages}")
        if problems:
            raise UserError("image tokenizer config: " + "; ".join(problems) + ". Correct the config.")


class ImageReconstruction(NamedTuple):
    pixels: Float[Tensor, "b 3 h w"]
    quantized: Quantized
    latents: Float[Tensor, "b k d"]


# B batch, H = W pixels along a side, K codes per picture, D codebook dimension, N codebook entries
class ImageTokenizer(nn.Module):
    """Encode and decode square RGB pictures in [0, 1]."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.config = config
        width, dim = config.width, config.quantizer.dim
        halvings = (config.image_size // FOLD // config.codes_per_side).bit_length() - 1
        down: list[nn.Module] = [nn.PixelUnshuffle(FOLD), nn.Conv2d(3 * FOLD**2, width, 3, padding=1)]
        up: list[nn.Module] = []
        for _ in range(halvings):
            down += [ResidualBlock(width), nn.Conv2d(width, width, 4, stride=2, padding=1)]
            up += [nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2), ResidualBlock(width)]
        blocks = [ResidualBlock(width) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(*down, *blocks, nn.GroupNorm(GROUPS, width), nn.Conv2d(width, dim, 1))
        self.quantizer = make_quantizer(config.quantizer)
        blocks = [ResidualBlock(width) for _ in range(config.blocks)]
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 1), *blocks, *up, nn.GroupNorm(GROUPS, width), nn.SiLU(),
            nn.Conv2d(width, 3 * FOLD**2, 3, padding=1), nn.PixelShuffle(FOLD),
        )  # fmt: skip

    @property
    def num_codes(self) -> int:
        """K: how many codes a picture becomes."""
        return self.config.codes_per_side**2

    def latents(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k d"]:
        """What the quantizer sees, row by row."""
        if pixels.shape[-2:] != (self.config.image_size,) * 2:
            raise UserError(
                f"picture: expected {self.config.image_size} x {self.config.image_size} pixels, got "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}. Resize it to the size that the tokenizer was trained on."
            )
        return self.quantizer.prepare(self.encoder(pixels * 2 - 1).flatten(2).transpose(1, 2))

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b k"]:
        """Codes of pictures in [0, 1], row by row. Raises UserError if they are not image_size pixels along a side."""
        return self.quantizer(self.latents(pixels)).codes

    def decode(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1]."""
        return self.decode_vectors(self.quantizer.codebook[codes]).clamp(0, 1)

    def decode_probabilities(self, probabilities: Float[Tensor, "b k n"]) -> Float[Tensor, "b 3 h w"]:
        """The expected picture under one distribution over codes per position: the expected vectors, decoded."""
        return self.decode_vectors(probabilities @ self.quantizer.codebook).clamp(0, 1)

    def decode_vectors(self, vectors: Float[Tensor, "b k d"]) -> Float[Tensor, "b 3 h w"]:
        """Codebook vectors, or means of them, as pixels, not clamped to [0, 1]."""
        side = self.config.codes_per_side
        return (self.decoder(vectors.transpose(1, 2).unflatten(2, (side, side))) + 1) / 2

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> ImageReconstruction:
        """Encode, quantize, decode, with gradients."""
        latents = self.latents(pixels)
        quantized = self.quantizer(latents)
        return ImageReconstruction(self.decode_vectors(quantized.values), quantized, latents)


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
