"""Saved state: whole or not at all, and back bit for bit."""

import json
import os
import signal
import threading

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.train import state as module
from brainjanus.train.optim import OptimConfig
from brainjanus.train.state import generator_of, interruptible, load_state, save_state

CONFIG = {"steps": 4, "learning_rate": 0.1}


def trained(steps=2, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    adam = torch.optim.AdamW(net[:1].parameters(), lr=0.1)
    optimizers = [adam, torch.optim.SGD(net[1:].parameters(), lr=0.1, momentum=0.9)]
    for _ in range(steps):
        step(net, optimizers)
    return net, optimizers


def step(net, optimizers):
    net.zero_grad()
    net(torch.arange(15.0).reshape(5, 3).sin()).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_a_state_goes_on_as_if_nothing_had_happened(tmp_path):
    net, optimizers = trained()
    save_state(tmp_path / "state", net, optimizers, {"step": 2, "config": CONFIG})
    other, others = trained(0, seed=1)
    assert load_state(tmp_path / "state", other, others, CONFIG) == {"step": 2, "config": CONFIG}
    for _ in range(2):
        step(net, optimizers)
        step(other, others)
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_there_may_be_no_state(tmp_path):
    net, optimizers = trained(0)
    assert load_state(tmp_path / "state", net, optimizers, CONFIG) is None


def test_nothing_is_pickled(tmp_path):
    save_state(tmp_path / "state", *trained(), {"step": 2, "config": CONFIG})
    names = sorted(p.name for p in (tmp_path / "state").iterdir())
    assert names == ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("call", [1, 2], ids=["weights", "moments"])
def test_a_full_disk_leaves_the_earlier_state(tmp_path, monkeypatch, call):
    net, optimizers = trained()
    save_state(tmp_path / "state", net, optimizers, {"step": 2, "config": CONFIG})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step(net, optimizers)
    save, calls = module.save_file, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(*arguments)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(UserError, match=r"expected room to write it, got a full disk \(No space left on device\)"):
        save_state(tmp_path / "state", net, optimizers, {"step": 3, "config": CONFIG})
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    other, others = trained(0, seed=1)
    assert load_state(tmp_path / "state", other, others, CONFIG)["step"] == 2
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


def test_refuses_another_config_and_changes_nothing(tmp_path):
    save_state(tmp_path / "state", *trained(), {"step": 2, "config": CONFIG})
    other, others = trained(0, seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match=r"got another \(learning_rate 0.1 -> 0.2, warmup None -> 0\)"):
        load_state(tmp_path / "state", other, others, {"steps": 4, "learning_rate": 0.2, "warmup": 0})
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_says_that_it_is_damaged(tmp_path, file):
    save_state(tmp_path / "state", *trained(), {"step": 2, "config": CONFIG})
    path = tmp_path / "state" / file
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="It is damaged: delete the folder to train this stage from its start"):
        load_state(tmp_path / "state", *trained(0), CONFIG)
    path.unlink()
    with pytest.raises(UserError, match="expected a saved training state"):
        load_state(tmp_path / "state", *trained(0), CONFIG)


def test_state_json_can_be_read_by_a_person(tmp_path):
    save_state(tmp_path / "state", *trained(), {"step": 2, "config": CONFIG})
    assert json.loads((tmp_path / "state/state.json").read_text()) == {"step": 2, "config": CONFIG}


def test_each_step_has_randomness_of_its_own():
    pairs = [(seed, step) for seed in (0, 1, -1) for step in (0, 1, 2)]
    draws = {pair: torch.rand(4, generator=generator_of(*pair)) for pair in pairs}
    assert len({tuple(values.tolist()) for values in draws.values()}) == 9
    assert torch.equal(draws[0, 1], torch.rand(4, generator=generator_of(0, 1)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_interrupts(number):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted
        os.kill(os.getpid(), number)
        assert interrupted == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_stay_as_they_are():
    before, seen = signal.getsignal(signal.SIGINT), []

    def run():
        with interruptible() as interrupted:
            seen.append((list(interrupted), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_the_settings_of_fit_are_plain_values():
    """What `fit` compares on a resume survives JSON: tuples become lists before they are compared."""
    from brainjanus.core.config import to_dict

    assert json.loads(json.dumps(to_dict(OptimConfig()))) == to_dict(OptimConfig())


@pytest.mark.parametrize("facts", ["{}", '{"config": 3, "step": 1}', '{"config": {}, "step": "two"}'])
def test_facts_that_say_nothing_are_damage(tmp_path, facts):
    net, optimizers = trained()
    save_state(tmp_path / "state", net, optimizers, {"step": 2, "config": {}})
    (tmp_path / "state/state.json").write_text(facts)
    with pytest.raises(UserError, match="It is damaged"):
        load_state(tmp_path / "state", net, optimizers, {})


def test_the_weights_of_another_model_are_damage(tmp_path):
    net, optimizers = trained()
    save_state(tmp_path / "state", nn.Linear(7, 5), optimizers, {"step": 2, "config": {}})
    with pytest.raises(UserError, match="weights of another model"):
        load_state(tmp_path / "state", net, optimizers, {})
