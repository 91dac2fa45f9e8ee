"""Processes: several that answer one request, each its share of the rows, as if they were one.

Started by `torchrun --nproc-per-node N -m brainjanus ...`, which says in the environment how many there are. All are
given the same request and seed; each does the rows of its share, all get all results, and the first alone writes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def together() -> Iterator[None]:
    """For the time of a request, know the other processes; by itself, a process knows none."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes what they made."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(num_rows: int) -> range:
    """The rows that this process does: as many as the others do, but for one."""
    if not dist.is_initialized():
        return range(num_rows)
    rank, processes = dist.get_rank(), dist.get_world_size()
    return range(num_rows * rank // processes, num_rows * (rank + 1) // processes)


def gathered(part: list[Any]) -> list[Any]:
    """The parts of all processes, one behind the other in the order of their shares."""
    if not dist.is_initialized():
        return part
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return [one for other in parts for one in other]
