"""MindEye1's shards in small: repeats are trials again, and copies are none."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import mindeye1, open_study
from brainjanus.data.readers.shards import shard_samples
from brainjanus.data.study import StudyOptions

from .conftest import FAR, NUM_VOXELS, Planted, jpg, npy, read_all, read_all_pictures, write_tar


def published(planted: Planted, image: int) -> dict[str, bytes]:
    """One image as in the files that its authors published: half precision, and one number that says nothing."""
    trials = planted.trial[planted.image == image]
    uniques = len(trials)
    trials = np.concatenate([trials, trials[-1:], trials[-1:]])[:3]
    return {
        "nsdgeneral.npy": npy(planted.betas[trials].astype(np.float16)),
        "jpg": jpg(planted.pixels[image]),
        "coco73k.npy": npy(np.array([image])),
        "trial.npy": npy(np.array([image % 9_841])),
        "num_uniques.npy": npy(np.array([uniques])),
    }


def sample(planted: Planted, image: int, first: int = 0) -> dict[str, bytes]:
    """One image whose rows have a trial number each; the latest repeat comes first, the last row is copied."""
    trials = planted.trial[planted.image == image][::-1]
    uniques = len(trials)
    trials = np.concatenate([trials, trials[-1:], trials[-1:]])[:3]
    return {
        "nsdgeneral.npy": npy(planted.betas[trials].astype(np.float64)),
        "jpg": jpg(planted.pixels[image]),
        "coco73k.npy": npy(np.array([image])),
        "trial.npy": npy(trials + first),
        "num_uniques.npy": npy(np.array([uniques])),
        "wholebrain_3d.npy": npy(np.zeros(3)),  # not asked for
    }


def places(planted: Planted, val: int = 0) -> dict[int, str]:
    """The shard of each image: 3 of train, 2 of test, and of val if so many images are to be there."""
    images = np.random.default_rng(5).permutation(sorted(set(planted.image.tolist()))).tolist()
    train = [image for image in images if image not in planted.shared]
    of = {image: f"train/train_subj01_{i % 3}.tar" for i, image in enumerate(train)}
    of |= dict.fromkeys(train[:val], "val/val_subj01_0.tar")
    return of | {image: f"test/test_subj01_{i % 2}.tar" for i, image in enumerate(sorted(planted.shared))}


def build(
    root: Path, planted: Planted, val: int = 0, first: int = 0, unpacked: bool = False, numbered: bool = True
) -> Path:
    shards: dict[str, dict[str, bytes]] = {}
    for number, (image, place) in enumerate(places(planted, val).items()):
        members = shards.setdefault(place, {})
        parts = sample(planted, image, first) if numbered else published(planted, image)
        for extension, data in parts.items():
            members[f"sample{number:08}.{extension}"] = data
    for place, members in shards.items():
        if unpacked:
            folder = root / place.split("/")[0] / "subj01"
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in members.items():
                (folder / name).write_bytes(data)
        else:
            write_tar(root / place, members)
    return root


@pytest.fixture
def root(tmp_path: Path, planted: Planted) -> Path:
    return build(tmp_path / "webdataset_avg_split", planted)


def open_it(root: Path, **options):
    return open_study("mindeye1", root, StudyOptions(**options))


@pytest.mark.parametrize("above", [False, True])
def test_what_was_planted_is_read(root, planted, above):
    study = open_it(root.parent if above else root)
    names, session, _, responses = read_all(study)
    assert names == planted.names
    np.testing.assert_array_equal(session, planted.session)
    np.testing.assert_array_equal(responses, planted.responses())
    assert study.split == planted.split
    assert any("16 rows of subj01 are copies" in notice for notice in study.notices)


def test_unpacked_samples_are_read_too(tmp_path, planted):
    study = open_it(build(tmp_path, planted, unpacked=True))
    names, _, _, responses = read_all(study)
    assert names == planted.names
    files = {file for found in study.found for file in found.files}
    wanted = ("nsdgeneral.npy", "coco73k.npy", "trial.npy", "num_uniques.npy", "jpg")  # a change of any is noticed
    assert files == {file for suffix in wanted for file in tmp_path.rglob(f"*.{suffix}")}
    np.testing.assert_array_equal(responses, planted.responses())


def write_design(file: Path, planted: Planted) -> None:
    """nsd_expdesign.mat, counting from 1: subj01 saw what was planted, and other images in all other trials."""
    rng = np.random.default_rng(9)
    mine = sorted(set(planted.image.tolist()) - planted.shared)
    others = rng.permutation(np.setdiff1d(np.arange(73_000), planted.image))
    shared, others = [*sorted(planted.shared), *others[:996].tolist()], others[996:]
    images = np.array([[*shared, *mine, *others[: 9000 - len(mine)]], *([*shared, *others[:9000]] for _ in range(7))])
    order = rng.integers(1000 + len(mine), 10_000, 30_000)
    place = {image: i for i, image in enumerate(images[0].tolist())}
    order[planted.trial] = [place[image] for image in planted.image.tolist()]
    arrays = {"masterordering": order[None] + 1, "subjectim": images + 1, "sharedix": np.sort(shared)[None] + 1}
    savemat(file, arrays)


def half(planted: Planted) -> np.ndarray:
    return planted.responses().astype(np.float16).astype(np.float32)


def test_files_as_published_say_nothing_of_sessions(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(mindeye1, "TRIALS_PER_SESSION", 30)
    root = build(tmp_path, planted, numbered=False)
    study = open_it(root)
    names, _, _, responses = read_all(study)
    found = sorted(zip(names, responses.tolist(), strict=True))
    assert found == sorted(zip(planted.names, half(planted).tolist(), strict=True))
    assert [len(one.stimulus_id) for one in study.subjects[0].sessions] == [30, 30, 20]
    assert (study.split, study.zscore) == (planted.split, "all")
    assert any("do not say in which session a trial of subj01 was" in notice for notice in study.notices)
    assert any("16 rows of subj01 are copies" in notice for notice in study.notices)
    with pytest.raises(UserError, match="--sessions: expected to know in which session"):
        open_it(root, sessions=1)


@pytest.mark.parametrize("given", [False, True])
def test_files_as_published_take_sessions_from_the_design(tmp_path, planted, given):
    root = build(tmp_path / "webdataset_avg_split", planted, numbered=False)
    write_design(tmp_path / ("given.mat" if given else "nsd_expdesign.mat"), planted)
    files = (f"expdesign={tmp_path / 'given.mat'}",) if given else ()
    study = open_it(root if given else tmp_path, files=files)
    names, session, _, responses = read_all(study)
    assert names == planted.names
    np.testing.assert_array_equal(session, planted.session)
    np.testing.assert_array_equal(responses, half(planted))
    assert study.zscore == "session"
    assert any("taken to be in the order of presentation" in notice for notice in study.notices)


def test_a_design_that_does_not_agree_is_not_used(tmp_path, planted):
    root = build(tmp_path, planted, numbered=False)
    other = Planted()
    other.image = np.roll(other.image, 1)
    other.image[0] = other.image[1]  # one image was shown once more, and another once less, than there are rows
    write_design(tmp_path / "nsd_expdesign.mat", other)
    study = open_it(root)
    assert study.zscore == "all"
    assert any("in any number of sessions: the design was not used" in notice for notice in study.notices)


def test_an_image_that_comes_again_as_published_is_read_once(tmp_path, planted):
    root = build(tmp_path, planted, numbered=False)
    image = next(image for image, place in places(planted).items() if place.startswith("train"))
    members = {f"sample99999999.{name}": data for name, data in published(planted, image).items()}
    write_tar(root / "train/train_subj01_3.tar", members)
    study = open_it(root)
    assert sorted(read_all(study)[0]) == sorted(planted.names)
    assert any("come again in another sample and were read once" in notice for notice in study.notices)


def test_val_stays_val(tmp_path, planted):
    study = open_it(build(tmp_path, planted, val=5))
    val = {f"nsd-{image:05}" for image, place in places(planted, 5).items() if place.startswith("val")}
    assert {name for name, split in study.split.items() if split == "val"} == val
    assert {n for n, s in study.split.items() if s == "test"} == {n for n, s in planted.split.items() if s == "test"}
    assert read_all(study)[0] == planted.names


def test_pictures_go_by_73k_id(root, planted):
    pictures = read_all_pictures(open_it(root))
    assert f"nsd-{FAR}" in pictures
    for image, pixels in planted.pixels.items():
        np.testing.assert_array_equal(pictures[f"nsd-{image:05}"], pixels)


def test_trials_that_count_from_1_are_found_by_the_last_one(tmp_path, planted):
    planted.trial[40:] = 1460 + np.arange(40)  # up to 1499: complete to the end of session 2
    study = open_it(build(tmp_path, planted, first=1))
    _, session, _, responses = read_all(study)
    np.testing.assert_array_equal(session, planted.session)
    np.testing.assert_array_equal(responses, planted.responses())
    assert any("count from 1 (1 to 1500): 1 was subtracted" in notice for notice in study.notices)


def test_trials_that_could_count_from_0_or_1_are_said(tmp_path, planted):
    planted.trial += 3
    study = open_it(build(tmp_path, planted))
    np.testing.assert_array_equal(read_all(study)[1], planted.session)
    assert any("were taken to count from 0" in notice for notice in study.notices)


def test_a_sample_that_comes_again_is_read_once(root, planted):
    image = next(image for image, place in places(planted).items() if place.startswith("train/train_subj01_0"))
    members = {f"sample99999999.{name}": data for name, data in sample(planted, image).items()}
    write_tar(root / "train/train_subj01_3.tar", members)
    study = open_it(root)
    names, _, _, responses = read_all(study)
    assert names == planted.names
    np.testing.assert_array_equal(responses, planted.responses())
    assert any("come again in another sample and were read once" in notice for notice in study.notices)


def test_missing_shards_are_said(root):
    study = open_it(root)
    train = next(found for found in study.found if found.what == "train shards of subj01")
    assert train.missing[0] == "train/train_subj01_3.tar"
    assert len(train.missing) == 15
    val = next(found for found in study.found if found.what == "val shards of subj01")
    assert val.missing == ("val/val_subj01_0.tar",) and not val.required


def test_without_test_shards_it_is_refused(root):
    for file in (root / "test").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"expected test/test_subj01_0.tar, got none"):
        open_it(root)


def test_two_releases_are_not_mixed(root, planted):
    build(root.parent / "webdataset_avg_new", planted)
    with pytest.raises(UserError, match="expected one release, got webdataset_avg_new, webdataset_avg_split"):
        open_it(root.parent)


def test_an_image_in_two_splits_is_refused(root, planted):
    image = sorted(planted.shared)[0]
    members = {f"sample99999999.{name}": data for name, data in sample(planted, image).items()}
    write_tar(root / "train/train_subj01_3.tar", members)
    with pytest.raises(UserError, match=f"got image 'nsd-{image:05}' in train and test"):
        open_it(root)


def test_shards_of_mindeye2_are_told_apart(root):
    write_tar(root / "train/train_subj01_0.tar", {"sample000000000.jpg": b"x"})
    with pytest.raises(UserError, match=r"or of MindEye2 \(wds/\)"):
        open_it(root)


@pytest.mark.parametrize(
    ("member", "array", "message"),
    [
        ("num_uniques.npy", [4], "how many repeats are no copies"),
        ("num_uniques.npy", [0], "how many repeats are no copies"),
        ("trial.npy", [5, 5, 5], "expected 3 trial numbers that differ"),
        ("trial.npy", [0.5, 1, 2], "expected whole numbers"),
        ("coco73k.npy", [73_000], "expected a 73k id from 0 to 72999, got 73000"),
        ("coco73k.npy", [-1], "expected a 73k id from 0 to 72999, got -1"),
    ],
)
def test_wrong_numbers_are_one_sentence(root, planted, member, array, message):
    image = next(i for i in planted.pixels if i not in planted.shared and (planted.image == i).sum() == 3)
    parts = sample(planted, image) | {member: npy(np.array(array))}
    write_tar(root / "train/train_subj01_3.tar", {f"sample99999999.{name}": data for name, data in parts.items()})
    with pytest.raises(UserError, match=message):
        open_it(root)


def test_voxels_of_another_subject_are_refused_when_read(root, planted):
    image = next(i for i, place in places(planted).items() if place == "train/train_subj01_1.tar")
    parts = sample(planted, image) | {"nsdgeneral.npy": npy(np.zeros((3, NUM_VOXELS + 1)))}
    others = [i for i, place in places(planted).items() if place == "train/train_subj01_1.tar" and i != image]
    members = {f"sample1.{name}": data for name, data in parts.items()}
    for i in others:
        members |= {f"sample{i + 10}.{name}": data for name, data in sample(planted, i).items()}
    write_tar(root / "train/train_subj01_1.tar", members)
    with pytest.raises(UserError, match=rf"expected \[. or more repeats, {NUM_VOXELS} voxels\].*got \[3, 8\]"):
        read_all(open_it(root))


def test_a_shard_that_is_cut_between_opening_and_reading_is_one_sentence(root):
    study = open_it(root)
    for shard in (root / "train").iterdir():
        shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(UserError, match="expected a whole member"):
        read_all(study)


def test_a_damaged_picture_is_named(root, planted):
    image = next(i for i, place in places(planted).items() if place == "train/train_subj01_0.tar")
    parts = sample(planted, image) | {"jpg": b"\xff\xd8\xff" + b"0" * 50}
    others = [i for i, place in places(planted).items() if place == "train/train_subj01_0.tar" and i != image]
    members = {f"sample1.{name}": data for name, data in parts.items()}
    for i in others:
        members |= {f"sample{i + 10}.{name}": data for name, data in sample(planted, i).items()}
    write_tar(root / "train/train_subj01_0.tar", members)
    with pytest.raises(UserError, match=r"train_subj01_0.tar, sample1.jpg: expected a picture"):
        read_all_pictures(open_it(root))


def test_an_old_header_that_ends_in_the_middle_is_one_sentence(root, planted):
    image = next(i for i, place in places(planted).items() if place == "train/train_subj01_0.tar")
    broken = npy(np.zeros((3, NUM_VOXELS))).replace(b"(3, 7)", b"(3L, 7")
    parts = sample(planted, image) | {"coco73k.npy": broken}
    write_tar(root / "train/train_subj01_3.tar", {f"sample9.{name}": data for name, data in parts.items()})
    with pytest.raises(UserError, match=r"expected an npy array in sample9.coco73k.npy"):
        open_it(root)


def test_no_more_rows_of_an_image_are_read_than_num_uniques_says(root):
    """Though the rows beyond it have numbers of their own."""
    piece = next(iter(shard_samples(next(root.rglob("train_subj01_0.tar")), ("trial.npy",)).values()))["trial.npy"]
    assert mindeye1._own_rows(piece, np.array([5, 3, 9]), 2) == [0, 1]
    assert mindeye1._own_rows(piece, np.array([5, 5, 9]), 2) == [0, 2]
    with pytest.raises(UserError, match="expected 3 trial numbers that differ"):
        mindeye1._own_rows(piece, np.array([5, 5, 9]), 3)
