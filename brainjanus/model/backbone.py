"""What may stand between embeddings and heads: the Llama-style decoder, or a causal module that a user adds.

Named in the config by `omni.backbone`: "llama" (decoder.py), "llama:FOLDER" (the same, beginning with the weights of a
language model, llama.py), or what `add_backbone` was given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from brainjanus.core.extensions import Added
from brainjanus.model.decoder import Cache, Decoder, DecoderConfig, check_length
from brainjanus.model.llama import LLAMA, load_llama


# B batch, L positions, D width
class Backbone(nn.Module):
    """A causal module of a user's own. It has to give `states`; the rest has a default.

    layers: those that training may recompute (`training.recompute`), and whose states `neighbours` shows. Parameters
    start as the constructor draws them.
    """

    packed = False  # it is never laid out for generation

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config, self.layers = config, nn.ModuleList()

    def states(self, x: Float[Tensor, "b l d"], seen: Bool[Tensor, "b l"] | None) -> Float[Tensor, "b l d"]:
        """Hidden states, each of its own position and those before it.

        seen: which positions exist; the others are padding anywhere among them, which must change nothing, and whose
        states mean nothing. None: all exist.
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Called once, on a model that is not trained yet: the place to read pretrained weights."""

    def new_cache(self, batch: int, length: int) -> "Recomputed":
        """What generation keeps between steps, with room for `length` positions. A subclass that knows better keeps
        states of its own, and reads them in its `forward`."""
        return Recomputed(batch, length)

    def forward(
        self, x: Float[Tensor, "b l d"], cache: "Recomputed | None" = None, seen: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """As Decoder.forward: with an empty cache any number of positions enter, with a filled one a single one."""
        check_length(self.config, x.shape[1])
        entered, own = x.dtype, next(self.parameters()).dtype
        if cache is None:
            return self.states(x.to(own), seen).to(entered)
        cache.enter(x.to(own), seen)
        assert cache.x is not None
        return self.states(cache.x, cache.seen)[:, -x.shape[1] :].to(entered)


class Recomputed:
    """The cache of a module that has none: what entered, all of which is computed anew at each step."""

    def __init__(self, batch: int, length: int):
        self.batch, self.length, self.filled = batch, length, 0
        self.x: Tensor | None = None
        self.seen: Tensor | None = None  # [b, l]; None: all
        self.sighted: Tensor | None = None  # see Cache

    def enter(self, x: Float[Tensor, "b l d"], seen: Bool[Tensor, "b l"] | None) -> None:
        """Put positions behind what is there; those of a filled cache are all seen."""
        if self.seen is None:
            self.seen = seen
        else:
            self.seen = torch.cat([self.seen, self.seen.new_ones(x.shape[:2])], dim=1)
        self.x = x if self.x is None else torch.cat([self.x, x], dim=1)
        self.filled = self.x.shape[1]

    def repeat(self, times: int, length: int) -> "Recomputed":
        """A cache with room for `length` positions in which every row stands `times` times."""
        copy = type(self)(self.batch * times, length)
        for name in ("x", "seen", "sighted"):
            value = getattr(self, name)
            setattr(copy, name, None if value is None else value.repeat_interleave(times, dim=0))
        copy.filled = self.filled
        return copy


B = TypeVar("B", bound=Callable[..., Backbone])
BACKBONES = Added[Callable[..., Backbone]]("backbone", ("llama",))
AnyCache = Cache | Recomputed


def add_backbone(name: str) -> Callable[[B], B]:
    """A decorator that makes a Backbone the one of this name: `omni.backbone`.

    It is made as backbone(config, **settings): the DecoderConfig, whose hidden_size is the width of what enters and
    leaves, and the settings behind its name ("NAME:kernel=5"). A trained model is made in the same way and its weights
    are put back, so that what decides its shapes has to stand in these two.
    """
    return BACKBONES.adding(name)  # type: ignore[return-value]


def make_decoder(name: str, config: DecoderConfig) -> Decoder | Backbone:
    """The backbone of this name, not trained yet."""
    if name not in BACKBONES:
        return Decoder(config)
    with torch.device("cpu"):  # also where a model is made without memory: buffers that are not saved have values
        made = BACKBONES.make(name, config)
    assert isinstance(made, Backbone), f"the backbone '{name}' is a {type(made).__name__}, which is no Backbone"
    return made


def begin(decoder: Decoder | Backbone, name: str) -> None:
    """Give a backbone the weights that it starts from, if it has such."""
    if isinstance(decoder, Backbone):
        decoder.begin()
    elif name.startswith(LLAMA):
        load_llama(decoder, Path(name.removeprefix(LLAMA)))
