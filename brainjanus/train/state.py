"""State: everything that makes a stopped training go on as if it had never stopped.

    FOLDER/step-00000500/shard-*.safetensors    weights, moments, averages; each process writes what is its own
                         state.json             step, settings, sums for the log, losses seen; size and hash of files

Random numbers are drawn from a generator seeded by (seed, step), so that they, and the position in the data, need no
saving. What is frozen is not saved again and again: its hash is, and it has to be the same when the training goes on.
A state is written beside the others, read back, and only then given its name; the one before it stays, and is gone on
from if the newer one is found damaged. Any number of processes can go on from it: torch's distributed checkpoint cuts
tensors anew. Its safetensors form is used, as the other one is pickled; nothing here is ever unpickled.
"""

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from brainjanus.core.errors import UserError, reported
from brainjanus.core.processes import gathered, is_first, rank, world
from brainjanus.core.weights import fingerprint

PER_FILE = 2**30  # bytes of a file of a state, about; one is held in memory while it is written
THREADS = 8  # that read back what was written
KEPT = 2  # states; the older one is what a damaged one costs no more than
WATCHED = ("log_every", "save_every", "sample_every", "spike", "recompute")  # settings that may change under way


def generator_of(seed: int, step: int) -> torch.Generator:
    """All randomness of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def save_state(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    facts: dict[str, Any],
    averages: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights that are not frozen, moments, averages and facts ({"step": done, "config": ..., ...}).

    Raises UserError if the disk is full; the states that are there stay. All processes have to call it.
    """
    done = folder / f"step-{facts['step']:08d}"
    beside = folder / f".{done.name}.part"
    tensors, slots = tensors_of(module, optimizers, averages or {})
    with agreed():
        if is_first():
            with reported(folder):
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
    try:
        with agreed(), reported(folder), without_warning():
            try:
                # in one thread: what fails in those of torch is not told
                writer = HuggingFaceStorageWriter(str(beside), files_of(tensors), save_distributed=True)
                dcp.save(tensors, storage_writer=writer, no_dist=world() == 1)
            except dcp.api.CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from error
        # a file system of several machines may be slow to show each of them what the others wrote
        written = sorted(set(gathered([path.name for path in beside.glob("*.safetensors")])))
        with agreed(), reported(folder):
            own = all_proven([beside / name for name in written[rank() % world() :: world()]])
        sound = dict(gathered(list(own.items())))
        with agreed(), reported(folder):
            if is_first():
                text = json.dumps(facts | {"slots": slots, "files": sound}, indent=1)
                write_through(beside / "state.json", text)
                give_name(beside, done)
                for old in saved_states(folder)[KEPT:]:
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        if is_first():
            shutil.rmtree(beside, ignore_errors=True)


def load_state(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    config: dict[str, Any],
    frozen: str | None = None,
    averages: Mapping[str, Tensor] | None = None,
) -> dict[str, Any] | None:
    """Put the newest sound state back; its facts, or None where there is none.

    A damaged state is said and left out, and the one before it is gone on from; of the first, the training begins anew.
    config: its "save_every" says how long the first interval is. frozen: hash of what is frozen, which has to be the
    one in its facts.
    Raises UserError if more than an interval would be lost so, or a state was made with another config or began from
    other frozen weights.
    """
    found: list[Any] = []
    with agreed():
        if is_first() or world() == 1:
            found = [newest(folder, config.get("save_every", 0))]
    newest_one = gathered(found)[0]
    if newest_one is None:
        return None
    state, facts = newest_one
    old = {key: value for key, value in facts["config"].items() if key not in WATCHED}
    new = {key: value for key, value in config.items() if key not in WATCHED}
    different = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if different:
        pairs = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in different)
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
    tensors, _ = tensors_of(module, optimizers, averages or {}, facts["slots"])
    check_names(state, facts["files"], tensors)
    with agreed(), without_warning():
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(state)), no_dist=world() == 1)
        except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
            raise damaged(state, "weights of another model") from error
    return facts


def tensors_of(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    averages: Mapping[str, Tensor],
    slots: Mapping[str, list[str]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """All tensors of a state by name, and which slots the optimizers have for each parameter.

    slots: make room for these, in optimizers that have not stepped yet.
    """
    frozen = frozen_names(module)
    tensors = {f"model.{k}": v.detach() for k, v in module.state_dict().items() if k not in frozen}
    tensors |= {f"average.{name}": value for name, value in averages.items()}
    name_of = {parameter: name for name, parameter in module.named_parameters()}
    found: dict[str, list[str]] = {}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name, state = name_of[parameter], optimizer.state[parameter]
            for slot in () if slots is None else slots.get(name, ()):
                state[slot] = (
                    torch.zeros((), device=parameter.device) if slot == "step" else torch.zeros_like(parameter)
                )
            if state:
                found[name] = list(state)
                tensors |= {f"optimizer.{name}.{slot}": value for slot, value in state.items()}
            else:
                del optimizer.state[parameter]
    return tensors, found


def check_names(state: Path, files: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError if the files of a state have not exactly these tensors, in these shapes."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for path in (state / name for name in files):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                shapes.setdefault(name, []).append(tuple(file.get_slice(name).get_shape()))
    others = shapes.keys() ^ tensors.keys()
    if not others and world() == 1:  # what stands in several files is cut
        others = {n for n, value in tensors.items() if len(shapes[n]) == 1 and [tuple(value.shape)] != shapes[n]}
    if others:
        raise damaged(state, "weights of another model")


def newest(folder: Path, first: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest state that is sound, and its facts.

    first: steps of the first interval. Raises UserError if all are damaged, unless it is a single one that is no
    further.
    """
    for beside in folder.glob(".step-*.part"):
        with suppress(UserError):  # killed while it was written
            read_facts(beside)
            give_name(beside, folder / beside.stem[1:])  # killed just before it had its name
        shutil.rmtree(beside, ignore_errors=True)
    wrong: list[UserError] = []
    for state in saved_states(folder):
        try:
            facts = read_facts(state)
        except UserError as error:
            wrong.append(error)
            continue
        for damage in wrong:
            print(f"{damage} Going on from step {facts['step']}.", file=sys.stderr)
        for later in (later for later in saved_states(folder) if later.name > state.name):
            shutil.rmtree(later, ignore_errors=True)
        return state, facts
    if len(wrong) == 1 and step_of(saved_states(folder)[0]) <= first:  # no more than the first interval is lost
        print(f"{wrong[0]} Starting this stage anew.", file=sys.stderr)
    elif wrong:  # of two, the other one may have been left out as damaged before
        raise UserError(f"{wrong[0]} Delete {folder} to train this stage from its start.")
    return None


def give_name(beside: Path, done: Path) -> None:
    """Put a state that is complete in its place; `newest` does it if this is cut short."""
    synced(beside)
    shutil.rmtree(done, ignore_errors=True)  # the same step, saved again
    os.replace(beside, done)
    synced(done.parent)


def saved_states(folder: Path) -> list[Path]:
    """The states of a folder, the newest first."""
    return sorted(folder.glob("step-" + 8 * "[0-9]"), reverse=True)


def step_of(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


def read_facts(state: Path) -> dict[str, Any]:
    """The facts of a state whose files are all there, byte for byte, and no others."""
    try:
        facts = json.loads((state / "state.json").read_text())
        _ = int(facts["step"]), dict(facts["config"]), dict(facts["slots"])
        found = all_proven([state / name for name in facts["files"]])
        for name, wanted in facts["files"].items():
            if found[name] != wanted:
                raise ValueError(f"{name} has changed")
        for path in state.glob("*.safetensors"):  # all that are there would be loaded
            if path.name not in found:
                raise ValueError(f"{path.name}, which is none of its files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise damaged(state, error) from error
    return facts


def files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which of several files, counted from 1, each tensor goes to."""
    ends = list(itertools.accumulate(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    return {name: 1 + end // PER_FILE for name, end in zip(tensors, ends, strict=True)}


def all_proven(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By name, what is `proven` of each."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip((path.name for path in files), pool.map(proven, files), strict=True))


def proven(path: Path) -> dict[str, Any]:
    """Size and hash of a file that reaches the disk and can be read as safetensors."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with safe_open(path, "pt") as tensors:
        tensors.keys()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_through(path: Path, text: str) -> None:
    """Write a file that is on the disk, not on its way there, afterwards."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def synced(folder: Path) -> None:
    """What a folder holds is on the disk afterwards."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def frozen_names(module: nn.Module) -> set[str]:
    """Parameters that do not change; buffers may."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def frozen_fingerprint(module: nn.Module) -> str | None:
    """A hash of all that is frozen; None where nothing is."""
    frozen = frozen_names(module)
    return fingerprint(module, frozen) if frozen else None


def damaged(state: Path, what: object) -> UserError:
    return UserError(f"{state}: expected a saved training state, got '{what}'. It is damaged.")


@contextmanager
def agreed() -> Iterator[None]:
    """What fails in one of several processes fails in all, so that none waits for another that is gone."""
    failure: list[Exception | None] = [None]
    try:
        yield
    except Exception as error:
        failure = [error]
    if world() > 1:
        failures = [error for error in gathered(failure) if error is not None]
        if failures and failure == [None]:
            raise failures[0]
    if failure[0] is not None:
        raise failure[0]


@contextmanager
def without_warning() -> Iterator[None]:
    """torch says that it takes a single process for a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into an entry of the list that is yielded, so that a step is never cut in two.

    A second Ctrl-C interrupts at once. Outside the main thread, signals stay as they are.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
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
