"""Decoder: a Llama-style causal transformer, embeddings in, hidden states out.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, with Hugging Face parameter names, so that the weights of
a Llama (and so of Janus-Pro's language model) load as they are; the agreement with `LlamaModel` is a test.
Source: Touvron et al. 2023; Su et al. 2021 (rotary positions); Ainslie et al. 2023 (grouped queries).
Differs: embeddings are the caller's, and the cache is allocated once for a whole generation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.attention import attention
from brainjanus.core.errors import UserError


@dataclass(frozen=True)
class DecoderConfig:
    """Field names are those of a Llama config. Defaults are laptop-sized."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

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
        if problems:
            raise UserError("decoder config: " + "; ".join(problems) + ". Correct the config.")


class Cache:
    """Keys and values of every layer for at most `length` positions, allocated once."""

    def __init__(self, config: DecoderConfig, batch: int, length: int, like: Tensor):
        head = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length, head)
        self.tensors = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.filled = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [b, h, l, d] behind the filled part; return all that is stored."""
        end = self.filled + keys.shape[2]
        self.tensors[layer, 0, :, :, self.filled : end] = keys
        self.tensors[layer, 1, :, :, self.filled : end] = values
        return self.tensors[layer, 0, :, :, :end], self.tensors[layer, 1, :, :, :end]

    def repeat(self, times: int, length: int) -> "Cache":
        """A cache with room for `length` positions in which every row stands `times` times."""
        if times == 1 and length <= self.tensors.shape[4]:
            return self
        copy = object.__new__(Cache)
        shape = list(self.tensors.shape)
        shape[2] *= times
        shape[4] = length
        copy.tensors = self.tensors.new_empty(shape)
        prefix = self.tensors[:, :, :, :, : self.filled]
        copy.tensors[:, :, :, :, : self.filled] = prefix.repeat_interleave(times, dim=2)
        copy.filled = self.filled
        return copy


# B batch, L positions, D width, H heads
class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Float[Tensor, "b l d"], cache: Cache | None = None) -> Float[Tensor, "b l d"]:
        """Hidden states; each position sees itself and those before it, and all that the cache holds.

        With an empty cache any number of positions may enter; a filled one is continued one position at a time.
        """
        start = cache.filled if cache else 0
        assert start == 0 or x.shape[1] == 1, "a filled cache is continued one position at a time"
        rotation = rotary(self.config, start, x.shape[1], x)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, index, cache)
        if cache:
            cache.filled += x.shape[1]
        return self.norm(x)


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], index: int, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, index, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        head = config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * head, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * head, bias=False)
        self.o_proj = nn.Linear(self.heads * head, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], index: int, cache: Cache | None) -> Tensor:
        q = rotate(self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), rotation)
        k = rotate(self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2), rotation)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        causal = q.shape[2] > 1
        if cache:
            k, v = cache.append(index, k, v)
        out = attention(q, k.to(v.dtype), v, causal=causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary(config: DecoderConfig, start: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [l, head] of positions start, start + 1, ..."""
    head = config.hidden_size // config.num_attention_heads
    frequencies = config.rope_theta ** -(torch.arange(0, head, 2, device=like.device).float() / head)
    angles = torch.arange(start, start + length, device=like.device).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
