"""Weights on disk: a module's state in, one safetensors file out, and back; nothing is ever unpickled."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from brainjanus.core.errors import UserError, written_beside


def save_module(module: nn.Module, path: Path) -> None:
    with written_beside(path) as beside:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, beside)


def load_module(module: nn.Module, path: Path, facts: str = "model.json") -> None:
    """Load weights strictly and freeze. facts: the file that says what they are.

    Raises UserError naming what is missing, left over, or of another shape.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: expected saved weights, got '{error}'. The file is missing or truncated: copy the run again."
        ) from error
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} has shape {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: expected the weights that {facts} describes, got others ({'; '.join(sorted(wrong)[:4])}). "
            "The files of two runs were mixed: copy the run again."
        )
    module.load_state_dict(weights)
    module.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
