"""Scores of predicted brain activity.

Enters: measured and predicted responses, [stimuli, sites], in the same order of stimuli. Leaves: scores per site or per
stimulus, and score matrices: `scores[i, j]` is what the prediction for stimulus j earns when it is held against the
measurement of stimulus i. The mean of the diagonal is the score; every shuffle of predictions over stimuli is read off
the matrix. `resampled` gives the scores of bootstrap samples of stimuli.

Voxel r (per site, across stimuli) is what encoding models report, pattern r (per stimulus, across sites) what papers
call voxel-level Pearson; both are needed. A constant prediction or measurement carries no information and scores 0
(Pearson's r is undefined there). R2 is 1 - SSres / SStot of each site with the mean of the stimuli that are scored, and
0 where the measurement is constant, as in himalaya: there is nothing to explain (scikit-learn gives 1 to a prediction
that is the same constant). Cosine is not centred; mean squared error has the squared unit of the responses.

Sites are taken in blocks, so that no copy of all of them is made. Matrices are products in double precision: single
would save .2 s for 1,000 stimuli x 16,000 sites, and break ties between equal predictions by rounding.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from brainjanus.core.errors import UserError

MIN_CEILING = 0.1  # sites whose noise ceiling is lower are left out of the normalised r: they hold no signal to explain
BLOCK = 1024  # sites at a time: 8 MB for 1,000 stimuli
RESAMPLED_BLOCK = 256  # sites at a time, of which five moments are taken for each resample
ROUNDING = 1e-12  # a deviation from the mean that is smaller than this share of the values is none
CANCELLED = 0.1  # variance below this share of the mean square: single precision lost digits in the difference


class PatternScores(NamedTuple):
    """Score matrices of whole patterns, [measured, predicted]: Pearson's r, cosine, mean squared error."""

    r: Float[np.ndarray, "n n"]
    cosine: Float[np.ndarray, "n n"]
    mse: Float[np.ndarray, "n n"]


class Resampled(NamedTuple):
    """Means over the sites of a group, one for each resample. normalised_r: None if no site has a ceiling."""

    voxel_r: Float[np.ndarray, "b"]
    normalised_r: Float[np.ndarray, "b"] | None
    r2: Float[np.ndarray, "b"]


# --- each site, across stimuli --------------------------------------------------------------------------------------


# N stimuli, V sites, B resamples, K sites of a block
def voxel_r(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "v"]:
    """Pearson's r of each site across stimuli; 0 where either is constant.

    Raises UserError if the arrays differ in shape, hold NaN, or have fewer than two stimuli.
    """
    _check(measured, predicted)
    blocks = _blocks(measured.shape[1])
    parts = [np.einsum("nv,nv->v", unit(measured[:, b], axis=0), unit(predicted[:, b], axis=0)) for b in blocks]
    return np.concatenate([np.zeros(0), *parts])


def r2(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "v"]:
    """1 - SSres / SStot of each site across stimuli; 0 where the measurement is constant. Raises as `voxel_r`."""
    _check(measured, predicted)
    found = np.zeros(measured.shape[1])
    for block in _blocks(measured.shape[1]):
        true, guess = _scaled(measured[:, block], predicted[:, block])
        found[block] = np.einsum("nv,nv->v", true, true) - np.einsum("nv,nv->v", true - guess, true - guess)
    return found


def voxel_scores(
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    weights: Float[np.ndarray, "v"] | None = None,
) -> Float[np.ndarray, "n n"]:
    """Score matrix of the mean voxel r, weighted over sites (default: evenly). Its diagonal averages to that mean."""
    _check(measured, predicted)
    num_stimuli, num_sites = measured.shape
    weights = np.full(num_sites, 1 / num_sites) if weights is None else weights
    scores = np.zeros((num_stimuli, num_stimuli))
    for block in _blocks(num_sites):
        scores += (unit(measured[:, block], axis=0) * weights[block]) @ unit(predicted[:, block], axis=0).T
    return num_stimuli * scores


def r2_scores(
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    weights: Float[np.ndarray, "v"] | None = None,
) -> Float[np.ndarray, "n n"]:
    """Score matrix of the mean R2, weighted over sites (default: evenly). Its diagonal averages to that mean."""
    _check(measured, predicted)
    num_stimuli, num_sites = measured.shape
    weights = np.full(num_sites, 1 / num_sites) if weights is None else weights
    products, of_true, of_guess = np.zeros((num_stimuli, num_stimuli)), np.zeros(num_stimuli), np.zeros(num_stimuli)
    explicable = 0.0
    for block in _blocks(num_sites):
        true, guess = _scaled(measured[:, block], predicted[:, block])
        weighted = true * weights[block]
        explicable += float(weights[block] @ np.einsum("nv,nv->v", true, true))
        products += weighted @ guess.T
        of_true += np.einsum("nv,nv->n", weighted, true)
        of_guess += np.einsum("nv,nv,v->n", guess, guess, weights[block], optimize=True)
    return explicable - num_stimuli * (of_true[:, None] + of_guess - 2 * products)


def ceiling_weights(ceiling: Float[np.ndarray, "v"]) -> Float[np.ndarray, "v"] | None:
    """Weights with which the mean of voxel r becomes the mean of voxel r divided by its noise ceiling.

    Sites whose ceiling is below MIN_CEILING weigh nothing; None if no site reaches it. Source: Allen et al. 2022.
    """
    counted = ceiling >= MIN_CEILING
    if not counted.any():
        return None
    return np.divide(1, ceiling, out=np.zeros(len(ceiling)), where=counted) / counted.sum()


def resampled(
    measured: Float[np.ndarray, "n v"],
    predicted: Float[np.ndarray, "n v"],
    counts: Int[np.ndarray, "b n"],
    groups: Mapping[str | None, Bool[np.ndarray, "v"]],
    ceiling: Float[np.ndarray, "v"] | None = None,
) -> dict[str | None, Resampled]:
    """The mean voxel r and R2 of each group of sites in each bootstrap sample of stimuli.

    counts: how often each sample holds each stimulus. groups: name -> its sites, at least one.
    A site that is constant in a sample counts 0 there, as everywhere. r and R2 of every site are computed anew for
    every sample (the score matrices cannot give them: their means and lengths are those of all stimuli). Both follow
    from five moments, which are products of how often each stimulus was drawn with x, y, xx, yy and xy. Products are
    in single precision, of values that were centred and scaled first; where a variance is a small difference of large
    moments, the site is computed directly. The error is below 1e-6.
    Raises UserError as `voxel_r`.
    """
    _check(measured, predicted)
    num_sites = measured.shape[1]
    sites = np.stack([mask / mask.sum() for mask in groups.values()], axis=1)  # [v, groups]: means
    weights = {
        name: None if ceiling is None else ceiling_weights(np.where(mask, ceiling, 0)) for name, mask in groups.items()
    }
    normalised = np.stack([np.zeros(num_sites) if w is None else w for w in weights.values()], axis=1)
    shares = (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    totals = np.zeros((3, len(counts), len(groups)))
    for block in _blocks(num_sites, RESAMPLED_BLOCK):
        r, explained = _resampled_sites(measured[:, block], predicted[:, block], shares, counts)
        totals[0] += r @ sites[block]
        totals[1] += r @ normalised[block]
        totals[2] += explained @ sites[block]
    return {
        name: Resampled(totals[0, :, g], None if weights[name] is None else totals[1, :, g], totals[2, :, g])
        for g, name in enumerate(groups)
    }


def _resampled_sites(
    measured: Float[np.ndarray, "n k"],
    predicted: Float[np.ndarray, "n k"],
    shares: Float[np.ndarray, "b n"],
    counts: Int[np.ndarray, "b n"],
) -> tuple[Float[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
    """r and R2 of some sites in every resample. shares: of the draws, by stimulus, so that products are means."""
    x, mean_x, sd_x, flat_x = _standard(measured)
    y, mean_y, sd_y, flat_y = _standard(predicted)
    moments = shares @ np.concatenate([x, y, x * x, y * y, x * y], axis=1)
    of_x, of_y, of_xx, of_yy, of_xy = np.split(moments, 5, axis=1)
    var_x, var_y, covariance = of_xx - of_x**2, of_yy - of_y**2, of_xy - of_x * of_y
    lost_x, lost_y = var_x <= CANCELLED * of_xx, var_y <= CANCELLED * of_yy  # constant sites are among them
    safe_x = np.where(lost_x, 1, var_x)
    r = covariance / np.sqrt(safe_x * np.where(lost_y, 1, var_y))
    # the residual in units of sd_x is x - shift - scale * y
    unit_x = np.where(flat_x, 1, sd_x)
    shift, scale = ((mean_y - mean_x) / unit_x).astype(np.float32), (sd_y / unit_x).astype(np.float32)
    bias = of_x - shift - scale * of_y
    explained = 1 - (var_x - 2 * scale * covariance + scale**2 * var_y + bias**2) / safe_x
    r[:, flat_x | flat_y], explained[:, flat_x] = 0, 0
    lost = (lost_x | (lost_y & ~flat_y)) & ~flat_x
    for site in np.flatnonzero(lost.any(axis=0)):
        for row in np.flatnonzero(lost[:, site]):
            drawn = np.repeat(np.arange(len(measured)), counts[row])
            pair = measured[drawn, site, None], predicted[drawn, site, None]
            one = len(drawn) == 1
            r[row, site], explained[row, site] = (0, 0) if one else (voxel_r(*pair)[0], r2(*pair)[0])
    return r, explained


def _standard(values: Float[np.ndarray, "n k"]) -> tuple[np.ndarray, ...]:
    """Values with mean 0 and variance 1 (single precision), mean, standard deviation, and which sites are constant."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values - mean
    sd = np.sqrt(np.square(centred).mean(axis=0))
    flat = sd <= ROUNDING * np.sqrt(sd**2 + mean**2)
    standard = np.divide(centred, sd, out=np.zeros_like(centred), where=~flat)
    return standard.astype(np.float32), mean, np.where(flat, 0, sd), flat


def _scaled(
    measured: Float[np.ndarray, "n k"], predicted: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Both minus the measured mean and in units of its deviation, so that SStot is 1; both 0 where that is constant."""
    values = measured.astype(np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    length = np.linalg.norm(centred, axis=0)
    varies = length > ROUNDING * np.linalg.norm(values, axis=0)
    factor = np.divide(1, length, out=np.zeros_like(length), where=varies)
    return centred * factor, (predicted - mean) * factor


# --- each stimulus, across sites ------------------------------------------------------------------------------------


def pattern_r(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n"]:
    """Pearson's r of each stimulus across sites; 0 where either is constant. Raises UserError as `voxel_r`."""
    _check(measured, predicted)
    return np.concatenate(
        [np.einsum("nv,nv->n", unit(measured[i], axis=1), unit(predicted[i], axis=1)) for i in _rows(measured)]
    )


def cosine(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n"]:
    """Cosine of each stimulus across sites, not centred; 0 where either is zero. Raises UserError as `voxel_r`."""
    _check(measured, predicted)
    found = []
    for rows in _rows(measured):
        true, guess = measured[rows].astype(np.float64), predicted[rows].astype(np.float64)
        product = np.einsum("nv,nv->n", true, guess)
        found.append(_divided(product, np.linalg.norm(true, axis=1) * np.linalg.norm(guess, axis=1)))
    return np.concatenate(found)


def mse(measured: Float[np.ndarray, "n v"], predicted: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n"]:
    """Mean squared error of each stimulus across sites. Raises UserError as `voxel_r`."""
    _check(measured, predicted)
    return np.concatenate(
        [np.square(measured[i].astype(np.float64) - predicted[i]).mean(axis=1) for i in _rows(measured)]
    )


def pattern_scores(measured: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Score matrix of pattern r: the correlation of every measurement with every prediction."""
    return all_pattern_scores(measured, predicted).r


def all_pattern_scores(measured: Float[np.ndarray, "n d"], predicted: Float[np.ndarray, "n d"]) -> PatternScores:
    """Score matrices of pattern r, cosine and mean squared error, from one product. Raises UserError as `voxel_r`."""
    _check(measured, predicted)
    num_stimuli, num_sites = measured.shape
    means = [values.mean(axis=1, dtype=np.float64) for values in (measured, predicted)]
    products = np.zeros((num_stimuli, num_stimuli))
    squares = [np.zeros(num_stimuli), np.zeros(num_stimuli)]
    for block in _blocks(num_sites):
        true, guess = (v[:, block] - m[:, None] for v, m in zip((measured, predicted), means, strict=True))
        products += true @ guess.T
        squares[0] += np.einsum("nv,nv->n", true, true)
        squares[1] += np.einsum("nv,nv->n", guess, guess)
    offsets = [num_sites * mean**2 for mean in means]  # what centring took from each square
    lengths = [
        np.where(square > ROUNDING**2 * (square + offset), np.sqrt(square), 0)
        for square, offset in zip(squares, offsets, strict=True)
    ]
    whole = [np.sqrt(square + offset) for square, offset in zip(squares, offsets, strict=True)]
    distance = squares[0][:, None] + squares[1] - 2 * products
    return PatternScores(
        _divided(products, np.outer(*lengths)),
        _divided(products + num_sites * np.outer(*means), np.outer(*whole)),
        distance.clip(min=0) / num_sites + np.subtract.outer(*means) ** 2,
    )


def identification_ranks(similarity: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
    """Where prediction j ranks among all predictions when matched to measurement i: 1 is best, ties count against it.

    similarity: `pattern_scores`. Top-1 identification is the share of 1 on the diagonal, chance 1/n.
    """
    return rankdata(-similarity.round(12), method="max", axis=1).astype(np.int64)  # equal but for rounding is a tie


# --- what they share ------------------------------------------------------------------------------------------------


def unit(values: Float[np.ndarray, "n d"], axis: int) -> Float[np.ndarray, "n d"]:
    """Centred along `axis` and scaled to length 1, so that products are correlations; 0 where constant. float64."""
    values = values.astype(np.float64)
    centred = values - values.mean(axis=axis, keepdims=True)
    length = np.linalg.norm(centred, axis=axis, keepdims=True)
    rounding = ROUNDING * np.linalg.norm(values, axis=axis, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > rounding)


def _divided(products: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _blocks(num_sites: int, size: int = BLOCK) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_sites, size))


def _rows(values: Float[np.ndarray, "n v"]) -> Iterator[slice]:
    """Blocks of stimuli that hold as much as a block of 1,000 stimuli and BLOCK sites."""
    return _blocks(len(values), max(1, 1000 * BLOCK // max(values.shape[1], 1)))


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
