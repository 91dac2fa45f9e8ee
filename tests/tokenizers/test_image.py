"""The image tokenizer: sizes, places, and the way from codes to pixels."""

import pytest
import torch
from torch import nn

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig

QUANTIZER = QuantizerConfig(num_codes=7, dim=5)


def make(**settings):
    torch.manual_seed(0)
    config = ImageTokenizerConfig(**{"image_size": 16, "codes_per_side": 2, "width": 8, "blocks": 1} | settings)
    return ImageTokenizer(config).eval().requires_grad_(False)


@pytest.fixture
def tokenizer():
    return make(quantizer=QUANTIZER)


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "side"), [(16, 4), (16, 2), (32, 2), (24, 3), (8, 2)])
def test_a_picture_becomes_a_grid_of_codes_and_a_picture(size, side):
    tokenizer = make(image_size=size, codes_per_side=side, quantizer=QUANTIZER)
    codes = tokenizer.encode(torch.rand(2, 3, size, size))
    assert codes.shape == (2, side**2) == (2, tokenizer.num_codes)
    assert int(codes.min()) >= 0 and int(codes.max()) < 7
    assert tokenizer.decode(codes).shape == (2, 3, size, size)


def test_forward_is_encode_and_decode(tokenizer, pixels):
    out = tokenizer(pixels)
    assert torch.equal(out.quantized.codes, tokenizer.encode(pixels))
    torch.testing.assert_close(out.pixels.clamp(0, 1), tokenizer.decode(out.quantized.codes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.latents.norm(dim=-1), torch.ones(2, 4))


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig("fsq", num_codes=64),
        QuantizerConfig("residual", num_codes=7, dim=5),
        QuantizerConfig(num_codes=7, dim=5, similarity="euclidean"),
    ],
    ids=["fsq", "residual", "euclidean"],
)
def test_every_kind_of_quantizer_with_one_code_a_place_will_do(quantizer, pixels):
    tokenizer = make(quantizer=quantizer)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 4) and int(codes.max()) < quantizer.num_codes
    torch.testing.assert_close(tokenizer.decode(codes), tokenizer(pixels).pixels.clamp(0, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.latents(pixels), tokenizer(pixels).latents)
    assert not torch.allclose(tokenizer.latents(pixels).norm(dim=-1), torch.ones(2, 4))


def test_codes_are_read_and_laid_out_row_by_row():
    """With an encoder and a decoder that do nothing, each latent comes back at its own place."""
    tokenizer = make(quantizer=QuantizerConfig(num_codes=7, dim=3))
    grid = torch.arange(1.0, 13.0).reshape(1, 3, 2, 2)
    tokenizer.encoder = nn.Identity()
    tokenizer.encoder.forward = lambda x: grid
    tokenizer.decoder = nn.Identity()
    latents = tokenizer.latents(torch.rand(1, 3, 16, 16))
    torch.testing.assert_close(latents[0, 1], grid[0, :, 0, 1] / grid[0, :, 0, 1].norm())
    torch.testing.assert_close(tokenizer.decode_vectors(latents) * 2 - 1, nn.functional.normalize(grid, dim=1))


def test_a_certain_distribution_decodes_to_its_code(tokenizer):
    codes = torch.tensor([[0, 6, 3, 3], [1, 2, 5, 4]])
    certain = nn.functional.one_hot(codes, 7).float()
    torch.testing.assert_close(tokenizer.decode_probabilities(certain), tokenizer.decode(codes))


def test_decoded_pictures_stay_within_zero_and_one(tokenizer):
    tokenizer.decoder[-2].bias.fill_(9.0)
    codes = torch.zeros(1, 4, dtype=torch.long)
    assert tokenizer.decode_vectors(tokenizer.quantizer.codebook[codes]).max() > 1
    assert tokenizer.decode(codes).max() == 1
    assert tokenizer.decode_probabilities(nn.functional.one_hot(codes, 7).float()).max() == 1


def test_a_picture_does_not_depend_on_its_neighbours(tokenizer, pixels):
    torch.testing.assert_close(tokenizer.latents(pixels)[1:], tokenizer.latents(pixels[1:]))


def test_what_is_learnt_reaches_every_weight(pixels):
    tokenizer = ImageTokenizer(ImageTokenizerConfig(16, 2, 8, 1, QUANTIZER))
    tokenizer(pixels).pixels.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tokenizer.parameters())


def test_says_what_is_wrong(tokenizer):
    with pytest.raises(UserError, match=r"expected 16 x 16 pixels, got 16 x 8. Resize it"):
        tokenizer.encode(torch.rand(1, 3, 16, 8))
    for size, side in ((16, 3), (18, 2), (48, 4), (16, 0), (8, 4)):
        with pytest.raises(UserError, match=f"got image_size {size}, codes_per_side {side}"):
            ImageTokenizerConfig(size, side)
    for width in (0, -8, 12):
        with pytest.raises(UserError, match=f"width must be a multiple of 8, got {width}"):
            ImageTokenizerConfig(width=width)
    with pytest.raises(UserError, match=r"a picture has one code a place: stages must be 1, got 2"):
        ImageTokenizerConfig(quantizer=QuantizerConfig("residual", stages=2))
    with pytest.raises(UserError, match=r"codes_per_side 3; width must .*; blocks must be at least 0, got -1"):
        ImageTokenizerConfig(16, 3, width=9, blocks=-1)
