"""Requests become files: rows are named, files are whole, and what does not fit is refused in a sentence."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.outputs import check_names, generate_files, picture_name, scale_of, standardised, write
from brainjanus.run import RunConfig, train


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    few = {"steps": 2, "batch_size": 4}
    decoder = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    from brainjanus.core.config import from_dict

    config = from_dict(
        RunConfig,
        {
            "brain_tokenizer": {"patch_size": 8, "patch": {"width": 8, "depth": 0, "heads": 1}},
            "brain_training": few,
            "image_tokenizer": {"image_size": study.image_size, "codes_per_side": 2, "width": 8, "blocks": 0},
            "image_training": few,
            "omni": {"decoder": decoder | {"num_key_value_heads": 2}},
            "training": {"optim": few},
        },
    )
    folder = tmp_path_factory.mktemp("outputs") / "run"
    train(study, folder, config)
    return folder


def test_captions_of_the_test_stimuli(run, study, tmp_path):
    out = generate_files(run, study, tmp_path / "out", source=["brain:s1"], target="text")
    captions = json.loads((out / "captions.json").read_text())
    assert list(captions) == study.averages("s1", "test").stimulus_ids


def test_pictures_of_named_stimuli(run, study, tmp_path):
    ids = study.averages("s1", "test").stimulus_ids[:2]
    out = generate_files(run, study, tmp_path / "out", source=["brain:s1"], target="image", ids=ids)
    assert {path.stem for path in (out / "pictures").iterdir()} == set(ids)
    with Image.open(out / "pictures" / f"{ids[0]}.png") as picture:
        assert picture.size == (study.image_size,) * 2


def test_a_response_to_a_sentence(run, study, tmp_path):
    caption = study.captions(study.stimulus_ids[0])[0]
    out = generate_files(run, study, tmp_path / "out", source=["text"], target="brain:s2", prompt=[caption])
    assert load_file(out / "responses.safetensors")["responses"].shape == (1, study.space("s2").num_sites)
    assert json.loads((out / "rows.json").read_text()) == ["0000"]


def test_a_response_to_a_picture_file(run, study, tmp_path):
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")
    files = [tmp_path / "red.png"]
    out = generate_files(run, study, tmp_path / "out", source=["image"], target="brain:s1", images=files)
    assert json.loads((out / "rows.json").read_text()) == ["red.png"]


def test_raw_responses_are_put_in_the_units_of_the_dataset(study, tmp_path):
    statistics = study.zscore("s1")
    raw = np.stack([statistics.mean.mean(axis=0), statistics.mean.mean(axis=0) + statistics.std.mean(axis=0)])
    np.save(tmp_path / "raw.npy", raw)
    np.testing.assert_allclose(standardised(study, "s1", tmp_path / "raw.npy"), [[0.0], [1.0]] + 0 * raw, atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_raw_files_become_the_responses_that_prepare_made_of_them(tmp_path, several):
    from brainjanus.data.prepare import PrepareConfig, SubjectFiles, prepare

    rng = np.random.default_rng(0)
    raw = rng.integers(-9000, 9000, (20, 6)).astype(np.int16)
    raw[:, 2] = 5
    np.save(tmp_path / "raw.npy", raw)
    np.savez(tmp_path / "pictures.npz", pictures=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    files = {"responses": (str(tmp_path / "raw.npy"),), "trials": "in-order", "scale": 300.0}
    who = {"subjects": (SubjectFiles(subject="a", **files),)} if several else files | {"subject": "a"}
    pictures = (f"{tmp_path}/pictures.npz:pictures",)
    config = PrepareConfig(pictures=pictures, image_size=8, zscore="all", drop_constant_sites=True, **who)
    dataset = prepare(config, tmp_path / "ds")
    assert scale_of(dataset, "a") == 300
    np.testing.assert_allclose(standardised(dataset, "a", tmp_path / "raw.npy"), dataset.responses("a"), atol=1e-5)
    np.save(tmp_path / "kept.npy", np.delete(raw, 2, axis=1))
    np.testing.assert_allclose(standardised(dataset, "a", tmp_path / "kept.npy"), dataset.responses("a"), atol=1e-5)
    np.save(tmp_path / "other.npy", raw[:, :4])
    with pytest.raises(UserError, match="1 constant sites were dropped when"):
        standardised(dataset, "a", tmp_path / "other.npy")


def test_what_prepare_did_not_make_has_no_scale(study):
    assert scale_of(study, "s1") == 1


def test_pictures_are_named_by_rows_without_the_suffix_of_a_picture():
    assert [picture_name(row) for row in ("a/b.PNG", "v1.5", "a cup")] == ["a_b", "v1.5", "a_cup"]


@pytest.mark.parametrize("rows", [["a b", "a_b"], ["cup.png", "cup.jpg"], ["cup", "Cup"], ["a", "a"]])
def test_rows_that_would_overwrite_each_other_are_refused(rows):
    with pytest.raises(UserError, match=f"got '{rows[0]}' and '{rows[1]}', which would overwrite"):
        check_names(rows, "image")


def test_picture_files_of_one_name_are_told_apart_by_their_paths(run, study, tmp_path):
    files = [tmp_path / side / "red.png" for side in ("left", "right")]
    for file in files:
        file.parent.mkdir()
        Image.new("RGB", (50, 30), "red").save(file)
    out = generate_files(run, study, tmp_path / "out", source=["image"], target="text", images=files)
    assert list(json.loads((out / "captions.json").read_text())) == [str(file) for file in files]


def test_ids_from_several_splits_are_refused(run, study, tmp_path):
    ids = [study.averages("s1", split).stimulus_ids[0] for split in ("test", "train")]
    with pytest.raises(UserError, match=rf"all --ids from one split, got {ids[0]} \(test\), {ids[1]} \(train\)"):
        generate_files(run, study, tmp_path / "out", source=["brain:s1"], target="text", ids=ids)


def test_a_run_without_pictures_refuses_them_in_a_sentence(run, study, tmp_path, monkeypatch):
    from brainjanus import outputs

    checkpoint = outputs.Checkpoint.load(run)
    object.__setattr__(checkpoint.tokenizers, "image", None)  # frozen
    monkeypatch.setattr(outputs.Checkpoint, "load", lambda run: checkpoint)
    with pytest.raises(UserError, match="expected a modality that the model was trained on"):
        generate_files(run, study, tmp_path / "out", source=["image"], target="brain:s1", images=[tmp_path / "a.png"])


def test_a_space_with_a_volume_gets_a_nifti(tmp_path, monkeypatch):
    import nibabel
    import torch

    from brainjanus.core.space import BrainSpace

    geometry = {"type": "volume", "shape": [2, 2, 2], "affine": np.eye(4).tolist()}
    space = BrainSpace("a", 3, geometry=geometry, index=np.array([0, 3, 7]))
    monkeypatch.setattr(Dataset, "__init__", lambda self: None)
    monkeypatch.setattr(Dataset, "space", lambda self, subject: space)
    write(tmp_path, torch.arange(6.0).view(2, 3), ["x", "y"], "brain:a", Dataset())
    volumes = nibabel.load(tmp_path / "responses.nii.gz").get_fdata()
    assert volumes.shape == (2, 2, 2, 2)
    assert volumes[1, 1, 1].tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"source": ["text"], "target": "brain:s9", "prompt": ["a"]}, "s9"),
        ({"source": ["brain:s1"], "target": "text", "prompt": ["a"]}, "--prompt: expected 'text' among the sources"),
        ({"source": ["text", "image"], "target": "brain:s1", "prompt": ["a"]}, "cannot be paired"),
        ({"source": ["text"], "target": "brain:s1", "responses": "x.npy"}, "expected exactly one brain"),
        ({"source": ["brain:s1"], "target": "text", "ids": ["nobody"]}, "nobody"),
        ({"source": ["text"], "target": "brain:s1", "prompt": ["a"], "ids": ["s000"]}, "got 1 ids beside --images"),
        ({"source": ["text", "text"], "target": "image"}, "expected at least one source, each once, got text, text"),
        ({"source": [], "target": "image"}, "expected at least one source, each once, got none"),
        ({"source": ["text"], "target": "image", "ids": ["s000", "s000"]}, "got 's000' and 's000'"),
        ({"source": ["image"], "target": "brain:s1", "images": ["gone.png"]}, "expected a picture file"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(run, study, tmp_path, request_, sentence):
    from pathlib import Path

    request_ = dict(request_)
    for name in ("images",):
        request_[name] = [Path(path) for path in request_.get(name, [])]
    if "responses" in request_:
        request_["responses"] = Path(request_["responses"])
    with pytest.raises(UserError, match=sentence):
        generate_files(run, study, tmp_path / "out", **request_)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_touched(run, study, tmp_path):
    with pytest.raises(UserError, match="expected a new folder"):
        generate_files(run, study, tmp_path, source=["brain:s1"], target="text")
