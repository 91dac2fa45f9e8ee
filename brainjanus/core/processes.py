"""Processes: several that do one job, each its share of it, as if they were one.

Started by `torchrun --nproc-per-node N -m brainjanus ...`, or by Slurm's `srun brainjanus ...`, one task a GPU; the
environment then says how many there are. All are given the same request and seed, each does its share, and the first
alone writes what is made. By itself, a process knows of no others.
"""

import atexit
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from brainjanus.core.errors import UserError, reported

PATIENCE = timedelta(days=2)  # for each other: the first alone may train a tokenizer while the others wait
PORT = 29_500
TASKS = "SLURM_STEP_NUM_TASKS"  # of what srun started; SLURM_NTASKS is also there for the job's script, one process
LEFT = ("Connection closed by peer", "Connection reset by peer")  # gloo, of a process that is gone
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
T = TypeVar("T")
_alone = [False]
# Of jobs that went wrong. torch's gradient buckets, which the error may hold, must never hold the last of a group: they
# would wait for its threads with Python's lock held, which one of these may wait for.
_groups: list[Any] = []
atexit.register(_groups.clear)  # before Python ends, when threads that want its lock would abort the process


@contextmanager
def together(device: torch.device | str = "cpu") -> Iterator[None]:
    """For the time of a job, know the other processes.

    Raises UserError where the environment says that there are others, but not where to meet them.
    """
    if not claimed_processes() or dist.is_initialized():
        yield
        return
    as_torchrun_says()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"processes: expected {', '.join(missing)} in the environment of several processes, got none. "
            "Start them with torchrun, or as examples/slurm.sh does."
        )
    on_gpu, done = torch.device(device).type == "cuda", False
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        _groups.append(dist.group.WORLD)
        yield
        done = True
    except RuntimeError as error:
        if not any(words in str(error) for words in LEFT):
            raise
        raise UserError(
            f"processes: expected all {os.environ['WORLD_SIZE']} to go on, got one that stopped. Read what it said; "
            "then run the same command again."
        ) from error
    finally:
        if dist.is_initialized():  # one may be gone before all have met
            dist.destroy_process_group()
        if done:
            _groups.clear()


def claimed_processes() -> bool:
    """Whether the environment says that there are others."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get(TASKS, "1"))) > 1


def check_alone(command: str) -> None:
    """Raises UserError if the environment says that there are others, which this command does not share its work with:
    all would write the same files."""
    if claimed_processes():
        raise UserError(f"{command}: expected one process, got several. Start it without torchrun, or as one task.")


@contextmanager
def only_one(file: Path) -> Iterator[None]:
    """Keep the folder of this file, which is there already, to this process. Raises UserError if another is at it."""
    if not is_first():
        yield
        return
    with ExitStack() as stack:
        with reported(file):
            opened = stack.enter_context(open(file, "r+"))  # NFS locks nothing that is only read
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{file.parent}: expected a folder that nobody else writes to, got one that another process is at. Was "
                "the command given twice? Wait for it, stop it, or choose another --out."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


def as_torchrun_says() -> None:
    """What Slurm says of this task, in torchrun's words; the first node's name is given by the job's script."""
    if "RANK" in os.environ:
        return
    for name, theirs in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", TASKS), ("LOCAL_RANK", "SLURM_LOCALID")):
        if theirs in os.environ:
            os.environ[name] = os.environ[theirs]
    os.environ.setdefault("MASTER_PORT", str(PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % 10_000))


def own_device(device: str) -> torch.device:
    """The device of this process: "auto" is the GPU where there is one; of several GPUs, each process has its own.

    Raises UserError for one that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = torch.device("meta")
    if wanted.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu or cuda, got '{device}'. Correct the option.")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device: expected a GPU that torch can use for '{device}', got none. Is a CUDA build of torch installed? "
            "Otherwise leave the option out, or give cpu."
        )
    if wanted.type == "cuda" and ":" not in device:
        place = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        wanted = torch.device("cuda", 0 if sees_its_own_gpu() else place)
    if wanted.type == "cuda":
        if wanted.index >= torch.cuda.device_count():
            raise UserError(
                f"device: expected a GPU for every process of this machine, got {torch.cuda.device_count()}, and none "
                f"for process {wanted.index}. Start as many processes as there are GPUs."
            )
        torch.cuda.set_device(wanted)
    return wanted


def told_device(device: torch.device) -> str:
    """What a device is called: the name of a GPU, or CPU and how many threads are used."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"


def sees_its_own_gpu() -> bool:
    """Whether Slurm shows each of its tasks one GPU (--gpus-per-task, --gpu-bind), which is the first that it sees.

    That one GPU is seen is not enough: tasks may have to share it, and so may what torchrun started in one task.
    """
    if TASKS not in os.environ or torch.cuda.device_count() != 1:
        return False
    place = os.environ.get("SLURM_LOCALID", "0")
    several = int(os.environ.get("SLURM_GPUS_ON_NODE", "1")) > 1 or "," in os.environ.get("SLURM_STEP_GPUS", "")
    return os.environ.get("LOCAL_RANK", place) == place and (several or "SLURM_GPUS_PER_TASK" in os.environ)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes do this job; one while each does it by itself."""
    return dist.get_world_size() if dist.is_initialized() and not _alone[-1] else 1


def is_first() -> bool:
    """Whether this process writes what they made."""
    return rank() == 0


def is_first_of_all() -> bool:
    """The same, also when they have parted again: whether this one speaks for all."""
    return int(os.environ.get("RANK", 0)) == 0


def share(num_rows: int) -> range:
    """The rows that this process does: as many as the others do, but for one."""
    own = rank() % world()
    return range(num_rows * own // world(), num_rows * (own + 1) // world())


def gathered(part: list[Any]) -> list[Any]:
    """The parts of all processes, one behind the other in the order of their shares."""
    if world() == 1:
        return part
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, part)
    return [one for other in parts for one in other]


def summed(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def wait() -> None:
    """Until all processes are here. Signals are heeded meanwhile."""
    if world() > 1:
        arrived, pause = dist.all_reduce(torch.zeros(1), async_op=True), 0.001
        while not arrived.is_completed():
            time.sleep(pause)
            pause = min(0.5, 2 * pause)
        arrived.wait()  # raises if one of them is gone


def first_before_others(make: Callable[[], T]) -> T:
    """Let the first process do something that leaves files, while the others wait; they then find it done."""
    if world() == 1:
        return make()
    if not is_first():
        wait()
    with by_itself():
        made = make()
    if is_first():
        wait()
    return made


@contextmanager
def by_itself() -> Iterator[None]:
    """What a process does without the others."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()
