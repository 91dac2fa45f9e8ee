"""Optimizer and schedule: Muon and AdamW, linear warm-up, cosine decay.

Source: Jordan et al. 2024 (Muon), Liu et al. 2025 (its step scaled to that of AdamW, so that one learning rate serves
both); Loshchilov & Hutter 2019 (AdamW). BrainJanus (arXiv 2606.30319) uses AdamW alone: `optimizer="adamw"`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.train.muon import Muon, product_dtype


@dataclass(frozen=True)
class OptimConfig:
    """optimizer: "muon" (with AdamW for what is no hidden matrix) or "adamw". steps, batch_size: how long, how wide.

    learning_rate: its peak. warmup: share of the steps in which it rises to there. schedule: how it falls then,
    "cosine" or "linear", to a twentieth, or not at all ("constant"). betas: of AdamW. weight_decay: of matrices only.
    clip: largest norm of a gradient. average: decay of an exponential moving average of the weights, which is what is
    delivered then; 0: none.
    precision: "auto" computes in bfloat16 where the machine has instructions for it and in float32 elsewhere.
    spike: a loss that exceeds those before it by so many of their standard deviations stops the training; 0: none does.
    log_every, save_every: in steps. These two and spike may be changed under way.
    """

    optimizer: str = "muon"
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.0
    precision: str = "auto"
    log_every: int = 10
    save_every: int = 250
    spike: float = 10.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("steps", "batch_size", "log_every", "save_every")
            if getattr(self, name) < 1
        ]
        if self.optimizer not in ("muon", "adamw"):
            problems.append(f"optimizer must be muon or adamw, got '{self.optimizer}'")
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not self.clip > 0:
            problems.append(f"clip must be positive, got {self.clip}")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.warmup < 1:
            problems.append(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.schedule not in ("cosine", "linear", "constant"):
            problems.append(f"schedule must be cosine, linear or constant, got '{self.schedule}'")
        if not 0 <= self.average < 1:
            problems.append(f"average must lie in [0, 1), got {self.average}")
        if not self.spike >= 0:
            problems.append(f"spike must be at least 0, got {self.spike}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            problems.append(f"precision must be auto, float32 or bfloat16, got '{self.precision}'")
        if problems:
            raise UserError("training config: " + "; ".join(problems) + ". Correct the config.")


def optimizers_of(module: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices that map hidden states to hidden states, if the config says so; AdamW for the rest.

    Vectors, scalars and tables (embeddings, positions) are not decayed, nor are the factors of LoRA, which go to AdamW:
    a step that makes the update of a factor orthogonal is none of their product.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    hidden = {n for n, p in trained.items() if config.optimizer == "muon" and p.dim() == 2 and is_hidden(n)}
    hidden = {n for n in hidden if not n.endswith((".lora_a", ".lora_b"))}
    matrices = {n for n, p in trained.items() if p.dim() >= 2 and n not in hidden and n.endswith("weight")}
    groups = [
        {"params": [trained[n] for n in trained if n in matrices], "weight_decay": config.weight_decay},
        {"params": [trained[n] for n in trained if n not in matrices | hidden], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    ]
    if hidden:
        optimizers.append(Muon([trained[n] for n in trained if n in hidden], config.learning_rate, config.weight_decay))
    return optimizers


def is_hidden(name: str) -> bool:
    """Whether a parameter is a weight inside a transformer layer."""
    return ".layers." in f".{name}" or ".encoder." in f".{name}" or ".decoder." in f".{name}"


def learning_rate(config: OptimConfig, step: int) -> float:
    """The learning rate of step 0, 1, ...: up linearly, then down to a twentieth of the peak."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    left = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[config.schedule]
    return config.learning_rate * (0.05 + 0.95 * left)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What to compute in on this device."""
    return product_dtype(device) if precision == "auto" else getattr(torch, precision)
