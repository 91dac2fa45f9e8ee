"""The decoder against Hugging Face's LlamaModel, and its cache against itself."""

from dataclasses import asdict

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.linear import pack
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


def llama_config(config, vocabulary=1, **settings):
    from transformers import LlamaConfig

    fields = asdict(config)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    return LlamaConfig(vocab_size=vocabulary, rope_parameters=rope, attn_implementation="eager", **fields, **settings)


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2}, {"kv_heads": 1, "rope_theta": 500.0, "rms_norm_eps": 1e-2}])
def test_hidden_states_are_those_of_llama(x, settings):
    from transformers import LlamaModel

    ours = make(**settings)
    theirs = LlamaModel(llama_config(ours.config)).eval()
    loaded = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.missing_keys == ["embed_tokens.weight"]
    assert loaded.unexpected_keys == []
    with torch.no_grad():
        expected = theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(ours(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"kv_heads": 2, "rope_theta": 1e6}, {"num_attention_heads": 2, "kv_heads": 1}]
)
def test_logits_are_those_of_a_language_model(tied, settings):
    from transformers import LlamaForCausalLM

    ours = make(**settings)
    theirs = LlamaForCausalLM(llama_config(ours.config, 50, tie_word_embeddings=tied)).eval()
    theirs.model.load_state_dict(ours.state_dict(), strict=False)
    tokens = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(2))
    embed, head = theirs.model.embed_tokens.weight, theirs.lm_head.weight
    assert (embed is head) == tied
    with torch.no_grad():
        torch.testing.assert_close(ours(embed[tokens]) @ head.T, theirs(tokens).logits, atol=1e-4, rtol=1e-4)


# Rows of different lengths: padding in front, behind, and in between
SEEN = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()


@pytest.fixture
def padded():
    return torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("longest", [512, 2], ids=["plain", "fused"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_padding_is_as_if_it_were_not_there(monkeypatch, padded, kv_heads, longest):
    monkeypatch.setattr("brainjanus.core.attention.LONGEST_PLAIN", longest)
    decoder = make(kv_heads)
    together = decoder(padded, seen=SEEN)
    assert torch.isfinite(together).all()
    for row, seen, states in zip(padded, SEEN, together, strict=True):
        torch.testing.assert_close(states[seen], decoder(row[seen][None])[0], atol=1e-5, rtol=1e-4)


def test_what_stands_in_padding_does_not_matter(padded):
    decoder = make(2)
    other = torch.where(SEEN[..., None], padded, 9.0)
    torch.testing.assert_close(decoder(padded, seen=SEEN)[SEEN], decoder(other, seen=SEEN)[SEEN])


def test_seeing_everything_is_seeing_without_a_mask(padded):
    decoder = make(2)
    torch.testing.assert_close(
        decoder(padded, seen=torch.ones(4, 6, dtype=torch.bool)), decoder(padded), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("times", [1, 3])
def test_rows_of_different_lengths_go_on_as_each_by_itself(padded, kv_heads, times, static):
    decoder = make(kv_heads)
    later = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(4))
    cache = Cache(decoder.config, 4, 6 if times > 1 else 9, like=padded)
    decoder(padded, cache, SEEN)
    cache = cache.repeat(times, 9)
    if static:
        cache.make_static()
    rows = later.repeat_interleave(times, dim=0)
    steps = torch.cat([decoder(rows[:, i : i + 1], cache) for i in range(3)], dim=1)
    for row in range(4):
        alone = torch.cat([padded[row][SEEN[row]], later[row]])[None]
        expected = decoder(alone)[:, -3:].expand(times, -1, -1)
        torch.testing.assert_close(steps[row * times : (row + 1) * times], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_static_step_is_a_step(x, kv_heads):
    decoder = make(kv_heads)
    steps = []
    for static in (False, True):
        cache = Cache(decoder.config, 2, 20, like=x)
        decoder(x[:, :5], cache)
        if static:
            cache.tensors[:, :, :, 5:] = float("nan")  # as memory may be that was never written
            cache.make_static()
        steps.append(torch.cat([decoder(x[:, i : i + 1], cache) for i in range(5, 9)], dim=1))
    torch.testing.assert_close(steps[1], steps[0], atol=1e-5, rtol=1e-4)
    assert int(cache.column) == 9


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_packed_for_generation_it_computes_the_same(monkeypatch, x, kv_heads, precision):
    monkeypatch.setattr("brainjanus.core.linear.WORTH", 0)
    decoder = make(kv_heads)
    expected = decoder(x)
    pack(decoder, precision)
    tolerance = 1e-5 if precision == "float32" else 1e-2
    torch.testing.assert_close(decoder(x), expected, atol=tolerance, rtol=tolerance)
    cache = Cache(decoder.config, 2, 9, like=x)
    parts = [decoder(x[:, :4], cache)] + [decoder(x[:, i : i + 1], cache) for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_packed_and_trained_again_it_is_as_before(x, kv_heads):
    decoder = make(kv_heads)
    names, expected = list(decoder.state_dict()), decoder(x)
    pack(decoder, "float32")
    decoder.train()
    assert list(decoder.state_dict()) == names
    decoder.requires_grad_(True)
    torch.testing.assert_close(decoder(x), expected)
    decoder(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())
    with torch.no_grad():
        decoder.layers[0].self_attn.q_proj.weight.mul_(2)
        decoder.layers[0].mlp.down_proj.weight.mul_(2)
    changed = decoder.eval()(x)
    pack(decoder, "float32")
    torch.testing.assert_close(decoder(x), changed, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed, expected, atol=1e-3)


def test_in_half_precision_float32_enters_and_leaves(x):
    decoder = make(2)
    expected = decoder(x)
    half = decoder.to(torch.bfloat16)(x)
    assert half.dtype == torch.float32
    assert (half - expected).std() < 0.05 * expected.std()
    assert not torch.equal(half, expected)


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


def test_more_positions_than_the_config_allows_are_refused(x):
    decoder = make(max_position_embeddings=8)
    with pytest.raises(UserError, match="expected at most 8 positions, got 9 of the conditions and the target"):
        decoder(x)
    with pytest.raises(UserError, match="expected at most 8 positions, got 9"):
        Cache(decoder.config, 2, 9, like=x)
    cache = Cache(decoder.config, 2, 8, like=x)
    with pytest.raises(UserError, match="expected at most 8 positions, got 12"):
        cache.repeat(2, 12)


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
