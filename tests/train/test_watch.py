"""What a training says of itself, and when it stops itself."""

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.train import watch
from brainjanus.train.watch import (
    LEAST,
    REMEMBERED,
    Line,
    Meter,
    Spikes,
    Work,
    Writer,
    cause_of,
    moved,
    peak_rate,
    spoken,
    tensors_in,
)

CPU = torch.device("cpu")


def test_a_jump_exceeds_spread_and_half_the_largest():
    """Of 19 losses of 1 and one of 2: mean 1.05, deviation 0.218; half above the largest is 3."""
    for limit, loss, jumps in ((5, 2.9, False), (5, 3.1, True), (20, 3.1, False), (20, 5.5, True), (0, 99.0, False)):
        spikes = Spikes(float(limit), {"a": [1.0] * (LEAST - 1) + [2.0]})
        assert spikes.jumps("a", loss) == jumps, (limit, loss)
        assert spikes.seen["a"][-1] == (2.0 if jumps else loss), "what stops a training is not what others follow"
    assert math.sqrt(19 * 0.05**2 + 0.95**2) / math.sqrt(20) == pytest.approx(0.218, abs=1e-3)


def test_few_losses_are_nothing_to_compare_with():
    spikes = Spikes(1.0, {"a": [1.0] * (LEAST - 1)})
    assert not spikes.jumps("b", 1000.0)
    assert not spikes.jumps("a", 1.0)
    assert spikes.jumps("a", 1000.0)
    assert spikes.state() == {"a": [1.0] * LEAST, "b": [1000.0]}


def test_losses_may_be_negative():
    spikes = Spikes(1.0, {"a": [-2.0] * LEAST})
    assert not spikes.jumps("a", -1.1)
    assert Spikes(1.0, {"a": [-2.0] * LEAST}).jumps("a", -0.9)


def test_only_the_last_losses_are_remembered():
    spikes = Spikes(5.0)
    for loss in range(REMEMBERED + 7):
        spikes.jumps("a", loss / 100)
    assert spikes.state() == {"a": [loss / 100 for loss in range(7, REMEMBERED + 7)]}


class Batch(NamedTuple):
    voxels: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class Packed:
    name: str
    batch: Batch
    rest: list[torch.Tensor]


NAN = torch.tensor([1.0, float("nan")])


def test_the_cause_is_the_data():
    said = cause_of("brain -> text", [Batch(torch.ones(2), torch.ones(2, dtype=int)), Batch(NAN, NAN)], nn.Linear(1, 1))
    assert said.startswith("The data of this step (brain -> text, voxels) are not finite themselves")


def test_the_cause_is_a_weight():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.bias[1] = float("inf")
    assert cause_of("a", [torch.ones(2)], net).startswith("The weights bias are not finite. Lower the learning rate")


def test_the_cause_is_a_gradient():
    net = nn.Linear(2, 2)
    net.weight.grad, net.bias.grad = torch.ones(2, 2), NAN
    assert cause_of("a", [torch.ones(2)], net).startswith("The gradient of bias overflowed (a); data and weights are")
    net.bias.grad = None
    assert cause_of("a", [torch.ones(2)], net).startswith("It overflowed on the way through the model (a)")


def test_tensors_are_found_and_moved_wherever_they_are():
    packed = Packed("x", Batch(torch.ones(2), torch.zeros(2, dtype=int)), [torch.ones(1)])
    assert [name for name, _ in tensors_in(("a", packed))] == ["1.batch.voxels", "1.batch.rows", "1.rest 0"]
    assert moved(packed, CPU) is packed
    there = moved(("a", packed, None, 3), torch.device("meta"))
    assert (there[0], there[2], there[3], there[1].name) == ("a", None, 3, "x")
    assert all(value.is_meta for _, value in tensors_in(there)) and len(list(tensors_in(there))) == 3
    assert isinstance(there[1], Packed) and isinstance(there[1].batch, Batch) and isinstance(there[1].rest, list)


def test_speed_is_that_of_the_last_seconds(monkeypatch):
    meter = Meter(CPU, torch.float32)
    assert meter.read() == {}
    meter.add(25.0, Work(1000, 10))
    meter.add(2.0, Work(10, 20))
    assert meter.read() == {"steps_per_sec": 2 / 27, "tokens_per_sec": 1010 / 27}
    meter.add(6.0, Work())
    assert meter.read() == {"steps_per_sec": 2 / 8, "tokens_per_sec": 10 / 8}, "33 s are more than are looked back at"


def test_the_share_of_the_peak_comes_once_training_takes_long_enough(monkeypatch):
    now, measured = time.monotonic(), []
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    monkeypatch.setattr(watch, "peak_rate", lambda *of: measured.append(of) or 400.0)
    meter = Meter(CPU, torch.float32)
    meter.add(2.0, Work(0, 100))
    assert meter.read() == {"steps_per_sec": 0.5}
    now += watch.WORTH_SEC + 1
    for _ in range(2):
        assert meter.read() == {"steps_per_sec": 0.5, "share_of_peak": 50 / 400}
    assert measured == [(CPU, torch.float32)], "it is measured once"


def test_the_peak_is_what_products_reach(monkeypatch):
    """The best of several, of any size: 16 x 16 in a quarter of a second are fewer than 32 x 32 in one."""
    monkeypatch.setattr(watch, "SIDES", (16, 32))
    times = iter([0.0, 0.5, 1.0, 1.25, 2.0, 5.0, 6.0, 7.5, 8.0, 9.0, 9.5, 14.0])
    with monkeypatch.context() as patch:
        patch.setattr(watch.time, "perf_counter", lambda: next(times))
        peak = peak_rate(CPU, torch.float32)
    assert peak == 2 * 32**3 / 1.0 and next(times, None) is None


def test_what_the_bar_says():
    losses = {"loss": 1.23456, "nats/image": 2.0, "lr": 0.1}
    assert spoken(losses, {}) == "loss 1.235, image 2.00"
    rates = {"steps_per_sec": 3.0, "tokens_per_sec": 12345.6, "share_of_peak": 0.416}
    assert spoken(losses, rates) == "loss 1.235, image 2.00, 12,346 tokens/s, 42% of the machine's peak"
    assert spoken({}, {}) == ""


class Board:
    """In the place of both sinks."""

    def __init__(self):
        self.said = []

    def __getattr__(self, name):
        return lambda *of, **named: self.said.append((name, *of, *named.items())) or self


@pytest.fixture
def board(monkeypatch):
    board = Board()

    def writer(path, purge_step):
        board.said.append(("to", path, purge_step))
        return board

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    monkeypatch.setitem(sys.modules, "wandb", board)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    return board


def test_tensorboard_is_told_each_value(board, tmp_path):
    writer = Writer("tensorboard", tmp_path, {"steps": 3}, 4)
    writer.write("omni", Line(7, {"loss": 1.5, "lr": 0.1}, "val"))
    writer.close()
    assert board.said == [
        ("to", str(tmp_path / "tensorboard"), 5),
        ("add_scalar", "omni/val/loss", 1.5, 7),
        ("add_scalar", "omni/val/lr", 0.1, 7),
        ("flush",),
        ("close",),
    ]


def test_wandb_is_told_each_line_with_its_own_step(board, tmp_path):
    """A run that goes on is the same one there; the same stage of another run is another."""
    for folder in ("one/omni", "one/omni", "two/omni"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        writer = Writer("wandb", tmp_path / folder, {"steps": 3})
    writer.write("omni", Line(7, {"loss": 1.5}))
    writer.close()
    inits = [dict(said[1:]) for said in board.said[:3]]
    assert inits[0] == inits[1] and inits[0]["id"] != inits[2]["id"]
    assert (inits[2]["project"], inits[2]["name"], inits[2]["config"]) == ("mine", "two-omni", {"steps": 3})
    assert (inits[2]["resume"], inits[2]["dir"]) == ("allow", tmp_path / "two/omni")
    assert board.said[3:] == [("log", {"omni/train/loss": 1.5, "omni/step": 7}), ("finish",)]


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_sink_that_is_not_installed_is_a_sentence(monkeypatch, tmp_path, sink, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"expected the package {sink}, got .* pip install 'brainjanus\[{sink}\]'"):
        Writer(sink, tmp_path, {})


def test_a_training_tells_its_sinks(board, tmp_path):
    from brainjanus.train.fit import Steps, Watch, fit
    from brainjanus.train.optim import OptimConfig

    config = OptimConfig(steps=4, log_every=1, save_every=2, precision="float32", optimizer="adamw")

    def draw(step, *_):
        if step == 3 and not board.said.count(("close",)):
            raise RuntimeError("the machine was switched off")
        return torch.ones(2, 2)

    steps = Steps(draw, lambda call, batch, *_: {"loss": call(batch).square().sum()})
    for stopped in (True, False):
        with pytest.raises(RuntimeError) if stopped else nullcontext():
            net = nn.Linear(2, 1)
            fit(net, steps, config, stage="test", folder=tmp_path, seed=0, watch=Watch(sinks=("tensorboard",)))
    told = [said[3] for said in board.said if said[0] == "add_scalar" and said[1] == "test/train/loss"]
    assert told == [1, 2, 3, 3, 4]
    purged = [said[2] for said in board.said if said[0] == "to"]
    assert purged == [1, 3], "step 3, which was told behind the last saved state, comes again"
    assert board.said[-1] == ("close",)
