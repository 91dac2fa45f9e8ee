"""Vision encoders: pictures in, a grid of features out, by fixed rules or frozen weights.

`wavelet` needs no weights: colour, and the energy of Gabor quadrature pairs at several scales and orientations, each
averaged over the cells of a grid. Source: Kay et al. 2008 (a Gabor wavelet pyramid as a model of early visual cortex).
Differs: energies are pooled to one grid and their square root is taken, as responses are compressive.

`transformers:NAME` is any vision model of that library, from a folder or a hub: the tokens of its last layer.
`transformers:NAME@N` averages them to at most N. Janus's own encoder belongs to a model (`tokenizers/janus.py`).
"""

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.config import read_json
from brainjanus.core.errors import UserError, first_line
from brainjanus.core.extensions import LOAD, Added

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
Encoder = Callable[[Tensor], Tensor]
ADDED = Added[Encoder]("vision encoder", (*ENCODERS, "codes", "janus", "transformers"))
LIBRARY = "transformers:"  # how the names of that library's models begin


def add_vision_encoder(name: str) -> Callable[[Encoder], Encoder]:
    """A decorator that makes a function, or a frozen module, the vision encoder of this name: `omni.image_input`.

    It turns pictures [b, 3, h, w] in [0, 1], of any size, into features [b, t, c]. They are computed once for a run and
    kept there under this name: an encoder that was changed needs another name.
    """
    return ADDED.adding(name)


def vision_encoder(name: str) -> Callable[[Tensor], Tensor]:
    """The encoder of this name. Raises UserError if its features can only come from the dataset."""
    if name.startswith(LIBRARY):
        return transformers_encoder(name.removeprefix(LIBRARY))
    if name in ADDED.entries:
        return ADDED.entries[name]
    if name not in ENCODERS:
        known = ", ".join([*ENCODERS, *ADDED.entries, f"{LIBRARY}NAME"])
        raise UserError(
            f"vision encoder '{name}': expected one that is built in or was added ({known}) to encode new pictures. "
            f"Features of this name can only be read from a dataset that was prepared with them; if it is an "
            f"extension's, {LOAD}."
        )
    return ENCODERS[name]


def on_device(encoder: Encoder, device: torch.device) -> Encoder:
    """The encoder, with pictures brought to it: a network computes on the device, fixed rules on the CPU."""
    if not isinstance(encoder, nn.Module):
        return lambda pixels: encoder(pixels.cpu())
    tensors = next(chain(encoder.parameters(), encoder.buffers()), None)
    there = encoder if tensors is None or tensors.device == device else _copied(encoder, device)
    return lambda pixels: there(pixels.to(device))


@lru_cache(maxsize=2)  # each request asks for it
def _copied(encoder: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(encoder).to(device)


def can_encode(name: str) -> bool:
    """Whether there is an encoder of this name, so that its features need not be stored."""
    return name in ENCODERS or name in ADDED.entries or name.startswith(LIBRARY)


# B pictures, T tokens, C channels
class TransformersEncoder(nn.Module):
    """A frozen vision model of `transformers`, and how its pictures are prepared: size, crop, mean and spread."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, settings: dict[str, Any], most_tokens: int | None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.most_tokens = most_tokens
        self.size = side_of(settings.get("size", 224))
        crops = settings.get("do_center_crop", False) and settings.get("crop_size")
        self.crop = side_of(settings["crop_size"]) if crops else self.size
        normal = settings.get("do_normalize", True)
        mean, std = (settings.get(f"image_{of}") if normal else None for of in ("mean", "std"))
        self.register_buffer("mean", torch.tensor(mean or [0.0] * 3)[:, None, None])
        self.register_buffer("std", torch.tensor(std or [1.0] * 3)[:, None, None])

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        """Tokens of the last layer for pictures in [0, 1] of any size; those of a map of channels row by row."""
        sides = (self.size, self.size)
        if pixels.shape[-2:] != sides:
            pixels = F.interpolate(pixels, sides, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        start = (self.size - self.crop) // 2
        pixels = pixels[..., start : start + self.crop, start : start + self.crop]
        seen = self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state.float()
        return pooled(seen.flatten(2).transpose(1, 2) if seen.dim() == 4 else seen, self.most_tokens)


@lru_cache(maxsize=2)  # a request would otherwise read the weights again
def transformers_encoder(name: str) -> TransformersEncoder:
    """A vision model by its folder or its name on a hub, with at most N tokens if @N is behind it.

    Weights come from safetensors files alone: nothing is unpickled.
    Raises UserError if it is none, if `transformers` is not installed, and if weights are missing.
    """
    source, _, most = name.partition("@")
    if most and not (most.isdecimal() and int(most)):
        raise UserError(f"vision encoder '{LIBRARY}{name}': expected a number of tokens behind @, got '{most}'.")
    transformers_or_sentence(f"the vision encoder '{source}'")
    from transformers import AutoModel

    try:
        model, report = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        settings = read_json(settings_file(source))
    except Exception as error:  # damaged files, no network, no such name: the library has many kinds
        raise UserError(
            f"vision encoder '{LIBRARY}{source}': expected a vision model of transformers with its "
            f"preprocessor_config.json, in a folder or on the hub, got '{first_line(error)}'. Check its name."
        ) from error
    model = getattr(model, "vision_model", model)  # of a model of pictures and text, the half that sees
    # The pooler makes one vector of the tokens; many models come without it, and nothing here reads it.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"vision encoder '{LIBRARY}{source}': expected weights of all layers, got none for {len(missing)} of them "
            f"({', '.join(missing[:4])}), which would stay random. Was the file cut short, or is it of another model?"
        )
    return TransformersEncoder(model, settings, int(most) if most else None)


def settings_file(source: str) -> Path:
    """Where the settings of a model's pictures are, in its folder or in the cache of the hub."""
    if Path(source).is_dir():
        return Path(source) / "preprocessor_config.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, "preprocessor_config.json"))


def side_of(size: Any) -> int:
    """Pixels along a side, out of the forms in which `transformers` writes a size."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    return int(size)


def transformers_or_sentence(what: str) -> None:
    """Raises UserError that names the extra if `transformers` is not installed. what: what needs it."""
    if find_spec("transformers") is None:
        raise UserError(
            f"{what}: expected the package transformers, got none. Install it: pip install 'brainjanus[janus]'."
        )


def pooled(tokens: Float[Tensor, "b t c"], most: int | None) -> Float[Tensor, "b _ c"]:
    """At most so many tokens: those of the grid are averaged over the cells of a coarser one.

    Tokens that stand before the grid (a class token, registers) stay as they are if there is room for them.
    """
    if most is None or tokens.shape[1] <= most:
        return tokens
    side = math.isqrt(tokens.shape[1])
    before, grid = tokens.split([tokens.shape[1] - side**2, side**2], dim=1)
    if before.shape[1] >= most:
        before = before[:, :0]
    coarse = math.isqrt(most - before.shape[1])
    cells = F.adaptive_avg_pool2d(grid.transpose(1, 2).unflatten(2, (side, side)), coarse)
    return torch.cat([before, cells.flatten(2).transpose(1, 2)], dim=1)
