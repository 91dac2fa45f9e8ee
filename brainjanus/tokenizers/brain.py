"""Brain tokenizer: one response (V sites) in, K codes out, and back.

An encoder makes a latent of each patch of sites, a quantizer makes codes of the latents, a decoder makes a response of
the codes. Encoders: `patch` (patch.py, the default), over the cortical order; `paper` (conv.py), the published one,
over the storage order; or one that a user adds (coder.py), over the cortical order. Subjects may have different numbers
of sites; codebook and transformers (or convolutions) are shared by all.
Source: the Unified Brain Tokenizer of BrainJanus (arXiv 2606.30319). Differs: see the two encoders.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.coder import ENCODERS, Coder
from brainjanus.tokenizers.conv import ConvCoder, PaperConfig
from brainjanus.tokenizers.patch import Form, PatchCoder, PatchConfig
from brainjanus.tokenizers.quantizer import Quantized, QuantizerConfig, make_quantizer
from brainjanus.tokenizers.sites import Sites


@dataclass(frozen=True)
class BrainTokenizerConfig:
    """encoder: patch or paper, each with its own settings, or one that was added. patch_size: sites of a latent."""

    encoder: str = "patch"
    patch_size: int = 32
    patch: PatchConfig = field(default_factory=PatchConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig(similarity="euclidean", dim=3))

    def __post_init__(self) -> None:
        problems = []
        if unknown := ENCODERS.problem(self.encoder):
            problems.append(unknown)
        if self.patch_size < 1:
            problems.append(f"patch_size must be at least 1, got {self.patch_size}")
        if self.encoder == "paper" and self.patch_size != self.paper.patch_size:
            problems.append(
                f"patch_size must be {self.paper.patch_size}, as the {len(self.paper.multipliers)} levels of the paper "
                f"encoder make it, got {self.patch_size}"
            )
        dim = self.quantizer.dim
        if self.encoder == "patch" and form_of(self.quantizer).constant and dim < 2:
            problems.append(f"quantizer.dim must be at least 2 with cosine similarity, blind to lengths, got {dim}")
        if problems:
            raise UserError("brain tokenizer config: " + "; ".join(problems) + ". Correct the config.")


def published() -> BrainTokenizerConfig:
    """The tokenizer of BrainJanus as published (table 6). The weight of its entropy loss is not; MAGVIT-2's is used.

    The published commitment of 0.25 weighs a mean over the 32 numbers of a latent; ours weighs their sum.
    """
    quantizer = QuantizerConfig(num_codes=128, dim=32, commitment=0.25 / 32, entropy=0.1)
    return BrainTokenizerConfig(encoder="paper", patch_size=64, quantizer=quantizer)


def form_of(config: QuantizerConfig) -> Form:
    """What the patch encoder makes of its axes for a quantizer. The units are those of the standard normal distribution
    that suit its bounds; distances need none."""
    if config.kind == "fsq":
        return Form(each=True, units=1.5, constant=False)
    if (config.kind, config.similarity) == ("vq", "cosine"):
        return Form(each=False, units=2.0, constant=True)
    return Form(each=False, units=1.0, constant=False)


class BrainReconstruction(NamedTuple):
    values: Float[Tensor, "b v"]
    quantized: Quantized
    latents: Float[Tensor, "b k d"]
    solved: Float[Tensor, "b k d"]  # the latents without what training has added; of `paper`, the same


# B batch, V sites, K codes per response, D quantizer's dimension, N codebook entries
class BrainTokenizer(nn.Module):
    """Encode and decode responses of any of its subjects.

    orders: subject -> permutation [V], the cortical order of its BrainSpace. The paper encoder keeps the storage order.
    A latent has one code, or one a stage with a residual quantizer, stages behind each other.
    """

    def __init__(self, config: BrainTokenizerConfig, orders: Mapping[str, Int[Tensor, "v"]]):
        super().__init__()
        self.config = config
        if config.encoder == "paper":
            orders = {subject: torch.arange(len(order)) for subject, order in orders.items()}
        sites = {subject: Sites(order, config.patch_size) for subject, order in orders.items()}
        self.sites = nn.ModuleDict({f"brain:{subject}": s for subject, s in sites.items()})
        dim = config.quantizer.dim
        self.coder: Coder
        if config.encoder in ENCODERS:
            self.coder = ENCODERS.make(config.encoder, dim, sites)
        elif config.encoder == "paper":
            self.coder = ConvCoder(config.paper, dim)
        else:
            self.coder = PatchCoder(config.patch, dim, sites, constant=form_of(config.quantizer).constant)
        self.quantizer = make_quantizer(config.quantizer)

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("brain:") for name in self.sites)

    def num_patches(self, subject: str) -> int:
        """How many latents one response of this subject becomes."""
        return self.sites_of(subject).num_patches

    def num_codes(self, subject: str) -> int:
        """K: how many codes one response of this subject becomes."""
        return self.num_patches(subject) * self.config.quantizer.stages

    def num_sites(self, subject: str) -> int:
        """V: how many sites this subject has."""
        return self.sites_of(subject).num_sites

    def bits(self, subject: str) -> float:
        """How much the codes of one response can tell: K log2 of the codes that each may be."""
        return self.num_codes(subject) * math.log2(self.config.quantizer.num_codes)

    def site_patch(self, subject: str) -> Int[Tensor, "v"]:
        """Which patch each site belongs to, in the subject's own order of sites."""
        return self.sites_of(subject).patch_of()

    def token_axes(self, subject: str) -> Float[Tensor, "k d v"] | None:
        """What each token reads before training: unit vectors over the sites, in the subject's own order of sites.

        Zero where a token has no axis left. None for other encoders than `patch`, of which no axes are known.
        """
        sites = self.sites_of(subject)
        if not isinstance(self.coder, PatchCoder):
            return None
        patch_map = self.coder.map_of(subject)
        if patch_map.local:
            own = torch.eye(sites.num_patches, device=patch_map.turn.device)
            axes = torch.einsum("kdp,kj->kdjp", patch_map.turn, own).flatten(0, 1)
        else:
            axes = (patch_map.turn.flatten(0, 1) @ patch_map.principal).unflatten(1, (sites.num_patches, -1))
        return F.normalize(sites.join(axes), dim=-1).unflatten(0, (sites.num_patches, -1))

    def patches(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b k p"]:
        """The responses themselves, cut into the patches that codes stand for."""
        return self.sites_of(subject).cut(values)

    def latents(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b k d"]:
        """What the quantizer sees, one latent a patch."""
        return self.quantizer.prepare(self.coder.encode(self.patches(values, subject), subject))

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
        """The expected response under one distribution over codes per place: the expected codebook vectors, decoded."""
        return self.decode_vectors(probabilities @ self.quantizer.codebook, subject)

    def decode_vectors(self, vectors: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b v"]:
        """Codebook vectors, or means of them, as a response. Those of all stages of a latent add up."""
        return self.decode_latents(vectors.unflatten(1, (-1, self.config.quantizer.stages)).sum(dim=2), subject)

    def decode_latents(self, latents: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b v"]:
        """Quantized latents, one a patch, as a response."""
        return self.sites_of(subject).join(self.coder.decode(latents, subject))

    def forward(self, values: Float[Tensor, "b v"], subject: str) -> BrainReconstruction:
        """Encode, quantize, decode, with gradients."""
        if not isinstance(self.coder, PatchCoder):
            latents = self.latents(values, subject)
            quantized = self.quantizer(latents)
            return BrainReconstruction(self.decode_latents(quantized.values, subject), quantized, latents, latents)
        patches = self.patches(values, subject)
        solved = self.coder.solved(patches, subject)
        latents = self.quantizer.prepare(self.coder.corrected(solved, patches, subject))
        quantized = self.quantizer(latents)
        # what this encoder reads is solved for: gradients that pass the quantizer would only lead it astray
        decoded = self.decode_latents(quantized.values.detach(), subject)
        return BrainReconstruction(decoded, quantized, latents, self.quantizer.prepare(solved))

    @torch.no_grad()
    def solve(
        self, subject: str, means: Float[Tensor, "n v"], residuals: Float[Tensor, "t v"], noise: float = 0.0
    ) -> None:
        """Solve for the axes that a subject's tokens read and write; what is trained is left as it is.

        means: mean response to each training stimulus. residuals: what differs from it in each trial of a repeated
        stimulus. noise: how many times the residuals' covariance is deducted from that of the means.
        """
        cut = [self.patches(x, subject).flatten(1).numpy() for x in (means, residuals)]
        if isinstance(self.coder, PatchCoder):
            self.coder.map_of(subject).load(cut[0], cut[1], noise, form_of(self.config.quantizer))
        else:
            self.coder.solve(subject, cut[0], cut[1], noise)

    def flops(self, subject: str) -> int:
        """Floating-point operations of encoding and decoding one response, without the search for the nearest code."""
        return self.coder.flops(self.num_patches(subject), self.config.patch_size)

    def of_subject(self, subject: str) -> nn.Module:
        """The weights that belong to this subject alone: all that a new subject needs."""
        self.sites_of(subject)
        return self.coder.of_subject(subject)

    def sites_of(self, subject: str) -> Sites:
        if subject not in self.subjects:
            raise UserError(
                f"brain tokenizer: expected one of the subjects it was trained on ({', '.join(self.subjects)}), got "
                f"'{subject}'. Train a tokenizer on a dataset that has this subject."
            )
        sites = self.sites[f"brain:{subject}"]
        assert isinstance(sites, Sites)
        return sites
