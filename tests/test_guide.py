"""The guide is true. Every command of the page on generation is given, in its order, beside a run with the demo's
names: a tiny one, trained for two steps on noise, whose answers mean nothing; so are those of the first hour. The page
on scans of one's own is followed from betas to scores, with few steps and resamples, where the real recording is.
Commands of the other pages are parsed, their Python is compiled, and what it imports is there.
"""

import ast
import contextlib
import functools
import importlib
import json
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainjanus import arguments, cli
from brainjanus.core.config import from_dict
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset
from brainjanus.run import RunConfig, train

FEW = {"steps": 2, "batch_size": 4}
SAID = ("a red bird beside a house at night, seen by a face with white hair, number", "a red bird and a dog, number")
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
    captions = {name: [f"{SAID[i % 2]} {i % 4}"] for i, name in enumerate(ids)}
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


def test_the_first_hour_is_true(beside_the_demo, project_root, tmp_path, monkeypatch):
    """All but the installation, the demo, which is there, and the explorer."""
    from brainjanus import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ScoreOptions", functools.partial(run.ScoreOptions, permutations=20, resamples=20))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quick").symlink_to(beside_the_demo / "runs/demo")
    page = (project_root / "docs/guide/first-hour.md").read_text(encoding="utf-8")
    done, skipped = [], ("make ", "source ", "brainjanus demo ", "brainjanus explore ")
    for kind, text in re.findall(r"^```(bash|python)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(text, "first-hour.md", "exec"), {})
            continue
        for command in text.replace("\\\n", " ").splitlines():
            if not command.startswith(skipped):
                with contextlib.suppress(SystemExit):  # of doctor, for whom noise is not sound
                    assert cli.main(shlex.split(command + SMALLER.get(command, ""))[1:]) == 0, command
                done.append(command.split()[1])
    assert done == [
        "generate",
        "generate",
        "generate",
        "localize",
        "localize",
        "prepare",
        "doctor",
        "train",
        "evaluate",
    ]
    assert len(list(Path("hour").iterdir())) == 5
    assert Path("data/mine_checked/doctor.html").exists() and Path("runs/mine/scores/report.html").exists()


SMALLER = {
    "brainjanus train data/mine --out runs/mine --recipe quick": " --training.optim.steps 2 --brain-training.steps 2"
    " --image-training.steps 2",
    "brainjanus train data/scans --out runs/scans": " --training.optim.steps 4 --brain-training.steps 4"
    " --image-training.steps 4",
}


def follow(page: Path, real_data: Path, monkeypatch) -> list[str]:
    """Do what a page says, block by block, in the folder where we are; returns the commands."""
    done = []
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.replace("$BRAINJANUS_REAL_DATA", str(real_data))
            program, *argv = shlex.split(command + SMALLER.get(command, ""))
            if program == "brainjanus":
                assert cli.main(argv) == 0, line
            elif program == "python":
                monkeypatch.setattr(sys, "argv", argv)
                runpy.run_path(argv[0], run_name="__main__")
            else:
                assert line == "export BRAINJANUS_REAL_DATA=$PWD/../shared/data"
            done.append(command)
    return done


def test_own_scans_lead_from_betas_to_scores(real_data, project_root, tmp_path, monkeypatch):
    """On the betas of object2vec as NIfTI: the dataset is that of its MATLAB file, value for value."""
    import nibabel

    from brainjanus import run

    recording = real_data / "object2vec"
    if not recording.is_dir():
        pytest.skip(f"needs {recording}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no Java: METEOR takes longer than all the rest
    monkeypatch.setattr(run, "ScoreOptions", functools.partial(run.ScoreOptions, permutations=20, resamples=20))
    Path("examples").symlink_to(project_root / "examples")
    done = follow(project_root / "docs/guide/own-scans.md", real_data, monkeypatch)
    assert "brainjanus train data/scans --out runs/scans" in done

    monkeypatch.setenv("BRAINJANUS_REAL_DATA", str(real_data))
    monkeypatch.setenv("BRAINJANUS_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(sys, "argv", ["object2vec_tables.py", str(recording), "work/object2vec"])
    runpy.run_path("examples/object2vec_tables.py", run_name="__main__")
    assert cli.main(["prepare", "--config", "examples/object2vec.toml", "--out", "data/matlab"]) == 0
    matlab = Dataset.open("data/matlab")
    planned = matlab.trials("object2vec")
    for name in ("data/scans", "data/plain"):
        made = Dataset.open(name)
        trials = made.trials("sub-01")
        assert (trials.stimulus_id, trials.split) == (planned.stimulus_id, planned.split)
        np.testing.assert_array_equal(made.responses("sub-01"), matlab.responses("object2vec"))
        assert made.captions("bed") == ("bed",)
    scans, plain = Dataset.open("data/scans"), Dataset.open("data/plain")
    rois = matlab.space("object2vec").rois
    assert scans.space("sub-01").rois.keys() == rois.keys()
    for roi, members in rois.items():
        np.testing.assert_array_equal(scans.space("sub-01").rois[roi], members)
    assert (len(scans.picture_rows("bed")), len(plain.picture_rows("bed"))) == (1, 10)
    np.testing.assert_array_equal(scans.pictures("bed")[0], plain.pictures("bed")[0])

    records = json.loads(Path("runs/scans/scores/scores.json").read_text())
    found = {record["direction"] for record in records}
    assert found == {"brain->text", "brain->image", "image->brain", "text->brain"}
    assert np.isfinite([record["value"] for record in records]).all()
    volume = nibabel.load("predicted/responses.nii.gz")
    mask = nibabel.load(tmp_path / "study/derivatives/glm/sub-01/func/sub-01_task-objects_mask.nii.gz")
    np.testing.assert_array_equal(np.isfinite(volume.get_fdata()[..., 0]), mask.get_fdata() > 0)
    np.testing.assert_array_equal(volume.affine, mask.affine)
    assert json.loads(Path("decoded/text/captions.json").read_text()).keys() == set(scans.split_ids("test"))


def blocks_of(page: Path) -> list[str]:
    """What is fenced or indented by four spaces."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", text, flags=re.MULTILINE)
    return [*fenced, *map(textwrap.dedent, indented)]


@pytest.fixture(scope="module")
def blocks(project_root) -> list[tuple[str, str]]:
    pages = sorted((project_root / "docs/guide").glob("*.md"))
    return [(page.name, block) for page in pages for block in blocks_of(page)]


@pytest.mark.usefixtures("forgotten")  # the examples that --extend loads
def test_every_command_of_the_guide_is_understood(blocks, project_root, monkeypatch):
    monkeypatch.chdir(project_root)  # where the examples are
    for variable in ("BRAINJANUS_REAL_DATA", "BRAINJANUS_WORK"):  # which the examples name
        monkeypatch.setenv(variable, "somewhere")
    real, parsed = arguments.parse, []

    def without_running(command, run, argv, name=""):
        @functools.wraps(run)
        def nothing(*args, **kwargs):
            parsed.append(argv)
            return run.__annotations__["return"]()

        return real(command, nothing, argv, name)

    monkeypatch.setattr(arguments, "parse", without_running)
    commands = [line for _, block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in commands if line.startswith("brainjanus ")]
    for line in commands:
        try:
            assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
        except SystemExit:
            pytest.fail(f"not understood: {line}")
    assert len(parsed) == len(commands) > 40


def test_python_of_the_guide_compiles_and_imports_what_is_there(blocks):
    found = 0
    for page, block in blocks:
        if not re.match(r"(from|import) ", block):
            continue
        found += 1
        code = block.partition("\nbrainjanus ")[0]  # a command may come right behind it
        for node in ast.walk(ast.parse(code, page)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("brainjanus"):
                module = importlib.import_module(str(node.module))
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{page}: {node.module} has no {missing}"
    assert found > 7


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


def sentences_of(project_root: Path) -> list[str]:
    """Every text that the package has in its code; what is filled in is a blank."""
    texts = []
    for file in (project_root / "brainjanus").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else " " for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_sentences_that_are_quoted_are_those_of_the_package(project_root):
    """Of the table of errors in faq.md: what stands between numbers, names and dots, in its order."""
    table = (project_root / "docs/guide/faq.md").read_text(encoding="utf-8").partition("\n| it says |")[2]
    quoted = re.findall(r"^\| `(.+?)` \|", table, flags=re.MULTILINE)
    texts = sentences_of(project_root)
    assert len(quoted) > 15
    for sentence in quoted:
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|'[^']*'|\b\d+\b", sentence)]
        pattern = re.compile(".*".join(map(re.escape, filter(None, pieces))), re.DOTALL)
        assert any(map(pattern.search, texts)), sentence
