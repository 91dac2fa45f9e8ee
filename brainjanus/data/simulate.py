"""The simulated cortex: subjects whose every site, receptive field and noise is known.

Enters: a `SimulationConfig`. Leaves: under `out`, `dataset/` in the form of real data, and apart from it `truth/`,
which no Dataset reads: noise-free responses, receptive fields, selectivities, ceilings.

Retinotopy: V1, V2 and V3 as wedges of one complex-log map (Schwartz 1977; Balasubramanian, Polimeni & Schwartz 2002),
hV4 as a ventral hemifield beyond V3v (Wandell & Winawer 2011). Early responses: Gabor energy and colour contrast in a
Gaussian receptive field, then a power law (Kay et al. 2013, "Compressive spatial summation"). Category patches: at
published places, driven by what is in the scene. Design and single-trial ceilings as in NSD (Allen et al. 2022).

Differs from a real cortex: category patches know the scene and not the pixels; maps are symmetric about the horizontal
meridian, and hV4's fovea is part of the confluence; a trial's response is one number (a beta, as from a GLM); pictures
span 24 degrees (NSD: 8.4), so that they drive most of V1, and with 64 pixels hold no more than 1.3 cycles/deg, which
preferred frequencies are lowered to.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.scenes import CATEGORIES, COLOURS, IMAGE_SIZE, SETTINGS, Scene, captions, compose, render
from brainjanus.data.truth import save_truth
from brainjanus.data.write import refuse_existing, write_dataset


@dataclass(frozen=True)
class SimulationConfig:
    """How much is simulated. num_subjects: whose brains. num_train: training stimuli of each subject. num_shared: how
    many of them are the same for all. num_test: test stimuli, the same for all. repeats: trials of each stimulus.
    num_sites: the range from which each subject's number of sites is drawn. trials_per_session, runs_per_session: how
    the recording is parted. seed: of everything that is drawn.
    """

    num_subjects: int = 3
    num_train: int = 1500
    num_shared: int = 0
    num_test: int = 200
    repeats: int = 3
    num_sites: tuple[int, int] = (1500, 1650)
    trials_per_session: int = 750
    runs_per_session: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {value} (at least {least})"
            for name, value, least in (
                ("num_subjects", self.num_subjects, 1),
                ("num_train", self.num_train, 2),
                ("num_test", self.num_test, 2),
                ("repeats", self.repeats, 1),
                ("num_sites", self.num_sites[0], 1),
                ("trials_per_session", self.trials_per_session, self.runs_per_session),
                ("runs_per_session", self.runs_per_session, 1),
            )
            if value < least
        ]
        if self.num_sites[0] > self.num_sites[1]:
            problems.append(f"num_sites = {self.num_sites} (the smaller first)")
        if not 0 <= self.num_shared <= self.num_train:
            problems.append(f"num_shared = {self.num_shared} (0 to num_train = {self.num_train})")
        if problems:
            raise UserError(f"simulation: expected a design that can be run, got {', '.join(problems)}. Change these.")


class Truth(NamedTuple):
    """What one subject's data were made from; V sites in the order of its BrainSpace, N stimuli.

    responses: noise-free, in the units of the z-scored dataset. x_deg, y_deg, size_deg: centre (right, up) and standard
    deviation of the receptive field. orientation_rad, frequency_cpd: what an early site prefers, NaN for others.
    category, setting, colour: selectivity of category sites (columns as CATEGORIES, SETTINGS, COLOURS; the last is a
    factor on an object's drive), NaN for others. Variances: of one trial, z-scored.
    """

    stimulus_ids: list[str]
    responses: Float[np.ndarray, "n v"]
    x_deg: Float[np.ndarray, "v"]
    y_deg: Float[np.ndarray, "v"]
    size_deg: Float[np.ndarray, "v"]
    exponent: Float[np.ndarray, "v"]
    orientation_rad: Float[np.ndarray, "v"]
    frequency_cpd: Float[np.ndarray, "v"]
    category: Float[np.ndarray, "v categories"]
    setting: Float[np.ndarray, "v settings"]
    colour: Float[np.ndarray, "v colours"]
    signal_variance: Float[np.ndarray, "v"]
    noise_variance: Float[np.ndarray, "v"]
    noise_ceiling: Float[np.ndarray, "v"]


# --- cortex ---------------------------------------------------------------------------------------------------------

FIELD_DEG = 24.0  # width of a picture
MAX_ECCENTRICITY_DEG = 16.0
LEFT_VERTICES = 10242
SPHERE_PER_MM = 1.33  # fsaverage5's sphere (radius 100) has 1.33^2 times the area of its mid-surface
# Cortical magnification is k / (eccentricity + a): Horton & Hoyt 1991 (k 17.3 mm; the averaged template is smaller)
MAGNIFICATION_MM, FOVEA_A_DEG = 15.5, 0.75
# The calcarine axis in MNI mm (right; left mirrored): confluent fovea (Dougherty et al. 2003), fundus at 90 degrees
FOVEA_MM, PERIPHERY_MM = (24, -97, -7), (24, -66, 3)
WEDGES = {"V1": 0.62, "V2": 0.41, "V3": 0.30, "hV4": 0.16}  # share of visual angle that each keeps on the cortex


class Early(NamedTuple):
    """Receptive field size (deg) = size + slope * eccentricity, and the exponent of summation: after Kay et al. 2013.

    frequency: preferred at the fovea, cycles/deg. colour: share of the drive that is colour, not luminance contrast.
    """

    size: float
    slope: float
    exponent: float
    frequency: float
    colour: float


EARLY = {
    "V1": Early(0.45, 0.13, 0.42, 0.85, 0.50),
    "V2": Early(0.60, 0.20, 0.36, 0.70, 0.50),
    "V3": Early(0.85, 0.29, 0.30, 0.55, 0.45),
    "hV4": Early(1.30, 0.45, 0.26, 0.45, 0.80),
}


class Patch(NamedTuple):
    """A category-selective patch: MNI centre (mm; right, left mirrored), radius (mm on the surface), tuning.

    x_deg (contralateral), y_deg (up), size_deg: its receptive fields; faces and words central, places peripheral (Levy
    et al. 2001), OPA lower and PPA upper field (Silson et al. 2015). scene: how much the setting itself drives it.
    colour: how much an object's colour changes its drive (natural log units; colour-biased cortex runs along the
    ventral surface, Lafer-Sousa et al. 2016).
    """

    centre_mm: tuple[int, int, int]
    radius_mm: float
    tuning: Mapping[str, float]
    scene: float
    x_deg: float
    y_deg: float
    size_deg: float
    colour: float


OBJECTS = {
    "animal": 0.5,
    "vehicle": 0.5,
    "tool": 0.5,
    "round": 0.4,
    "plant": 0.4,
    "body": 0.3,
    "place": 0.2,
    "face": 0.2,
}
# Near the group peaks of these papers; those in Talairach space were moved to MNI (Brett's transform) and rounded.
PATCHES = {
    # Gauthier et al. 2000; Rossion et al. 2003
    "OFA": Patch((39, -80, -12), 9, {"face": 1.0, "body": 0.1}, 0.0, 2.0, 0.0, 3.0, 0.2),
    # Kanwisher et al. 1997; Grill-Spector & Weiner 2014 (mid-fusiform sulcus)
    "FFA": Patch((40, -53, -19), 10, {"face": 1.0, "body": 0.15, "animal": 0.15}, 0.0, 1.5, 0.0, 4.0, 0.25),
    # Downing et al. 2001
    "EBA": Patch((49, -72, 2), 13, {"body": 1.0, "animal": 0.2}, 0.0, 2.0, -0.5, 4.5, 0.1),
    # Dilks et al. 2013; Nasr et al. 2011 (TOS)
    "OPA": Patch((34, -80, 19), 11, {"place": 0.8, "large": 0.2}, 1.0, 4.5, -2.5, 5.0, 0.1),
    # Epstein & Kanwisher 1998
    "PPA": Patch((25, -42, -10), 12, {"place": 0.8, "large": 0.3}, 1.0, 4.5, 2.0, 6.0, 0.3),
    # Epstein et al. 2007
    "RSC": Patch((16, -56, 13), 10, {"place": 0.7, "large": 0.2}, 1.0, 5.0, 0.0, 7.0, 0.1),
    # Cohen et al. 2002; Dehaene & Cohen 2011
    "VWFA": Patch((46, -57, -13), 9, {"word": 1.0, "face": 0.15}, 0.0, 1.0, 0.0, 2.5, 0.3),
    # Malach et al. 1995; Grill-Spector et al. 1999
    "LO": Patch((42, -78, -3), 14, OBJECTS, 0.0, 2.5, 0.0, 3.5, 0.6),
}
LEFT_ONLY = ("VWFA",)
AREAS = (*EARLY, *PATCHES)

# What a category shares with others: category responses are graded along these.
MEANING: dict[str, dict[str, float]] = {
    "face": {"face": 1.0},
    "person": {"body": 1.0, "face": 0.4},
    "dog": {"animal": 1.0, "body": 0.4, "face": 0.3},
    "bird": {"animal": 0.9, "body": 0.25, "face": 0.2},
    "fish": {"animal": 0.8, "body": 0.1},
    "car": {"vehicle": 1.0, "large": 0.5},
    "boat": {"vehicle": 0.9, "large": 0.6},
    "house": {"place": 1.0, "large": 1.0},
    "tree": {"plant": 1.0, "large": 0.7},
    "cup": {"tool": 1.0, "round": 0.2},
    "chair": {"tool": 0.7, "place": 0.25},
    "clock": {"round": 0.7, "tool": 0.4, "word": 0.35},
    "ball": {"round": 1.0, "tool": 0.3},
    "sign": {"word": 1.0, "tool": 0.2},
}
# Of settings: open or closed, natural or made, and so on (after Oliva & Torralba 2001).
LAYOUT: dict[str, dict[str, float]] = {
    "beach": {"open": 1.0, "natural": 1.0, "water": 1.0},
    "street": {"made": 1.0, "open": 0.3},
    "forest": {"natural": 1.0, "closed": 1.0},
    "field": {"open": 1.0, "natural": 1.0},
    "room": {"made": 1.0, "closed": 1.0},
    "snow": {"open": 0.8, "natural": 0.8, "cold": 1.0},
    "desert": {"open": 1.0, "natural": 0.7, "dry": 1.0},
    "night": {"dark": 1.0, "open": 0.4},
}


class Surface(NamedTuple):
    """One hemisphere of fsaverage5: mid-surface and sphere, mm and sphere units (radius 100)."""

    mid_mm: Float[np.ndarray, "n 3"]
    sphere: Float[np.ndarray, "n 3"]


class Cortex(NamedTuple):
    """One subject's sites. `points_mm` lie on the sphere, scaled to mm of cortex, hemispheres far apart."""

    vertex: Int[np.ndarray, "v"]
    coordinates_mm: Float[np.ndarray, "v 3"]
    points_mm: Float[np.ndarray, "v 3"]
    area: Shaped[np.ndarray, "v"]
    x_deg: Float[np.ndarray, "v"]
    y_deg: Float[np.ndarray, "v"]
    size_deg: Float[np.ndarray, "v"]


def load_surfaces() -> dict[str, Surface]:
    """fsaverage5 as bundled with nilearn. Raises UserError if nilearn is not installed."""
    try:
        from nilearn.datasets import fetch_surf_fsaverage
        from nilearn.surface import load_surf_mesh
    except ImportError as error:
        raise UserError(
            "the simulated cortex: expected nilearn, which brings the fsaverage5 meshes, got none. "
            "Install it with pip install 'brainjanus[cortex]'."
        ) from error
    files = fetch_surf_fsaverage("fsaverage5")
    surfaces = {}
    for side in ("left", "right"):
        pial, white, sphere = (
            np.asarray(load_surf_mesh(files[f"{kind}_{side}"]).coordinates, np.float64)
            for kind in ("pial", "white", "sphere")
        )
        surfaces[side] = Surface((pial + white) / 2, 100 * sphere / np.linalg.norm(sphere, axis=1, keepdims=True))
    return surfaces


class Field:
    """Smooth random functions over points: samples of a Gaussian process with a Gaussian kernel.

    Source: Rahimi & Recht 2007, random Fourier features. `length_mm`: standard deviation of the kernel.
    """

    NUM_WAVES = 128

    def __init__(self, points_mm: Float[np.ndarray, "v 3"], length_mm: float, rng: np.random.Generator):
        waves = rng.normal(0, 1 / length_mm, (3, self.NUM_WAVES))
        phases = rng.uniform(0, 2 * np.pi, self.NUM_WAVES)
        self.basis = np.sqrt(2 / self.NUM_WAVES) * np.cos(points_mm @ waves + phases).T

    def sample(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count v"]:
        """`count` independent functions, each with mean 0 and variance 1 at every point."""
        return rng.normal(size=(count, self.NUM_WAVES)) @ self.basis


def calcarine_plane(surface: Surface, sign: int) -> Float[np.ndarray, "n 2"]:
    """The sphere laid flat around V1 (azimuthal equidistant): sphere units anterior and dorsal of the fovea.

    sign: -1 for the left hemisphere, 1 for the right.
    """
    ends = [surface.sphere[_nearest(surface, (sign * x, y, z))] / 100 for x, y, z in (FOVEA_MM, PERIPHERY_MM)]
    length = 100 * float(np.arccos(ends[0] @ ends[1]))
    middle = (ends[0] + ends[1]) / np.linalg.norm(ends[0] + ends[1])
    anterior = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    dorsal = -sign * np.cross(middle, anterior)
    points = surface.sphere / 100
    flat = np.stack([points @ anterior, points @ dorsal], axis=1)
    distance = 100 * np.arccos(np.clip(points @ middle, -1, 1))
    flat *= (distance / np.maximum(np.linalg.norm(flat, axis=1), 1e-9))[:, None]
    return flat + np.array([length / 2, 0])


def _nearest(surface: Surface, point_mm: tuple[int, int, int]) -> int:
    return int(np.linalg.norm(surface.mid_mm - point_mm, axis=1).argmin())


def retinotopy(
    plane: Float[np.ndarray, "n 2"],
) -> tuple[Shaped[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Area, eccentricity and elevation angle at points of the calcarine plane, in units of the magnification k.

    The angle runs from -pi/2 (lower vertical meridian) over 0 (horizontal) to pi/2 (upper). Area is "" off the maps.
    Source: Balasubramanian et al. 2002: the angle of each area is compressed into a wedge, wedges are joined at the
    meridians where the map reverses, and the joint wedge goes through w = log(z + a). Dorsal cortex sees below.
    """
    w = plane[:, 0] + 1j * np.clip(plane[:, 1], -3.1, 3.1)
    z = FOVEA_A_DEG * (np.exp(np.minimum(w.real, 8) + 1j * w.imag) - 1)
    eccentricity, wedge = np.abs(z), np.abs(np.angle(z)) / (np.pi / 2)
    ventral = np.where(z.imag < 0, 1.0, -1.0)
    edges = np.cumsum([0, *WEDGES.values()])
    edges[-1] += WEDGES["hV4"]  # hV4 holds the whole hemifield on the ventral side
    place = np.searchsorted(edges, wedge, side="right") - 1
    inside = [(wedge - edges[i]) / width for i, width in enumerate(WEDGES.values())]
    quarter = np.select([place == i for i in range(4)], [inside[0], 1 - inside[1], inside[2], 1 - inside[3]])
    area = np.array([*WEDGES, ""], dtype="<U4")[np.minimum(place, len(WEDGES))]
    off = (np.abs(plane[:, 1]) > 3.1) | ((area == "hV4") & (ventral < 0))
    return np.where(off, "", area), eccentricity, ventral * quarter * np.pi / 2


def lay_out(config: SimulationConfig, subject: int, surfaces: Mapping[str, Surface]) -> Cortex:
    """The sites of one subject: its own warp of the maps, its own places and sizes of patches, its own coverage.

    A vertex belongs to one area: V1-V3 come first, then the nearest patch (in radii), then hV4.
    """
    rng = _generator(config, "cortex", subject)
    parts = []
    for sign, (side, surface) in zip((-1, 1), surfaces.items(), strict=True):
        points = surface.sphere / SPHERE_PER_MM
        warp = Field(points, 15.0, rng).sample(2, rng).T * 1.5 * SPHERE_PER_MM
        magnification = MAGNIFICATION_MM * SPHERE_PER_MM * np.exp(rng.normal(0, 0.04))
        area, eccentricity, angle = retinotopy((calcarine_plane(surface, sign) + warp) / magnification)
        area = np.where(eccentricity < MAX_ECCENTRICITY_DEG * rng.uniform(0.92, 1.08), area, "")
        x, y = eccentricity * np.cos(angle), eccentricity * np.sin(angle)
        size = np.zeros(len(points))
        for name, early in EARLY.items():
            size[area == name] = early.size + early.slope * eccentricity[area == name]
        nearest = np.ones(len(points))  # distance to the nearest patch, in radii
        taken = np.isin(area, ("V1", "V2", "V3"))
        scatter = Field(points, 6.0, rng).sample(3, rng)
        for name, patch in PATCHES.items():
            if name in LEFT_ONLY and side == "right":
                continue
            centre = surface.sphere[_nearest(surface, (sign * patch.centre_mm[0], *patch.centre_mm[1:]))]
            centre = centre / SPHERE_PER_MM + rng.normal(0, 1.5, 3)
            distance = np.linalg.norm(points - centre, axis=1) / (patch.radius_mm * np.exp(rng.normal(0, 0.06)))
            inside = (distance < nearest) & ~taken
            nearest[inside], area[inside] = distance[inside], name
            x[inside] = np.abs(patch.x_deg * (1 + 0.4 * scatter[0, inside]))
            y[inside] = patch.y_deg + 0.4 * patch.x_deg * scatter[1, inside]
            size[inside] = patch.size_deg * np.exp(0.2 * scatter[2, inside])
        kept = np.flatnonzero(area != "")
        far = points[kept] + np.array([1000.0, 0, 0]) * (sign > 0)
        vertex = kept + LEFT_VERTICES * (sign > 0)
        parts.append(Cortex(vertex, surface.mid_mm[kept], far, area[kept], -sign * x[kept], y[kept], size[kept]))
    cortex = Cortex(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    # Signal is lost in places, as near large veins: the best sites are kept. A cortex has about 1,700 in all.
    wanted = int(rng.integers(config.num_sites[0], config.num_sites[1] + 1))
    quality = Field(cortex.points_mm, 8.0, rng).sample(1, rng)[0] + rng.normal(0, 1, len(cortex.area))
    standing = np.zeros(len(quality))  # within the area, so that every area keeps its share
    for name in AREAS:
        of_area = cortex.area == name
        standing[of_area] = (np.argsort(np.argsort(-quality[of_area])) + 0.5) / of_area.sum()
    chosen = np.sort(np.argsort(standing, kind="stable")[:wanted])
    return Cortex(*(column[chosen] for column in cortex))


# --- responses ------------------------------------------------------------------------------------------------------

CYCLES = (4, 8, 16)  # per picture
ORIENTATIONS = 4
CONTRASTS = ("red", "yellow", "green", "blue", "light", "dark")
PADDING = 16
GRID = IMAGE_SIZE // 2


def energy_maps(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[torch.Tensor, "n c p"]:
    """Local contrast energy per channel on a GRID x GRID lattice: C = len(CYCLES) * ORIENTATIONS + len(CONTRASTS).

    Energy is that of quadrature pairs of Gabors (Adelson & Bergen 1985), here one complex filter: a Gaussian in the
    frequency plane, one octave wide. Colours are the half-rectified opponent signals. The picture stands on grey.
    """
    rgb = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5
    red, green, blue = rgb.unbind(1)
    luminance = 0.3 * red + 0.59 * green + 0.11 * blue
    width = IMAGE_SIZE + 2 * PADDING
    spectrum = torch.fft.fft2(torch.nn.functional.pad(luminance, [PADDING] * 4))
    band = torch.arange(-width // 4, width // 4)  # frequencies around a filter's centre: energy at every other pixel
    between = torch.exp(1j * torch.pi / width * band)  # half a pixel on, into the middle of a lattice cell
    inner = slice(PADDING // 2, -PADDING // 2)
    maps = []
    for cycles in CYCLES:
        for angle in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
            centre = np.array([np.sin(angle), np.cos(angle)]) * cycles * width / IMAGE_SIZE
            rows, columns = (band + round(c) for c in centre)
            spread = cycles / 3 * width / IMAGE_SIZE
            along_y, along_x = (
                torch.exp(-((at - c) ** 2) / (2 * spread**2)) * between
                for at, c in zip((rows, columns), centre, strict=True)
            )
            part = spectrum[:, rows % width][:, :, columns % width] * (along_y[:, None] * along_x)
            pair = torch.view_as_real(torch.fft.ifft2(torch.fft.ifftshift(part, dim=(1, 2))))[:, inner, inner]
            maps.append(pair.square().sum(-1))
    red_green, blue_yellow = red - green, blue - (red + green) / 2
    for signal in (red_green, -blue_yellow, -red_green, blue_yellow, luminance, -luminance):
        maps.append(torch.nn.functional.avg_pool2d(signal.clamp(min=0)[:, None], 2)[:, 0])
    return torch.stack(maps, dim=1).flatten(2)


class EarlySites(NamedTuple):
    """What the early sites of a subject prefer: weights over the channels of `energy_maps`."""

    weights: Float[np.ndarray, "v c"]
    orientation_rad: Float[np.ndarray, "v"]
    frequency_cpd: Float[np.ndarray, "v"]


def tune_early(cortex: Cortex, rng: np.random.Generator) -> EarlySites:
    """Draw preferences: orientation in columns (a smooth map), frequency falling with eccentricity and area, colour."""
    num_sites = len(cortex.area)
    fine = Field(cortex.points_mm, 4.0, rng)
    a, b = fine.sample(2, rng)
    orientation = np.mod(np.arctan2(b, a) / 2, np.pi)
    angles = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
    by_angle = np.exp(1.2 * np.cos(2 * (orientation[:, None] - angles)))
    eccentricity = np.hypot(cortex.x_deg, cortex.y_deg)
    foveal = np.array([EARLY[name].frequency for name in cortex.area])
    frequency = foveal / (1 + 0.15 * eccentricity) * np.exp(0.25 * fine.sample(1, rng)[0])
    octaves = np.log2(frequency[:, None] * FIELD_DEG / np.array(CYCLES))
    by_frequency = np.exp(-(octaves**2) / 2)
    gabor = (by_frequency[:, :, None] * by_angle[:, None]).reshape(num_sites, -1)
    hue = np.arctan2(*fine.sample(2, rng))
    opponent = np.exp(1.2 * np.cos(hue[:, None] - np.arange(4) * np.pi / 2))
    lightness = np.exp(0.8 * fine.sample(2, rng).T)
    tint = np.concatenate([_shares(opponent), 0.5 * _shares(lightness)], axis=1)
    share = np.array([EARLY[name].colour for name in cortex.area])
    share = np.clip(share * np.exp(0.4 * fine.sample(1, rng)[0]), 0.05, 0.95)[:, None]
    weights = np.concatenate([(1 - share) * _shares(gabor), share * _shares(tint)], axis=1)
    return EarlySites(weights, orientation, frequency)


def _shares(rows: Float[np.ndarray, "v c"]) -> Float[np.ndarray, "v c"]:
    return rows / rows.sum(axis=1, keepdims=True)


def early_responses(
    maps: Float[torch.Tensor, "n c p"], scale: Float[torch.Tensor, "c"], cortex: Cortex, sites: EarlySites
) -> Float[np.ndarray, "n v"]:
    """Channel energy inside each receptive field, summed with the site's weights, then compressed (Kay et al. 2013)."""
    at = ((np.arange(GRID) + 0.5) / GRID - 0.5) * FIELD_DEG
    x, y = np.meshgrid(at, -at)
    squared = (x.ravel()[:, None] - cortex.x_deg) ** 2 + (y.ravel()[:, None] - cortex.y_deg) ** 2
    fields = np.exp(-squared / (2 * cortex.size_deg**2)) / (2 * np.pi * cortex.size_deg**2) * (FIELD_DEG / GRID) ** 2
    fields = torch.from_numpy(fields.astype(np.float32))
    weights = torch.from_numpy(sites.weights.astype(np.float32)) / scale
    drive = torch.zeros(len(maps), len(cortex.area))
    for channel in range(maps.shape[1]):
        drive += (maps[:, channel] @ fields) * weights[:, channel]
    exponent = np.array([EARLY[name].exponent for name in cortex.area])
    return drive.numpy().astype(np.float64) ** exponent


class PatchSites(NamedTuple):
    """What the sites of category patches respond to."""

    category: Float[np.ndarray, "v categories"]
    setting: Float[np.ndarray, "v settings"]
    colour: Float[np.ndarray, "v colours"]


def tune_patches(cortex: Cortex, rng: np.random.Generator) -> PatchSites:
    """Draw selectivities: the patch's own, and smooth variation along shared meaning and for single categories."""
    field = Field(cortex.points_mm, 5.0, rng)
    meaning, layout = _table(MEANING), _table(LAYOUT)
    dims = list(dict.fromkeys(dim for row in MEANING.values() for dim in row))
    own = np.array([[PATCHES[name].tuning.get(dim, 0.0) for dim in dims] for name in cortex.area])
    category = 0.08 + (own + 0.13 * field.sample(len(dims), rng).T) @ meaning.T
    category += 0.1 * field.sample(len(meaning), rng).T
    scene = np.array([PATCHES[name].scene for name in cortex.area])[:, None]
    setting = 0.9 + 0.3 * field.sample(layout.shape[1], rng).T @ layout.T + 0.25 * field.sample(len(layout), rng).T
    rgb = np.array(list(COLOURS.values())) / 127.5 - 1
    strength = np.array([PATCHES[name].colour for name in cortex.area])[:, None]
    colour = np.exp(strength * field.sample(3, rng).T @ rgb.T)
    return PatchSites(np.maximum(category, 0), np.maximum(setting, 0) * scene, colour)


def patch_responses(scenes: list[Scene], cortex: Cortex, sites: PatchSites) -> Float[np.ndarray, "n v"]:
    """Selectivity for each object, weighed by colour, size and how far it is in the receptive field; compressed."""
    drive = sites.setting[:, [list(SETTINGS).index(scene.setting) for scene in scenes]].T.copy()
    columns = {name: i for i, name in enumerate(CATEGORIES)}
    for row, scene in enumerate(scenes):
        for item in scene.items:
            x, y = (item.x - 0.5) * FIELD_DEG, (0.5 - item.y) * FIELD_DEG
            spread = cortex.size_deg**2 + (item.extent * FIELD_DEG / 4) ** 2
            cover = np.exp(-((x - cortex.x_deg) ** 2 + (y - cortex.y_deg) ** 2) / (2 * spread))
            gain = sites.colour[:, list(COLOURS).index(item.colour)] * (item.extent / 0.3) ** 0.7
            drive[row] += sites.category[:, columns[item.category]] * cover * gain
    return np.sqrt(drive)


def _table(rows: Mapping[str, Mapping[str, float]]) -> Float[np.ndarray, "rows dims"]:
    dims = list(dict.fromkeys(dim for row in rows.values() for dim in row))
    return np.array([[row.get(dim, 0.0) for dim in dims] for row in rows.values()])


# --- trials and noise -----------------------------------------------------------------------------------------------

# The reliable share of single-trial variance, s2 / (s2 + n2), is logit-normal over the cortex: its median gives a
# ceiling of r = .4, its upper end r = .8, as in NSD (Allen et al. 2022, figure on noise ceilings).
MEDIAN_SHARE, SHARE_SPREAD = 0.16, 0.85
NOISE_SMOOTH_MM = 5.0
NOISE_PARTS = {"smooth": 0.25, "global": 0.08, "run": 0.07, "site": 0.60}  # of the noise variance


def schedule(config: SimulationConfig, subject: int, train_ids: list[str], test_ids: list[str]) -> Trials:
    """Every stimulus `repeats` times, in random order, in sessions and runs; repeats are numbered as they come."""
    rng = _generator(config, "schedule", subject)
    ids = [*train_ids, *test_ids]
    order = rng.permutation(np.repeat(np.arange(len(ids)), config.repeats))
    session, within = np.divmod(np.arange(len(order)), config.trials_per_session)
    run = within * config.runs_per_session // config.trials_per_session
    seen = np.zeros(len(ids), np.int64)
    repeat = np.zeros(len(order), np.int64)
    for row, stimulus in enumerate(order):
        repeat[row] = seen[stimulus]
        seen[stimulus] += 1
    split = ["train" if stimulus < len(train_ids) else "test" for stimulus in order]
    return Trials([ids[i] for i in order], session, run, repeat, split)


def reliable_share(cortex: Cortex, rng: np.random.Generator) -> Float[np.ndarray, "v"]:
    """s2 / (s2 + n2) of one trial at each site: smooth over the cortex, lower where the picture ends."""
    smooth = Field(cortex.points_mm, 8.0, rng).sample(1, rng)[0]
    beyond = np.maximum(np.hypot(cortex.x_deg, cortex.y_deg) - FIELD_DEG / 2, 0)
    spread = SHARE_SPREAD * (0.8 * smooth + 0.6 * rng.normal(size=len(smooth)))
    logit = np.log(MEDIAN_SHARE / (1 - MEDIAN_SHARE)) + spread - 0.3 * beyond
    return np.minimum(1 / (1 + np.exp(-logit)), 0.75)


def noise(cortex: Cortex, trials: Trials, rng: np.random.Generator) -> Float[np.ndarray, "t v"]:
    """Noise of unit variance per site: smooth along the cortex, common to all sites, slow (by run), and independent."""
    num_trials, num_sites = len(trials.session), len(cortex.area)
    field = Field(cortex.points_mm, NOISE_SMOOTH_MM, rng)
    runs = np.unique(np.stack([trials.session, trials.run]), axis=1, return_inverse=True)[1].ravel()
    total = np.sqrt(NOISE_PARTS["smooth"]) * field.sample(num_trials, rng)
    total += np.sqrt(NOISE_PARTS["global"]) * rng.normal(size=(num_trials, 1))
    total += np.sqrt(NOISE_PARTS["run"]) * field.sample(int(runs.max()) + 1, rng)[runs]
    total += np.sqrt(NOISE_PARTS["site"]) * rng.standard_normal((num_trials, num_sites))
    return total


# --- the whole ------------------------------------------------------------------------------------------------------


def simulate(out: Path | str, config: SimulationConfig = SimulationConfig(), *, overwrite: bool = False) -> Dataset:
    """Simulate a study: write `out/dataset` and, apart from it, `out/truth`. The same config gives the same files.

    Raises UserError if nilearn is missing, or if there is a dataset already and `overwrite` is False.
    """
    out = Path(out)
    refuse_existing(out / "dataset", overwrite)
    surfaces = load_surfaces()
    names = [f"subj{i + 1:02d}" for i in range(config.num_subjects)]
    own = {name: [f"{name}-{i:05d}" for i in range(config.num_train - config.num_shared)] for name in names}
    common = [f"common-{i:05d}" for i in range(config.num_shared)]
    shared = [f"shared-{i:05d}" for i in range(config.num_test)]
    ids = [*shared, *(stimulus for some in own.values() for stimulus in some), *common]
    row_of = {stimulus: row for row, stimulus in enumerate(ids)}
    rng = _generator(config, "scenes")
    scenes = [compose(rng) for _ in ids]
    pixels = np.stack([render(scene, rng) for scene in scenes])
    spoken = {stimulus: captions(scene, rng) for stimulus, scene in zip(ids, scenes, strict=True)}

    def subjects(truth_folder: Path) -> Iterator[Subject]:
        for number, name in enumerate(names):
            trained = own[name] + common
            shown = trained + shared
            rows = [row_of[stimulus] for stimulus in shown]
            cortex = lay_out(config, number, surfaces)
            trials = schedule(config, number, trained, shared)
            responses, truth = _record(config, number, cortex, trials, shown, [scenes[i] for i in rows], pixels[rows])
            save_truth(truth_folder / f"{name}.safetensors", truth)
            rois = {area: cortex.area == area for area in AREAS}
            geometry = {"type": "surface", "template": "fsaverage5", "left_vertices": LEFT_VERTICES}
            space = BrainSpace(
                name,
                len(cortex.area),
                "vertices",
                coordinates_mm=cortex.coordinates_mm.astype(np.float32),
                rois=rois,
                geometry=geometry,
                index=cortex.vertex.astype(np.int64),
            )
            yield Subject(space, responses, trials)

    with written_beside(out / "truth") as truth_folder:
        truth_folder.mkdir()
        return write_dataset(
            out / "dataset",
            name="simulated cortex",
            modality="fMRI (simulated)",
            subjects=subjects(truth_folder),
            stimuli=Stimuli(ids, pixels, captions=spoken),
            zscore="session",
            provenance={"simulation": asdict(config)},
            overwrite=overwrite,
        )


def _record(
    config: SimulationConfig,
    number: int,
    cortex: Cortex,
    trials: Trials,
    shown: list[str],
    scenes: list[Scene],
    pixels: UInt8[np.ndarray, "n h w 3"],
) -> tuple[Float[np.ndarray, "t v"], Truth]:
    """One subject's raw betas (percent signal change), and the truth. Training stimuli come first in `shown`."""
    rng = _generator(config, "tuning", number)
    is_early = np.isin(cortex.area, list(EARLY))
    early = Cortex(*(column[is_early] for column in cortex))
    patches = Cortex(*(column[~is_early] for column in cortex))
    early_sites, patch_sites = tune_early(early, rng), tune_patches(patches, rng)
    signal = np.zeros((len(shown), len(cortex.area)))
    batches = np.array_split(np.arange(len(shown)), -(-len(shown) // 256))
    scale = energy_maps(pixels[:256]).mean(dim=(0, 2))
    for batch in batches:
        signal[np.ix_(batch, is_early)] = early_responses(energy_maps(pixels[batch]), scale, early, early_sites)
    signal[:, ~is_early] = patch_responses(scenes, patches, patch_sites)

    signal /= signal[: config.num_train].std(axis=0)  # one unit is one standard deviation of the signal
    share = reliable_share(cortex, rng)
    noise_sd = np.sqrt((1 - share) / share)
    rng = _generator(config, "noise", number)
    num_sessions = int(trials.session.max()) + 1
    drift = Field(cortex.points_mm, 15.0, rng)
    gain = 1 + 0.06 * drift.sample(num_sessions, rng)
    offset = 0.5 * drift.sample(num_sessions, rng)
    row_of = {stimulus: row for row, stimulus in enumerate(shown)}
    rows = np.array([row_of[stimulus] for stimulus in trials.stimulus_id])
    responses = signal[rows] + noise_sd * noise(cortex, trials, rng)
    responses = gain[trials.session] * responses + offset[trials.session] * np.sqrt(1 + noise_sd**2)

    def spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        whole = np.full((len(where), *values.shape[1:]), np.nan)
        whole[where] = values
        return whole

    truth = Truth(
        stimulus_ids=shown,
        responses=((signal - signal[: config.num_train].mean(axis=0)) * np.sqrt(share)).astype(np.float32),
        x_deg=cortex.x_deg,
        y_deg=cortex.y_deg,
        size_deg=cortex.size_deg,
        exponent=np.array([EARLY[name].exponent if name in EARLY else 0.5 for name in cortex.area]),
        orientation_rad=spread(early_sites.orientation_rad, is_early),
        frequency_cpd=spread(early_sites.frequency_cpd, is_early),
        category=spread(patch_sites.category, ~is_early),
        setting=spread(patch_sites.setting, ~is_early),
        colour=spread(patch_sites.colour, ~is_early),
        signal_variance=share,
        noise_variance=1 - share,
        noise_ceiling=np.sqrt(share),
    )
    return responses.astype(np.float32), truth


def _generator(config: SimulationConfig, purpose: str, subject: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose, so that a change in one leaves the others as they were."""
    return np.random.default_rng([config.seed, subject, *purpose.encode()])
