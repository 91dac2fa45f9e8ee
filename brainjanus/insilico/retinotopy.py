"""Retinotopy in silico: a trained model sees bars, wedges and rings; receptive fields of its sites leave.

A model that was trained on scenes knows no checkerboard on grey. A stimulus is therefore one training picture seen
through an aperture (bars in DIRECTIONS, wedges, rings), and another around it; every aperture is shown in each pass.
Half of the pictures are for even passes, half for odd ones, which so have no picture in common. `patches` are random
blobs for apertures, `scenes` whole pictures: these are what the model was trained on, and apertures take apart what
goes together in a picture, as its left and right. Default: all of them.

A site is fitted as the compressed energy inside a Gaussian of the field, summed with weights of its own over CHANNELS
(opponent colours and Gabor energies): so many linear weights for each place and size of a grid, of which the best is
kept; then a finer grid around it. Sources: Dumoulin & Wandell 2008 (pRF), St-Yves & Naselaris 2018 (feature-weighted
receptive fields), Kay et al. 2013 (compression). Differs from a pRF of scanner data: pictures are known through
and through, so that contrast, and not only the aperture, is the regressor, and there is no haemodynamic response.

Place, size and weights are fitted on all passes, on the even ones and on the odd ones. R2 is that of the even ones' fit
for the pictures of the odd ones. x is to the right, y upwards; the angle is counted counter-clockwise from the right. A
place is told no better than the model's eye sees it (`wavelet` pools an eighth of a picture, a cell): the size is as
coarse, and the angle of a site within half a cell of fixation means little. With a simulated truth two sets of sites
are compared: all of them, and those that are `determined`: R2 of at least LEAST_R2, centre inside the picture, and even
and odd passes no farther apart than a cell. No truth enters that choice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.data.simulate import FIELD_DEG, Truth
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.generate import GenerationConfig, generate, require
from brainjanus.insilico.experiment import (
    GREY,
    INK,
    Experiment,
    as_numbers,
    as_told,
    check_new,
    check_seed,
    encoded,
    opened,
    results_in,
    save_maps,
    save_results,
    stacked,
    trust_of,
    truth_of,
)
from brainjanus.outputs import can_draw
from brainjanus.run import Run
from brainjanus.tokenizers.vision import GRID, ORIENTATIONS, can_encode, gabor_pairs

PASSES = 8  # each aperture is shown so often, with other pictures
DIRECTIONS, POSITIONS, BAR = 8, 12, 1 / 8  # bars: of so many directions, at so many places, this wide
WEDGES, RINGS = 24, 12
BLOBS, BLOB_CYCLES = 132, 4.0  # random apertures of a pass, as many as bars, wedges and rings; blobs across
SCENES = 132  # whole pictures of a pass
SIDE = 64  # pixels along a side, for the energies
CELLS = 32  # along a side of the energies that are weighed by a receptive field
WAVELENGTHS_PX = (4.0, 8.0, 16.0)
EXPONENT, RIDGE = 0.5, 0.1
PLACES = 27  # of the grid, along a side of REACH pictures
REACH = 26 / 24
SIZES = (1 / 40, 1 / 24, 1 / 15, 1 / 10, 1 / 6)  # of the field; standard deviations
LEAST_R2 = 0.5
LEAST_SITES = 10
MOST_DRAWN = 4  # subjects
Stimuli = Literal["bars", "patches", "scenes", "all"]


class Fields(NamedTuple):
    """Receptive fields of one subject, one value a site. r2: of held-out passes. apart_deg: how far the centres that
    even and odd passes give lie from each other. determined: see the head."""

    x_deg: Float[np.ndarray, "v"]
    y_deg: Float[np.ndarray, "v"]
    size_deg: Float[np.ndarray, "v"]
    r2: Float[np.ndarray, "v"]
    apart_deg: Float[np.ndarray, "v"]
    determined: Bool[np.ndarray, "v"]

    @property
    def angle_deg(self) -> Float[np.ndarray, "v"]:
        """-180 to 180, from the right horizontal meridian, counter-clockwise: 90 is up."""
        return np.degrees(np.arctan2(self.y_deg, self.x_deg))

    @property
    def eccentricity_deg(self) -> Float[np.ndarray, "v"]:
        return np.hypot(self.x_deg, self.y_deg)


class Retinotopy(NamedTuple):
    """fields: by subject. results: everything that results.json holds."""

    fields: dict[str, Fields]
    results: dict[str, Any]


def retinotopy(
    run: Run | Path | str,
    *,
    out: Path | str | None = None,
    field_deg: float | None = None,
    stimuli: Stimuli = "all",
    passes: int = PASSES,
    subjects: Sequence[str] = (),
    truth: Path | str | None = None,
    dataset: Path | str | None = None,
    seed: int = 0,
) -> Retinotopy:
    """Receptive fields of every site of a trained model, and how they compare with the truth of a simulated cortex.

    field_deg: width of a picture in degrees of the visual field; default: that of the simulated cortex; needed for
    others. truth: folder of a simulated study; default: that of the dataset, if it has one.
    Raises UserError for a model without pictures, unknown subjects, a `truth` without them, and an `out` that exists.
    """
    check_new(out)
    check_seed("retinotopy", seed)
    if passes < 2:
        raise UserError(
            f"--passes: expected at least 2 (one is fitted, one is judged on), got {passes}. Give a larger number."
        )
    found = opened(run, dataset, subjects)
    width = field_of(found, field_deg)
    truths = {subject: truth_of(found, subject, truth) for subject in found.subjects}
    pictures, held_out = mapping_stimuli(found, stimuli, passes, np.random.default_rng(seed))
    energies = channels(pictures)
    fields: dict[str, Fields] = {}
    told: dict[str, dict[str, Any]] = {}
    panels: list[bytes] = []
    for subject in found.subjects:
        space = found.space(subject)
        responses = np.asarray(
            generate(found.checkpoint, {"image": pictures}, f"brain:{subject}", GenerationConfig()), dtype=np.float32
        )
        fields[subject] = fit(energies, responses, held_out, width)
        told[subject] = facts_of(fields[subject], space.rois)
        known = truths[subject]
        told[subject]["truth"] = None if known is None else compared(fields[subject], known, space.rois)
        if out is not None and len(panels) < 2 * MOST_DRAWN and can_draw(space):
            panels += drawn(space, fields[subject], width)
    results = as_numbers(
        {
            "experiment": "retinotopy",
            "run": str(found.path),
            "field_deg": width,
            "stimuli": {"kind": stimuli, "pictures": len(pictures), "passes": passes},
            "least_r2": LEAST_R2,
            "trust": trust_of(found, ["image"]),
            "seed": seed,
            "protocol": found.protocol(list(found.dataset.split_ids("train")), "train", definition=DEFINITION),
            "subjects": told,
        }
    )
    if out is not None:
        with results_in(out) as folder:
            for subject, one in fields.items():
                save_maps(folder, "fields", found.space(subject), maps_of(one))
            save_results(folder, results, stacked(panels or [scatter(fields, width)]))
    return Retinotopy(fields, results)


DEFINITION = (
    "angle_r: circular correlation (Jammalamadaka & SenGupta 2001, 8.2.2) in the right and in the left hemifield, "
    "averaged; angle_r_of_both: over both at once, for marginals without a mean direction (8.2.4); eccentricity_r, "
    "size_r: Pearson; r2: of passes that were not fitted, of other pictures"
)


def field_of(found: Experiment, field_deg: float | None) -> float:
    """The width of a picture. Raises UserError if it is not known, or no width."""
    simulated = "simulation" in found.dataset.manifest.get("provenance", {})
    if field_deg is None and not simulated:
        raise UserError(
            "--field-deg: expected the width of the pictures in degrees of the visual field, as they were shown, got "
            "none. Give it, e.g. --field-deg 8.4 for NSD."
        )
    width = FIELD_DEG if field_deg is None else field_deg
    if not 0 < width <= 180:
        raise UserError(f"--field-deg: expected degrees of the visual field, from 0 to 180, got {width:g}.")
    return width


# --- stimuli --------------------------------------------------------------------------------------------------------


# A apertures, S pixels along a side; places are in picture widths from the middle, x to the right and y upwards
def grid_of(side: int) -> tuple[Float[np.ndarray, "s s"], Float[np.ndarray, "s s"]]:
    at = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(at, -at)
    return x, y


def apertures(side: int) -> Bool[np.ndarray, "a s s"]:
    """Bars that cross the picture in DIRECTIONS, wedges that turn around its middle, rings that grow."""
    x, y = grid_of(side)
    found = []
    for direction in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        along = x * np.cos(direction) + y * np.sin(direction)
        found += [np.abs(along - at) < BAR / 2 for at in np.linspace(-0.46, 0.46, POSITIONS)]
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    for middle in np.arange(WEDGES) * 2 * np.pi / WEDGES:
        found.append(np.abs(np.angle(np.exp(1j * (angle - middle)))) < 3 * np.pi / WEDGES)
    edges = np.concatenate([[0], np.geomspace(0.03, 0.6, RINGS + 1)])
    found += [(radius >= low) & (radius < high) for low, high in zip(edges[:-2], edges[2:], strict=True)]
    return np.stack(found)


def blobs(side: int, count: int, rng: np.random.Generator) -> Bool[np.ndarray, "a s s"]:
    """Random apertures: smooth noise, of which the highest 40 % are open."""
    frequency = np.fft.fftfreq(side) * side
    low_pass = np.exp(-(frequency**2 + frequency[:, None] ** 2) / (2 * BLOB_CYCLES**2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, side, side))) * low_pass).real
    return smooth > np.quantile(smooth, 0.6, axis=(1, 2), keepdims=True)


def mapping_stimuli(
    found: Experiment, kind: Stimuli, passes: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, "n"]]:
    """Pictures, one seen in an aperture of another, and which of them belong to odd passes: these are made of other
    pictures than the even ones.

    Raises UserError for a model that cannot see new pictures, and a dataset with fewer than four.
    """
    require(found.checkpoint, "image")
    encoder = found.checkpoint.model.config.image_input
    if encoder not in ("codes", "janus") and not can_encode(encoder):
        raise UserError(
            f"retinotopy: expected a model that can see new pictures, got one that reads them by the features "
            f"'{encoder}', which are computed elsewhere. Train one with --omni.image-input wavelet, codes or "
            "transformers:NAME."
        )
    ids = list(found.dataset.split_ids("train"))
    if found.dataset.image_size is None or len(ids) < 4:
        raise UserError(
            "retinotopy: expected a dataset with at least 4 training pictures, which are seen through apertures, got "
            f"{0 if found.dataset.image_size is None else len(ids)}. Prepare it with the pictures that were shown."
        )
    ids = [ids[pick] for pick in rng.permutation(len(ids))[:400]]
    textures = found.dataset.images(ids)
    side = textures.shape[1]
    masks, numbers = [], []
    for number in range(passes):
        shown = {"bars": apertures(side), "patches": blobs(side, BLOBS, rng)}
        shown["scenes"] = np.ones((SCENES, side, side), dtype=bool)
        kept = [some for name, some in shown.items() if kind in (name, "all")]
        masks += kept
        numbers += [number] * sum(map(len, kept))
    mask, odd = np.concatenate(masks)[..., None], np.array(numbers) % 2 == 1
    half = len(ids) // 2  # those of even passes stand before it, those of odd ones behind
    inside, around = rng.integers(half, size=len(mask)), rng.integers(half - 1, size=len(mask))
    around += around >= inside  # another picture
    return np.where(mask, textures[inside + half * odd], textures[around + half * odd]), odd


@torch.no_grad()
def channels(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n c k k"]:
    """Opponent colours, either sign apart, and Gabor energies of CELLS x CELLS places."""
    parts = []
    for some in torch.from_numpy(pictures).split(64):
        pixels = some.permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        grey = pixels.mean(dim=1, keepdim=True)
        colours = torch.cat(
            [grey - 0.5, pixels[:, :1] - pixels[:, 1:2], pixels[:, 2:] - pixels[:, :2].mean(1, True)], 1
        )
        maps = [colours.clamp(min=0), (-colours).clamp(min=0)]
        for wavelength in WAVELENGTHS_PX:
            kernels = gabor_pairs(wavelength)
            half = kernels.shape[-1] // 2
            waves = F.conv2d(F.pad(grey, (half,) * 4, mode="reflect"), kernels)
            maps.append(waves.unflatten(1, (ORIENTATIONS, 2)).square().sum(dim=2))
        parts.append(F.adaptive_avg_pool2d(torch.cat(maps, dim=1), CELLS))
    return torch.cat(parts).numpy()


# --- fit ------------------------------------------------------------------------------------------------------------


# N stimuli, C channels, K cells along a side, V sites, J candidates (places x sizes)
class Grid(NamedTuple):
    """What each candidate field sees. seen [places y, places x, n, c]: z-scored over the stimuli that are fitted."""

    places: Float[np.ndarray, "p"]  # in pictures from the middle, along either axis
    size: float
    seen: Float[np.ndarray, "p p n c"]


def pooled(energies: Float[np.ndarray, "n c k k"], size: float) -> Grid:
    """The compressed energy in Gaussians of one size at every place of the grid, a row of places after the other."""
    places = np.linspace(-REACH / 2, REACH / 2, PLACES)
    at = (np.arange(CELLS) + 0.5) / CELLS - 0.5
    weights = np.exp(-((at - places[:, None]) ** 2) / (2 * size**2)) / (np.sqrt(2 * np.pi) * size * CELLS)
    weights = weights.astype(np.float32)
    across = energies @ weights.T  # [n, c, k, p]
    seen = np.einsum("ncky,qk->qync", across, weights[:, ::-1], optimize=True)  # rows count downwards, y upwards
    return Grid(places, size, np.ascontiguousarray(seen.clip(min=0) ** EXPONENT))


def fit(
    energies: Float[np.ndarray, "n c k k"],
    responses: Float[np.ndarray, "n v"],
    held_out: Bool[np.ndarray, "n"],
    field_deg: float,
) -> Fields:
    """The best place and size of every site by all stimuli, and how good they are by halves of them."""
    grids = [pooled(energies, size) for size in SIZES]
    everything = np.ones(len(responses), dtype=bool)
    best, even, odd = (searched(grids, responses, kept) for kept in (everything, ~held_out, held_out))
    r2 = judged(grids, even, responses, held_out)
    (x, y), *halves = ((grids[0].places * field_deg)[one[:, 1::-1].T] for one in (best, even, odd))
    apart = np.hypot(*(halves[0] - halves[1]))
    inside = np.maximum(np.abs(x), np.abs(y)) < field_deg / 2
    determined = (r2 >= LEAST_R2) & inside & (apart <= field_deg / GRID)
    return Fields(x, y, np.array(SIZES)[best[:, 2]] * field_deg, r2, apart, determined)


def searched(
    grids: Sequence[Grid], responses: Float[np.ndarray, "n v"], kept: Bool[np.ndarray, "n"]
) -> Int[np.ndarray, "v 3"]:
    """For each site the numbers of y, x and size of the field that explains most of its variance.

    Every second place is tried for all sites, and the neighbours of the best for each: a site is compared with all of
    the visual field, at a fifth of the price.
    """
    values = standard(responses[kept])
    sites = values.shape[1]
    best, found = np.full(sites, -np.inf), np.zeros((sites, 3), dtype=np.int64)

    def attempt(y: int, x: int, size: int, which: Int[np.ndarray, "w"] | slice) -> None:
        explained = weights_of(grids[size].seen[y, x][kept], values[:, which])[1]
        better = explained > best[which]
        index = np.arange(sites)[which][better]
        best[index], found[index] = explained[better], (y, x, size)

    coarse = range(0, PLACES, 2)
    for size in range(0, len(SIZES), 2):
        for y in coarse:
            for x in coarse:
                attempt(y, x, size, slice(None))
    start = found.copy()
    for size in range(len(SIZES)):
        for y in range(PLACES):
            for x in range(PLACES):
                near = (np.abs(start[:, :2] - (y, x)) <= 1).all(axis=1) & (np.abs(start[:, 2] - size) <= 1)
                if near.any():
                    attempt(y, x, size, np.flatnonzero(near))
    return found


def standard(values: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n v"]:
    """Mean 0 and variance 1 in every column; 0 where nothing varies."""
    values = values - values.mean(axis=0)
    scale = values.std(axis=0)
    return np.divide(values, scale, out=np.zeros_like(values), where=scale > 1e-8)


def weights_of(
    seen: Float[np.ndarray, "n c"], values: Float[np.ndarray, "n v"]
) -> tuple[Float[np.ndarray, "c v"], Float[np.ndarray, "v"]]:
    """Ridge weights of the channels of one field, and the share of variance that they explain."""
    seen = standard(seen)
    square, product = seen.T @ seen / len(seen), seen.T @ values / len(seen)
    weights = np.linalg.solve(square + RIDGE * np.eye(len(square), dtype=square.dtype), product)
    return weights, (weights * (2 * product - square @ weights)).sum(axis=0)


def judged(
    grids: Sequence[Grid],
    best: Int[np.ndarray, "v 3"],
    responses: Float[np.ndarray, "n v"],
    held_out: Bool[np.ndarray, "n"],
) -> Float[np.ndarray, "v"]:
    """R2 on held-out stimuli of fields and weights that come from the others."""
    r2 = np.zeros(responses.shape[1])
    for choice in np.unique(best, axis=0):
        y, x, size = choice
        which = (best == choice).all(axis=1)
        seen, values = grids[size].seen[y, x], responses[:, which]
        mean, scale = seen[~held_out].mean(axis=0), seen[~held_out].std(axis=0)
        level, spread = values[~held_out].mean(axis=0), values[~held_out].std(axis=0)
        weights, _ = weights_of(seen[~held_out], standard(values[~held_out]))
        scaled = np.divide(seen - mean, scale, out=np.zeros_like(seen), where=scale > 1e-8)
        left = values[held_out] - (scaled[held_out] @ weights * spread + level)
        total = np.square(values[held_out] - values[held_out].mean(axis=0)).sum(axis=0)
        r2[which] = 1 - np.divide(np.square(left).sum(axis=0), total, out=np.ones_like(total), where=total > 1e-12)
    return r2


# --- figures --------------------------------------------------------------------------------------------------------


def facts_of(fields: Fields, rois: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How well fields are determined, in all sites and by ROI."""
    everything = {"all sites": np.ones(len(fields.r2), dtype=bool)}
    return {
        "regions": {
            name: {
                "sites": int(sites.sum()),
                "median_r2": np.median(fields.r2[sites]),
                "determined": int(fields.determined[sites].sum()),
                "median_size_deg": np.median(fields.size_deg[sites]),
            }
            for name, sites in (everything | {n: np.asarray(s, dtype=bool) for n, s in rois.items()}).items()
            if sites.any()
        }
    }


def compared(fields: Fields, truth: Truth, rois: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fitted against true fields in each early area: all sites, and those that are determined."""
    told = {}
    for name, mask in rois.items():
        sites = np.asarray(mask, dtype=bool) & np.isfinite(truth.orientation_rad)
        if sites.any():
            told[name] = {
                "all": agreement(fields, truth, sites),
                "determined": agreement(fields, truth, sites & fields.determined),
            }
    return told


def agreement(fields: Fields, truth: Truth, sites: Bool[np.ndarray, "v"]) -> dict[str, Any] | None:
    """Correlations over some sites; None for fewer than LEAST_SITES. error_deg: median distance of the centres."""
    if sites.sum() < LEAST_SITES:
        return None
    x, y, size = fields.x_deg[sites], fields.y_deg[sites], fields.size_deg[sites]
    true_x, true_y = truth.x_deg[sites], truth.y_deg[sites]
    angle, true_angle = np.arctan2(y, x), np.arctan2(true_y, true_x)
    halves = [half for half in (true_x > 0, true_x < 0) if half.sum() >= LEAST_SITES]
    in_halves = [circular_r(angle[half], true_angle[half], directed=True) for half in halves]
    return {
        "n": int(sites.sum()),
        "angle_r": np.mean(in_halves) if in_halves else np.nan,
        "angle_r_by_hemifield": in_halves,
        "angle_r_of_both": circular_r(angle, true_angle),
        "eccentricity_r": np.corrcoef(np.hypot(x, y), np.hypot(true_x, true_y))[0, 1],
        "size_r": np.corrcoef(size, truth.size_deg[sites])[0, 1] if np.ptp(size) else np.nan,
        "angle_error_deg": np.degrees(np.median(np.abs(np.angle(np.exp(1j * (angle - true_angle)))))),
        "error_deg": np.median(np.hypot(x - true_x, y - true_y)),
    }


def circular_r(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], *, directed: bool = False) -> float:
    """The correlation of two samples of angles (radians).

    directed: both have a mean direction, from which deviations are counted, as in one hemifield. Otherwise, as over
    both hemifields, none is well defined, and the lengths of the mean of a - b and of a + b are compared.
    Source: Jammalamadaka & SenGupta 2001, equations 8.2.2 and 8.2.4 (as in CircStat and pingouin).
    """
    deviations = [np.sin(one - np.angle(np.exp(1j * one).mean())) for one in (a, b)]
    scale = np.sqrt(np.square(deviations[0]).sum() * np.square(deviations[1]).sum())
    if directed:
        return float((deviations[0] * deviations[1]).sum() / scale)
    return float((np.abs(np.exp(1j * (a - b)).sum()) - np.abs(np.exp(1j * (a + b)).sum())) / (2 * scale))


def maps_of(fields: Fields) -> dict[str, Float[np.ndarray, "v"]]:
    return {
        "x_deg": fields.x_deg,
        "y_deg": fields.y_deg,
        "angle_deg": fields.angle_deg,
        "eccentricity_deg": fields.eccentricity_deg,
        "size_deg": fields.size_deg,
        "r2": fields.r2,
        "apart_deg": fields.apart_deg,
        "determined": fields.determined.astype(np.float32),
    }


def drawn(space: Any, fields: Fields, field_deg: float) -> list[bytes]:
    """The maps of one subject, where R2 is large enough: angle in cyclic colours, eccentricity, size."""
    good = fields.r2 >= LEAST_R2
    if not good.any():
        good = np.ones_like(good)

    def shown(values: np.ndarray) -> np.ndarray:
        return np.where(good, values, np.nan)

    turned = shown((fields.angle_deg % 360) / 360)
    return [
        draw_maps(space, {f"{space.subject}: polar angle": turned}, categorical=True),
        angle_wheel(),
        draw_maps(
            space,
            {"eccentricity": shown(fields.eccentricity_deg), "size": shown(fields.size_deg)},
            label="degrees of the visual field",
            limits=(0.0, field_deg / 2),
        ),
    ]


def angle_wheel() -> bytes:
    """What the colours of the angle mean."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure((2.6, 1.1), dpi=160)
    axes = figure.add_axes((0.34, 0.05, 0.32, 0.8), projection="polar")
    edges = np.linspace(0, 2 * np.pi, 181)
    axes.bar(
        edges[:-1], 1, width=np.diff(edges), bottom=0.4, align="edge", color=colormaps["hsv"](edges[:-1] / 2 / np.pi)
    )
    axes.set_axis_off()
    figure.text(0.5, 0.9, "the visual field; up is up", ha="center", fontsize=7, color=INK)
    for place, side in ((0.27, "left"), (0.73, "right")):
        figure.text(place, 0.45, side, ha="center", va="center", fontsize=7, color=GREY)
    return encoded(figure)


def scatter(fields: Mapping[str, Fields], field_deg: float) -> bytes:
    """Where the centres lie, for spaces that cannot be drawn here."""
    from matplotlib.figure import Figure

    figure = Figure((2.6 * len(fields), 2.8), dpi=160, layout="constrained")
    for axes, (subject, one) in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        axes.scatter(one.x_deg, one.y_deg, s=4, c=one.r2, vmin=0, vmax=1)
        axes.set(xlim=(-field_deg / 2, field_deg / 2), ylim=(-field_deg / 2, field_deg / 2), aspect="equal")
        axes.set_title(subject, fontsize=8, color=INK)
    return encoded(figure)


def summary(found: Retinotopy) -> list[str]:
    """A line for each subject, and one for each area that has a truth."""
    lines = []
    for subject, facts in found.results["subjects"].items():
        everywhere = facts["regions"]["all sites"]
        lines.append(
            f"{subject}: median R2 {as_told(everywhere['median_r2'])}, {everywhere['determined']} of "
            f"{everywhere['sites']} sites determined"
        )
        for name, both in (facts["truth"] or {}).items():
            told = [
                f"{which} {one['n']} sites: angle {as_told(one['angle_r'])}, eccentricity "
                f"{as_told(one['eccentricity_r'])}"
                for which, one in both.items()
                if one is not None
            ]
            lines.append(f"  {name}, r with the truth: {'; '.join(told)}")
    return lines
