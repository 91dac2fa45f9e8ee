"""Weights on disk: a module's state in, one safetensors file out, and back; nothing is ever unpickled.

Those of other software are found in a folder: one file, or shards with an index.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from brainjanus.core.config import read_json
from brainjanus.core.errors import UserError, first_line, written_beside

MOST_NAMED = 4  # tensors in one sentence


def save_module(module: nn.Module, path: Path) -> None:
    with written_beside(path) as beside:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, beside)


def load_module(
    module: nn.Module,
    path: Path,
    facts: str = "model.json",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Load weights strictly and freeze. facts: the file that says what they are.

    A module that was made without memory (on "meta") is given the tensors of the file themselves, which are read when
    they are needed; on another device, or in another dtype, one after the other.
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
    without_memory = any(value.is_meta for value in own.values())
    if without_memory:
        for name, value in weights.items():
            weights[name] = value.to(device, dtype if value.is_floating_point() else None)
    module.load_state_dict(weights, assign=without_memory)
    module.eval().requires_grad_(False)


def fingerprint(module: nn.Module, names: Collection[str] | None = None) -> str:
    """A hash of all weights, or of those with these names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if names is not None and name not in names:
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weight_files(path: Path) -> dict[str, Path]:
    """Which file each tensor is in: one file, or shards with an index. Raises UserError if a file is missing."""
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if single.is_file():
        return dict.fromkeys(opened(single).keys(), single)
    if not index.is_file():
        raise UserError(
            f"{path}: expected model.safetensors, or its shards with model.safetensors.index.json, got neither. "
            "Weights in another format (.bin) are not read, as that would execute what is in them."
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{index}: expected a weight_map, tensor -> file, got none. Copy the folder again.")
    missing = sorted({shard for shard in shards.values() if not (path / shard).is_file()})
    if missing:
        raise UserError(
            f"{path}: expected the {len(set(shards.values()))} files of weights that {index.name} names, got none "
            f"called {', '.join(missing[:MOST_NAMED])}. Was the download cut short? Fetch them again."
        )
    held = {shard: set(opened(path / shard).keys()) for shard in sorted(set(shards.values()))}
    files = {name: path / shard for shard, names in held.items() for name in names}
    lost = sorted(name for name in shards if name not in files)
    if lost:
        raise UserError(
            f"{path}: expected the tensors that {index.name} names in its files, got none called "
            f"{', '.join(lost[:MOST_NAMED])}. The files are of two models: fetch them again."
        )
    return files


def opened(path: Path) -> Any:
    """A file of weights. Raises UserError if it is cut short or something else."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: expected weights, got '{first_line(error)}'. The file was cut short or is another one: fetch it "
            "again."
        ) from error
