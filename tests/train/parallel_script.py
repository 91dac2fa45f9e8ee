"""What test_parallel.py runs: one process that has imported everything, and forks those that train.

    python parallel_script.py FOLDER

FOLDER/NAME/log.jsonl and FOLDER/NAME.safetensors are left of each training; FOLDER/facts-ROLE.json says what else came.
"""

import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from brainjanus.core.errors import Preempted, UserError
from brainjanus.core.processes import rank, together, world
from brainjanus.train import state
from brainjanus.train.fit import UNWATCHED, Steps, Watch, fit
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import Hardware
from brainjanus.train.trained import recompute

FOLDER = Path(sys.argv[1])
ADAMW = OptimConfig(
    optimizer="adamw", steps=8, batch_size=7, learning_rate=0.02, precision="float32", log_every=1, save_every=5
)
MUON, AVERAGED = replace(ADAMW, optimizer="muon"), replace(ADAMW, average=0.7)
HALF = replace(ADAMW, precision="bfloat16")
DDP, FSDP, ONE = Hardware("cpu", "ddp"), Hardware("cpu", "fsdp"), Hardware("cpu")
FACTS = {}


class Net(nn.Module):
    """Of all kinds: layers, one that only some steps use, one that none does, a row that cannot be shared, a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 1)
        self.seldom = nn.Parameter(torch.ones(6))
        self.never = nn.Parameter(torch.ones(3))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, step):
        for number, layer in enumerate(self.layers):
            if number != 1 or step % 3:
                x = layer(x).tanh()
        return self.head(x if step % 2 else x * self.seldom)


def training(net, at=None, do=lambda: None, spoiled=False):
    """A regression. The last process asks to end in the step before `at`; it does something else, or has no number,
    where the batch of that step is drawn, which is some steps ahead."""

    def draw(step, generator, rows):
        x = torch.randn(7, 6, generator=generator)[rows]
        if step == at and rank() == world() - 1:
            if do is not ask:
                do()
            x = x * float("nan") if spoiled else x
        return step, x

    def losses(call, batch, generator, counts):
        step, x = batch
        net.steps += 1
        if do is ask and step + 1 == at and rank() == world() - 1:
            do()
        error = (call(x, step).float() - x.sum(dim=1, keepdim=True)).square().sum() / counts[0]
        return {"loss": error, "odd": error.detach() * 2}

    return Steps(draw, losses, counts=lambda batch: torch.tensor([float(len(batch[1]))]))


def train(name, hardware, config, *, frozen=None, light=False, watch=UNWATCHED, **what):
    """One training, and its weights beside its folder. frozen: the dtype of a first layer that is not trained."""
    net = Net()
    if frozen is not None:
        net.layers[0].requires_grad_(False).to(frozen)
    if light:
        recompute(net.layers)
    steps = training(net, **what)
    net = fit(net, steps, config, stage="test", folder=FOLDER / name, seed=3, hardware=hardware, watch=watch)
    if rank() == 0:
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, f"{FOLDER / name}.safetensors")


def stopped(name, hardware, config, **what):
    """A training that does not come to its end, and what it says then."""
    try:
        train(name, hardware, config, **what)
    except (UserError, Preempted) as error:
        FACTS[name] = [type(error).__name__, str(error)]


def watched(name, hardware, config):
    """Losses of held-out rows, and what samples are drawn from."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))

    def of(module):
        return float((module(x, 5) - x.sum(dim=1, keepdim=True)).square().mean())

    def show(module, step):
        FACTS[f"{name}-{step}"] = [type(module).__name__, of(module)]

    train(name, hardware, config, watch=Watch(lambda module: {"loss": of(module)}, 3, show=show, sample_every=4))


def full_disk(path):
    if rank() == 1:
        raise OSError(28, "No space left on device")
    return {}


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def damage():
    raise UserError("data: expected what was there before, got others. Put them back.")


def first_phase(role):
    if role == "one":
        train("one-adamw", ONE, ADAMW)
        train("one-muon", ONE, MUON)
        train("one-frozen", ONE, AVERAGED, frozen=torch.float32)
        train("one-half", ONE, HALF, frozen=torch.bfloat16)
        watched("one-watched", ONE, AVERAGED)
        stopped("one-asked", ONE, AVERAGED, at=3, do=ask)
        return
    for kind, hardware in (("ddp", DDP), ("fsdp", FSDP)):
        train(f"{kind}-adamw", hardware, ADAMW)
        train(f"{kind}-muon", hardware, MUON)
        train(f"{kind}-parts", replace(hardware, rows_at_once=2), ADAMW)
        train(f"{kind}-frozen", replace(hardware, rows_at_once=1), AVERAGED, frozen=torch.float32)
        train(f"{kind}-half", hardware, HALF, frozen=torch.bfloat16)
        train(f"{kind}-light", hardware, ADAMW, light=True)
        watched(f"{kind}-watched", replace(hardware, gather_once=kind == "fsdp"), AVERAGED)
        stopped(f"{kind}-asked", hardware, AVERAGED, at=3, do=ask)
        stopped(f"{kind}-spoiled", hardware, ADAMW, at=3, spoiled=True)
    proven, state.proven = state.proven, full_disk
    stopped("full", FSDP, ADAMW)
    state.proven = proven


def second_phase(role):
    """What the others have begun; each goes on with a copy of it."""
    if role == "one":
        train("ddp-to-one", ONE, AVERAGED)
        train("fsdp-to-one", ONE, AVERAGED)
    else:
        train("one-to-ddp", DDP, AVERAGED)
        train("one-to-fsdp", FSDP, AVERAGED)
        train("fsdp-to-fsdp", FSDP, AVERAGED)


def last_phase(role):
    """An error in one of them ends both."""
    train("ended", DDP, ADAMW, at=3, do=damage)


def fork(phase, role):
    """A process of its own that does a phase; its exit status is that of the command line."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if role != "one":
            os.environ |= {"RANK": role, "LOCAL_RANK": role}
        else:
            os.environ.pop("WORLD_SIZE")
        with together():
            phase(role)
        status = 0
    except UserError as error:
        FACTS["error"] = str(error)
        status = 2
    except BaseException:
        import traceback

        traceback.print_exc()
    (FOLDER / f"facts-{phase.__name__}-{role}.json").write_text(json.dumps(FACTS))
    os._exit(status)


def all_of(phase, *roles):
    """Run a phase in several processes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = [fork(phase, role) for role in roles]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    train("warm", ONE, replace(AVERAGED, steps=1))  # what is imported when it is needed, imported once
    ended = {"first": all_of(first_phase, "one", "0", "1")}
    for begun, goes_on in (("ddp", "one"), ("fsdp", "one"), ("one", "ddp"), ("one", "fsdp"), ("fsdp", "fsdp")):
        shutil.copytree(FOLDER / f"{begun}-asked", FOLDER / f"{begun}-to-{goes_on}")
    ended |= {"second": all_of(second_phase, "one", "0", "1"), "last": all_of(last_phase, "0", "1")}
    (FOLDER / "ended.json").write_text(json.dumps(ended))
