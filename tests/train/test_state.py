"""Saved state: whole or not at all, and back bit for bit."""

import hashlib
import json
import os
import resource
import shutil
import signal
import threading

import pytest
import torch
from safetensors import safe_open
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.train import state as module
from brainjanus.train.optim import OptimConfig, optimizers_of
from brainjanus.train.state import frozen_fingerprint, generator_of, interruptible, load_state, save_state

WEIGHTS = "shard-00001-model-00001-of-00001.safetensors"
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
    facts = load_state(tmp_path / "state", other, others, CONFIG)
    assert (facts["step"], facts["config"]) == (2, CONFIG)
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
    names = sorted(p.name for p in (tmp_path / "state/step-00000002").iterdir())
    assert names == ["shard-00001-model-00001-of-00001.safetensors", "state.json"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("rooms", [0, 100, 1500], ids=["nothing", "weights", "facts"])
def test_a_full_disk_leaves_the_earlier_states(tmp_path, rooms):
    """As the kernel says it: no file may grow beyond so many bytes."""
    net, optimizers = trained()
    folder = tmp_path / "state"
    save_state(folder, net, optimizers, {"step": 2, "config": CONFIG})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step(net, optimizers)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    facts = {"step": 3, "config": CONFIG, "text": "x" * 5000}
    resource.setrlimit(resource.RLIMIT_FSIZE, (rooms, limits[1]))
    try:
        with pytest.raises(UserError, match=r"expected room to write it, got a full disk \(File too large\)"):
            save_state(folder, net, optimizers, facts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == ["step-00000002"]
    other, others = trained(0, seed=1)
    assert load_state(folder, other, others, CONFIG)["step"] == 2
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


def test_two_states_are_kept(tmp_path):
    net, optimizers = trained()
    for done in (2, 4, 30):
        save_state(tmp_path, net, optimizers, {"step": done, "config": CONFIG})
        step(net, optimizers)
    assert names(tmp_path) == ["step-00000004", "step-00000030"]
    assert load_state(tmp_path, *trained(0), CONFIG)["step"] == 30


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    net, optimizers = trained()
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG})
    step(net, optimizers)
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG})
    assert names(tmp_path) == ["step-00000002"]
    other, others = trained(0, seed=1)
    load_state(tmp_path, other, others, CONFIG)
    assert torch.equal(other[0].weight, net[0].weight)


@pytest.mark.parametrize("there", [True, False], ids=["before", "after"])
def test_one_that_was_killed_before_it_had_its_name_is_given_it(tmp_path, monkeypatch, there):
    """Before or after the state of the same step was removed: either way it is complete, and proven."""
    net, optimizers = trained()
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG})
    step(net, optimizers)
    done, beside = tmp_path / "step-00000002", tmp_path / ".step-00000002.part"
    monkeypatch.setattr(module, "give_name", lambda *_: shutil.copytree(beside, tmp_path / "copy"))
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG})
    monkeypatch.undo()
    (tmp_path / "copy").rename(beside)
    if not there:
        shutil.rmtree(done)
    other, others = trained(0, seed=1)
    assert load_state(tmp_path, other, others, CONFIG)["step"] == 2
    assert torch.equal(other[0].weight, net[0].weight)
    assert names(tmp_path) == ["step-00000002"]


@pytest.mark.parametrize("missing", ["state.json", WEIGHTS])
def test_one_that_was_killed_while_it_was_written_is_removed(tmp_path, missing):
    save_state(tmp_path, *trained(), {"step": 2, "config": CONFIG})
    shutil.copytree(tmp_path / "step-00000002", tmp_path / ".step-00000003.part")
    path = tmp_path / ".step-00000003.part" / missing
    path.write_bytes(path.read_bytes()[:-5])
    assert load_state(tmp_path, *trained(0), CONFIG)["step"] == 2
    assert names(tmp_path) == ["step-00000002"]


def test_refuses_another_config_and_changes_nothing(tmp_path):
    save_state(tmp_path / "state", *trained(), {"step": 2, "config": CONFIG})
    other, others = trained(0, seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match=r"got another \(learning_rate 0.1 -> 0.2, warmup None -> 0\)"):
        load_state(tmp_path / "state", other, others, {"steps": 4, "learning_rate": 0.2, "warmup": 0})
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())


def spoil(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-5])
    elif how == "changed":
        path.write_bytes(content[:-5] + bytes(byte ^ 1 for byte in content[-5:]))
    else:
        path.unlink()


@pytest.mark.parametrize("file", ["state.json", WEIGHTS])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_state_is_said_and_the_one_before_gone_on_from(tmp_path, capsys, file, how):
    net, optimizers = trained()
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG})
    before = net[0].weight.detach().clone()
    step(net, optimizers)
    save_state(tmp_path, net, optimizers, {"step": 3, "config": CONFIG})
    spoil(tmp_path / "step-00000003" / file, how)
    other, others = trained(0, seed=1)
    assert load_state(tmp_path, other, others, CONFIG)["step"] == 2
    assert torch.equal(other[0].weight, before)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tmp_path / 'step-00000003'}: expected a saved training state, got ")
    assert said.endswith("It is damaged. Going on from step 2.")
    assert names(tmp_path) == ["step-00000002"]


@pytest.mark.parametrize("file", ["state.json", WEIGHTS])
def test_if_all_are_damaged_it_says_what_to_do(tmp_path, file):
    net, optimizers = trained()
    for done in (2, 3):
        save_state(tmp_path, net, optimizers, {"step": done, "config": CONFIG})
        spoil(tmp_path / f"step-{done:08d}" / file, "cut")
    with pytest.raises(UserError, match=f"step-00000003: .* It is damaged. Delete {tmp_path} to train this stage from"):
        load_state(tmp_path, *trained(0), CONFIG)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_state_json_can_be_read_by_a_person(tmp_path):
    save_state(tmp_path, *trained(), {"step": 2, "config": CONFIG})
    facts = json.loads((tmp_path / "step-00000002/state.json").read_text())
    weights = (tmp_path / "step-00000002" / WEIGHTS).read_bytes()
    assert (facts["step"], facts["config"]) == (2, CONFIG)
    assert facts["slots"]["0.weight"] == ["step", "exp_avg", "exp_avg_sq"]
    assert facts["files"] == {WEIGHTS: {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}}


def test_moments_come_back_bit_for_bit_with_their_steps(tmp_path):
    """Of the optimizers that trainings use, fused, for parameters that took part in some steps, or none."""
    config = OptimConfig(optimizer="muon", learning_rate=0.1)

    def make(seed):
        torch.manual_seed(seed)
        net = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 1)})
        net["often"], net["seldom"], net["never"] = (nn.Linear(4, 4) for _ in range(3))
        return net, optimizers_of(net, config)

    def train(net, optimizers, numbers):
        for number in numbers:
            net.zero_grad()
            x = net["often"](torch.linspace(-1, 1, 12).reshape(3, 4) + number)
            x = net["seldom"](x) if number % 3 == 1 else x
            net["head"](net["layers"][0](x)).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    net, optimizers = make(0)
    train(net, optimizers, range(4))
    save_state(tmp_path, net, optimizers, {"step": 4, "config": CONFIG})
    other, others = make(1)
    load_state(tmp_path, other, others, CONFIG)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        own, loaded = ({k: v for o in of for k, v in o.state.get(p, {}).items()} for of, p in
                       ((optimizers, mine), (others, theirs)))  # fmt: skip
        assert own.keys() == loaded.keys()
        assert all(torch.equal(own[k], loaded[k]) and own[k].dtype == loaded[k].dtype for k in own)
    steps = [float(state["step"]) for state in others[0].state.values()]
    assert sorted(set(steps)) == [1, 4]
    train(net, optimizers, range(4, 9))
    train(other, others, range(4, 9))
    assert all(torch.equal(net.state_dict()[k], v) for k, v in other.state_dict().items())


def test_averages_are_saved_and_what_is_frozen_is_not(tmp_path):
    net, optimizers = trained()
    net[0].requires_grad_(False)
    averages = {"1.weight": torch.full((2, 4), 0.25)}
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG}, averages)
    with safe_open(tmp_path / "step-00000002" / WEIGHTS, "pt") as file:
        assert not [name for name in file.keys() if name.startswith("model.0")]  # noqa: SIM118
    loaded = {"1.weight": torch.zeros(2, 4)}
    other, others = trained(0, seed=1)
    other[0].requires_grad_(False)
    load_state(tmp_path, other, others, CONFIG, averages=loaded)
    assert torch.equal(loaded["1.weight"], averages["1.weight"])


def test_frozen_weights_have_to_be_those_that_it_began_with(tmp_path):
    net, optimizers = trained()
    net[0].requires_grad_(False)
    frozen = frozen_fingerprint(net)
    save_state(tmp_path, net, optimizers, {"step": 2, "config": CONFIG, "frozen": frozen})
    assert load_state(tmp_path, net, optimizers, CONFIG, frozen)["step"] == 2
    with torch.no_grad():
        net[0].bias += 1
    with pytest.raises(UserError, match=r"expected the frozen weights that this training began with .*, got others"):
        load_state(tmp_path, net, optimizers, CONFIG, frozen_fingerprint(net))
    assert frozen_fingerprint(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", ["log_every", "save_every", "sample_every", "spike", "recompute"])
def test_how_often_is_said_and_saved_may_change_under_way(tmp_path, name):
    save_state(tmp_path, *trained(), {"step": 2, "config": CONFIG | {name: 3}})
    assert load_state(tmp_path, *trained(0), CONFIG | {name: 4})["step"] == 2


def test_each_step_has_randomness_of_its_own():
    pairs = [(seed, step) for seed in (0, 1, -1) for step in (0, 1, 2)]
    draws = {pair: torch.rand(4, generator=generator_of(*pair)) for pair in pairs}
    assert len({tuple(values.tolist()) for values in draws.values()}) == 9
    assert torch.equal(draws[0, 1], torch.rand(4, generator=generator_of(0, 1)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_a_second_ctrl_c_interrupts(number):
    """A second SIGTERM does not: what it asks for is under way, and Slurm may send it to more than one process."""
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted
        os.kill(os.getpid(), number)
        assert interrupted == [number]
        if number == signal.SIGTERM:
            signal.raise_signal(number)
            assert interrupted == [number, number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
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
def test_facts_that_say_nothing_are_damage(tmp_path, facts, capsys):
    """Of the first state, no more than the first interval is lost: it begins anew."""
    net, optimizers = trained()
    save_state(tmp_path / "state", net, optimizers, {"step": 2, "config": {}})
    (tmp_path / "state/step-00000002/state.json").write_text(facts)
    assert load_state(tmp_path / "state", net, optimizers, {"save_every": 2}) is None
    assert capsys.readouterr().err.strip().endswith("It is damaged. Starting this stage anew.")


def test_a_damaged_state_beyond_the_first_interval_is_not_begun_anew_in_silence(tmp_path, capsys):
    """The one before it was left out as damaged, or removed by somebody."""
    net, optimizers = trained()
    for done in (2, 3):
        save_state(tmp_path, net, optimizers, {"step": done, "config": {}})
    settings = {"save_every": 1}
    spoil(tmp_path / "step-00000003" / WEIGHTS, "cut")
    assert load_state(tmp_path, *trained(0), settings)["step"] == 2
    spoil(tmp_path / "step-00000002" / WEIGHTS, "cut")
    with pytest.raises(UserError, match=f"step-00000002: .* It is damaged. Delete {tmp_path} to train this stage from"):
        load_state(tmp_path, *trained(0), settings)
    assert names(tmp_path) == ["step-00000002"]


def test_a_file_that_is_none_of_a_state_s_is_damage(tmp_path):
    save_state(tmp_path, *trained(), {"step": 2, "config": CONFIG})
    shutil.copy2(tmp_path / "step-00000002" / WEIGHTS, tmp_path / "step-00000002/other.safetensors")
    with pytest.raises(UserError, match=r"got 'other\.safetensors, which is none of its files'\. It is damaged"):
        load_state(tmp_path, *trained(0), CONFIG)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(7, 5)), lambda: nn.Sequential(nn.Linear(3, 5))])
def test_the_weights_of_another_model_are_damage(tmp_path, make):
    other = make()
    save_state(tmp_path, other, [torch.optim.SGD(other.parameters())], {"step": 2, "config": {}})
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(UserError, match="weights of another model"):
        load_state(tmp_path, net, [torch.optim.SGD(net.parameters())], {})
    with pytest.raises(UserError, match="weights of another model"):
        load_state(tmp_path, *trained(0), {})
