"""fit: stopped and gone on with, it is the training that was never stopped."""

import json
import os
import signal

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from brainjanus.core.errors import UserError
from brainjanus.train.fit import Log, fit
from brainjanus.train.optim import OptimConfig

CONFIG = OptimConfig(steps=9, learning_rate=0.05, precision="float32", log_every=2, save_every=4)


class Net(nn.Module):
    """Weights of every kind that is treated apart: matrices, vectors, one that is not always used, a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 1)
        self.seldom = nn.Parameter(torch.ones(4, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def training(net, at=None, do=lambda: None):
    """Losses of a regression; at step `at`, something happens."""

    def losses_of(step, generator):
        if step == at:
            do()
        x = torch.randn(8, 4, generator=generator)
        net.seen += 1
        error = (net(x @ net.seldom if step % 3 == 2 else x)[:, 0] - x.sum(dim=1)).square().mean()
        return {"loss": error, "odd": error.detach() * 2} if step % 2 else {"loss": error}

    return losses_of


def run(folder, at=None, do=lambda: None, config=CONFIG, seed=3):
    net = Net()
    fit(net, training(net, at, do), config, stage="test", folder=folder, seed=seed)
    return net


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def stop():
    raise RuntimeError("the machine was switched off")


def log(folder):
    return (folder / "log.jsonl").read_text()


def assert_same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), log(folder)


@pytest.mark.parametrize("at", range(9))
def test_interrupted_and_gone_on_with_is_the_same_training(tmp_path, uninterrupted, at):
    with pytest.raises(KeyboardInterrupt, match=f"test is saved at step {at + 1} of 9"):
        run(tmp_path, at, interrupt)
    net = run(tmp_path)
    assert_same(uninterrupted[0], net)
    assert log(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("at", [2, 4, 5, 7])
def test_switched_off_and_gone_on_with_is_the_same_training(tmp_path, uninterrupted, at):
    """Without a warning: what was logged behind the last saved state is dropped and comes again."""
    with pytest.raises(RuntimeError):
        run(tmp_path, at, stop)
    assert_same(uninterrupted[0], run(tmp_path))
    assert log(tmp_path) == uninterrupted[1]


def test_interrupted_twice(tmp_path, uninterrupted):
    for at in (1, 6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, at, interrupt)
    assert_same(uninterrupted[0], run(tmp_path))
    assert log(tmp_path) == uninterrupted[1]


def test_a_line_of_the_log_that_was_cut_short_is_dropped(tmp_path, uninterrupted):
    with pytest.raises(RuntimeError):
        run(tmp_path, 6, stop)
    (tmp_path / "log.jsonl").write_text(log(tmp_path)[:-9])
    run(tmp_path)
    assert log(tmp_path) == uninterrupted[1]


def test_what_is_finished_is_not_trained_again(tmp_path, uninterrupted):
    run(tmp_path)
    assert_same(uninterrupted[0], run(tmp_path, at=0, do=stop))
    assert log(tmp_path) == uninterrupted[1]


def test_it_learns_and_says_so(tmp_path):
    net = run(tmp_path, config=OptimConfig(steps=60, learning_rate=0.05, precision="float32", log_every=20))
    lines = [json.loads(line) for line in log(tmp_path).splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert all(line["stage"] == "test" for line in lines)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert not net.training


def test_a_line_of_the_log_is_the_mean_since_the_last(tmp_path):
    log = Log(tmp_path / "log.jsonl", "test", 0, {})
    for step, write in ((1, False), (2, True), (3, True)):
        losses = {"loss": torch.tensor(float(step))} | ({"b": torch.tensor(8.0)} if step == 1 else {})
        log.add(step, losses, lr=0.5, write=write)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "test", "step": 2, "lr": 0.5, "loss": 1.5, "b": 8.0},
        {"stage": "test", "step": 3, "lr": 0.5, "loss": 3.0},
    ]


def test_the_seed_decides(tmp_path, uninterrupted):
    other = run(tmp_path, seed=4)
    assert not torch.equal(other.head.weight, uninterrupted[0].head.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path, uninterrupted, value):
    net = Net()
    losses_of = training(net)

    def spoiled(step, generator):
        losses = losses_of(step, generator)
        return losses | {"loss": losses["loss"] * value} if step == 6 else losses

    with pytest.raises(UserError, match=f"test: expected a finite loss, got {value} at step 6. The last saved state"):
        fit(net, spoiled, CONFIG, stage="test", folder=tmp_path, seed=3)
    assert json.loads((tmp_path / "state/state.json").read_text())["step"] == 4
    assert_same(uninterrupted[0], run(tmp_path))


@pytest.mark.parametrize(
    ("config", "seed", "message"),
    [
        (OptimConfig(steps=9, learning_rate=0.01, precision="float32", log_every=2, save_every=4), 3, "0.05 -> 0.01"),
        (CONFIG, 4, "seed 3 -> 4"),
    ],
)
def test_goes_on_with_the_same_settings_only(tmp_path, config, seed, message):
    run(tmp_path)
    with pytest.raises(UserError, match=f"expected the config that this training was started with.*{message}"):
        run(tmp_path, config=config, seed=seed)


def test_what_is_frozen_stays(tmp_path):
    net = Net()
    net.layers[0].requires_grad_(False)
    before = net.layers[0].weight.clone()
    fit(net, training(net), CONFIG, stage="test", folder=tmp_path, seed=3)
    assert torch.equal(net.layers[0].weight, before)
    assert not torch.equal(net.layers[1].weight, Net().layers[1].weight)


def test_gradients_are_clipped(tmp_path):
    """The first step of a clipped training does not depend on the size of the loss, but for Adam's epsilon."""
    net = Net()
    squares = []

    def note(optimizer, *_):
        ours = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares.append(float(sum(p.grad.square().sum() for p in ours)))

    def losses_of(step, generator):
        return {"loss": 1000.0 * training(net)(step, generator)["loss"]}

    hook = register_optimizer_step_pre_hook(note)
    config = OptimConfig(steps=1, precision="float32", clip=1e-3)
    fit(net, losses_of, config, stage="test", folder=tmp_path, seed=3)
    hook.remove()
    assert sum(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_a_full_disk_while_the_log_grows_is_a_sentence(tmp_path, monkeypatch):
    """The last saved state is intact, and goes on."""
    from pathlib import Path

    run(tmp_path / "whole")
    opened = Path.open

    def full(self, *arguments, **named):
        if self.name == "log.jsonl" and arguments == ("a",):
            raise OSError(28, "No space left on device")
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="got a full disk"):
        run(tmp_path / "stopped")
    monkeypatch.undo()
    run(tmp_path / "stopped")
    assert (tmp_path / "stopped/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_a_damaged_line_of_the_log_is_a_sentence(tmp_path):
    run(tmp_path)
    (tmp_path / "log.jsonl").write_text("what?\n")
    with pytest.raises(UserError, match="The log is damaged"):
        run(tmp_path)
