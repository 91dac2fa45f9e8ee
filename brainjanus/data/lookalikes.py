"""Look-alikes: pictures that are one picture twice, resized, encoded again, cropped a little, or mirrored.

Enters: two sets of pictures. Leaves: pairs that are the same but for that, with how alike they are. A checksum finds
none of these.

Two steps. What pictures look like from far away (12 x 12 cells of colour) names a few candidates for each; a crop moves
little there. Then the candidates are laid over each other: one in full, the other cropped in 37 ways to 80 % or more of
its width, both as 32 x 32 pixels of which slow changes of brightness are taken away. Edges of different photographs do
not fall into the same places; how far they do is the correlation of these pixels. Two things on a plain ground may
share their outline: one picture has the same details inside of it, and the same colours. Why not a hash of a few bits
(pHash): it says nothing of crops, and its false alarms grow with the square of the number of pictures.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

BASE = 64  # pixels a side that are kept of a picture
SIDE = 32  # ... on which two are laid over each other
CELLS = 12  # ... seen from far away
CANDIDATES = 5  # looked at closely, for each picture and for its mirror image
FEW_CELLS = 8  # ... of two that were laid over each other
FAR = 0.5  # what candidates have to share from far away
SAME = 0.87  # from which two are the same picture; measured: different photographs stay below .82
SAME_DETAILS = 0.955  # ... once all edges are about as strong; copies .96, objects with one outline .95
SAME_COLOURS = 0.99  # ... of their colours from far away; what shares edges alone is mostly below
MAYBE_COLOURS = 0.92  # ... before the crop is placed exactly
CERTAIN = 0.92
CROPS = (1.0, 0.95, 0.9, 0.85, 0.8)  # share of the width that is kept
SLOW = 3.0  # pixels of SIDE; slower changes are taken away
PROMISING = 0.4  # correlation from which a crop is placed more exactly
STEPS = (1.5, 1.5, 0.75, 0.4)  # pixels of BASE
TILE = 8  # pixels of SIDE
FLAT = 2.0  # of 255; a picture without edges looks like any other

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Pair(NamedTuple):
    """Rows of the first and of the second set that show one picture. alike: 1 is identical."""

    first: int
    second: int
    alike: float
    mirrored: bool


def small(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """What is kept of a picture to compare it: BASE x BASE pixels."""
    if picture.shape[:2] == (BASE, BASE):
        return picture
    return np.asarray(
        Image.fromarray(picture).resize(
            (BASE, BASE), Image.Resampling.BOX if picture.shape[0] > BASE else Image.Resampling.BILINEAR
        )
    )


def lookalikes(first: UInt8[np.ndarray, "n s s 3"], second: UInt8[np.ndarray, "m s s 3"]) -> list[Pair]:
    """Pairs, the most alike first. first, second: pictures as `small` makes them; those of `second` are fewer."""
    if not len(first) or not len(second):
        return []
    found = []
    of_first = _far(first)
    ways = [(mirrored, second[:, :, ::-1] if mirrored else second) for mirrored in (False, True)]
    near = [(mirrored, pictures, _candidates(of_first, _far(pictures))) for mirrored, pictures in ways]
    for row in range(len(second)):
        for mirrored, pictures, candidates in near:
            key = pictures[row].tobytes()
            for other in candidates[row].tolist():
                alike = _overlaid(first[other].tobytes(), key)
                if alike >= SAME:
                    found.append(Pair(other, row, alike, mirrored))
    best: dict[tuple[int, int], Pair] = {}
    for pair in sorted(found, key=lambda pair: (-pair.alike, pair.mirrored)):  # a symmetric picture is no mirror image
        best.setdefault((pair.first, pair.second), pair)
    return list(best.values())


def _far(pictures: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]:
    """A few cells of colour, as directions: without brightness and contrast."""
    out = np.empty((len(pictures), CELLS * CELLS * 3), np.float32)
    for row, picture in enumerate(pictures):
        cells = np.asarray(
            Image.fromarray(np.ascontiguousarray(picture)).resize((CELLS, CELLS), Image.Resampling.BOX), np.float32
        )
        cells = (cells - cells.mean(axis=(0, 1))).ravel()
        out[row] = cells / max(float(np.linalg.norm(cells)), 1e-6)
    return out


def _candidates(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> list[Int[np.ndarray, "c"]]:
    """For each picture of the second set, the few of the first that look most like it from far away."""
    found = []
    few = min(CANDIDATES, len(first))
    for start in range(0, len(second), 256):
        alike = second[start : start + 256] @ first.T
        best = np.argpartition(-alike, few - 1, axis=1)[:, :few]
        found += [near[alike[row, near] >= FAR] for row, near in enumerate(best)]
    return found


def _overlaid(one: bytes, other: bytes) -> float:
    """How alike one picture in full and the other, cropped in the best way, are: as a whole and in most places."""
    views = (_colours(one), _colours(other))
    if max((views[0] @ views[1][0]).max(), (views[1] @ views[0][0]).max()) < MAYBE_COLOURS:
        return 0.0
    pair = (_edges(one), _edges(other))
    scores = [pair[0] @ pair[1][0], pair[1] @ pair[0][0]]  # the first cropped, or the second
    way = int(scores[1].max() > scores[0].max())
    crop = int(scores[way].argmax())
    if scores[way][crop] < PROMISING:
        return float(scores[way][crop])
    cropped, whole, full = (one, other)[way], (other, one)[way], pair[1 - way][0]
    box, best = BOXES[crop], pair[way][crop]
    for step in STEPS:
        boxes = [box, *_around(box, step)]
        crops = _cropped(cropped, boxes)
        closest = int((crops @ full).argmax())
        box, best = boxes[closest], crops[closest]
    alike = min(float(best @ full), _in_most_places(best, full))
    same = alike >= SAME and _evened(best) @ _evened(full) >= SAME_DETAILS
    return alike if same and _seen_from_far(cropped, [box])[0] @ _colours(whole)[0] >= SAME_COLOURS else 0.0


def _evened(edges: Float[np.ndarray, "d"]) -> Float[np.ndarray, "p"]:
    """Grey edges, all about as strong as those around them, so that outlines do not drown what is inside of them."""
    grey = edges.reshape(SIDE, SIDE, 3).mean(axis=2)
    around = np.sqrt(gaussian_filter(grey**2, SLOW, mode="nearest"))
    even = (grey / np.maximum(around + 0.1 * grey.std(), 1e-9)).ravel()
    even -= even.mean()
    return even / max(float(np.linalg.norm(even)), 1e-9)


@lru_cache(maxsize=2048)  # 28 kB each
def _colours(pixels: bytes) -> Float[np.ndarray, "c d"]:
    """A picture cropped in all ways, in full first, as a few cells of colour."""
    return _seen_from_far(pixels, BOXES)


def _seen_from_far(pixels: bytes, boxes: Sequence[Box]) -> Float[np.ndarray, "c d"]:
    """Crops as directions: without the brightness and contrast of each as a whole."""
    picture = Image.frombuffer("RGB", (BASE, BASE), pixels, "raw", "RGB", 0, 1)
    size, box_filter = (FEW_CELLS, FEW_CELLS), Image.Resampling.BOX
    cells = np.stack([np.asarray(picture.resize(size, box_filter, box), np.float32).ravel() for box in boxes])
    cells -= cells.mean(axis=1, keepdims=True)
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-6)


def _around(box: Box, step: float) -> Iterator[Box]:
    """Crops that are a little larger or smaller, or stand a little beside."""
    left, top, right, _ = box
    for width in (right - left - step, right - left, right - left + step):
        for x in (left - step, left, left + step):
            for y in (top - step, top, top + step):
                if x >= 0 and y >= 0 and max(x, y) + width <= BASE:
                    yield x, y, x + width, y + width


def _in_most_places(one: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"]) -> float:
    """A low (10 %) correlation over tiles that are not flat: two pictures may share a frame or a horizon alone."""
    tiles = [
        edges.reshape(SIDE // TILE, TILE, SIDE // TILE, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE * TILE * 3)
        for edges in (one, other)
    ]
    power = [(tile**2).sum(axis=1) for tile in tiles]
    textured = np.maximum(*power) > 0.02 / len(power[0])  # of all edges, were they spread evenly
    alike = (tiles[0] * tiles[1]).sum(axis=1) / np.maximum(np.sqrt(power[0] * power[1]), 1e-9)
    return float(np.quantile(alike[textured], 0.1)) if textured.any() else 0.0


def _boxes() -> list[Box]:
    boxes = []
    for share in CROPS:
        room = BASE * (1 - share)
        places: Sequence[float] = (0.0, room / 2, room) if room else (0.0,)
        boxes += [(x, y, x + BASE * share, y + BASE * share) for x in places for y in places]
    return boxes


BOXES = _boxes()


@lru_cache(maxsize=256)  # half a megabyte each
def _edges(pixels: bytes) -> Float[np.ndarray, "c d"]:
    """A picture cropped in all ways, in full first."""
    return _cropped(pixels, BOXES)


def _cropped(pixels: bytes, boxes: Sequence[Box]) -> Float[np.ndarray, "c d"]:
    """Crops of a picture without slow changes of brightness; each of length 1."""
    picture = Image.frombuffer("RGB", (BASE, BASE), pixels, "raw", "RGB", 0, 1)
    crops = np.stack(
        [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box), np.float32) for box in boxes]
    )
    crops -= gaussian_filter(crops, (0, SLOW, SLOW, 0), mode="nearest")
    flat = crops.reshape(len(crops), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), FLAT * SIDE)
