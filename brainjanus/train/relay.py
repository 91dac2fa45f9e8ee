"""The maps of a relay, solved from few responses of a new subject, or from where its sites lie alone.

Enters: what known subjects are expected to have for some stimuli, as coordinates z, and what the new subject was
measured to have. Leaves: a Relay. Three things make little data go far. Expected responses are free of noise, and few
numbers that already say what matters to a brain. Where sites have coordinates, a site is expected to answer as known
subjects do nearby (the prior, which the data correct). And what corrects it is looked for nearby first (a Gaussian
prior on the weights, narrower for what lies further away), with one penalty for a patch of sites, as one site's few
responses say little of it. Without any response the prior stands alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import block_diag
from torch import nn

from brainjanus.core.ridge import fit_ridge
from brainjanus.core.space import BrainSpace
from brainjanus.model.draft import principal
from brainjanus.model.relay import Relay, Voice

LEAST = 3  # stimuli that a map is solved from
MOST_DIMENSIONS = 1024  # of all known subjects together
MOST_SEEN = 256  # dimensions of a picture's features
WIDTHS_MM = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # of the neighbourhood that a site is compared with; one is chosen
WIDTH_MM = 4.0  # where there is one known subject, so that none can be left out
WIDER = 1.5  # how much wider the neighbourhood is that corrections are looked for in
NOISE = 1.0  # variance of a measured response, which is z-scored, beside what is expected
ANYWHERE = 0.02  # the weight of sites anywhere, beside that of neighbours
PARCEL = 32  # neighbouring sites that share a penalty
BELIEVED = 30.0  # stimuli: how firmly one site's scale is held to that of all sites
MOST_COMPARED = 1000  # sites of a known subject by which a width is chosen


# N stimuli, V sites of the new subject, W of a known one, R dimensions of z
@dataclass(frozen=True, eq=False)
class Known:
    """A known subject. mean, axes: of its expected responses, axes orthonormal; points_mm: of its sites, or None."""

    subject: str
    mean: Float[np.ndarray, "w"]
    axes: Float[np.ndarray, "r w"]
    points_mm: Float[np.ndarray, "w d"] | None

    @classmethod
    def of(cls, space: BrainSpace, expected: Float[np.ndarray, "n w"], rank: int) -> "Known":
        return cls(space.subject, *basis(expected, rank), space.points_mm)

    @property
    def points(self) -> Float[np.ndarray, "w d"]:
        assert self.points_mm is not None, "there is no anatomy to compare"
        return self.points_mm

    def coordinates(self, responses: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "n r"]:
        return (responses - self.mean) @ self.axes.T


class Kind(NamedTuple):
    """Stimuli told in one way, as pictures or in words. expected: of each known subject; features: of the stimuli."""

    expected: Sequence[Float[np.ndarray, "_ _"]]
    features: Float[np.ndarray, "m f"] | None = None


class Fit(NamedTuple):
    """A relay, the width of its neighbourhoods (None: anatomy has no say), and how well it explains what it was solved
    from by cross-validation: the mean over sites (None: from nothing)."""

    relay: Relay
    width_mm: float | None
    r2: float | None


def solve_relay(
    space: BrainSpace, known: Sequence[Known], expected: Sequence[Float[np.ndarray, "_ _"]],
    rows: Int[np.ndarray, "n"], responses: Float[np.ndarray, "n v"], kinds: Mapping[str, Kind] | None = None,
) -> Fit:  # fmt: skip
    """expected: of each known subject, to some stimuli. responses: mean ones of the new subject to those at `rows`;
    none at all, or at least LEAST. Without any, all sites must have coordinates. kinds: the same stimuli told in one
    way alone, where `expected` follows from all that is known of them.
    """
    z = [one.coordinates(x) for one, x in zip(known, expected, strict=True)]
    together, ends = np.concatenate(z, axis=1), np.cumsum([len(one.axes) for one in known])[:-1]
    points = space.points_mm
    anatomy = points is not None and all(one.points_mm is not None for one in known)
    width = best_width(known, z) if anatomy else None
    prior = None if width is None else np.concatenate([carried(one, space, width) for one in known]) / len(known)
    explained = None
    if len(rows):
        telling, offset, explained = solve_telling(space, known, together[rows], responses, prior, width)
    else:
        assert prior is not None and width is not None and points is not None
        telling = prior
        means = [one.mean @ neighbours(points, one.points, width).T for one in known]
        offset = np.mean(means, axis=0)
    near = None if prior is None else np.split(inverted(prior, together), ends, axis=1)
    voices = {
        one.subject: solve_told(one, own, rows, responses, None if near is None else near[number])
        for number, (one, own) in enumerate(zip(known, z, strict=True))
    }
    order = sorted(known, key=lambda one: -voices[one.subject][1])
    numbers = [known.index(one) for one in order]

    def reordered(weights: np.ndarray) -> np.ndarray:  # z of whoever speaks first comes first
        parts = np.split(weights, [*ends, together.shape[1]])
        return np.concatenate([*(parts[number] for number in numbers), parts[-1]])

    tellings: dict[str, tuple[np.ndarray, ...]] = {}
    for name, kind in (kinds or {}).items() if len(rows) else ():
        own = np.concatenate([one.coordinates(x) for one, x in zip(known, kind.expected, strict=True)], axis=1)[rows]
        mean, axes = np.zeros(0), np.zeros((0, 0))
        if kind.features is not None:
            mean, axes = basis(kind.features, MOST_SEEN)
        read = None if kind.features is None else (kind.features[rows] - mean) @ axes.T
        weights, also, told_of = solve_telling(space, known, own, responses, prior, width, read)
        explained = max(told_of, -np.inf if explained is None else explained)
        tellings[name] = mean, axes, reordered(weights), also
    sizes = {name: (len(mean), len(axes)) for name, (mean, axes, *_) in tellings.items()}
    relay = Relay(space.num_sites, {one.subject: one.axes.shape[::-1] for one in order}, sizes)
    for one in known:
        relay.voice(one.subject).load_state_dict(voices[one.subject][0].state_dict())
    fill(relay.telling, np.zeros(0), np.zeros((0, 0)), reordered(telling), offset)
    for name, found in tellings.items():
        fill(relay.by_kind[name], *found)
    return Fit(relay, width, explained)


def fill(telling: nn.Module, *arrays: np.ndarray) -> None:
    """mean, axes, weights, offset."""
    names = ("mean", "axes", "weights", "offset")
    found = {name: torch.from_numpy(x.astype(np.float32)) for name, x in zip(names, arrays, strict=True)}
    telling.load_state_dict(found)


def basis(rows: Float[np.ndarray, "n w"], rank: int) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "r w"]]:
    """Their mean, and at most `rank` orthonormal axes along which they vary."""
    mean, axes = principal(rows, rank)
    length = np.linalg.norm(axes, axis=1)
    kept = length > 1e-4 * length.max(initial=0)
    return mean, axes[kept] / length[kept, None]


def solve_telling(
    space: BrainSpace,
    known: Sequence[Known],
    z: Float[np.ndarray, "n r"],
    responses: Float[np.ndarray, "n v"],
    prior: Float[np.ndarray, "r v"] | None,
    width: float | None,
    read: Float[np.ndarray, "n q"] | None = None,
) -> tuple[Float[np.ndarray, "_ v"], Float[np.ndarray, "v"], float]:
    """From z to the new subject's response, the offset, and the variance that it explains by cross-validation.

    read: what else it is told by; it is given as much variance as z has, and no prior.
    """
    mean, told = responses.mean(axis=0), z.shape[1]
    if read is not None:
        z = np.concatenate([z, read], axis=1)
        prior = None if prior is None else np.pad(prior, ((0, read.shape[1]), (0, 0)))
    own = np.cov(z[:, :told].T, bias=True).reshape(told, told)
    weights = np.zeros((z.shape[1], responses.shape[1])) if prior is None else prior * scales(z @ prior, responses)
    left_over = (responses - mean - (z - z.mean(axis=0)) @ weights).astype(np.float32)
    errors = np.zeros(responses.shape[1])
    assert space.order is not None
    for sites in np.array_split(space.order, -(-len(space.order) // PARCEL)) if width else [space.order]:
        spread = np.eye(told) if width is None else nearby(known, space, sites, width)
        if read is not None:
            among = np.eye(read.shape[1]) * (spread * own).sum() / max(read.var(axis=0).sum(), 1e-12)
            spread = block_diag(spread, among)
        root = np.linalg.cholesky(spread + 1e-9 * np.trace(spread) / len(spread) * np.eye(len(spread)))
        ridge = fit_ridge((z @ root).astype(np.float32), left_over[:, sites], shared=True)
        weights[:, sites] += root @ (ridge.axes @ ridge.weights).numpy()
        errors[sites] = left_over[:, sites].var(axis=0) * (1 - ridge.r2)
    spread = responses.var(axis=0)
    explained = float(np.mean(1 - np.divide(errors, spread, out=np.ones_like(errors), where=spread > 0)))
    return weights, mean - z.mean(axis=0) @ weights, explained


def scales(prior: Float[np.ndarray, "n v"], responses: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "v"]:
    """By how much the prior's responses have to be multiplied, site by site, each held to the scale of all."""
    x, y = prior - prior.mean(axis=0), responses - responses.mean(axis=0)
    products, squares = (x * y).sum(axis=0), (x**2).sum(axis=0)
    firm = BELIEVED * squares.mean() / len(x)
    whole = max(0.0, float(products.sum() / max(squares.sum(), 1e-12)))
    return (products + whole * firm) / (squares + firm + 1e-12)


def solve_told(
    one: Known,
    z: Float[np.ndarray, "m r"],
    rows: Int[np.ndarray, "n"],
    responses: Float[np.ndarray, "n v"],
    near: Float[np.ndarray, "v r"] | None,
) -> tuple[Voice, float]:
    """From the new subject's response to z of a known one, and the share of its variance that is explained (0 from
    nothing). rows: of z, those of the responses. near: the same by anatomy; where what it leaves over is predicted
    worse than all of z, it has no say."""
    num_sites = responses.shape[1]
    voice = Voice(num_sites, len(one.mean), len(one.axes))
    voice.mean.copy_(torch.from_numpy(one.mean))
    voice.axes.copy_(torch.from_numpy(one.axes))
    if not len(rows):
        assert near is not None
        voice.told.copy_(torch.from_numpy(near.astype(np.float32)))
        voice.told_offset.copy_(torch.from_numpy(z.mean(axis=0).astype(np.float32)))  # a z-scored response has mean 0
        return voice, 0.0
    z = z[rows]
    candidates = [np.zeros((num_sites, z.shape[1]))]
    if near is not None:
        x, y = responses @ near, z - z.mean(axis=0)
        x = x - x.mean(axis=0)
        candidates.append(max(0.0, float((x * y).sum() / max((x**2).sum(), 1e-12))) * near)
    found = []
    for start in candidates:
        left_over = (z - responses @ start).astype(np.float32)
        ridge = fit_ridge(responses.astype(np.float32), left_over, shared=True)
        error = float((left_over.var(axis=0) * (1 - ridge.r2)).sum())
        found.append((error, start + (ridge.axes @ ridge.weights).numpy()))
    error, weights = min(found, key=lambda candidate: candidate[0])
    voice.told.copy_(torch.from_numpy(weights.astype(np.float32)))
    voice.told_offset.copy_(torch.from_numpy((z.mean(axis=0) - responses.mean(axis=0) @ weights).astype(np.float32)))
    return voice, 1 - error / max(float(z.var(axis=0).sum()), 1e-12)


# --- anatomy --------------------------------------------------------------------------------------------------------


def neighbours(
    points_mm: Float[np.ndarray, "v d"], others_mm: Float[np.ndarray, "w d"], width_mm: float
) -> Float[np.ndarray, "v w"]:
    """How much each of the other sites has to say on each site: a Gaussian of their distance, rows sum to one.

    Sites of the other hemisphere (x < 0 or not) have no say. Of a site that lies far from all others, the nearest says
    all.
    """
    a, b = points_mm.astype(np.float64), others_mm.astype(np.float64)
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    squared[(a[:, 0] >= 0)[:, None] != (b[:, 0] >= 0)] += 1e9
    squared -= squared.min(axis=1, keepdims=True)
    weights = np.exp(-squared / (2 * width_mm**2))
    return weights / weights.sum(axis=1, keepdims=True)


def carried(one: Known, space: BrainSpace, width_mm: float, block: int = 512) -> Float[np.ndarray, "r v"]:
    """From z of a known subject to the response of each of the new one's sites, as those nearby answer."""
    points = space.points_mm
    assert points is not None
    parts = [points[start : start + block] for start in range(0, len(points), block)]
    return np.concatenate([one.axes @ neighbours(part, one.points, width_mm).T for part in parts], axis=1)


def inverted(
    prior: Float[np.ndarray, "r v"], z: Float[np.ndarray, "m r"], noise: float = NOISE
) -> Float[np.ndarray, "v r"]:
    """From a measured response to z, where the response to z is expected to be `z @ prior`, with noise beside it.

    The mean of z given the response, if z is spread as here: ridge from expected responses to z.
    """
    z = z - z.mean(axis=0)
    told = z @ prior
    return told.T @ np.linalg.solve(told @ told.T + len(z) * noise * np.eye(len(z)), z)


def nearby(
    known: Sequence[Known], space: BrainSpace, sites: Int[np.ndarray, "p"], width_mm: float
) -> Float[np.ndarray, "r r"]:
    """The covariance, in z, of weights on known sites that are the larger the nearer these are to a parcel."""
    points = space.points_mm
    assert points is not None
    near = [neighbours(points[sites], one.points, WIDER * width_mm).mean(axis=0) for one in known]
    scale = float(np.concatenate(near).mean())
    total = sum(len(one.axes) for one in known)
    spread, start = np.zeros((total, total)), 0
    for one, weight in zip(known, near, strict=True):
        own = slice(start, start + len(one.axes))
        spread[own, own] = (one.axes * (weight / scale * (1 - ANYWHERE) + ANYWHERE)) @ one.axes.T
        start = own.stop
    return spread


def best_width(known: Sequence[Known], z: Sequence[Float[np.ndarray, "n _"]]) -> float:
    """The width with which each known subject is foretold best by the others, each left out in turn."""
    if len(known) < 2 or len(z[0]) < LEAST:
        return WIDTH_MM
    scores = dict.fromkeys(WIDTHS_MM, 0.0)
    for one, own in zip(known, z, strict=True):
        some = slice(None, None, -(-len(one.mean) // MOST_COMPARED))
        truth = own @ one.axes[:, some]
        for width in WIDTHS_MM:
            told = np.zeros_like(truth)
            for other, theirs in zip(known, z, strict=True):
                if other is not one:
                    near = neighbours(one.points[some], other.points, width)
                    told += theirs @ (other.axes @ near.T)
            scores[width] += mean_r(told, truth)
    return max(scores, key=lambda width: scores[width])


def mean_r(one: Float[np.ndarray, "n v"], other: Float[np.ndarray, "n v"]) -> float:
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    return float(((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)).mean())


def ranks_of(num_known: int, num_expected: int, most: int = 256) -> int:
    """Dimensions that each known subject's expected responses are described in."""
    return max(1, min(most, MOST_DIMENSIONS // num_known, num_expected - 1))
