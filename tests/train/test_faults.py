"""A training that is really stopped, 25 times, comes to what the one that nobody stopped comes to.

Each fault hits a process of its own, at a random moment: SIGKILL, SIGTERM, a disk without room (the kernel refuses to
let any file grow beyond a random size), a saved state cut off at a random byte, data that change under the run.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SEED, SAVE_EVERY, STEPS = 0, 10, 300
FAULTS = ["kill"] * 7 + ["terminate"] * 5 + ["full"] * 5 + ["cut"] * 4 + ["change"] * 4


class Trainer:
    """The process that forks those that train: what is slow to import is imported once."""

    def __init__(self, folder):
        self.out, self.data, self.steps = folder / "run", folder / "rows.safetensors", []
        script = Path(__file__).with_name("faults_script.py")
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, **what):
        command = {"out": str(self.out), "data": str(self.data)} | what
        self.process.stdin.write(json.dumps(command) + "\n")
        self.steps, self.status = [], None
        words = self.heard()
        while words[0] != "pid":  # the child may speak before its parent
            words = self.heard()
        self.pid = words[1]

    def heard(self):
        word, number = self.process.stdout.readline().split()
        if word == "step":
            self.steps.append(int(number))
        return word, int(number)

    def until(self, step):
        """Wait until a step begins; False if it ended before."""
        while not self.steps or self.steps[-1] < step:
            word, number = self.heard()
            if word == "ended":
                self.status = number
                return False
        return True

    def ended(self):
        """Wait for its end; its exit status, and the lines that it wrote to stderr."""
        while self.status is None:
            self.until(STEPS)
        return self.status, (self.out.parent / "stderr").read_text().splitlines()


@pytest.fixture
def trainer(tmp_path):
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    trainer = Trainer(tmp_path)
    yield trainer
    with trainer.process:
        trainer.process.stdin.close()
    assert trainer.process.returncode == 0


def states(out):
    return sorted((out / "state").glob("step-*")) if (out / "state").exists() else []


def result(out):
    """All lines of the log, but for how fast it went, and all weights."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if not key.endswith("per_sec")} for line in lines]
    return lines, {name: value.numpy().tobytes() for name, value in load_file(out / "trained.safetensors").items()}


def step_of(state):
    return int(state.name.removeprefix("step-"))


def refused(trainer):
    """A training of which nothing sound is left says so, and begins anew only when it is told to."""
    trainer.start()
    status, said = trainer.ended()
    assert status == 2 and len(said) == 1 and not trainer.steps
    assert said[0].endswith(f"It is damaged. Delete {trainer.out / 'state'} to train this stage from its start.")
    shutil.rmtree(trainer.out / "state")


def cut(state, draw):
    """Cut a file of a state off at a random byte."""
    path = draw.choice(sorted(state.iterdir()))
    os.truncate(path, draw.randrange(path.stat().st_size))


def test_25_faults_cost_no_more_than_the_last_interval(trainer, tmp_path):
    draw = random.Random(SEED)
    faults = draw.sample(FAULTS, len(FAULTS))
    print(f"seed {SEED}: {' '.join(faults)}")
    whole, trainer.out = trainer.out, tmp_path / "whole"
    trainer.start()
    assert trainer.ended() == (0, [trainer_end(tmp_path / "whole")])
    expected, trainer.out = result(tmp_path / "whole"), whole
    shutil.copy2(trainer.data, tmp_path / "before")
    size = max(path.stat().st_size for path in states(tmp_path / "whole")[-1].iterdir())

    begins, at_least = 0, 0  # the step that the next one should begin with is no earlier
    for fault in faults:
        target = begins + draw.randint(1, 24)
        if fault == "full":
            trainer.start(room=draw.randrange(size), full_at=target)
        else:
            trainer.start()
        there = trainer.until(target)
        assert there or fault == "full", (fault, target, trainer.ended())
        if fault in ("kill", "terminate", "cut"):
            time.sleep(draw.uniform(0, 0.03))  # anywhere in this step, a next one, or a save
            os.kill(trainer.pid, signal.SIGTERM if fault == "terminate" else signal.SIGKILL)
        elif fault == "change":
            with trainer.data.open("ab") as file:
                file.write(b"0")
        status, said = trainer.ended()
        assert trainer.steps[0] >= at_least, (fault, trainer.steps[0], at_least)
        assert status == {"kill": -9, "cut": -9, "terminate": 75}.get(fault, 2), (fault, status, said)
        begins = trainer.steps[-1]
        at_least = begins - begins % SAVE_EVERY  # this one was saved, as a step after it has begun
        if status != -9:
            assert not list(trainer.out.glob("state/.*")), "nothing is left half-written"
            said = [line for line in said if "It is damaged. " not in line]
            assert len(said) == 1 and said[0].startswith("brainjanus: "), (fault, said)
        if fault == "terminate":
            assert said == [f"brainjanus: test is saved at step {begins + 1} of {STEPS}"]
            at_least = begins + 1
        elif fault == "full":
            assert "got a full disk (File too large)" in said[0]
        elif fault == "change":
            assert "expected the file that was opened before" in said[0]
            at_least = begins + 1
            trainer.start()
            status, said = trainer.ended()
            assert status == 2 and len(said) == 1 and "expected the config that this training was started" in said[0]
            shutil.copy2(tmp_path / "before", trainer.data)
        elif fault == "cut" and states(trainer.out):
            *before, last = states(trainer.out)
            cut(last, draw)
            at_least = step_of(before[-1]) if before else 0
            if not before and step_of(last) > SAVE_EVERY and not list(trainer.out.glob("state/.*")):
                refused(trainer)
        begins = max(0, at_least)

    trainer.start()
    status, said = trainer.ended()
    assert (status, said[-1]) == (0, trainer_end(trainer.out))
    assert trainer.steps[0] >= at_least
    assert result(trainer.out) == expected
    assert not list(trainer.out.glob("state/.*"))


def killed_in(trainer, step):
    """A training that kills itself in a step; the one that it began with."""
    trainer.start(kill_at=step)
    assert trainer.ended()[0] == -9
    return trainer.steps[0]


def test_more_than_an_interval_is_never_lost_in_silence(trainer):
    draw = random.Random(SEED)
    assert killed_in(trainer, 15) == 0
    cut(states(trainer.out)[-1], draw)
    assert killed_in(trainer, 35) == 0, "the first interval alone: it begins anew"
    assert [step_of(state) for state in states(trainer.out)] == [20, 30]
    cut(states(trainer.out)[-1], draw)
    assert killed_in(trainer, 25) == 20
    assert [step_of(state) for state in states(trainer.out)] == [20]
    cut(states(trainer.out)[-1], draw)
    refused(trainer)


def trainer_end(out):
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    return f"test: {STEPS}/{STEPS}, loss {last['loss']:.3f}"
