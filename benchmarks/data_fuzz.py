"""Damaged and hostile files: each is read on, or refused in one sentence, in little memory; nothing else ever happens.

The cases are those of tests/fuzzing.py: every reader and layout, Dataset, doctor, info, specs and configs. Workers with
a limit on their memory work them off; one that hangs or dies costs the case that it was at. Everything around what is
read is compared before and after. Of some cases the command line is run too: it has to end with 0, or with 2 and one
line. Failures are printed with what was damaged.
python benchmarks/data_fuzz.py --out benchmarks/results/data-fuzz.json [--quick]
"""

import argparse
import importlib.util
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import Claim, arguments, write

FUZZING = Path(__file__).parents[1] / "tests" / "fuzzing.py"
CASES, QUICK_CASES = 85, 6  # of each reader
SLOW = {"nsd": 40, "info": 60}  # those that take seconds a case have fewer
COMMANDS = 1  # of each reader that has a command
BUILD_SEC, MOST_SEC = 120, 40  # for all of a reader's files to be written; for one case
MOST_GB = 1.0
# what a command says before it refuses: what was found and left out, how far it came
BESIDES = r"Note: |(found|missing|writes|in all) +|[\w ]+: +\d+/\d+|$"


def fuzzing() -> Any:
    spec = importlib.util.spec_from_file_location("fuzzing", FUZZING)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzing"] = module
    spec.loader.exec_module(module)
    return module


def work(root: Path, name: str, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """The outcomes of a reader's cases, or of all hostile files; of one that hangs or dies too."""
    done = 0
    while done < count:
        shutil.rmtree(root, ignore_errors=True)
        command = [sys.executable, str(FUZZING), str(root), name, str(seed), str(done), str(count)]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as worker,
            selectors.DefaultSelector() as waiting,
        ):
            assert worker.stdout is not None
            waiting.register(worker.stdout, selectors.EVENT_READ)
            first, how = True, ""
            while True:
                if not waiting.select(BUILD_SEC if first else MOST_SEC):
                    worker.kill()
                    how = "it hung"
                    break
                line = worker.stdout.readline()
                if not line:
                    how = f"the process died ({worker.wait()})"
                    break
                first, done = False, done + 1
                yield json.loads(line)
            if done < count:
                said.seek(0)
                told = f"{how}: {said.read().decode(errors='replace')[-1500:]}"
                yield {"case": f"{name} {done}", "ended": "failed", "said": told, "damaged": "", "changed": [],
                       "unpickled": False, "grown": 0, "sec": 0.0, "notes": 0}  # fmt: skip
                done += 1


def commands(module: Any, root: Path, name: str, seed: int, count: int) -> list[str]:
    """What is wrong with how the command line ends, of some cases that are refused."""
    cases = module.Cases(name, root, seed)
    wrong = []
    for number in range(count):
        file, done = cases.damaged(number)
        argv = cases.reader.command(cases.arena.input, cases.arena.out)
        ended = subprocess.run(
            [sys.executable, "-m", "brainjanus", *argv], capture_output=True, text=True, timeout=300, env=os.environ
        )
        *before, last = ended.stderr.splitlines() or [""]
        one_line = last.startswith("brainjanus: ") and all(re.match(BESIDES, line) for line in before)
        ends = (0, 1) if argv[0] == "doctor" else (0,)  # 1: it found something
        if not (ended.returncode in ends or (ended.returncode == 2 and one_line)):
            wrong.append(f"{name} {number} ({file}: {done}): ended with {ended.returncode}: {ended.stderr[-1500:]}")
        shutil.rmtree(cases.arena.out)
        cases.arena.out.mkdir()
        cases.restore(file)
    return wrong


def claims(options: argparse.Namespace) -> list[Claim]:
    """options.quick: fewer cases. options.seed: of the cases."""
    module = fuzzing()
    found: list[Claim] = []
    total: Counter[str] = Counter()
    grown = {"damaged": 0, "hostile": 0}
    kinds = {name: one.kind for name, one in module.HOSTILE.items()}
    of_kind: Counter[str] = Counter(kinds.values())
    num_commands = num_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in (*module.READERS, "hostile"):
            hostile = name == "hostile"
            count = len(kinds) if hostile else QUICK_CASES if options.quick else SLOW.get(name, CASES)
            ended: Counter[str] = Counter()
            for one in work(Path(folder) / "arena", name, options.seed, count):
                ended[one["ended"]] += 1
                total["cases"] += 1
                total["tracebacks"] += one["ended"] == "failed"
                total["changed"] += bool(one["changed"])
                total["unpickled"] += one["unpickled"]
                total["notes"] += bool(one["notes"])
                grown["hostile" if hostile else "damaged"] = max(
                    grown["hostile" if hostile else "damaged"], one["grown"]
                )
                if one["ended"] == "failed" or one["changed"] or one["unpickled"] or one["grown"] > MOST_GB * 1e9:
                    print(f"{one['case']} ({one['damaged']}): {one['ended']}, changed {one['changed']}, unpickled "
                          f"{one['unpickled']}, {one['grown'] / 1e9:.2f} GB: {one['said']}", flush=True)  # fmt: skip
            print(f"{name}: {dict(ended)}", flush=True)
            found.append(Claim(f"{name}: cases", ended.total(), "cases"))
            found.append(Claim(f"{name}: refused", ended["refused"], "cases"))
            found.append(Claim(f"{name}: read", ended["read"], "cases"))
            if not hostile and module.READERS[name].command is not None:
                root = Path(folder) / "commands"
                for said in commands(module, root, name, options.seed, COMMANDS):
                    num_wrong += 1
                    print(said, flush=True)
                num_commands += COMMANDS
                shutil.rmtree(root)
    found += [Claim(f"hostile files, {kind}", number, "cases") for kind, number in of_kind.items()]
    found += [
        Claim("cases", total["cases"], "cases", bar=100 if options.quick else 2000),
        Claim("tracebacks, hangs, deaths", total["tracebacks"], "cases", bar=0, at_most=True),
        Claim("writes outside of the target", total["changed"], "cases", bar=0, at_most=True),
        Claim("unpicklings", total["unpickled"], "cases", bar=0, at_most=True),
        Claim("warnings of libraries", total["notes"], "cases"),
        Claim("peak memory of a damaged file", grown["damaged"] / 1e9, "GB", bar=MOST_GB, at_most=True),
        Claim("peak memory of a hostile file", grown["hostile"] / 1e9, "GB", bar=MOST_GB, at_most=True),
        Claim("commands run", num_commands, "commands"),
        Claim("commands that end in another way", num_wrong, "commands", bar=0, at_most=True),
    ]
    return found


def main() -> None:
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
