"""What an encoder of the brain tokenizer is: patches of a response enter, a latent for each leaves, and back.

Two are built in (patch.py, conv.py); a user adds others with `add_encoder`, and names them in the config.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.extensions import Added

BUILT_IN = ("patch", "paper")


# B batch, K patches, P sites per patch, D length of a latent
class Coder(nn.Module):
    """The encoder and the decoder around the quantizer, of all subjects."""

    def encode(self, patches: Float[Tensor, "b k p"], subject: str) -> Float[Tensor, "b k d"]:
        """Latents of one response per row; sites in their order, the last patch filled up with zeros."""
        raise NotImplementedError

    def decode(self, vectors: Float[Tensor, "b k d"], subject: str) -> Float[Tensor, "b k p"]:
        """The response that quantized latents stand for."""
        raise NotImplementedError

    def of_subject(self, subject: str) -> nn.Module:
        """The weights that belong to this subject alone: here none."""
        return nn.Identity()

    def flops(self, num_patches: int, patch_size: int) -> int:
        """Floating-point operations of one response forward, two a multiplication with its addition; 0: not counted."""
        return 0

    def solve(
        self, subject: str, means: Float[np.ndarray, "n v"], residuals: Float[np.ndarray, "t v"], noise: float
    ) -> None:
        """What can be solved before training, from mean training responses, in the order of the patches and filled up;
        here nothing. residuals, noise: see `BrainTokenizer.solve`."""


C = TypeVar("C", bound=Callable[..., Coder])
ENCODERS = Added[Callable[..., Coder]]("encoder", BUILT_IN)


def add_encoder(name: str) -> Callable[[C], C]:
    """A decorator that makes a Coder an encoder of this name: `brain_tokenizer.encoder`.

    It is made as coder(dim, sites, **settings): the length of a latent, the Sites of each subject, along the cortical
    order, and the settings behind its name ("NAME:rank=4"). It must be made alike each time: weights are put back.
    """
    return ENCODERS.adding(name)  # type: ignore[return-value]
