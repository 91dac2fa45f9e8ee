"""Plain arrays in a folder, by the names of their subjects, as planted; and what does not fit."""

import json

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.plan import StreamOptions
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.stream import stream_study
from brainjanus.data.study import StudyOptions

IDS = [f"s{i:02}" for i in range(12)]
SITES = 5


def build(path):
    """Two subjects with two sessions each, whose trials alternate in the table."""
    (path / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in IDS:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path / f"pictures/{name}.png")
    (path / "captions.json").write_text(json.dumps({name: [f"a {name}"] for name in IDS} | {"other": ["x"]}))
    for who in ("anna", "bert"):
        np.save(path / f"{who}.npy", rng.normal(50, 4, (24, SITES)))
        lines = [f"{IDS[i % 12]}\t{i % 2 + 3}\t{'test' if i % 12 < 3 else 'train'}\tx" for i in range(24)]
        (path / f"{who}_trials.tsv").write_text("\n".join(["stimulus_id\tsession\tsplit\tnote", *lines]))
    return path


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path / "mine")


def planted(path, who="anna"):
    """By session: ids and responses."""
    responses, ids = np.load(path / f"{who}.npy").astype(np.float32), [IDS[i % 12] for i in range(24)]
    return {number: (ids[number - 3 :: 2], responses[number - 3 :: 2]) for number in (3, 4)}


def opened(path, **options):
    return open_study("arrays", path, StudyOptions(**options))


def check(path, who=0, name="anna"):
    for session in opened(path).subjects[who].sessions:
        ids, responses = planted(path, name)[session.number]
        assert list(session.stimulus_id) == ids
        np.testing.assert_array_equal(session.read(), responses)


def test_what_was_planted_is_read(folder):
    study = opened(folder)
    assert [one.space.subject for one in study.subjects] == ["anna", "bert"] and study.name == "mine"
    check(folder)
    check(folder, 1, "bert")
    assert study.split == {name: "test" if i < 3 else "train" for i, name in enumerate(IDS)}
    assert study.captions == {"captions": {name: [f"a {name}"] for name in IDS}}
    assert "The columns note of the trials are not used." in study.notices
    for name, picture in study.pictures.read(IDS, 8):
        np.testing.assert_array_equal(picture, np.asarray(Image.open(folder / f"pictures/{name}.png")))


@pytest.mark.parametrize("kind", ["sites first", "h5", "npz"])
def test_arrays_may_be_of_any_form(folder, kind):
    responses = np.load(folder / "anna.npy")
    if kind == "sites first":
        np.save(folder / "anna.npy", responses.T)
        for session in opened(folder).subjects[0].sessions:
            np.testing.assert_array_equal(session.read(), responses[session.number - 3 :: 2].astype(np.float32))
        return
    (folder / "anna.npy").rename(folder / "kept.npy")
    if kind == "h5":
        with h5py.File(folder / "anna.h5", "w") as file:
            file["betas"], file["others"] = responses, responses + 1
    else:
        np.savez(folder / "anna.npz", betas=responses, others=responses + 1)
    with pytest.raises(UserError, match="betas"):  # which of the two
        opened(folder, subjects=("anna",))
    study = opened(folder, subjects=("anna",), keys=("responses=betas",))
    for session in study.subjects[0].sessions:
        np.testing.assert_array_equal(session.read(), responses[session.number - 3 :: 2].astype(np.float32))


def test_it_is_prepared_to_what_a_spec_makes(folder, tmp_path):
    from brainjanus.data.prepare import PrepareConfig, prepare

    made = stream_study(opened(folder, subjects=("anna",)), tmp_path / "a", StreamOptions(image_size=8))
    spec = PrepareConfig(
        responses=(str(folder / "anna.npy"),), trials=str(folder / "anna_trials.tsv"), subject="anna",
        pictures=(str(folder / "pictures"),), captions=str(folder / "captions.json"), image_size=8,
    )  # fmt: skip
    other = prepare(spec, tmp_path / "b")
    assert made.stimulus_ids == tuple(IDS)

    def rows(data):
        ids = [name.removesuffix(".png") for name in data.trials("anna").stimulus_id]
        return {(name, *map(float, row)) for name, row in zip(ids, data.responses("anna"), strict=True)}

    assert rows(made) == rows(other)


def test_places_and_regions_come_along(folder):
    (folder / "anna_rois.json").write_text('{"V1": [0, 2]}')
    np.save(folder / "anna_coordinates.npy", np.arange(15.0).reshape(5, 3))
    mask = np.zeros((3, 3, 3), np.uint8)
    mask.reshape(-1)[4:9] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / "bert_mask.nii.gz")
    anna, bert = (one.space for one in opened(folder).subjects)
    assert anna.rois["V1"].tolist() == [True, False, True, False, False]
    np.testing.assert_array_equal(anna.coordinates_mm, read_array(str(folder / "anna_coordinates.npy")))
    assert bert.geometry is not None and bert.index.tolist() == [4, 5, 6, 7, 8]
    mask[:] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / "bert_mask.nii.gz")
    with pytest.raises(UserError, match="expected the 5 sites of bert, got 27 voxels"):
        opened(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "anna.npy").unlink(), r"expected .*anna\.npy \(or \.npz.*, got none"),
        (lambda p: np.save(p / "anna.npy", np.zeros((23, 5))), r"one axis of 24 trials.*\[23, 5\], where neither fits"),
        (lambda p: np.save(p / "anna.npy", np.zeros((24, 24))), r"\[24, 24\], where both fit\. Write a spec"),
        (lambda p: np.save(p / "anna.npy", np.zeros((24, 5, 2))), r"expected responses \[trials, sites\] of anna"),
        (lambda p: np.savez(p / "anna.npz", a=np.zeros(3)), "expected one of anna.npy, anna.npz, got 2 of them"),
        (lambda p: [file.unlink() for file in p.glob("*_trials.tsv")], r"expected SUBJECT_trials\.tsv"),
        (lambda p: spoil_split(p), "expected each stimulus in one split, for all subjects, got 's00' in test and tr"),
        (lambda p: (p / "captions.json").write_text('{"x": ["y"]}'), "captions.json: expected names of stimuli"),
        (lambda p: [file.rename(file.with_name(f"x{file.name}")) for file in (p / "pictures").iterdir()],
         "expected pictures named as the stimuli are"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        opened(folder)


def spoil_split(path):
    file = path / "bert_trials.tsv"
    file.write_text(file.read_text().replace("s00\t3\ttest", "s00\t3\ttrain"))


def test_one_of_pictures_and_captions_is_needed(folder):
    (folder / "pictures").rename(folder / "elsewhere")
    assert opened(folder).pictures is None
    (folder / "captions.json").unlink()
    with pytest.raises(UserError, match=r"expected pictures/ or captions\.json, or both, got neither"):
        opened(folder)
    with pytest.raises(UserError, match="--mask"):
        opened(folder, mask="V1")
