"""Linear layers laid out for generation, against F.linear."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brainjanus.core import linear as module
from brainjanus.core.errors import UserError
from brainjanus.core.linear import Joined, PackedLinear, Product, pack, resolve

CPU = torch.device("cpu")


def make(outputs=24, inputs=16, bias=False, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch):
    monkeypatch.setattr(module, "WORTH", 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 4, 8, 17])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_a_product_is_that_of_f_linear(rows, bias, precision, tolerance):
    linear = make(bias=bias)
    x = torch.randn(rows, 1, 16)
    product = Product(linear.weight, linear.bias, precision)
    torch.testing.assert_close(product(x), linear(x), atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not module.has_half(), reason="torch was built without products with float16 weights")
def test_in_float16_only_weights_are_rounded():
    linear = make(64, 64)
    x = torch.randn(5, 64)
    rounded = F.linear(x, linear.weight.half().float())
    torch.testing.assert_close(Product(linear.weight, None, "float16")(x), rounded, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not module.has_blocked(), reason="torch was built without oneDNN")
def test_many_rows_take_the_blocked_order_and_few_do_not(monkeypatch):
    linear = make()
    product = Product(linear.weight, None, "float32")
    product.weight = torch.zeros_like(linear.weight)  # so that one sees which is read
    assert not product(torch.ones(3, 16)).any()
    assert product(torch.ones(4, 16)).all()
    monkeypatch.setattr(module, "WORTH", 4 * 16 * 24 + 1)
    assert not product(torch.ones(4, 16)).any()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_without_private_operators_it_is_f_linear(monkeypatch, precision):
    monkeypatch.setattr(module, "has_half", lambda: False)
    monkeypatch.setattr(module, "has_blocked", lambda: False)
    linear = make(bias=True)
    packed = PackedLinear(linear, precision)
    x = torch.randn(6, 16)
    assert torch.equal(packed(x), linear(x))
    assert packed.weight.dtype == torch.float32


def test_joined_layers_stand_behind_each_other_and_share_their_memory():
    layers = [make(24), make(8, seed=1)]
    weights = [layer.weight.clone() for layer in layers]
    x = torch.randn(5, 16)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    joined = Joined(layers, "float32")
    torch.testing.assert_close(joined(x), expected)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    assert all(layer.weight.untyped_storage().data_ptr() == joined.product.weight.data_ptr() for layer in layers)


def network():
    return nn.Sequential(make(bias=True), nn.GELU(), nn.Sequential(make(4, 24)))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_packed_module_computes_the_same(precision):
    model, x = network(), torch.randn(9, 16)
    expected = model(x)
    pack(model, precision)
    torch.testing.assert_close(model(x), expected, atol=2e-3, rtol=2e-3)
    assert isinstance(model[2][0], PackedLinear)


def test_packing_in_float32_keeps_names_and_values():
    model, same = network(), network()
    pack(model, "float32")
    torch.testing.assert_close(dict(model.state_dict()), dict(same.state_dict()), atol=0, rtol=0)


@pytest.mark.skipif(not module.has_half(), reason="torch was built without products with float16 weights")
def test_rounded_weights_are_kept_once_and_not_saved():
    model, layers = network(), [make(24), make(8, seed=1)]
    pack(model, "float16")
    Joined(layers, "float16")
    assert not [name for name, _ in model.named_parameters() if name.endswith("weight")]
    for one in (model, layers[0]):
        with pytest.raises(UserError, match=r"got weights rounded for generation\. Load it with precision float32"):
            one.state_dict()


def test_a_layer_that_is_trained_again_reads_its_weights():
    layer = PackedLinear(make(), "float32")
    layer.train()
    with torch.no_grad():
        layer.weight.zero_()
    assert not layer.eval()(torch.ones(5, 16)).any()


def test_auto_is_float32_for_small_models_and_half_for_large_ones(monkeypatch):
    monkeypatch.setattr(module, "has_half", lambda: True)
    assert resolve("auto", 3_000_000, CPU) == "float32"
    assert resolve("auto", 100_000_000, CPU) == "float16"
    assert resolve("auto", 3_000_000, torch.device("cuda")) == "bfloat16"
    assert resolve("float32", 100_000_000, CPU) == "float32"
    monkeypatch.setattr(module, "has_half", lambda: False)
    assert resolve("auto", 100_000_000, CPU) == "float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision: expected auto, float32, bfloat16 or float16, got 'half'"):
        resolve("half", 1, CPU)
