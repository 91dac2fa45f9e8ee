"""What is possible at a number of bits: the references that a tokenizer's distortion stands beside.

Enters: training responses [samples, sites] and a number of bits. Leaves: the least mean squared error that any code of
so many bits reaches on Gaussian responses of the same covariance, and a linear code of so many bits that can be tried:
principal components, each rounded to levels of its own. The floor, at 0 bits, is the mean response.

Sources: reverse water-filling (Cover & Thomas 2006, 10.3.3); scalar quantizers of Lloyd 1982 and Max 1960; shrunk
covariances (Ledoit & Wolf 2004). Differs from the first: the covariance is that of a sample. Of few samples, its
leading variances are too large and its last ones too small, and the bound errs on the low side; `held_out_bound` errs
on the high side, so that the bound of the true covariance lies between the two. That of a shrunk covariance is mostly
nearer to the truth, but may err on either side. On the simulated cortex (1,562 sites, 448 bits) sample, shrunk and
held out gave .043, .086 and .173 of 375 training responses, .103, .111 and .151 of 1,500. Responses that are no
Gaussian may be coded with fewer bits than any of them says.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

from brainjanus.core.errors import UserError

MAX_BITS = 8  # of one component
LLOYD_STEPS = 60
GAUSSIAN_SAMPLES = 50_000  # evenly spaced quantiles, to which the quantizers of a Gaussian are fitted


# N samples, V sites, R rank, C components
@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Responses in their principal axes. variances: the largest first, with N - 1 degrees of freedom.

    centred: the responses less their mean. vectors: eigenvectors of the smaller scatter matrix, [N, R] or [V, R].
    """

    mean: Float[np.ndarray, "v"]
    variances: Float[np.ndarray, "r"]
    centred: Float[Tensor, "n v"]
    vectors: Float[Tensor, "_ r"]

    def directions(self, count: int) -> Float[np.ndarray, "c v"]:
        """The first `count` axes, as unit vectors over sites."""
        num_samples, num_sites = self.centred.shape
        vectors = self.vectors[:, :count].T
        if num_samples <= num_sites:
            lengths = np.sqrt(self.variances[:count] * (num_samples - 1))
            vectors = vectors @ self.centred / torch.from_numpy(lengths).to(vectors.dtype)[:, None]
        return vectors.numpy()

    @property
    def shrinkage(self) -> float:
        """How far the covariance is best drawn towards a sphere, 0 to 1 (Ledoit & Wolf 2004)."""
        num_samples, num_sites = self.centred.shape
        variances = self.variances * (num_samples - 1) / num_samples  # theirs have N degrees of freedom
        squares = float(np.square(variances).sum())
        fourth = float(self.centred.square().sum(dim=1).double().square().sum()) / num_samples
        distance = squares - float(variances.sum()) ** 2 / num_sites
        return float(np.clip((fourth - squares) / num_samples / distance, 0, 1)) if distance > 0 else 0.0


def principal_axes(train: Float[np.ndarray, "n v"]) -> PrincipalAxes:
    """The principal axes of training responses, in single precision above 3,000 samples and sites.

    Computed on the smaller of the two scatter matrices: 9,000 x 15,724 take 1 GB and no approximation.
    Raises UserError with fewer than two samples, or for values that are not finite.
    """
    if len(train) < 2 or not np.isfinite(train).all():
        raise UserError(
            f"principal axes: expected at least 2 training responses of finite values, got {len(train)}"
            f"{'' if np.isfinite(train).all() else ' with NaN or infinity'}. Prepare the dataset again."
        )
    x = torch.from_numpy(np.ascontiguousarray(train)).to(torch.float32 if min(train.shape) > 3000 else torch.float64)
    mean = x.mean(dim=0)
    x = x - mean
    num_samples, num_sites = x.shape
    scatter = x @ x.T if num_samples <= num_sites else x.T @ x
    eigenvalues, vectors = torch.linalg.eigh(scatter)
    kept = eigenvalues > eigenvalues[-1].clamp(min=0) * len(scatter) ** 0.5 * torch.finfo(x.dtype).eps
    if num_samples <= num_sites:
        kept[0] = False  # what centring took away, whatever rounding left of it
    variances = eigenvalues[kept].flip(0).double().numpy() / (num_samples - 1)
    return PrincipalAxes(mean.double().numpy(), variances, x, vectors[:, kept].flip(1))


class Bound(NamedTuple):
    """mse: mean over sites. sites: how the best code spreads its error over them; no bound for a single site.

    components: how many axes get any bits. shrinkage: of the covariance; 0 is that of the sample.
    """

    mse: float
    sites: Float[np.ndarray, "v"]
    components: int
    shrinkage: float


def gaussian_bound(
    train: Float[np.ndarray, "n v"] | PrincipalAxes, bits: float | int, *, shrink: bool = False
) -> Bound:
    """The least mean squared error of any code of `bits` bits a response, for Gaussians with the training covariance.

    shrink: draw that covariance towards a sphere, as far as Ledoit & Wolf 2004 say. Raises UserError for negative bits.
    Source: Cover & Thomas 2006, theorem 10.3.3.
    """
    _check_bits(bits)
    axes = train if isinstance(train, PrincipalAxes) else principal_axes(train)
    num_sites, rank = len(axes.mean), len(axes.variances)
    shrinkage = axes.shrinkage if shrink else 0.0
    outside = shrinkage * float(axes.variances.sum()) / num_sites  # the variance of an axis that no sample has
    variances = np.concatenate([(1 - shrinkage) * axes.variances + outside, np.full(num_sites - rank, outside)])
    level, active = water_level(variances, bits)
    seen = min(active, rank)
    squares = np.square(axes.directions(rank if active > rank else seen).astype(np.float64))
    spread = axes.centred.square().sum(dim=0).double().numpy() / (len(axes.centred) - 1)
    sites = (1 - shrinkage) * spread + outside - (variances[:seen] - level) @ squares[:seen]
    if active > rank:
        sites = sites - (1 - squares.sum(axis=0)) * (outside - level)
    return Bound(float(np.minimum(variances, level).mean()), sites.clip(min=0), active, shrinkage)


def held_out_bound(train: PrincipalAxes, held_out: Float[np.ndarray, "n v"], bits: float | int) -> float:
    """The mean squared error of an ideal code of held-out responses along the axes of the training ones.

    As `gaussian_bound`, but with the variances that held-out responses have along the axes; what lies outside of them
    is spread evenly over the directions that are left.
    """
    _check_bits(bits)
    centred = held_out - train.mean
    along = np.square(centred @ train.directions(len(train.variances)).T.astype(np.float64)).mean(axis=0)
    num_left = len(train.mean) - len(along)
    left_over = max(float(np.square(centred).sum(axis=1).mean() - along.sum()), 0.0)
    variances = np.sort(np.concatenate([along, np.full(num_left, left_over / max(num_left, 1))]))[::-1]
    return float(np.minimum(variances, water_level(variances, bits)[0]).mean())


def water_level(variances: Float[np.ndarray, "k"], bits: float | int) -> tuple[float, int]:
    """The error that every axis with a larger variance is left with, and how many there are. Largest variance first.

    With k such axes, sum(log2(variance / level)) / 2 = bits.
    """
    positive = variances[variances > 0]
    if not len(positive):
        return 0.0, 0
    if bits == 0:
        return float(positive[0]), 0
    count = np.arange(1, len(positive) + 1)
    levels = 2 ** ((np.log2(positive).cumsum() - 2 * bits) / count)
    active = int(np.flatnonzero(levels < positive)[-1]) + 1
    return float(levels[active - 1]), active


@dataclass(frozen=True, eq=False)
class PCAQuantizer:
    """Principal components, each rounded to one of 2^b levels: the linear code of a fixed number of bits.

    levels: of each component that got bits, ascending. Bits go to where they save most error for a Gaussian, one by
    one, at most MAX_BITS to a component; levels are fitted to the training scores (Lloyd 1982).
    """

    mean: Float[np.ndarray, "v"]
    directions: Float[np.ndarray, "c v"]
    levels: tuple[Float[np.ndarray, "_"], ...]

    @classmethod
    def fit(cls, train: Float[np.ndarray, "n v"] | PrincipalAxes, bits: float | int) -> "PCAQuantizer":
        """A code of at most `bits` bits a response. Raises UserError for negative bits."""
        _check_bits(bits)
        axes = train if isinstance(train, PrincipalAxes) else principal_axes(train)
        shares = allocate(axes.variances, int(bits))
        directions = axes.directions(len(shares))
        scores = axes.centred.numpy() @ directions.T
        levels = tuple(lloyd_max(column, 2 ** int(share)) for column, share in zip(scores.T, shares, strict=True))
        return cls(axes.mean, directions, levels)

    @property
    def bits(self) -> int:
        """Of one response."""
        return sum(len(levels).bit_length() - 1 for levels in self.levels)

    def encode(self, values: Float[np.ndarray, "n v"]) -> Int[np.ndarray, "n c"]:
        """The level that each component is nearest to. Raises UserError for another number of sites."""
        if values.shape[1] != len(self.mean):
            raise UserError(
                f"PCA quantizer: expected {len(self.mean)} sites, got {values.shape[1]}. "
                "Was it fitted to another subject? Fit it to the training responses of this one."
            )
        scores = (values - self.mean).astype(self.directions.dtype) @ self.directions.T
        codes = [nearest(levels, column) for levels, column in zip(self.levels, scores.T, strict=True)]
        return np.stack(codes, axis=1) if codes else np.zeros((len(values), 0), np.int64)

    def decode(self, codes: Int[np.ndarray, "n c"]) -> Float[np.ndarray, "n v"]:
        """The response that the codes stand for."""
        scores = np.zeros(codes.shape, self.directions.dtype)
        for component, levels in enumerate(self.levels):
            scores[:, component] = levels[codes[:, component]]
        return scores @ self.directions + self.mean


def allocate(variances: Float[np.ndarray, "r"], bits: int) -> Int[np.ndarray, "c"]:
    """How many bits each component gets; those with none, which are the last ones, are left out.

    Each further bit of a component saves less than the one before, so that the best `bits` savings are the best plan.
    """
    savings = variances[:, None] * -np.diff(gaussian_distortion())
    chosen = np.argsort(-savings, axis=None, kind="stable")[:bits]
    shares = np.bincount(chosen // MAX_BITS, minlength=len(variances))
    return shares[shares > 0]


@lru_cache(maxsize=1)
def gaussian_distortion() -> Float[np.ndarray, "b"]:
    """Mean squared error of the best quantizers of a standard Gaussian with 0, 1, ... MAX_BITS bits (Max 1960)."""
    values = norm.ppf((np.arange(GAUSSIAN_SAMPLES) + 0.5) / GAUSSIAN_SAMPLES)
    errors = []
    for bits in range(MAX_BITS + 1):
        levels = lloyd_max(values, 2**bits)
        errors.append(np.square(values - levels[nearest(levels, values)]).mean())
    return np.array(errors)


def lloyd_max(values: Float[np.ndarray, "n"], num_levels: int) -> Float[np.ndarray, "l"]:
    """Levels that round `values` with the least squared error, ascending; a level without values stays where it was.

    It starts from the levels that are best for a Gaussian when there are many (Panter & Dite 1951).
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], ordered.cumsum()])
    start = norm.ppf((np.arange(num_levels) + 0.5) / num_levels) * np.sqrt(3)
    levels = ordered.mean() + ordered.std() * start
    for _ in range(LLOYD_STEPS):
        edges = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        counts = np.diff(edges)
        moved = np.where(counts > 0, np.diff(sums[edges]) / counts.clip(min=1), levels)
        if np.allclose(moved, levels, rtol=0, atol=1e-9):
            break
        levels = moved
    return levels


def nearest(levels: Float[np.ndarray, "l"], values: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Which of the ascending levels each value is nearest to."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)


def _check_bits(bits: float | int) -> None:
    if not np.isfinite(bits) or bits < 0:
        raise UserError(f"bits of a response: expected a finite number that is not negative, got {bits}. Correct it.")
