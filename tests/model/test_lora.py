"""LoRA: nothing at first, a product of thin matrices later, plain weights in the end."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.core.linear import pack
from brainjanus.model.decoder import Decoder, DecoderConfig
from brainjanus.model.lora import PROJECTIONS, LoraConfig, LoraLinear, add_lora, load_lora, merge_lora, save_lora

SIZE = DecoderConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
CONFIG = LoraConfig(rank=3, alpha=6.0)
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def decoder(dtype=torch.float32):
    torch.manual_seed(0)
    return Decoder(SIZE).to(dtype).eval()


def moved(net):
    """What training might have made of it."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, LoraLinear):
            module.lora_b.data = torch.randn(module.lora_b.shape, generator=generator) * 0.3
    return net


def test_it_changes_no_bit_at_first():
    plain, adapted = decoder(), decoder()
    assert len(add_lora(adapted, CONFIG)) == 2 * len(PROJECTIONS)
    assert torch.equal(plain(X), adapted(X))


def test_the_product_is_added_by_its_weight():
    plain = decoder().layers[0].mlp.up_proj
    layer = moved(LoraLinear(plain, LoraConfig(rank=4, alpha=2.0), torch.Generator()))
    wanted = plain(X) + 0.5 * X @ layer.lora_a.T @ layer.lora_b.T
    layer.lora_b.data += 0.0
    torch.testing.assert_close(layer(X), wanted)
    layer.lora_b.data = torch.ones_like(layer.lora_b)
    torch.testing.assert_close(layer(X), plain(X) + 0.5 * (X @ layer.lora_a.T).sum(-1, keepdim=True))


def test_only_its_matrices_are_trained():
    net = decoder()
    add_lora(net, LoraConfig(rank=3, modules=("q_proj", "down_proj")))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    modules = [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert trained == {f"{module}.lora_{which}" for module in modules for which in "ab"}
    net(X).square().sum().backward()
    assert all(p.grad is None for name, p in net.named_parameters() if name not in trained)
    assert all(net.get_parameter(f"{module}.lora_b").grad.abs().sum() > 0 for module in modules)


def test_the_names_of_the_weights_stay():
    plain, adapted = decoder(), decoder()
    add_lora(adapted, CONFIG)
    for name, value in plain.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_merged_it_computes_the_same_and_is_plain(dtype, tolerance):
    net = decoder(dtype)
    before = net(X.to(dtype))
    add_lora(net, CONFIG)
    wanted = moved(net)(X.to(dtype))
    merge_lora(net)
    torch.testing.assert_close(net(X.to(dtype)), wanted, atol=tolerance, rtol=tolerance)
    assert (wanted - before).abs().max() > 0.1
    assert net.state_dict().keys() == decoder().state_dict().keys()
    assert {type(module) for module in net.modules()} == {type(module) for module in decoder().modules()}


def test_merging_rounds_once_to_what_it_is_held_in():
    plain = decoder(torch.bfloat16).layers[0].mlp.up_proj
    layer = moved(LoraLinear(plain, CONFIG, torch.Generator()))
    exact = plain.weight.float() + 2.0 * layer.lora_b @ layer.lora_a
    assert torch.equal(layer.merged().weight, exact.bfloat16())
    assert torch.equal(layer.merged(torch.float32).weight, exact)


def test_the_same_seed_starts_the_same():
    nets = [decoder() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        add_lora(net, CONFIG, seed)
    firsts = [net.layers[0].self_attn.q_proj.lora_a for net in nets]
    assert torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[0], firsts[2])
    assert not torch.equal(firsts[0], nets[0].layers[1].self_attn.q_proj.lora_a)


def test_saved_alone_and_put_back(tmp_path):
    net, path = decoder(), tmp_path / "lora.safetensors"
    add_lora(net, CONFIG)
    save_lora(moved(net), CONFIG, path)
    saved = load_file(path)
    assert sum(value.numel() for value in saved.values()) == 2 * 3 * (16 * 4 + 16 + 8 + 8 + 16 + 3 * (16 + 24))
    assert all(".lora_" in name for name in saved)
    other = decoder()
    assert load_lora(other, path) == CONFIG
    assert torch.equal(net(X), other(X))


def test_says_that_it_is_no_such_file(tmp_path):
    path = tmp_path / "lora.safetensors"
    for write in (lambda: path.write_bytes(b"x"), lambda: save_file({"a": X}, path), path.unlink):
        write()
        with pytest.raises(UserError, match="expected LoRA matrices as `save_lora` writes them, got"):
            load_lora(decoder(), path)


def test_says_that_it_fits_another_decoder(tmp_path):
    path = tmp_path / "lora.safetensors"
    net = decoder()
    add_lora(net, CONFIG)
    save_lora(net, CONFIG, path)
    bigger = Decoder(DecoderConfig(16, 32, 3, 4, 2))
    before = bigger.state_dict().keys()
    with pytest.raises(UserError, match=r"down_proj.lora_a has shape \[3, 24\] instead of \[3, 32\]; .*another"):
        load_lora(bigger, path)
    assert bigger.state_dict().keys() == before
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["lora"]) | {"modules": ["q_proj"]}
    save_file(load_file(path), path, metadata={"lora": json.dumps(facts)})
    with pytest.raises(UserError, match=r"down_proj.lora_a is unknown"):
        load_lora(decoder(), path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0, "alpha": 0.0}, "rank must be at least 1, got 0; alpha must be positive, got 0.0"),
        ({"modules": ("q_proj", "lm_head")}, "modules must be among q_proj.*, got lm_head"),
        ({"modules": ()}, "modules must be among q_proj.*, got none"),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**settings)


def test_a_decoder_that_is_laid_out_for_generation_is_not_adapted():
    """Its joined products would go on as if nothing had been added."""
    net = decoder()
    pack(net, "float32")
    with pytest.raises(AssertionError, match="laid out for generation"):
        add_lora(net, CONFIG)
