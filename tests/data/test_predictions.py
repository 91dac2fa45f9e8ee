"""Predictions of other software: every form gives the same ids and values, and rows are never matched by position."""

import json
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.readers.predictions import (
    read_caption_predictions,
    read_ids,
    read_picture_predictions,
    read_response_predictions,
)

RNG = np.random.default_rng(0)
IDS = ["b", "a", "c"]
VALUES = RNG.standard_normal((3, 5)).astype(np.float32)


def test_captions_come_as_strings_or_lists_of_one(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"1": "a dog", "2": ["a cat"]}))
    assert read_caption_predictions(tmp_path / "c.json") == {"1": "a dog", "2": "a cat"}
    (tmp_path / "c.tsv").write_text("stimulus_id\tcaption\n1\ta dog\n")
    assert read_caption_predictions(tmp_path / "c.tsv") == {"1": "a dog"}
    (tmp_path / "refs.json").write_text(json.dumps({"1": ["a dog", "one dog"]}))
    with pytest.raises(UserError, match=r"one predicted caption for each stimulus, got 2 for '1'\. Is it the file"):
        read_caption_predictions(tmp_path / "refs.json")


def write_array(folder, form):
    """The same three responses in one of the forms; returns the source and the file of ids, if one is needed."""
    ids = folder / "ids.txt"
    ids.write_text("\n".join(IDS) + "\n")
    match form:
        case "npy and --ids":
            np.save(folder / "r.npy", VALUES)
            return str(folder / "r.npy"), ids
        case "npy and txt beside":
            np.save(folder / "r.npy", VALUES)
            ids.rename(folder / "r.txt")
            return str(folder / "r.npy"), None
        case "npz":
            np.savez(folder / "r.npz", responses=VALUES, ids=np.array(IDS))
            return f"{folder}/r.npz:responses", None
        case "safetensors and rows.json":
            save_file({"responses": VALUES}, folder / "r.safetensors")
            (folder / "rows.json").write_text(json.dumps(IDS))
            return str(folder / "r.safetensors"), None
        case "safetensors keyed by id":
            save_file(dict(zip(IDS, VALUES, strict=True)), folder / "r.safetensors")
            return str(folder / "r.safetensors"), None
        case "ids in npy":
            np.save(folder / "r.npy", VALUES)
            np.save(folder / "names.npy", np.array(IDS))
            return str(folder / "r.npy"), folder / "names.npy"
    raise AssertionError(form)


@pytest.mark.parametrize(
    "form",
    [
        "npy and --ids",
        "npy and txt beside",
        "npz",
        "safetensors and rows.json",
        "safetensors keyed by id",
        "ids in npy",
    ],
)
def test_every_form_of_responses_gives_the_same(tmp_path, form):
    names, values = read_response_predictions(*write_array(tmp_path, form))
    assert {name: list(row) for name, row in zip(names, values, strict=True)} == {
        name: list(row) for name, row in zip(IDS, VALUES, strict=True)
    }
    assert values.dtype == np.float32


def test_nifti_is_read_with_the_voxels_of_the_space(tmp_path):
    voxels = np.array([0, 7, 3, 11, 20])
    affine = np.diag([2.0, 2, 2, 1])
    geometry = {"type": "volume", "shape": [2, 3, 4], "affine": affine.tolist()}
    space = BrainSpace("s1", 5, geometry=geometry, index=voxels)
    image = np.zeros((24, 3), np.float32)
    image[voxels] = VALUES.T
    nibabel.save(nibabel.Nifti1Image(image.reshape(2, 3, 4, 3), affine), tmp_path / "r.nii.gz")
    (tmp_path / "r.txt").write_text("\n".join(IDS))
    names, values = read_response_predictions(str(tmp_path / "r.nii.gz"), tmp_path / "r.txt", space)
    assert names == IDS
    assert np.array_equal(values, VALUES)
    with pytest.raises(UserError, match="expected a dataset whose subject is a volume"):
        read_response_predictions(str(tmp_path / "r.nii.gz"), tmp_path / "r.txt")


def test_rows_are_never_matched_by_their_position(tmp_path):
    np.save(tmp_path / "r.npy", VALUES)
    with pytest.raises(UserError, match=r"rows are never matched by their position\. Give --ids FILE .* r\.txt beside"):
        read_response_predictions(str(tmp_path / "r.npy"))
    (tmp_path / "ids.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"expected one id for each of the 3 rows of r\.npy, got 2"):
        read_response_predictions(str(tmp_path / "r.npy"), tmp_path / "ids.txt")


@pytest.mark.parametrize("values", [np.zeros((3, 5, 2)), np.zeros(5), np.array([["a"]])])
def test_other_arrays_are_refused(tmp_path, values):
    np.save(tmp_path / "r.npy", values)
    with pytest.raises(UserError, match=r"expected responses \[stimuli, sites\], got"):
        read_response_predictions(str(tmp_path / "r.npy"))


def test_tensors_of_several_lengths_are_refused(tmp_path):
    save_file({"a": np.zeros(3), "b": np.zeros(4)}, tmp_path / "r.safetensors")
    with pytest.raises(UserError, match=r"or one vector of the same length for each stimulus id, got shapes \[3\]"):
        read_response_predictions(str(tmp_path / "r.safetensors"))


def test_ids_are_text_or_json(tmp_path):
    (tmp_path / "i.json").write_text(json.dumps([10, 2]))
    assert read_ids(tmp_path / "i.json") == ["10", "2"]
    (tmp_path / "i.txt").write_text("10\n2\n")
    assert read_ids(tmp_path / "i.txt") == ["10", "2"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="expected a JSON list of stimulus ids"):
        read_ids(tmp_path / "bad.json")


# --- pictures -------------------------------------------------------------------------------------------------------

PICTURES = RNG.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", ["folder", "zip", "npy", "floats, channels first"])
def test_every_form_of_pictures_gives_the_same(tmp_path, form):
    ids = None
    if form in ("folder", "zip"):
        source = tmp_path / "pictures"
        source.mkdir()
        for name, picture in zip(IDS, PICTURES, strict=True):
            Image.fromarray(picture).save(source / f"{name}.png")
        if form == "zip":
            with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
                for file in source.iterdir():
                    archive.write(file, file.name)
            source = tmp_path / "p.zip"
    else:
        source, ids = tmp_path / "p.npy", tmp_path / "ids.txt"
        np.save(source, PICTURES if form == "npy" else PICTURES.transpose(0, 3, 1, 2) / 255)
        ids.write_text("\n".join(IDS))
    names, pictures = read_picture_predictions(str(source), ids)
    found = dict(zip(names, pictures, strict=True))
    assert found.keys() == set(IDS)
    assert all(np.array_equal(found[name], picture) for name, picture in zip(IDS, PICTURES, strict=True))


def test_pictures_that_cannot_be_compared_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"expected square pictures, got 6 x 4 pixels for 'a\.png'"):
        read_picture_predictions(str(tmp_path))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.bmp")
    with pytest.raises(UserError, match="several called 'a'"):
        read_picture_predictions(str(tmp_path))


def test_an_npz_needs_no_key_and_its_own_ids_come_first(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(["x", "y", "z"]))  # of something else
    np.savez(tmp_path / "r.npz", predictions=VALUES, ids=np.array(IDS))
    assert read_response_predictions(str(tmp_path / "r.npz"))[0] == IDS
    np.savez(tmp_path / "p.npz", pictures=PICTURES, names=np.array(IDS))
    assert read_picture_predictions(str(tmp_path / "p.npz"))[0] == IDS


def test_a_name_with_dots_has_a_list_of_its_own(tmp_path):
    for name in ("r.10samples", "r"):
        np.save(tmp_path / f"{name}.npy", VALUES)
    (tmp_path / "r.txt").write_text("x\ny\nz")
    (tmp_path / "r.10samples.txt").write_text("\n".join(IDS))
    assert read_response_predictions(str(tmp_path / "r.10samples.npy"))[0] == IDS


def test_lists_may_have_blanks_at_their_ends(tmp_path):
    (tmp_path / "i.txt").write_text("\ufeffa \n b\nc\n\n", encoding="utf-8")
    assert read_ids(tmp_path / "i.txt") == ["a", "b", "c"]


def test_a_json_with_a_mark_is_read_and_one_with_a_key_twice_is_not(tmp_path):
    (tmp_path / "c.json").write_text('\ufeff{"0": "a dog"}', encoding="utf-8")
    assert read_caption_predictions(tmp_path / "c.json") == {"0": "a dog"}
    (tmp_path / "c.json").write_text('{"0": "a dog", "0": "a cat"}')
    with pytest.raises(UserError, match="got 'the key '0' twice'"):
        read_caption_predictions(tmp_path / "c.json")


def test_nan_is_named_by_its_stimulus(tmp_path):
    values = VALUES.copy()
    values[1, 3] = np.nan
    np.savez(tmp_path / "r.npz", responses=values, ids=np.array(IDS))
    with pytest.raises(UserError, match=r"r\.npz.*got nan for stimulus 'a', site 3 \(1 in all\)"):
        read_response_predictions(str(tmp_path / "r.npz"))
