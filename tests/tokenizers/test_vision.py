"""The wavelet encoder sees what it should: colours, orientations and scales, at their places."""

import math

import pytest
import torch
import torch.nn.functional as F

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.vision import GRID, ORIENTATIONS, WAVELENGTHS_PX, gabor_pairs, vision_encoder, wavelet

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
    with pytest.raises(UserError, match=r"vision encoder 'clip': expected one that is built in \(wavelet\)"):
        vision_encoder("clip")
