"""Steps: the model's steps through a target, as they are, compiled, or recorded as a CUDA graph.

The step to position 0 is done as it is; from then on the cache is static for the other two, so that every step is the
same work. Compiling takes minutes once in a process, and pays for long runs with one model; recording takes a fraction
of a second for each request, and removes the time between kernels, which decides on a GPU.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.model.backbone import AnyCache
from brainjanus.model.decoder import Cache, Decoder
from brainjanus.model.omni import OmniModel
from brainjanus.model.sequence import Block

ACCELERATIONS = ("none", "compile", "graphs")
WARM_UP = 3  # steps before recording, in which libraries allocate what they need


# B batch, N codebook entries
class Steps:
    """One after the other, over a cache that holds the conditions."""

    def __init__(self, model: OmniModel, cache: AnyCache, target: Block):
        self.model, self.cache, self.target = model, cache, target
        self.static: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, position: int, previous: Int[Tensor, "b"] | None) -> Float[Tensor, "b n"]:
        """Logits of the code at a position, given the code before it."""
        how = self.model.acceleration
        if previous is None or how == "none":
            return self.model.step(self.cache, self.target, position, previous)
        place = torch.tensor([position], device=previous.device)
        if self.static is None:
            assert isinstance(self.cache, Cache)
            self.cache.make_static()
            self.static = (compiled if how == "compile" else recorded)(self.model, self.cache, self.target, previous)
        return self.static(place, previous)


def accelerate(model: OmniModel, how: str) -> None:
    """Choose how the model's steps are done. Raises UserError if this machine cannot do it so."""
    if how not in ACCELERATIONS:
        raise UserError(f"accelerate: expected none, compile or graphs, got '{how}'. Correct the option.")
    device = model.embed_tokens.weight.device
    if how == "graphs" and device.type != "cuda":
        raise UserError(
            f"accelerate: expected a model on a CUDA device for graphs, got {device}. Choose compile or none."
        )
    if how != "none" and not isinstance(model.decoder, Decoder):
        raise UserError(
            f"accelerate: expected none for the backbone '{model.config.backbone}', which has no cache that can be "
            f"{'recorded' if how == 'graphs' else 'compiled'}, got {how}. Leave the option out."
        )
    model.acceleration = how


def compiled(model: OmniModel, cache: Cache, target: Block, previous: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The step, compiled: once for a process, and again for another batch, length or target."""
    step = torch.compile(model.step, dynamic=False)
    return lambda place, previous: step(cache, target, place, previous)


def recorded(model: OmniModel, cache: Cache, target: Block, previous: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The step, recorded once and replayed on the same memory. The logits are overwritten by the next step."""
    counts = [count for count in (cache.column, cache.next) if count is not None]
    begin = [count.clone() for count in counts]
    fixed_place, fixed_previous = torch.ones(1, dtype=torch.long, device=previous.device), previous.clone()
    stream = torch.cuda.Stream(previous.device)
    stream.wait_stream(torch.cuda.current_stream(previous.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            model.step(cache, target, fixed_place, fixed_previous)
            for count, first in zip(counts, begin, strict=True):
                count.copy_(first)
    torch.cuda.current_stream(previous.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model.step(cache, target, fixed_place, fixed_previous)

    def replay(place: Tensor, previous: Tensor) -> Tensor:
        fixed_place.copy_(place)
        fixed_previous.copy_(previous)
        graph.replay()
        return logits

    return replay
