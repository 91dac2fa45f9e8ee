"""The wavelet encoder sees what it should: colours, orientations and scales, at their places."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.vision import (
    GRID,
    ORIENTATIONS,
    WAVELENGTHS_PX,
    gabor_pairs,
    pooled,
    vision_encoder,
    wavelet,
)

COLOURS = 3


def grating(wavelength, orientation, phase=0.0):
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    angle = math.pi * orientation / ORIENTATIONS
    wave = torch.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength + phase)
    return (0.5 + 0.5 * wave).expand(1, 3, 64, 64)


def cells(pixels):
    """The features, laid out again as cells [b, channels, y, x]; a token may be a square of several cells."""
    features = wavelet(pixels)
    side = math.isqrt(features.shape[1])
    return F.pixel_shuffle(features.transpose(1, 2).unflatten(2, (side, side)), GRID // side)


def inner(pixels):
    """The mean over the cells away from the border."""
    return cells(pixels)[0, :, 2:-2, 2:-2].mean(dim=(1, 2))


@pytest.mark.parametrize("scale", range(len(WAVELENGTHS_PX)))
@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_grating_is_strongest_in_its_own_channel(scale, orientation):
    energy = inner(grating(WAVELENGTHS_PX[scale], orientation))[COLOURS:]
    assert int(energy.argmax()) == scale * ORIENTATIONS + orientation


@pytest.mark.parametrize("wavelength", WAVELENGTHS_PX)
def test_a_pair_of_filters_has_the_same_energy_at_every_phase(wavelength):
    even, odd = gabor_pairs(wavelength)[2:4, 0]  # of orientation 1
    half = len(even) // 2
    energies = []
    for phase in (0.0, 0.5, 1.0, 1.5):
        patch = grating(wavelength, 1, phase)[0, 0, 32 - half : 33 + half, 32 - half : 33 + half]
        energies.append(float((patch * even).sum() ** 2 + (patch * odd).sum() ** 2))
    assert max(energies) / min(energies) < 1.2


def test_a_uniform_picture_has_colour_and_no_energy():
    orange = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 32, 32)
    seen = cells(orange)[0].flatten(1)
    torch.testing.assert_close(seen[:COLOURS, 0], torch.tensor([0.5, 0.5, -0.75]))
    torch.testing.assert_close(seen, seen[:, :1].expand(-1, GRID**2), atol=1e-3, rtol=0)
    assert seen[COLOURS:].abs().max() < 1e-3


def test_cells_lie_row_by_row():
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, 8:16, 24:32] = 1
    assert int(cells(picture)[0, 0].argmax()) == GRID + 3


@pytest.mark.parametrize("size", [16, 64, 100])
def test_any_size_gives_the_same_grid(size):
    assert cells(torch.rand(2, 3, size, size)).shape == (2, COLOURS + ORIENTATIONS * len(WAVELENGTHS_PX), GRID, GRID)


def test_filters_have_unit_energy_and_no_response_to_a_uniform_field():
    for wavelength in WAVELENGTHS_PX:
        kernels = gabor_pairs(wavelength)
        torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.ones(2 * ORIENTATIONS))
        assert kernels.flatten(1).sum(dim=1).abs().max() < 1e-5


def test_an_unknown_encoder_is_named():
    assert vision_encoder("wavelet") is wavelet
    with pytest.raises(
        UserError,
        match=r"vision encoder 'clip': expected one that is built in or was added \(wavelet, transformers:NAME\)",
    ):
        vision_encoder("clip")


# --- models of transformers


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny vision transformer with a class token before its 4 x 4 grid, as `transformers` writes it."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit") / "vit.tiny"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_model_of_transformers_gives_the_tokens_of_its_last_layer(vit):
    from transformers import ViTModel

    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        model = ViTModel.from_pretrained(vit, add_pooling_layer=False)
        expected = model((pixels - mean) / std).last_hidden_state
    encode = vision_encoder(f"transformers:{vit}")
    assert expected.shape == (2, 17, 16)
    assert torch.allclose(encode(pixels), expected, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encode.parameters())
    assert encode(torch.rand(1, 3, 40, 40)).shape == (1, 17, 16)  # of any size
    assert vision_encoder(f"transformers:{vit}") is encode  # read once


def test_tokens_are_averaged_to_as_many_as_wanted(vit):
    pixels = torch.rand(2, 3, 16, 16)
    whole, few = (vision_encoder(f"transformers:{vit}{most}")(pixels) for most in ("", "@5"))
    assert few.shape == (2, 5, 16)
    assert torch.equal(few[:, 0], whole[:, 0])
    cells = whole[:, 1:].unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(few[:, 1:], cells, atol=1e-6)


@pytest.mark.parametrize(("tokens", "most", "left"), [(16, None, 16), (16, 20, 16), (16, 5, 4), (17, 1, 1), (17, 2, 2)])
def test_at_most_so_many_tokens(tokens, most, left):
    assert pooled(torch.rand(1, tokens, 3), most).shape == (1, left, 3)


def test_a_crop_is_the_middle_of_the_picture(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "cropped")
    settings = {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    (tmp_path / "cropped/preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    shutil.copytree(vit, tmp_path / "plain")
    (tmp_path / "plain/preprocessor_config.json").write_text(json.dumps({"size": 16, "do_normalize": False}))
    pixels = torch.rand(1, 3, 20, 20)
    cropped, plain = (vision_encoder(f"transformers:{tmp_path / name}") for name in ("cropped", "plain"))
    assert torch.allclose(cropped(pixels), plain(pixels[..., 2:18, 2:18]), atol=1e-6)


def test_says_that_it_is_no_vision_model(vit, tmp_path):
    with pytest.raises(UserError, match=r"expected a vision model of transformers with its preprocessor_config.json"):
        vision_encoder(f"transformers:{tmp_path}")
    with pytest.raises(UserError, match="expected a number of tokens behind @, got 'many'"):
        vision_encoder(f"transformers:{vit}@many")
    shutil.copytree(vit, tmp_path / "torn")
    weights = load_file(tmp_path / "torn/model.safetensors")
    lost = [name for name in weights if "layernorm_before" in name]
    save_file(
        {name: v for name, v in weights.items() if name not in lost}, tmp_path / "torn/model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"got none for {len(lost)} of them .*layernorm_before.*would stay random"):
        vision_encoder(f"transformers:{tmp_path / 'torn'}")


def test_weights_are_never_unpickled(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "old")
    torch.save(load_file(vit / "model.safetensors"), tmp_path / "old/pytorch_model.bin")
    (tmp_path / "old/model.safetensors").unlink()
    with pytest.raises(UserError, match="expected a vision model of transformers"):
        vision_encoder(f"transformers:{tmp_path / 'old'}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"cut"),
        ("config.json", b'{"model_type": "vit", "hidden_size": "x"}'),
        ("config.json", b"[]"),
    ],
)
def test_a_damaged_folder_is_one_sentence(vit, tmp_path, file, content):
    shutil.copytree(vit, tmp_path / "damaged")
    (tmp_path / "damaged" / file).write_bytes(content)
    with pytest.raises(UserError, match="expected a vision model of transformers"):
        vision_encoder(f"transformers:{tmp_path / 'damaged'}")


def test_says_that_transformers_is_missing(monkeypatch):
    monkeypatch.setattr("brainjanus.tokenizers.vision.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"expected the package transformers, got none.*brainjanus\[janus\]"):
        vision_encoder("transformers:some/model")
