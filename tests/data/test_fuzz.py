"""Damaged and hostile files: each reader reads on, or says one sentence; no more, in memory and on the disk.

The cases are those of `fuzzing.py`, which `benchmarks/data_fuzz.py` uses, too, for thousands.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzzing", Path(__file__).parents[1] / "fuzzing.py")
fuzzing = importlib.util.module_from_spec(_spec)
sys.modules["fuzzing"] = fuzzing
_spec.loader.exec_module(fuzzing)

CASES, SLOW = 8, {"nsd": 1, "info": 2, "doctor": 2}
HOSTILE = list(fuzzing.HOSTILE)


def check(outcome) -> None:
    assert outcome.ended in ("read", "refused"), f"{outcome.case} ({outcome.damaged}): {outcome.said}"
    assert not outcome.changed and not outcome.unpickled, outcome


@pytest.mark.parametrize("name", fuzzing.READERS)
def test_damages_are_one_sentence(tmp_path, name):
    cases = fuzzing.Cases(name, tmp_path, seed=0)  # what is not damaged has to be read
    for number in range(SLOW.get(name, CASES)):
        check(cases.run(number))
    check(again := cases.arena.run(name, cases.reader.read))
    assert again.ended == "read"  # each case put back what it damaged


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, dict]:
    """The outcome of each hostile file, in a process with little memory."""
    command = [sys.executable, fuzzing.__file__, str(tmp_path_factory.mktemp("hostile")), "hostile", "0", "0", "1000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return {one["case"]: one for one in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_do_no_harm(told, name):
    check(fuzzing.Outcome(**told[name]))
    assert told[name]["grown"] < 1e9


def test_hostile_files_are_of_every_kind():
    kinds = [one.kind for one in fuzzing.HOSTILE.values()]
    assert {kind: kinds.count(kind) >= 20 for kind in kinds} == {"outside": True, "pickle": True, "bomb": True}


def test_what_a_case_does_outside_is_seen(tmp_path):
    arena = fuzzing.Arena(tmp_path)

    def evil(folder, out):
        (out / "made.txt").write_text("in the target")
        (out.parent / "cwd/evil.txt").write_text("beside it")
        fuzzing.pickle.loads(fuzzing.pickle.dumps(fuzzing.Payload(arena.mark)))
        raise KeyError("evil")

    outcome = arena.run("evil", evil)
    assert outcome.ended == "failed" and "KeyError" in outcome.said and outcome.unpickled
    assert [Path(name).name for name in outcome.changed] == ["evil.txt", "unpickled"]


def test_the_command_line_says_one_line(tmp_path):
    cases = fuzzing.Cases("mindllm", tmp_path, seed=0)
    (cases.arena.input / "files/subject_1.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    argv = cases.reader.command(cases.arena.input, cases.arena.out)
    ended = subprocess.run([sys.executable, "-m", "brainjanus", *argv], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert ended.stderr.startswith("brainjanus: ") and ended.stderr.count("\n") == 1
