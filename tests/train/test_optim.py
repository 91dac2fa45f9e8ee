"""Schedule and optimizers."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.model.decoder import Decoder, DecoderConfig
from brainjanus.model.lora import LoraConfig, add_lora
from brainjanus.train.muon import Muon
from brainjanus.train.optim import OptimConfig, autocast_dtype, learning_rate, optimizers_of


def test_the_rate_goes_up_linearly_and_down_to_a_twentieth():
    config = OptimConfig(steps=100, learning_rate=0.2, warmup=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.2 * (0.05 + 0.95 / 2))
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert learning_rate(config, 100) == pytest.approx(0.01)


def test_one_step_is_a_training():
    assert learning_rate(OptimConfig(steps=1, learning_rate=0.2), 0) == pytest.approx(0.2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 2)
        self.places = nn.Parameter(torch.zeros(4, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_weight_that_is_trained_has_one_optimizer(optimizer):
    net = Net()
    optimizers = optimizers_of(net, OptimConfig(optimizer=optimizer))
    theirs = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(theirs) == len(set(theirs))
    assert set(theirs) == {p for p in net.parameters() if p.requires_grad}


def test_muon_moves_hidden_matrices_and_adamw_the_rest():
    net = Net()
    adamw, muon = optimizers_of(net, OptimConfig(weight_decay=0.3))
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(muon, Muon)
    assert [p is net.layers[0].weight for group in muon.param_groups for p in group["params"]] == [True]
    assert [type(o) for o in optimizers_of(net, OptimConfig(optimizer="adamw"))] == [torch.optim.AdamW]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_vectors_and_positions_are_not_decayed(optimizer):
    net = Net()
    optimizers = optimizers_of(net, OptimConfig(optimizer=optimizer, weight_decay=0.3))
    decay = {p: group["weight_decay"] for o in optimizers for group in o.param_groups for p in group["params"]}
    assert {n for n, p in net.named_parameters() if decay.get(p)} == {"layers.0.weight", "embed.weight", "head.weight"}


def test_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) == torch.float32
    assert autocast_dtype("bfloat16", cpu) == torch.bfloat16
    assert autocast_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_follows_the_machine(monkeypatch, supported):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert autocast_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if supported else torch.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"weight_decay": -3.0}, "weight_decay must be at least 0, got -3.0"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
        ({"optimizer": "sgd"}, "optimizer must be muon or adamw, got 'sgd'"),
        ({"precision": "half"}, "precision must be auto, float32 or bfloat16, got 'half'"),
        ({"steps": 0, "warmup": -1.0}, "steps must .*; warmup must"),
    ],
)
def test_says_what_is_wrong(settings, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**settings)


def test_the_factors_of_lora_go_to_adamw_and_are_not_decayed():
    decoder = Decoder(DecoderConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1))
    add_lora(decoder, LoraConfig(rank=2, modules=("q_proj",)))
    (adamw,) = optimizers_of(decoder, OptimConfig(weight_decay=0.3))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(len(group["params"]), group["weight_decay"]) for group in adamw.param_groups] == [(0, 0.3), (2, 0.0)]
