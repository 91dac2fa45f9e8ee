"""MindLLM's files in small: samples are trials, known by cocoId."""

import json
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import mindllm, open_study
from brainjanus.data.study import StudyOptions

from .conftest import NUM_VOXELS, Planted, read_all


def coco(image: int) -> int:
    return 500_000 - 3 * int(image)  # in another order than 73k ids


def build(root: Path, planted: Planted) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "subject_1.h5", "w") as file:
        for row in np.random.default_rng(2).permutation(80).tolist():
            split = "test" if planted.image[row] in planted.shared else "train"
            group = file.create_group(f"{split}/{row}")
            group["visual_voxels"] = planted.betas[planted.trial[row]]
            group["coco_id"] = coco(planted.image[row])
            group["prev_coco_id"] = -1
    return root


@cache
def table() -> str:
    header = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    lines = (f'{image},{coco(image)},train2017,"(0, 0, 0, 0)",0.1,{image},False,False,False' for image in range(73_000))
    return "\n".join([",".join(header), *reversed(list(lines))]) + "\n"  # its order says nothing


def write_table(file: Path) -> None:
    file.write_text(table())


@pytest.fixture
def root(tmp_path: Path, planted: Planted) -> Path:
    return build(tmp_path, planted)


def open_it(root: Path, **options):
    return open_study("mindllm", root, StudyOptions(**options))


def by_name(names, responses) -> list[tuple]:
    return sorted((name, *row) for name, row in zip(names, responses.tolist(), strict=True))


@pytest.mark.parametrize("place", ["", "nsd0"])
def test_what_was_planted_is_read(tmp_path, planted, place, monkeypatch):
    monkeypatch.setattr(mindllm, "PART", 32)
    build(tmp_path / place, planted)
    write_table(tmp_path / "nsd_stim_info_merged.csv")
    study = open_it(tmp_path)
    names, _, _, responses = read_all(study)
    assert by_name(names, responses) == by_name(planted.names, planted.responses())
    assert study.split == planted.split
    numbers = [one.number for one in study.subjects[0].sessions]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 2  # never the whole subject at once
    assert study.zscore == "all" and study.pictures is None
    assert study.subjects[0].space.subject == "subj01"


def test_without_the_table_stimuli_go_by_coco_id(root, planted):
    study = open_it(root)
    names, _, _, responses = read_all(study)
    expected = [f"coco-{coco(image):012}" for image in planted.image]
    assert by_name(names, responses) == by_name(expected, planted.responses())
    assert any("named by cocoId" in notice for notice in study.notices)


def test_captions_by_coco_id_are_joined(root, planted):
    image = int(planted.image[0])
    (root / "vlm.json").write_text(json.dumps({str(coco(image)): "a cat"}))
    study = open_it(root, captions=(f"vlm={root / 'vlm.json'}",))
    assert study.captions == {"vlm": {f"coco-{coco(image):012}": ["a cat"]}}


def test_a_coco_id_that_nsd_has_not_is_refused(root):
    with h5py.File(root / "subject_1.h5", "r+") as file:
        del file["train"][next(iter(file["train"]))]["coco_id"]
        file["train"][next(iter(file["train"]))]["coco_id"] = 42
    write_table(root / "nsd_stim_info_merged.csv")
    with pytest.raises(UserError, match=r"expected the cocoId of one image of NSD.*got 42, of 0"):
        open_it(root)


def test_an_image_in_train_and_test_is_refused(root, planted):
    row = next(row for row in range(80) if planted.image[row] in planted.shared)
    with h5py.File(root / "subject_1.h5", "r+") as file:
        group = file.create_group("train/again")
        group["visual_voxels"], group["coco_id"] = np.zeros(NUM_VOXELS, np.float32), coco(planted.image[row])
    with pytest.raises(UserError, match="expected each image in train or in test"):
        open_it(root)


def test_wrong_files_are_one_sentence(root, tmp_path_factory):
    with h5py.File(root / "subject_1.h5", "r+") as file:
        first = next(iter(file["train"]))
        del file["train"][first]["visual_voxels"]
        file["train"][first]["visual_voxels"] = np.zeros(NUM_VOXELS + 1, np.float32)
    with pytest.raises(UserError, match="expected 8 voxels, as in the first sample, got 7"):
        read_all(open_it(root))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.h5"
    with h5py.File(elsewhere, "w") as file:
        file["train/0/coco_id"] = 3
    with h5py.File(root / "subject_1.h5", "w") as file:
        file["train"] = h5py.ExternalLink(str(elsewhere), "train")
    with pytest.raises(UserError, match="in the file itself"):
        open_it(root)
    (root / "subject_1.h5").write_bytes(b"no hdf5")
    with pytest.raises(UserError, match="expected an HDF5 file"):
        open_it(root)


def test_a_link_to_a_sample_elsewhere_is_refused(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.h5"
    with h5py.File(elsewhere, "w") as file:
        file["0/coco_id"] = 3
    with h5py.File(root / "subject_1.h5", "r+") as file:
        file["train/000"] = h5py.ExternalLink(str(elsewhere), "0")
    with pytest.raises(UserError, match="in the file itself, got a link"):
        open_it(root)


@pytest.mark.parametrize("name", ["coco_id", "visual_voxels"])
def test_links_inside_a_sample_are_refused(root, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.h5"
    with h5py.File(elsewhere, "w") as file:
        file["coco_id"], file["visual_voxels"] = 3, np.zeros(NUM_VOXELS, np.float32)
    with h5py.File(root / "subject_1.h5", "r+") as file:
        key = list(file["train"])[-1]
        del file["train"][key][name]
        file["train"][key][name] = h5py.ExternalLink(str(elsewhere), name)
    with pytest.raises(UserError, match=rf"'train/{key}/{name}' in the file itself, got a link"):
        read_all(open_it(root))


def test_the_group_of_a_split_is_opened_once(root, monkeypatch):
    opened = []
    group_in = mindllm.group_in
    monkeypatch.setattr(mindllm, "group_in", lambda *args: opened.append(args[2]) or group_in(*args))
    open_it(root)
    assert opened == ["train", "test"]


def test_options_without_a_use_are_refused(root):
    with pytest.raises(UserError, match="--sessions: expected options that the layout mindllm has a use for"):
        open_it(root, sessions=2)
