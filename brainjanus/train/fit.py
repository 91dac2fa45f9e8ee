"""fit: the loop that trains any of the modules. A step function enters; the trained module and a log leave.

The story: resume, then step, log, save; stop cleanly when asked to. What a step computes is the caller's.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from brainjanus.core.config import to_dict
from brainjanus.core.errors import UserError, reported, written_beside
from brainjanus.core.progress import progress
from brainjanus.train.optim import OptimConfig, autocast_dtype, learning_rate, optimizers_of
from brainjanus.train.state import frozen_fingerprint, generator_of, interruptible, load_state, save_state

# (step, the step's own generator) -> named losses; "loss" is the one that is differentiated
StepFunction = Callable[[int, torch.Generator], dict[str, torch.Tensor]]


def fit(
    module: nn.Module, losses_of: StepFunction, config: OptimConfig, *, stage: str, folder: Path, seed: int
) -> nn.Module:
    """Train `module` for config.steps steps, going on from the state in `folder` if there is one.

    Writes folder/state and folder/log.jsonl ({"stage", "step", "lr", "loss", ...} a line, means since the last line).
    Raises UserError if the loss is not finite (the last good state stays) and KeyboardInterrupt, after saving, when
    it is interrupted.
    """
    optimizers = optimizers_of(module, config)
    settings = to_dict(config) | {"seed": seed}
    frozen = frozen_fingerprint(module)
    facts = load_state(folder / "state", module, optimizers, settings, frozen)
    start = facts["step"] if facts else 0
    log = Log(folder / "log.jsonl", stage, start, facts.get("since_log", {}) if facts else {})
    device = next(module.parameters()).device
    dtype = autocast_dtype(config.precision, device)
    module.train()

    def save(step: int) -> None:
        facts = {"step": step, "config": settings, "since_log": log.sums}
        facts |= {} if frozen is None else {"frozen": frozen}
        save_state(folder / "state", module, optimizers, facts)

    with interruptible() as interrupted, progress(stage, config.steps, start) as advance:
        for step in range(start, config.steps):
            rate = learning_rate(config, step)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            module.zero_grad(set_to_none=True)  # before the forward pass, which needs the room
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                losses = losses_of(step, generator_of(seed, step))
            loss = float(losses["loss"].detach())
            if not math.isfinite(loss):
                raise UserError(
                    f"{stage}: expected a finite loss, got {loss} at step {step}. The last saved state "
                    "is intact. Lower the learning rate, or look for extreme values in the responses."
                )
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(module.parameters(), config.clip)
            for optimizer in optimizers:
                optimizer.step()
            done = step + 1
            log.add(
                done,
                losses,
                lr=rate,
                write=done % config.log_every == 0 or done == config.steps,
            )
            advance(done, loss)
            if done % config.save_every == 0 or done == config.steps or interrupted:
                save(done)
            if interrupted:
                raise KeyboardInterrupt(f"{stage} is saved at step {done} of {config.steps}")
    return module.eval()


class Log:
    """log.jsonl of one training; lines behind the step that is gone on from are dropped.

    sums: the values since the last line, as they were at that step.
    """

    def __init__(self, path: Path, stage: str, start: int, sums: dict[str, list[float]]):
        self.path, self.stage, self.sums = path, stage, sums
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut short
        try:
            kept = [line for line in whole if json.loads(line)["step"] <= start]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected a JSON object with its step on every line, got '{error}'. The log is damaged: "
                "delete it to go on without the past of its curves."
            ) from error
        with written_beside(path) as beside:
            beside.write_text("".join(kept))

    def add(self, step: int, losses: dict[str, torch.Tensor], *, lr: float, write: bool) -> None:
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(float(value.detach()))
        if write:
            means = {name: sum(values) / len(values) for name, values in self.sums.items()}
            with reported(self.path), self.path.open("a") as file:
                file.write(json.dumps({"stage": self.stage, "step": step, "lr": lr, **means}) + "\n")
            self.sums = {}
