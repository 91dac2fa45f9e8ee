"""Muon: momentum, made orthogonal, as the update of a matrix.

Gradients enter; matrices are moved. Source: Jordan et al. 2024; Liu et al. 2025 (the step scaled to that of AdamW).
The update is that of `torch.optim.Muon` with adjust_lr_fn="match_rms_adamw". Differs: four iterations that do what its
five do (Amsel et al. 2025, arXiv 2505.16932); matrices of one shape are made orthogonal together, in float32 where the
device has no fast products in bfloat16, and there on the Gram matrix if that is much smaller.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# a, b, c of x -> a x + b x^3 + c x^5 in each iteration. Those of Jordan et al. bring singular values from .003 on, of a
# matrix of Frobenius norm one, to .68 to 1.15; the four below (Polar Express for .003: each the best that those before
# it have left, with a margin of 1 %) bring them to .78 to 1.20.
ITERATIONS = (
    (8.3008, -24.0380, 17.4664),
    (4.0034, -2.9228, 0.5419),
    (3.4709, -2.5494, 0.5002),
    (2.4901, -1.8343, 0.4368),
)
MARGIN = 1.01  # that no singular value is rounded to more than one
EPS = 1e-7
WIDE = 1.5  # columns a row, from which iterations on the Gram matrix are fewer operations
TOGETHER = 1 << 24  # numbers of the matrices that are made orthogonal at once


class Muon(torch.optim.Optimizer):
    """One momentum for each number, `momentum_buffer`, with Nesterov's correction; decay as in AdamW.

    Parameters without a gradient stay as they are. One that is distributed (DTensor) is gathered to be made orthogonal,
    and each process keeps its own part.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() != 2]
        assert not shapes, f"expected matrices, got shapes {shapes}"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None, "the gradients are there already"
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[(tuple(sorted(p.shape)), p.device)].append(p)
            for (shape, _), parameters in alike.items():
                size = max(1, TOGETHER // (shape[0] * shape[1]))
                for first in range(0, len(parameters), size):
                    self.move(parameters[first : first + size], group)
        return None

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices that have one shape, turned or not."""
        updates = []
        for p in parameters:
            state, grad = self.state[p], p.grad
            assert grad is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
            momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
            update: Any = grad.lerp(momentum, group["momentum"])
            updates.append(wide(update.full_tensor() if is_distributed(update) else update))
        rate = 0.2 * max(parameters[0].shape) ** 0.5 * group["lr"]
        for p, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
            update = update.to(p.dtype) if p.shape == update.shape else update.mT.to(p.dtype)
            if is_distributed(p):
                update = distributed_as(p, update)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def is_distributed(x: Any) -> bool:
    """Whether it is a DTensor; the class would take seconds to import."""
    return hasattr(x, "full_tensor")


def distributed_as(like: Any, whole: Tensor) -> Tensor:
    """This process's part of a tensor that all have."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def wide(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "k l"]:
    """The matrix or its transpose, whichever has no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


# B matrices, N rows of each, M columns, N <= M
def orthogonal(x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """Each matrix with singular values near one, by Newton-Schulz iterations."""
    norm = x.flatten(1).norm(dim=1).clamp_min(EPS)[:, None, None]
    x = (x / (norm * MARGIN)).to(product_dtype(x.device))
    if x.dtype == torch.float32 and x.shape[2] > WIDE * x.shape[1]:
        return through_gram(x)
    for a, b, c in ITERATIONS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def through_gram(x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """The same iterations on G = x x': each multiplies x by a polynomial of G, and so G by its square.

    Half precision would not do: G has the squares of x's singular values.
    """
    gram = x @ x.mT
    total: Tensor | None = None
    for iteration, (a, b, c) in enumerate(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        total = factor if total is None else factor @ total
        if iteration + 1 < len(ITERATIONS):
            gram = gram @ factor @ factor
    assert total is not None
    return total @ x


def product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, where the device has instructions for products in it; a GPU that is not here is taken to have them."""
    fast = True
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    elif device.type == "cuda" and torch.cuda.is_available():  # older ones emulate it, slower than float32
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
