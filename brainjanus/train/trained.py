"""What is trained: all of a model, the brain's parts with LoRA in the decoder, or the brain's parts alone.

A model enters and is made ready in place: what stays as it is has no gradient, no moments, and no copy in a saved
state. `release` turns it into a plain model again, of the same parameters as before, in the same numbers of bits.
Differs from masked gradients: rows of a table that are trained are a parameter of their own, so that neither decay nor
moments nor a dense gradient of 100,000 rows touch the others.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brainjanus.model.lora import LoraConfig, add_lora, is_lora, merge_lora
from brainjanus.model.omni import OmniModel

Trained = Literal["full", "lora", "brain"]


def prepare(
    model: OmniModel, trained: Trained, lora: LoraConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> None:
    """`adapt`, and hold each parameter in what it needs: what is trained in float32, as well as small frozen ones.

    dtype: what is computed in; frozen matrices are held in it where not one bit is lost, which halves a base that was
    published in bfloat16.
    """
    adapt(model, trained, lora, seed)
    for buffer in model.buffers():
        buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data
    for name, parameter in model.named_parameters():
        half = is_frozen_matrix(name, parameter) and not loses(parameter.data, dtype)
        parameter.data = parameter.data.to(dtype if half else torch.float32)


def adapt(model: OmniModel, trained: Trained, lora: LoraConfig, seed: int = 0) -> None:
    """Freeze what stays as it is, in place, and add what is trained beside it. seed: of LoRA's first values."""
    model.requires_grad_(trained == "full")
    if trained == "full":
        return
    if trained == "lora":
        add_lora(model.decoder, lora, seed)
    model.set_submodule("embed_tokens", TrainedRows(model.embed_tokens, brain_rows(model)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_brain(name) or is_lora(name) or name == "embed_tokens.rows")


def is_frozen_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and name.endswith("weight") and not parameter.requires_grad


def release(model: OmniModel, dtype: torch.dtype = torch.float32) -> None:
    """Make it a plain model again, in place: LoRA merged, rows put back, all of it held in `dtype`."""
    merge_lora(model.decoder, dtype)
    table = model.get_submodule("embed_tokens")
    if isinstance(table, TrainedRows):
        model.set_submodule("embed_tokens", table.merged(dtype))
    model.to(dtype)


def is_brain(name: str) -> bool:
    """Whether a parameter is the brain's (what reads, places, aligns, points at and predicts its codes), or that of
    features which Janus does not know, and so as new as the brain."""
    new_features = ".features:" in name and ".features:janus" not in name
    return ".brain" in name or new_features  # heads.brain.weight, places.brain:subj01


def brain_rows(model: OmniModel) -> list[int]:
    """Control tokens that are the brain's: those of the subjects, and the one that hidden codes show."""
    subjects = [f"brain:{subject}" for subject in model.vocabulary.subjects]
    return [model.vocabulary.control(name) for name in ("hidden", *subjects)]


def loses(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether values change if they are held in `dtype`."""
    return not torch.equal(values.to(dtype).to(values.dtype), values)


# N rows of the table, M of which are trained, D width
class TrainedRows(nn.Module):
    """A frozen table of embeddings, some rows of which are trained."""

    place: Tensor
    weight: Tensor

    def __init__(self, table: nn.Embedding, rows: Sequence[int]):
        super().__init__()
        self.weight = table.weight
        index = torch.tensor(rows, device=table.weight.device)
        self.rows = nn.Parameter(table.weight.detach()[index].float())
        place = torch.full((table.num_embeddings,), -1, device=index.device)
        place[index] = torch.arange(len(rows), device=index.device)
        self.register_buffer("place", place, persistent=False)

    def forward(self, tokens: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        place = self.place[tokens]
        frozen = F.embedding(tokens, self.weight).to(self.rows.dtype)
        return torch.where((place >= 0)[..., None], F.embedding(place.clamp_min(0), self.rows), frozen)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Embedding:
        """One plain table, held in `dtype`."""
        count, width = self.weight.shape
        table = nn.Embedding(count, width, device="meta")
        weight: Tensor = self.weight.detach().to(dtype, copy=True)
        weight[self.place >= 0] = self.rows[self.place[self.place >= 0]].to(dtype)
        table.weight = nn.Parameter(weight, requires_grad=False)
        return table


def recompute(layers: nn.ModuleList) -> None:
    """Keep only what enters each layer for the backward pass, and compute the rest again there (Chen et al. 2016).

    A third more time; the gradients are the same: what dropout takes is the same the second time.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def keep(layers: nn.ModuleList) -> None:
    """Undo `recompute`."""
    for layer in layers:
        layer.__dict__.pop("forward", None)
