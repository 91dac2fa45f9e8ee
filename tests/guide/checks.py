"""What a story has to have come to, beyond that all of it was executed: page -> what is looked at in its folder."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np

from brainjanus import cli
from brainjanus.data.dataset import Dataset

from .world import World


def generate(world: World, folder: Path) -> None:
    again = (folder / "decoded_again/captions.json").read_bytes()
    assert (folder / "decoded/captions.json").read_bytes() == again


def layouts(world: World, folder: Path) -> None:
    made = {path.parent.name: Dataset.open(path.parent) for path in folder.glob("data/*/dataset.json")}
    prf = nibabel.load(world["~/nsd"] / "nsddata/ppdata/subj02/func1pt8mm/roi/prf-visualrois.nii.gz").get_fdata()
    assert made["nsd"].image_size == 16 and made["early"].space("subj02").num_sites == int((prf > 0).sum())
    for name in ("mindeye2", "mindeye1", "mindllm"):
        assert made[name].trials("subj01").stimuli("test") == made["mindeye2"].trials("subj01").stimuli("test")
    np.testing.assert_array_equal(made["again"].responses("subj01"), made["mindeye2"].responses("subj01"))
    assert made["recaptioned"].caption_sources == ("vlm", "coco")
    assert made["meg"].modality == "MEG" and made["pets"].subjects == ("sub-01",)
    assert made["arrays"].subjects == ("anna", "bert")
    content = np.load(folder / "sub-01/preprocessed_eeg_test.npy", allow_pickle=True).item()
    with np.load(folder / "sub-01/preprocessed_eeg_test.npz", allow_pickle=False) as recipe:
        assert {key: recipe[key].tolist() for key in recipe} == {k: np.array(v).tolist() for k, v in content.items()}


def listed_scans(world: World, folder: Path) -> None:
    """The names on the page are those that are read."""
    assert cli.main(["prepare", "--from", "bids", str(folder / "study"), "--out", str(folder / "listed")]) == 0
    made = Dataset.open(folder / "listed")
    assert (made.subjects, set(made.space("sub-01").rois)) == (("sub-01",), {"FFA"})


def own_scans(world: World, folder: Path) -> None:
    """The dataset is that of the MATLAB file, value for value; all directions are scored; predictions fill the mask."""
    assert world.real_data is not None
    recording = world.real_data / "object2vec"
    with mock.patch.object(sys, "argv", ["object2vec_tables.py", str(recording), "work/object2vec"]):
        runpy.run_path("examples/object2vec_tables.py", run_name="__main__")
    variables = {"BRAINJANUS_REAL_DATA": str(world.real_data), "BRAINJANUS_WORK": str(folder / "work")}
    with mock.patch.dict("os.environ", variables):
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
    mask = nibabel.load("study/derivatives/glm/sub-01/func/sub-01_task-objects_mask.nii.gz")
    np.testing.assert_array_equal(np.isfinite(volume.get_fdata()[..., 0]), mask.get_fdata() > 0)
    np.testing.assert_array_equal(volume.affine, mask.affine)
    assert json.loads(Path("decoded/text/captions.json").read_text()).keys() == set(scans.split_ids("test"))


def nsd(world: World, folder: Path) -> None:
    """What was fetched is what is read; all predictions are scored, and all directions."""
    made = Dataset.open("data/nsd")
    mask = nibabel.load(world["~/nsd"] / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz").get_fdata()
    assert made.space("subj01").num_sites == int((mask > 0).sum()) and made.caption_sources == ("coco",)
    for place in ("text", "image", "samples", "from-image", "from-text"):
        records = json.loads(Path(f"scores/{place}/scores.json").read_text())
        assert records and {record["subject"] for record in records} == {"subj01"}
    directions = {record["direction"] for record in json.loads(Path("runs/nsd/scores/scores.json").read_text())}
    assert directions == {"brain->text", "brain->image", "image->brain", "text->brain"}
    assert json.loads(Path("runs/with-subj09/adapt.json").read_text())


def first_hour(world: World, folder: Path) -> None:
    assert {path.name for path in Path("hour").iterdir()} == {"trial", "which", "sentence", "faces", "face"}
    assert Path("data/mine_checked/doctor.html").exists() and Path("runs/mine/scores/report.html").exists()


def responsible(world: World, folder: Path) -> None:
    """What a user wrote is in cards that were written anew, in the place of what would stand there."""
    for name in ("runs/mine", "data/mine"):
        card = Path(name, "README.md").read_text()
        assert card.count("\nlicense: ") == 1 and "\nRecorded in 2024" in card, name


CHECKS: dict[str, Callable[[World, Path], None]] = {
    "first-hour.md: Minute 0: install": first_hour,
    "generate.md: A first answer": generate,
    "layouts.md: What all of them share": layouts,
    "nsd.md: Install": nsd,
    "own-scans.md: What has to be there": listed_scans,
    "own-scans.md: Something to follow along with": own_scans,
    "responsible.md: Cards": responsible,
}
