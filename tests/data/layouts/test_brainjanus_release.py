"""The release of BrainJanus in small: bfloat16 without torch, keys that are unpublished, ids that are never guessed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.readers.tensors import as_bfloat16, as_float32
from brainjanus.data.study import StudyOptions

from .conftest import FAR, NUM_VOXELS, SIZE, Planted, read_all, read_all_pictures


def test_bfloat16_is_that_of_torch():
    values = np.random.default_rng(0).normal(0, 1e3, 5000).astype(np.float32)
    values[:6] = 0.0, -0.0, 1e-40, 3e38, 1.00390625, 1.01171875  # the last two lie between two bfloat16
    theirs = torch.from_numpy(values).bfloat16()
    ours = as_bfloat16(values)
    np.testing.assert_array_equal(ours, theirs.view(torch.uint16).numpy())
    np.testing.assert_array_equal(as_float32(ours, "BF16"), theirs.float().numpy())


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().float().numpy()


def build(root: Path, planted: Planted, voxels: str = "voxels", ids: str = "ids", channels_first: bool = True) -> Path:
    for folder in ("voxel", "image", "captions"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shared = np.isin(planted.image, sorted(planted.shared))

    def save(name: str, responses: np.ndarray, images: np.ndarray) -> None:
        tensors = {voxels: torch.from_numpy(responses).bfloat16(), ids: torch.from_numpy(images)}
        save_file(tensors, root / f"voxel/subj01_{name}_bf16.safetensors")

    save("train", planted.responses()[~shared], planted.image[~shared])
    for name, rows in (("train_avg", ~shared), ("test_avg", shared)):
        images = np.random.default_rng(4).permutation(np.unique(planted.image[rows]))
        save(name, np.stack([planted.responses()[planted.image == i].mean(axis=0) for i in images]), images)
    pixels = np.zeros((73_000, SIZE, SIZE, 3), np.uint8)
    for image, picture in planted.pixels.items():
        pixels[image] = picture
    stored = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy() if channels_first else pixels)
    save_file({"images": stored}, root / "image/nsd_stimuli_384_uint8.safetensors")
    texts = {str(image): [f"picture {image}"] for image in planted.pixels}
    (root / "captions/git-large.json").write_text(json.dumps(texts))
    return root


@pytest.fixture
def root(tmp_path: Path, planted: Planted) -> Path:
    return build(tmp_path, planted)


def open_it(root: Path, **options):
    return open_study("brainjanus", root, StudyOptions(**options))


def expected(planted: Planted) -> tuple[list[str], np.ndarray]:
    shared = np.isin(planted.image, sorted(planted.shared))
    images = np.random.default_rng(4).permutation(np.unique(planted.image[shared]))
    means = [planted.responses()[planted.image == i].mean(axis=0) for i in images]
    names = [name for name, test in zip(planted.names, shared, strict=True) if not test]
    return names + [f"nsd-{i:05}" for i in images], rounded(np.concatenate([planted.responses()[~shared], means]))


def test_what_was_planted_is_read(root, planted):
    study = open_it(root)
    names, session, _, responses = read_all(study)
    assert names == expected(planted)[0]
    assert sorted(set(session.tolist())) == [1, 2]  # parts: of train, of test
    np.testing.assert_array_equal(responses, expected(planted)[1])
    assert study.split == planted.split
    assert study.zscore == "all"
    assert any("subj01_test_avg_bf16.safetensors has averages over repeats" in notice for notice in study.notices)
    assert not any("train_avg" in notice for notice in study.notices)


@pytest.mark.parametrize("channels_first", [True, False])
def test_pictures_go_by_73k_id(tmp_path, planted, channels_first):
    pictures = read_all_pictures(open_it(build(tmp_path, planted, channels_first=channels_first)))
    assert f"nsd-{FAR}" in pictures
    for image, pixels in planted.pixels.items():
        np.testing.assert_array_equal(pictures[f"nsd-{image:05}"], pixels)


def test_pictures_are_read_one_by_one_and_not_mapped(root, planted):
    pictures = open_it(root).pictures
    reading = pictures.read(list(pictures.ids), SIZE)
    for _ in range(3):
        next(reading)
    assert "nsd_stimuli_384" not in Path("/proc/self/maps").read_text()  # pages of a map count until it is closed
    file = root / "image/nsd_stimuli_384_uint8.safetensors"
    file.write_bytes(file.read_bytes()[:-SIZE])  # while it is read
    with pytest.raises(UserError, match="expected a safetensors file, got 'an end in row 72999'"):
        list(reading)


def test_a_source_of_the_release_is_not_replaced(root, planted):
    (root / "other.json").write_text(json.dumps({str(image): "another" for image in planted.pixels}))
    with pytest.raises(UserError, match=r"expected a name that no other source has, got 'git-large' again"):
        open_it(root, captions=(f"git-large={root / 'other.json'}",))


def test_captions_go_by_73k_id(root, planted):
    captions = open_it(root).captions["git-large"]
    assert captions == {f"nsd-{image:05}": [f"picture {image}"] for image in planted.pixels}


def test_captions_of_another_form_are_left_out_and_said(root):
    (root / "captions/odd.json").write_text("[1, 2]")
    study = open_it(root)
    assert set(study.captions) == {"git-large"}
    assert any("captions/odd.json was left out" in notice for notice in study.notices)


def test_the_only_tensors_of_their_forms_need_no_names(tmp_path, planted):
    names, _, _, responses = read_all(open_it(build(tmp_path, planted, "a", "b")))
    assert names == expected(planted)[0]
    np.testing.assert_array_equal(responses, expected(planted)[1])


def add(root: Path, **tensors: torch.Tensor) -> None:
    from safetensors.torch import load_file

    for file in (root / "voxel").iterdir():
        content = load_file(file)
        num_rows = len(next(iter(content.values())))
        save_file(content | {name: tensor[:num_rows].clone() for name, tensor in tensors.items()}, file)


def test_keys_say_what_names_do_not(tmp_path, planted):
    build(tmp_path, planted, "a", "b")
    add(tmp_path, z=torch.zeros(100, dtype=torch.int64))
    with pytest.raises(
        UserError, match=r"got the tensors a BF16 \[68, 7\], b I64 \[68\], z I64 \[68\].*--keys ids=KEY"
    ):
        open_it(tmp_path)
    assert read_all(open_it(tmp_path, keys=("ids=b",)))[0] == expected(planted)[0]
    with pytest.raises(UserError, match="called 'c', got the tensors"):
        open_it(tmp_path, keys=("ids=c",))
    with pytest.raises(UserError, match="--keys: expected NAME=KEY with NAME one of voxels"):
        open_it(tmp_path, keys=("stimuli=c",))


def test_without_ids_nothing_is_guessed(root, planted):
    for file in (root / "voxel").iterdir():
        save_file({"voxels": torch.zeros(68, NUM_VOXELS, dtype=torch.bfloat16)}, file)
    with pytest.raises(UserError, match=r"expected 73k ids \[trials\] called ids"):
        open_it(root)


def test_sessions_are_kept_where_they_are_there(root, planted):
    shared = np.isin(planted.image, sorted(planted.shared))
    add(root, session=torch.from_numpy(planted.session[~shared]), run=torch.from_numpy(planted.run[~shared]))
    study = open_it(root)
    names, session, run, responses = read_all(study)
    assert study.zscore == "session"
    assert sorted(zip(names, responses.tolist(), strict=True)) == sorted(
        zip(expected(planted)[0], expected(planted)[1].tolist(), strict=True)
    )
    train = [(n, s, r) for n, s, r in zip(names, session, run, strict=True) if study.split[n] == "train"]
    assert train == [
        (n, s, r) for n, s, r, test in zip(planted.names, planted.session, planted.run, shared, strict=True) if not test
    ]


def test_wrong_files_are_one_sentence(root, planted):
    file = root / "voxel/subj01_train_bf16.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="expected a safetensors file"):
        open_it(root)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="expected a safetensors file"):
        open_it(root)
    images = np.where(planted.image == FAR, 73_000, planted.image)[:68]
    save_file({"voxels": torch.zeros(68, NUM_VOXELS).bfloat16(), "ids": torch.from_numpy(images)}, file)
    if 73_000 in images:
        with pytest.raises(UserError, match=r"expected 73k ids from 0 to 72999, got 73000. Does it count from 1"):
            open_it(root)
    save_file({"voxels": torch.zeros(68, NUM_VOXELS + 1).bfloat16(), "ids": torch.arange(68) + 10}, file)
    with pytest.raises(UserError, match=r"voxels, as in|in one split"):
        open_it(root)
    file.unlink()
    (root / "voxel/subj01_train_avg_bf16.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected subj01_train_bf16.safetensors or subj01_train_avg_bf16"):
        open_it(root)


def test_averages_are_read_where_there_are_no_trials(root, planted):
    (root / "voxel/subj01_train_bf16.safetensors").unlink()
    study = open_it(root)
    names, _, _, responses = read_all(study)
    assert len(names) == len(set(names)) == 32
    for name, response in zip(names, responses, strict=True):
        mean = planted.responses()[planted.image == int(name[4:])].mean(axis=0)
        np.testing.assert_array_equal(response, rounded(mean))
    assert any("subj01_train_avg_bf16.safetensors has averages" in notice for notice in study.notices)
