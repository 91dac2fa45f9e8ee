"""Each miniature, prepared to its end: the dataset holds what was planted; three layouts of NSD make one dataset."""

import importlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from brainjanus.data.dataset import Dataset
from brainjanus.data.layouts import open_study
from brainjanus.data.plan import StreamOptions
from brainjanus.data.stream import stream_study
from brainjanus.data.study import StudyOptions

from . import test_brainjanus_release, test_mindeye1, test_mindeye2, test_mindllm, test_nsd, test_things
from .conftest import SIZE, Planted, jpg, npy, write_tar


def prepare(layout: str, root: Path, out: Path, **options) -> Dataset:
    study = open_study(layout, root, StudyOptions())
    return stream_study(study, out, StreamOptions(image_size=SIZE, **options))


def by_trial(names, *columns) -> list[tuple]:
    return sorted(zip(names, *(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("layout", ["mindeye2", "mindeye1", "mindllm", "brainjanus"])
def test_nsd_layouts_hold_what_was_planted(tmp_path, planted, layout):
    module = {"mindeye2": test_mindeye2, "mindeye1": test_mindeye1, "mindllm": test_mindllm}
    root = module.get(layout, test_brainjanus_release).build(tmp_path / "files", planted)
    if layout == "mindllm":
        test_mindllm.write_table(root / "nsd_stim_info_merged.csv")
    data = prepare(layout, root, tmp_path / "out", zscore="none")
    trials = data.trials("subj01")
    expected = planted.names, planted.responses()
    if layout == "brainjanus":
        expected = test_brainjanus_release.expected(planted)
    assert by_trial(trials.stimulus_id, data.responses("subj01")) == by_trial(*expected)
    assert dict(zip(trials.stimulus_id, trials.split, strict=True)) == planted.split
    if layout.startswith("mindeye"):
        assert trials.stimulus_id == planted.names
        np.testing.assert_array_equal(trials.session, planted.session)
    if data.image_size is not None:
        for image, pixels in planted.pixels.items():
            np.testing.assert_array_equal(data.images([f"nsd-{image:05}"])[0], pixels)


@pytest.mark.parametrize("layout", ["mindeye2", "mindeye1", "mindllm", "brainjanus"])
def test_rois_lie_beside_the_mask_of_nsd(tmp_path, planted, layout):
    module = {"mindeye2": test_mindeye2, "mindeye1": test_mindeye1, "mindllm": test_mindllm}
    root = module.get(layout, test_brainjanus_release).build(tmp_path / "files", planted)
    without = open_study(layout, root, StudyOptions())
    assert any("no coordinates and no ROIs" in notice and "--mask" in notice for notice in without.notices)
    roi = tmp_path / "nsd/nsddata/ppdata/subj01/func1pt8mm/roi"
    where = np.array([1, 4, 5, 9, 17, 20, 23])
    mask, labels = np.zeros(24, np.float32), np.zeros(24, np.float32)
    mask[where], labels[where] = 1, [1, 1, 2, 0, -1, 2, 5]
    test_nsd.save_volume(roi / "nsdgeneral.nii.gz", mask.reshape(3, 4, 2))
    given = str(tmp_path / "nsd/nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz")
    alone = open_study(layout, root, StudyOptions(mask=given))
    assert not any("no coordinates" in notice for notice in alone.notices)
    assert any(notice.startswith("Voxels have no ROIs") for notice in alone.notices)
    test_nsd.save_volume(roi / "prf-visualrois.nii.gz", labels.reshape(3, 4, 2))
    tables = tmp_path / "nsd/nsddata/freesurfer/subj01/label"
    tables.mkdir(parents=True)
    (tables / "prf-visualrois.mgz.ctab").write_text("0 Unknown\n1 V1v\n2 V1d\n5 V3v\n")
    study = open_study(layout, root, StudyOptions(mask=given))
    space = study.subjects[0].space
    np.testing.assert_array_equal(space.index, where)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in space.rois.items()} == {
        "V1v": [0, 1],
        "V1d": [2, 5],
        "V3v": [6],
    }
    assert not any("no ROIs" in notice for notice in study.notices)
    files = {file for found in study.found for file in found.files}
    assert {roi / "nsdgeneral.nii.gz", roi / "prf-visualrois.nii.gz"} <= files


@pytest.mark.parametrize("layout", list(test_things.RELEASES))
def test_things_hold_what_was_planted(tmp_path, layout, monkeypatch):
    monkeypatch.setattr("brainjanus.data.layouts.things.PART_BYTES", 500)
    root = test_things.build(tmp_path / "files", layout)
    data = prepare(layout, root, tmp_path / "out", zscore="none")
    names, responses = test_things.expected(layout)
    assert data.trials("sub-01").stimulus_id == names
    np.testing.assert_array_equal(data.responses("sub-01"), responses)
    grid = data.space("sub-01").to_grid(data.responses("sub-01"))
    np.testing.assert_array_equal(grid, responses.reshape(-1, 3, 5))
    scored = prepare(layout, root, tmp_path / "scored")  # over all training trials, of all parts
    train = scored.responses("sub-01", scored.trials("sub-01").rows("train"))
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)


def as_mindeye(mini: test_nsd.Miniature, root: Path) -> None:
    """subj01 of raw NSD as MindEye1 and MindEye2 prepared it: z-scored per session, with the test images too."""
    raw = np.concatenate([mini.expected("subj01", number) for number in (1, 2)]).astype(np.float64)
    parts = [(part - part.mean(axis=0)) / part.std(axis=0) for part in np.split(raw, 2)]
    betas = np.concatenate(parts).astype(np.float32)
    image = mini.image["subj01"][:1500]
    shared = set((mini.design["sharedix"][0] - 1).tolist())
    planted = Planted()
    planted.trial, planted.image, planted.betas = np.arange(1500), image, betas
    planted.shared = frozenset(shared & set(image.tolist()))
    planted.pixels = {int(i): mini.pixels[i] for i in set(image.tolist())}
    (root / "two").mkdir(parents=True)
    shards: dict[str, dict[str, bytes]] = {"new_test/0.tar": {}, "train/0.tar": {}, "train/1.tar": {}}
    for row in np.random.default_rng(1).permutation(1500).tolist():
        place = "new_test/0.tar" if image[row] in shared else f"train/{row // 750}.tar"
        key = f"sample{len(shards[place]):09}"
        shards[place][f"{key}.behav.npy"] = npy(test_mindeye2.behav(planted, row))
    for name, members in shards.items():
        write_tar(root / "two/wds/subj01" / name, members)
    with h5py.File(root / "two/betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file["betas"] = betas
    one: dict[str, dict[str, bytes]] = {}
    for number, i in enumerate(np.random.default_rng(2).permutation(np.unique(image)).tolist()):
        place = "test/test_subj01_0.tar" if i in shared else f"train/train_subj01_{number % 4}.tar"
        rows = np.flatnonzero(image == i)
        rows = np.concatenate([rows, rows[-1:], rows[-1:]])[:3]
        one.setdefault(place, {}).update(
            {
                f"sample{number:08}.nsdgeneral.npy": npy(betas[rows].astype(np.float16)),
                f"sample{number:08}.jpg": jpg(planted.pixels[i]),
                f"sample{number:08}.coco73k.npy": npy([i]),
                f"sample{number:08}.trial.npy": npy([number]),
                f"sample{number:08}.num_uniques.npy": npy([len(np.flatnonzero(image == i))]),
            }
        )
    for name, members in one.items():
        write_tar(root / "one" / name, members)


def test_raw_nsd_mindeye2_and_mindeye1_make_the_same_responses(tmp_path):
    mini = test_nsd.Miniature(tmp_path / "nsd")
    as_mindeye(mini, tmp_path)
    found = {}
    for layout, root in (("nsd", mini.root), ("mindeye2", tmp_path / "two"), ("mindeye1", tmp_path / "one")):
        files = (f"expdesign={mini.expdesign}",) if layout == "mindeye1" else ()
        study = open_study(layout, root, StudyOptions(subjects=("subj01",), files=files))
        found[layout] = stream_study(study, tmp_path / f"out-{layout}", StreamOptions(image_size=SIZE))
    trials = found["nsd"].trials("subj01")
    responses = found["nsd"].responses("subj01")
    for layout in ("mindeye2", "mindeye1"):
        mine = found[layout].trials("subj01")
        assert mine.stimulus_id == trials.stimulus_id
        assert mine.split == trials.split
        np.testing.assert_array_equal(mine.session, trials.session)
        np.testing.assert_array_equal(mine.repeat, trials.repeat)
        atol = {"mindeye2": 2e-5, "mindeye1": 4e-3}[layout]  # MindEye1 stores float16
        np.testing.assert_allclose(found[layout].responses("subj01"), responses, atol=atol)


def test_every_layout_has_its_module():
    from brainjanus.data.layouts import FILES

    for file in FILES.values():
        assert callable(importlib.import_module(f"brainjanus.data.layouts.{file}").open_study)
