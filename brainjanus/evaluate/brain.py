"""Scores of predicted brain activity.

Enters: measured and predicted responses, [stimuli, sites], in the same order of stimuli. Leaves: correlations, and
score matrices: `scores[i, j]` is what the prediction for stimulus j earns when it is held against the measurement of
stimulus i. The mean of the diagonal is the score; every shuffle of predictions over stimuli is read off the matrix.

Voxel r (per site, across stimuli) is what encoding models report, pattern r (per stimulus, across sites) what papers
call voxel-level Pearson; both are needed. A constant prediction or measurement carries no information and scores 0
(Pearson's r is undefined there).
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from brainjanus.core.errors import UserError

MIN_CEILING = 0.1  # sites whose noise ceiling is lower are left out of the normalised r: they hold no signal to explain


# N stimuli, V sites, D features
def voxel_r(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "v"]:
    """Pearson's r of each site across stimuli; 0 where either is constant.

    Raises UserError if the arrays differ in shape, hold NaN, or have fewer than two stimuli.
    """
    _check(measured, predicted)
    return np.einsum("nv,nv->v", unit(measured, axis=0), unit(predicted, axis=0))


def pattern_r(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n"]:
    """Pearson's r of each stimulus across sites; 0 where either is constant. Raises UserError as `voxel_r`."""
    _check(measured, predicted)
    return np.einsum("nv,nv->n", unit(measured, axis=1), unit(predicted, axis=1))


def normalised_r(r: Float[np.ndarray, "v"], ceiling: Float[np.ndarray, "v"]) -> Float[np.ndarray, "v"]:
    """Voxel r divided by the site's noise ceiling; NaN where that is below MIN_CEILING. Allen et al. 2022."""
    return np.divide(r, ceiling, out=np.full(len(r), np.nan), where=ceiling >= MIN_CEILING)


def voxel_scores(
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    weights: Float[np.ndarray, "v"] | None = None,
) -> Float[np.ndarray, "n n"]:
    """Score matrix of the mean voxel r, weighted over sites (default: evenly). Its diagonal averages to that mean."""
    _check(measured, predicted)
    num_stimuli, num_sites = measured.shape
    weights = np.full(num_sites, 1 / num_sites) if weights is None else weights
    return num_stimuli * (unit(measured, axis=0) * weights) @ unit(predicted, axis=0).T


def pattern_scores(measured: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Score matrix of pattern r: the correlation of every measurement with every prediction."""
    _check(measured, predicted)
    return unit(measured, axis=1) @ unit(predicted, axis=1).T


def identification_ranks(similarity: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
    """Where prediction j ranks among all predictions when matched to measurement i: 1 is best, ties count against it.

    similarity: `pattern_scores`. Top-1 identification is the share of 1 on the diagonal, chance 1/n.
    """
    return rankdata(-similarity, method="max", axis=1).astype(np.int64)


def unit(values: Float[np.ndarray, "n d"], axis: int) -> Float[np.ndarray, "n d"]:
    """Centred along `axis` and scaled to length 1, so that products are correlations; 0 where constant. float64."""
    values = values.astype(np.float64)
    centred = values - values.mean(axis=axis, keepdims=True)
    length = np.linalg.norm(centred, axis=axis, keepdims=True)
    rounding = 1e-12 * np.linalg.norm(values, axis=axis, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > rounding)


def _check(measured: np.ndarray, predicted: np.ndarray) -> None:
    if measured.shape != predicted.shape or len(measured) < 2:
        raise UserError(
            f"correlation of responses: expected two arrays [stimuli, sites] of one shape with at least 2 stimuli, "
            f"got {list(measured.shape)} and {list(predicted.shape)}. Were they made with different masks or splits?"
        )
    for name, values in (("measured", measured), ("predicted", predicted)):
        if not np.isfinite(values).all():
            stimulus, site = np.argwhere(~np.isfinite(values))[0]
            raise UserError(
                f"{name} responses: expected finite values, got {values[stimulus, site]} at stimulus {stimulus}, site "
                f"{site}. Leave out sites without data before scoring."
            )
