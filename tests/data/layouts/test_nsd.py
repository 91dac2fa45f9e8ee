"""Raw NSD, built in small with its real names, shapes in trials and images, dtypes, scaling and ids from 1."""

import csv
import gzip
import json
import shutil
import tracemalloc
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.layouts.nsd import RUNS, read_design
from brainjanus.data.layouts.nsd_ids import (
    NSDGENERAL_VOXELS,
    NUM_IMAGES,
    image_of,
    session_notice,
    split_of,
    stimulus_id,
    voxel_notice,
)
from brainjanus.data.readers.nifti import read_betas, read_mask, stream_betas
from brainjanus.data.study import StudyOptions

SHAPE = (5, 6, 4)
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0]) @ np.array([[1, 0, 0, -2], [0, 1, 0, -3], [0, 0, 1, -1], [0, 0, 0, 1.0]])
VERSION = "betas_fithrf_GLMdenoise_RR"
SIDE = 10
COCO_OF = np.random.default_rng(7).permutation(581_929)[:NUM_IMAGES] + 1  # cocoId of each 73k id


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


def design() -> dict[str, np.ndarray]:
    """nsd_expdesign.mat: all ids count from 1; the first 1,000 images of each subject are shared."""
    rng = np.random.default_rng(3)
    images = rng.permutation(NUM_IMAGES) + 1
    shared, own = np.sort(images[:1000]), images[1000:].reshape(8, 9000)
    pattern = np.zeros((40, 12, 75), np.uint8)
    for session in range(40):
        for run in range(12):
            pattern[session, run, 3 : 3 + (62 if run % 2 else 63)] = 1  # both patterns start with three blanks
    return {
        "masterordering": (rng.permutation(np.repeat(np.arange(10_000), 3)) + 1)[None].astype(np.uint16),
        "basiccnt": np.zeros((40, 3), np.uint16),
        "sharedix": shared[None].astype(np.int32),
        "subjectim": np.hstack([np.tile(shared, (8, 1)), own]).astype(np.int32),
        "stimpattern": pattern,
    }


class Miniature:
    """subj01 with two sessions (NIfTI, HDF5), subj02 with one; pictures and captions of what they saw."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        self.design = design()
        order = self.design["masterordering"][0].astype(int) - 1
        self.image = {f"subj0{s}": self.design["subjectim"][s - 1][order] - 1 for s in (1, 2)}
        self.mask, self.betas = {}, {}
        for who, sessions in (("subj01", (1, 2)), ("subj02", (1,))):
            general = rng.choice([-1, 0, 1], SHAPE).astype(np.float32)
            self.mask[who] = general > 0
            rois = root / f"nsddata/ppdata/{who}/func1pt8mm/roi"
            save_volume(rois / "nsdgeneral.nii.gz", general)
            self.prf = rng.integers(-1, 4, SHAPE).astype(np.float32)
            save_volume(rois / "prf-visualrois.nii.gz", self.prf)
            save_volume(rois / "lh.prf-visualrois.nii.gz", np.where(np.arange(5)[:, None, None] < 3, self.prf, -1))
            self.kastner = rng.integers(0, 3, SHAPE).astype(np.float32)
            save_volume(rois / "Kastner2015.nii.gz", self.kastner)
            for number in sessions:
                self.betas[who, number] = rng.integers(-3000, 3000, (*SHAPE, 750)).astype(np.int16)
        labels = root / "nsddata/freesurfer/subj01/label"
        labels.mkdir(parents=True)
        (labels / "prf-visualrois.mgz.ctab").write_text("0 Unknown\n1 V1v\n2 V1d\t\n3 V2v\n")
        (labels / "Kastner2015.mgz.ctab").write_text("0 Unknown\n1 V1v\n2 V1d\n")
        for (who, number), betas in self.betas.items():
            self.nifti(who, number, betas)
        self.expdesign = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
        self.expdesign.parent.mkdir(parents=True)
        savemat(self.expdesign, self.design)
        seen = sorted({int(i) for (who, n) in self.betas for i in self.image[who][(n - 1) * 750 : n * 750]})
        self.seen = seen
        self.stimuli = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
        self.stimuli.parent.mkdir(parents=True)
        with h5py.File(self.stimuli, "w") as file:
            brick = file.create_dataset("imgBrick", (NUM_IMAGES, SIDE, SIDE, 3), np.uint8, chunks=(512, SIDE, SIDE, 3))
            self.pixels = rng.integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
            brick[...] = self.pixels
        self.info = root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
        with open(self.info, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"])
            for i, coco in enumerate(COCO_OF.tolist()):
                part = "val2017" if i % 10 == 0 else "train2017"
                table.writerow([i, coco, part, (0, 0, 0.1, 0.1), 0.5, i, False, 0, 0])
        folder = root / "nsddata_stimuli/stimuli/nsd/annotations"
        folder.mkdir()
        for part, last in (("train", range(1, 10)), ("val", range(1))):
            notes = [
                {"image_id": int(COCO_OF[i]), "id": 10 * i + k, "caption": f"Picture {i},\n number {k} "}
                for k in range(2)
                for i in [*seen, 5, 6, 7]
                if i % 10 in last
            ]
            content = {"info": {"year": 2017}, "licenses": [], "images": [{"id": 1}], "annotations": notes}
            (folder / f"captions_{part}2017.json").write_text(json.dumps(content))

    def folder(self, who: str) -> Path:
        return self.root / f"nsddata_betas/ppdata/{who}/func1pt8mm/{VERSION}"

    def nifti(self, who: str, number: int, betas: np.ndarray) -> Path:
        path = self.folder(who) / f"betas_session{number:02}.nii.gz"
        save_volume(path, betas, np.eye(4))  # the affines of betas and of ROIs need not agree
        return path

    def hdf5(self, who: str, number: int, **options: object) -> Path:
        path = self.folder(who) / f"betas_session{number:02}.hdf5"
        with h5py.File(path, "w") as file:  # MATLAB's [x, y, z, trials] with chunks [1, 1, 1, 750], as h5py shows it
            file.create_dataset("betas", data=self.betas[who, number].transpose(), **options)
        return path

    def expected(self, who: str, number: int) -> np.ndarray:
        """Percent signal change of the mask's voxels."""
        return (self.betas[who, number][self.mask[who]].T / np.float32(300)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Miniature:
    return Miniature(tmp_path_factory.mktemp("nsd"))


@pytest.fixture(scope="module")
def study(whole):
    return open_study("nsd", whole.root, StudyOptions())


@pytest.fixture
def nsd(whole, tmp_path) -> Miniature:
    """A copy to spoil: links to what is large, folders of its own."""
    copy = Miniature.__new__(Miniature)
    copy.__dict__.update(whole.__dict__)
    copy.root = tmp_path / "nsd"
    shutil.copytree(whole.root, copy.root, copy_function=lambda a, b: Path(b).hardlink_to(a))
    for name in ("expdesign", "stimuli", "info"):
        setattr(copy, name, copy.root / getattr(whole, name).relative_to(whole.root))
    return copy


def replace(path: Path, content: bytes | None = None) -> Path:
    """Take a hard link away before something else is written in its place."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return path


def opened(nsd: Miniature, **options: object):
    return open_study("nsd", nsd.root, StudyOptions(**options))


def test_responses_ids_runs_and_split_are_those_that_were_planted(whole, study):
    assert [who.space.subject for who in study.subjects] == ["subj01", "subj02"]
    for who in study.subjects:
        name = who.space.subject
        assert [session.number for session in who.sessions] == ([1, 2] if name == "subj01" else [1])
        for session in who.sessions:
            np.testing.assert_array_equal(session.read(), whole.expected(name, session.number))
            trials = slice((session.number - 1) * 750, session.number * 750)
            assert list(session.stimulus_id) == [f"nsd-{i:05}" for i in whole.image[name][trials]]
            assert np.bincount(session.run).tolist() == [0, *[63, 62] * 6]
    shared = {f"nsd-{i - 1:05}" for i in whole.design["sharedix"][0]}
    assert study.split == {f"nsd-{i:05}": "test" if f"nsd-{i:05}" in shared else "train" for i in whole.seen}
    assert "test" in study.split.values()
    assert study.zscore == "session"


def test_masterordering_up_to_1000_is_test_and_nothing_else(whole, study):
    order = whole.design["masterordering"][0].reshape(40, 750)
    for session in study.subjects[0].sessions:
        is_test = [study.split[name] == "test" for name in session.stimulus_id]
        np.testing.assert_array_equal(is_test, order[session.number - 1] <= 1000)


def test_sites_lie_where_the_mask_says(whole, study):
    space = study.subjects[0].space
    mask = whole.mask["subj01"]
    ijk = np.argwhere(mask)
    np.testing.assert_allclose(space.coordinates_mm, ijk @ AFFINE[:3, :3].T + AFFINE[:3, 3], atol=1e-5)
    np.testing.assert_array_equal(space.index, np.flatnonzero(mask))
    image = space.to_nifti(np.arange(space.num_sites, dtype=np.float32))
    np.testing.assert_array_equal(image.get_fdata()[mask], np.arange(space.num_sites))


def test_rois_go_by_their_labels(nsd):
    study = opened(nsd)
    first, second = (who.space for who in study.subjects)
    assert set(first.rois) == {"V1v", "V1d", "V2v", "Kastner2015.V1v", "Kastner2015.V1d"}
    path = nsd.root / "nsddata/ppdata/subj01/func1pt8mm/roi/prf-visualrois.nii.gz"
    values = nibabel.load(path).get_fdata()[nsd.mask["subj01"]]
    np.testing.assert_array_equal(first.rois["V1d"], values == 2)
    assert "prf-visualrois.2" in second.rois  # subj02 has no table of labels
    assert any("ROIs of subj02 in Kastner2015, prf-visualrois go by the number" in n for n in study.notices)
    by_prf = opened(nsd, mask="prf-visualrois", subjects=("subj01",)).subjects[0].space
    assert by_prf.num_sites == (nibabel.load(path).get_fdata() > 0).sum()
    assert {"V1v", "nsdgeneral"} <= set(by_prf.rois)


@pytest.mark.parametrize(
    ("asked", "labels"),
    [("V1v", [1]), ("prf-visualrois.V1v", [1]), ("V1v+V1d", [1, 2]), ("V2v+prf-visualrois.V1v", [1, 3])],
)
def test_voxels_are_chosen_by_label(nsd, asked, labels):
    study = opened(nsd, mask=asked, subjects=("subj01",))
    path = nsd.root / "nsddata/ppdata/subj01/func1pt8mm/roi/prf-visualrois.nii.gz"
    expected = np.isin(nibabel.load(path).get_fdata(), labels)
    space = study.subjects[0].space
    np.testing.assert_array_equal(space.index, np.flatnonzero(expected))
    np.testing.assert_array_equal(
        study.subjects[0].sessions[0].read(), nsd.betas["subj01", 1][expected].T / np.float32(300)
    )
    assert ("V1v" in space.rois) == (len(labels) > 1)  # of all voxels it says nothing
    assert any(found.files == (path,) for found in study.found if found.what.startswith("mask"))


def test_masks_of_several_volumes_are_joined(nsd):
    folder = nsd.root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    joined = opened(nsd, mask="Kastner2015.V1v+nsdgeneral", subjects=("subj01",)).subjects[0].space
    kastner = nibabel.load(folder / "Kastner2015.nii.gz").get_fdata() == 1
    np.testing.assert_array_equal(joined.index, np.flatnonzero(kastner | nsd.mask["subj01"]))
    by_number = opened(nsd, mask="prf-visualrois.2", subjects=("subj02",)).subjects[0].space  # it has no names
    values = nibabel.load(nsd.root / "nsddata/ppdata/subj02/func1pt8mm/roi/prf-visualrois.nii.gz").get_fdata()
    assert by_number.num_sites == (values == 2).sum()
    left = opened(nsd, mask="lh.prf-visualrois.V1v", subjects=("subj01",)).subjects[0].space
    values = nibabel.load(folder / "lh.prf-visualrois.nii.gz").get_fdata()
    np.testing.assert_array_equal(left.index, np.flatnonzero(values == 1))


def test_masks_that_are_none_are_refused_with_what_there_is(nsd):
    with pytest.raises(UserError, match=r"\(Kastner2015.*V1v, V1d, V2v.*got 'V1'\. Correct") as caught:
        opened(nsd, mask="V1v+V1")
    assert "ownload" not in str(caught.value)
    with pytest.raises(UserError, match=r"expected a file at nowhere/subj01\.nii\.gz, got none there\. Correct"):
        opened(nsd, mask="nowhere/{subject}.nii.gz")
    with pytest.raises(UserError, match=r"expected voxels with the label 7 \('prf-visualrois\.7'\).*got none"):
        opened(nsd, mask="prf-visualrois.7")
    folder = nsd.root / "nsddata/ppdata/subj01/func1pt8mm"
    save_volume(folder / "brainmask.nii.gz", np.ones((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"brainmask\.nii\.gz: expected the grid of nsdgeneral"):
        opened(nsd, mask="nsdgeneral+brainmask")
    (folder / "roi/nsdgeneral.nii.gz").unlink()
    with pytest.raises(UserError, match=r"roi/nsdgeneral\.nii\.gz, got none there\. Download it, or name another"):
        opened(nsd)


def test_one_hemisphere_is_read_only_where_there_is_no_volume_of_both(nsd):
    folder = nsd.root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    (folder / "prf-visualrois.nii.gz").unlink()
    rois = opened(nsd, subjects=("subj01",)).subjects[0].space.rois
    assert "lh.prf-visualrois.V1v" in rois


@pytest.mark.parametrize("chunks", [(750, 1, 1, 1), (1, 4, 6, 5), None])
def test_hdf5_is_read_as_nifti_is(nsd, chunks):
    nsd.hdf5("subj01", 2, chunks=chunks)
    session = opened(nsd, subjects=("subj01",)).subjects[0].sessions[1]
    assert session.read.func.__name__ == "_read_hdf5"
    np.testing.assert_array_equal(session.read(), nsd.expected("subj01", 2))


def test_sessions_that_are_not_there_are_said(whole, study):
    assert any(notice.startswith("subj01 has 2 of the 40 sessions") for notice in study.notices)
    betas = next(found for found in study.found if found.what.startswith("betas of subj01"))
    assert betas.missing[0] == "betas_session03" and betas.missing[-1] == "betas_session40"
    assert any("nsdgeneral at 1.8 mm has 15724 as published" in notice for notice in study.notices)
    few = opened(whole, sessions=1)
    assert [session.number for who in few.subjects for session in who.sessions] == [1, 1]
    assert len(few.split) < len(study.split)


def test_a_session_missing_in_the_middle_is_refused(nsd):
    nsd.nifti("subj01", 4, nsd.betas["subj01", 1])
    with pytest.raises(UserError, match=r"expected sessions 1 to 4, got none for 3\. .* or give --sessions 2\."):
        opened(nsd)
    assert len(opened(nsd, sessions=2).subjects[0].sessions) == 2
    (nsd.folder("subj02") / "betas_session01.nii.gz").rename(nsd.folder("subj02") / "betas_session02.nii.gz")
    with pytest.raises(UserError, match=r"get betas_session01 again\.$"):
        opened(nsd, subjects=("subj02",))


def test_pictures_are_those_of_the_73k_id(whole, study):
    pictures = study.pictures
    assert list(pictures.ids) == [f"nsd-{i:05}" for i in whole.seen]
    wanted = [pictures.ids[40], pictures.ids[3]]
    read = dict(pictures.read(wanted, SIDE))
    assert set(read) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(read[name], whole.pixels[int(name[4:])])
    assert next(pictures.read(wanted[:1], 4))[1].shape == (4, 4, 3)


def test_captions_are_joined_by_coco_id(whole, study):
    assert set(study.captions) == {"coco"} and len(study.captions["coco"]) == len(whole.seen)
    name = f"nsd-{whole.seen[2]:05}"
    assert study.captions["coco"][name] == [f"Picture {whole.seen[2]}, number {k}" for k in range(2)]


def test_captions_of_one_split_alone_are_said(nsd):
    folder = nsd.root / "nsddata_stimuli/stimuli/nsd/annotations"
    (folder / "captions_val2017.json").unlink()
    study = opened(nsd)
    without = sum(1 for i in nsd.seen if i % 10 == 0)
    assert any(f"{without} of {len(nsd.seen)} stimuli have no captions of COCO" in n for n in study.notices)
    elsewhere = nsd.root.parent / "coco"
    folder.rename(elsewhere)
    assert "coco" not in opened(nsd).captions
    assert opened(nsd, files=(f"coco={elsewhere}",)).captions == study.captions


@pytest.mark.parametrize("keyed", ["id", "73k", "coco", "file"])
def test_further_captions_are_keyed_by_any_id(nsd, keyed):
    keys = {
        "id": lambda i: f"nsd-{i:05}",
        "73k": str,
        "coco": lambda i: str(COCO_OF[i]),
        "file": lambda i: f"COCO_train2014_{COCO_OF[i]:012}.jpg",
    }
    file = nsd.root / "vlm.json"
    file.write_text(json.dumps({keys[keyed](i): f"seen: {i}" for i in nsd.seen[:50]}))
    study = opened(nsd, captions=(f"vlm={file}",))
    assert study.captions["vlm"] == {f"nsd-{i:05}": [f"seen: {i}"] for i in nsd.seen[:50]}
    assert any(f"cover 50 of {len(nsd.seen)} stimuli." in notice for notice in study.notices)


def test_captions_that_fit_nothing_are_refused(nsd):
    file = nsd.root / "vlm.json"
    file.write_text(json.dumps({"cat": "a cat"}))
    with pytest.raises(UserError, match=r"expected keys that name stimuli .* got cat, of which none is in this study"):
        opened(nsd, captions=(f"vlm={file}",))


def test_without_pictures_and_captions_the_rest_is_prepared(nsd):
    nsd.stimuli.unlink()
    nsd.info.unlink()
    study = opened(nsd)
    assert study.pictures is None and study.captions == {}
    assert any("There are no pictures" in notice for notice in study.notices)
    assert any("There are no captions of COCO" in notice for notice in study.notices)
    missing = {found.what: found for found in study.found if found.missing}
    assert not missing["pictures"].required


def test_memory_holds_one_volume_beside_the_session(tmp_path):
    shape = (20, 20, 20, 750)
    mask = np.zeros(shape[:3], bool)
    mask[5:8, 5:8, 5:8] = True
    save_volume(tmp_path / "mask.nii.gz", mask.astype(np.float32))
    save_volume(tmp_path / "b.nii.gz", np.random.default_rng(0).integers(-99, 99, shape).astype(np.int16))
    volume = read_mask(str(tmp_path / "mask.nii.gz"))
    tracemalloc.start()
    streamed = stream_betas(str(tmp_path / "b.nii.gz"), volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # the image is 12 MB as it is stored, 24 as float32
    np.testing.assert_array_equal(streamed, read_betas([str(tmp_path / "b.nii.gz")], volume))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_streams_scaled_big_endian_and_split_images_as_nibabel_does(tmp_path, suffix):
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.5
    save_volume(tmp_path / "mask.nii.gz", mask.astype(np.uint8))
    volume = read_mask(str(tmp_path / "mask.nii.gz"))
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(rng.integers(-99, 99, (*SHAPE, 9)).astype(">i2"), AFFINE, header)
    image.header.set_slope_inter(0.25, -3)
    path = tmp_path / f"b{suffix}"
    nibabel.save(image, path)
    np.testing.assert_array_equal(stream_betas(str(path), volume), read_betas([str(path)], volume))
    if suffix == ".nii.gz":  # gzip files may be put one behind the other
        whole = gzip.decompress(path.read_bytes())
        expected = stream_betas(str(path), volume)
        path.write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]) + bytes(64))
        np.testing.assert_array_equal(stream_betas(str(path), volume), expected)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_session_is_refused(nsd, keep):
    path = nsd.folder("subj01") / "betas_session02.nii.gz"
    content = path.read_bytes()
    replace(path, content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"betas_session02\.nii\.gz: expected "):
        opened(nsd).subjects[0].sessions[1].read()


def test_a_mask_that_would_fill_the_memory_is_refused(nsd):
    path = nsd.root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes())[:352])
    header[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    replace(path, gzip.compress(bytes(header) + bytes(4000)))
    with pytest.raises(UserError, match=r"expected the 4000000000 bytes that its header declares"):
        opened(nsd)
    bomb = gzip.compress(bytes(header)) + gzip.compress(bytes(10**6)) * 4000
    path.write_bytes(bomb)
    with pytest.raises(UserError, match="made to fill the memory"):
        opened(nsd)


def test_a_session_with_a_wrong_byte_is_refused(nsd):
    path = nsd.folder("subj01") / "betas_session02.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    replace(path, bytes(content))
    with pytest.raises(UserError, match="truncated or of another kind"):
        opened(nsd).subjects[0].sessions[1].read()


def test_betas_of_another_grid_or_number_of_trials_are_refused(nsd):
    path = nsd.folder("subj01") / "betas_session02.nii.gz"
    path.unlink()
    save_volume(path, np.zeros((5, 6, 5, 750), np.int16))
    with pytest.raises(UserError, match=r"expected the mask's grid, \[5, 6, 4\]"):
        opened(nsd)
    save_volume(path, np.zeros((*SHAPE, 700), np.int16))
    with pytest.raises(UserError, match=r"expected betas \[5, 6, 4, 750\].*750 trials, got \[5, 6, 4, 700\]"):
        opened(nsd)
    path.unlink()
    with h5py.File(path.with_name("betas_session02.hdf5"), "w") as file:
        file["betas"] = np.zeros((*SHAPE, 750), np.int16)  # as if h5py had not turned the axes
    with pytest.raises(UserError, match=r"got \[750, 4, 6, 5\]"):
        opened(nsd)


@pytest.mark.parametrize("name", ["masterordering", "subjectim", "sharedix"])
@pytest.mark.parametrize("wrong", ["size", "from 0", "too large"])
def test_another_design_is_refused(nsd, name, wrong):
    spoilt = nsd.design[name].astype(np.int32)
    if wrong == "size":
        spoilt = spoilt[:, :-5]
    else:
        spoilt[0, 0] = 0 if wrong == "from 0" else 73_001
    replace(nsd.expdesign)
    savemat(nsd.expdesign, nsd.design | {name: spoilt})
    with pytest.raises(UserError, match=rf"nsd_expdesign\.mat: expected \d+ numbers from 1 to \d+ in '{name}'"):
        opened(nsd)


def test_a_design_whose_shared_images_are_not_first_is_refused(nsd):
    images = nsd.design["subjectim"].copy()
    images[0, [0, 5000]] = images[0, [5000, 0]]
    replace(nsd.expdesign)
    savemat(nsd.expdesign, nsd.design | {"subjectim": images})
    with pytest.raises(UserError, match="first 1000 images of subj01"):
        opened(nsd)


def test_a_design_without_stimpattern_has_the_runs_of_the_manual(nsd):
    replace(nsd.expdesign)
    savemat(nsd.expdesign, {name: value for name, value in nsd.design.items() if name != "stimpattern"})
    np.testing.assert_array_equal(read_design(nsd.expdesign).run, RUNS)
    assert RUNS[0, [0, 62, 63, 124, 125]].tolist() == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("wrong", ["no brick", "other size", "external", "link", "truncated"])
def test_other_pictures_are_refused(nsd, wrong):
    content = nsd.stimuli.read_bytes() if wrong == "truncated" else b""
    nsd.stimuli.unlink()
    if wrong == "truncated":
        nsd.stimuli.write_bytes(content[: len(content) // 2])
    else:
        with h5py.File(nsd.stimuli, "w") as file:
            if wrong == "no brick":
                file["images"] = np.zeros((3, 4, 4, 3), np.uint8)
            elif wrong == "other size":
                file["imgBrick"] = np.zeros((3, 4, 4, 3), np.uint8)
            elif wrong == "external":
                file["imgBrick"] = h5py.ExternalLink("/etc/passwd", "imgBrick")
            else:
                file.create_dataset("imgBrick", (NUM_IMAGES, 1, 1, 3), np.uint8, external=[("/etc/passwd", 0, 2**20)])
    with pytest.raises(UserError, match=r"nsd_stimuli\.hdf5: expected "):
        opened(nsd)


def test_a_table_of_images_that_is_cut_or_counts_from_1_is_refused(nsd):
    lines = nsd.info.read_text().splitlines()
    replace(nsd.info, "\n".join(lines[:-3]).encode())
    with pytest.raises(UserError, match="got 72997, without nsdId 72997"):
        opened(nsd)
    from_1 = [lines[0], *(f"{i},5,train2017,x,0,{i},0,0,0" for i in range(1, NUM_IMAGES + 1))]
    nsd.info.write_text("\n".join(from_1))
    with pytest.raises(UserError, match="expected each nsdId from 0 to 72999 once, got 73000"):
        opened(nsd)


def test_what_is_not_nsd_is_refused(tmp_path, nsd):
    with pytest.raises(UserError, match="expected raw NSD"):
        open_study("nsd", tmp_path, StudyOptions())
    with pytest.raises(UserError, match=r"whose betas are there \(subj01, subj02\), got subj07"):
        opened(nsd, subjects=("subj07",))
    with pytest.raises(UserError, match=r"expected betas 'betas_fithrf' of each subject.*subj01 has betas_fithrf_GLM"):
        opened(nsd, betas="betas_fithrf")
    with pytest.raises(UserError, match="expected none for raw NSD"):
        opened(nsd, keys=("a=b",))
    for files, message in (
        ("pictures=x", "expected one of stimuli=FILE, expdesign=FILE, .* for raw NSD, got another name"),
        (f"stimuli={tmp_path}", "expected a file, got a folder"),
        (f"coco={tmp_path}", "expected captions_train2017.json or captions_val2017.json in it, got neither"),
        ("coco=none", "expected a folder, got nothing there"),
    ):
        with pytest.raises(UserError, match=message):
            opened(nsd, files=(files,))
    with pytest.raises(UserError, match="--sessions: expected how many sessions to take, or 0 for all, got -1"):
        StudyOptions(sessions=-1)


def test_voxels_without_data_in_a_session_are_said_before_any_is_read(nsd):
    folder = nsd.root / "nsddata/ppdata/subj01/func1pt8mm"
    inside = np.argwhere(nsd.mask["subj01"])
    for number in (1, 2):
        save_volume(folder / f"valid_session{number:02}.nii.gz", np.ones(SHAPE, np.float32))
    assert not any("have no data" in notice for notice in opened(nsd).notices)
    valid = np.ones(SHAPE, np.float32)
    valid[tuple(inside[3])] = 0
    valid[tuple(np.argwhere(~nsd.mask["subj01"])[0])] = 0  # nobody asked for that one
    save_volume(folder / "valid_session02.nii.gz", valid)
    told = f"1 of {len(inside)} voxels of subj01 have no data in some sessions (2)"
    assert any(told in notice for notice in opened(nsd).notices)


def test_behaviour_is_compared_with_the_design(nsd):
    file = nsd.root / "nsddata/ppdata/subj01/behav/responses.tsv"
    file.parent.mkdir()
    rows = [f"1\t{i // 750 + 1}\t1\t1\t{image + 1}\tNaN" for i, image in enumerate(nsd.image["subj01"])]
    header = "SUBJECT\tSESSION\tRUN\tTRIAL\t73KID\tRT"
    file.write_text("\n".join([header, *rows]))
    assert any("behaviour of subj01" in found.what for found in opened(nsd).found)
    file.write_text("\n".join([header, *rows[1:750], rows[0], *rows[750:]]))  # one trial later
    with pytest.raises(UserError, match=r"responses\.tsv: expected nsd-\d{5} in trial 1 of session 1.*got 73KID"):
        opened(nsd)
    file.write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="expected NSD's table of responses"):
        opened(nsd)


def test_a_mask_may_lie_anywhere(nsd, tmp_path):
    for who in ("subj01", "subj02"):
        save_volume(tmp_path / f"{who}.nii.gz", np.ones(SHAPE, np.float32))
    study = opened(nsd, mask=str(tmp_path / "{subject}.nii.gz"))
    assert [who.space.num_sites for who in study.subjects] == [120, 120]
    expected = nsd.betas["subj01", 1].reshape(-1, 750).T / np.float32(300)
    np.testing.assert_array_equal(study.subjects[0].sessions[0].read(), expected)


def test_names_of_images_go_both_ways():
    assert stimulus_id(42) == "nsd-00042" and image_of("nsd-00042") == 42
    assert stimulus_id(np.int64(72_999)) == "nsd-72999"
    with pytest.raises(UserError, match=r"got 73000\. Does the file count from 1"):
        stimulus_id(73_000)
    for name in ("nsd-73000", "nsd-42", "coco-00042", "nsd-000420"):
        with pytest.raises(UserError, match="expected a name from nsd-00000 to nsd-72999"):
            image_of(name)
    assert split_of(["a", "b"], ["b"]) == {"a": "train", "b": "test"}
    assert voxel_notice("subj01", NSDGENERAL_VOXELS["subj01"]) == []
    assert session_notice("subj04", range(1, 31)) == []
