"""Parallel: a module enters; what runs its step on this process's device, as one of several, leaves.

Data parallel (DDP): every process holds the whole model, and gradients are averaged. Sharded (FSDP2, Zhao et al. 2023):
every process holds its share of weights, gradients and moments, and layers are gathered as they are needed, in the
precision that is computed in. Between them states stay in float32, as on one device: what surrounds the layers, which
states are made of, is gathered as it is held, and autocast alone says what is computed in half precision. What a
training comes to does not depend on either, but for rounding.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from brainjanus.core.errors import UserError
from brainjanus.core.processes import rank, world

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Hardware:
    """What a training runs on; what it comes to stays the same, so that it may go on elsewhere.

    device: auto (a GPU where there is one), cpu, cuda. parallel: how several processes share the work: "ddp" (each
    holds the whole model) or "fsdp" (each a share of it). gather_once: with fsdp, layers stay gathered between the
    forward and the backward pass: more memory, less traffic. rows_at_once: rows of a batch that a process takes at a
    time; the gradients of a batch add up. 0: all of its share.
    """

    device: str = "auto"
    parallel: Parallel = "ddp"
    gather_once: bool = False
    rows_at_once: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.parallel not in ("ddp", "fsdp"):
            problems.append(f"parallel must be ddp or fsdp, got '{self.parallel}'")
        if self.rows_at_once < 0:
            problems.append(f"rows_at_once must be at least 0, got {self.rows_at_once}")
        if problems:
            raise UserError("hardware: " + "; ".join(problems) + ". Correct the options.")

    def most_at_once(self, batch_size: int) -> int:
        """How many rows of a batch a process takes at a time at most, the same in all of them."""
        own = -(-batch_size // world())
        return min(own, self.rows_at_once or own)

    def parts(self, batch_size: int) -> list[slice]:
        """The rows of a batch that this process does, cut into what it takes at a time.

        Raises UserError if there are more processes than rows.
        """
        processes = world()
        if processes > batch_size:
            raise UserError(
                f"batch_size: expected at least one row for each of {processes} processes, got {batch_size}. "
                "Raise it, or start fewer processes."
            )
        own = -(-batch_size // processes)
        times = -(-own // self.most_at_once(batch_size))
        times = min(times, batch_size // processes)
        return [slice(rank() % processes + processes * number, None, processes * times) for number in range(times)]


CPU, ANY = Hardware("cpu"), Hardware()


def spread(
    module: nn.Module, hardware: Hardware, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Callable[..., Any]]:
    """The module on its device, and how it is called, so that gradients of all processes come together.

    A module that is sharded is not one that can be used by itself any more: see `whole`.
    """
    module.to(device)
    if world() == 1:
        return module, module
    if hardware.parallel == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        # which parameters take part differs from task to task
        return module, DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (world(),))
    how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": not hardware.gather_once}
    for layers in (child for child in module.modules() if isinstance(child, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mp_policy=policy, **how)
    fully_shard(module, **how)
    return module, module


def skeleton(module: nn.Module) -> nn.Module:
    """A copy without content, which the weights of a sharded one are put into in the end."""
    memo = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in module.parameters()
    }  # fmt: skip
    return copy.deepcopy(module, memo)


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process may have a share; every process has to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value.detach()
