"""fit: the loop that trains any of the modules. What a step is made of enters; the trained module and a log leave.

The story: resume; then step, log, look, save, as often as each is due; stop cleanly when asked to, or when the loss
says so. What a step draws and computes is the caller's. Batches are drawn two steps ahead. Several processes, and a
batch that is taken a part at a time, come to what one process comes to with the whole of it.
"""

import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from brainjanus.core.ahead import ahead
from brainjanus.core.config import to_dict
from brainjanus.core.errors import Preempted, UserError, written_beside
from brainjanus.core.heap import keep_freed_memory
from brainjanus.core.processes import gathered, is_first, own_device, summed, wait, world
from brainjanus.core.progress import progress
from brainjanus.train.optim import OptimConfig, autocast_dtype, learning_rate, optimizers_of
from brainjanus.train.parallel import CPU, Hardware, skeleton, spread, whole
from brainjanus.train.state import agreed, frozen_fingerprint, generator_of, interruptible, load_state, save_state
from brainjanus.train.watch import (
    Line,
    Log,
    Meter,
    Sink,
    Spikes,
    Work,
    Writer,
    cause_of,
    close_all,
    moved,
    not_finite,
    spiked,
    spoken,
)

Losses = Mapping[str, Tensor]


def one(batch: object) -> Tensor:
    return torch.ones(1)


def no_work(batch: object) -> Work:
    return Work()


@dataclass(frozen=True)
class Steps:
    """What a step is made of.

    draw: (step, its generator, which rows) -> those rows of the step's batch, on the CPU. Whatever the rows, it draws
    the same random numbers.
    losses: (what the model is called by, batch, generator, counts) -> named losses; "loss" is the one that is
    differentiated. Those of the parts of a batch add up to those of the whole.
    counts: what losses are divided by, of a part; the counts of all parts are added before the losses need them.
    task: what a batch is of, in words; work: what it costs.
    """

    draw: Callable[[int, torch.Generator, slice], Any]
    losses: Callable[[Callable[..., Any], Any, torch.Generator, Tensor], Losses]
    counts: Callable[[Any], Tensor] = one
    task: Callable[[Any], str] = lambda batch: "the loss"
    work: Callable[[Any], Work] = no_work


@dataclass(frozen=True)
class Watch:
    """What is looked at under way; nothing of it changes what is learned, but when it ends.

    validate: module -> losses of held-out stimuli, "loss" among them, every `validate_every` steps; the best weights
    are kept. patience: so many validations without a better one end the training, and the best weights are what is
    delivered; 0: it goes to its end, and the last ones are. show: (module, step) draws samples, every `sample_every`
    steps. sinks: where the log goes besides log.jsonl.
    """

    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    validate_every: int = 0
    patience: int = 0
    show: Callable[[nn.Module, int], object] | None = None
    sample_every: int = 0
    sinks: Sequence[Sink] = field(default_factory=tuple)


UNWATCHED = Watch()


class Drawn(NamedTuple):
    """The parts of a step's batch that this process does, each with its generator, or what they could not be drawn
    for."""

    parts: list[tuple[Any, torch.Generator]]
    error: UserError | OSError | None = None


def fit(
    module: nn.Module,
    steps: Steps,
    config: OptimConfig,
    *,
    stage: str,
    folder: Path,
    seed: int,
    hardware: Hardware = CPU,
    watch: Watch = UNWATCHED,
    settings: Mapping[str, Any] | None = None,
    option: str = "--training.optim",
) -> nn.Module:
    """Train `module` for config.steps steps, going on from the state in `folder` if there is one.

    Writes folder/state, folder/log.jsonl ({"stage", "step", "lr", "loss", ...} a line, means since the last line;
    lines of validation have "split": "val") and folder/best.safetensors, the weights of the best validation. settings:
    what else decides the result and has to be the same when it is gone on with. option: where a user finds `config`.
    Returns the module on the CPU; one that was sharded has its weights in the first process alone, and is without
    content (on "meta") in the others.
    Raises UserError if the loss is not finite or jumps, and what `draw` raises of UserError and OSError, after saving
    the state before it; KeyboardInterrupt, after saving, when it is interrupted, and Preempted when it is asked to end
    by SIGTERM.
    """
    return Loop(module, steps, config, stage, folder, seed, hardware, watch, settings or {}, option).run()


class Loop:
    """One training under way."""

    def __init__(
        self,
        module: nn.Module,
        steps: Steps,
        config: OptimConfig,
        stage: str,
        folder: Path,
        seed: int,
        hardware: Hardware,
        watch: Watch,
        settings: Mapping[str, Any],
        option: str,
    ):
        self.steps, self.config, self.stage, self.folder, self.seed = steps, config, stage, folder, seed
        self.watch, self.option = watch, option
        self.settings = to_dict(config) | {"seed": seed} | dict(settings)
        self.rows = hardware.parts(config.batch_size)
        self.device = own_device(hardware.device)
        self.dtype = autocast_dtype(config.precision, self.device)
        self.frozen = frozen_fingerprint(module)
        self.empty = skeleton(module) if hardware.parallel == "fsdp" and world() > 1 else None
        self.module, self.call = spread(module, hardware, self.device, self.dtype)
        self.optimizers = optimizers_of(self.module, config)
        self.averages = {n: p.detach().clone() for n, p in self.trained().items()} if config.average else {}
        facts = load_state(
            folder / "state", self.module, self.optimizers, self.settings, self.frozen, self.averages
        ) or {"step": 0}  # fmt: skip
        self.done: int = facts["step"]
        self.sums: dict[str, list[float]] = facts.get("since_log", {})
        self.best: dict[str, Any] = facts.get("best", {"loss": None, "step": 0, "kept": False, "ended": False})
        self.spikes = Spikes(config.spike, facts.get("losses"))
        self.received: list[int] = []  # signals
        self.asked: type[KeyboardInterrupt] | None = None  # by which of them to end
        self.told: Tensor | None = None  # of the last step, what all processes told each other before it

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    @property
    def ended(self) -> bool:
        return self.done >= self.config.steps or self.best["ended"]

    def run(self) -> nn.Module:
        if not self.ended:
            with ExitStack() as stack:
                sinks = self.watch.sinks if is_first() else ()
                writers = [Writer(sink, self.folder, self.settings, self.done) for sink in sinks]
                stack.callback(close_all, writers)
                self.log = Log(self.folder / "log.jsonl", self.stage, self.done, self.sums, writers)
                self.go_on(stack)
        return self.delivered()

    def go_on(self, stack: ExitStack) -> None:
        """Steps, until the last one, or what ends them before."""
        keep_freed_memory()
        config, watch = self.config, self.watch
        self.module.train()
        self.received = stack.enter_context(interruptible())
        advance = stack.enter_context(progress(self.stage, config.steps, self.done))
        meter, start = Meter(self.device, self.dtype), time.perf_counter()
        for drawn in stack.enter_context(closing(ahead(self.draw, self.done, config.steps))):
            losses, work = self.step(drawn)
            self.done += 1
            meter.add(time.perf_counter() - start, work)
            self.log.add(losses)
            last = self.done == config.steps
            if self.done % config.log_every == 0 or last:
                line = self.log.means(self.done, lr=learning_rate(config, self.done - 1))
                advance(self.done, spoken(line.values, meter.read()))
                self.log.write(line._replace(values=dict(line.values) | meter.read()))
            if watch.validate and watch.validate_every and (self.done % watch.validate_every == 0 or last):
                self.validate(watch.validate)
            if watch.show and watch.sample_every and self.done % watch.sample_every == 0:
                self.show(watch.show)
            if self.done % config.save_every == 0 or last or self.asked or self.ended:
                self.save()
                self.asked = self.asked or asked_by(summed(self.signals()))  # which a save takes long enough for
            if self.asked:
                raise self.asked(f"{self.stage} is saved at step {self.done} of {config.steps}")
            if self.ended:
                return
            start = time.perf_counter()  # waiting for the next batch counts

    def draw(self, step: int) -> Drawn:
        parts = []
        try:
            for rows in self.rows:
                generator = generator_of(self.seed, step)
                parts.append((self.steps.draw(step, generator, rows), generator))
        except (UserError, OSError) as error:
            return Drawn([], error)  # raised when it is that step's turn
        return Drawn(parts)

    def step(self, drawn: Drawn) -> tuple[dict[str, float], Work]:
        """Losses, gradients, and a step of the optimizers. Raises, having saved, what kept a process from drawing its
        rows, and UserError before a step that would spoil the weights."""
        counts, work = self.added_up(drawn)
        rate = learning_rate(self.config, self.done)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        before = {
            name: buffer.clone() for name, buffer in self.module.named_buffers()
        }  # codebooks move as they are used
        totals = self.gradients(drawn, counts)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained().values() if p.grad is not None])
        norm = whole(norm).to(self.device)
        own = torch.stack([*totals.values(), norm / world()]).double().cpu()
        values, signals = summed(torch.cat([own, self.signals()])).split([len(own), 2])
        self.asked = asked_by(signals)
        *losses, total_norm = values.tolist()
        named = dict(zip(totals, losses, strict=True))
        batches = [batch for batch, _ in drawn.parts]
        self.check(self.steps.task(batches[0]), named["loss"], total_norm, batches, before)
        nn.utils.clip_grads_with_norm_(self.trained().values(), self.config.clip, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.move_averages()
        return named, work

    def added_up(self, drawn: Drawn) -> tuple[Tensor, Work]:
        """What losses are divided by, and what the step costs, of all processes.

        One that could not draw its rows tells the others by NaN; all of them save then, and raise its error.
        """
        if drawn.error is None:
            works = [self.steps.work(batch) for batch, _ in drawn.parts]
            cost = torch.tensor([[w.positions, w.flops] for w in works], dtype=torch.float64).sum(dim=0)
            own = torch.cat([cost, sum((self.steps.counts(batch) for batch, _ in drawn.parts), torch.zeros(1))])
        elif self.told is None:
            raise drawn.error  # of the first step: there is nothing to save
        else:
            own = torch.full_like(self.told, math.nan)
        self.told = summed(own)
        if self.told.isnan().any():
            with suppress(UserError, OSError):
                self.save()
            with agreed():
                if drawn.error is not None:
                    raise drawn.error
        cost, counts = self.told[:2], self.told[2:]
        return counts.to(self.device, torch.float32), Work(*cost.long().tolist())

    def gradients(self, drawn: Drawn, counts: Tensor) -> dict[str, Tensor]:
        """Those of all parts, which add up; the losses of them all."""
        self.module.zero_grad(set_to_none=True)  # before the forward pass, which needs the room
        totals: dict[str, Tensor] = {}
        for number, (batch, generator) in enumerate(drawn.parts):
            on_device = moved(batch, self.device)
            with self.quietly(number < len(drawn.parts) - 1):
                with self.autocast():
                    losses = self.steps.losses(self.call, on_device, generator, counts)
                (losses["loss"] * world()).backward()  # of several processes, the mean of gradients is taken
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        return totals

    @torch.no_grad()
    def move_averages(self) -> None:
        if self.averages:
            weight = 1 - min(self.config.average, (1 + self.done) / (10 + self.done))  # it begins with the first
            own = self.trained()
            torch._foreach_lerp_(list(self.averages.values()), [own[name].detach() for name in self.averages], weight)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def quietly(self, more_to_come: bool) -> Any:
        """Without the exchange of gradients, where there are more to come."""
        if more_to_come and isinstance(self.call, DistributedDataParallel):
            return self.call.no_sync()
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(not more_to_come)
        return nullcontext()

    def check(self, task: str, loss: float, norm: float, batches: list[Any], buffers: Mapping[str, Tensor]) -> None:
        """Raise UserError, having saved, if a step on this loss would spoil the weights. buffers: those before it."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = str(loss) if not math.isfinite(loss) else f"{loss:.4g}, whose gradient is {norm},"
            stop = not_finite(self.stage, self.done, what, cause_of(task, batches, self.module))
        elif self.spikes.jumps(task, loss):
            stop = spiked(self.stage, self.done, task, loss, self.spikes.seen[task], self.option)
        else:
            return
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])
        self.save()
        raise stop

    def signals(self) -> Float[Tensor, "2"]:
        """Whether this process got Ctrl-C, and SIGTERM."""
        return torch.tensor([number in self.received for number in (signal.SIGINT, signal.SIGTERM)]).double()

    def validate(self, losses_of: Callable[[nn.Module], Mapping[str, float]]) -> None:
        """Losses of held-out stimuli; the best weights are kept."""
        losses = gathered([self.look(losses_of)])[0]  # all have to find the same one the best
        self.log.write(Line(self.done, losses, "val"))
        if math.isfinite(losses["loss"]) and (self.best["loss"] is None or losses["loss"] < self.best["loss"]):
            self.best = {"loss": losses["loss"], "step": self.done, "kept": self.keep(), "ended": False}
        elif self.watch.patience and self.done - self.best["step"] >= self.watch.patience * self.watch.validate_every:
            self.best["ended"] = True

    def keep(self) -> bool:
        """Write the weights as they would be delivered; whether it worked. Where they will not be, that it did not is
        said, and no reason to end."""
        weights = self.put_together(self.trained())
        try:
            with agreed():
                if is_first():
                    with written_beside(self.folder / "best.safetensors") as beside:
                        save_file({name: value.contiguous() for name, value in weights.items()}, beside)
        except UserError as error:
            if self.watch.patience:
                raise
            if is_first():
                print(f"{error} Training goes on without the weights of its best validation.", file=sys.stderr)
            return False
        return True

    def show(self, samples: Callable[[nn.Module, int], object]) -> None:
        """Samples by the first process; a sharded module is put together for them, and given up again."""
        if self.empty is None:
            self.look(lambda module: samples(module, self.done) if is_first() else None)
            return
        state = self.put_together(self.module.state_dict())
        if is_first():
            plain = copy.deepcopy(self.empty)
            plain.load_state_dict(state, assign=True)
            del state
            try:
                with torch.no_grad(), self.autocast():
                    samples(plain.to(self.device).eval(), self.done)
            except torch.OutOfMemoryError as error:  # beside its share of a model that may be too large for one device
                print(f"samples of step {self.done} are left out, and training goes on: {error}", file=sys.stderr)

    def look(self, at: Callable[[nn.Module], Any]) -> Any:
        """Something of the module as it would be delivered, without gradients; then training goes on."""
        own = self.trained()
        kept = {name: own[name].detach().clone() for name in self.averages}
        with torch.no_grad():
            for name, value in self.averages.items():
                own[name].copy_(value)
            self.module.eval()
            try:
                with self.autocast():
                    return at(self.module)
            finally:
                self.module.train()
                for shard in (m for m in self.module.modules() if isinstance(m, FSDPModule)):
                    shard.reshard()  # layers may have stayed gathered
                for name, value in kept.items():
                    own[name].copy_(value)

    def save(self) -> None:
        facts = {"step": self.done, "config": self.settings, "since_log": self.log.sums}
        facts |= {"best": self.best, "losses": self.spikes.state()}
        facts |= {} if self.frozen is None else {"frozen": self.frozen}
        save_state(self.folder / "state", self.module, self.optimizers, facts, self.averages)

    def put_together(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of these of which each process may have a share, as they would be delivered, on the CPU of the first; the
        others, which have to call it as well, keep nothing."""
        found = {}
        for name, value in tensors.items():
            value = whole(self.averages.get(name, value))
            if is_first():
                found[name] = value.cpu()
        return found

    def delivered(self) -> nn.Module:
        """The module as it was given, with the weights that it was trained for; of a sharded one, see `fit`."""
        module, weights = self.module, dict(self.averages)
        if self.empty is not None:
            module, weights = self.empty, self.put_together(module.state_dict())
        wait()  # the first has written the best weights
        if self.empty is not None and not is_first():
            return module.eval()
        if self.watch.patience and self.best["kept"]:
            weights |= best_weights(self.folder / "best.safetensors")
        module.load_state_dict(weights, strict=False, assign=self.empty is not None)
        return module.to("cpu").eval()


def asked_by(signals: Float[Tensor, "2"]) -> type[KeyboardInterrupt] | None:
    """What a training ends by, if any process got Ctrl-C, or SIGTERM."""
    return Preempted if signals[1] else KeyboardInterrupt if signals[0] else None


def best_weights(path: Path) -> dict[str, Tensor]:
    """None of them where they cannot be read, which is said: the last ones are no reason to train again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        damage = f"{path}: expected the weights of the best validation, got '{error}'. The file is damaged"
        print(f"{damage}: the last weights are delivered.", file=sys.stderr)
        return {}
