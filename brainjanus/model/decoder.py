"""Decoder: a Llama-style causal transformer, embeddings in, hidden states out.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, with Hugging Face parameter names, so that the weights of
a Llama (and so of Janus-Pro's language model) load as they are; the agreement with `LlamaModel` is a test.
Source: Touvron et al. 2023; Su et al. 2021 (rotary positions); Ainslie et al. 2023 (grouped queries).
Differs: embeddings are the caller's; padding may lie anywhere, is seen by nobody and takes no rotary position; the
cache is allocated once for a whole generation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from brainjanus.core.attention import attention
from brainjanus.core.errors import UserError
from brainjanus.core.fused import computed_in, linears, rms_norm, rotate, swiglu
from brainjanus.core.linear import Joined, PackedLinear


@dataclass(frozen=True)
class DecoderConfig:
    """Field names are those of a Llama config. Defaults are laptop-sized.

    hidden_size: width of a position. intermediate_size: width inside of a layer's gated products. num_hidden_layers:
    how many layers. num_attention_heads: of queries. num_key_value_heads: of keys and values, which queries share.
    rms_norm_eps: added under the root of the norm. rope_theta: base of the rotations by position.
    max_position_embeddings: the longest sequence. dropout: share of what each layer adds that
    is left out in training."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 16_384
    dropout: float = 0.0

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1, got {v}" for name, v in vars(self).items() if type(v) is int and v < 1]
        positive = not problems
        if positive and self.hidden_size % (2 * self.num_attention_heads):
            problems.append(
                f"hidden_size must be an even multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        if positive and self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads must be a multiple of num_key_value_heads, got {self.num_attention_heads} and "
                f"{self.num_key_value_heads}"
            )
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must lie in [0, 1), got {self.dropout}")
        if problems:
            raise UserError("decoder config: " + "; ".join(problems) + ". Correct the config.")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Cache:
    """Keys and values of every layer for at most `length` positions, allocated once.

    Which of them are seen, and which rotary position comes next, is known for each row. A cache that is `static` reads
    all of its positions at every step and keeps count in tensors, so that all steps are the same work and can be
    compiled or recorded; otherwise only what is filled is read.
    """

    def __init__(self, config: DecoderConfig, batch: int, length: int, like: Tensor):
        check_length(config, length)
        shape = (config.num_hidden_layers, batch, 2 * config.num_key_value_heads, length, config.head_dim)
        self.tensors = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.layers = self.tensors.unbind()
        self.rotary = rotary(config, torch.arange(length, device=like.device), like.dtype)
        self.config, self.filled = config, 0
        self.seen: Tensor | None = None  # [b, length]; None: all that is filled
        self.next: Tensor | None = None  # [b], the rotary position of what comes next; None: `filled`
        self.column: Tensor | None = None  # [1], what is filled of a static cache
        self.sighted: Tensor | None = None  # [b, k, d], what is added to each place of the target as it enters

    @property
    def batch(self) -> int:
        return self.tensors.shape[1]

    @property
    def length(self) -> int:
        return self.tensors.shape[3]

    def hide(self, seen: Bool[Tensor, "b l"]) -> None:
        """Of the first L positions, which are seen; all that come later are."""
        assert not self.filled, "what is seen of a prefix is said before it enters"
        self.seen = torch.ones(self.batch, self.length, dtype=torch.bool, device=seen.device)
        self.seen[:, : seen.shape[1]] = seen
        self.next = seen.sum(dim=1)

    def append(self, layer: int, both: Float[Tensor, "b h l e"]) -> Float[Tensor, "b h m e"]:
        """Store keys and, behind them along H, values after the filled part; return all that is stored."""
        stored = self.layers[layer]
        if self.column is not None:
            return stored.index_copy_(2, self.column, both)
        positions = both.shape[2]
        stored.narrow(2, self.filled, positions).copy_(both)
        return stored.narrow(2, 0, self.filled + positions)

    def step(self) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Rotation (cos, sin) of the position that comes next, and the bias of what it sees."""
        cos, sin = self.rotary
        if self.next is not None:
            rotation = cos[self.next][:, None], sin[self.next][:, None]  # [b, 1, 1, e]
        elif self.column is not None:
            rotation = cos[self.column], sin[self.column]
        else:
            rotation = cos[self.filled : self.filled + 1], sin[self.filled : self.filled + 1]
        if self.column is not None:
            seen = torch.arange(self.length, device=cos.device) <= self.column
            seen = seen[None] if self.seen is None else seen & self.seen
        elif self.seen is not None:
            seen = self.seen[:, : self.filled + 1]
        else:
            return rotation, None
        return rotation, bias_of(seen[:, None, None], cos.dtype)

    def advance(self, positions: int) -> None:
        """So many positions have entered."""
        if self.filled and self.next is not None:  # those of a prefix were counted when it was said what is seen
            self.next += positions
        if self.column is not None:  # `filled` stays: compiled code must not depend on it
            self.column += positions
        else:
            self.filled += positions

    def repeat(self, times: int, length: int) -> "Cache":
        """A cache with room for `length` positions in which every row stands `times` times."""
        if times == 1 and length <= self.length:
            return self
        copy = Cache(self.config, self.batch * times, length, like=self.tensors)
        prefix = self.tensors[:, :, :, : self.filled]
        copy.tensors[:, :, :, : self.filled].unflatten(1, (self.batch, times)).copy_(prefix.unsqueeze(2))
        if self.seen is not None:
            copy.hide(self.seen[:, : self.filled].repeat_interleave(times, dim=0))
        copy.filled = self.filled
        copy.sighted = None if self.sighted is None else self.sighted.repeat_interleave(times, dim=0)
        return copy

    def make_static(self) -> None:
        """From here on, read everything at each step. What is not filled is hidden by a bias, and must be finite."""
        self.tensors[:, :, :, self.filled :] = 0
        self.column = torch.tensor([self.filled], device=self.tensors.device)


# B batch, L positions, D width, H heads, E width of a head
class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)

    @property
    def packed(self) -> bool:
        """Whether queries, keys and values come out of one product."""
        first = self.layers[0].get_submodule("self_attn")
        return isinstance(first, Attention) and first.joined is not None

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty one with room for `length` positions."""
        return Cache(self.config, batch, length, like=self.norm.weight)

    def forward(
        self, x: Float[Tensor, "b l d"], cache: Cache | None = None, seen: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Hidden states; each position sees itself and those before it, and all that the cache holds.

        With an empty cache any number of positions may enter; a filled one is continued one position at a time.
        seen: which positions exist; the others are padding, which nothing but itself sees and whose states mean
        nothing. Rotary positions count what is seen. None: all exist.
        Raises UserError if there are more positions than the config allows.
        """
        check_length(self.config, x.shape[1])
        entered, own = x.dtype, self.norm.weight.dtype
        if own != torch.float32:  # weights in half precision: what surrounds the decoder stays in float32
            x = x.to(own)
        bias = None
        if cache and cache.filled:
            assert x.shape[1] == 1 and seen is None, "a filled cache is continued one position at a time"
            rotation, bias = cache.step()
        elif seen is None:
            rotation = rotary(self.config, torch.arange(x.shape[1], device=x.device), computed_in(x))
        else:
            rotation = rotary(self.config, (seen.cumsum(dim=1) - 1).clamp_min(0), computed_in(x))
            bias = bias_of(causally(seen), x.dtype)
            if cache:
                cache.hide(seen)
        if self.packed:
            rotation = for_all_heads(self.config, rotation)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, bias, index, cache)
        if cache:
            cache.advance(x.shape[1])
        return self.norm(x).to(entered)


class RMSNorm(nn.RMSNorm):
    def __init__(self, config: DecoderConfig):
        super().__init__(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor | None, index: int, cache: Cache | None
    ) -> Tensor:
        x = x + left_out(self.self_attn(self.input_layernorm(x), rotation, bias, index, cache), self)
        return x + left_out(self.mlp(self.post_attention_layernorm(x)), self)


def left_out(added: Tensor, layer: Layer) -> Tensor:
    """What a layer adds, less what dropout takes of it."""
    return F.dropout(added, layer.dropout) if layer.training and layer.dropout else added


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        head = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * head, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * head, bias=False)
        self.o_proj = nn.Linear(self.heads * head, config.hidden_size, bias=False)
        self.joined: Joined | None = None

    def pack(self, precision: str) -> None:
        self.joined = Joined([self.q_proj, self.k_proj, self.v_proj], precision)
        self.o_proj = PackedLinear(self.o_proj, precision)

    def train(self, mode: bool = True) -> "Attention":
        self.joined = None if mode else self.joined
        return super().train(mode)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor | None, index: int, cache: Cache | None
    ) -> Tensor:
        if self.joined is not None:  # one rotation, one copy into the cache
            all_heads = self.joined(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
            all_heads = rotate(all_heads, rotation).transpose(1, 2)
            q, both = all_heads[:, : self.heads], all_heads[:, self.heads :]
            k, v = (cache.append(index, both) if cache else both).chunk(2, dim=1)
        else:
            q, k, v = linears(x, [self.q_proj, self.k_proj, self.v_proj])
            q = rotate(q.unflatten(-1, (self.heads, -1)), rotation).transpose(1, 2)
            k = rotate(k.unflatten(-1, (self.kv_heads, -1)), rotation).transpose(1, 2)
            v = v.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
            k = k.to(v.dtype)
            if cache:
                k, v = cache.append(index, torch.cat([k, v], dim=1)).chunk(2, dim=1)
        out = attention(q, k, v, causal=q.shape[2] > 1 and bias is None, bias=bias)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.joined: Joined | None = None

    def pack(self, precision: str) -> None:
        self.joined = Joined([self.gate_proj, self.up_proj], precision)
        self.down_proj = PackedLinear(self.down_proj, precision)

    def train(self, mode: bool = True) -> "FeedForward":
        self.joined = None if mode else self.joined
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.joined is not None:
            gate, up = self.joined(x).chunk(2, dim=-1)
        else:
            gate, up = linears(x, [self.gate_proj, self.up_proj])
        return self.down_proj(swiglu(gate, up))


def check_length(config: DecoderConfig, length: int) -> None:
    if length > config.max_position_embeddings:
        raise UserError(
            f"decoder: expected at most {config.max_position_embeddings} positions, got {length} of the conditions and "
            "the target together. Give fewer or shorter conditions, or raise max_position_embeddings before training."
        )


def rotary(config: DecoderConfig, positions: Int[Tensor, "*l"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [*l, 1, e] of positions, for any number of heads; the first half of sin is negative."""
    even = torch.arange(0, config.head_dim, 2, device=positions.device)
    angles = positions.float()[..., None, None] * config.rope_theta ** -(even.float() / config.head_dim)
    sin = angles.sin()
    return torch.cat([angles.cos()] * 2, dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def for_all_heads(config: DecoderConfig, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A rotation [*l, 1, e] as one [*l, h, e] for queries and keys, and behind them values, which stay as they are."""
    turned, kept = config.num_attention_heads + config.num_key_value_heads, config.num_key_value_heads
    cos, sin = (x.expand(*x.shape[:-2], turned, -1) for x in rotation)
    still = cos.new_ones(*cos.shape[:-2], kept, cos.shape[-1])
    return torch.cat([cos, still], dim=-2), torch.cat([sin, torch.zeros_like(still)], dim=-2)


def causally(seen: Bool[Tensor, "b l"]) -> Bool[Tensor, "b 1 l l"]:
    """What each position sees: what is seen of those before it, and itself, so that padding, too, sees something."""
    length = seen.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=seen.device)
    return ((seen[:, None, :] & before) | itself)[:, None]


def bias_of(seen: Bool[Tensor, "*b"], dtype: torch.dtype) -> Float[Tensor, "*b"]:
    """What is added to the scores of attention: nothing where a key is seen, -inf where not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))
