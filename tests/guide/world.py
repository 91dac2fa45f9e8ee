"""What pages presume: each name of a `<!-- presumes ... -->` comment, and who makes it, once for all stories.

A name is a path in the story's folder (`runs/mine`), in the reader's home (`~/nsd`), or a variable of Python (`betas`).
Recordings are simulated or noise, runs are trained for two steps, files of others are the miniatures of the tests of
their layouts. The project's `examples` are always there. A name that is not here fails.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from brainjanus.core.config import from_dict
from brainjanus.core.space import BrainSpace
from brainjanus.data import simulate as simulation
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.data.simulate_sensors import ten_ten_mm
from brainjanus.data.write import write_dataset
from brainjanus.run import RunConfig, train
from brainjanus.scoring import ScoreOptions, score_files

from ..data.layouts import (
    conftest,
    test_arrays,
    test_bids,
    test_brainjanus_release,
    test_mindeye1,
    test_mindeye2,
    test_mindllm,
    test_nsd,
    test_things,
)

_FEW = {"steps": 2, "batch_size": 64}
TINY = {
    "brain_tokenizer": {"patch_size": 32, "patch": {"width": 8, "depth": 0, "heads": 1}},
    "brain_training": _FEW,
    "image_tokenizer": {"codes_per_side": 2, "width": 8, "blocks": 0},
    "image_training": _FEW,
    "omni": {
        "decoder": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
    },
    "training": {"optim": _FEW},
}
Maker = Callable[["World", Path], object]


class World:
    """janus: folder of a tiny Janus. real_data: of the real recordings, or None."""

    def __init__(self, folder: Path, janus: Path, real_data: Path | None):
        self.folder, self.janus, self.real_data = folder, janus, real_data

    def __getitem__(self, name: str) -> Path:
        """Where what is called so lies; made at the first call."""
        path = self.folder / name.strip("~./").replace("/", "-")
        if not path.exists():
            assert name in MAKERS, f"tests/guide/world.py makes no {name!r}"
            MAKERS[name](self, path)
        return path

    def furnish(self, folder: Path, home: Path, presumes: Sequence[str]) -> dict[str, object]:
        """Put what is presumed into a story's folder and home; returns the variables among it."""
        names = {}
        for name in presumes:
            if name in VARIABLES:
                names[name] = VARIABLES[name](self)
                continue
            if name == "../shared/data" and self.real_data is None:
                pytest.skip("needs real recordings: set BRAINJANUS_REAL_DATA to their folder")
            there = home / name[2:] if name.startswith("~/") else folder / name
            self.put(name, there)
        return names

    def remote(self, address: str) -> Path:
        """What lies at an address, from which pages fetch."""
        assert address in REMOTE, f"tests/guide/world.py has nothing at {address}"
        return self[REMOTE[address]]

    def put(self, name: str, there: Path) -> None:
        made = self[name]
        there.parent.mkdir(parents=True, exist_ok=True)
        if made.is_symlink():
            there.symlink_to(made.resolve())
        elif made.is_dir():
            shutil.copytree(made, there, copy_function=os.link, dirs_exist_ok=True)
        else:
            os.link(made, there)


# --- datasets and runs


def demo(world: World, path: Path) -> None:
    """The demo's three subjects, with fewer stimuli and sites; more than 1,234 trials each. With this seed, enough test
    stimuli show what the pages ask about: faces, houses and animals."""
    config = SimulationConfig(num_train=90, num_test=36, repeats=10, num_sites=(200, 210), seed=21)
    train(simulated(path / "study", config), path / "run", from_dict(RunConfig, TINY))


def simulated(out: Path, config: SimulationConfig) -> Dataset:
    """A study whose sites keep their places and lose the surface, on which every map would be drawn for a second."""

    def written(path: Path, *, subjects: Iterable[Subject], **others: object) -> Dataset:
        placed = (Subject(without_surface(each.space), each.responses, each.trials) for each in subjects)
        return write_dataset(path, subjects=placed, **others)

    with mock.patch.object(simulation, "write_dataset", written):
        return simulate(out, config)


def without_surface(space: BrainSpace) -> BrainSpace:
    return BrainSpace(space.subject, space.num_sites, coordinates_mm=space.coordinates_mm, rois=space.rois)


def mine(world: World, path: Path) -> None:
    """One subject of a simulated cortex: 40 training, 32 test and 12 validation stimuli."""
    config = SimulationConfig(num_subjects=1, num_train=52, num_test=32, num_sites=(200, 210), trials_per_session=84)
    rewritten(simulated(path.with_name("mine-study"), config), path, "subj01", num_val=12)


def new(world: World, path: Path) -> None:
    config = SimulationConfig(
        num_subjects=1, num_train=110, num_test=12, repeats=1, num_sites=(200, 210), trials_per_session=61, seed=9
    )
    rewritten(simulated(path.with_name("new-study"), config), path, "subj09")


def rewritten(dataset: Dataset, path: Path, name: str, num_val: int = 0) -> None:
    """The only subject of a dataset under another name; its last training stimuli become the val split."""
    (subject,) = dataset.subjects
    trials, old = dataset.trials(subject), dataset.space(subject)
    space = BrainSpace(name, old.num_sites, coordinates_mm=old.coordinates_mm, rois=old.rois)
    val = set(trials.stimuli("train")[-num_val:] if num_val else ())
    split = ["val" if one in val else part for one, part in zip(trials.stimulus_id, trials.split, strict=True)]
    ids = list(dataset.stimulus_ids)
    write_dataset(
        path, name=path.name, modality=dataset.modality, zscore="all",
        subjects=[Subject(space, dataset.responses(subject), trials._replace(split=split))],
        stimuli=Stimuli(ids, dataset.images(ids), captions={one: list(dataset.captions(one)) for one in ids}),
    )  # fmt: skip


def noise(path: Path, space: BrainSpace, modality: str, prefix: str, size: int) -> None:
    """48 stimuli of `size` x `size` pixels, 16 of them for the test, each seen twice."""
    rng = np.random.default_rng(0)
    ids = [f"{prefix}{number:05}" for number in range(48)]
    shown = [*ids, *ids]
    repeat = np.repeat([1, 2], 48)
    split = ["test" if one < ids[16] else "train" for one in shown]
    trials = Trials(shown, np.ones_like(repeat), np.ones_like(repeat), repeat, split)
    responses = rng.normal(size=(96, space.num_sites)).astype(np.float32)
    captions = {one: [f"a {('red', 'blue')[i % 2]} {('dog', 'face', 'house')[i % 3]}"] for i, one in enumerate(ids)}
    pixels = rng.integers(0, 256, (48, size, size, 3)).astype(np.uint8)
    write_dataset(
        path, name=path.name, modality=modality, subjects=[Subject(space, responses, trials)],
        stimuli=Stimuli(ids, pixels, captions=captions),
    )  # fmt: skip


def nsd(world: World, path: Path) -> None:
    noise(path, BrainSpace("subj01", 24, rois={"V1": np.arange(24) < 8}), "fMRI", "nsd-", size=16)


def ninth(world: World, path: Path) -> None:
    noise(path, BrainSpace("subj09", 9), "fMRI", "own-", size=16)


def eeg(world: World, path: Path) -> None:
    names = ["O1", "Oz", "O2", "PO7"]
    places = np.array([ten_ten_mm(name) for name in names])
    times = np.arange(-0.1, 0.4, 0.025)
    noise(path, BrainSpace.of_sensors("subj01", names, times, positions_mm=places), "EEG", "seen-", size=64)


def trained(dataset: str) -> Maker:
    return lambda world, path: train(Dataset.open(world[dataset]), path, from_dict(RunConfig, TINY))


# --- predictions for data/mine


def held_out(world: World, split: str = "test") -> tuple[Dataset, list[str]]:
    dataset = Dataset.open(world["data/mine"])
    return dataset, list(dataset.trials("subj01").stimuli(split))


def captions(number: int) -> Maker:
    """JSON {id: one caption}, or with number < 0 all of them, which are the references."""

    def write(world: World, path: Path) -> None:
        dataset, ids = held_out(world)
        said = {one: dataset.captions(one) for one in ids}
        path.write_text(json.dumps({one: of if number < 0 else of[number] for one, of in said.items()}))

    return write


def pictures(split: str) -> Maker:
    def write(world: World, path: Path) -> None:
        dataset, ids = held_out(world, split)
        path.mkdir()
        for one, pixels in zip(ids, dataset.images(ids), strict=True):
            Image.fromarray(pixels).save(path / f"{one}.png")

    return write


def predicted(world: World) -> np.ndarray:
    dataset, _ = held_out(world)
    return dataset.averages("subj01", "test").responses


def predicted_npz(world: World, path: Path) -> None:
    np.savez(path, predicted=predicted(world), ids=np.array(held_out(world)[1]))


def scored(world: World, path: Path) -> None:
    score_files(
        "to-brain", world["predicted.npz"], path, dataset=world["data/mine"], subject="subj01",
        options=ScoreOptions(permutations=5, resamples=5),
    )  # fmt: skip


def something(world: World, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weights": np.ones((2, 3), np.float32)}, path)


# --- files of a lab


def scans(folder: Path) -> None:
    """Betas of two runs as NIfTI and MATLAB, masks, ROIs, epochs with sensors; 12 pictures, each seen twice."""
    rng = np.random.default_rng(0)
    shape, affine = (4, 5, 3), np.diag([2.0, 2, 2, 1])
    names = [f"scene{i:02}" for i in range(12)]

    def volume(path: Path, data: np.ndarray) -> None:
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, affine), path)

    mask = (rng.random(shape) < 0.5).astype(np.uint8)
    volume(folder / "nsdgeneral.nii.gz", mask)
    for who in ("subj01", "subj02"):
        volume(folder / who / "mask.nii.gz", mask)
        lines = [f"{name}\t1\t{run}\t{'test' if i < 3 else 'train'}" for run in (1, 2) for i, name in enumerate(names)]
        table = "\n".join(["stimulus_id\tsession\trun\tsplit", *lines]) + "\n"
        (folder / who / "trials.tsv").write_text(table)
    (folder / "trials.tsv").write_text(table)
    for roi in ("V1", "FFA"):
        volume(folder / f"subj01/{roi}.nii.gz", (rng.random(shape) < 0.5).astype(np.uint8))
    for run in ("01", "02"):
        betas = rng.integers(-3000, 3000, (*shape, 12)).astype(np.int16)
        volume(folder / f"betas_{run}.nii.gz", betas)
        volume(folder / f"subj01/betas_{run}.nii.gz", betas)
    savemat(folder / "subj02/betas.mat", {"betas": rng.normal(size=(24, int(mask.sum())))})
    sensors = ["O1", "Oz", "O2", "PO7"]
    savemat(folder / "subj01/epochs.mat", {"epochs": rng.normal(size=(24, 4, 120))})
    rows = [f"{name}\t" + "\t".join(f"{mm:.1f}" for mm in ten_ten_mm(name)) for name in sensors]
    (folder / "subj01/electrodes.tsv").write_text("\n".join(["name\tx\ty\tz", *rows]) + "\n")
    (folder / "captions.json").write_text(json.dumps({name: [f"a red {name}"] for name in names}))
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.png", conftest.jpg(rng.integers(0, 256, (16, 16, 3), np.uint8)))


def of_scans(name: str) -> Maker:
    def write(world: World, path: Path) -> None:
        everything = world.folder / "all of a lab"
        if not everything.exists():
            everything.mkdir()
            scans(everything)
        (shutil.copytree if (everything / name).is_dir() else shutil.copy)(everything / name, path)

    return write


def study(world: World, path: Path) -> None:
    """BIDS derivatives with the very names of the page on scans of one's own."""
    rng, glm = np.random.default_rng(0), path / "derivatives/glm"
    func = glm / "sub-01/ses-01/func"
    test_bids.save(func / "sub-01_ses-01_task-see_run-1_betas.nii.gz", rng.normal(size=(*test_bids.SHAPE, 9)))
    test_bids.save(func / "sub-01_ses-01_task-see_mask.nii.gz", np.ones(test_bids.SHAPE, np.uint8))
    events = path / "sub-01/ses-01/func/sub-01_ses-01_task-see_run-1_events.tsv"
    test_bids.table(events, onset=range(9), stim_file=test_bids.STIMULI)
    test_bids.save(glm / "sub-01/anat/sub-01_label-FFA_mask.nii.gz", np.ones(test_bids.SHAPE, np.uint8))
    test_bids.pictures(path / "stimuli")


def v4(world: World, path: Path) -> None:
    """The six sessions in small: 20 pictures each, the same in the last two, and two of 190925 that come twice."""
    rng = np.random.default_rng(0)
    path.mkdir()
    pixels = {name: rng.integers(0, 256, (20, 16, 16, 3), np.uint8) for name in V4_NEURONS}
    pixels["210325"] = pixels["210322"]
    pixels["190925"][10:12] = pixels["190925"][:2]
    for name, neurons in V4_NEURONS.items():
        with zipfile.ZipFile(path / f"images_{name}.zip", "w") as archive:
            for number, picture in enumerate(pixels[name], start=1):
                archive.writestr(f"image{number:04}.jpg", conftest.jpg(picture))
        np.save(path / f"responses_{name}.npy", rng.normal(size=(neurons, 20)))
    raw = rng.normal(size=(V4_NEURONS["210325"], 20, 4))
    raw[:, 5:, 2:] = np.nan
    np.save(path / "responses_raw_210325.npy", raw)


def object2vec(world: World, path: Path) -> None:
    """MATLAB's cells in small: 36 categories of two pictures, nine folds, two ROIs, three numbers for a word."""
    rng = np.random.default_rng(0)
    path.mkdir()
    names = [f"thing{chr(97 + i // 6)}{chr(97 + i % 6)}" for i in range(36)]

    def cells(values: Sequence[object]) -> np.ndarray:
        column = np.empty((len(values), 1), object)
        column[:, 0] = values
        return column

    stack = {"conds": cells(names), "rois": cells(["EVC", "LOC"]), "indices": np.arange(24)[None] // 12 + 1}
    savemat(path / "roistack.mat", {"roistack": stack | {"betas": rng.normal(size=(36, 24))}})
    savemat(path / "sets.mat", {"sets": cells([cells(names[4 * fold : 4 * fold + 4]) for fold in range(9)]).T})
    savemat(path / "word2vec.mat", {"word2vec": rng.normal(size=(36, 3))})
    with zipfile.ZipFile(path / "stimuli_224.zip", "w") as archive:
        for name in names:
            for number in range(2):
                archive.writestr(f"{name}/{number}.jpg", conftest.jpg(rng.integers(0, 256, (16, 16, 3), np.uint8)))


V4_NEURONS = {"190923": 6, "190925": 7, "190928": 5, "210224": 8, "210322": 6, "210325": 9}
FEATURES = """
import sys, zipfile
import numpy as np
names = sorted(zipfile.ZipFile(sys.argv[1]).namelist())
np.savez(sys.argv[2], names=names, features=np.random.default_rng(0).normal(size=(len(names), 4, 3)).astype(np.float16))
"""


# --- files of others


def planted(build: Callable[[Path, conftest.Planted], object]) -> Maker:
    return lambda world, path: build(path, conftest.Planted())


def lab(world: World, path: Path) -> None:
    """As examples/extend_reader.py says: one npz a session, pictures, and the names of those that are held out."""
    rng = np.random.default_rng(0)
    names = np.array([f"scene{number:02}" for number in range(48)])
    for folder in ("sub-01", "pictures"):
        (path / folder).mkdir(parents=True)
    for session in (1, 2):
        np.savez(
            path / f"sub-01/ses-{session:02}.npz",
            betas=rng.normal(size=(48, 20)).astype(np.float32), image=names, mm=rng.normal(size=(20, 3)),
        )  # fmt: skip
    for name in names:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path / f"pictures/{name}.png")
    (path / "held_out.txt").write_text("\n".join(names[:8]))


def llama(world: World, path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)


def annotations(world: World, path: Path) -> None:
    """COCO's archive of captions, of what is seen in the raw NSD."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in (world["~/nsd"] / "nsddata_stimuli/stimuli/nsd/annotations").iterdir():
            archive.write(file, f"annotations/{file.name}")
        archive.writestr("annotations/instances_val2017.json", "{}")


def recaptions(world: World, path: Path) -> None:
    order = np.load(world["~/nsd"] / "seen.npy")
    path.write_text(json.dumps({str(image): f"number {image}" for image in order}))


def raw_nsd(world: World, path: Path) -> None:
    miniature = test_nsd.Miniature(path)
    np.save(path / "seen.npy", miniature.seen)
    for who, session in miniature.betas:
        miniature.hdf5(who, session)


def pickled_epochs(world: World, path: Path) -> None:
    path.mkdir()
    content = {"preprocessed_eeg_data": np.ones((2, 3, 4, 5)), "ch_names": ["Oz"], "times": np.arange(5.0)}
    np.save(path / "preprocessed_eeg_test.npy", content, allow_pickle=True)


def red_picture(world: World, path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(path)


SCANS = ("betas_01.nii.gz", "betas_02.nii.gz", "nsdgeneral.nii.gz", "trials.tsv", "pictures.zip", "captions.json")
SCANS += ("subj01", "subj02")
MAKERS: dict[str, Maker] = {
    "runs/demo": demo,
    "data/mine": mine,
    "runs/mine": trained("data/mine"),
    "runs/mine/scores": scored,
    "scores/peer": scored,
    "runs/study": lambda world, path: shutil.copytree(world["runs/mine"], path),
    "data/new": new,
    "data/nsd": nsd,
    "data/subj09": ninth,
    "data/eeg": eeg,
    "runs/eeg": trained("data/eeg"),
    "models/Janus-Pro-1B": lambda world, path: path.symlink_to(world.janus),
    "models/Janus-Pro-7B": lambda world, path: path.symlink_to(world.janus),
    "models/Llama": llama,
    "my_parts.py": lambda world, path: path.write_text("import brainjanus as bj\n"),
    "cat.png": red_picture,
    "x.png": red_picture,
    "coco.json": captions(-1),
    "git.json": captions(0),
    "vlm.json": captions(0),
    "decoded.json": captions(0),
    "decoded": pictures("test"),
    "decoded_val": pictures("val"),
    "predicted.npy": lambda world, path: np.save(path, predicted(world)),
    "predicted.npz": predicted_npz,
    "ids.txt": lambda world, path: path.write_text("\n".join(held_out(world)[1])),
    "something.safetensors": something,
    **{name: of_scans(name) for name in SCANS},
    "study": study,
    "../shared/data": lambda world, path: path.symlink_to(world.real_data),
    "../shared/data/v4_cowley": v4,
    "../shared/data/object2vec": object2vec,
    "../shared/tools/mobilenet_features.py": lambda world, path: path.write_text(FEATURES),
    "~/nsd": raw_nsd,
    "~/mindeye2": planted(test_mindeye2.build),
    "~/mindeye1": planted(lambda path, planted: test_mindeye1.build(path / "webdataset_avg_split", planted)),
    "~/mindllm": planted(test_mindllm.build),
    "~/brainjanus": planted(test_brainjanus_release.build),
    "~/things-eeg2": lambda world, path: test_things.build(path, "things-eeg2"),
    "~/things-meg": lambda world, path: test_things.build(path, "things-meg"),
    "~/pets": lambda world, path: test_bids.Volumes(path),
    "~/scans": lab,
    "~/mine": lambda world, path: test_arrays.build(path),
    "nsd_stim_info_merged.csv": lambda world, path: test_mindllm.write_table(path),
    "nsd_expdesign.mat": lambda world, path: shutil.copy(
        world["~/nsd"] / "nsddata/experiments/nsd/nsd_expdesign.mat", path
    ),
    "recaptions.json": recaptions,
    "annotations_trainval2017.zip": annotations,
    "sub-01": pickled_epochs,
}


REMOTE = {
    "s3://natural-scenes-dataset": "~/nsd",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip": "annotations_trainval2017.zip",
    "deepseek-community/Janus-Pro-1B": "models/Janus-Pro-1B",
    "deepseek-community/Janus-Pro-7B": "models/Janus-Pro-7B",
}


def responses(world: World) -> object:
    import torch

    return torch.from_numpy(predicted(world))


def network(world: World) -> object:
    import torch

    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, stride=4), torch.nn.Flatten(2))


VARIABLES: dict[str, Callable[[World], object]] = {
    "ids": lambda world: held_out(world)[1],
    "predicted": predicted,
    "responses": responses,
    "network": network,
    "betas": lambda world: np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32),
    "shown": lambda world: [f"id{number}" for number in range(1, 7)] * 2,
    "split": lambda world: (["test"] * 2 + ["train"] * 4) * 2,
    "pixels": lambda world: np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), np.uint8),
}
