"""fit: stopped and gone on with, it is the training that was never stopped."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from brainjanus.core.errors import Preempted, UserError
from brainjanus.train.fit import Loop, Steps, Watch, fit
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import Hardware, skeleton
from brainjanus.train.watch import Log, Work

CONFIG = OptimConfig(steps=9, learning_rate=0.05, precision="float32", log_every=2, save_every=4)
CONFIG_OF_8 = replace(CONFIG, batch_size=8)


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

    def draw(step, generator, rows):
        return step, torch.randn(8, 4, generator=generator)[rows]

    def losses(call, batch, generator, counts):
        step, x = batch
        if step == at:
            do()
        net.seen += 1
        error = (call(x @ net.seldom if step % 3 == 2 else x)[:, 0] - x.sum(dim=1)).square().sum() / counts[0]
        return {"loss": error, "odd": error.detach() * 2} if step % 2 else {"loss": error}

    return Steps(draw, losses, counts=lambda batch: torch.tensor([float(len(batch[1]))]))


def run(folder, at=None, do=lambda: None, config=CONFIG, seed=3, begins=None, **how):
    """begins: the step that it has to begin with."""
    net, drawn = Net(), []
    steps = training(net, at, do)

    def draw(step, *of):
        drawn.append(step)
        return steps.draw(step, *of)

    net = fit(net, replace(steps, draw=draw), config, stage="test", folder=folder, seed=seed, **how)
    assert begins is None or drawn[:1] == list(range(config.steps))[begins:][:1]
    return net


def saved(folder):
    """The steps of the states that are kept."""
    return sorted(int(state.name[5:]) for state in (folder / "state").iterdir())


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def stop():
    raise RuntimeError("the machine was switched off")


def log(folder):
    """Its lines, but for how fast it went."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("per_sec")} for line in lines]


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
    net = run(tmp_path, begins=at + 1)
    assert_same(uninterrupted[0], net)
    assert log(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize("at", [2, 4, 5, 7])
def test_switched_off_and_gone_on_with_is_the_same_training(tmp_path, uninterrupted, at):
    """Without a warning: what was logged behind the last saved state is dropped and comes again."""
    with pytest.raises(RuntimeError):
        run(tmp_path, at, stop)
    assert_same(uninterrupted[0], run(tmp_path, begins=at - at % 4))
    assert log(tmp_path) == uninterrupted[1]


def test_interrupted_twice(tmp_path, uninterrupted):
    for at in (1, 6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, at, interrupt)
    assert_same(uninterrupted[0], run(tmp_path, begins=7))
    assert log(tmp_path) == uninterrupted[1]


def test_a_line_of_the_log_that_was_cut_short_is_dropped(tmp_path, uninterrupted):
    with pytest.raises(RuntimeError):
        run(tmp_path, 6, stop)
    text = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(text[:-9])
    run(tmp_path)
    assert log(tmp_path) == uninterrupted[1]


def test_what_is_finished_is_not_trained_again(tmp_path, uninterrupted):
    run(tmp_path)
    assert_same(uninterrupted[0], run(tmp_path, at=0, do=stop))
    assert log(tmp_path) == uninterrupted[1]


def test_it_learns_and_says_so(tmp_path):
    net = run(tmp_path, config=OptimConfig(steps=60, learning_rate=0.05, precision="float32", log_every=20))
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert all(line["stage"] == "test" for line in lines)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert not net.training


def test_a_line_of_the_log_is_the_mean_since_the_last(tmp_path):
    logged = Log(tmp_path / "log.jsonl", "test", 0, {})
    for step, write in ((1, False), (2, True), (3, True)):
        logged.add({"loss": float(step)} | ({"b": 8.0} if step == 1 else {}))
        if write:
            logged.write(logged.means(step, lr=0.5))
    assert log(tmp_path) == [
        {"stage": "test", "step": 2, "lr": 0.5, "loss": 1.5, "b": 8.0},
        {"stage": "test", "step": 3, "lr": 0.5, "loss": 3.0},
    ]


def test_the_seed_decides(tmp_path, uninterrupted):
    other = run(tmp_path, seed=4)
    assert not torch.equal(other.head.weight, uninterrupted[0].head.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path, uninterrupted, value):
    net = Net()
    steps = training(net)

    def spoiled(call, batch, generator, counts):
        losses = steps.losses(call, batch, generator, counts)
        return losses | {"loss": losses["loss"] * value} if batch[0] == 6 else losses

    before = {}

    def note(optimizer, *_):
        before.update({name: value.clone() for name, value in net.named_parameters()})

    hook = register_optimizer_step_post_hook(note)
    with pytest.raises(
        UserError, match=f"test: expected a finite loss, got {value} at step 6. .* data and weights are"
    ):
        fit(net, replace(steps, losses=spoiled), CONFIG, stage="test", folder=tmp_path, seed=3)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert saved(tmp_path) == [4, 6]
    assert_same(uninterrupted[0], run(tmp_path, begins=6))


def fit_without(folder, step, error):
    """A training of which a step cannot be drawn."""
    net = Net()
    steps = training(net)

    def draw(number, *of):
        if number == step:
            raise error
        return steps.draw(number, *of)

    fit(net, replace(steps, draw=draw), CONFIG, stage="test", folder=folder, seed=3)


@pytest.mark.parametrize("error", [UserError("data: expected others."), OSError(5, "Input/output error")])
def test_what_cannot_be_drawn_leaves_the_last_state(tmp_path, uninterrupted, error):
    with pytest.raises(type(error), match=r"data: expected others\.|Input/output error") as raised:
        fit_without(tmp_path, 6, error)
    assert raised.value is error
    assert saved(tmp_path) == [4, 6]
    assert_same(uninterrupted[0], run(tmp_path, begins=6))
    assert log(tmp_path) == uninterrupted[1]


def test_what_cannot_be_drawn_is_said_also_where_it_cannot_be_saved(tmp_path, monkeypatch):
    from brainjanus.train import fit as module

    def full(*_):
        raise UserError("expected room")

    monkeypatch.setattr(module, "save_state", full)
    for step in (0, 3):
        with pytest.raises(UserError, match="data: expected others"):
            fit_without(tmp_path, step, UserError("data: expected others."))


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

    steps = training(net)

    def large(*of):
        return {"loss": 1000.0 * steps.losses(*of)["loss"]}

    hook = register_optimizer_step_pre_hook(note)
    config = OptimConfig(steps=1, precision="float32", clip=1e-3)
    fit(net, replace(steps, losses=large), config, stage="test", folder=tmp_path, seed=3)
    hook.remove()
    assert sum(squares) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_a_full_disk_while_the_log_grows_is_a_sentence(tmp_path, monkeypatch):
    """The last saved state is intact, and goes on."""
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
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_a_damaged_line_of_the_log_is_a_sentence(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, interrupt)
    (tmp_path / "log.jsonl").write_text("what?\n")
    with pytest.raises(UserError, match="The log is damaged"):
        run(tmp_path)


def test_sigterm_is_another_end_than_ctrl_c(tmp_path, uninterrupted):
    with pytest.raises(Preempted, match="test is saved at step 3 of 9"):
        run(tmp_path, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert saved(tmp_path) == [3]
    assert_same(uninterrupted[0], run(tmp_path, begins=3))


def test_a_signal_during_a_save_ends_it_there(tmp_path, uninterrupted, monkeypatch):
    """Not a step later, nor, behind the last one, never."""
    from brainjanus.train import fit as module

    save = module.save_state

    def interrupted(*of):
        save(*of)
        interrupt()

    for at in (4, 8, 9):
        monkeypatch.setattr(module, "save_state", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"test is saved at step {at} of 9"):
            run(tmp_path)
    assert_same(uninterrupted[0], run(tmp_path, begins=9))


@pytest.mark.parametrize("rows_at_once", [1, 3, 20])
def test_a_few_rows_at_a_time_come_to_the_same(tmp_path, uninterrupted, rows_at_once):
    net = run(tmp_path, config=CONFIG_OF_8, hardware=Hardware("cpu", rows_at_once=rows_at_once))
    whole = run(tmp_path / "whole", config=CONFIG_OF_8)
    for name, value in whole.named_parameters():
        assert torch.allclose(net.get_parameter(name), value, atol=1e-6), name
    for line, other in zip(log(tmp_path), log(tmp_path / "whole"), strict=True):
        assert line.pop("stage") == other.pop("stage") and line == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_follows_the_schedule(tmp_path, schedule):
    """As it is logged, and as the optimizers have it."""
    rates = []

    def note(optimizer, *_):
        rates.append({group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_pre_hook(note)
    run(tmp_path, config=replace(CONFIG, schedule=schedule, log_every=1, optimizer="adamw", warmup=0.2))
    hook.remove()
    told = [line["lr"] for line in log(tmp_path)]
    assert rates == [{rate} for rate in told]
    assert told[:3] == pytest.approx([0.025, 0.05, 0.05])
    last = {"cosine": (1 + math.cos(math.pi * 6 / 7)) / 2, "linear": 1 / 7, "constant": 1.0}[schedule]
    assert told[-1] == pytest.approx(0.05 * (0.05 + 0.95 * last))


AVERAGED = replace(CONFIG, optimizer="adamw", average=0.3)


def test_averages_are_what_is_delivered(tmp_path):
    """The decay begins at a tenth, so that the first weights do not stay."""
    net, weights = Net(), []
    hook = register_optimizer_step_post_hook(lambda *_: weights.append(net.head.weight.detach().clone()))
    average = net.head.weight.detach().clone()
    fit(net, training(net), AVERAGED, stage="test", folder=tmp_path, seed=3)
    hook.remove()
    assert len(weights) == 9
    for step, value in enumerate(weights):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    assert torch.allclose(net.head.weight, average, atol=1e-6)
    assert not torch.allclose(net.head.weight, weights[-1], atol=1e-4)


@pytest.mark.parametrize("at", [0, 4, 7])
def test_averages_go_on_too(tmp_path, at):
    whole = run(tmp_path / "whole", config=AVERAGED)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", at, interrupt, config=AVERAGED)
    assert_same(whole, run(tmp_path / "stopped", config=AVERAGED, begins=at + 1))
    assert_same(whole, run(tmp_path / "stopped", at=0, do=stop, config=AVERAGED))  # it is at its end


STEADY = replace(CONFIG, steps=30, save_every=100, log_every=100, learning_rate=1e-4)


def fit_with_spike(folder, config=STEADY, stepped=lambda net: None):
    """A training whose loss jumps at step 25. stepped: is told the module after every step of an optimizer."""
    net = Net()
    steps = training(net)

    def losses(call, batch, generator, counts):
        found = steps.losses(call, batch, generator, counts)
        return found | {"loss": found["loss"] * (100 if batch[0] == 25 else 1)}

    hook = register_optimizer_step_post_hook(lambda *_: stepped(net))
    try:
        return fit(net, replace(steps, losses=losses), config, stage="test", folder=folder, seed=3, option="--mine")
    finally:
        hook.remove()


def test_a_spike_stops_it_before_the_step(tmp_path):
    last = {}

    def stepped(net):
        last.update({name: value.clone() for name, value in net.state_dict().items()}, net=net)

    with pytest.raises(UserError, match=r"near those before it .* at step 25: a spike\. The state before it is saved"):
        fit_with_spike(tmp_path, stepped=stepped)
    assert saved(tmp_path) == [25]
    for name, value in last.pop("net").state_dict().items():
        assert torch.equal(value, last[name]), name  # buffers, too
    assert last["seen"] == 25


def test_a_spike_comes_again_unless_it_is_gone_over(tmp_path):
    """The losses before it are in the state: by itself, the one behind it would have nothing to be compared with."""
    for _ in range(2):
        with pytest.raises(UserError, match=r"at step 25: a spike.* the same command with --mine\.spike 0\.$"):
            fit_with_spike(tmp_path)
    net = fit_with_spike(tmp_path, replace(STEADY, spike=0.0))
    assert_same(net, fit_with_spike(tmp_path / "whole", replace(STEADY, spike=0.0)))
    assert net.seen == 30


@pytest.mark.parametrize("settings", [{"log_every": 3}, {"save_every": 1}, {"spike": 0.0}])
def test_how_often_is_said_and_saved_may_change_under_way(tmp_path, uninterrupted, settings):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2, interrupt)
    assert_same(uninterrupted[0], run(tmp_path, config=replace(CONFIG, **settings), begins=3))


def test_losses_of_held_out_stimuli_stand_in_the_log_and_change_nothing(tmp_path, uninterrupted):
    seen, shown = [], []

    def validate(module):
        assert not module.training and not torch.is_grad_enabled()
        seen.append(module.head.weight.clone())
        return {"loss": float(len(seen)), "nats/image": 0.5}

    def show(module, step):
        assert not module.training and not torch.is_grad_enabled()
        shown.append(step)

    net = run(tmp_path, watch=Watch(validate, 4, show=show, sample_every=3))
    lines = log(tmp_path)
    assert [line for line in lines if "split" not in line] == uninterrupted[1]
    assert [line for line in lines if "split" in line] == [
        {"stage": "test", "step": step, "split": "val", "loss": loss, "nats/image": 0.5}
        for step, loss in ((4, 1.0), (8, 2.0), (9, 3.0))
    ]
    assert shown == [3, 6, 9]
    assert_same(uninterrupted[0], net)
    assert torch.equal(seen[-1], net.head.weight) and not torch.equal(seen[0], net.head.weight)


def test_a_sharded_module_that_is_too_large_for_one_device_is_trained_without_samples(tmp_path, capsys):
    net, seen = Net(), []
    loop = Loop(net, training(net), CONFIG, "test", tmp_path, 3, Hardware("cpu"), Watch(), {}, "--mine")
    loop.empty = skeleton(net)  # as where there are several processes
    loop.show(lambda module, step: seen.append((module, step)))
    assert_same(net, seen[0][0])
    assert seen[0][0] is not net and seen[0][1] == 0

    def show(module, step):
        raise torch.OutOfMemoryError("no room")

    loop.show(show)
    assert capsys.readouterr().err == "samples of step 0 are left out, and training goes on: no room\n"


def test_averages_are_what_is_looked_at_and_not_what_is_gone_on_with(tmp_path):
    whole, seen = run(tmp_path / "whole", config=AVERAGED), []

    def validate(module):
        seen.append(module.head.weight.clone())
        return {"loss": 1.0}

    net = run(tmp_path / "watched", config=AVERAGED, watch=Watch(validate, 2))
    assert_same(whole, net)
    assert torch.equal(seen[-1], net.head.weight)


VALIDATED = {1: float("nan"), 2: 3.0, 3: 4.0, 4: float("nan"), 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0}  # step -> loss


def validating(weights, patience):
    def validate(module):
        return {"loss": VALIDATED[int(module.seen)]}  # steps that were done

    def show(module, step):
        weights[step] = {name: value.clone() for name, value in module.named_parameters()}

    return Watch(validate, 1, patience, show, 1)


def assert_delivered(net, weights):
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


@pytest.mark.parametrize("average", [0.0, 0.3])
def test_without_a_better_one_it_ends_and_delivers_the_best(tmp_path, average):
    """3 is not bettered by 4 or nan: two in a row. What is delivered has been looked at, averages as well."""
    weights, config = {}, replace(CONFIG, average=average, optimizer="adamw")
    net = run(tmp_path, config=config, watch=validating(weights, 2))
    assert max(weights) == 4 and saved(tmp_path) == [4]
    assert_delivered(net, weights[2])
    again = run(tmp_path, at=4, do=stop, config=config, watch=validating({}, 2))
    assert_delivered(again, weights[2])


def test_patience_begins_anew_with_a_better_one(tmp_path):
    weights = {}
    net = run(tmp_path, watch=validating(weights, 3))
    assert max(weights) == 8, "1 came at step 5, and three behind it were no better"
    assert_delivered(net, weights[5])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_best_and_patience_go_on_too(tmp_path, at):
    weights = {}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, at, interrupt, watch=validating(weights, 2))
    net = run(tmp_path, watch=validating(weights, 2), begins=at + 1 if at < 3 else 9)
    assert max(weights) == 4
    assert_delivered(net, weights[2])


def test_without_patience_the_last_weights_are_delivered(tmp_path, uninterrupted):
    """The best are kept beside them."""
    weights = {}
    assert_same(uninterrupted[0], run(tmp_path, watch=validating(weights, 0)))
    best = load_file(tmp_path / "best.safetensors")
    assert best.keys() == weights[5].keys()
    assert all(torch.equal(value, weights[5][name]) for name, value in best.items())


@pytest.mark.parametrize("patience", [0, 4])
def test_a_disk_without_room_for_the_best_weights_ends_it_only_if_they_are_wanted(
    tmp_path, uninterrupted, monkeypatch, capsys, patience
):
    from brainjanus.train import fit as module

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    if patience:
        with pytest.raises(UserError, match=r"best\.safetensors: expected room to write it, got a full disk"):
            run(tmp_path, watch=validating({}, patience))
        return
    assert_same(uninterrupted[0], run(tmp_path, watch=validating({}, 0)))
    said = capsys.readouterr().err
    assert said.count("Training goes on without the weights of its best validation.") == 2, "at steps 2 and 5"
    assert not (tmp_path / "best.safetensors").exists()


def test_in_place_of_damaged_best_weights_the_last_are_delivered(tmp_path, capsys):
    weights = {}
    run(tmp_path, watch=validating(weights, 2))
    path = tmp_path / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert_delivered(run(tmp_path, watch=validating({}, 2)), weights[4])
    said = capsys.readouterr().err
    assert "best.safetensors: expected the weights of the best validation, got" in said
    assert said.strip().endswith("The file is damaged: the last weights are delivered.")


def test_the_log_says_how_fast_it_goes(tmp_path):
    net = Net()
    steps = replace(training(net), work=lambda batch: Work(len(batch[1]), 10**6))
    fit(net, steps, CONFIG, stage="test", folder=tmp_path, seed=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["steps_per_sec"] > 0 for line in lines)
    assert all(line["tokens_per_sec"] == pytest.approx(8 * line["steps_per_sec"]) for line in lines)
    assert not any("share_of_peak" in line for line in lines), "a short training is not kept waiting for it"


def test_a_task_is_named_when_its_loss_jumps(tmp_path):
    """Each is compared with its own: the same loss may be usual for another."""
    net = Net()
    steps = replace(training(net), task=lambda batch: "even" if batch[0] % 2 == 0 else "odd")

    def losses(call, batch, generator, counts):
        found = steps.losses(call, batch, generator, counts)
        return found | {"loss": found["loss"] * 0 + (2.0 if batch[0] % 2 == 0 or batch[0] == 45 else 1.0)}

    config = replace(STEADY, steps=50)
    with pytest.raises(UserError, match=r"expected a loss of odd near .* got 2 at step 45"):
        fit(net, replace(steps, losses=losses), config, stage="test", folder=tmp_path, seed=3)
