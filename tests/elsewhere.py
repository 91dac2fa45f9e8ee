"""A device that there is not: what is on it is computed on the CPU, and mixing it with the CPU fails as on a GPU.

So code that forgets to move what it is given, or to fetch what it has made, is found where there is no GPU. Not found:
what a GPU rounds otherwise, and what libraries do on their own devices. "auto" means float32 there, as on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("lazy:0")  # torch knows of it, and has nothing for it
aten = torch.ops.aten
MOVING = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default)  # of what is elsewhere, by indices that may be on the CPU


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device is there within."""
    with pytest.MonkeyPatch.context() as patch, Making(), Computing(), torch.no_grad():
        patch.setattr(torch, "is_autocast_enabled", lambda _device=None: False)  # refuses devices that it does not know
        patch.setattr(torch, "autocast", lambda _device, **_: nullcontext())
        patch.setattr("brainjanus.model.omni.resolve", lambda asked, *_: "float32" if asked == "auto" else asked)
        yield DEVICE


class There(torch.Tensor):
    """A tensor on the device. inner: on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> list:
        return self.inner.tolist()

    def __repr__(self, **_: object) -> str:
        return f"There({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Computing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Making(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == DEVICE:
            return function(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(DEVICE)
        return function(*args, **kwargs)


def computed(function: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = {id(x.inner): x for x in tensors if isinstance(x, There)}
    if function in INDEXING and isinstance(args[0], There):
        met = [x for x in tree_iter((args[0], args[2:])) if isinstance(x, torch.Tensor)]
    else:
        met = [] if function in MOVING else tensors
    if there and any(not isinstance(x, There) and x.dim() for x in met):
        raise RuntimeError(f"{function}: expected all tensors on one device, got {DEVICE} and cpu")
    device = kwargs.get("device")
    stays = bool(there) if device is None else torch.device(device) == DEVICE
    if function is aten.copy_.default:
        stays = isinstance(args[0], There)
    if device is not None and stays:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, There) else x, (args, kwargs))
    made = function(*args, **kwargs)

    def put(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not stays:
            return x
        return there[id(x)] if id(x) in there else There(x)  # what is written to stays the one that it was

    return tree_map(put, made)
