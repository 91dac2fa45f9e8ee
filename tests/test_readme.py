"""The README tells one story, and it is true: every block of it is executed, in its order, in one empty folder.

What a block is decides what is done with it; a kind that is not listed here fails.
- bash: each command runs; `make demo`, `make explore` and `make test` are resolved by `make -n`, their installation is
  compared with what it has to be (`.ci/run` executes it), and the command that they end with runs.
- python: runs as a script.
- toml: is a file; its first line, a comment, says which.
- text: if its first line is a folder ("my_data/"), a listing: each path has to be there, and of the project's own
  listing each module has to be listed. Otherwise the output of the block before it, where "..." stands for anything.
What takes long at its real size runs at a smaller one: SMALLER says what and how, and an entry that is not met fails.
"""

import doctest
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from .listing import paths

TIMEOUT_SEC = 1200
SMALLER = {  # as it stands in the README -> what runs here
    "brainjanus demo --out runs/demo": "brainjanus demo --out runs/demo --quick",
    "python -m pytest": "python -m pytest -n 0 -c {root}/pyproject.toml {root}/tests/test_cli.py -k version",
    "brainjanus train data/mine --out runs/mine": "brainjanus train data/mine --out runs/mine --config tiny.json",
    "brainjanus train tokenizer data/mine --out runs/tokenizer": "brainjanus train tokenizer data/mine "
    "--out runs/tokenizer --config tiny_tokenizer.json",
    "brainjanus train data/mine --out runs/on_codes": "brainjanus train data/mine --out runs/on_codes "
    "--config tiny.json",
    "brainjanus ablate tokenizer data/mine --out runs/ablation": "brainjanus ablate tokenizer data/mine "
    "--out runs/ablation --num-codes 4 --compression 8 --quantizers vq residual --base.training.steps 10",
    'bj.Run.train(dataset, "runs/python")': 'bj.Run.train(dataset, "runs/python", bj.RunConfig.load("tiny.json"))',
}
_FEW = {"steps": 20, "batch_size": 8}
_BRAIN = {"patch_size": 8, "patch": {"width": 16, "depth": 1, "heads": 2}}
TINY_TOKENIZER = {"tokenizer": _BRAIN, "training": _FEW}  # tiny_tokenizer.json, a TokenizerRunConfig
TINY = {  # tiny.json, a RunConfig
    "brain_tokenizer": _BRAIN,
    "brain_training": _FEW,
    "image_tokenizer": {"width": 16, "blocks": 1},
    "image_training": _FEW,
    "omni": {
        "decoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
    },
    "training": {"optim": _FEW},
}


class Block(NamedTuple):
    kind: str
    text: str
    line: int


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a document, with the line where each begins."""
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)
    return [Block(m[1].strip(), m[2], markdown[: m.start()].count("\n") + 1) for m in found]


@pytest.fixture(scope="module")
def readme(project_root: Path) -> str:
    return (project_root / "README.md").read_text(encoding="utf-8")


def test_every_block_is_executed(readme, project_root, tmp_path):
    write_recording(tmp_path / "my_data")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "tiny_tokenizer.json").write_text(json.dumps(TINY_TOKENIZER))
    story = Story(project_root, tmp_path)
    tell = {"bash": story.bash, "python": story.python, "toml": story.file, "text": story.text}
    for block in blocks(readme):
        where = f"README.md, line {block.line}"
        assert block.kind in tell, f"{where}: no rule for a block of kind {block.kind!r}; see the head of {__file__}"
        try:
            tell[block.kind](block.text)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            pytest.fail(f"{where}:\n{block.text}\n{error}", pytrace=False)
    assert story.met == SMALLER.keys(), "entries of SMALLER that the README does not need any more"


def test_links_and_pictures_are_there(readme, project_root):
    links = re.findall(r"\]\(([^)#\s]+)", readme)
    assert links
    missing = [link for link in links if "://" not in link and not (project_root / link).exists()]
    assert not missing


def test_a_block_of_an_unknown_kind_or_an_unfinished_one_is_seen():
    assert [b.kind for b in blocks("```bash\nls\n```\ntext\n```yaml\na: 1\n```\n```\nbare\n```\n")] == [
        "bash",
        "yaml",
        "",
    ]


class Story:
    """What happens in the README's folder. met: the entries of SMALLER that were needed."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.met: set[str] = set()
        self.output = ""

    def bash(self, text: str) -> None:
        commands = text.replace("\\\n", " ").splitlines()
        for command in filter(None, (line.partition("#")[0].strip() for line in commands)):
            self.run(self.made(command) if command.startswith("make ") else command)

    def made(self, command: str) -> str:
        """What `make ...` ends with on a machine without an environment, its installation having been checked."""
        plain = {k: v for k, v in os.environ.items() if k not in ("VENV", "OUT", "PYTHON", "MAKEFLAGS")}
        asked = [*command.split(), "--dry-run", "--no-print-directory", "VENV=.fresh"]
        done = subprocess.run(asked, cwd=self.root, env=plain, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        *install, last = done.stdout.splitlines()
        extra = {"make demo": "demo", "make explore": "demo", "make test": "dev"}[command]
        create = install.index("python3 -m venv .fresh")
        wanted = f".fresh/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[{extra}]'"
        assert install[create + 1] == wanted
        assert ".fresh/bin/" in last
        return last.replace(".fresh/bin/", "")

    def explored(self, command: str) -> None:
        """The explorer of a command answers at the address that it prints, and Ctrl-C ends it."""
        asked = ["bash", "-euo", "pipefail", "-c", f"exec {command} --port 0"]
        with subprocess.Popen(asked, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, text=True) as served:
            assert served.stdout is not None
            address = served.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"BrainJanus explorer" in page.read()
            served.send_signal(signal.SIGINT)
            assert served.wait(60) == 0

    def run(self, command: str) -> None:
        if command.startswith("brainjanus explore"):
            self.explored(command)
            return
        self.execute(["bash", "-euo", "pipefail", "-c", self.smaller(command)])

    def python(self, text: str) -> None:
        self.execute(["python", "-c", self.smaller(text)])

    def smaller(self, text: str) -> str:
        for real, small in SMALLER.items():
            if re.search(rf"{re.escape(real)}(?![\w/])", text):
                self.met.add(real)
                text = text.replace(real, small.format(root=self.root))
        return text

    def execute(self, argv: list[str]) -> None:
        done = subprocess.run(
            argv, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SEC
        )
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        self.output = done.stdout

    def file(self, text: str) -> None:
        name = text.partition("\n")[0].removeprefix("#").strip()
        path = self.folder / name
        assert path.parent.is_dir(), f"the first line has to be a comment with the file's path, got {name!r}"
        path.write_text(text)

    def text(self, text: str) -> None:
        if re.match(r"\S+/\s", text):
            self.listing(text)
        else:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(text, self.output, flags)
            assert same, f"the block before it printed\n{self.output}"

    def listing(self, text: str) -> None:
        listed = paths(text)
        own = listed[0] == "brainjanus/"
        for path in listed:
            assert ((self.root if own else self.folder) / path).exists(), f"{path} is listed and absent"
        if own:
            modules = {str(path.relative_to(self.root)) for path in (self.root / "brainjanus").rglob("*.py")}
            unlisted = {path for path in modules if not path.endswith("__.py")} - set(listed)
            assert not unlisted, f"one line for each module, missing: {sorted(unlisted)}"


def environment() -> dict[str, str]:
    """With the commands of this Python before all others."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def write_recording(folder: Path) -> None:
    """The recording that the README speaks of, very small: 40 pictures, 8 of them for the test, one subject."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    colours = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "grey": (128, 128, 128)}
    captions, trials = {}, ["stimulus_id\tsession\trun\trepeat\tsplit"]
    for number in range(1, 41):
        name, colour = f"scene{number}", list(colours)[number % 4]
        pixels = np.clip(colours[colour] + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
        captions[name] = [f"a {colour} scene", f"something {colour}"]
        split = "test" if number > 32 else "train"
        trials += [f"{name}\t1\t{repeat}\t{repeat}\t{split}" for repeat in (1, 2, 3)]
    weights = rng.normal(size=(4, 48))
    which = np.repeat(np.arange(1, 41) % 4, 3)
    responses = weights[which] + rng.normal(size=(120, 48))
    np.save(folder / "subj01.npy", responses.astype(np.float32))
    (folder / "subj01_trials.tsv").write_text("\n".join(trials) + "\n")
    (folder / "captions.json").write_text(json.dumps(captions))
