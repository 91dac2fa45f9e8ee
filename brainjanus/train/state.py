"""State: everything that makes a stopped training go on as if it had never stopped.

Weights, optimizer moments and the step; random numbers are drawn from a generator seeded by (seed, step), so that
they need no saving. What is frozen is not saved again and again: its hash is, and it has to be the same when the
training goes on. Saved as safetensors + JSON beside the old state and renamed; nothing is ever unpickled.
"""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.weights import fingerprint


def generator_of(seed: int, step: int) -> torch.Generator:
    """All randomness of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def save_state(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: dict) -> None:
    """Write weights that are not frozen, moments and facts ({"step": steps done, "config": ..., ...}) to `folder`."""
    frozen = frozen_names(module)
    weights = {k: v.contiguous() for k, v in module.state_dict().items() if k not in frozen}
    moments = {
        f"{which}.{index}.{name}": value.contiguous()
        for which, optimizer in enumerate(optimizers)
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }
    with written_beside(folder) as beside:
        beside.mkdir()
        save_file(weights, beside / "model.safetensors")
        save_file(moments, beside / "optimizer.safetensors")
        (beside / "state.json").write_text(json.dumps(facts, indent=1))


def load_state(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    config: dict,
    frozen: str | None = None,
) -> dict | None:
    """Put a saved state back; its facts, or None where there is none.

    frozen: hash of what is frozen, which has to be the one in its facts.
    Raises UserError if it is damaged, was made with another config or began from other frozen weights.
    """
    if not folder.exists():
        return None
    try:
        facts = json.loads((folder / "state.json").read_text())
        old, _ = dict(facts["config"]), int(facts["step"])
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise damaged(folder, error) from error
    different = sorted(key for key in {*old, *config} if old.get(key) != config.get(key))
    if different:
        pairs = ", ".join(f"{key} {old.get(key)} -> {config.get(key)}" for key in different)
        raise UserError(
            f"{folder}: expected the config that this training was started with, got another ({pairs}). "
            "Go on with the old config, or train into another --out."
        )
    if facts.get("frozen") != frozen:
        begun, given = (str(digest)[:12] for digest in (facts.get("frozen"), frozen))
        raise UserError(
            f"{folder}: expected the frozen weights that this training began with ({begun}), got others ({given}). "
            "Load the model that it began from, or train into another --out."
        )
    try:
        missing, unknown = module.load_state_dict(weights, strict=False)
        if unknown or set(missing) != frozen_names(module):
            raise KeyError(*unknown, *missing)
        states: list[dict[int, dict]] = [{} for _ in optimizers]
        for key, value in moments.items():
            which, index, name = key.split(".", 2)
            states[int(which)].setdefault(int(index), {})[name] = value
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        raise damaged(folder, "weights of another model") from error
    return facts


def frozen_names(module: nn.Module) -> set[str]:
    """Parameters that do not change; buffers may."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def frozen_fingerprint(module: nn.Module) -> str | None:
    """A hash of all that is frozen; None where nothing is."""
    frozen = frozen_names(module)
    return fingerprint(module, frozen) if frozen else None


def damaged(folder: Path, what: object) -> UserError:
    return UserError(
        f"{folder}: expected a saved training state, got '{what}'. It is damaged: delete the folder to train this "
        "stage from its start."
    )


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into an entry of the list that is yielded, so that a step is never cut in two.

    A second Ctrl-C interrupts at once. Outside the main thread, signals stay as they are.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
