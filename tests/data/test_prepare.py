"""From a user's files to a Dataset: pictures and trials meet by name, and no picture is in two splits."""

import dataclasses
import json
import runpy
import zipfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.data import write
from brainjanus.data.catalogue import Catalogue
from brainjanus.data.dataset import Dataset, map_tensor
from brainjanus.data.prepare import PrepareConfig, SubjectFiles, prepare
from brainjanus.data.split import split_by_stimulus

NUM, SITES = 20, 6


class Files:
    """A folder with 20 pictures, and one subject that saw each of them once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
        self.betas = rng.normal(size=(NUM, SITES))
        self.options = {"image_size": 8, "responses": (self.array("betas.npy", self.betas),), "trials": "in-order"}
        for i in range(NUM):
            self.picture(f"pictures/p{i:02}.png", self.images[i])
        self.options["pictures"] = (f"{folder}/pictures",)

    def picture(self, name: str, image: np.ndarray) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(self.folder / name)

    def array(self, name: str, array: np.ndarray) -> str:
        np.save(self.folder / name, array)
        return str(self.folder / name)

    def text(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return str(self.folder / name)

    def trials(self, rows: list[str], header: str = "stimulus_id") -> str:
        return self.text("trials.tsv", "\n".join([header, *rows]) + "\n")

    def prepare(self, out: str = "out", overwrite: bool = False, **options: object) -> Dataset:
        return prepare(PrepareConfig(**self.options | options), self.folder / out, overwrite)

    def refuses(self, message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            self.prepare(**options)
        assert not (self.folder / "out").exists()
        assert not list(self.folder.glob(".*"))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def raw(dataset: Dataset, subject: str = "subj01") -> np.ndarray:
    _, mean, std = dataset.zscore(subject)
    return dataset.responses(subject) * std[0] + mean[0]


def test_in_order_response_i_belongs_to_picture_i_by_sorted_name(files):
    dataset = files.prepare()
    assert dataset.trials("subj01").stimulus_id == [f"p{i:02}" for i in range(NUM)]
    np.testing.assert_array_equal(dataset.images(["p03"])[0], files.images[3])
    np.testing.assert_allclose(raw(dataset), files.betas, atol=1e-5)


def test_trials_are_rows_of_a_table_in_any_order(files):
    seen = [3, 1, 2, *range(4, NUM), 3]
    trials = files.trials([f"p{i:02}.png\t{1 + (n > 9)}" for n, i in enumerate(seen)], "stimulus_id\tsession")
    dataset = files.prepare(trials=trials)
    table = dataset.trials("subj01")
    assert table.stimulus_id[:2] == ["p03.png", "p01.png"]
    assert table.session.tolist() == [1] * 10 + [2] * 10
    assert table.repeat.tolist() == [1] * 19 + [2]
    assert len(dataset.stimulus_ids) == 19
    assert dataset.manifest["provenance"]["notices"] == ["1 pictures are in no trial and were left out."]


def test_a_picture_goes_by_its_path_stem_or_folder(files):
    with zipfile.ZipFile(files.folder / "a.zip", "w") as archive:
        for name in ("cat/one.png", "cat/two.png", "dog/one.png", "dog/three.png"):
            archive.writestr(f"top/{name}", (files.folder / "pictures/p00.png").read_bytes())
    catalogue = Catalogue([f"s1/={files.folder}/a.zip"])
    assert catalogue.ids == ["s1/cat/one", "s1/cat/two", "s1/dog/one", "s1/dog/three"]
    assert catalogue.find("s1/top/cat/two.png") == catalogue.find("s1/cat/two") == catalogue.find("s1/two.png") == (1,)
    assert catalogue.find("s1/three") == (3,)
    assert catalogue.find("s1/dog") == (2, 3)
    assert catalogue.find("three") == ()
    with pytest.raises(UserError, match=r"stimulus 's1/one': expected the name of one picture, got 2 of them"):
        catalogue.find("s1/one")


def test_an_unknown_stimulus_is_named_with_its_row(files):
    files.refuses(
        r"trials of subj01: expected stimuli that exist \(p00, p01, p02, \.\.\.\), got 'p99' in row 2",
        trials=files.trials(["p00", "p99"] + ["p01"] * 18),
    )


def test_pictures_that_are_the_same_become_one_stimulus(files, capsys):
    files.picture("pictures/p17.png", files.images[2])
    Image.fromarray(files.images[4]).save(files.folder / "pictures/p18.bmp")
    (files.folder / "pictures/p18.png").unlink()
    dataset = files.prepare()
    assert dataset.manifest["provenance"]["merged"] == {"p17": "p02", "p18": "p04"}
    assert len(dataset.stimulus_ids) == 18
    trials = dataset.trials("subj01")
    assert trials.stimulus_id[17:19] == ["p02", "p04"]
    assert trials.repeat.tolist() == [1] * 17 + [2, 2, 1]
    assert trials.split[17] == trials.split[2]
    assert "2 stimuli show the same picture as another and were merged with it" in capsys.readouterr().err


def test_a_given_split_that_parts_identical_pictures_is_refused(files):
    files.picture("pictures/p17.png", files.images[2])
    rows = [f"p{i:02}\t{'train' if i < 15 else 'test'}" for i in range(NUM)]
    files.refuses(
        "stimulus 'p02': expected one split, over all subjects, got train .* and test",
        trials=files.trials(rows, "stimulus_id\tsplit"),
    )


def test_stimuli_that_share_one_of_their_pictures_are_split_together(files):
    for i in range(NUM):  # folder i holds pictures i and i + 1 of its half: each half is one chain
        for k in (i, min(i + 1, 9 if i < 10 else NUM - 1)):
            files.picture(f"folders/f{i:02}/{k}.png", files.images[k])
    trials = files.trials([f"f{i:02}" for i in range(NUM)])
    dataset = files.prepare(pictures=(f"{files.folder}/folders",), trials=trials, test_fraction=0.5)
    split = dataset.trials("subj01").split
    assert len(set(split[:10])) == len(set(split[10:])) == 1
    assert split[0] != split[10]
    assert len(dataset.pictures("f03")) == 2


def config(**options) -> PrepareConfig:
    return PrepareConfig(responses=("r.npy",), trials="t.tsv", pictures=("p",), **options)


def test_the_drawn_split_has_its_fractions_for_each_set_of_subjects_and_follows_the_seed():
    seen = {f"a{i}": {"a"} for i in range(50)} | {f"ab{i}": {"a", "b"} for i in range(30)}
    groups = [[name] for name in seen]
    split = split_by_stimulus(seen, groups, config(test_fraction=0.2, val_fraction=0.1))
    assert Counter(split[name] for name in seen if len(seen[name]) == 1) == {"train": 35, "test": 10, "val": 5}
    assert Counter(split[name] for name in seen if len(seen[name]) == 2) == {"train": 21, "test": 6, "val": 3}
    assert split == split_by_stimulus(seen, groups, config(test_fraction=0.2, val_fraction=0.1))
    assert split != split_by_stimulus(seen, groups, config(test_fraction=0.2, val_fraction=0.1, seed=1))


def test_the_held_out_fold_is_the_test_split(files):
    trials = files.trials([f"p{i:02}\t{i % 4}" for i in range(NUM)], "stimulus_id\tfold")
    dataset = files.prepare(trials=trials, test_fold=2)
    assert dataset.split_ids("test") == tuple(f"p{i:02}" for i in range(NUM) if i % 4 == 2)
    assert dataset.trials("subj01").fold.tolist() == [i % 4 for i in range(NUM)]
    with pytest.raises(UserError, match=r"expected one of the folds 0, 1, 2, 3, got 4"):
        files.prepare("b", trials=trials, test_fold=4)
    with pytest.raises(UserError, match=r"expected to be told which fold is held out"):
        files.prepare("b", trials=trials)
    with pytest.raises(UserError, match=r"test_fold 1: expected a fold column .*got fold for none"):
        files.prepare("b", trials=files.trials([f"p{i:02}" for i in range(NUM)]), test_fold=1)


def test_a_split_column_is_taken_for_all_subjects_or_for_none(files):
    trials = files.trials([f"p{i:02}\t{'test' if i < 7 else 'train'}" for i in range(NUM)], "stimulus_id\tsplit")
    assert len(files.prepare("a", trials=trials).split_ids("test")) == 7
    two = (
        SubjectFiles("a", files.options["responses"], trials=trials),
        SubjectFiles("b", files.options["responses"], trials="in-order"),
    )
    plain = {"responses": (), "trials": ""}
    files.refuses(
        r"split column in the trials of every subject or of none, got it for a and not for b", subjects=two, **plain
    )


def test_the_orientation_is_inferred_only_if_one_axis_fits(files):
    np.testing.assert_allclose(
        raw(files.prepare("a", responses=(files.array("t.npy", files.betas.T),))), files.betas, atol=1e-5
    )
    square = files.array("s.npy", np.random.default_rng(0).normal(size=(NUM, NUM)))
    files.refuses(r"expected one axis of 20 trials, .* where both fits\. Give the orientation", responses=(square,))
    files.refuses(r"where neither fits\. Does the table", responses=(files.array("n.npy", files.betas[:19]),))
    files.refuses("trials of subj01: expected one row for each of the 6 responses, got 20", orientation="sites-first")
    dataset = files.prepare("b", responses=(square,), orientation="sites-first")
    np.testing.assert_allclose(raw(dataset), np.load(square).T, atol=1e-5)


def test_several_files_follow_one_another_and_are_scaled(files):
    parts = (files.array("1.npy", files.betas[:12] * 300), files.array("2.npy", files.betas[12:] * 300))
    np.testing.assert_allclose(raw(files.prepare(responses=parts, scale=300.0)), files.betas, atol=1e-5)


def test_responses_in_three_dimensions_or_with_other_sites_are_refused(files):
    files.refuses(
        r"expected numbers \[trials, sites\] .*\[20, 6, 1\]", responses=(files.array("d.npy", files.betas[..., None]),)
    )
    other = (files.array("1.npy", files.betas[:12]), files.array("2.npy", files.betas[12:, :5]))
    files.refuses("expected the same sites in all files", responses=other, orientation="trials-first")


def test_nifti_betas_and_mask_give_a_volume(files):
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 4, 2), np.uint8)
    mask.reshape(-1)[rng.permutation(24)[:SITES]] = 1
    volume = np.zeros((3, 4, 2, NUM), np.float32)
    volume[mask > 0] = files.betas.T
    affine = np.diag([2.0, 2, 2, 1])
    for name, data in (("mask", mask), ("betas", volume)):
        nibabel.save(nibabel.Nifti1Image(data, affine), files.folder / f"{name}.nii.gz")
    paths = {"responses": (f"{files.folder}/betas.nii.gz",), "mask": f"{files.folder}/mask.nii.gz"}
    dataset = files.prepare("a", **paths, rois=(f"all={files.folder}/mask.nii.gz",))
    np.testing.assert_allclose(raw(dataset), files.betas, atol=1e-5)
    space = dataset.space("subj01")
    np.testing.assert_array_equal(space.coordinates_mm, np.argwhere(mask) * 2)
    assert space.rois["all"].all()
    np.testing.assert_allclose(
        space.to_nifti(dataset.responses("subj01")[0]).get_fdata()[mask > 0], dataset.responses("subj01")[0]
    )
    files.refuses(
        r"expected the 6 voxels of .*mask.nii.gz, got 5",
        mask=paths["mask"],
        responses=(files.array("five.npy", files.betas[:, :5]),),
    )


def test_a_mask_in_matlabs_order_places_an_arrays_sites(files):
    mask = np.zeros((3, 4, 2), np.uint8)
    mask[[0, 2, 1, 0, 1, 2], [0, 0, 1, 3, 2, 3], [0, 0, 1, 1, 0, 1]] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), files.folder / "mask.nii")
    found = files.prepare(mask=f"{files.folder}/mask.nii", mask_order="F").space("subj01").coordinates_mm
    expected = np.argwhere(mask.transpose(2, 1, 0))[:, ::-1]
    np.testing.assert_array_equal(found, expected)


def test_coordinates_and_rois_of_arrays(files):
    xyz = np.random.default_rng(0).normal(size=(SITES, 3))
    rois = files.text("rois.json", json.dumps({"V1": [0, 2]}))
    space = files.prepare(coordinates=files.array("xyz.npy", xyz), rois=(rois,), kind="neurons").space("subj01")
    np.testing.assert_allclose(space.coordinates_mm, xyz, rtol=1e-6)
    assert (space.kind, np.flatnonzero(space.rois["V1"]).tolist()) == ("neurons", [0, 2])
    with pytest.raises(UserError, match="coordinates_mm of subj01: expected one row for each of its 6 sites, got 5"):
        files.prepare("b", coordinates=files.array("five.npy", xyz[:5]))


def test_captions_go_by_any_name_of_a_picture(files):
    captions = files.text("c.json", json.dumps({"p03": ["a cup"], "p04.png": ["a cat", "a cat"], "other": ["x"]}))
    dataset = files.prepare(captions=captions)
    assert dataset.captions("p03") == ("a cup",)
    assert dataset.captions("p04") == ("a cat",)
    assert dataset.manifest["provenance"]["notices"] == ["captions of 1 other stimuli were left out (other)."]
    with pytest.raises(UserError, match=r"captions: expected names of stimuli .*got none that exists \(other\)"):
        files.prepare("b", captions=files.text("d.json", '{"other": ["x"]}'))


def test_features_go_by_name_and_are_averaged_over_a_stimulus_pictures(files):
    for i in range(NUM):
        files.picture(f"folders/f{i // 2}/{i:02}.png", files.images[i])
    values = np.arange(NUM * 4, dtype=np.float32).reshape(NUM, 2, 2)
    order = np.random.default_rng(0).permutation(NUM)
    names = np.array([f"f{i // 2}/{i:02}.png" for i in order])
    np.savez(files.folder / "f.npz", names=names, features=values[order])
    options = {
        "pictures": (f"{files.folder}/folders",),
        "trials": files.trials([f"f{i}" for i in range(10)]),
        "responses": (files.array("ten.npy", files.betas[:10]),),
    }
    dataset = files.prepare("a", features=(f"deep={files.folder}/f.npz",), **options)
    np.testing.assert_array_equal(dataset.features("deep", ["f3"])[0], values[6:8].mean(axis=0))
    words = np.eye(10, dtype=np.float32)
    np.savez(files.folder / "w.npz", names=np.array([f"f{i}" for i in range(10)]), features=words)
    dataset = files.prepare("b", features=(f"words={files.folder}/w.npz",), **options)
    np.testing.assert_array_equal(dataset.features("words", ["f3"])[0, 0], words[3])
    np.savez(files.folder / "w.npz", names=np.array(["f1"]), features=words[:1])
    with pytest.raises(
        UserError, match=r"features 'words': expected a row for each of the 10 stimuli, got none for 9, 'f0'"
    ):
        files.prepare("c", features=(f"words={files.folder}/w.npz",), **options)


def test_features_of_several_files_have_their_prefix(files):
    pictures = (f"a/={files.folder}/pictures", f"b/={files.folder}/pictures")
    values = np.random.default_rng(0).normal(size=(NUM, 3)).astype(np.float16)
    np.savez(files.folder / "f.npz", names=np.array([f"p{i:02}.png" for i in range(NUM)]), features=values)
    both = tuple(f"deep={prefix}={files.folder}/f.npz" for prefix in ("a/", "b/"))
    dataset = files.prepare(pictures=pictures, prefix="b/", features=both)
    assert dataset.stimulus_ids[0] == "b/p00"
    np.testing.assert_array_equal(dataset.features("deep", ["b/p04"])[0, 0], values[4])


def test_words_alone_are_stimuli_too(files):
    captions = files.text("c.tsv", "stimulus_id\tcaption\n" + "".join(f"w{i}\tword {i}\n" for i in range(NUM)))
    trials = files.trials([f"w{i}" for i in range(NUM)])
    assert files.prepare("a", pictures=(), captions=captions, trials=trials).captions("w3") == ("word 3",)
    files.refuses(
        "expected stimuli that exist .*got 'v0' in row 20",
        pictures=(),
        captions=captions,
        trials=files.trials([f"w{i}" for i in range(NUM - 1)] + ["v0"]),
    )


def test_two_pictures_of_one_name_cannot_be_in_order(files):
    pictures = (f"{files.folder}/pictures", f"{files.folder}/pictures")
    files.refuses("expected names that differ, got 'p00' twice. Give each archive a prefix", pictures=pictures)


def test_columns_that_are_not_used_are_told(files, capsys):
    files.prepare(trials=files.trials([f"p{i:02}\t{i}" for i in range(NUM)], "stimulus_id\tonset"))
    assert "The columns onset of the trials are not used." in capsys.readouterr().err


@pytest.mark.parametrize("failure", ["truncated archive", "full disk", "NaN", "interrupt"])
def test_whatever_goes_wrong_the_old_dataset_survives(files, monkeypatch, failure):
    before = files.prepare()
    options, error, message = {}, UserError, None
    if failure == "truncated archive":
        archive = files.folder / "p.zip"
        with zipfile.ZipFile(archive, "w") as out:
            out.write(files.folder / "pictures/p00.png", "p00.png")
        archive.write_bytes(archive.read_bytes()[:-30])
        options, message = {"pictures": (str(archive),)}, "p.zip: expected .*truncated"
    elif failure == "NaN":
        files.betas[3, 2] = np.nan
        options, message = {"responses": (files.array("nan.npy", files.betas),)}, "got nan at trial 3, site 2"
    else:
        raised = KeyboardInterrupt() if failure == "interrupt" else OSError(28, "No space left on device")
        error, message = (KeyboardInterrupt, None) if failure == "interrupt" else (UserError, "got a full disk")

        def stop(*_):
            raise raised

        monkeypatch.setattr(write, "_write_stimuli", stop)
    with pytest.raises(error, match=message):
        files.prepare(overwrite=True, **options)
    before.verify()
    assert not list(files.folder.glob(".*"))


def test_an_existing_dataset_is_refused_before_any_work(files, monkeypatch):
    files.prepare()
    monkeypatch.setattr("brainjanus.data.prepare.Catalogue", None)
    with pytest.raises(UserError, match=r"already holds a dataset\. Give --overwrite"):
        files.prepare()


# ---- the examples of the guide, on real recordings


def test_v4_the_600_pictures_of_two_sessions_are_one_and_never_parted(real_data, project_root, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINJANUS_REAL_DATA", str(real_data))
    monkeypatch.setenv("BRAINJANUS_WORK", str(tmp_path))
    spec = PrepareConfig.load(project_root / "examples/v4_cowley.toml")
    spec = dataclasses.replace(spec, subjects=spec.subjects[4:], pictures=spec.pictures[4:], features=(), image_size=16)
    dataset = prepare(spec, tmp_path / "v4")
    assert dataset.subjects == ("PE210322", "PE210325")
    assert [dataset.responses(name).shape for name in dataset.subjects] == [(1200, 59), (640, 50)]
    assert len(dataset.stimulus_ids) == 1240
    first, second = (dataset.trials(name) for name in dataset.subjects)
    assert len(set(first.stimulus_id) & set(second.stimulus_id)) == 600
    counts = np.load(real_data / "v4_cowley/responses_210325.npy")
    np.testing.assert_allclose(raw(dataset, "PE210325"), counts.T, atol=1e-4)


def test_v4_pictures_that_come_twice_in_a_session_are_repeats(real_data, project_root, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINJANUS_REAL_DATA", str(real_data))
    monkeypatch.setenv("BRAINJANUS_WORK", str(tmp_path))
    spec = PrepareConfig.load(project_root / "examples/v4_cowley.toml")
    spec = dataclasses.replace(
        spec, subjects=spec.subjects[1:2], pictures=spec.pictures[1:2], features=(), image_size=16
    )
    dataset = prepare(spec, tmp_path / "v4")
    assert Counter(dataset.trials("WE190925").repeat.tolist()) == {1: 900, 2: 300}
    assert dataset.space("WE190925").noise_ceiling(1).mean() > 0.8


def test_object2vec_categories_folds_and_rois(real_data, project_root, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINJANUS_REAL_DATA", str(real_data))
    monkeypatch.setenv("BRAINJANUS_WORK", str(tmp_path))
    main = runpy.run_path(str(project_root / "examples/object2vec_tables.py"))["main"]
    main(real_data / "object2vec", tmp_path / "object2vec")
    dataset = prepare(PrepareConfig.load(project_root / "examples/object2vec.toml"), tmp_path / "o2v")
    assert dataset.responses("object2vec").shape == (81, 1870)
    assert len(dataset.split_ids("test")) == 9
    assert "kettle" in dataset.split_ids("test")
    assert dataset.pictures("kettle").shape == (10, 64, 64, 3)
    assert dataset.captions("kettle") == ("kettle",)
    assert dataset.features("word2vec", ["kettle"]).shape == (1, 1, 30)
    rois = dataset.space("object2vec").rois
    assert {name: int(mask.sum()) for name, mask in rois.items()} == dict.fromkeys(rois, 200) | {"LOC": 195, "STS": 75}
    # columns lie in the brain's order: neighbours respond alike, and more so than sites of one ROI at large
    evc = dataset.responses("object2vec")[:, rois["EVC"]]
    together = np.corrcoef(evc.T)
    assert np.diag(together, 1).mean() > 0.8 > 0.5 > together[np.triu_indices(200, 1)].mean()


def test_responses_are_stored_in_half_precision_if_asked_for(files):
    dataset = files.prepare(responses_dtype="float16")
    assert map_tensor(dataset.responses_file("subj01"), "responses").dtype == np.float16
    np.testing.assert_allclose(raw(dataset), files.betas, atol=5e-3)
    assert dataset.manifest["provenance"]["config"]["responses_dtype"] == "float16"
