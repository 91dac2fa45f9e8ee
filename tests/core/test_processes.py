"""Two processes against one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.core.processes import (
    as_torchrun_says,
    by_itself,
    check_alone,
    claimed_processes,
    first_before_others,
    gathered,
    is_first,
    own_device,
    share,
    summed,
    together,
    wait,
    world,
)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
GPUS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "SLURM_STEP_GPUS")

SHARES = """
import json, sys, pathlib
import torch
from brainjanus.core.processes import gathered, is_first, share, together
with together():
    own = share(5)
    rows = gathered([torch.full((2,), row) for row in own])
    facts = {"own": list(own), "first": is_first(), "rows": [row.tolist() for row in rows]}
    name = f"{own.start}.json"
pathlib.Path(sys.argv[1], name).write_text(json.dumps(facts))
"""


def torchrun(script, *args):
    """Run Python code in two processes, which may start as if they were alone on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *args]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_share_the_rows_and_both_have_all(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHARES)
    torchrun(script, tmp_path)
    first, second = (json.loads((tmp_path / f"{start}.json").read_text()) for start in (0, 2))
    assert (first["own"], second["own"]) == ([0, 1], [2, 3, 4])
    assert (first["first"], second["first"]) == (True, False)
    assert first["rows"] == second["rows"] == [[row, row] for row in range(5)]


def test_one_process_does_everything(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together():
        assert list(share(3)) == [0, 1, 2]
        assert is_first()
        part = [torch.ones(1)]
        assert gathered(part) is part


# Forked after torch is imported, which takes longer than all that they do.
SLURM_TASKS = """
import json, os, pathlib, signal, sys, time
import torch
from brainjanus.core.errors import UserError
from brainjanus.core.processes import by_itself, first_before_others, is_first, rank, summed, together, wait, world

folder = pathlib.Path(sys.argv[1])
heard = []

def task(number):
    os.environ |= {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    facts = {"alone": world()}
    with together():
        facts |= {"world": world(), "rank": rank(), "first": is_first(), "local": os.environ["LOCAL_RANK"]}
        facts["sum"] = summed(torch.tensor([rank() + 1.0])).item()

        def make():
            there = (folder / "made").exists()
            if not there:
                time.sleep(0.3)
                (folder / "made").touch()
            return [there, world(), is_first()]

        facts["made"] = first_before_others(make)
        with by_itself():
            facts["by itself"] = [world(), is_first(), summed(torch.ones(1)).item()]
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(time.monotonic()))
        wait()
        if is_first():
            os.kill(other, signal.SIGUSR1)
            time.sleep(1.0)
        wait()
        facts["heard"] = [h < time.monotonic() - 0.3 for h in heard]
    facts["after"] = world()
    (folder / f"{number}.json").write_text(json.dumps(facts))
    try:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        with together():
            if is_first():
                raise UserError("mine")
            wait()
    except UserError as error:
        (folder / f"{number}.txt").write_text(str(error))
        return 2

other = os.fork()
if other == 0:
    os._exit(task(1))
own = os.fork()
if own == 0:
    os._exit(task(0))
status = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (own, other)]
(folder / "status.json").write_text(json.dumps(status))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A folder with what two tasks of a Slurm job found."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "script.py").write_text(SLURM_TASKS)
    bare = {name: value for name, value in os.environ.items() if name not in LAUNCHED + SLURM}
    job = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(20_000 + os.getpid() % 9_000), "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, folder / "script.py", folder], env=bare | job, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_slurm_says_who_they_are(slurm):
    found = [json.loads((slurm / f"{number}.json").read_text()) for number in range(2)]
    assert [(f["alone"], f["world"], f["after"]) for f in found] == [(1, 2, 1)] * 2
    assert [(f["rank"], f["first"], f["local"], f["sum"]) for f in found] == [(0, True, "0", 3), (1, False, "1", 3)]


def test_the_first_makes_it_and_the_others_find_it(slurm):
    found = [json.loads((slurm / f"{number}.json").read_text()) for number in range(2)]
    assert [f["made"] for f in found] == [[False, 1, True], [True, 1, False]]
    assert [f["by itself"] for f in found] == [[1, True, 1], [1, False, 1]]


def test_signals_are_heeded_while_one_waits(slurm):
    """The first comes a second later than the signal."""
    assert json.loads((slurm / "1.json").read_text())["heard"] == [True]


def test_one_that_stops_does_not_leave_the_other_waiting(slurm):
    assert json.loads((slurm / "status.json").read_text()) == [2, 2]
    assert (slurm / "0.txt").read_text() == "mine"
    assert (slurm / "1.txt").read_text().startswith("processes: expected all 2 to go on, got one that stopped")


def test_torchrun_is_believed_before_slurm(monkeypatch):
    """Started inside a job of one task."""
    for name in LAUNCHED + SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in (("RANK", "3"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")):
        monkeypatch.setenv(name, value)
    as_torchrun_says()
    assert os.environ["RANK"] == "3" and "MASTER_PORT" not in os.environ


def test_jobs_of_one_machine_meet_at_ports_of_their_own(monkeypatch):
    ports = []
    for job in ("7", "10008"):
        for name in LAUNCHED + SLURM:
            monkeypatch.setenv(name, job)
            if name in LAUNCHED:
                monkeypatch.delenv(name)
        as_torchrun_says()
        ports.append(os.environ["MASTER_PORT"])
    assert ports == ["29507", "29508"]


def test_others_without_a_place_to_meet_are_a_sentence(monkeypatch):
    for name in LAUNCHED + SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")  # is put back in the end
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="expected MASTER_ADDR in the environment of several processes"), together():
        pass


def test_the_script_of_a_job_is_one_process(monkeypatch):
    """There, too, Slurm says how many tasks the job has, and a rank; srun alone says how many it started."""
    for name in LAUNCHED + SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert not claimed_processes()
    check_alone("tune")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun -n 1
    assert not claimed_processes()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert claimed_processes()
    with pytest.raises(UserError, match="tune: expected one process, got several"):
        check_alone("tune")


def test_what_one_does_alone_needs_no_others():
    assert (world(), is_first()) == (1, True)
    assert summed(torch.ones(1)) == 1
    wait()
    assert first_before_others(lambda: 5) == 5
    with by_itself():
        assert world() == 1


@pytest.mark.parametrize(
    ("device", "gpus", "local", "said"),
    [
        ("tpu", 1, "0", "expected auto, cpu or cuda, got 'tpu'"),
        ("meta", 1, "0", "expected auto, cpu or cuda, got 'meta'"),
        ("cuda", 0, "0", "expected a GPU that torch can use for 'cuda', got none"),
        ("cuda", 2, "2", "expected a GPU for every process of this machine, got 2, and none for process 2"),
        ("cuda:5", 2, "0", "got 2, and none for process 5"),
    ],
)
def test_a_device_that_is_not_there_is_a_sentence(monkeypatch, device, gpus, local, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(UserError, match=said):
        own_device(device)


def test_each_process_has_its_own_gpu(monkeypatch):
    own = []
    monkeypatch.setattr(torch.cuda, "set_device", own.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("auto") == own_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert own_device("cuda") == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device("auto") == torch.device("cuda", 2)
    assert own_device("cuda:1") == torch.device("cuda", 1)
    assert own == [torch.device("cuda", number) for number in (0, 3, 2, 1)]
    assert own_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_GPUS_PER_TASK": "1", "SLURM_STEP_GPUS": "3"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_GPUS_ON_NODE": "4"}, True),  # --gpu-bind=single:1
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_GPUS": "0,1,2,3"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_GPUS_ON_NODE": "1", "SLURM_STEP_GPUS": "0"}, False),  # shared by all
        ({"SLURM_STEP_NUM_TASKS": "4"}, False),
        ({"WORLD_SIZE": "4"}, False),  # torchrun on a machine with one
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_GPUS_PER_TASK": "1", "SLURM_LOCALID": "0"}, False),  # ... in one task
        ({"SLURM_GPUS_PER_TASK": "1"}, False),  # in the job's script
    ],
)
def test_the_gpu_that_slurm_shows_a_task_alone_is_its_first(monkeypatch, environment, own):
    """Process 3 of a machine sees one GPU: its own, or one that it would have to share."""
    for name in LAUNCHED + SLURM + GPUS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name, value in ({"SLURM_LOCALID": "3"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if own:
        assert own_device("auto") == torch.device("cuda", 0)
    else:
        with pytest.raises(UserError, match="got 1, and none for process 3"):
            own_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("auto") == torch.device("cuda", 3)
