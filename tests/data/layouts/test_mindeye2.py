"""MindEye2's files in small: what was planted is read, value for value and id for id, whatever order shards have."""

import json
import tarfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import mindeye2, open_study
from brainjanus.data.study import StudyOptions

from .conftest import FAR, NUM_VOXELS, SIZE, Planted, npy, read_all, read_all_pictures, write_tar
from .test_mindllm import coco, write_table


def behav(planted: Planted, row: int) -> np.ndarray:
    values = np.full((1, 17), -1.0)
    values[0, [0, 1, 2, 3, 4, 5]] = (
        planted.image[row],
        1,
        planted.session[row],
        planted.run[row],
        row % 10 + 1,
        planted.trial[row],
    )
    values[0, 9] = 812.5  # a reaction time: not all columns are whole
    values[0, 16] = planted.image[row] in planted.shared
    return values


def sample(key: str, values: np.ndarray) -> dict[str, bytes]:
    around = npy(np.full((15, 17), -1.0))
    return {
        f"{key}.behav.npy": npy(values),
        f"{key}.past_behav.npy": around,
        f"{key}.future_behav.npy": around,
        f"{key}.olds_behav.npy": npy(np.full((3, 17), -1.0)),
    }


def build(root: Path, planted: Planted, suffix: str = "fp32_renorm", test: str = "new_test") -> Path:
    """As MindEye2's authors wrote them, but with the samples of every shard shuffled."""
    rng = np.random.default_rng(3)
    shards: dict[str, dict[str, bytes]] = {f"{test}/0.tar": {}, "train/0.tar": {}, "train/1.tar": {}}
    for row in rng.permutation(len(planted.trial)).tolist():
        place = f"{test}/0.tar"
        if planted.image[row] not in planted.shared:
            place = f"train/{planted.session[row] - 1}.tar"
        shards[place] |= sample(f"sample{len(shards[place]) // 4:09}", behav(planted, row))
    for name, members in shards.items():
        write_tar(root / "wds/subj01" / name, members)
    dtype = np.float16 if "16" in suffix else np.float32
    with h5py.File(root / f"betas_all_subj01_{suffix}.hdf5", "w") as file:
        file.create_dataset("betas", data=planted.betas.astype(dtype))
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        images = file.create_dataset("images", (73_000, 3, SIZE, SIZE), np.float16, chunks=(1, 3, SIZE, SIZE))
        for image, pixels in planted.pixels.items():
            images[image] = (pixels.transpose(2, 0, 1) / 255).astype(np.float16)
    return root


@pytest.fixture
def root(tmp_path: Path, planted: Planted) -> Path:
    return build(tmp_path, planted)


def open_it(root: Path, **options):
    return open_study("mindeye2", root, StudyOptions(**options))


def test_what_was_planted_is_read(root, planted):
    study = open_it(root)
    names, session, run, responses = read_all(study)
    assert names == planted.names
    np.testing.assert_array_equal(session, planted.session)
    np.testing.assert_array_equal(run, planted.run)
    np.testing.assert_array_equal(responses, planted.responses())
    assert study.split == planted.split
    assert study.zscore == "session"
    assert [one.number for one in study.subjects[0].sessions] == [1, 2]
    assert any("z-scored again with training trials only" in notice for notice in study.notices)
    assert not any("test images" in notice for notice in study.notices)  # nobody is accused


def test_pictures_go_by_73k_id_up_to_the_last_one(root, planted):
    pictures = read_all_pictures(open_it(root))
    assert f"nsd-{FAR}" in pictures
    for image, pixels in planted.pixels.items():
        np.testing.assert_array_equal(pictures[f"nsd-{image:05}"], pixels)


def test_captions_are_joined_by_coco_id_or_73k_id(root, planted):
    seen = sorted(planted.pixels)
    notes = [{"image_id": coco(image), "id": i, "caption": f"picture {image}"} for i, image in enumerate(seen)]
    notes.append({"image_id": 7, "id": 99, "caption": "of another picture"})
    (root / "annotations").mkdir()
    (root / "annotations/captions_train2017.json").write_text(json.dumps({"annotations": notes}))
    (root / "vlm.json").write_text(json.dumps({str(image): [f"a {image}"] for image in seen}))
    assert "coco" not in open_it(root).captions
    assert any("There are no captions of COCO" in notice for notice in open_it(root).notices)
    write_table(root / "nsd_stim_info_merged.csv")
    study = open_it(root, captions=(f"vlm={root / 'vlm.json'}",))
    assert study.captions == {
        "coco": {f"nsd-{image:05}": [f"picture {image}"] for image in seen},
        "vlm": {f"nsd-{image:05}": [f"a {image}"] for image in seen},
    }
    (root / "nsd_stim_info_merged.csv").rename(root.parent / "elsewhere.csv")
    (root / "annotations").rename(root.parent / "notes")
    files = (f"stim-info={root.parent / 'elsewhere.csv'}", f"coco={root.parent / 'notes'}")
    assert open_it(root, files=files).captions == {"coco": study.captions["coco"]}
    with pytest.raises(UserError, match="--files stimuli=x: expected one of expdesign=FILE"):
        open_it(root, files=("stimuli=x",))


def test_other_suffixes_are_read_and_one_of_several_is_chosen(tmp_path, planted):
    build(tmp_path, planted, "fp16_renorm")
    half = planted.responses().astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(read_all(open_it(tmp_path))[3], half)
    build(tmp_path, planted)
    np.testing.assert_array_equal(read_all(open_it(tmp_path))[3], planted.responses())
    np.testing.assert_array_equal(read_all(open_it(tmp_path, betas="fp16_renorm"))[3], half)
    with pytest.raises(UserError, match=r"--betas to say which \(fp16_renorm, fp32_renorm\), got 'bf16'"):
        open_it(tmp_path, betas="bf16")


def test_trials_that_are_missing_are_left_out_and_counted(tmp_path, planted):
    build(tmp_path, planted)
    values = [behav(planted, row) for row in range(80) if planted.image[row] not in planted.shared]
    values[3][0, 0] = -1
    values[8][0, 5] = -1
    lost = {3, 8}
    members: dict[str, bytes] = {}
    for number, value in enumerate(values):
        members |= sample(f"sample{number:09}", value)
    write_tar(tmp_path / "wds/subj01/train/0.tar", members)
    (tmp_path / "wds/subj01/train/1.tar").unlink()
    study = open_it(tmp_path)
    rows = [row for row in range(80) if planted.image[row] not in planted.shared]
    kept = sorted(
        [row for number, row in enumerate(rows) if number not in lost]
        + [row for row in range(80) if planted.image[row] in planted.shared]
    )
    names, _, _, responses = read_all(study)
    assert names == [planted.names[row] for row in kept]
    np.testing.assert_array_equal(responses, planted.responses()[kept])
    assert "2 of 80 trials of subj01 have no image or no betas (-1 in behav.npy) and were left out." in study.notices


def test_a_shared_image_is_test_wherever_it_lies(tmp_path, planted):
    build(tmp_path, planted)
    row = next(row for row in range(80) if planted.image[row] in planted.shared and planted.session[row] == 1)
    test = {}
    for number, other in enumerate(o for o in range(80) if planted.image[o] in planted.shared and o != row):
        test |= sample(f"sample{number:09}", behav(planted, other))
    train = {}
    for number, other in enumerate(o for o in range(80) if planted.image[o] not in planted.shared or o == row):
        train |= sample(f"sample{number:09}", behav(planted, other))
    write_tar(tmp_path / "wds/subj01/new_test/0.tar", test)
    write_tar(tmp_path / "wds/subj01/train/0.tar", train)
    (tmp_path / "wds/subj01/train/1.tar").unlink()
    study = open_it(tmp_path)
    assert study.split == planted.split
    assert any("1 stimuli of subj01" in notice and "count as test" in notice for notice in study.notices)


@pytest.mark.parametrize("test", ["test", "new_test"])
def test_test_stimuli_are_counted_whatever_their_folder_is_called(tmp_path, planted, test, monkeypatch):
    build(tmp_path, planted, test=test)
    study = open_it(tmp_path)
    assert study.split == planted.split
    said = [notice for notice in study.notices if "shared images that it saw" in notice]
    assert [notice.split(":")[0] for notice in said] == [
        "subj01 has 4 of the 1000 shared images that it saw as test stimuli"
    ]
    monkeypatch.setitem(mindeye2.SHARED_SEEN, "subj01", 4)
    assert not any("shared images that it saw" in notice for notice in open_it(tmp_path).notices)


def test_new_test_is_read_instead_of_test(tmp_path, planted):
    build(tmp_path, planted, test="test")
    (tmp_path / "wds/subj01/test/0.tar").write_bytes(b"of the older release")
    assert read_all(open_it(build(tmp_path, planted)))[0] == planted.names


def test_a_missing_training_shard_is_said(root):
    (root / "wds/subj01/train/0.tar").unlink()
    study = open_it(root)
    assert any("lacks the training shards 0" in notice for notice in study.notices)
    assert any("wds/subj01/train/0.tar" in found.missing for found in study.found)


def test_files_that_are_no_shards_are_passed_over(root, planted):
    (root / "wds/subj01/train/._0.tar").write_bytes(b"of macOS")
    (root / "wds/subj01/train/0 (1).tar").write_bytes((root / "wds/subj01/train/0.tar").read_bytes())
    assert read_all(open_it(root))[0] == planted.names


def test_pictures_may_be_missing(root):
    (root / "coco_images_224_float16.hdf5").unlink()
    study = open_it(root)
    assert study.pictures is None
    assert any("coco_images_224_float16.hdf5" in found.missing and not found.required for found in study.found)


def test_sessions_and_subjects_are_chosen(root, planted):
    names, session, _, _ = read_all(open_it(root, sessions=1, subjects=("subj01",)))
    assert set(session.tolist()) == {1}
    assert names == planted.names[:40]
    with pytest.raises(UserError, match=r"subjects that are there \(subj01\), got 'subj02'"):
        open_it(root, subjects=("subj02",))


def test_a_mask_gives_voxels_their_places(root):
    mask = np.zeros((3, 4, 2), np.float32)
    mask.reshape(-1)[[1, 4, 5, 9, 17, 20, 23]] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([1.8, 1.8, 1.8, 1])), root / "subj01.nii.gz")
    space = open_it(root, mask=str(root / "{subject}.nii.gz")).subjects[0].space
    np.testing.assert_array_equal(space.index, [1, 4, 5, 9, 17, 20, 23])
    np.testing.assert_allclose(space.coordinates_mm[1], [0, 3.6, 0])
    with pytest.raises(UserError, match="expected the mask image of the voxels that the files hold"):
        open_it(root, mask="V1")


def write_regions(root: Path, length: int = NUM_VOXELS, subject: str = "subj01", dtype: type = bool) -> None:
    """As MindEye2's release has them."""
    with h5py.File(root / "brain_region_masks.hdf5", "w") as file:
        for name, first, end in (("nsd_general", 0, length), ("V1", 0, 2), ("V4", 2, 4), ("higher_vis", 4, length)):
            at = np.arange(length)
            file[f"{subject}/{name}"] = ((first <= at) & (at < end)).astype(dtype)
        file[f"{subject}/V3"] = np.zeros(length, dtype)


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_regions_of_the_release_become_rois(root, dtype):
    assert open_it(root).subjects[0].space.rois == {}
    assert any("brain_region_masks.hdf5" in found.missing and not found.required for found in open_it(root).found)
    write_regions(root, dtype=dtype)
    study = open_it(root)
    rois = study.subjects[0].space.rois
    assert {name: np.flatnonzero(mask).tolist() for name, mask in rois.items()} == {
        "V1": [0, 1],
        "V4": [2, 3],
        "higher_vis": [4, 5, 6],
    }
    assert any(root / "brain_region_masks.hdf5" in found.files for found in study.found)


def test_regions_that_do_not_fit_are_said(root, tmp_path_factory):
    write_regions(root, NUM_VOXELS + 1)
    with pytest.raises(UserError, match=r"yes or no of each of 7 sites, got \[8\]"):
        open_it(root)
    write_regions(root, subject="subj02")
    assert "brain_region_masks.hdf5 has no ROIs of subj01." in open_it(root).notices
    with h5py.File(root / "brain_region_masks.hdf5", "w") as file:
        file["subj01/V1"] = np.full(NUM_VOXELS, 2)
    with pytest.raises(UserError, match="expected booleans in 'subj01/V1', got other numbers"):
        open_it(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.hdf5"
    with h5py.File(elsewhere, "w") as file:
        file["V1"] = np.ones(NUM_VOXELS, bool)
    for place in ("subj01", "subj01/V1"):
        with h5py.File(root / "brain_region_masks.hdf5", "w") as file:
            file[place] = h5py.ExternalLink(str(elsewhere), "V1" if "/" in place else "/")
        with pytest.raises(UserError, match="in the file itself"):
            open_it(root)


@pytest.mark.parametrize("option", [{"keys": ("a=b",)}])
def test_options_without_a_use_are_refused(root, option):
    with pytest.raises(UserError, match="the layout mindeye2 has a use for"):
        open_it(root, **option)


def test_a_trial_twice_is_refused(root, planted):
    row = next(row for row in range(80) if planted.image[row] not in planted.shared)
    write_tar(root / "wds/subj01/train/2.tar", sample("sample000000000", behav(planted, row)))
    with pytest.raises(UserError, match=f"got global trial {planted.trial[row]} twice"):
        open_it(root)


def test_betas_of_fewer_sessions_than_the_shards_are_refused(root, planted):
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file["betas"] = planted.betas[:750]
    with pytest.raises(UserError, match="up to number 789, as the shards count from 0, got 750 rows"):
        open_it(root)


def test_ids_that_count_from_1_are_refused(root, planted):
    row = int(np.flatnonzero(planted.image == FAR)[0])
    values = behav(planted, row)
    values[0, [0, 5]] += 1, 100
    write_tar(root / "wds/subj01/train/2.tar", sample("sample000000000", values))
    with pytest.raises(UserError, match="Does the file count from 1"):
        open_it(root)


def rewrite(shard: Path, change) -> None:
    shard.write_bytes(change(shard.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "expected an uncompressed tar archive"),
        (lambda data: data[:10_240], "expected an uncompressed tar archive"),
        (lambda data: b"", "got an empty file"),
        (lambda data: b"PK\x03\x04" + data, "expected an uncompressed tar archive"),
    ],
)
def test_damaged_shards_are_one_sentence(root, damage, message):
    shard = root / "wds/subj01/train/0.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_it(root)


def test_a_compressed_shard_is_refused(root):
    shard = root / "wds/subj01/train/0.tar"
    with tarfile.open(shard, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("sample000000000.behav.npy"))
    with pytest.raises(UserError, match="expected an uncompressed tar archive"):
        open_it(root)


@pytest.mark.parametrize("name", ["../../escaped.behav.npy", "/tmp/bj_escaped.behav.npy"])
def test_members_that_point_outside_are_refused_and_nothing_is_written(root, planted, name):
    write_tar(root / "wds/subj01/train/0.tar", {name: npy(behav(planted, 0))})
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="which points outside"):
        open_it(root)
    assert sorted(root.rglob("*")) == before
    assert not Path("/tmp/bj_escaped.behav.npy").exists()


def test_links_are_refused(root):
    with tarfile.open(root / "wds/subj01/train/0.tar", "w") as archive:
        link = tarfile.TarInfo("sample000000000.behav.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="which is a link or a device"):
        open_it(root)


class Bomb:
    def __reduce__(self):
        return (Path("/tmp/w7c_unpickled").write_text, ("unpickled",))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(np.array([Bomb()], dtype=object)), "Python objects, which are never unpickled"),
        (npy(np.zeros((2, 17))), r"expected behav of 1 x 17, got \[2, 17\]"),
        (npy(np.zeros((1, 17)))[:-8], "expected an npy array"),
        (npy(np.zeros((1, 17))).replace(b"(1, 17)", b"(9, 99)"), "expected an npy array"),
        (b"\x80\x04K\x01.", "expected an npy array"),
        (npy(np.full((1, 17), np.nan)), "expected whole numbers in the columns 0, 2, 3, 5 and 16"),
        (npy(np.full((1, 17), "a")), "expected an npy array"),
    ],
)
def test_wrong_members_are_one_sentence(root, member, message):
    write_tar(root / "wds/subj01/train/0.tar", {"sample000000000.behav.npy": member})
    with pytest.raises(UserError, match=message):
        open_it(root)
    assert not Path("/tmp/w7c_unpickled").exists()


def external_link(file: h5py.File, elsewhere: Path) -> None:
    file["betas"] = h5py.ExternalLink(str(elsewhere), "betas")


def external_storage(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("betas", (1500, NUM_VOXELS), np.float32, external=[(str(elsewhere), 0, 1500 * NUM_VOXELS * 4)])


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((1500, NUM_VOXELS), np.float32)
    layout[:] = h5py.VirtualSource(str(elsewhere), "betas", (1500, NUM_VOXELS))
    file.create_virtual_dataset("betas", layout)


@pytest.mark.parametrize("point", [external_link, external_storage, virtual])
def test_betas_in_another_file_are_refused(root, planted, tmp_path_factory, point):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.hdf5"
    with h5py.File(elsewhere, "w") as file:
        file["betas"] = planted.betas
    with h5py.File(root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        point(file, elsewhere)
    with pytest.raises(UserError, match="in the file itself"):
        open_it(root)


def test_betas_of_other_shapes_are_refused(root, planted):
    file = root / "betas_all_subj01_fp32_renorm.hdf5"
    with h5py.File(file, "w") as hdf5:
        hdf5["betas"] = planted.betas[None]
    with pytest.raises(UserError, match="expected 'betas' with 2 axes"):
        open_it(root)
    with h5py.File(file, "w") as hdf5:
        hdf5["voxels"] = planted.betas
    with pytest.raises(UserError, match="expected the dataset 'betas', got voxels"):
        open_it(root)
    with h5py.File(file, "w") as hdf5:
        hdf5.create_dataset("betas", (30_000, 1 << 30), np.float32, chunks=(1, 1024), compression="gzip")
    with pytest.raises(UserError, match="not written to its end, or made to fill the memory"):
        open_it(root)


def test_truncated_betas_are_one_sentence(root):
    file = root / "betas_all_subj01_fp32_renorm.hdf5"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match="truncated or of another kind"):
        open_it(root)


def test_pictures_that_are_not_from_0_to_1_are_refused(root):
    with h5py.File(root / "coco_images_224_float16.hdf5", "r+") as file:
        file["images"][0] = 3
    with pytest.raises(UserError, match="expected floats from 0 to 1"):
        read_all_pictures(open_it(root))


def test_a_picture_that_is_not_there_is_refused(root):
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        file["images"] = np.zeros((982, 3, SIZE, SIZE), np.float16)
    with pytest.raises(UserError, match=f"expected a picture of image {FAR}, got 982 pictures"):
        open_it(root)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected betas_all_subj0X_fp32_renorm.hdf5, got none there"):
        open_it(tmp_path)
    with pytest.raises(UserError, match="expected the folder that holds the files of the layout mindeye2"):
        open_it(tmp_path / "none")


def test_a_session_ends_with_trial_749(tmp_path, monkeypatch):
    """Where behav.npy has no session (-1), the trial's number says it."""
    planted = Planted(trial=np.concatenate([np.arange(710, 750), np.arange(750, 790)]))
    whole = behav

    def without_session(planted: Planted, row: int) -> np.ndarray:
        columns = whole(planted, row)
        columns[..., 2] = -1
        return columns

    monkeypatch.setitem(globals(), "behav", without_session)
    names, session, _, responses = read_all(open_it(build(tmp_path, planted)))
    assert names == planted.names and session.tolist() == [1] * 40 + [2] * 40
    np.testing.assert_array_equal(responses, planted.responses())
