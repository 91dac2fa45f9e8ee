"""Brain tokenizer: one response (V sites) in, K codes out, and back.

Position-specific linear patches over the cortical order, a small transformer, a vector quantizer, a small transformer,
position-specific linear patches. The transformers and the codebook are shared by all subjects; the patch maps belong
to one subject each, so that subjects may have different numbers of sites.
Source: the Unified Brain Tokenizer of BrainJanus (arXiv 2606.30319). Differs: patches along the cortical order in
place of 1-D convolutions over the storage order, and context between patches on either side of the quantizer, so that
a code is a place on the cortex and codes of one response share the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.attention import attention
from brainjanus.core.errors import UserError
from brainjanus.tokenizers.quantizer import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class BrainTokenizerConfig:
    """patch_size: sites a code stands for. width, depth, heads: of each of the two transformers."""

    patch_size: int = 32
    width: int = 128
    depth: int = 2
    heads: int = 4
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.depth < 0 or self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise UserError(
                f"brain tokenizer config: expected patch_size >= 1, depth >= 0 and a width divisible by heads, got "
                f"patch_size {self.patch_size}, depth {self.depth}, width {self.width}, heads {self.heads}. "
                "Correct the config."
            )


class BrainReconstruction(NamedTuple):
    values: Float[Tensor, "b v"]
    quantized: Quantized
    latents: Float[Tensor, "b k d"]


# B batch, V sites, K codes per response, P sites per patch, D width, N codebook entries
class BrainTokenizer(nn.Module):
    """Encode and decode responses of any of its subjects.

    orders: subject -> permutation [V], the cortical order of its BrainSpace.
    """

    def __init__(self, config: BrainTokenizerConfig, orders: Mapping[str, Int[Tensor, "v"]]):
        super().__init__()
        self.config = config
        # the prefix keeps a subject called 'train' or 'items' apart from what a module itself has
        self.maps = nn.ModuleDict({f"brain:{subject}": PatchMap(config, order) for subject, order in orders.items()})
        self.encoder = context(config)
        self.to_latent = nn.Linear(config.width, config.quantizer.dim)
        self.quantizer = Quantizer(config.quantizer)
        self.from_latent = nn.Linear(config.quantizer.dim, config.width)
        self.decoder = context(config)

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("brain:") for name in self.maps)

    def num_codes(self, subject: str) -> int:
        """K: how many codes one response of this subject becomes."""
        return self.map_of(subject).num_patches

    def num_sites(self, subject: str) -> int:
        """V: how many sites this subject has."""
        return self.map_of(subject).num_sites

    def patches(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b k p"]:
        """The responses themselves, in cortical order, cut into the patches that codes stand for."""
        return self.map_of(subject).cut(values)

    def latents(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b k d"]:
        """What the quantizer sees: unit vectors, one a patch."""
        patches = self.map_of(subject).encode(values)
        return F.normalize(self.to_latent(self.encoder(patches)).float(), dim=-1)

    def encode(self, values: Float[Tensor, "b v"], subject: str) -> Int[Tensor, "b k"]:
        """Turn one response per row into brain codes.

        values: betas, z-scored per site on the training split (unitless).
        Returns ids in [0, N), local to this codebook. Raises UserError if V is not the subject's number of sites.
        """
        return self.quantizer(self.latents(values, subject)).codes

    def decode(self, codes: Int[Tensor, "b k"], subject: str) -> Float[Tensor, "b v"]:
        """The response that the codes stand for, z-scored, in the subject's own order of sites."""
        return self.decode_vectors(self.quantizer.codebook[codes], subject)

    def decode_probabilities(self, probabilities: Float[Tensor, "b k n"], subject: str) -> Float[Tensor, "b v"]:
        """The expected response under one distribution over codes per patch: the expected codebook vectors, decoded."""
        return self.decode_vectors(probabilities @ self.quantizer.codebook, subject)

    def decode_vectors(self, vectors: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b v"]:
        """Codebook vectors, or means of them, as a response."""
        patch_map = self.map_of(subject)
        return patch_map.decode(self.decoder(self.from_latent(vectors) + patch_map.position))

    def forward(self, values: Float[Tensor, "b v"], subject: str) -> BrainReconstruction:
        """Encode, quantize, decode, with gradients."""
        latents = self.latents(values, subject)
        quantized = self.quantizer(latents)
        return BrainReconstruction(self.decode_vectors(quantized.values, subject), quantized, latents)

    def map_of(self, subject: str) -> "PatchMap":
        if subject not in self.subjects:
            raise UserError(
                f"brain tokenizer: expected one of the subjects it was trained on ({', '.join(self.subjects)}), got "
                f"'{subject}'. Train a tokenizer on a dataset that has this subject."
            )
        patch_map = self.maps[f"brain:{subject}"]
        assert isinstance(patch_map, PatchMap)
        return patch_map


class PatchMap(nn.Module):
    """One subject's linear maps from patches of P sites in cortical order to D numbers and back, one per position."""

    order: Tensor

    def __init__(self, config: BrainTokenizerConfig, order: Int[Tensor, "v"]):
        super().__init__()
        self.num_sites = len(order)
        self.num_patches = -(-len(order) // config.patch_size)
        self.patch_size = config.patch_size
        self.register_buffer("order", order.long())
        shape = (self.num_patches, config.patch_size, config.width)
        self.into = nn.Parameter(torch.randn(shape) * config.patch_size**-0.5)
        self.out = nn.Parameter(torch.randn(self.num_patches, config.width, config.patch_size) * config.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(self.num_patches * config.patch_size))
        self.position = nn.Parameter(torch.randn(self.num_patches, config.width) * 0.02)

    def encode(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b k w"]:
        return torch.einsum("bkp,kpw->bkw", self.cut(values), self.into) + self.position

    def cut(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b k p"]:
        """The last patch is filled up with zeros, the mean of a z-scored response."""
        if values.shape[-1] != self.num_sites:
            raise UserError(
                f"response: expected {self.num_sites} sites, got {values.shape[-1]}. "
                "Was it made with another mask? Prepare it with the mask of the training data."
            )
        padded = F.pad(values[:, self.order], (0, self.num_patches * self.patch_size - self.num_sites))
        return padded.unflatten(1, (self.num_patches, self.patch_size))

    def decode(self, patches: Float[Tensor, "b k w"]) -> Float[Tensor, "b v"]:
        ordered = torch.einsum("bkw,kwp->bkp", patches, self.out).flatten(1) + self.bias
        values = torch.empty(len(patches), self.num_sites, dtype=ordered.dtype, device=ordered.device)
        values[:, self.order] = ordered[:, : self.num_sites]
        return values


def context(config: BrainTokenizerConfig) -> nn.Module:
    """A small pre-norm transformer over the patches of one response."""
    blocks = [ContextBlock(config.width, config.heads) for _ in range(config.depth)]
    return nn.Sequential(*blocks, nn.LayerNorm(config.width)) if blocks else nn.Identity()


class ContextBlock(nn.Module):
    """Each patch looks at all patches, then thinks for itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b k w"]) -> Float[Tensor, "b k w"]:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(attention(q, k, v, causal=False).transpose(1, 2).flatten(2))
        return x + self.mlp(x)
