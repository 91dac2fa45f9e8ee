"""Vector quantizer: continuous latents in, the nearest of N codebook vectors out.

Source: van den Oord et al. 2017 (VQ-VAE), with the codebook kept as an exponential moving average (their appendix
A.1), cosine similarity (Yu et al. 2022, ViT-VQGAN) and dead codes re-drawn from the batch (Zeghidour et al. 2021).
Differs: a code is dead by its share of the uniform usage, so that the threshold does not depend on the batch size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError


@dataclass(frozen=True)
class QuantizerConfig:
    """num_codes: size N of the codebook. dim: length of a codebook vector. decay: of the moving averages.

    commitment: weight of the pull of latents to their code. dead_below: a code used less than this share of the
    uniform usage 1/N is drawn anew from the batch.
    """

    num_codes: int = 256
    dim: int = 32
    decay: float = 0.97
    commitment: float = 0.25
    dead_below: float = 0.03

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1, got {v}" for name, v in vars(self).items() if type(v) is int and v < 1]
        if not 0 < self.decay < 1:
            problems.append(f"decay must lie between 0 and 1, got {self.decay}")
        if problems:
            raise UserError("quantizer config: " + "; ".join(problems) + ". Correct the config.")


class Quantized(NamedTuple):
    values: Float[Tensor, "*b d"]  # the codebook vectors; gradients pass straight through to the latents
    codes: Int[Tensor, "*b"]  # in [0, N)
    loss: Float[Tensor, ""]  # commitment


class Quantizer(nn.Module):
    """A codebook of unit vectors that follows its latents."""

    codebook: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        directions = torch.randn(config.num_codes, config.dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("codebook", F.normalize(directions, dim=-1))
        self.register_buffer("usage", torch.full((config.num_codes,), 1 / config.num_codes))
        self.register_buffer("sums", self.codebook / config.num_codes)

    def forward(self, latents: Float[Tensor, "*b d"]) -> Quantized:
        """Nearest codes of latents (any length; only their direction counts)."""
        latents = F.normalize(latents.float(), dim=-1)
        codes = (latents.detach() @ self.codebook.T).argmax(dim=-1)
        values = self.codebook[codes]
        commitment = self.config.commitment * F.mse_loss(latents, values) * self.config.dim
        return Quantized(latents + (values - latents).detach(), codes, commitment)

    @torch.no_grad()
    def update(self, latents: Float[Tensor, "*b d"], codes: Int[Tensor, "*b"], generator: torch.Generator) -> None:
        """Move the codebook to the latents of this batch and re-draw dead codes. Call once per training step."""
        latents = F.normalize(latents.detach().float(), dim=-1).flatten(0, -2)
        codes = codes.flatten()
        counts = torch.bincount(codes, minlength=self.config.num_codes).to(latents.dtype)
        totals = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        self.usage.lerp_(counts / len(codes), 1 - self.config.decay)
        self.sums.lerp_(totals / len(codes), 1 - self.config.decay)
        dead = self.usage < self.config.dead_below / self.config.num_codes
        drawn = torch.randint(len(latents), (int(dead.sum()),), generator=generator, device=generator.device)
        self.usage[dead] = 1 / self.config.num_codes
        self.sums[dead] = latents[drawn.to(latents.device)] / self.config.num_codes
        self.codebook.copy_(F.normalize(self.sums, dim=-1))


def perplexity(codes: Int[Tensor, "*b"], num_codes: int) -> float:
    """exp(entropy) of code usage: the number of codes that would be used if all were used equally."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).float() / codes.numel()
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))
