"""The job for Slurm, with commands that stand in for Slurm's: what is started, and when it is queued again."""

import os
import subprocess

import pytest

SRUN = """#!/usr/bin/env bash
echo "srun $* at $MASTER_ADDR with $OMP_NUM_THREADS threads"
exit {status}
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*"; fi
"""


@pytest.mark.parametrize(("status", "queued"), [(0, False), (2, False), (75, True)])
def test_a_job_that_was_preempted_is_queued_again(project_root, tmp_path, status, queued):
    for name, text in (("srun", SRUN.replace("{status}", str(status))), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(
        ["bash", project_root / "examples/slurm.sh", "data/nsd", "runs/nsd", "--recipe", "nsd-7b"],
        env=os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    first, *rest = done.stdout.splitlines()
    assert first == (
        "srun --kill-on-bad-exit=1 brainjanus train data/nsd --out runs/nsd --hardware.parallel fsdp --recipe nsd-7b "
        "at node7 with 8 threads"
    )
    assert rest == (["saved; queued again", "scontrol requeue 42"] if queued else [])
    assert done.returncode == status


def test_a_job_says_what_it_lacks(project_root):
    done = subprocess.run(
        ["bash", project_root / "examples/slurm.sh"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert "the folder that brainjanus prepare wrote" in done.stderr
