"""What test_parallel.py runs: one process that has imported everything, and forks those that train.

    python parallel_script.py FOLDER

FOLDER/checkpoint is what unified models begin as. FOLDER/NAME/log.jsonl and FOLDER/NAME.safetensors are left of each
training; FOLDER/facts-ROLE.json says what else came.
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
from brainjanus.core.processes import by_itself, rank, together, world
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.lora import LoraConfig
from brainjanus.train import muon, state
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.fit import UNWATCHED, Steps, Watch, fit
from brainjanus.train.omni import OmniTrainingConfig, fit_omni
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import Hardware
from brainjanus.train.trained import recompute

FOLDER = Path(sys.argv[1])
ADAMW = OptimConfig(
    optimizer="adamw", steps=8, batch_size=7, learning_rate=0.02, precision="float32", log_every=1, save_every=5
)
MUON, AVERAGED = replace(ADAMW, optimizer="muon"), replace(ADAMW, average=0.7)
HALF = replace(ADAMW, precision="bfloat16")
GREEDY = GenerationConfig(temperature=0.0)
DDP, FSDP, ONE = Hardware("cpu", "ddp"), Hardware("cpu", "fsdp"), Hardware("cpu")
FACTS = {}
muon.product_dtype = lambda device: torch.float32  # as on any processor, so that what is compared is near


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
    """One training, and its weights beside its folder; FACTS has the step that it began with.

    frozen: the dtype of a first layer that is not trained.
    """
    net, drawn = Net(), []
    if frozen is not None:
        net.layers[0].requires_grad_(False).to(frozen)
    if light:
        recompute(net.layers)
    steps = training(net, **what)

    def draw(step, *of):
        drawn.append(step)
        return steps.draw(step, *of)

    noted = replace(steps, draw=draw)
    net = fit(net, noted, config, stage="test", folder=FOLDER / name, seed=3, hardware=hardware, watch=watch)
    FACTS[f"begins-{name}"] = drawn[0]
    FACTS[f"meta-{name}"] = any(parameter.is_meta for parameter in net.parameters())
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


def omni(name, hardware, trained="full", precision="float32"):
    """A few steps of a small unified model, whose matrices half precision can hold, and what it says under way."""
    checkpoint = Checkpoint.load(FOLDER / "checkpoint")
    model, tokenizers = checkpoint.model.requires_grad_(True), checkpoint.tokenizers
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    which = torch.arange(6)
    brain = tokenizers.brain.decode(which[:, None].expand(-1, 3), "a")
    captions = tokenizers.text.encode(["a red cup", "a blue one", "one", "cup", "red", "blue"])
    rows = {"a": BrainRows(which, which < 0, brain, which[:, None].expand(-1, 3))}
    codes = Codes(tuple("abcdef"), None, None, [], captions, [i[None] for i in which], {}, rows, tokenizers.brain)

    def show(module, step):
        with by_itself():
            said = generate(Checkpoint(tokenizers, module, {}), {"brain:a": brain}, "text", GREEDY)
        FACTS[f"{name}-{step}"] = [said, str(module.decoder.layers[0].mlp.up_proj.weight.dtype)]

    optim = replace(ADAMW, steps=4, batch_size=6, learning_rate=5e-3, precision=precision)
    tasks = {"text->brain": 1.0, "brain->text": 1.0}
    config = OmniTrainingConfig(optim, trained, LoraConfig(rank=2), tasks=tasks, sample_every=2)
    fit_omni(model, tokenizers, codes, config, FOLDER / name, seed=0, hardware=hardware, show=show)


def full_disk(path):
    if rank() == 1:
        raise OSError(28, "No space left on device")
    return {}


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def damage():
    raise UserError("data: expected what was there before, got others. Put them back.")


def leave():
    os._exit(3)


def first_phase(role):
    if role == "one":
        train("one-adamw", ONE, ADAMW)
        train("one-muon", ONE, MUON)
        train("one-frozen", ONE, AVERAGED, frozen=torch.float32)
        train("one-half", ONE, HALF, frozen=torch.bfloat16)
        watched("one-watched", ONE, AVERAGED)
        stopped("one-asked", ONE, AVERAGED, at=3, do=ask)
        omni("one-omni", ONE)
        omni("one-omni-half", ONE, precision="bfloat16")
        omni("one-lora", ONE, "lora")
        omni("one-lora-half", ONE, "lora", "bfloat16")
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
        stopped(f"{kind}-damaged", hardware, ADAMW, at=3, do=damage)
    omni("ddp-omni", DDP)
    omni("fsdp-lora", FSDP, "lora")
    omni("fsdp-omni-half", FSDP, precision="bfloat16")
    omni("fsdp-lora-half", FSDP, "lora", "bfloat16")
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
    """One that is gone ends both."""
    train("left", DDP, ADAMW, at=3, do=leave)


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
