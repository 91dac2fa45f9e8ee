"""The guide to generation is true: every command in it is given, in its order, beside a run with the demo's names.

The run is a tiny one, trained for two steps on noise; what it answers means nothing. Commands run in this process.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainjanus import cli
from brainjanus.core.config import from_dict
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.run import RunConfig, train

FEW = {"steps": 2, "batch_size": 4}
TINY = {
    "brain_tokenizer": {"patch_size": 4, "patch": {"width": 8, "depth": 0, "heads": 1}},
    "brain_training": FEW,
    "image_tokenizer": {"image_size": 16, "codes_per_side": 2, "width": 8, "blocks": 0},
    "image_training": FEW,
    "omni": {
        "decoder": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
    },
    "training": {"optim": FEW},
}
NUM_TRIALS = 1300


@pytest.fixture(scope="module")
def beside_the_demo(tmp_path_factory) -> Path:
    """A folder with two pictures and runs/demo: three subjects, regions V1 to V3, test stimuli shared-00000, ..."""
    folder = tmp_path_factory.mktemp("guide")
    rng = np.random.default_rng(0)
    ids = [*(f"shared-{i:05d}" for i in range(8)), *(f"own-{i:05d}" for i in range(32))]
    which = np.arange(NUM_TRIALS) % len(ids)
    split = ["test" if i < 8 else "train" for i in which]
    whole = np.zeros(NUM_TRIALS, np.int64)
    trials = Trials([ids[i] for i in which], whole, whole, np.arange(NUM_TRIALS) // len(ids), split)
    rois = {name: np.arange(12) // 4 == number for number, name in enumerate(("V1", "V2", "V3"))}
    subjects = [
        Subject(BrainSpace(name, 12, rois=rois), rng.normal(size=(NUM_TRIALS, 12)).astype(np.float32), trials)
        for name in ("subj01", "subj02", "subj03")
    ]
    pixels = rng.integers(0, 256, (len(ids), 16, 16, 3)).astype(np.uint8)
    captions = {
        name: [f"a red bird beside a house at night, seen by a face number {i % 4}"] for i, name in enumerate(ids)
    }
    dataset = write_dataset(
        folder / "runs/demo/study/dataset", name="demo", modality="fMRI (simulated)", subjects=subjects,
        stimuli=Stimuli(ids, pixels, captions=captions), zscore="all",
    )  # fmt: skip
    train(dataset, folder / "runs/demo/run", from_dict(RunConfig, TINY))
    for name in ("cat.png", "x.png"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    return folder


def test_every_command_of_the_guide_answers(beside_the_demo, project_root, monkeypatch):
    monkeypatch.chdir(beside_the_demo)
    monkeypatch.delenv("BRAINJANUS_RUN", raising=False)
    guide = (project_root / "docs/guide/generate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"bash", "python"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "generate.md", "exec"), {})
            continue
        for command in text.splitlines():
            program, *argv = shlex.split(command)
            assert program == "brainjanus" and argv[0] == "generate"
            assert cli.main(argv) == 0, command
    assert Path("decoded/captions.json").read_bytes() == Path("decoded_again/captions.json").read_bytes()


def test_links_of_the_guide_are_there(project_root):
    for page in (project_root / "docs/guide").glob("*.md"):
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
