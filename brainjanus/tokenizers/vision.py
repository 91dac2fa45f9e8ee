"""Vision encoders: pictures in, a grid of features out, by fixed rules or frozen weights.

`wavelet` needs no weights: colour, and the energy of Gabor quadrature pairs at several scales and orientations, each
averaged over the cells of a grid. Source: Kay et al. 2008 (a Gabor wavelet pyramid as a model of early visual cortex).
Differs: energies are pooled to one grid and their square root is taken, as responses are compressive.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from brainjanus.core.errors import UserError

GRID = 8  # cells along a side
WAVELENGTHS_PX = (4.0, 8.0, 16.0)  # at 64 pixels a side
ORIENTATIONS = 4


def wavelet(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
    """Features of pictures in [0, 1]: 8 x 8 cells, each 3 colours and 3 wavelengths x 4 orientations of energy."""
    pixels = F.interpolate(pixels, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    grey = pixels.mean(dim=1, keepdim=True)
    opponent = torch.cat([grey, pixels[:, :1] - pixels[:, 1:2], pixels[:, 2:] - pixels[:, :2].mean(1, keepdim=True)], 1)
    cells = [F.adaptive_avg_pool2d(opponent, GRID)]
    for wavelength in WAVELENGTHS_PX:
        kernels = gabor_pairs(wavelength)
        half = kernels.shape[-1] // 2
        waves = F.conv2d(F.pad(grey, (half,) * 4, mode="reflect"), kernels)
        energy = waves.unflatten(1, (ORIENTATIONS, 2)).square().sum(dim=2)
        cells.append(F.adaptive_avg_pool2d(energy, GRID).sqrt())
    return F.pixel_unshuffle(torch.cat(cells, dim=1), 2).flatten(2).transpose(1, 2)


def gabor_pairs(wavelength_px: float) -> Float[Tensor, "o 1 k k"]:
    """Even and odd Gabor filters of each orientation, without response to a uniform field, of unit energy."""
    half = math.ceil(wavelength_px)
    y, x = torch.meshgrid(torch.arange(-half, half + 1.0), torch.arange(-half, half + 1.0), indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * (0.4 * wavelength_px) ** 2))
    filters = []
    for index in range(ORIENTATIONS):
        angle = math.pi * index / ORIENTATIONS
        phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength_px
        for wave in (phase.cos(), phase.sin()):
            kernel = envelope * wave
            kernel = kernel - envelope * kernel.sum() / envelope.sum()
            filters.append(kernel / kernel.norm())
    return torch.stack(filters)[:, None]


ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {"wavelet": wavelet}


def vision_encoder(name: str) -> Callable[[Tensor], Tensor]:
    """The encoder of this name. Raises UserError if its features can only come from the dataset."""
    if name not in ENCODERS:
        raise UserError(
            f"vision encoder '{name}': expected one that is built in ({', '.join(ENCODERS)}) to encode new pictures. "
            "Features of this name can only be read from a dataset that was prepared with them."
        )
    return ENCODERS[name]
