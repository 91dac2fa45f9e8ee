"""Requests become files: rows are named, files are whole, and what does not fit is refused in a sentence."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.outputs import generate_files, standardised, write
from brainjanus.run import RunConfig, train


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    few = {"steps": 2, "batch_size": 4}
    decoder = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    from brainjanus.core.config import from_dict

    config = from_dict(
        RunConfig,
        {
            "brain_tokenizer": {"width": 8, "depth": 0, "heads": 1, "patch_size": 8},
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
