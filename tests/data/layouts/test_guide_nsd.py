"""The page on NSD is true: its commands are given, in their order, beside a miniature of raw NSD and a tiny Janus.

One session of noise, two steps: what is learnt means nothing, and `doctor` says so. `memory` and `explore` have tests
of their own; commands of other software (aws, torchrun, sbatch) are not given.
"""

import functools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from brainjanus import cli, run
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset

from . import test_nsd

SMALLER = {  # what a miniature is given instead
    "--image-size 384": "--image-size 16 --subjects subj01 --sessions 1",
    "--device cuda": "--device cpu",
    " --weights networks": "",
    " --clip networks/clip-vit-base-patch32": "",
    "--training.steps 4700 --training.batch-size 256": "--training.steps 2 --training.batch-size 64",
    "--tokenizer.patch-size 64": "--tokenizer.patch-size 8",
    "--janus models/Janus-Pro-1B": "--janus models/Janus-Pro-1B --janus-tokens 4 --training.optim.steps 2"
    " --training.optim.batch-size 64",
}
FEWER = ["--permutations", "5", "--resamples", "5"]
ELSEWHERE = ("memory", "explore")


def write_ninth(known: Dataset, path: Path) -> None:
    """A subject whom nobody knows, who saw a few of the same stimuli in the same splits."""
    shown = known.trials("subj01")
    ids = [*shown.stimuli("test")[:8], *shown.stimuli("train")[:32]]
    once = np.ones(len(ids), np.int64)
    trials = Trials(ids, once, once, once, ["test"] * 8 + ["train"] * 32)
    responses = np.random.default_rng(0).normal(size=(len(ids), 9)).astype(np.float32)
    stimuli = Stimuli(ids, known.images(ids), captions={name: list(known.captions(name)) for name in ids})
    subjects = [Subject(BrainSpace("subj09", 9), responses, trials)]
    write_dataset(path, name="own", modality="fMRI", zscore="all", subjects=subjects, stimuli=stimuli)


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(" +", " ", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("brainjanus ")]


def test_the_commands_of_the_page_on_nsd(project_root, janus_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no Java: METEOR takes longer than all the rest
    monkeypatch.setattr(run, "ScoreOptions", functools.partial(run.ScoreOptions, permutations=5, resamples=5))
    nsd = test_nsd.Miniature(tmp_path / "nsd")
    Path("models").mkdir()
    Path("models/Janus-Pro-1B").symlink_to(janus_folder)
    given, needed = [], set()
    for line in commands_of(project_root / "docs/guide/nsd.md"):
        command = line.replace("~", str(tmp_path))
        for whole, smaller in SMALLER.items():
            if whole in command:
                command = command.replace(whole, smaller)
                needed.add(whole)
        name, *options = shlex.split(command)[1:]
        given.append(name)
        if name == "doctor":
            with pytest.raises(SystemExit, match="1"):  # noise fits no order of stimuli
                cli.main([name, *options])
        elif name not in ELSEWHERE:
            if name == "adapt":
                write_ninth(Dataset.open("data/nsd"), Path("data/subj09"))
            assert cli.main([name, *options, *(FEWER if name == "score" else [])]) == 0, line
    assert needed == SMALLER.keys()
    assert {"prepare", "doctor", "train", "evaluate", "adapt"} < set(given)

    made = Dataset.open("data/nsd")
    assert made.space("subj01").num_sites == int(nsd.mask["subj01"].sum()) and made.caption_sources == ("coco",)
    for place in ("text", "image", "samples", "from-image", "from-text"):
        records = json.loads(Path(f"scores/{place}/scores.json").read_text())
        assert records and {record["subject"] for record in records} == {"subj01"}
    directions = {record["direction"] for record in json.loads(Path("runs/nsd/scores/scores.json").read_text())}
    assert directions == {"brain->text", "brain->image", "image->brain", "text->brain"}
    assert json.loads(Path("runs/with-subj09/adapt.json").read_text())
