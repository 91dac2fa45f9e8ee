"""Is the map right, and not only its sites?

Enters: a BrainSpace and maps or responses, measured and predicted. Leaves: how smooth maps are, how correlations fall
with distance, which categories sites prefer, whether predicted preferences lie where the measured ones do, with a
p-value that knows how smooth maps are, and a figure.

Sources: Moran 1950 (spatial autocorrelation); Alexander-Bloch et al. 2018 (spin test). Differs from the latter:
recordings that cover a part of the cortex are spun as well. What comes from where nothing was measured is left out, and
a rotation that leaves fewer than MIN_KEPT of the sites is drawn again. Those that are kept move the map less than a
uniform rotation would and compare fewer sites, so that p errs on the large side: of 400 pairs of independent maps on
the simulated cortex, smooth over 3 to 20 mm, between 0 and 2.2 % had p < .05. Volumes have no sphere to spin and get no
p-value (variogram-matched surrogates, Burt et al. 2020, would be a model to be fitted: left out).
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.evaluate.brain import unit
from brainjanus.evaluate.text import content_words

NEIGHBOURS = 8  # of each site, for Moran's I
MAX_CURVE_SITES = 2000  # of which all pairs are taken for the distance curve
CURVE_MM = tuple(3.0 * step for step in range(21))
SPHERE_RADIUS = 100.0  # of fsaverage5, in its own unit
MIN_KEPT = 0.5
MAX_DRAWS = 300  # rotations tried for each that is kept
MIN_STIMULI, CATEGORY_SHARES, NUM_CATEGORIES = 8, (0.05, 0.5), 8
DRAWN_CATEGORIES = 2
DPI = 160
INK = "#222222"


class Curve(NamedTuple):
    """The mean correlation between two sites that lie so far apart; NaN where no pair does."""

    distance_mm: Float[np.ndarray, "k"]
    r: Float[np.ndarray, "k"]


class Spins(NamedTuple):
    """Rotations of the cortex: which site lands on each site, -1 where none was measured there.

    sources: None where nothing can be spun. note: what was done, or why not, in one sentence.
    """

    sources: Int[np.ndarray, "num v"] | None
    note: str


class Agreement(NamedTuple):
    """How well predicted selectivity maps agree with measured ones: r across sites.

    r, p: for each category; p is None without a spin test. mean_r: over categories; joint_p: of that mean, every
    rotation being applied to all categories at once. note: what the p-values rest on, or why there are none.
    """

    r: dict[str, float]
    p: dict[str, float] | None
    mean_r: float | None
    joint_p: float | None
    note: str


# --- smoothness -----------------------------------------------------------------------------------------------------


# V sites, M maps, N stimuli
def spatial_autocorrelation(space: BrainSpace, maps: Float[np.ndarray, "m v"]) -> Float[np.ndarray, "m"] | None:
    """Moran's I of each map: near 1 where neighbours agree, near 0 where they do not; 0 for a constant map.

    I = (V / W) sum_ij w_ij z_i z_j / sum_i z_i^2 with z = map - mean. w_ij is 1 for the NEIGHBOURS nearest sites j of i
    (in mm, through space, and of sensors through time) in its hemisphere, made symmetric, and 0 else: nearest sites and
    not inverse distances, so that I does not depend on how densely a cortex was sampled. None without coordinates, or
    if no site has a neighbour.
    Raises UserError for NaN. Source: Moran 1950.
    """
    if space.points_mm is None:
        return None
    _check_finite("map", maps)
    weights = _neighbours(space)
    total = weights.sum()
    if total == 0:
        return None
    z = maps - maps.mean(axis=1, keepdims=True, dtype=np.float64)
    square = np.square(z).sum(axis=1)
    product = np.einsum("mv,vm->m", z, weights @ z.T)
    constant = np.ptp(maps, axis=1) == 0
    scale = np.where(constant, 1, square) * total / space.num_sites
    return np.where(constant, 0, product / scale)


def _neighbours(space: BrainSpace) -> csr_array:
    """Symmetric weights: 1/2 for each of the two sites that counts the other among its nearest."""
    rows, columns = [], []
    points_mm = space.points_mm
    assert points_mm is not None
    for sites in _hemispheres(space):
        count = min(NEIGHBOURS, len(sites) - 1)
        if count < 1:
            continue
        points = points_mm[sites]
        near = cKDTree(points).query(points, k=count + 1)[1]
        own = near == np.arange(len(sites))[:, None]
        own[~own.any(axis=1), -1] = True  # sites at one place: the site itself may not be among the first
        rows.append(np.repeat(sites, count))
        columns.append(sites[near[~own]])
    if not rows:
        return csr_array((space.num_sites, space.num_sites))
    row, column = np.concatenate(rows), np.concatenate(columns)
    weights = csr_array((np.full(len(row), 0.5), (row, column)), shape=(space.num_sites, space.num_sites))
    return csr_array(weights + weights.T)


def distance_curve(
    space: BrainSpace, responses: Float[np.ndarray, "n v"], edges_mm: Sequence[float] = CURVE_MM
) -> Curve | None:
    """The correlation across stimuli between two sites of a hemisphere, as a function of their distance.

    Of sensors: between any two sites, time being a direction like the others (`BrainSpace.points_mm`).
    Of more than MAX_CURVE_SITES sites, so many are taken, evenly along the cortical order. Sites that are constant are
    left out. None without coordinates. Raises UserError for NaN.
    """
    points_mm = space.points_mm
    if points_mm is None:
        return None
    _check_finite("response", responses)
    edges = np.asarray(edges_mm, np.float64)
    assert space.order is not None
    places = np.linspace(0, space.num_sites - 1, min(space.num_sites, MAX_CURVE_SITES)).round().astype(np.int64)
    chosen = space.order[places]
    total, count = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for hemisphere in _hemispheres(space):
        sites = np.intersect1d(hemisphere, chosen)
        standard = unit(responses[:, sites], axis=0)
        varies = standard.any(axis=0)
        sites, standard = sites[varies], standard[:, varies]
        one, other = np.triu_indices(len(sites), k=1)
        r = (standard.T @ standard)[one, other]
        distance = np.linalg.norm(points_mm[sites[one]] - points_mm[sites[other]], axis=1)
        place = np.searchsorted(edges, distance, side="right") - 1
        inside = (place >= 0) & (place < len(total))
        total += np.bincount(place[inside], r[inside], minlength=len(total))
        count += np.bincount(place[inside], minlength=len(total))
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return Curve((edges[:-1] + edges[1:]) / 2, mean)


def _hemispheres(space: BrainSpace) -> list[Int[np.ndarray, "s"]]:
    """The sites of the left and of the right hemisphere; all together of sensors, which see both."""
    assert space.index is not None
    if space.geometry.get("type") == "sensors":
        return [np.arange(space.num_sites)]
    if space.geometry.get("type") == "surface":
        right = space.index >= int(space.geometry["left_vertices"])
    else:
        assert space.coordinates_mm is not None
        right = space.coordinates_mm[:, 0] >= 0
    return [np.flatnonzero(~right), np.flatnonzero(right)]


# --- rotations ------------------------------------------------------------------------------------------------------


def spins(space: BrainSpace, num: int, rng: np.random.Generator) -> Spins:
    """Random rotations of a surface on fsaverage5, one for both hemispheres, mirrored for the right.

    Rotations are uniform (Haar) and kept if MIN_KEPT of the sites receive a value; a site receives that of the vertex
    that is nearest to where it was before the rotation. Of other spaces none is made; `note` says why.
    Raises UserError if nilearn, which brings the sphere, is missing. Source: Alexander-Bloch et al. 2018.
    """
    if (space.geometry.get("type"), space.geometry.get("template")) != ("surface", "fsaverage5"):
        where = "a volume" if space.geometry.get("type") == "volume" else f"{space.kind} without a known sphere"
        return Spins(
            None, f"No spin test: {space.subject} is {where}, and only fsaverage5 has a sphere to rotate here."
        )
    sphere = _sphere()
    num_vertices = len(sphere[0])
    assert space.index is not None
    site_at = np.full((2, num_vertices), -1)
    site_at.reshape(-1)[space.index] = np.arange(space.num_sites)
    trees = [cKDTree(points) for points in sphere]
    measured = [_degrees(tree, sites >= 0) for tree, sites in zip(trees, site_at, strict=True)]
    hemispheres = _hemispheres(space)
    points = [sphere[side][space.index[sites] - side * num_vertices] for side, sites in enumerate(hemispheres)]
    mirror = np.diag([-1.0, 1.0, 1.0])

    def turned(rotations: np.ndarray, step: int) -> list[np.ndarray]:
        """For each rotation where every `step`-th site of either hemisphere comes from."""
        turns = rotations, mirror @ rotations @ mirror
        return [np.einsum("rij,vj->rvi", turn, of_side[::step]) for turn, of_side in zip(turns, points, strict=True)]

    def kept_share(rotations: np.ndarray, step: int) -> np.ndarray:
        """About what share of the sites comes from where something was measured."""
        places = turned(rotations, step)
        found = [known[_degree(at)] for known, at in zip(measured, places, strict=True)]
        return np.concatenate(found, axis=1).mean(axis=1)

    kept: list[np.ndarray] = []
    drawn = 0
    while len(kept) < num and drawn < num * MAX_DRAWS:
        rotations = Rotation.random(1000, random_state=rng).as_matrix()
        drawn += len(rotations)
        rotations = rotations[kept_share(rotations, -(-space.num_sites // 100)) >= MIN_KEPT - 0.2]  # a few sites tell
        rotations = rotations[kept_share(rotations, 1) >= MIN_KEPT - 0.03]
        for rotation in rotations:
            sources = np.zeros(space.num_sites, np.int64)
            for side, places in enumerate(turned(rotation[None], 1)):
                sources[hemispheres[side]] = site_at[side][trees[side].query(places[0])[1]]
            if (sources >= 0).mean() >= MIN_KEPT and len(kept) < num:
                kept.append(sources)
    if len(kept) < num:
        return Spins(
            None,
            f"No spin test: of {drawn} rotations only {len(kept)} put a measured value on {MIN_KEPT:.0%} of the sites "
            f"of {space.subject}, which cover too little of the cortex.",
        )
    share = np.mean([(sources >= 0).mean() for sources in kept])
    note = (
        f"Spin test: {num} rotations of fsaverage5 that keep at least {MIN_KEPT:.0%} of the sites (on average "
        f"{share:.0%}; p errs on the large side)."
    )
    return Spins(np.stack(kept), note)


def spin_p(r: float, null: Float[np.ndarray, "num"]) -> float:
    """p-value of a correlation between maps: (1 + rotations that reach r) / (1 + rotations)."""
    return float((1 + (null >= r - 1e-9).sum()) / (1 + len(null)))


def map_agreement(
    one: Float[np.ndarray, "v"], other: Float[np.ndarray, "v"], rotations: Spins
) -> tuple[float, float | None]:
    """r of two maps across sites, and its p by a spin test; None where nothing can be spun."""
    r = float(_null_r(one, other, np.arange(len(one))[None])[0])
    return r, None if rotations.sources is None else spin_p(r, _null_r(one, other, rotations.sources))


def _null_r(
    fixed: Float[np.ndarray, "v"], rotated: Float[np.ndarray, "v"], sources: Int[np.ndarray, "num v"]
) -> Float[np.ndarray, "num"]:
    """The correlation of one map with the other under each rotation, over the sites that have both."""
    found = []
    for some in np.array_split(sources, -(-sources.size // 2**21)):  # 16 MB at a time
        known = some >= 0
        count = known.sum(axis=1, keepdims=True)
        pair = [np.where(known, values, 0) for values in (np.broadcast_to(fixed, some.shape), rotated[some])]
        pair = [np.where(known, values - values.sum(axis=1, keepdims=True) / count, 0) for values in pair]
        product, one, other = (np.einsum("bv,bv->b", *both) for both in (pair, pair[:1] * 2, pair[1:] * 2))
        length = np.sqrt(one * other)
        found.append(np.divide(product, length, out=np.zeros_like(product), where=length > 0))
    return np.concatenate(found)


def _degrees(tree: cKDTree, known: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "180 360"]:
    """Whether the vertex nearest to the middle of each degree of latitude and longitude is known: quick to look up."""
    polar, azimuth = np.meshgrid(*(np.radians(np.arange(size) + 0.5) for size in (180, 360)), indexing="ij")
    middle = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    return known[tree.query(SPHERE_RADIUS * np.stack(middle, axis=-1))[1]]


def _degree(points: Float[np.ndarray, "r v 3"]) -> tuple[Int[np.ndarray, "r v"], Int[np.ndarray, "r v"]]:
    """The row and column of `_degrees` that each point of the sphere lies in."""
    polar = np.degrees(np.arccos(np.clip(points[..., 2] / SPHERE_RADIUS, -1, 1)))
    azimuth = np.degrees(np.arctan2(points[..., 1], points[..., 0])) % 360
    return polar.astype(np.int64).clip(max=179), azimuth.astype(np.int64).clip(max=359)


def _sphere() -> list[Float[np.ndarray, "n 3"]]:
    try:
        from nilearn.datasets import load_fsaverage
    except ImportError as error:
        raise UserError(
            "the spin test: expected nilearn, which brings the fsaverage5 sphere, got none. "
            "Install it with: pip install 'brainjanus[cortex]'"
        ) from error
    mesh = load_fsaverage("fsaverage5")["sphere"]
    return [np.asarray(mesh.parts[side].coordinates, np.float64) for side in ("left", "right")]


# --- selectivity ----------------------------------------------------------------------------------------------------


def caption_groups(
    captions: Sequence[Sequence[str]], most: int | None = NUM_CATEGORIES
) -> dict[str, Bool[np.ndarray, "n"]]:
    """Categories that captions name: content word -> which stimuli have it in any caption; most frequent first.

    Words of 5 % to 50 % of the stimuli, and of at least MIN_STIMULI; `most` of them (None: all); of two that name the
    same stimuli the first in the alphabet. Only the captions decide, so that no category is chosen for its result.
    """
    said = [frozenset[str]().union(*map(content_words, texts)) for texts in captions]
    words = sorted(frozenset[str]().union(*said))
    masks = {word: np.array([word in one for one in said]) for word in words}
    fewest, highest = (share * len(captions) for share in CATEGORY_SHARES)
    chosen: dict[bytes, str] = {}
    for word in sorted(words, key=lambda word: -int(masks[word].sum())):
        if max(fewest, MIN_STIMULI) <= masks[word].sum() <= highest:
            chosen.setdefault(masks[word].tobytes(), word)
    return {word: masks[word] for word in list(chosen.values())[:most]}


def selectivity_maps(
    responses: Float[np.ndarray, "n v"], groups: Mapping[str, Bool[np.ndarray, "n"]]
) -> dict[str, Float[np.ndarray, "v"]]:
    """For each category the mean response to its stimuli less the mean response to all others, per site.

    The unit is that of the responses. A difference and not a t: predictions lack the noise that t divides by, so that
    their t would be of another size and shape.
    Raises UserError for NaN, or for a category that holds no stimulus or all of them.
    """
    _check_finite("response", responses)
    maps = {}
    for name, mask in groups.items():
        if mask.all() or not mask.any():
            raise UserError(
                f"category '{name}': expected some of the {len(mask)} stimuli and not all of them, got "
                f"{int(mask.sum())}. There is nothing to contrast it with: leave it out."
            )
        maps[name] = responses[mask].mean(axis=0, dtype=np.float64) - responses[~mask].mean(axis=0, dtype=np.float64)
    return maps


def selectivity_agreement(
    space: BrainSpace,
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    groups: Mapping[str, Bool[np.ndarray, "n"]],
    rng: np.random.Generator,
    num: int = 1000,
    rotations: Spins | None = None,
) -> Agreement:
    """Do sites prefer in the predictions what they prefer in the measurement? r across sites for each category.

    groups: categories, as from `caption_groups`; without any, the means are None. num: rotations of the spin test.
    rotations: those of `spins(space, ...)`, if they were made before, as for several predictions of one subject.
    A map that is the same everywhere agrees with none: r = 0. Raises UserError as `selectivity_maps`.
    """
    true, guess = selectivity_maps(measured, groups), selectivity_maps(predicted, groups)
    if not groups:
        shares = " to ".join(f"{share:.0%}" for share in CATEGORY_SHARES)
        note = f"No categories: no content word is in {shares} of the captions and in {MIN_STIMULI} or more."
        return Agreement({}, None, None, None, note)
    whole = np.arange(space.num_sites)[None]
    r = {name: float(_null_r(true[name], guess[name], whole)[0]) for name in groups}
    mean_r = float(np.mean(list(r.values())))
    sources, note = rotations or spins(space, num, rng)
    if sources is None:
        return Agreement(r, None, mean_r, None, note)
    null = {name: _null_r(true[name], guess[name], sources) for name in groups}
    p = {name: spin_p(r[name], null[name]) for name in groups}
    return Agreement(r, p, mean_r, spin_p(mean_r, np.mean(list(null.values()), axis=0)), note)


def resampled_agreement(
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    groups: Mapping[str, Bool[np.ndarray, "n"]],
    counts: Int[np.ndarray, "b n"],
) -> Float[np.ndarray, "b"]:
    """The mean over categories of r across sites in each resample. counts: how often it holds each stimulus.

    A category that a resample misses, or holds alone, counts 0 there.
    """
    total = np.zeros(len(counts))
    for mask in groups.values():
        inside, outside = (counts * side for side in (mask, ~mask))
        known = (inside.sum(axis=1) > 0) & (outside.sum(axis=1) > 0)
        sums = [np.where(known, side.sum(axis=1), 1)[:, None] for side in (inside, outside)]
        weights = np.where(known[:, None], inside / sums[0] - outside / sums[1], 0)
        for part in np.array_split(np.arange(len(counts)), max(1, counts.shape[0] * measured.shape[1] // 2**22)):
            maps = [unit(weights[part].astype(np.float32) @ values, axis=1) for values in (measured, predicted)]
            total[part] += np.einsum("bv,bv->b", *maps)
    return total / len(groups)


def _check_finite(what: str, values: Float[np.ndarray, "n v"]) -> None:
    if not np.isfinite(values).all():
        row, site = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"topography: expected finite values, got {values[row, site]} in {what} {row}, site {site}. "
            "Leave out sites without data before."
        )


# --- figure ---------------------------------------------------------------------------------------------------------


def draw_topography(
    space: BrainSpace,
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    groups: Mapping[str, Bool[np.ndarray, "n"]],
) -> bytes:
    """A PNG: measured and predicted selectivity for the first DRAWN_CATEGORIES categories, one below the other,
    and how the correlation between sites falls with their distance. Raises UserError as `selectivity_maps`.
    """
    from PIL import Image

    from brainjanus.evaluate.cortex import draw_maps

    few = {name: groups[name] for name in list(groups)[:DRAWN_CATEGORIES]}
    true, guess = selectivity_maps(measured, few), selectivity_maps(predicted, few)
    parts = []
    if few:
        top = float(np.percentile(np.abs(np.concatenate(list(true.values()))), 99)) or 1.0
        top = float(f"{top:.2g}")
        r = {name: float(_null_r(true[name], guess[name], np.arange(space.num_sites)[None])[0]) for name in few}
        seen = {f"'{name}' against all others, measured": true[name] for name in few}
        said = {f"'{name}' predicted, r across sites {r[name]:.2f}": guess[name] for name in few}
        label, limits = "difference of mean responses (z)", (-top, top)
        pairs = [pair for both in zip(seen.items(), said.items(), strict=True) for pair in both]
        parts.append(_opened(draw_maps(space, dict(pairs), label=label, limits=limits)))
    curves = {
        name: distance_curve(space, responses) for name, responses in (("measured", measured), ("predicted", predicted))
    }
    drawn = {name: curve for name, curve in curves.items() if curve is not None}
    if drawn:
        between = "two sites of a hemisphere (mm)"
        if space.geometry.get("type") == "sensors":
            between = f"two sites (mm; 1 ms counts {space.geometry['mm_per_ms']:g})"
        parts.append(_opened(_draw_curves(drawn, f"distance between {between}")))
    if not parts:
        raise UserError(
            f"topography of {space.subject}: expected coordinates or categories, got neither. There is nothing to "
            "draw: prepare the dataset with coordinates or captions."
        )
    width = max(part.shape[1] for part in parts)
    rows = [np.pad(part, ((0, 0), _sides(width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, format="png")
    return file.getvalue()


def _draw_curves(curves: Mapping[str, Curve], label: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure((4.2, 2.5), dpi=DPI)
    axes = figure.add_axes((0.15, 0.2, 0.8, 0.72))
    for (name, curve), colour in zip(curves.items(), (INK, "#c0392b"), strict=False):
        axes.plot(curve.distance_mm, curve.r, color=colour, lw=1.4, marker="o", ms=2.5, label=name)
    axes.axhline(0, color="#777777", lw=0.5)
    axes.set_xlabel(label, fontsize=8, color=INK)
    axes.set_ylabel("mean r across stimuli", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, length=2, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def _opened(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _sides(gap: int) -> tuple[int, int]:
    return gap // 2, gap - gap // 2
