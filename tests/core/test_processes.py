"""Two processes against one."""

import json
import subprocess
import sys

import torch

from brainjanus.core.processes import gathered, is_first, share, together

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
