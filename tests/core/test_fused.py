"""Fused steps against the plain expressions, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brainjanus.core.fused import linears, rms_norm, rotate, swiglu


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def compare(ours, theirs, inputs):
    """Same values, same gradients of a loss that weighs each output in its own way."""
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one, theirs_one)
    grads = [
        torch.autograd.grad(sum((o * torch.arange(o.numel()).view_as(o)).sum() for o in outs), inputs)
        for outs in (ours, theirs)
    ]
    torch.testing.assert_close(*grads)


def test_swiglu(draw):
    gate, up = draw(2, 3, 5), draw(2, 3, 5)
    compare([swiglu(gate, up)], [F.silu(gate) * up], [gate, up])


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)])
def test_rms_norm(draw, shape):
    x, weight = draw(*shape), draw(6)
    compare([rms_norm(x, weight, 1e-2)], [F.rms_norm(x, (6,), weight, 1e-2)], [x, weight])


def test_rotation(draw):
    x, cos, sin = draw(2, 3, 2, 4), draw(3, 1, 4).detach(), draw(3, 1, 2).detach()
    sin = torch.cat([-sin, sin], dim=-1)
    compare([rotate(x, (cos, sin))], [x * cos + torch.cat([x[..., 2:], x[..., :2]], dim=-1) * sin], [x])


def layers_of(outputs, bias=False):
    torch.manual_seed(0)
    return [nn.Linear(4, o, bias=bias, dtype=torch.float64) for o in outputs]


def test_layers_of_one_input(draw):
    x, layers = draw(2, 3, 4), layers_of([5, 2, 2])
    compare(linears(x, layers), [layer(x) for layer in layers], [x, *(layer.weight for layer in layers)])


def test_a_frozen_layer_has_no_gradient(draw):
    x, (one, other) = draw(3, 4), layers_of([5, 2])
    one.requires_grad_(False)
    sum(out.sum() for out in linears(x, [one, other])).backward()
    assert one.weight.grad is None
    torch.testing.assert_close(other.weight.grad, x.sum(dim=0).expand(2, -1))
    torch.testing.assert_close(x.grad, (one.weight.sum(dim=0) + other.weight.sum(dim=0)).expand(3, -1))


def test_other_layers_are_called(draw):
    x, layers = draw(3, 4), layers_of([5, 2], bias=True)
    compare(linears(x, layers), [layer(x) for layer in layers], [x])


def test_under_autocast_products_are_in_half_precision():
    x, layers = torch.randn(3, 4, requires_grad=True), [layer.float() for layer in layers_of([5, 2])]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linears(x, layers), [layer(x) for layer in layers]
    assert [out.dtype for out in ours] == [torch.bfloat16] * 2
    compare(ours, theirs, [layer.weight for layer in layers])
    with torch.autocast("cpu", torch.bfloat16):
        sum(out.float().sum() for out in linears(x, layers)).backward()
    assert x.grad.dtype == torch.float32


def test_without_gradients_nothing_is_kept(draw):
    gate, up = draw(2, 5), draw(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up)
        assert rms_norm(gate, up[0], 1e-6).grad_fn is None
