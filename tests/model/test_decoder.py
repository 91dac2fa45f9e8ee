"""The decoder against Hugging Face's LlamaModel, and its cache against itself."""

from dataclasses import asdict

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.model.decoder import Cache, Decoder, DecoderConfig


def make(kv_heads=4, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = DecoderConfig(num_key_value_heads=kv_heads, **(sizes | settings))
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)  # norms, too, are no longer neutral
    return decoder


@pytest.fixture
def x():
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2}, {"kv_heads": 1, "rope_theta": 500.0, "rms_norm_eps": 1e-2}])
def test_hidden_states_are_those_of_llama(x, settings):
    from transformers import LlamaConfig, LlamaModel

    ours = make(**settings)
    fields = asdict(ours.config)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    config = LlamaConfig(vocab_size=1, rope_parameters=rope, attn_implementation="eager", **fields)
    theirs = LlamaModel(config).eval()
    loaded = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.missing_keys == ["embed_tokens.weight"]
    assert loaded.unexpected_keys == []
    with torch.no_grad():
        expected = theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(ours(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("prefix", [1, 4])
def test_step_by_step_is_one_pass(x, kv_heads, prefix):
    decoder = make(kv_heads)
    cache = Cache(decoder.config, 2, 9, like=x)
    parts = [decoder(x[:, :prefix], cache)] + [decoder(x[:, i : i + 1], cache) for i in range(prefix, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(x), atol=1e-5, rtol=1e-4)
    assert cache.filled == 9


def test_a_repeated_cache_goes_on_as_each_of_its_rows(x):
    decoder = make(2)
    cache = Cache(decoder.config, 2, 5, like=x)
    decoder(x[:, :5], cache)
    many = cache.repeat(3, 9)
    rows = x.repeat_interleave(3, dim=0)
    steps = torch.cat([decoder(rows[:, i : i + 1], many) for i in range(5, 9)], dim=1)
    torch.testing.assert_close(steps, decoder(x)[:, 5:].repeat_interleave(3, dim=0), atol=1e-5, rtol=1e-4)
    assert cache.filled == 5


def test_a_cache_that_need_not_grow_is_not_copied(x):
    cache = Cache(make().config, 2, 9, like=x)
    assert cache.repeat(1, 9) is cache
    assert cache.repeat(1, 10) is not cache


def test_a_position_sees_itself_and_those_before_it(x):
    decoder = make()
    changed = x.clone()
    changed[:, 4] += 1
    before, after = decoder(x), decoder(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert ((before[:, 4:] - after[:, 4:]).abs().amax(dim=-1) > 1e-4).all()


def test_a_filled_cache_is_continued_one_position_at_a_time(x):
    decoder = make()
    cache = Cache(decoder.config, 2, 9, like=x)
    decoder(x[:, :3], cache)
    with pytest.raises(AssertionError, match="one position at a time"):
        decoder(x[:, 3:5], cache)


def test_says_what_is_wrong():
    with pytest.raises(UserError, match="hidden_size must be an even multiple of num_attention_heads, got 30 and 4"):
        DecoderConfig(hidden_size=30, num_attention_heads=4, num_key_value_heads=4)
    with pytest.raises(UserError, match=r"hidden_size must .* got 36 and 4"):  # 9 a head: odd
        DecoderConfig(hidden_size=36, num_attention_heads=4, num_key_value_heads=4)
    with pytest.raises(UserError, match="num_attention_heads must be a multiple of num_key_value_heads, got 6 and 4"):
        DecoderConfig(num_key_value_heads=4)
    for name in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size", "intermediate_size"):
        for wrong in (0, -1):
            with pytest.raises(UserError, match=f"decoder config: {name} must be at least 1, got {wrong}"):
                DecoderConfig(**{name: wrong})
