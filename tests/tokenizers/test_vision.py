"""The wavelet encoder sees what it should: colours, orientations and scales, at their places."""

import math

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.vision import GRID, ORIENTATIONS, WAVELENGTHS_PX, gabor_pairs, vision_encoder, wavelet

COLOURS = 3


def grating(wavelength, orientation, phase=0.0):
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    angle = math.pi * orientation / ORIENTATIONS
    wave = torch.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength + phase)
    return (0.5 + 0.5 * wave).expand(1, 3, 64, 64)


def inner(features):
    """The mean over the cells away from the border."""
    return features.reshape(GRID, GRID, -1)[2:-2, 2:-2].mean(dim=(0, 1))


@pytest.mark.parametrize("scale", range(len(WAVELENGTHS_PX)))
@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_grating_is_strongest_in_its_own_channel(scale, orientation):
    energy = inner(wavelet(grating(WAVELENGTHS_PX[scale], orientation)))[COLOURS:]
    assert int(energy.argmax()) == scale * ORIENTATIONS + orientation


def test_energy_does_not_depend_on_phase():
    energies = [inner(wavelet(grating(8.0, 1, phase)))[COLOURS + ORIENTATIONS + 1] for phase in (0.0, 0.8, 1.6)]
    assert max(energies) / min(energies) < 1.05


def test_a_uniform_picture_has_colour_and_no_energy():
    orange = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 32, 32)
    features = wavelet(orange)
    torch.testing.assert_close(features[0, 0, :COLOURS], torch.tensor([0.5, 0.5, -0.75]))
    torch.testing.assert_close(features[0], features[0, :1].expand(GRID**2, -1), atol=1e-3, rtol=0)
    assert features[0, :, COLOURS:].abs().max() < 1e-3


def test_cells_lie_row_by_row():
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, 8:16, 24:32] = 1
    assert int(wavelet(picture)[0, :, 0].argmax()) == GRID + 3


@pytest.mark.parametrize("size", [16, 64, 100])
def test_any_size_gives_the_same_grid(size):
    assert wavelet(torch.rand(2, 3, size, size)).shape == (2, GRID**2, COLOURS + ORIENTATIONS * len(WAVELENGTHS_PX))


def test_filters_have_unit_energy_and_no_response_to_a_uniform_field():
    for wavelength in WAVELENGTHS_PX:
        kernels = gabor_pairs(wavelength)
        torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.ones(2 * ORIENTATIONS))
        assert kernels.flatten(1).sum(dim=1).abs().max() < 1e-5


def test_an_unknown_encoder_is_named():
    assert vision_encoder("wavelet") is wavelet
    with pytest.raises(UserError, match=r"vision encoder 'clip': expected one that is built in \(wavelet\)"):
        vision_encoder("clip")
