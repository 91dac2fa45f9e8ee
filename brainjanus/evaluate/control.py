"""The padding-hacking control: perfect encode-then-decode scores without any brain.

Enters: the pictures that are to be "encoded". Leaves: vectors of the length of a response, and the decoder that turns
them back. The encoder writes a small copy of the picture into the vector, three pixels in each number, and pads the
rest with zeros; the decoder un-pads it. Whatever encode-then-decode score a model of the brain reaches, this reaches a
better one, and what gives it away are the brain metrics: voxel r, and the topography of its maps.

Source: the BrainJanus paper, figure 16. Differs: it pads an embedding of the picture, here the pixels themselves are
padded, so that the control needs no weights and can be scored on pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from brainjanus.core.errors import UserError

PIXELS_PER_SITE = 3
BITS = (6, 6, 5)  # of red, green and blue: three pixels are 51 bits, which a float64 holds exactly (it has 53)


class Control(NamedTuple):
    """responses: in [0, 1), to be kept in double precision. decode: responses -> pictures of the size that was seen."""

    responses: Float64[np.ndarray, "n v"]
    decode: Callable[[Float64[np.ndarray, "m v"]], UInt8[np.ndarray, "m h w 3"]]


# N pictures, V sites
def padding_control(pictures: UInt8[np.ndarray, "n h w 3"], num_sites: int) -> Control:
    """Vectors of `num_sites` that hold a copy of each picture, as large as fits, and their decoder.

    1,500 sites hold 64 x 64 pixels, NSD's 15,724 hold 217 x 217; a picture that fits keeps its size. Colours are kept
    to 6, 6 and 5 bits. Raises UserError without sites.
    """
    if num_sites < 1:
        raise UserError(
            f"padding control: expected at least 1 site, got {num_sites}. Give the number of sites of the subject."
        )
    num, height, width = pictures.shape[:3]
    room = num_sites * PIXELS_PER_SITE
    shrink = min(1.0, (room / (height * width)) ** 0.5)
    high, wide = min(max(1, int(height * shrink)), room), min(max(1, int(width * shrink)), room)
    steps = np.array([2**bits - 1 for bits in BITS])
    shifts = np.cumsum([0, *(PIXELS_PER_SITE * BITS)[:0:-1]])[::-1].reshape(PIXELS_PER_SITE, 3)
    used = -(-high * wide // PIXELS_PER_SITE)

    copies = np.zeros((num, used * PIXELS_PER_SITE, 3), np.int64)
    copies[:, : high * wide] = np.rint(resized(pictures, high, wide) / 255 * steps).reshape(num, -1, 3)
    packed = (copies.reshape(num, used, PIXELS_PER_SITE, 3) << shifts).sum(axis=(2, 3))
    levels = 2.0 ** (PIXELS_PER_SITE * sum(BITS))
    responses = np.zeros((num, num_sites))
    responses[:, :used] = packed / levels

    def decode(responses: Float64[np.ndarray, "m v"]) -> UInt8[np.ndarray, "m h w 3"]:
        whole = (responses[:, :used] * levels).round().clip(0, levels - 1).astype(np.int64)
        pixels = (whole[..., None, None] >> shifts & steps).reshape(len(responses), -1, 3)[:, : high * wide]
        colours = np.rint(pixels / steps * 255).astype(np.uint8)
        return resized(colours.reshape(len(responses), high, wide, 3), height, width)

    return Control(responses, decode)


def resized(pictures: UInt8[np.ndarray, "n h w 3"], height: int, width: int) -> UInt8[np.ndarray, "n H W 3"]:
    """Bilinear, antialiased; as they are if they have that size."""
    if pictures.shape[1:3] == (height, width):
        return pictures
    values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    values = torch.nn.functional.interpolate(values, (height, width), mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
