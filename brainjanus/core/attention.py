"""Attention, in the form that is fastest where it runs.

On a CPU, for the short sequences of this package, plain matrix products are 2 to 5 times faster, forward and backward
in bfloat16, than the fused kernel, whose backward pass is slow there. In float32, where the fused kernel is faster by
1.3, and elsewhere, and for a single query, it is used.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST_PLAIN = 512  # positions; beyond it the l x l products need more memory than they save time


# B batch, H query heads, G key and value heads (G divides H), L queries, M keys, E head width
def attention(
    q: Float[Tensor, "b h l e"],
    k: Float[Tensor, "b g m e"],
    v: Float[Tensor, "b g m e"],
    *,
    causal: bool,
    bias: Float[Tensor, "#b 1 l m"] | None = None,
) -> Float[Tensor, "b h l e"]:
    """softmax(q k' / sqrt(e) + bias) v. With `causal`, L = M and a query sees keys up to its own position.

    bias: -inf where a query does not see a key, 0 where it does; it takes the place of `causal`.
    """
    assert not (causal and bias is not None), "a bias says all of what is seen"
    grouped = q.shape[1] != k.shape[1]
    one_of_many = q.shape[2] == 1 < k.shape[2]
    half = v.dtype != torch.float32 or torch.is_autocast_enabled(q.device.type)
    if q.device.type != "cpu" or one_of_many or k.shape[2] > LONGEST_PLAIN or not half:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores = scores + scores.new_full(scores.shape[-2:], float("-inf")).triu(1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v
