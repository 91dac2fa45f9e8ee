"""Watch: what a training says of itself while it runs, and when it stops itself.

Losses enter; lines of log.jsonl (and of TensorBoard and wandb, where they are asked for), what the progress bar shows,
and, for a loss that is not finite or jumps, the sentence that it stops with leave.
"""

import hashlib
import importlib.util
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from brainjanus.core.errors import UserError, reported, written_beside
from brainjanus.core.processes import gathered, is_first, world
from brainjanus.train.parallel import whole

Sink = Literal["tensorboard", "wandb"]
REMEMBERED, LEAST = 100, 20  # losses of a task that a new one is compared with; from how many on it is
JUMP = 1.5  # times the largest of them, at least
WINDOW_SEC = 30.0  # that speed is averaged over
WORTH_SEC = 10.0  # of training, before the machine's own rate is measured
SIDES = (1024, 2048)  # of the products that a machine's rate is measured by


class Diverged(UserError):
    """A loss that is not finite, or jumps."""


@dataclass(frozen=True)
class Work:
    """What one step does, of all processes together. positions: of all sequences. flops: forward and backward."""

    positions: int = 0
    flops: int = 0


class Line(NamedTuple):
    """One line of a log: step, and values by name. split: train or val."""

    step: int
    values: Mapping[str, float]
    split: str = "train"


class Log:
    """log.jsonl of one training; lines behind the step that is gone on from are dropped.

    sums: the values since the last line, as they were at that step. sinks: where lines go besides.
    """

    def __init__(
        self, path: Path, stage: str, start: int, sums: dict[str, list[float]], sinks: Sequence["Writer"] = ()
    ):
        self.path, self.stage, self.sums, self.sinks = path, stage, sums, sinks
        if not is_first():
            return
        try:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut short
            kept = [line for line in whole if json.loads(line)["step"] <= start]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected a JSON object with its step on every line, got '{error}'. The log is damaged: "
                "delete it to go on without the past of its curves."
            ) from error
        with written_beside(path) as beside:
            beside.write_text("".join(kept))

    def add(self, losses: Mapping[str, float]) -> None:
        """Remember the losses of a step."""
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(value)

    def means(self, step: int, **more: float) -> Line:
        """The means of what was remembered, which is then forgotten."""
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        self.sums = {}
        return Line(step, more | means)

    def write(self, line: Line) -> None:
        if not is_first():
            return
        named = {"stage": self.stage, "step": line.step} | ({"split": line.split} if line.split != "train" else {})
        with reported(self.path), self.path.open("a") as file:
            file.write(json.dumps(named | dict(line.values)) + "\n")
        for sink in self.sinks:
            sink.write(self.stage, line)


class Writer:
    """TensorBoard or wandb. Raises UserError if its package is not installed.

    start: the step that is gone on from; TensorBoard hides what it was told of later ones, which come again.
    """

    def __init__(self, sink: Sink, folder: Path, config: Mapping[str, Any], start: int = 0):
        self.sink = sink
        if sink == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing(sink) from error
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        else:
            try:
                import wandb
            except ImportError as error:
                raise missing(sink) from error
            place = folder.resolve()
            name, digest = "-".join(place.parts[-2:]), hashlib.sha256(str(place).encode()).hexdigest()[:8]
            project = os.environ.get("WANDB_PROJECT", "brainjanus")
            self.run = wandb.init(
                project=project, name=name, id=f"{name}-{digest}", resume="allow", dir=folder, config=dict(config)
            )

    def write(self, stage: str, line: Line) -> None:
        named = {f"{stage}/{line.split}/{name}": value for name, value in line.values.items()}
        if self.sink == "tensorboard":
            for name, value in named.items():
                self.board.add_scalar(name, value, line.step)
            self.board.flush()
        else:  # steps of several stages begin anew, which wandb's own count does not
            self.run.log(named | {f"{stage}/step": line.step})

    def close(self) -> None:
        if self.sink == "tensorboard":
            self.board.close()
        else:
            self.run.finish()


def check_sinks(sinks: Sequence[Sink]) -> None:
    """Raises UserError if the package of one of them is not installed."""
    for sink in sinks:
        if importlib.util.find_spec(sink) is None:
            raise missing(sink)


def missing(sink: str) -> UserError:
    return UserError(
        f"--log-to {sink}: expected the package {sink}, got an environment without it. "
        f"Install it with: pip install 'brainjanus[{sink}]'."
    )


class Meter:
    """Speed over the last seconds, time for validation and the like not counted.

    The machine's rate is measured once training has gone on for long enough that it will not be missed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.begun = device, dtype, time.monotonic()
        self.peak: float | None = None
        self.steps = deque[tuple[float, Work]]()

    def add(self, seconds: float, work: Work) -> None:
        self.steps.append((seconds, work))
        while len(self.steps) > 1 and sum(s for s, _ in self.steps) > WINDOW_SEC:
            self.steps.popleft()

    def read(self) -> dict[str, float]:
        """Steps, and positions (tokens), a second; the share of the machine's rate of matrix products."""
        seconds = sum(s for s, _ in self.steps)
        if not seconds:
            return {}
        rates = {"steps_per_sec": len(self.steps) / seconds}
        positions, flops = (sum(getattr(w, name) for _, w in self.steps) for name in ("positions", "flops"))
        if positions:
            rates["tokens_per_sec"] = positions / seconds
        if flops and self.peak is None and time.monotonic() - self.begun > WORTH_SEC:
            self.peak = peak_rate(self.device, self.dtype) * world()
        if flops and self.peak:
            rates["share_of_peak"] = flops / seconds / self.peak
        return rates


def peak_rate(device: torch.device, dtype: torch.dtype, times: int = 3) -> float:
    """Floating-point operations a second of this device in square matrix products: the best of a few."""
    best = 0.0
    for side in SIDES if device.type == "cpu" else [8192]:
        generator = torch.Generator(device).manual_seed(0)  # ones would take less power, and so less time
        a = torch.randn(side, side, device=device, generator=generator).to(dtype)
        for _ in range(times):
            synchronize(device)
            start = time.perf_counter()
            a @ a
            synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spoken(losses: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """What the progress bar says: the loss of each task, tokens a second, share of the peak."""
    words = [f"loss {losses['loss']:.3f}"] if "loss" in losses else []
    words += [f"{name.removeprefix('nats/')} {value:.2f}" for name, value in losses.items() if name.startswith("nats/")]
    if "tokens_per_sec" in rates:
        words.append(f"{rates['tokens_per_sec']:,.0f} tokens/s")
    if "share_of_peak" in rates:
        words.append(f"{rates['share_of_peak']:.0%} of the machine's peak")
    return ", ".join(words)


class Spikes:
    """Whether a loss jumps: it exceeds those before it, of the same task, by `limit` of their standard deviations, and
    all of them by half. seen: the last losses of each task."""

    def __init__(self, limit: float, seen: Mapping[str, Sequence[float]] | None = None):
        self.limit = limit
        self.seen = {name: deque(values, REMEMBERED) for name, values in (seen or {}).items()}

    def jumps(self, task: str, loss: float) -> bool:
        before = self.seen.setdefault(task, deque(maxlen=REMEMBERED))
        if self.limit and len(before) >= LEAST:
            mean = sum(before) / len(before)
            spread = math.sqrt(sum((x - mean) ** 2 for x in before) / len(before))
            largest = max(before)
            if loss > mean + self.limit * spread and loss > largest + (JUMP - 1) * abs(largest):
                return True
        before.append(loss)
        return False

    def state(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.seen.items()}


def spiked(stage: str, step: int, task: str, loss: float, before: Sequence[float], option: str) -> Diverged:
    """option: where the settings of this training are."""
    return Diverged(
        f"{stage}: expected a loss of {task} near those before it (mean {sum(before) / len(before):.3g}, largest "
        f"{max(before):.3g}), got {loss:.3g} at step {step}: a spike. The state before it is saved, and the optimizer "
        "did not step. Lower the learning rate or `clip` and train into another --out; or, if the data of that step "
        f"are as they should be, go on over it: the same command with {option}.spike 0."
    )


def not_finite(stage: str, step: int, what: str, cause: str) -> Diverged:
    return Diverged(
        f"{stage}: expected a finite loss, got {what} at step {step}. {cause} The state before it is saved, and the "
        "optimizer did not step."
    )


def cause_of(task: str, batches: Sequence[object], module: nn.Module) -> str:
    """Why a loss is not finite, as far as it shows, and what to do about it; all processes have to call it."""
    wrong = gathered([name for batch in batches for name, value in tensors_in(batch) if not finite(value)])
    if wrong:
        return (
            f"The data of this step ({task}, {wrong[0]}) are not finite themselves: were features or responses changed "
            "after `brainjanus prepare`, which refuses NaN? Prepare the dataset again."
        )
    weight = next((name for name, value in module.named_parameters() if not finite(value.detach())), None)
    if weight is not None:
        return f"The weights {weight} are not finite. Lower the learning rate and train into another --out."
    gradient = next((n for n, p in module.named_parameters() if p.grad is not None and not finite(p.grad)), None)
    where = f"The gradient of {gradient} overflowed" if gradient else "It overflowed on the way through the model"
    return (
        f"{where} ({task}); data and weights are finite. Lower the learning rate or, where it is computed in bfloat16, "
        "set `precision` to float32, and train into another --out."
    )


def finite(value: Tensor) -> bool:
    return bool(torch.isfinite(whole(value)).all()) if value.is_floating_point() else True


def tensors_in(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested tuples, lists and dataclasses, by name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field, item in zip(value._fields, value, strict=True):
            yield from tensors_in(item, f"{name}.{field}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors_in(item, f"{name} {number}".lstrip())
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))


def moved(value: Any, device: torch.device) -> Any:
    """Nested tuples, lists and dataclasses with all of their tensors on a device."""
    if device.type == "cpu" or value is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def close_all(writers: Sequence[Writer]) -> None:
    for writer in writers:
        with suppress(OSError):
            writer.close()
