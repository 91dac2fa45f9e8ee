"""What test_faults.py stops: a training of 300 steps, of rows that lie in a file.

    python faults_script.py

Reads one {"out": FOLDER, "data": FILE, "room": bytes, "full_at": step, "kill_at": step} a line. For each it forks a
process that trains, or goes on, as the command line would. It says its number, each step as it begins, and how it
ended; what it writes to stderr is in OUT/../stderr.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than all else
from safetensors.torch import save_file
from torch import nn

from brainjanus.core.errors import Preempted, UserError
from brainjanus.data.dataset import checksum
from brainjanus.train.fit import Steps, fit
from brainjanus.train.optim import OptimConfig
from brainjanus.train.store import Rows

CONFIG = OptimConfig(
    steps=300, batch_size=8, learning_rate=0.01, precision="float32", log_every=7, save_every=10, average=0.9
)  # fmt: skip


def say(word, number):
    os.write(1, f"{word} {number}\n".encode())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 1)
        self.register_buffer("steps", torch.zeros(()))


def train(out, data, room=None, full_at=None, kill_at=None):
    """room: a disk that has no more for any file, from when step `full_at` is drawn on. kill_at: SIGKILL in it."""
    net, rows = Net(), Rows.of(Path(data), "rows")

    def draw(step, generator, which):
        if step == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return step, rows[torch.randint(len(rows), (8,), generator=generator)[which]]

    def losses(call, batch, generator, counts):
        step, x = batch
        say("step", step)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        net.steps += 1
        hidden = net.layers[1](net.layers[0](x).tanh()).tanh()
        return {"loss": (net.head(hidden)[:, 0] - x.sum(dim=1)).square().mean()}

    settings = {"data": checksum(Path(data))}
    fit(net, Steps(draw, losses), CONFIG, stage="test", folder=out, seed=3, settings=settings)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, out / "trained.safetensors")


def preempted(*_):
    raise Preempted


def run(out, **what):
    """As `brainjanus.cli.main` ends."""
    signal.signal(signal.SIGTERM, preempted)
    try:
        train(out, **what)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # to say so
        print(f"brainjanus: {error}", file=sys.stderr)
        return 2
    except Preempted as stopped:
        print(f"brainjanus: {stopped}", file=sys.stderr)
        return 75
    return 0


def fork(out, **what):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        error = os.open(out.parent / "stderr", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(error, 2)
        status = run(out, **what)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        what = json.loads(line)
        child = fork(Path(what.pop("out")), **what)
        say("pid", child)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
