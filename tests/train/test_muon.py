"""Muon against torch's and against its definition written out."""

import os
import socket

import pytest
import torch
from torch import nn

from brainjanus.train import muon as module
from brainjanus.train.muon import Muon, orthogonal, product_dtype
from brainjanus.train.optim import autocast_dtype

SHAPES = [(6, 6), (5, 16), (16, 5), (6, 6), (4, 5)]
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5  # of Jordan et al. 2024, in each iteration
SETTINGS = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9}


def written_out(update, dtype=torch.float32):
    x = update.to(dtype)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm() / module.MARGIN
    for a, b, c in module.ITERATIONS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters, seed):
    for parameter, gradient in zip(parameters, matrices(seed), strict=True):
        parameter.grad = gradient.detach().clone()


@pytest.mark.parametrize("together", [1, 1 << 24])
def test_steps_are_as_written_out(monkeypatch, together):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(module, "TOGETHER", together)
    ours, theirs = matrices(), matrices()
    optimizer = Muon(ours, **SETTINGS)
    momenta = [torch.zeros(shape) for shape in SHAPES]
    for seed in (1, 2, 3):
        give_gradients(ours, seed)
        optimizer.step()
        for parameter, one, momentum in zip(theirs, ours, momenta, strict=True):
            momentum += 0.1 * (one.grad - momentum)
            update = written_out(0.1 * one.grad + 0.9 * momentum, torch.float64).float()
            parameter.data *= 1 - 0.02 * 0.3
            parameter.data -= 0.02 * 0.2 * max(parameter.shape) ** 0.5 * update
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_steps_are_torchs(monkeypatch, fast):
    """Whose products are in bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(module, "ITERATIONS", JORDAN)
    ours, theirs = matrices(), matrices()
    optimizers = [Muon(ours, **SETTINGS), torch.optim.Muon(theirs, **SETTINGS, adjust_lr_fn="match_rms_adamw")]
    for seed in (1, 2):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        for optimizer in optimizers:
            optimizer.step()
    for before, one, other in zip(matrices(), ours, theirs, strict=True):
        moved, wanted = (one - before).detach().flatten(), (other - before).detach().flatten()
        assert torch.cosine_similarity(moved, wanted, dim=0) > 0.998
        assert float(moved.norm()) == pytest.approx(float(wanted.norm()), rel=0.02)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("shape", [(2, 32, 32), (3, 32, 100)])
def test_singular_values_come_close_to_one(monkeypatch, shape):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(x).float())
    assert values.max() < 1.21 and (values > 0.78).float().mean() > 0.95


@pytest.mark.parametrize("fast", [True, False])
def test_a_matrix_of_rank_one_does_not_grow(monkeypatch, fast):
    """Its singular value is one from the start, and may be rounded to more."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 24, 1, generator=generator) @ torch.randn(50, 1, 40, generator=generator)
    assert (torch.linalg.matrix_norm(orthogonal(x).float(), ord=2) < 1.3).all()


def test_no_gradient_no_step():
    parameters = matrices()
    give_gradients(parameters, 1)
    parameters[1].grad = None
    optimizer = Muon(parameters, **SETTINGS)
    optimizer.step()
    moved = [not torch.equal(p, before) for p, before in zip(parameters, matrices(), strict=True)]
    assert moved == [True, False, True, True, True]
    assert sorted(optimizer.state_dict()["state"]) == [0, 2, 3, 4]


def test_a_gradient_of_zero_moves_nothing_but_by_decay():
    (parameter,) = [nn.Parameter(torch.ones(3, 4))]
    parameter.grad = torch.zeros(3, 4)
    Muon([parameter], **SETTINGS).step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 4), 1 - 0.02 * 0.3))


def test_a_state_that_was_saved_goes_on():
    whole, parts = matrices(), matrices()
    once, twice = Muon(whole, **SETTINGS), Muon(parts, **SETTINGS)
    for seed in (1, 2):
        give_gradients(whole, seed)
        give_gradients(parts, seed)
        once.step()
        twice.step()
        state, twice = twice.state_dict(), Muon(parts, **SETTINGS)
        twice.load_state_dict(state)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_precision_follows_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # computed for another machine
    assert product_dtype(torch.device("cuda")) == torch.bfloat16
    for fast, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert product_dtype(torch.device("cpu")) == wanted


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_that_emulates_bfloat16_computes_in_float32(monkeypatch, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast or including_emulation)
    for found in (product_dtype(torch.device("cuda")), autocast_dtype("auto", torch.device("cuda"))):
        assert found == (torch.bfloat16 if fast else torch.float32)


def test_only_matrices():
    with pytest.raises(AssertionError, match=r"expected matrices, got shapes \[\(3,\)\]"):
        Muon([nn.Parameter(torch.ones(3))])


def step_distributed(rank, port):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole, parts = matrices(), [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in matrices()]
    optimizers = [Muon(whole, **SETTINGS), Muon(parts, **SETTINGS)]
    for seed in (1, 2):
        give_gradients(whole, seed)
        for one, part in zip(whole, parts, strict=True):
            part.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    for one, part in zip(whole, parts, strict=True):
        torch.testing.assert_close(part.full_tensor(), one)
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a Python that ends while they want its lock


def test_two_processes_that_share_the_matrices_are_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(step_distributed, (port,), nprocs=2)
