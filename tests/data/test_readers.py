"""Every foreign format is read as its program wrote it; every damaged file is named in one sentence."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import savemat

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.readers.nifti import read_betas, read_mask, read_roi, volume_of
from brainjanus.data.readers.pictures import fit, picture_names, read_pictures
from brainjanus.data.readers.tables import (
    read_captions,
    read_coordinates,
    read_features,
    read_rois,
    read_trials,
)

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_array(folder: Path, kind: str) -> str:
    file = folder / f"a.{kind}"
    if kind == "npy":
        np.save(file, MATRIX)
    elif kind == "npz":
        np.savez(file, betas=MATRIX)
    elif kind == "mat":
        savemat(file, {"betas": MATRIX})
    elif kind == "safetensors":
        save_file({"betas": MATRIX}, file)
    else:
        with h5py.File(file, "w") as out:
            out["betas"] = MATRIX
    return str(file)


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "safetensors", "h5", "hdf5"])
def test_the_only_array_of_a_file_needs_no_key(tmp_path, kind):
    np.testing.assert_array_equal(read_array(write_array(tmp_path, kind)), MATRIX)


def external_storage(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("betas", (3, 4), np.float32, external=[(str(elsewhere), 0, 48)])


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((3, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(elsewhere), "betas", (3, 4))
    file.create_virtual_dataset("betas", layout)


def external_link(file: h5py.File, elsewhere: Path) -> None:
    file["betas"] = h5py.ExternalLink(str(elsewhere), "betas")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (external_storage, "got one that refers to other files"),
        (virtual, "got one that refers to other files"),
        (external_link, "expected the key"),
    ],
)
def test_hdf5_opens_no_other_file(tmp_path, point, message):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["betas"] = MATRIX
    with h5py.File(tmp_path / "a.h5", "w") as file:
        point(file, tmp_path / "secret.h5")
    with pytest.raises(UserError, match=message):
        read_array(f"{tmp_path / 'a.h5'}:betas")


@pytest.mark.parametrize("kind", ["npz", "mat", "safetensors", "h5"])
def test_keys_name_arrays_and_wrong_ones_are_refused(tmp_path, kind):
    source = write_array(tmp_path, kind)
    np.testing.assert_array_equal(read_array(f"{source}:betas"), MATRIX)
    with pytest.raises(UserError, match=r"expected the key of one of its arrays \(betas\), got 'bold'"):
        read_array(f"{source}:bold")


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "safetensors", "h5"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_arrays_are_refused(tmp_path, kind, keep):
    file = Path(write_array(tmp_path, kind))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(UserError, match=r"a\.\w+: expected .*\. The file is truncated or of another kind"):
        read_array(f"{file}")


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "safetensors", "h5"])
def test_empty_and_missing_files_are_refused(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    with pytest.raises(UserError, match="expected a file, got none there"):
        read_array(str(file))
    file.touch()
    with pytest.raises(UserError, match="expected data, got an empty file"):
        read_array(str(file))


def test_matlab_structs_are_read_with_dots(tmp_path):
    savemat(tmp_path / "s.mat", {"stack": {"betas": MATRIX, "inner": {"mask": MATRIX[0]}}})
    np.testing.assert_array_equal(read_array(f"{tmp_path}/s.mat:stack.betas"), MATRIX)
    np.testing.assert_array_equal(read_array(f"{tmp_path}/s.mat:stack.inner.mask"), MATRIX[:1])
    with pytest.raises(UserError, match=r"a field that its struct has \(betas, inner\), got 'beta'"):
        read_array(f"{tmp_path}/s.mat:stack.beta")
    with pytest.raises(UserError, match=r"got a struct, .*\(fields: betas, inner\)"):
        read_array(f"{tmp_path}/s.mat:stack")


def test_matlab_7_3_has_its_axes_turned_back(tmp_path):
    with h5py.File(tmp_path / "v.mat", "w", userblock_size=512) as out:
        out["stack/betas"] = MATRIX.T  # as MATLAB stores a matrix
    with open(tmp_path / "v.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    np.testing.assert_array_equal(read_array(f"{tmp_path}/v.mat:stack.betas"), MATRIX)


def test_pickles_and_unknown_formats_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="got Python objects, which are never unpickled"):
        read_array(f"{tmp_path}/o.npy")
    with pytest.raises(UserError, match=r"expected an array file .*got '.pkl'"):
        read_array(f"{tmp_path}/o.pkl")


# ---- pictures


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def pictures(num: int = 3, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def write_pictures(folder: Path, kind: str, images: np.ndarray) -> str:
    files = {f"set/{i}.png": png(image) for i, image in enumerate(images)}
    path = folder / f"p.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in reversed(files):
                archive.writestr(name, files[name])
            archive.writestr("__MACOSX/set/._0.png", b"no picture")
            archive.writestr("readme.txt", b"no picture")
    elif kind.startswith("tar"):
        with tarfile.open(path, "w:" + kind[4:]) as archive:
            for name in reversed(files):
                info = tarfile.TarInfo(name)
                info.size = len(files[name])
                archive.addfile(info, io.BytesIO(files[name]))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return str(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.xz"])
def test_pictures_come_out_of_folders_and_archives(tmp_path, kind):
    images = pictures()
    source = write_pictures(tmp_path, kind, images)
    assert picture_names(source) == ["set/0.png", "set/1.png", "set/2.png"]
    found = dict(read_pictures(source, ["set/2.png", "set/0.png"], 8))
    assert found.keys() == {"set/2.png", "set/0.png"}
    np.testing.assert_array_equal(found["set/2.png"], images[2])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "float"])
def test_pictures_come_out_of_arrays(tmp_path, layout):
    images = pictures()
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "float": images / np.float32(255)}[layout]
    with h5py.File(tmp_path / "p.h5", "w") as out:
        out["brick"] = stored
    assert picture_names(f"{tmp_path}/p.h5:brick") == ["0", "1", "2"]
    for name, image in read_pictures(f"{tmp_path}/p.h5:brick", ["0", "2"], 8):
        np.testing.assert_array_equal(image, images[int(name)])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 5, 3), np.uint8), r"expected RGB pictures .*got \[2, 3, 5, 3\]"),
        (np.zeros((2, 5, 5), np.uint8), r"expected RGB pictures .*got \[2, 5, 5\]"),
        (np.zeros((2, 5, 5, 3), np.int64), "expected pictures as uint8, or as floats from 0 to 1, got int64"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, array, message):
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(UserError, match=message):
        picture_names(f"{tmp_path}/p.npy")


def test_floats_beyond_one_are_refused_by_picture(tmp_path):
    images = np.zeros((2, 5, 5, 3), np.float32)
    images[1, 0] = -2
    np.save(tmp_path / "p.npy", images)
    with pytest.raises(UserError, match=r"picture 1: expected floats from 0 to 1, got values from -2 to 0"):
        list(read_pictures(f"{tmp_path}/p.npy", ["0", "1"], 5))


def test_the_square_in_the_centre_is_resized_without_aliasing():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    np.testing.assert_array_equal(fit(Image.fromarray(wide), 20), 200)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit(Image.fromarray(stripes), 16)[2:-2, 2:-2].astype(int) - 127).max() < 4


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.8])
def test_truncated_archives_are_refused(tmp_path, kind, keep):
    source = write_pictures(tmp_path, kind, pictures(4, 64))
    whole = Path(source).read_bytes().rstrip(b"\0")
    Path(source).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"p\.[\w.]+: expected .*\. The file is truncated or of another kind"):
        picture_names(source)


def test_a_tar_that_was_cut_between_two_members_is_refused(tmp_path):
    source = write_pictures(tmp_path, "tar", pictures())
    with tarfile.open(source) as archive:
        last = archive.getmembers()[-1]
    Path(source).write_bytes(Path(source).read_bytes()[: last.offset])
    with pytest.raises(UserError, match="no end of archive"):
        picture_names(source)


def test_a_damaged_member_of_a_zip_is_refused(tmp_path):
    source = write_pictures(tmp_path, "zip", pictures())
    content = bytearray(Path(source).read_bytes())
    content[80] ^= 255
    Path(source).write_bytes(content)
    with pytest.raises(UserError, match=r"a whole zip archive, with set/2.png, got 'Bad CRC-32"):
        list(read_pictures(source, ["set/2.png"], 8))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "c.png").write_bytes(png(pictures(1, 64)[0])[:-2000])
    for name in ("b.jpg", "c.png"):
        with pytest.raises(
            UserError, match=rf"{name}: expected a picture, got \d+ bytes that cannot be decoded"
        ) as info:
            list(read_pictures(str(tmp_path), [name], 8))
        assert "BytesIO" not in str(info.value)


def test_transparent_and_deep_pictures_are_refused_opaque_ones_taken(tmp_path):
    clear = np.full((8, 8, 4), 255, np.uint8)
    (tmp_path / "opaque.png").write_bytes(png(clear))
    assert next(read_pictures(str(tmp_path), ["opaque.png"], 8))[1].shape == (8, 8, 3)
    clear[0, 0, 3] = 0
    (tmp_path / "clear.png").write_bytes(png(clear))
    with pytest.raises(UserError, match=r"clear.png: expected an opaque picture"):
        list(read_pictures(str(tmp_path), ["clear.png"], 8))
    (tmp_path / "deep.png").write_bytes(png(np.zeros((8, 8), np.uint16)))
    with pytest.raises(UserError, match=r"deep.png: expected 8 bits a channel, got a picture of mode 'I"):
        list(read_pictures(str(tmp_path), ["deep.png"], 8))


def test_a_place_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected pictures .*got none"):
        picture_names(str(tmp_path))
    (tmp_path / "p.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected a folder, a zip or tar archive, or an array, of pictures"):
        picture_names(f"{tmp_path}/p.zip")
    (tmp_path / "p.zip").write_bytes(b"")
    with pytest.raises(UserError, match="got an empty file"):
        picture_names(f"{tmp_path}/p.zip")


# ---- NIfTI

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])


def nifti(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return str(path)


@pytest.fixture
def brain(tmp_path):
    rng = np.random.default_rng(0)
    mask = rng.random((4, 5, 6)) > 0.5
    betas = rng.normal(size=(4, 5, 6, 7)).astype(np.float32)
    return mask, betas, read_mask(nifti(tmp_path / "mask.nii.gz", mask.astype(np.uint8)))


def test_betas_are_those_of_the_masks_voxels_of_all_images_in_order(brain, tmp_path):
    mask, betas, volume = brain
    images = [nifti(tmp_path / "1.nii.gz", betas[..., :3]), nifti(tmp_path / "2.nii", betas[..., 3:])]
    np.testing.assert_array_equal(read_betas(images, volume), betas[mask].T)


def test_coordinates_follow_the_affine_and_predictions_go_back(brain):
    mask, _, volume = brain
    np.testing.assert_allclose(
        volume.coordinates_mm, nibabel.affines.apply_affine(AFFINE, np.argwhere(mask)), rtol=1e-6
    )
    space = BrainSpace("s", int(mask.sum()), geometry=volume.geometry, index=volume.voxels)
    values = np.arange(mask.sum(), dtype=np.float32)
    np.testing.assert_array_equal(space.to_nifti(values).get_fdata()[mask], values)


def test_voxels_in_matlabs_order(brain):
    mask, betas, _ = brain
    volume = volume_of(mask, AFFINE, "F")
    as_matlab = betas[..., 0].reshape(-1, order="F")[mask.reshape(-1, order="F")]
    np.testing.assert_array_equal(betas[..., 0].reshape(-1)[volume.voxels], as_matlab)


def test_roi_images_are_read_on_the_masks_grid(brain, tmp_path):
    mask, betas, volume = brain
    image = nifti(tmp_path / "roi.nii.gz", betas[..., 0])
    np.testing.assert_array_equal(read_roi(image, volume), betas[..., 0][mask] > 0)
    np.testing.assert_array_equal(read_rois([f"V1={image}"], int(mask.sum()), volume)["V1"], betas[..., 0][mask] > 0)
    with pytest.raises(UserError, match="expected NAME=IMAGE and a mask to read it with, got no mask"):
        read_rois([f"V1={image}"], 3, None)


def test_images_that_do_not_fit_the_mask_are_refused(brain, tmp_path):
    _, betas, volume = brain
    with pytest.raises(UserError, match="expected a 4-D image of betas"):
        read_betas([nifti(tmp_path / "a.nii", betas[..., 0])], volume)
    with pytest.raises(UserError, match=r"expected the mask's grid, \[4, 5, 6\] with its affine, got \[3, 5, 6\]\."):
        read_betas([nifti(tmp_path / "b.nii", betas[:3])], volume)
    with pytest.raises(UserError, match=r"got \[4, 5, 6\] with another affine"):
        read_betas([nifti(tmp_path / "c.nii", betas, np.eye(4))], volume)
    with pytest.raises(UserError, match=r"expected a 3-D mask with voxels above 0, got shape .* with 0"):
        read_mask(nifti(tmp_path / "d.nii", np.zeros((4, 5, 6), np.float32)))


@pytest.mark.parametrize("name", ["t.nii", "t.nii.gz"])
def test_truncated_images_are_refused(brain, tmp_path, name):
    _, betas, volume = brain
    file = Path(nifti(tmp_path / name, betas))
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"expected a NIfTI image, got .* truncated or of another kind"):
        read_betas([str(file)], volume)


# ---- tables


def text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def test_trials_keep_what_is_there_and_tell_what_is_not_used(tmp_path):
    table = read_trials(text(tmp_path, "t.tsv", "\ufeffonset\tstimulus_id\tsession\n0.5\ta\t1\n2.5\tb\t2\n"))
    assert table.stimulus_id == ["a", "b"]
    assert table.columns["session"].tolist() == [1, 2]
    assert table.columns.keys() == {"session"}
    assert table.ignored == ["onset"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got an empty file"),
        ("stimulus_id,session\na,1\n", r"columns stimulus_id, each once, got stimulus_id,session\. .*tabs"),
        ("stimulus_id\tsession\na\n", r"expected 2 cells in each row, .*got \['a'\] in row 1"),
        ("stimulus_id\tsession\n\t1\n", "none empty in 'stimulus_id'"),
        ("stimulus_id\tsession\na\tone\n", "expected whole numbers in 'session', got 'one' in row 1"),
        ("stimulus_id\n", "expected rows after the header, got none"),
        ("stimulus_id\tstimulus_id\na\tb\n", "each once"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_trials(text(tmp_path, "t.tsv", content))


def test_captions_from_json_and_tsv(tmp_path):
    expected = {"a": ["one", "two"], "b": ["three"]}
    assert read_captions(text(tmp_path, "c.json", '{"a": ["one", "two"], "b": "three"}')) == expected
    assert read_captions(text(tmp_path, "c.tsv", "stimulus_id\tcaption\na\tone\na\ttwo\nb\tthree\n")) == expected
    with pytest.raises(UserError, match=r"expected a list of captions for each stimulus id, got 3 for 'a'"):
        read_captions(text(tmp_path, "d.json", '{"a": 3}'))
    with pytest.raises(UserError, match="expected a JSON object, got"):
        read_captions(text(tmp_path, "e.json", "["))


def test_coordinates_from_tsv_and_array(tmp_path):
    xyz = np.array([[1, 2, 3], [4, 5, 6.5]], np.float32)
    np.testing.assert_array_equal(read_coordinates(str(text(tmp_path, "c.tsv", "x\ty\tz\n1\t2\t3\n4\t5\t6.5\n"))), xyz)
    np.save(tmp_path / "c.npy", xyz)
    np.testing.assert_array_equal(read_coordinates(f"{tmp_path}/c.npy"), xyz)
    np.save(tmp_path / "d.npy", xyz.T)
    with pytest.raises(UserError, match=r"expected coordinates \[sites, 3\] in mm, got float32 \[3, 2\]"):
        read_coordinates(f"{tmp_path}/d.npy")
    with pytest.raises(UserError, match="expected numbers in x, y and z"):
        read_coordinates(str(text(tmp_path, "e.tsv", "x\ty\tz\n1\t2\tthree\n")))


def test_rois_from_json_tsv_and_labels(tmp_path):
    expected = {"V1": [True, True, False], "V2": [False, True, True]}

    def found(source) -> dict:
        return {name: mask.tolist() for name, mask in read_rois([str(source)], 3, None).items()}

    assert found(text(tmp_path, "r.json", json.dumps({"V1": [0, 1], "V2": [1, 2]}))) == expected
    assert found(text(tmp_path, "r.tsv", "site\troi\n0\tV1\n1\tV1\n1\tV2\n2\tV2\n")) == expected
    np.save(tmp_path / "r.npy", np.array(["V1", "", "V2"]))
    assert found(tmp_path / "r.npy") == {"V1": [True, False, False], "V2": [False, False, True]}
    with pytest.raises(UserError, match="expected sites from 0 to 2 in ROI V1, got 3"):
        found(text(tmp_path, "s.json", '{"V1": [3]}'))
    with pytest.raises(UserError, match="expected a list of sites for each ROI, got 3 for V1"):
        found(text(tmp_path, "n.json", '{"V1": 3}'))
    with pytest.raises(UserError, match="in ROI V1, got True"):
        found(text(tmp_path, "b.json", '{"V1": [true]}'))


def test_features_come_with_names(tmp_path):
    values = np.arange(12, dtype=np.float16).reshape(2, 3, 2)
    np.savez(tmp_path / "f.npz", names=np.array(["a.png", "b.png"]), features=values)
    np.save(tmp_path / "g.npy", values)
    text(tmp_path, "g.txt", "a.png\nb.png\n")
    for source in ("f.npz", "g.npy"):
        names, found = read_features(f"{tmp_path}/{source}")
        assert names == ["a.png", "b.png"]
        np.testing.assert_array_equal(found, values)
    np.save(tmp_path / "g.npy", values[:, 0])
    assert read_features(f"{tmp_path}/g.npy")[1].shape == (2, 1, 2)
    text(tmp_path, "g.txt", "a.png\n")
    with pytest.raises(
        UserError, match=r"expected float features \[1 names, tokens, channels\], got float16 \[2, 1, 2\]"
    ):
        read_features(f"{tmp_path}/g.npy")
