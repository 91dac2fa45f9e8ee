"""LoRA: a trained product of two thin matrices beside each frozen projection of the decoder.

A model enters; the same model leaves, computing the same numbers to the bit, with matrices that can be trained:
y = W x + (alpha / rank) B A x, of which A starts random and B at zero. W keeps its Hugging Face name
(decoder.layers.0.self_attn.q_proj.weight); lora_a and lora_b stand beside it. `merge_lora` adds the product to W.
A finished run stores merged weights: its checkpoint is then one of plain projections, which loads, generates and is
exported as Janus weights without knowing of LoRA, and without a base that could be lost or exchanged. The price is the
size of the whole model; who wants it small keeps the matrices alone (`save_lora`, `load_lora`).
Source: Hu et al. 2021 (arXiv 2106.09685). Differs: all projections are adapted by default, as has become usual since;
no dropout.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.fused import computed_in

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = (*ATTENTION, *FEED_FORWARD)
FORMAT = "brainjanus-lora"


@dataclass(frozen=True)
class LoraConfig:
    """rank: of the product. alpha: its weight is alpha / rank. modules: which projections of a layer are adapted."""

    rank: int = 16
    alpha: float = 32.0
    modules: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            problems.append(f"alpha must be positive, got {self.alpha}")
        unknown = [name for name in self.modules if name not in PROJECTIONS]
        if unknown or not self.modules:
            problems.append(f"modules must be among {', '.join(PROJECTIONS)}, got {', '.join(unknown) or 'none'}")
        if problems:
            raise UserError("lora config: " + "; ".join(problems) + ". Correct the config.")


# I inputs, O outputs, R rank
class LoraLinear(nn.Module):
    """A frozen projection and what is added to it. The two matrices are float32, whatever the projection is held in."""

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    scale: float

    def __init__(self, linear: nn.Linear, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        assert len(list(linear.parameters())) == 1, "the decoder's projections have no bias"
        self.weight = linear.weight
        self.kind = type(linear)
        self.scale = config.alpha / config.rank
        device, inputs = linear.weight.device, linear.in_features
        a = torch.randn(config.rank, inputs, generator=generator) * inputs**-0.5  # drawn on the CPU: same on any device
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, config.rank, device=device))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        x = x.to(computed_in(x))
        with torch.autocast(x.device.type, enabled=False):
            low = F.linear(x, self.lora_a.to(x.dtype)).flatten(0, -2)
            out = F.linear(x, self.weight.to(x.dtype))
            out.flatten(0, -2).addmm_(low, self.lora_b.to(x.dtype).mT, alpha=self.scale)
        return out

    @torch.no_grad()
    def merged(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """One projection with the same outputs. Added in float32, held in `dtype` (default: as the frozen one was)."""
        outputs, inputs = self.weight.shape
        linear = self.kind(inputs, outputs, bias=False, device="meta")
        total = self.weight.float() + self.scale * (self.lora_b @ self.lora_a)
        linear.weight = nn.Parameter(total.to(dtype or self.weight.dtype), requires_grad=self.weight.requires_grad)
        return linear


def add_lora(decoder: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Put LoRA beside the projections of a decoder, in place; nothing but its matrices is left to be trained.

    Returns the names of the adapted projections.
    """
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in decoder.named_modules() if name.rpartition(".")[2] in config.modules]
    assert all(getattr(module, "joined", None) is None for module in decoder.modules()), "it is laid out for generation"
    for name in names:
        linear = decoder.get_submodule(name)
        assert isinstance(linear, nn.Linear), f"{name} is adapted already"
        decoder.set_submodule(name, LoraLinear(linear, config, generator))
    return names


def merge_lora(decoder: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Turn every adapted projection into a plain one, in place. dtype: what it is held in; default: as before."""
    for name, module in list(decoder.named_modules()):
        if isinstance(module, LoraLinear):
            decoder.set_submodule(name, module.merged(dtype))


def save_lora(decoder: nn.Module, config: LoraConfig, path: Path) -> None:
    """Write the matrices alone: a small file that makes the adapted model out of the one it was trained on."""
    matrices = {name: value.contiguous() for name, value in decoder.state_dict().items() if is_lora(name)}
    facts = {"rank": config.rank, "alpha": config.alpha, "modules": list(config.modules)}
    with written_beside(path) as beside:
        save_file(matrices, beside, metadata={"format": FORMAT, "lora": json.dumps(facts)})


def load_lora(decoder: nn.Module, path: Path) -> LoraConfig:
    """Adapt a plain decoder as a saved file says. `merge_lora` makes it plain again.

    Raises UserError if the file is damaged or fits another decoder; the decoder is then what it was before.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            matrices = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        settings = json.loads(facts["lora"])
        config = LoraConfig(settings["rank"], settings["alpha"], tuple(settings["modules"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected LoRA matrices as `save_lora` writes them, got '{error}'. Is it the right file, and "
            "whole? Copy it again."
        ) from error
    wanted = shapes_of(decoder, config)
    wrong = [f"{name} is missing" for name in wanted.keys() - matrices.keys()]
    wrong += [f"{name} is unknown" for name in matrices.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {list(matrices[name].shape)} instead of {list(wanted[name])}"
        for name in wanted.keys() & matrices.keys()
        if tuple(matrices[name].shape) != wanted[name]
    ]
    if wrong:
        raise UserError(
            f"{path}: expected matrices for each of this decoder's projections, got others "
            f"({'; '.join(sorted(wrong)[:4])}). It was trained on a model of another size: load that one."
        )
    add_lora(decoder, config)
    decoder.load_state_dict(matrices, strict=False)
    return config


def shapes_of(decoder: nn.Module, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """The matrices that `add_lora` would add, by name."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in decoder.named_modules():
        if name.rpartition(".")[2] in config.modules:
            outputs, inputs = module.get_parameter("weight").shape
            shapes |= {f"{name}.lora_a": (config.rank, inputs), f"{name}.lora_b": (outputs, config.rank)}
    return shapes


def is_lora(name: str) -> bool:
    """Whether a parameter is one of the matrices that LoRA adds."""
    return name.endswith((".lora_a", ".lora_b"))
