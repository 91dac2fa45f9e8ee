"""Sites: one subject's responses, cut into the patches that codes stand for, and put together again.

The order is part of the weights: a tokenizer that is loaded elsewhere cuts as it was trained to.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from brainjanus.core.errors import UserError


# B batch, V sites, K patches, P sites per patch
class Sites(nn.Module):
    """order: a permutation [V]; `values[order]` is what patches are cut from."""

    order: Tensor

    def __init__(self, order: Int[Tensor, "v"], patch_size: int):
        super().__init__()
        self.num_sites = len(order)
        self.num_patches = -(-len(order) // patch_size)
        self.patch_size = patch_size
        self.register_buffer("order", order.long())

    def cut(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b k p"]:
        """The last patch is filled up with zeros, the mean of a z-scored response."""
        if values.shape[-1] != self.num_sites:
            raise UserError(
                f"response: expected {self.num_sites} sites, got {values.shape[-1]}. "
                "Was it made with another mask? Prepare it with the mask of the training data."
            )
        padded = F.pad(values[:, self.order], (0, self.num_patches * self.patch_size - self.num_sites))
        return padded.unflatten(1, (self.num_patches, self.patch_size))

    def join(self, patches: Float[Tensor, "b k p"]) -> Float[Tensor, "b v"]:
        """The inverse of `cut`: what was filled up is left out."""
        values = torch.empty(len(patches), self.num_sites, dtype=patches.dtype, device=patches.device)
        values[:, self.order] = patches.flatten(1)[:, : self.num_sites]
        return values

    def patch_of(self) -> Int[Tensor, "v"]:
        """Which patch each site belongs to, in the subject's own order of sites."""
        patch = torch.empty_like(self.order)
        patch[self.order] = torch.arange(self.num_sites, device=patch.device) // self.patch_size
        return patch
