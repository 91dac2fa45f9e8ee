"""The brain tokenizer: every site comes back to where it was."""

import pytest
import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig, ContextBlock, PatchMap
from brainjanus.tokenizers.quantizer import QuantizerConfig

CONFIG = BrainTokenizerConfig(patch_size=4, width=16, depth=1, heads=2, quantizer=QuantizerConfig(num_codes=9, dim=5))


@pytest.fixture
def orders():
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randperm(10, generator=generator), "b": torch.randperm(8, generator=generator)}


@pytest.fixture
def tokenizer(orders):
    torch.manual_seed(0)
    return BrainTokenizer(CONFIG, orders).eval().requires_grad_(False)


@pytest.fixture
def identity(orders):
    """The patch map of 10 sites that changes nothing."""
    patch_map = PatchMap(BrainTokenizerConfig(patch_size=4, width=4, heads=1), orders["a"])
    with torch.no_grad():
        patch_map.into.copy_(torch.eye(4).expand(3, 4, 4))
        patch_map.out.copy_(torch.eye(4).expand(3, 4, 4))
        patch_map.position.zero_()
    return patch_map


def values(sites, rows=3):
    return torch.randn(rows, sites, generator=torch.Generator().manual_seed(1))


def test_a_patch_is_consecutive_sites_of_the_cortical_order(identity, orders):
    x = values(10)
    patches = identity.encode(x)
    assert torch.equal(patches[:, 1], x[:, orders["a"][4:8]])
    assert torch.equal(patches[:, 2], torch.cat([x[:, orders["a"][8:]], torch.zeros(3, 2)], dim=1))


def test_the_cortical_order_is_inverted_exactly(identity):
    x = values(10)
    assert torch.equal(identity.decode(identity.encode(x)), x)


def test_each_position_has_maps_of_its_own(identity):
    with torch.no_grad():
        identity.into[1] *= 2
        identity.out[2] *= 3
        identity.bias[0] = 5
    patches = identity.encode(values(10))
    ordered = values(10)[:, identity.order]
    torch.testing.assert_close(patches[:, 1], 2 * ordered[:, 4:8])
    decoded = identity.decode(patches)[:, identity.order]
    torch.testing.assert_close(decoded[:, 0], ordered[:, 0] + 5)
    torch.testing.assert_close(decoded[:, 1:4], ordered[:, 1:4])
    torch.testing.assert_close(decoded[:, 8:], 3 * ordered[:, 8:])


@pytest.mark.parametrize(("subject", "sites", "codes"), [("a", 10, 3), ("b", 8, 2)])
def test_subjects_have_their_own_sites_and_codes(tokenizer, subject, sites, codes):
    assert tokenizer.subjects == ("a", "b")
    assert (tokenizer.num_sites(subject), tokenizer.num_codes(subject)) == (sites, codes)
    encoded = tokenizer.encode(values(sites), subject)
    assert encoded.shape == (3, codes)
    assert int(encoded.min()) >= 0 and int(encoded.max()) < 9
    assert tokenizer.decode(encoded, subject).shape == (3, sites)


def test_forward_is_encode_and_decode(tokenizer):
    x = values(10)
    out = tokenizer(x, "a")
    assert torch.equal(out.quantized.codes, tokenizer.encode(x, "a"))
    torch.testing.assert_close(out.values, tokenizer.decode(out.quantized.codes, "a"))
    torch.testing.assert_close(out.latents, tokenizer.latents(x, "a"))
    torch.testing.assert_close(out.latents.norm(dim=-1), torch.ones(3, 3))


def test_a_certain_distribution_decodes_to_its_code(tokenizer):
    codes = torch.tensor([[0, 8, 3], [1, 1, 1]])
    certain = nn.functional.one_hot(codes, 9).float()
    torch.testing.assert_close(tokenizer.decode_probabilities(certain, "a"), tokenizer.decode(codes, "a"))
    mixed = tokenizer.decode_probabilities(certain.mean(dim=0, keepdim=True), "a")
    vectors = tokenizer.quantizer.codebook[codes].mean(dim=0, keepdim=True)
    torch.testing.assert_close(mixed, tokenizer.decode_vectors(vectors, "a"))


def test_a_row_does_not_depend_on_its_neighbours(tokenizer):
    x = values(10)
    torch.testing.assert_close(tokenizer.latents(x, "a")[1:2], tokenizer.latents(x[1:2], "a"))


def test_patches_of_one_response_share_the_work(tokenizer):
    x, y = values(10, 1), values(10, 1)
    y[:, tokenizer.map_of("a").order[0]] += 3  # a site of the first patch
    assert not torch.allclose(tokenizer.latents(x, "a")[:, 2], tokenizer.latents(y, "a")[:, 2])


def test_a_code_is_told_its_place(tokenizer):
    patch_map = tokenizer.map_of("b")
    patch_map.out[1] = patch_map.out[0]
    for same in (False, True):
        first, second = tokenizer.decode(torch.zeros(1, 2, dtype=torch.long), "b")[:, patch_map.order].split(4, dim=1)
        assert torch.allclose(first, second) == same
        patch_map.position.zero_()


def test_what_is_learnt_reaches_every_weight_of_its_subject_alone(orders):
    tokenizer = BrainTokenizer(CONFIG, orders)
    out = tokenizer(values(10), "a")
    (out.values.square().sum() + out.quantized.loss).backward()
    untouched = {name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    assert untouched == {f"maps.brain:b.{name}" for name in ("into", "out", "bias", "position")}


def test_context_is_a_transformer_encoder_layer():
    torch.manual_seed(0)
    ours = ContextBlock(16, 4)
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = (
        (theirs.self_attn.out_proj, ours.out), (theirs.norm1, ours.norm), (theirs.norm2, ours.mlp[0]),
        (theirs.linear1, ours.mlp[1]), (theirs.linear2, ours.mlp[3]),
    )  # fmt: skip
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for to, source in pairs:
            to.load_state_dict(source.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_no_depth_is_no_context(orders):
    tokenizer = BrainTokenizer(BrainTokenizerConfig(4, width=8, depth=0, heads=1), orders)
    x, y = values(10, 1), values(10, 1)
    y[:, tokenizer.map_of("a").order[0]] += 3
    assert torch.equal(tokenizer.latents(x, "a")[:, 1:], tokenizer.latents(y, "a")[:, 1:])


def test_subjects_may_be_called_what_a_module_has(orders):
    names = ("train", "type", "values", "items")
    tokenizer = BrainTokenizer(CONFIG, dict.fromkeys(names, orders["a"]))
    assert tokenizer.subjects == names
    assert (tokenizer.num_sites("items"), tokenizer.num_codes("train")) == (10, 3)
    assert tokenizer.encode(values(10), "values").shape == (3, 3)


def test_says_what_is_wrong(tokenizer):
    with pytest.raises(UserError, match=r"response: expected 10 sites, got 8. Was it made with another mask?"):
        tokenizer.encode(values(8), "a")
    with pytest.raises(UserError, match=r"the subjects it was trained on \(a, b\), got 'c'"):
        tokenizer.encode(values(8), "c")
    for wrong in ({"patch_size": 0}, {"depth": -1}, {"width": 10, "heads": 4}, {"heads": 0}, {"width": 0}):
        with pytest.raises(UserError, match="expected patch_size >= 1, depth >= 0 and a width divisible by heads"):
            BrainTokenizerConfig(**wrong)


def test_patches_are_the_response_itself_in_cortical_order(tokenizer, orders):
    x = values(10)
    patches = tokenizer.patches(x, "a")
    assert patches.shape == (3, 3, 4)
    assert torch.equal(patches.flatten(1)[:, :10], x[:, orders["a"]])
    assert torch.equal(patches.flatten(1)[:, 10:], torch.zeros(3, 2))
