"""What happens in a story's folder: bash, python and files, as a reader would have it, but in this one process.

bash runs each block; the programs that it finds are `PROGRAMS` and a few of the system's. Each of ours is a stub that
hands its arguments, folder and environment to the Teller, and gets what was printed and the exit status back: that
saves an interpreter with torch for each of a hundred commands. An unknown program fails.
"""

import contextlib
import doctest
import fnmatch
import functools
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import traceback
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from brainjanus import cli
from brainjanus.core.card import INVITATION, OWN_FACTS, yours_in

from ..listing import paths
from .pages import Block, Story

SYSTEM = ("bash", "cat", "cp", "env", "head", "ls", "mkdir", "mv", "rm", "tail", "wc")
STUB = """#!{bash}
{{ printf '%s\\0' "${{0##*/}}" "$PWD" $# "$@"; {env} -0; }} > {folder}/asked
read -r status < {folder}/answered
{cat} {folder}/out; {cat} {folder}/err >&2
exit "$status"
"""


class Asked(NamedTuple):
    program: str
    folder: str
    argv: list[str]
    environment: dict[str, str]


class Teller:
    """Tells a story in `folder`. smaller: text of a block -> what stands in its place; options: first words of a
    command -> what is appended to it. root: of the project. names: what Python blocks find defined. demo: makes the
    folder that the demo would. remote: address -> what lies there; others cannot be reached."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        smaller: Mapping[str, str],
        options: Mapping[str, str],
        names: Mapping[str, object],
        demo: Callable[[Path], object] | None = None,
        remote: Callable[[str], Path] | None = None,
    ):
        self.root, self.folder, self.smaller, self.options = root, folder, smaller, options
        self.demo, self.remote = demo, remote
        self.names: dict[str, object] = {"__name__": "__main__", **names}
        self.environment = dict(os.environ)
        self.output: str | None = None
        self.explorers: dict[str, str] = {}  # the address that a page names -> where it is
        self.ending = contextlib.ExitStack()
        self.wires = folder.parent / "wires"
        self.wires.mkdir()
        for name in ("asked", "answered"):
            os.mkfifo(self.wires / name)
        (self.wires / "bin").mkdir()
        tools = {name: shutil.which(name) for name in SYSTEM}
        for name, path in tools.items():
            (self.wires / "bin" / name).symlink_to(str(path))
        for name in PROGRAMS:
            stub = self.wires / "bin" / name
            stub.write_text(STUB.format(folder=shlex.quote(str(self.wires)), **tools))
            stub.chmod(0o755)
        self.environment["PATH"] = str(self.wires / "bin")  # without Java, with which METEOR takes longer than all

    def tell(self, story: Story) -> None:
        """Raises AssertionError that names page and line where something is not as the page says."""
        kinds: dict[str, Callable[[Block], None]] = {
            "bash": self.bash,
            "python": self.python,
            "toml": self.toml,
            "json": self.json,
            "markdown": self.markdown,
            "text": self.text,
            "text of the demo": self.shown,
        }
        with self.ending:
            for block in story.blocks:
                where = f"docs/guide/{story.page}, line {block.line}"
                assert block.kind in kinds, f"{where}: no rule for a block of kind {block.kind!r}"
                try:
                    kinds[block.kind](block)
                except (AssertionError, ValueError, OSError) as error:
                    raise AssertionError(f"{where}:\n{block.text}\n{error}") from error

    def scaled(self, text: str) -> str:
        for real, small in self.smaller.items():
            text = text.replace(real, small)
        return text

    # --- bash

    def bash(self, block: Block) -> None:
        """Exported variables last until the end of the story, as in one terminal."""
        kept = self.wires / "environment"
        script = f"{self.scaled(block.text)}\nenv -0 > {shlex.quote(str(kept))}\n"
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said: list[str] = []
        threading.Thread(target=self.listen, args=(process, said), daemon=True).start()
        while asked := self.next_asked():
            self.answer(*self.do(asked))
        self.output = said[0]
        assert process.returncode == 0, f"status {process.returncode}\n{self.output[-4000:]}"
        self.environment = variables(kept.read_text().split("\0"))

    def listen(self, process: subprocess.Popen, said: list[str]) -> None:
        """Until bash has ended, which is then said on the wire."""
        said.append(process.communicate()[0])
        (self.wires / "asked").write_text("")

    def next_asked(self) -> Asked | None:
        parts = (self.wires / "asked").read_text().split("\0")
        if len(parts) == 1:
            return None
        program, folder, count, *rest = parts
        return Asked(program, folder, rest[: int(count)], variables(rest[int(count) :]))

    def answer(self, status: int, out: str, err: str) -> None:
        (self.wires / "out").write_text(out)
        (self.wires / "err").write_text(err)
        (self.wires / "answered").write_text(f"{status}\n")

    def do(self, asked: Asked) -> tuple[int, str, str]:
        """Exit status, and what was printed on either stream."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with contextlib.chdir(asked.folder), mock.patch.dict(os.environ, asked.environment, clear=True):
                    status = PROGRAMS[asked.program](self, asked.argv)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except Exception:
                traceback.print_exc()
                status = 1
        return status, out.getvalue(), err.getvalue()

    def brainjanus(self, argv: Sequence[str]) -> int:
        if argv[:1] == ["explore"]:
            return self.explore(argv)
        if argv[:1] == ["demo"] and self.demo is not None:
            return self.made_by_demo(argv)
        if argv[:1] == ["memory"]:
            print(computed(*argv, *shlex.split(self.options["memory"])))
            return 0
        command = " ".join(argv)
        fitting = [first for first in self.options if f"{command} ".startswith(f"{first} ")]
        more = self.options[max(fitting, key=len)] if fitting else ""
        try:
            return cli.main([*argv, *shlex.split(more)])
        except SystemExit as ended:
            if argv[:1] == ["doctor"] and ended.code == 1:  # a light is red: noise is not sound
                return 0
            raise

    def made_by_demo(self, argv: Sequence[str]) -> int:
        """The command understood, and a tiny demo in its place: tests/test_readme.py runs it."""
        out = Path(argv[argv.index("--out") + 1] if "--out" in argv else "runs/demo")
        self.demo(out)
        print(out / "report.html")
        return self.understood(argv)

    def explore(self, argv: Sequence[str]) -> int:
        """Serve on a port of its own until the story ends, and ask once."""
        import uvicorn

        from brainjanus.explorer import serve as serving

        found: dict[str, object] = {}
        told = threading.Event()
        serve, start = serving.serve, uvicorn.Server.run

        def ready(address: str) -> None:
            found["address"] = address
            told.set()

        def served(*args: object, port: int, **others: object) -> None:
            found["asked"] = port
            serve(*args, port=0, ready=ready, **others)

        def run(server: uvicorn.Server, sockets: object = None) -> None:
            found["server"] = server
            start(server, sockets)

        def ended() -> None:
            told.set()

        with mock.patch.object(serving, "serve", served), mock.patch.object(uvicorn.Server, "run", run):
            status: list[int] = []
            thread = threading.Thread(target=lambda: (status.append(cli.main(argv)), ended()), daemon=True)
            thread.start()
            assert told.wait(60) and "address" in found, "the explorer did not start"
        place, _, secret = str(found["address"]).partition("?")
        here = f"http://127.0.0.1:{place.rstrip('/').rpartition(':')[2]}"
        with urllib.request.urlopen(f"{here}/?{secret}", timeout=30) as page:
            assert b"<html" in page.read()
        self.explorers[f"http://127.0.0.1:{found['asked']}"] = here

        def end() -> None:
            found["server"].should_exit = True
            thread.join(30)
            assert status == [0]

        self.ending.callback(end)
        print(found["address"])
        return 0

    def run_python(self, argv: Sequence[str]) -> int:
        """A script, or `-m brainjanus`, `-m pip`; `-m venv` leaves what activates it."""
        if argv[:2] == ["-m", "venv"]:
            activating(Path(argv[2]))
            return 0
        if argv[0] == "-m":
            return PROGRAMS[argv[1]](self, argv[2:])
        with mock.patch.object(sys, "argv", list(argv)):
            runpy.run_path(argv[0], run_name="__main__")
        return 0

    def torchrun(self, argv: Sequence[str]) -> int:
        """As one process: tests/train/test_parallel.py has several."""
        match list(argv):
            case ["--nproc-per-node", number, "-m", "brainjanus", *rest] if number.isdecimal():
                return self.brainjanus(rest)
        raise ValueError(f"torchrun: expected --nproc-per-node N -m brainjanus ..., got {shlex.join(argv)}")

    def sbatch(self, argv: Sequence[str]) -> int:
        """The job, with what it has srun start understood and not run: tests/test_slurm.py runs the job."""
        script, dataset, out, *options = argv
        job = Path(script).read_text()
        assert (
            '\nsrun --kill-on-bad-exit=1 brainjanus train "$dataset" --out "$out" --hardware.parallel fsdp "$@"\n'
            in job
        )
        return self.understood(["train", dataset, "--out", out, "--hardware.parallel", "fsdp", *options])

    def understood(self, argv: Sequence[str]) -> int:
        """Parse a command and do nothing."""
        from brainjanus import arguments

        real = arguments.parse

        def without_running(command: object, run: Callable, argv: list[str], name: str = "") -> object:
            @functools.wraps(run)
            def nothing(*args: object, **kwargs: object) -> object:
                return run.__annotations__["return"]()

            return real(command, nothing, argv, name)

        with mock.patch.object(arguments, "parse", without_running):
            return cli.main(argv)

    def pip(self, argv: Sequence[str]) -> int:
        """`pip install 'brainjanus[EXTRA]'`: the extra is one of the project's."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]
        match list(argv):
            case ["install", requirement] if extra := re.fullmatch(r"brainjanus\[([\w,-]+)\]", requirement):
                unknown = set(extra[1].split(",")) - project["optional-dependencies"].keys()
                assert not unknown, f"pyproject.toml has no extra {unknown}"
                return 0
            case ["install", "-e" | "--editable", where] if where.partition("[")[0] == ".":
                return self.pip(["install", f"brainjanus{where[1:]}"]) if where != "." else 0
        raise ValueError(f"pip: expected install 'brainjanus[EXTRA]', got {shlex.join(argv)}")

    def git(self, argv: Sequence[str]) -> int:
        """`git clone URL [FOLDER]` makes the folder that the next line enters."""
        command, url, *where = argv
        assert command == "clone" and url.startswith("https://") and len(where) <= 1, shlex.join(argv)
        Path(where[0] if where else url.rpartition("/")[2].removesuffix(".git")).mkdir()
        return 0

    def make(self, argv: Sequence[str]) -> int:
        """What `make TARGET` ends with on a machine without an environment; tests/test_readme.py compares the rest.
        Of an environment alone, what activates it is then there."""
        real = {**os.environ, "PATH": f"/usr/bin:/bin:/usr/local/bin:{os.environ['PATH']}"}
        argv = [word.replace(".venv/", ".fresh/") for word in argv]
        asked = ["make", *argv, "--dry-run", "--no-print-directory", "VENV=.fresh"]
        done = subprocess.run(asked, cwd=self.root, env=real, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        if re.fullmatch(r"\.fresh/installed-\w+", argv[-1]):
            activating(Path(".venv"))
            return 0
        last = done.stdout.splitlines()[-1].partition(".fresh/bin/")[2]
        assert last.startswith("brainjanus "), f"make {shlex.join(argv)} ends with {done.stdout.splitlines()[-1]}"
        return self.brainjanus(shlex.split(last)[1:])

    def ssh(self, argv: Sequence[str]) -> int:
        """`ssh -L PORT:127.0.0.1:PORT [-J MACHINE] MACHINE` is all that the guide asks of it."""
        same_port = re.compile(r"(\d+):(127\.0\.0\.1|localhost|[\w-]+):\1")
        match list(argv):
            case ["-L", forward, _machine] | ["-L", forward, "-J", _, _machine] if same_port.fullmatch(forward):
                return 0
        raise ValueError(f"ssh: expected -L PORT:HOST:PORT [-J MACHINE] MACHINE, got {shlex.join(argv)}")

    # --- downloads, of what `remote` has

    def aws(self, argv: Sequence[str]) -> int:
        """`aws s3 cp FILE PLACE/`, and `sync FOLDER PLACE` of what the last filter that a file fits includes."""
        match list(argv):
            case ["s3", "cp", "--no-sign-request", url, where] if where.endswith("/"):
                bucket, path = self.bucket(url)
                self.fetch(bucket / path, Path(where, Path(path).name))
                return 0
            case ["s3", "sync", "--no-sign-request", url, where, *filters]:
                bucket, path = self.bucket(url)
                given = [*zip(filters[::2], filters[1::2], strict=True)]
                assert {option for option, _ in given} == {"--exclude", "--include"}, shlex.join(argv)
                for file in (file for file in sorted((bucket / path).rglob("*")) if file.is_file()):
                    name = file.relative_to(bucket / path).as_posix()
                    if [option for option, pattern in given if fnmatch.fnmatch(name, pattern)][-1:] == ["--include"]:
                        self.fetch(file, Path(where, name))
                return 0
        raise ValueError(f"aws: expected s3 cp or sync --no-sign-request FROM TO, got {shlex.join(argv)}")

    def bucket(self, url: str) -> tuple[Path, str]:
        address, _, path = url.removeprefix("s3://").partition("/")
        return self.remote(f"s3://{address}"), path

    def fetch(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)

    def curl(self, argv: Sequence[str]) -> int:
        option, url = argv
        assert option == "-LO", shlex.join(argv)
        self.fetch(self.remote(url), Path(url.rpartition("/")[2]))
        return 0

    def unzip(self, argv: Sequence[str]) -> int:
        """`unzip -j ARCHIVE PATTERN -d FOLDER`: without the folders that the archive has."""
        flat, archive, pattern, option, where = argv
        assert (flat, option) == ("-j", "-d"), shlex.join(argv)
        Path(where).mkdir(exist_ok=True)
        with zipfile.ZipFile(archive) as opened:
            names = fnmatch.filter(opened.namelist(), pattern)
            assert names, f"{archive} has no {pattern}"
            for name in names:
                Path(where, Path(name).name).write_bytes(opened.read(name))
        return 0

    def hf(self, argv: Sequence[str]) -> int:
        """`hf download NAME --local-dir FOLDER`"""
        command, name, option, where = argv
        assert (command, option) == ("download", "--local-dir"), shlex.join(argv)
        shutil.copytree(self.remote(name), where, copy_function=os.link)
        return 0

    # --- the other kinds

    def python(self, block: Block) -> None:
        """All Python blocks of a story are one session."""
        text = self.scaled(block.text)
        for told, real in self.explorers.items():
            text = text.replace(told, real)
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            try:
                with mock.patch.dict(os.environ, self.environment, clear=True):
                    exec(compile(text, f"line {block.line}", "exec"), self.names)
            except Exception as error:
                raise AssertionError(traceback.format_exc()) from error
        self.output = printed.getvalue()

    def toml(self, block: Block) -> None:
        name = block.text.partition("\n")[0].removeprefix("#").strip()
        tomllib.loads(block.text)
        self.write(name, block.text)

    def json(self, block: Block) -> None:
        """The file that the page named last before it."""
        json.loads(block.text)
        named = re.findall(r"`([\w./-]+\.json)`", block.before)
        assert named, "expected the page to name the `file.json` before the block"
        self.write(named[-1], block.text)

    def markdown(self, block: Block) -> None:
        """What a user may write into a card: it is written into all that are there."""
        excerpt = self.folder / "excerpt.md"
        excerpt.write_text(block.text)
        yours = yours_in(excerpt)
        assert yours and yours.facts and yours.text, "expected the places of a card that are the user's"
        for card in self.folder.rglob("README.md"):
            text = card.read_text().replace(f"{OWN_FACTS}\n", f"{OWN_FACTS}\n{yours.facts}\n")
            card.unlink()  # a link to one that other stories have
            card.write_text(text.replace(INVITATION, yours.text))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        assert re.fullmatch(r"[\w./-]+\.\w+", name) and path.parent.is_dir(), (
            f"expected the path of a file, got {name!r}"
        )
        path.write_text(text)

    def text(self, block: Block) -> None:
        if re.match(r"\S+/(\s|$)", block.text):
            self.listing(block.text)
            return
        assert self.output is not None, "expected a command before its output"
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(block.text, self.output, flags)
        assert same, f"the block before it printed\n{self.output}"

    def shown(self, block: Block) -> None:
        """What is seen of the real demo: other words and numbers than a tiny run has, of a command that printed."""
        assert self.output, "expected a command that prints before its output"

    def listing(self, text: str) -> None:
        """Paths that a reader of a layout finds; XX, NN and other capitals stand for anything, [brackets] may lack."""
        for path in (path for path in paths(text) if not path.endswith("/")):
            alternatives = [*expanded(path)]
            assert any(any(place.glob(one)) for one in alternatives for place in self.places()), f"{path} is absent"

    def places(self) -> Iterator[Path]:
        yield self.folder
        yield Path(self.environment.get("HOME", "/nowhere"))


PROGRAMS: dict[str, Callable[[Teller, Sequence[str]], int]] = {
    "brainjanus": Teller.brainjanus,
    "python": Teller.run_python,
    "python3": Teller.run_python,
    "python3.11": Teller.run_python,
    "torchrun": Teller.torchrun,
    "sbatch": Teller.sbatch,
    "pip": Teller.pip,
    "git": Teller.git,
    "make": Teller.make,
    "ssh": Teller.ssh,
    "aws": Teller.aws,
    "curl": Teller.curl,
    "unzip": Teller.unzip,
    "hf": Teller.hf,
}


@functools.cache
def computed(*argv: str) -> str:
    """What a command prints that depends on nothing but its words, and is on several pages."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*argv]) == 0, shlex.join(argv)
    return out.getvalue()


def activating(environment: Path) -> None:
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").touch()


def variables(lines: Sequence[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if "=" in line)


def expanded(path: str) -> Iterator[str]:
    """Patterns of glob: {a,b} is either, {0..17} any, and so is what is written in capitals."""
    if choice := re.search(r"\{([^{}]*)\}", path):
        for one in ["*"] if ".." in choice[1] else choice[1].split(","):
            yield from expanded(path[: choice.start()] + one + path[choice.end() :])
    else:
        yield re.sub(r"(?<![a-z])[A-Z]{4,}|XX|NN", "*", path)
