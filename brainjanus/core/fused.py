"""Fused: the steps between a transformer's matrix products, differentiable, with fewer trips to memory on a CPU.

Values and gradients are those of the plain expressions up to rounding; less is kept for the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


# B leading dimensions, L positions, H heads, E width of a head, I inputs, O outputs, D width
def linears(x: Float[Tensor, "*b i"], layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """What several layers make of the same input; of plain ones without a bias, its gradient is summed by the products.

    Elsewhere (LoRA, or nothing is to be differentiated) the layers are called.
    """
    if not torch.is_grad_enabled() or any(type(layer) is not nn.Linear or layer.bias is not None for layer in layers):
        x = x.to(computed_in(x))  # once for all of them
        return [layer(x) for layer in layers]
    return Linears.apply(x, *(layer.weight for layer in layers))


def swiglu(gate: Float[Tensor, "*b d"], up: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """silu(gate) * up; neither factor is kept."""
    return SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate) * up


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, "d"], eps: float) -> Float[Tensor, "*b d"]:
    """x / sqrt(mean(x^2) + eps) * weight. torch has one kernel for it on a GPU, and six steps on a CPU."""
    weight = weight.float() if x.dtype == torch.float32 else weight  # sharded layers are gathered in half precision
    if x.device.type != "cpu" or not torch.is_grad_enabled() or x.dtype != weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return RMSNorm.apply(x, weight, eps)


def rotate(x: Float[Tensor, "b l h e"], rotation: tuple[Tensor, Tensor]) -> Float[Tensor, "b l h e"]:
    """x cos + (x, its halves exchanged) sin, of which the first half is negative."""
    return Rotation.apply(x, *rotation) if torch.is_grad_enabled() else turn(x, *rotation)


def computed_in(x: Tensor) -> torch.dtype:
    """What products of x are computed in here: what autocast says, or its own dtype."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def nats(logits: Float[Tensor, "*b n"], codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """-log p of each code. Classes in the middle, as torch wants them for more than one dimension, take a GPU several
    times as long."""
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view_as(codes)


class Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        dtype = computed_in(x)
        with torch.autocast(x.device.type, enabled=False):
            entered, weights = x.to(dtype), tuple(weight.to(dtype) for weight in weights)
            ctx.save_for_backward(entered if any(ctx.needs_input_grad[1:]) else None, *weights)
            return tuple(F.linear(entered, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = [grad.flatten(0, -2) for grad in grads]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = rows[0] @ weights[0]
            for grad, weight in zip(rows[1:], weights[1:], strict=True):
                torch.addmm(of_x, grad, weight, out=of_x)
            of_x = of_x.view(*grads[0].shape[:-1], -1)
        needed = ctx.needs_input_grad[1:]
        return of_x, *(g.mT @ x.flatten(0, -2) if need else None for g, need in zip(rows, needed, strict=True))


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        both = (grad * x).flatten(0, -2)
        of_weight = scale.flatten() @ both
        pull = (both @ weight).view_as(scale) * scale.pow(3) / -x.shape[-1]
        return (grad * weight).mul_(scale).addcmul_(x, pull), of_weight, None


class Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), sin)
