"""Attention against PyTorch's own, in both of its forms."""

import pytest
import torch
import torch.nn.functional as F

from brainjanus.core import attention as module
from brainjanus.core.attention import attention


@pytest.mark.parametrize("longest", [512, 2], ids=["plain", "fused"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("queries", "causal"), [(7, True), (7, False), (1, False)])
def test_agrees_with_scaled_dot_product_attention(monkeypatch, longest, kv_heads, queries, causal):
    monkeypatch.setattr(module, "LONGEST_PLAIN", longest)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, queries, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, 7, 8, generator=generator)
    expected = F.scaled_dot_product_attention(
        q, k.repeat_interleave(4 // kv_heads, 1), v.repeat_interleave(4 // kv_heads, 1), is_causal=causal
    )
    torch.testing.assert_close(attention(q, k, v, causal=causal), expected)


@pytest.mark.parametrize("longest", [512, 2], ids=["plain", "fused"])
def test_a_query_sees_nothing_behind_itself(monkeypatch, longest):
    monkeypatch.setattr(module, "LONGEST_PLAIN", longest)
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 3:], changed_v[:, :, 3:] = 9, 9
    before, after = attention(q, k, v, causal=True), attention(q, changed_k, changed_v, causal=True)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_stays_in_the_precision_of_its_values():
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert attention(q, k, v, causal=True).dtype == torch.bfloat16
