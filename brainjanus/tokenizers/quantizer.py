"""Quantizers: continuous latents in, codes of a codebook and their vectors out. One choice in the config each; a user
adds others with `add_quantizer`.

vq        the codebook vector in the nearest direction. van den Oord et al. 2017 (VQ-VAE), with the codebook kept as an
          exponential moving average (their appendix A.1), cosine similarity (Yu et al. 2022, ViT-VQGAN) and, if wanted,
          an entropy loss (Yu et al. 2023, MAGVIT-2).
residual  several stages, each of which quantizes what the stages before left over. Zeghidour et al. 2021 (SoundStream).
fsq       each number of a latent is rounded to one of a few levels. Mentzer et al. 2023 (finite scalar quantization).

Differs: a code is dead, and drawn anew from the batch (SoundStream), by its share of the uniform usage, so that the
threshold does not depend on the batch size. Under torch.distributed the codebooks are those of one process that sees
the batches of all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.core.extensions import Added
from brainjanus.core.processes import rank, summed, world

KINDS = ("vq", "residual", "fsq")
QUANTIZERS = Added[Callable[..., nn.Module]]("kind", KINDS)
TEMPERATURE = 0.01  # of the soft assignments in the entropy loss, over squared distances; MAGVIT-2's and LlamaGen's
FSQ_MARGIN = 1e-3  # the outermost levels lie this share inside the bound, so that they can be reached (Mentzer et al.)


@dataclass(frozen=True)
class QuantizerConfig:
    """kind: which quantizer: vq, residual, fsq, or one that was added. num_codes: size N of a codebook. dim: length of
    a codebook vector. similarity: of vq; residual goes by Euclidean distance always.

    decay: of the moving averages (vq, residual). commitment: weight of the pull of latents to their code (vq,
    residual). dead_below: a code used less than this share of the uniform usage 1/N is drawn anew from the batch (vq,
    residual). entropy: weight of the loss that makes each assignment certain and all codes used alike (vq). stages: of
    residual, with N codes each. levels: of each of the numbers of a latent (fsq). They follow from num_codes, if left
    out, and dim from them always.
    """

    kind: str = "vq"
    similarity: Literal["cosine", "euclidean"] = "cosine"
    num_codes: int = 256
    dim: int = 32
    decay: float = 0.97
    commitment: float = 0.25
    entropy: float = 0.0
    dead_below: float = 0.03
    stages: int = 1
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1, got {v}" for name, v in vars(self).items() if type(v) is int and v < 1]
        if self.num_codes == 1:
            problems.append("num_codes must be at least 2, got 1, which tells nothing")
        weights = {"commitment": self.commitment, "entropy": self.entropy, "dead_below": self.dead_below}
        problems += [f"{name} must be at least 0, got {v}" for name, v in weights.items() if not v >= 0]
        if not 0 < self.decay < 1:
            problems.append(f"decay must lie between 0 and 1, got {self.decay}")
        if unknown := QUANTIZERS.problem(self.kind):
            problems.append(unknown)
        if self.kind != "residual" and self.stages > 1:
            problems.append(f"stages belong to kind 'residual', got {self.stages} for '{self.kind}'")
        if self.entropy > 0 and (self.kind, self.similarity) != ("vq", "cosine"):
            problems.append(
                f"entropy belongs to kind 'vq' with cosine similarity, got {self.entropy} for '{self.kind}'"
            )
        if self.kind != "fsq" and self.levels:
            problems.append(f"levels belong to kind 'fsq', got {self.levels} for '{self.kind}'")
        if self.kind == "fsq" and self.num_codes > 0:
            levels = self.levels or default_levels(self.num_codes)
            if not levels:
                problems.append(f"num_codes must be a power of two from 4 on, or levels given, got {self.num_codes}")
            elif min(levels) < 3 or math.prod(levels) != self.num_codes:
                problems.append(
                    f"levels must be at least 3 each and multiply to num_codes {self.num_codes}, got {levels}"
                )
            object.__setattr__(self, "levels", levels)
            object.__setattr__(self, "dim", len(levels))
        if problems:
            raise UserError("quantizer config: " + "; ".join(problems) + ". Correct the config.")

    @property
    def num_entries(self) -> int:
        """How many ids there are, over all stages."""
        return self.stages * self.num_codes


def default_levels(num_codes: int) -> tuple[int, ...]:
    """Four levels each, and one with eight if need be, that multiply to a power of two; () for other numbers."""
    bits = num_codes.bit_length() - 1
    return (8,) * (bits % 2) + (4,) * (bits // 2 - bits % 2) if num_codes == 2**bits else ()


class Quantized(NamedTuple):
    values: Float[Tensor, "*b d"]  # what the codes stand for; gradients pass straight through to the latents
    codes: Int[Tensor, "*c"]  # in [0, num_entries), the stages of one latent behind each other
    loss: Float[Tensor, ""]  # commitment and entropy


# B any leading sizes, K latents, D length of a latent, S stages, N codes of a stage
class Quantizer(nn.Module):
    """vq: a codebook of unit vectors that follows its latents."""

    codebook: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        assert config.kind in ("vq", "residual"), f"make_quantizer makes one of kind {config.kind}"
        self.config = config
        self.stages = config.stages
        directions = torch.randn(config.num_entries, config.dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("codebook", F.normalize(directions, dim=-1))
        self.register_buffer("usage", torch.full((config.num_entries,), 1 / config.num_codes))
        self.register_buffer("sums", self.codebook / config.num_codes)

    def prepare(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Latents as they are compared with the codebook: only their direction counts."""
        return F.normalize(latents.float(), dim=-1)

    def forward(self, latents: Float[Tensor, "*b d"]) -> Quantized:
        """Nearest codes of latents, prepared or not."""
        latents = self.prepare(latents)
        with torch.autocast(latents.device.type, enabled=False):  # small differences of large numbers
            codes = (latents.detach() @ self.codebook.T).argmax(dim=-1)
        values = self.codebook[codes]
        loss = self.config.commitment * F.mse_loss(latents, values) * self.config.dim
        if self.config.entropy > 0:
            with torch.autocast(latents.device.type, enabled=False):  # small differences, divided by the temperature
                squared_distances = 2 - 2 * latents @ self.codebook.T.clone()  # update() moves it before gradients pass
            loss = loss + self.config.entropy * entropy_loss(-squared_distances / TEMPERATURE)
        return Quantized(latents + (values - latents).detach(), codes, loss)

    @torch.no_grad()
    def update(self, latents: Float[Tensor, "*b d"], codes: Int[Tensor, "*b"], generator: torch.Generator) -> None:
        """Move the codebook to the latents of this batch and re-draw dead codes. Call once per training step.

        generator: in the same state in all processes.
        """
        self.follow(0, self.prepare(latents.detach()).flatten(0, -2), codes.flatten(), self.config.decay, generator)
        self.codebook.copy_(F.normalize(self.sums, dim=-1))

    def follow(
        self,
        stage: int,
        latents: Float[Tensor, "n d"],
        codes: Int[Tensor, "n"],
        decay: float,
        generator: torch.Generator,
    ) -> None:
        """Moving averages of how often each code of a stage is used (share) and of the latents that fall to it."""
        num_codes = self.config.num_codes
        usage, sums = (moving.unflatten(0, (self.stages, num_codes))[stage] for moving in (self.usage, self.sums))
        counts = summed(torch.bincount(codes, minlength=num_codes))
        totals = summed(torch.zeros_like(sums).index_add_(0, codes, latents))
        usage.lerp_(counts.to(latents.dtype) / counts.sum(), 1 - decay)
        sums.lerp_(totals / counts.sum(), 1 - decay)
        dead = usage < self.config.dead_below / num_codes
        if dead.any():
            usage[dead] = 1 / num_codes
            sums[dead] = drawn(latents, int(dead.sum()), generator) / num_codes


class ResidualQuantizer(Quantizer):
    """residual: a codebook a stage, by Euclidean distance; the vectors of all stages add up to the latent.

    The first update draws each codebook from the batch (SoundStream: k-means) and moves it to the means of what falls
    to its codes; the first forward before it knows nothing.
    """

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.usage.zero_()  # until the first batch

    def prepare(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Latents as they are."""
        return latents.float()

    def forward(self, latents: Float[Tensor, "*b k d"]) -> Quantized:
        """Nearest codes of what each stage is left with."""
        residual = latents = self.prepare(latents)
        loss, codes = latents.new_zeros(()), []
        for stage in range(self.stages):
            nearest = self.nearest(stage, residual.detach())
            values = self.codebook[nearest]
            loss = loss + self.config.commitment * F.mse_loss(residual, values)
            residual = residual - values
            codes.append(nearest)
        values = latents - residual.detach()
        return Quantized(latents + (values - latents).detach(), torch.stack(codes, dim=-1).flatten(-2), loss)

    @torch.no_grad()
    def update(self, latents: Float[Tensor, "*b k d"], codes: Int[Tensor, "*c"], generator: torch.Generator) -> None:
        """Move each stage's codebook to what was left for it, and re-draw its dead codes from that.

        generator: in the same state in all processes.
        """
        num_codes = self.config.num_codes
        first = not self.usage.any()
        residual, staged = self.prepare(latents.detach()).flatten(0, -2), codes.reshape(-1, self.stages).T
        for stage in range(self.stages):
            here = slice(stage * num_codes, (stage + 1) * num_codes)
            if first:
                self.codebook[here] = drawn(residual, num_codes, generator)
            ids = self.nearest(stage, residual) if first else staged[stage]
            left = residual - self.codebook[ids]
            self.follow(stage, residual, ids - here.start, 0.0 if first else self.config.decay, generator)
            self.codebook[here] = self.sums[here] / self.usage[here].clamp_min(1e-12)[:, None]
            residual = left

    def nearest(self, stage: int, residual: Float[Tensor, "*b d"]) -> Int[Tensor, "*b"]:
        start = stage * self.config.num_codes
        return nearest_rows(residual, self.codebook[start : start + self.config.num_codes]) + start


class FixedQuantizer(nn.Module):
    """A codebook that is given and stays as it is. A latent's code is the nearest vector, by Euclidean distance.

    Raises UserError unless the codebook is as large as the config says.
    """

    codebook: Tensor
    stages = 1

    def __init__(self, config: QuantizerConfig, codebook: Float[Tensor, "n d"]):
        super().__init__()
        if codebook.shape != (config.num_codes, config.dim):
            raise UserError(
                f"quantizer '{config.kind}': expected num_codes {len(codebook)} and dim {codebook.shape[1]}, as its "
                f"codebook has them, got {config.num_codes} and {config.dim}. Correct the config."
            )
        self.config = config
        self.register_buffer("codebook", codebook)

    def prepare(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Latents as they are."""
        return latents.float()

    def forward(self, latents: Float[Tensor, "*b d"]) -> Quantized:
        """Nearest codes of latents, which the loss pulls to them."""
        latents = self.prepare(latents)
        codes = nearest_rows(latents.detach(), self.codebook)
        values = self.codebook[codes]
        loss = self.config.commitment * F.mse_loss(latents, values)
        return Quantized(latents + (values - latents).detach(), codes, loss)

    def update(self, latents: Float[Tensor, "*b d"], codes: Int[Tensor, "*b"], generator: torch.Generator) -> None:
        """There is nothing to move."""


class ScalarQuantizer(FixedQuantizer):
    """fsq: nothing is learned; the codebook is the grid of all levels."""

    num_levels: Tensor

    def __init__(self, config: QuantizerConfig):
        num_levels = torch.tensor(config.levels)
        grid = torch.cartesian_prod(*(torch.arange(levels) for levels in config.levels)).reshape(config.num_codes, -1)
        super().__init__(config, grid / (num_levels // 2) - 1)
        self.register_buffer("num_levels", num_levels, persistent=False)

    def prepare(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Each number bounded to its levels, from -1 on; zero stays zero."""
        half = (self.num_levels - 1) * (1 + FSQ_MARGIN) / 2
        offset = 0.5 * (self.num_levels % 2 == 0)  # an even number of levels has one more below zero than above
        bounded = torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset
        return bounded / (self.num_levels // 2)

    def forward(self, latents: Float[Tensor, "*b d"]) -> Quantized:
        """The levels nearest to prepared latents."""
        half = self.num_levels // 2
        levels = ((latents.detach() + 1) * half).round().long().minimum(self.num_levels - 1).clamp_min(0)
        codes = torch.zeros_like(levels[..., 0])
        for number, levels_of in enumerate(self.config.levels):  # the last number counts fastest, as in the codebook
            codes = codes * levels_of + levels[..., number]
        return Quantized(latents + (self.codebook[codes] - latents).detach(), codes, latents.new_zeros(()))


Q = TypeVar("Q", bound=Callable[..., nn.Module])


def add_quantizer(name: str) -> Callable[[Q], Q]:
    """A decorator that makes a module a quantizer of this name: `brain_tokenizer.quantizer.kind`, and of pictures.

    It is made as quantizer(config, **settings), the settings being those behind its name ("NAME:margin=0.1"). Like
    FixedQuantizer, from which it may inherit, it has its `config`, a buffer `codebook` [config.num_codes, config.dim]
    whose rows are what codes stand for, and `prepare`, `forward` and `update`.
    """
    return QUANTIZERS.adding(name)  # type: ignore[return-value]


def make_quantizer(config: QuantizerConfig) -> Any:
    """The quantizer that the config names. Use: quantizer(quantizer.prepare(latents))."""
    if config.kind in QUANTIZERS:
        return QUANTIZERS.make(config.kind, config)
    if config.kind == "fsq":
        return ScalarQuantizer(config)
    euclidean = config.kind == "residual" or config.similarity == "euclidean"  # vq is then one stage of residual
    return ResidualQuantizer(config) if euclidean else Quantizer(config)


def entropy_loss(logits: Float[Tensor, "*b n"]) -> Float[Tensor, ""]:
    """Mean entropy of each soft assignment less the entropy of the mean assignment: low when certain and diverse."""
    logs = logits.flatten(0, -2).log_softmax(dim=-1)
    each = -(logs.exp() * logs).sum(-1).mean()
    mean = logs.exp().mean(0)
    return each + (mean * mean.clamp_min(1e-12).log()).sum()


def nearest_rows(latents: Float[Tensor, "*b d"], codebook: Float[Tensor, "n d"]) -> Int[Tensor, "*b"]:
    """The row of the codebook that is nearest to each latent, by Euclidean distance."""
    with torch.autocast(latents.device.type, enabled=False):  # small differences of large numbers
        return (latents @ codebook.T - codebook.square().sum(-1) / 2).argmax(dim=-1)


def drawn(latents: Float[Tensor, "n d"], count: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Rows drawn from the batches of all processes laid behind each other; every process gets the same."""
    own = rank() % world()
    lengths = torch.zeros(world(), dtype=torch.long, device=latents.device)
    lengths[own] = len(latents)
    lengths = summed(lengths)
    rows = torch.randint(int(lengths.sum()), (count,), generator=generator, device=generator.device).to(latents.device)
    rows = rows - lengths[:own].sum()
    mine = (rows >= 0) & (rows < len(latents))
    return summed(latents[rows.clamp(0, len(latents) - 1)] * mine[:, None])


def perplexity(codes: Int[Tensor, "*b"], num_codes: int) -> float:
    """exp(entropy) of code usage: the number of codes that would be used if all were used equally."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).float() / codes.numel()
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))
