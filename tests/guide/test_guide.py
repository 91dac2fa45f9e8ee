"""The guide is true: every block of every page is executed, in its order, on miniatures; the answers mean nothing.

A new page needs nothing here. In the page,

    <!-- presumes data/mine runs/mine cat.png -->

begins a story: all blocks up to the next such comment, or to the page's end, happen in a new folder in which these are
(`world.py` knows what there is, and makes it once). A page without one is a story that presumes nothing. A story that
presumes `../shared/data` is skipped where the real recordings are absent; all others are told everywhere.

- bash: each command runs, and ends with status 0; `doctor` may find noise unsound. `explore` answers once and stays
  until the story ends; `demo` leaves the folder of a tiny one; `torchrun` is one process; `aws`, `curl` and `hf` fetch
  what `world.py` has at that address; `sbatch`, `pip`, `git clone`, `make`, `ssh` are checked in form (`teller.py`).
  Other programs fail.
- python: one session a story.
- toml, json: a file. The first line of the one, a comment, is its name; of the other the last `name.json` before.
- markdown: what a user writes into a card.
- text: behind a command its output, where "..." stands for anything; if its first line is a folder, a listing of what
  is there. "text of the demo": what the real demo prints, which a tiny one has in other words and numbers.
A block of another kind, or indented instead of fenced, fails. What pages quote of errors is in the package.

What takes long at its real size runs at a smaller one: OPTIONS are appended to commands that begin so, SMALLER replaces
text. An entry that no page needs fails.
"""

import ast
import contextlib
import functools
import json
import os
import re
from pathlib import Path

import pytest

from brainjanus import run, scoring
from brainjanus.insilico import experiment, localize

from .checks import CHECKS
from .pages import Story, guide, stories
from .teller import Teller
from .world import TINY, World

ROOT = Path(__file__).resolve().parents[2]
STORIES = guide(ROOT)
_DECODER = (
    "--omni.decoder.hidden-size 16 --omni.decoder.intermediate-size 16 --omni.decoder.num-hidden-layers 1 "
    "--omni.decoder.num-attention-heads 2 --omni.decoder.num-key-value-heads 2"
)
_TRAINING = (
    "--brain-training.steps 2 --image-training.steps 2 --image-tokenizer.width 8 --image-tokenizer.blocks 0 " + _DECODER
)
OPTIONS = {
    "train": f"--training.optim.steps 2 {_TRAINING}",
    "train tokenizer": "--training.steps 2",
    "tune": f"--rates 1e-3 2e-3 --steps 2 {_TRAINING}",
    "ablate tokenizer": "--num-codes 8 --compression 32 --quantizers vq --encoders patch --seeds 0 --downstream none "
    "--base.training.steps 2",
    "localize": "--settings 2",
    "retinotopy": "--passes 2 --stimuli scenes --subjects subj01",
    "lesion": "--controls 1",
    "prefer": "--samples 2",
    "memory": "--omni.decoder.num-hidden-layers 1",
}
SMALLER = {
    "--image-size 384 --drop-constant-sites": "--image-size 16 --subjects subj01 --sessions 1",
    "--image-size 384": "--image-size 16",
    "--device cuda": "--device cpu",
    " --weights networks": "",
    " --clip networks/clip-vit-base-patch32": "",
    "--training.batch-size 256": "--training.batch-size 64",
    "--tokenizer.patch-size 64": "--tokenizer.patch-size 8",
    "for fold in 1 2 3 4 5 6 7 8 9; do": "for fold in 1; do",
    "--recipe neurons": "--recipe neurons --training.validation 0.25",
    'bj.retinotopy("runs/demo/run", ': 'bj.retinotopy("runs/demo/run", passes=2, stimuli="scenes", ',
    '["a house"], subjects': '["a house"], settings=2, subjects',
    "bj.recipes.laptop()": 'bj.RunConfig.load("../tiny.json")',
    "num_subjects=2)": "num_subjects=2, num_train=4, num_test=2, repeats=1, trials_per_session=6)",
    "(num_codes=(128,), compression=(32, 64), base=base)": '(num_codes=(8,), compression=(32,), quantizers=("vq",), '
    'downstream="none", base=type(base).load("runs/tokenizer/config.json"))',
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, janus_folder) -> World:
    real = Path(os.environ.get("BRAINJANUS_REAL_DATA") or ROOT.parent / "shared/data").resolve()
    return World(tmp_path_factory.mktemp("world"), janus_folder, real if real.is_dir() else None)


@pytest.mark.usefixtures("forgotten")  # the examples that --extend loads
@pytest.mark.parametrize("story", STORIES, ids=str)
def test_every_block_is_executed(story: Story, world, tmp_path, monkeypatch):
    few = functools.partial(run.ScoreOptions, permutations=20, resamples=20)
    monkeypatch.setattr(run, "ScoreOptions", few)
    monkeypatch.setattr(scoring, "ScoreOptions", few)
    for module, name in ((experiment, "PERMUTATIONS"), (localize, "PERMUTATIONS"), (localize, "ROTATIONS")):
        monkeypatch.setattr(module, name, 100)
    folder, home = tmp_path / "brainjanus", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    monkeypatch.setenv("HOME", str(home))
    for name in ("BRAINJANUS_RUN", "BRAINJANUS_REAL_DATA", "BRAINJANUS_WORK"):
        monkeypatch.delenv(name, raising=False)
    names = world.furnish(folder, home, story.presumes)
    demo = functools.partial(world.put, "runs/demo")
    Teller(ROOT, folder, SMALLER, OPTIONS, names, demo, world.remote).tell(story)
    with contextlib.chdir(folder):
        CHECKS.get(str(story), lambda *_: None)(world, folder)


def test_what_is_made_smaller_is_on_a_page():
    text = "\n".join(block.text for story in STORIES for block in story.blocks)
    assert [real for real in SMALLER if real not in text] == []
    assert [first for first in OPTIONS if f"brainjanus {first} " not in text] == []
    assert CHECKS.keys() <= {str(story) for story in STORIES}


def test_what_a_story_presumes_is_used_by_it():
    for story in STORIES:
        text = "\n".join(block.text for block in story.blocks)
        unused = [name for name in story.presumes if name not in text and Path(name).name not in text]
        assert not unused, f"{story} presumes {unused} and does not use it"


def test_stories_of_a_page():
    page = (
        "# T\n```bash\nls\n```\n## A\n<!-- presumes a b -->\nwords\n```text\na/\n    b\n```\n## B\n```yaml\nc: 1\n```\n"
        "<!-- presumes c -->\nno blocks\n"
    )
    first, second = stories("p.md", page)
    assert (str(first), first.presumes, first.blocks[0][:3]) == ("p.md: T", (), ("bash", "ls\n", 2))
    assert (str(second), second.presumes) == ("p.md: A", ("a", "b"))
    assert [(block.kind, block.line) for block in second.blocks] == [("text", 8), ("yaml", 13)]
    with pytest.raises(ValueError, match="line 3: expected a block between ```"):
        stories("p.md", "# T\n\n    brainjanus demo\n")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("bash", "brainjanus tran data/mine\n", "expected one of"),
        ("bash", "brainjanus --version\nfalse\nls\n", "status 1"),
        ("bash", "wget https://example.org\n", "wget: command not found"),
        ("bash", "pip install 'brainjanus[explorer]'\n", "no extra {'explorer'}"),
        ("bash", "torchrun train.py\n", "torchrun: expected"),
        ("python", "import brainjanus as bj\nbj.nothing\n", "has no attribute 'nothing'"),
        ("toml", "a = 1\n", "expected the path of a file"),
        ("json", "{a: 1}\n", "Expecting property name"),
        ("text", "b/\n    absent.txt\n", "b/absent.txt is absent"),
        ("text", "brainjanus 7\n", "expected a command before its output"),
        ("yaml", "a: 1\n", "no rule for a block of kind 'yaml'"),
    ],
)
def test_a_page_that_is_wrong_is_found(kind, text, message, tmp_path):
    (tmp_path / "here").mkdir()
    (story,) = stories("p.md", f"# T\n```{kind}\n{text}```\n")
    with pytest.raises(AssertionError, match=re.escape(message)) as found:
        Teller(ROOT, tmp_path / "here", {}, {}, {}).tell(story)
    assert str(found.value).startswith("docs/guide/p.md, line 2:")


def test_a_terminal_keeps_its_variables_and_its_output(tmp_path):
    (tmp_path / "here").mkdir()
    page = (
        "# T\n```bash\nexport PLACE=$PWD/deep\nmkdir deep\n```\n```bash\nfor n in 1 2; do\n    brainjanus --version\n"
        "done\ncd $PLACE\necho $n > made.txt\n```\n```text\nbrainjanus ...\nbrainjanus ...\n```\n"
        "Then `set.json`:\n```json\n[1]\n```\n```python\nfrom pathlib import Path\n```\n"
        "```python\nprint(Path('set.json').read_text())\n```\n"
        "```text\n[1]\n```\n```text\ndeep/\n    made.txt\n    [none.txt]\n```\n"
    )
    (story,) = stories("p.md", page)
    Teller(ROOT, tmp_path / "here", {}, {}, {}).tell(story)


def test_links_of_the_guide_are_there():
    for page in (ROOT / "docs/guide").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, place = link.partition("#")
            if "://" in link:
                continue
            target = page if not path else page.parent / path
            assert target.exists(), f"{page.name} links to {link}"
            if place:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
                places = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert place in places, f"{page.name} links to {link}"


def sentences_of_the_package() -> list[str]:
    """Every text that the package has in its code; what is filled in is a blank."""
    texts = []
    for file in (ROOT / "brainjanus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else " " for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_sentences_that_are_quoted_are_those_of_the_package():
    """Of the table of errors in faq.md: what stands between numbers, names and dots, in its order."""
    table = (ROOT / "docs/guide/faq.md").read_text(encoding="utf-8").partition("\n| it says |")[2]
    quoted = re.findall(r"^\| `(.+?)` \|", table, flags=re.MULTILINE)
    texts = sentences_of_the_package()
    assert len(quoted) > 15
    for sentence in quoted:
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|'[^']*'|\b\d+\b", sentence)]
        pattern = re.compile(".*".join(map(re.escape, filter(None, pieces))), re.DOTALL)
        assert any(map(pattern.search, texts)), sentence
