"""Weights on disk: strict, frozen, and told apart."""

import pytest
import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.core.weights import fingerprint, load_module, save_module


def make(width=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


def test_what_is_saved_is_loaded_and_frozen(tmp_path):
    saved, loaded = make(), make(seed=1)
    saved[0].weight.data = saved[0].weight.data.T.contiguous().T  # safetensors takes no strides
    save_module(saved, tmp_path / "deep" / "w.safetensors")
    load_module(loaded, tmp_path / "deep" / "w.safetensors")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_fingerprint_is_of_weights_and_their_names():
    module = make()
    assert fingerprint(module) == fingerprint(make()) != fingerprint(make(seed=1))
    assert fingerprint(module) != fingerprint(nn.Sequential(nn.Identity(), *module))
    changed = make()
    changed[1].bias.data += 1e-7
    assert fingerprint(changed) != fingerprint(module)
    assert fingerprint(make().eval().requires_grad_(False)) == fingerprint(module)
    assert len(fingerprint(module)) == 64


def test_says_what_is_wrong(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w.safetensors: expected saved weights, got .* missing or truncated"):
        load_module(make(), path)
    save_module(make(width=4), path)
    wrong = r"0.bias has shape \[4\] instead of \[3\]; 0.weight has shape \[4, 2\] instead of \[3, 2\]"
    with pytest.raises(UserError, match=rf"the weights that model.json describes, got others \({wrong}; .* were mixed"):
        load_module(make(), path)
    with pytest.raises(UserError, match=r"the weights that tokenizer.json describes"):
        load_module(make(), path, "tokenizer.json")
    save_module(make()[0], path)
    with pytest.raises(UserError, match=r"0.bias is missing; 0.weight is missing; 1.bias is missing; 1.weight is mis"):
        load_module(make(), path)
    save_module(nn.Sequential(*make(), nn.LayerNorm(1)), path)
    with pytest.raises(UserError, match=r"got others \(2.bias is unknown; 2.weight is unknown\)"):
        load_module(make(), path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="missing or truncated: copy the run again"):
        load_module(make(), path)
