"""The patch encoder: a response enters, a few numbers for each patch of the cortical order leave, and back.

What a token reads and writes is solved (axes.py): axes that belong to its patch, and together to the whole response.
Training adds to this. Behind the quantizer a small transformer over the patches of one response, whose output each
patch reads through a map of its own, corrects the response that the axes alone give back: codes of one response share
the work. Before the quantizer another one corrects the latents.
The transformers are shared by all subjects; axes and maps belong to one subject each.
Source: the Unified Brain Tokenizer of BrainJanus (arXiv 2606.30319). Differs: patches along the cortical order in place
of 1-D convolutions over the storage order, context between all patches, and an encoder that is solved for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.attention import attention
from brainjanus.core.errors import UserError
from brainjanus.tokenizers.axes import cortical_axes, own_axes
from brainjanus.tokenizers.coder import Coder
from brainjanus.tokenizers.sites import Sites


class Form(NamedTuple):
    """How a quantizer wants its latents. each: every axis in units of its own spread, not all of a token in one.

    units: of that spread. constant: see PatchCoder.
    """

    each: bool
    units: float
    constant: bool


@dataclass(frozen=True)
class PatchConfig:
    """width, depth, heads: of each of the two transformers. reach: what a token reads, "cortex" or its own "patch".

    rank: the most axes that all tokens of a response share. depth 0 with reach "patch" is bare patches, without any
    context.
    """

    width: int = 128
    depth: int = 2
    heads: int = 4
    reach: Literal["cortex", "patch"] = "cortex"
    rank: int = 768

    def __post_init__(self) -> None:
        problems = []
        if self.depth < 0 or self.width < 1 or self.heads < 1 or self.width % self.heads:
            problems.append(
                f"expected depth >= 0 and a width divisible by heads, got depth {self.depth}, width {self.width}, "
                f"heads {self.heads}"
            )
        if self.rank < 1:
            problems.append(f"rank must be at least 1, got {self.rank}")
        if self.reach not in ("cortex", "patch"):
            problems.append(f"reach must be cortex or patch, got '{self.reach}'")
        if problems:
            raise UserError("patch encoder config: " + "; ".join(problems) + ". Correct the config.")


# B batch, V sites, K patches, P sites per patch, W width, D quantizer's dimension, C axes
class PatchCoder(Coder):
    """The encoder and the decoder around the quantizer. sites: of each subject.

    constant: the last number of each latent is 1 before training, so that a quantizer that sees directions alone sees
    lengths too.
    """

    offset: Tensor

    def __init__(self, config: PatchConfig, dim: int, sites: Mapping[str, Sites], *, constant: bool = False):
        super().__init__()
        self.config, self.constant = config, constant
        # the prefix keeps a subject called 'train' or 'items' apart from what a module itself has
        self.maps = nn.ModuleDict({f"brain:{subject}": PatchMap(config, dim, s) for subject, s in sites.items()})
        self.from_solved = nn.Linear(dim, config.width)
        self.encoder = context(config)
        self.to_latent = nn.Linear(config.width, dim)
        self.from_latent = nn.Linear(dim, config.width)
        self.decoder = context(config)
        nn.init.zeros_(self.to_latent.weight)
        nn.init.zeros_(self.to_latent.bias)
        offset = torch.zeros(dim)
        offset[-1] = float(constant)
        self.register_buffer("offset", offset, persistent=False)

    def encode(self, patches: Float[Tensor, "b k p"], subject: str) -> Float[Tensor, "b k d"]:
        return self.corrected(self.solved(patches, subject), patches, subject)

    def corrected(
        self, solved: Float[Tensor, "b k d"], patches: Float[Tensor, "b k p"], subject: str
    ) -> Float[Tensor, "b k d"]:
        """Latents with what training has added to the solved ones."""
        patch_map = self.map_of(subject)
        states = torch.einsum("bkp,kpw->bkw", patches, patch_map.into) + self.from_solved(solved) + patch_map.position
        return solved + self.to_latent(self.encoder(states))

    def solved(self, patches: Float[Tensor, "b k p"], subject: str) -> Float[Tensor, "b k d"]:
        """The latents before training."""
        return self.map_of(subject).read(patches) + self.offset

    def decode(self, vectors: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b k p"]:
        patch_map = self.map_of(subject)
        states = self.decoder(self.from_latent(vectors) + patch_map.position)
        return patch_map.write(vectors) + torch.einsum("bkw,kwp->bkp", states, patch_map.out) + patch_map.bias

    def of_subject(self, subject: str) -> nn.Module:
        """The weights that belong to this subject alone."""
        return self.map_of(subject)

    def map_of(self, subject: str) -> "PatchMap":
        patch_map = self.maps[f"brain:{subject}"]
        assert isinstance(patch_map, PatchMap)
        return patch_map

    def flops(self, num_patches: int, patch_size: int) -> int:
        """Floating-point operations of one response forward, two a multiplication with its addition."""
        width, dim, k = self.to_latent.in_features, self.to_latent.out_features, num_patches
        rank = min(self.config.rank, k * dim)
        axes = k * patch_size * dim if self.config.reach == "patch" else rank * k * (patch_size + dim)
        ends = k * (2 * patch_size * width + 3 * width * dim)
        blocks = sum(1 for module in self.modules() if isinstance(module, ContextBlock))
        return 2 * (2 * axes + ends) + blocks * 2 * (k * 12 * width**2 + 2 * k**2 * width)


class PatchMap(nn.Module):
    """What belongs to one subject: axes of its tokens, and linear maps from and to patches, one per position."""

    principal: Tensor
    turn: Tensor
    back: Tensor
    scale: Tensor

    def __init__(self, config: PatchConfig, dim: int, sites: Sites):
        super().__init__()
        k, p, width = sites.num_patches, sites.patch_size, config.width
        self.local = config.reach == "patch"
        rank = min(config.rank, k * dim)
        self.register_buffer("principal", torch.zeros(0 if self.local else rank, k * p))
        self.register_buffer("turn", torch.zeros(k, dim, p if self.local else rank))
        self.register_buffer("back", torch.zeros_like(self.turn))
        self.register_buffer("scale", torch.ones(k, dim))
        self.into = nn.Parameter(torch.randn(k, p, width) * p**-0.5)
        self.out = nn.Parameter(torch.zeros(k, width, p))
        self.bias = nn.Parameter(torch.zeros(k, p))
        self.position = nn.Parameter(torch.randn(k, width) * 0.02)

    def read(self, patches: Float[Tensor, "b k p"]) -> Float[Tensor, "b k d"]:
        """The response along the axes of each token, in units of their scale."""
        with torch.autocast(patches.device.type, enabled=False):  # axes are exact, and large to cast at each step
            if self.local:
                along = torch.einsum("bkp,kdp->bkd", patches.float(), self.turn)
            else:
                along = patches.float().flatten(1) @ self.principal.T @ self.turn.flatten(0, 1).T
            return along.reshape(-1, *self.scale.shape) / self.scale

    def write(self, latents: Float[Tensor, "b k d"]) -> Float[Tensor, "b k p"]:
        """The response that is to be expected of these latents, linearly."""
        with torch.autocast(latents.device.type, enabled=False):
            along = latents.float() * self.scale
            if self.local:
                return torch.einsum("bkd,kdp->bkp", along, self.back)
            written = along.flatten(1) @ self.back.flatten(0, 1) @ self.principal
            return written.unflatten(1, (len(self.scale), -1))

    @torch.no_grad()
    def load(
        self, means: Float[np.ndarray, "n v"], residuals: Float[np.ndarray, "t v"], noise: float, form: Form
    ) -> None:
        """Solve for the axes; see axes.py. means and residuals in cortical order, filled up."""
        per_patch = self.scale.shape[1] - form.constant
        patch_size = self.into.shape[1]
        for buffer in (self.principal, self.turn, self.back):
            buffer.zero_()
        if self.local:
            own = own_axes(means, patch_size, per_patch)
            self.turn[:, :per_patch] = self.back[:, :per_patch] = torch.from_numpy(own)
            spread = np.einsum("nkp,krp->nkr", means.reshape(len(means), -1, patch_size), own).std(axis=0)
        else:
            rank = len(self.principal)
            axes = cortical_axes(means, residuals, noise, patch_size=patch_size, per_patch=per_patch, rank=rank)
            self.principal[: len(axes.principal)] = torch.from_numpy(axes.principal)
            self.turn[:, :per_patch, : len(axes.principal)] = torch.from_numpy(axes.turn)
            self.back[:, :per_patch, : len(axes.principal)] = torch.from_numpy(axes.back)
            spread = axes.spread
        unit = spread if form.each else np.sqrt((spread**2).mean(axis=1, keepdims=True))
        unit = np.broadcast_to(np.maximum(unit, 1e-6) * form.units, spread.shape)
        self.scale[:, :per_patch] = torch.from_numpy(unit.astype(np.float32))


def context(config: PatchConfig) -> nn.Module:
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
