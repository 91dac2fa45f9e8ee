"""THINGS-EEG2 and THINGS-MEG in small: repeats are trials, pictures go by name, and nothing is unpickled."""

import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study, things
from brainjanus.data.study import StudyOptions

from .conftest import jpg, read_all, read_all_pictures

SENSORS, TIMES = ["Pz", "Oz", "O1"], np.round(np.arange(5) / 250, 4)
RELEASES = {
    "things-eeg2": ("preprocessed_eeg", "preprocessed_eeg_data", (6, 4), (3, 10)),
    "things-meg": ("preprocessed_meg", "meg_data", (6, 1), (3, 12)),
}
PICTURES = {
    "training_images": ["00002_abacus/abacus_01b.jpg", "00001_aardvark/aardvark_02s.jpg", "00001_aardvark/a_01b.jpg"]
    + [f"00003_apple/apple_{i:02}s.jpg" for i in (10, 9, 1)],
    "test_images": ["00200_zebra/zebra_01b.jpg", "00100_owl/owl_07s.jpg", "00150_pig/pig_01b.jpg"],
}


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def epochs(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        split: rng.normal(0, 2, (*shape, len(SENSORS), len(TIMES)))
        for split, shape in zip(("training", "test"), RELEASES[layout][2:], strict=True)
    }


def write(file: Path, layout: str, data: np.ndarray, compressed: bool = False, **others) -> None:
    arrays = {RELEASES[layout][1]: data, "ch_names": np.array(SENSORS), "times": TIMES} | others
    if file.suffix == ".npz":
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
        return
    with h5py.File(file, "w") as hdf5:
        for name, array in arrays.items():
            hdf5[name] = array.tolist() if array.dtype.kind == "U" else array


def build(root: Path, layout: str, suffix: str = ".npz", place: str = "", compressed: bool = False) -> Path:
    folder = root / place / "sub-01"
    folder.mkdir(parents=True)
    for split, data in epochs(layout).items():
        write(folder / f"{RELEASES[layout][0]}_{split}{suffix}", layout, data, compressed)
    for images, files in PICTURES.items():
        for file in files:
            (root / images / file).parent.mkdir(parents=True, exist_ok=True)
            (root / images / file).write_bytes(jpg(pixels(Path(file).stem)))
        (root / images / ".DS_Store").touch()
    return root


@pytest.fixture(params=list(RELEASES))
def layout(request) -> str:
    return request.param


@pytest.fixture
def root(tmp_path: Path, layout: str) -> Path:
    return build(tmp_path, layout)


def open_it(root: Path, layout: str, **options):
    return open_study(layout, root, StudyOptions(**options))


def expected(layout: str) -> tuple[list[str], np.ndarray]:
    names, parts = [], []
    for (_split, data), files in zip(epochs(layout).items(), PICTURES.values(), strict=True):
        ordered = [f"things-{Path(file).stem}" for file in sorted(files)]
        names += [name for name in ordered for _ in range(data.shape[1])]
        parts.append(data.astype(np.float32).reshape(-1, len(SENSORS) * len(TIMES)))
    return names, np.concatenate(parts)


@pytest.mark.parametrize(
    ("suffix", "place", "compressed"),
    [(".npz", "", False), (".npz", "Preprocessed_data_250Hz", True), (".h5", "", False), (".hdf5", "", False)],
)
def test_what_was_planted_is_read_a_part_at_a_time(tmp_path, layout, suffix, place, compressed, monkeypatch):
    monkeypatch.setattr(things, "PART_BYTES", 500)
    study = open_it(build(tmp_path, layout, suffix, place, compressed), layout)
    names, _, _, responses = read_all(study)
    assert names == expected(layout)[0]
    np.testing.assert_array_equal(responses, expected(layout)[1])
    numbers = [one.number for one in study.subjects[0].sessions]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 3
    space = study.subjects[0].space
    assert (space.subject, space.kind, space.geometry["names"]) == ("sub-01", "sensors", SENSORS)
    assert space.geometry["times_sec"] == TIMES.tolist()
    assert (study.zscore, study.modality) == ("all", layout[7:10].upper())
    assert study.split == {
        name: "test" if i >= 6 * epochs(layout)["training"].shape[1] else "train" for i, name in enumerate(names)
    }


def test_pictures_go_by_their_names(root, layout):
    pictures = read_all_pictures(open_it(root, layout))
    assert set(pictures) == set(expected(layout)[0])
    for name, picture in pictures.items():
        np.testing.assert_array_equal(picture, pixels(name.removeprefix("things-")))


def test_another_order_is_taken_from_a_table(root, layout):
    lines = ["split\tfile"]
    lines += [f"train\t{file}" for file in PICTURES["training_images"]]
    lines += [f"test\t{file}" for file in PICTURES["test_images"]]
    (root / "images.tsv").write_text("\n".join(lines) + "\n")
    names = read_all(open_it(root, layout))[0]
    repeats = epochs(layout)["training"].shape[1]
    first = [f"things-{Path(file).stem}" for file in PICTURES["training_images"]]
    assert names[: 6 * repeats : repeats] == first


def test_times_before_the_picture_are_cut_as_the_epochs_were(root, layout):
    longer = np.arange(-2, 5) / 250
    for split, data in epochs(layout).items():
        write(root / f"sub-01/{RELEASES[layout][0]}_{split}.npz", layout, data, times=longer)
    study = open_it(root, layout)
    np.testing.assert_allclose(study.subjects[0].space.geometry["times_sec"], TIMES)
    assert any("7 times for 5 samples" in notice for notice in study.notices)


def by_concept(layout: str) -> dict[str, np.ndarray]:
    """As ATM's code shapes them: [concepts, images of one, repeats, sensors, times]."""
    data = epochs(layout)
    return {"training": data["training"].reshape(3, 2, *data["training"].shape[1:]), "test": data["test"][:, None]}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_axis_of_concepts_is_folded(root, layout, monkeypatch, suffix, compressed):
    monkeypatch.setattr(things, "PART_BYTES", 500)
    for split, data in by_concept(layout).items():
        file = root / f"sub-01/{RELEASES[layout][0]}_{split}.npz"
        file.unlink()
        write(file.with_suffix(suffix), layout, data, compressed)
    names, _, _, responses = read_all(open_it(root, layout))
    assert names == expected(layout)[0]
    np.testing.assert_array_equal(responses, expected(layout)[1])


def test_parts_of_compressed_files_are_inflated_once_where_they_come_in_order(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(things, "PART_BYTES", 200)
    study = open_it(build(tmp_path, layout, compressed=True), layout)
    skipped = []
    seek = zipfile.ZipExtFile.seek

    def counted(stream, offset, *args):
        skipped.append(offset - stream.tell())
        return seek(stream, offset, *args)

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", counted)
    sessions = study.subjects[0].sessions
    parts = [session.read() for session in sessions]
    np.testing.assert_array_equal(np.concatenate(parts), expected(layout)[1])
    assert len(skipped) > 4 and sum(skip > 0 for skip in skipped) == 2  # the headers of two files
    for k in (2, 0, 1, 1, len(sessions) - 1):  # whatever the order
        np.testing.assert_array_equal(sessions[k].read(), parts[k])


def test_a_wrong_byte_in_a_compressed_file_is_found(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(things, "PART_BYTES", 200)
    study = open_it(build(tmp_path, layout, compressed=True), layout)
    inflate = zipfile.ZipExtFile._update_crc
    monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda stream, data: inflate(stream, data[:-1] + b"x"))
    with pytest.raises(UserError, match="npz file, got 'Bad CRC-32"):
        read_all(study)


def test_epochs_before_the_picture_are_kept_as_the_authors_of_eeg2_release_them(tmp_path):
    root = build(tmp_path, "things-eeg2", place="preprocessed_data")
    times = np.round(np.arange(5) / 5 - 0.2, 4)
    for split, data in epochs("things-eeg2").items():
        write(root / f"preprocessed_data/sub-01/preprocessed_eeg_{split}.npz", "things-eeg2", data, times=times)
    study = open_it(root, "things-eeg2")
    assert study.subjects[0].space.geometry["times_sec"] == times.tolist()
    assert not any("samples" in notice for notice in study.notices)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (self.file.write_text, ("unpickled",))


@pytest.mark.parametrize("how", ["npy", "raw", "pkl by concept"])
def test_pickles_are_refused_with_a_recipe_that_works(root, layout, how, tmp_path):
    stem = f"{RELEASES[layout][0]}_test"
    (root / f"sub-01/{stem}.npz").unlink()
    file = root / f"sub-01/{stem}.npy"
    data = epochs(layout)["test"]
    if how == "pkl by concept":
        name = "preprocessed_meg_zs_test" if layout == "things-meg" else stem
        file, data = root / f"sub-01/{name}.pkl", by_concept(layout)["test"]
    bomb = tmp_path / "unpickled"
    content = {RELEASES[layout][1]: data, "ch_names": SENSORS, "times": TIMES, "evil": Bomb(bomb)}
    with open(file, "wb") as out:
        if how != "npy" or layout == "things-meg":
            pickle.dump(content, out)
        else:
            np.save(out, content, allow_pickle=True)
    with pytest.raises(UserError, match="expected arrays, got a Python pickle") as caught:
        open_it(root, layout)
    assert not bomb.exists()
    del content["evil"]
    with open(file, "wb") as out:
        if how != "npy" or layout == "things-meg":
            pickle.dump(content, out)
        else:
            np.save(out, content, allow_pickle=True)
    exec(str(caught.value).partition("once: ")[2], {})  # what the sentence tells the user to run
    names, _, _, responses = read_all(open_it(root, layout))
    assert names == expected(layout)[0]
    np.testing.assert_array_equal(responses, expected(layout)[1])


def test_objects_in_an_npz_are_not_unpickled(root, layout, tmp_path):
    bomb = tmp_path / "unpickled"
    stem, data = RELEASES[layout][:2]
    np.savez(
        root / f"sub-01/{stem}_test.npz", **{data: np.array([Bomb(bomb)], dtype=object)}, ch_names=SENSORS, times=TIMES
    )
    with pytest.raises(UserError, match="Python objects, which are never unpickled"):
        open_it(root, layout)
    np.savez(
        root / f"sub-01/{stem}_test.npz",
        **{data: epochs(layout)["test"]},
        ch_names=np.array([Bomb(bomb)], dtype=object),
        times=TIMES,
    )
    with pytest.raises(UserError, match="Python objects, which are never unpickled"):
        open_it(root, layout)
    assert not bomb.exists()


def test_fif_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "derivatives/preprocessed").mkdir(parents=True)
    (tmp_path / "derivatives/preprocessed/preprocessed_P1-epo.fif").write_bytes(b"fif")
    with pytest.raises(UserError, match=r"got FIF, which needs MNE. Convert it once: pip install mne"):
        open_it(tmp_path, "things-meg")


def test_a_picture_too_few_is_refused(root, layout):
    (root / "training_images" / PICTURES["training_images"][0]).unlink()
    with pytest.raises(UserError, match="expected epochs of the 5 pictures in training_images, got those of 6 images"):
        open_it(root, layout)


def test_a_picture_in_both_splits_is_refused(root, layout):
    (root / "test_images/00100_owl/owl_07s.jpg").rename(root / "test_images/00100_owl/abacus_01b.jpg")
    with pytest.raises(UserError, match="is it in training and in test"):
        open_it(root, layout)


def test_a_table_that_points_outside_is_refused(root, layout):
    (root / "images.tsv").write_text("split\tfile\ntrain\t../../secret.jpg\n")
    with pytest.raises(UserError, match=r"got '../../secret.jpg', which is not there"):
        open_it(root, layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch_names": np.array(["Pz", "Oz"])}, "expected names of 3 sensors and 5 times"),
        ({"times": TIMES[:3]}, "expected names of 3 sensors and 5 times"),
        ({"times": np.array(["a"] * 5)}, "expected numbers of seconds in times"),
    ],
)
def test_names_and_times_have_to_fit(root, layout, change, message):
    write(root / f"sub-01/{RELEASES[layout][0]}_test.npz", layout, epochs(layout)["test"], **change)
    with pytest.raises(UserError, match=message):
        open_it(root, layout)


def test_averaged_repeats_are_refused(root, layout):
    write(root / f"sub-01/{RELEASES[layout][0]}_test.npz", layout, epochs(layout)["test"].mean(axis=1))
    with pytest.raises(UserError, match="Were repeats averaged"):
        open_it(root, layout)


def test_sensors_of_training_and_test_have_to_agree(root, layout):
    other = {"ch_names": np.array(["Pz", "Oz", "O2"])}
    write(root / f"sub-01/{RELEASES[layout][0]}_test.npz", layout, epochs(layout)["test"], **other)
    with pytest.raises(UserError, match="with other names"):
        open_it(root, layout)


def test_damaged_archives_are_one_sentence(root, layout):
    file = root / f"sub-01/{RELEASES[layout][0]}_test.npz"
    whole = file.read_bytes()
    for data in (whole[:300], b"PK\x05\x06" + bytes(18), b"not a zip"):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"an npz file|expected the arrays"):
            open_it(root, layout)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{RELEASES[layout][1]}.npy", b"no array")
        archive.writestr("../../ch_names.npy", b"")
        archive.writestr("times.npy", b"")
    with pytest.raises(UserError, match="expected the arrays"):
        open_it(root, layout)


def test_other_keys_are_said(root, layout):
    for split, data in epochs(layout).items():
        file = root / f"sub-01/{RELEASES[layout][0]}_{split}.npz"
        np.savez(file, X=data, names=SENSORS, t=TIMES)
    with pytest.raises(UserError, match="got X, names, t"):
        open_it(root, layout)
    names = read_all(open_it(root, layout, keys=("data=X", "sensors=names", "times=t")))[0]
    assert names == expected(layout)[0]
