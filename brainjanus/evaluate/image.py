"""Scores of decoded pictures, on pixels and on any features.

Enters: the pictures that were seen and the pictures that were decoded, or features of both. Leaves: score matrices
`[seen, decoded]`, as in `evaluate.brain`, or one score per pair. Definitions follow MindEye2's final evaluation (Scotti
et al. 2024): every picture is resized to 256 pixels first, and to 425 for PixCorr and SSIM. Resizing is bilinear and
antialiased, which is what torchvision's `Resize` does to a tensor from version 0.17 on; older versions, with which the
published figures were made, did not antialias tensors. `evaluate.backbones` has the networks whose features are used.
Differs: a stimulus may stand for several pictures (a block, a category); its score is the mean over its pictures.
A constant picture or feature vector, for which r is undefined, scores r = 0. Values outside the range are not clipped.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.special import gammaln
from scipy.stats import rankdata
from torch import Tensor

from brainjanus.core.errors import UserError

FIRST_SIZE = 256  # pixels: all pictures of the field's evaluation are brought to this size
SIZE = 425  # pixels, the side of NSD's stimuli: PixCorr and SSIM
WHITE = 255.0  # pictures are in 8-bit units wherever the unit matters, whatever their dtype
GREY = (0.2125, 0.7154, 0.0721)  # luminance of RGB, as skimage.color.rgb2gray
TIE = 1e-6  # cosines that differ by less are the same: it is float32's rounding

_BATCH_VALUES = 2**25  # values held at once: 128 MB in float32
_CACHE_VALUES = 2**21  # values that are worked on at once: they stay in the processor's cache
_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)  # sigma 1.5, cut at 3.5 sigma
_GAUSSIAN /= _GAUSSIAN.sum()
_KEPT_WINDOWS = 250  # decoded pictures of which these are held: 2.8 MB each


# N stimuli, P pictures, H height, W width, C = 3, D features
def pixcorr_scores(
    seen: Sequence[Shaped[np.ndarray, "_ h w c"]], decoded: Shaped[np.ndarray, "n H W c"]
) -> Float[np.ndarray, "n n"]:
    """Score matrix of PixCorr: row i is the mean over the pictures `seen[i]` of r with each decoded picture.

    Any pixel unit (r ignores scale); a constant picture scores 0. Resizing is linear, so r is taken of coordinates in
    which distances are those of the pictures at 425 pixels, at most 256 x 256 of them; the large ones are never made.
    """
    seen_axes = [_axis(size) for size in seen[0].shape[1:3]]
    axes = [_axis(size) for size in decoded.shape[1:3]]
    # <Q A, R b> = <A, Q'R b>: decoded pictures in the coordinates of the seen ones
    carry = [one.basis.T @ other.resize for one, other in zip(seen_axes, axes, strict=True)]
    carried = _coordinates(list(decoded[:, None]), axes, carry)
    if decoded.shape[1:] == seen[0].shape[1:]:
        norm = _lengths(carried)
    else:  # decoded pictures may have more detail than the seen ones can hold
        norm = np.concatenate([
            _lengths(_coordinates(list(decoded[batch, None]), axes, [axis.factor for axis in axes]))
            for batch in _batches([1] * len(decoded), decoded[0].size)
        ])  # fmt: skip

    scores = np.empty((len(seen), len(decoded)))
    for batch in _batches([len(group) for group in seen], seen[0][0].size):
        groups = seen[batch]
        directions = _coordinates(groups, seen_axes, [axis.factor for axis in seen_axes])
        directions = _divided(directions, _lengths(directions)[:, None])
        if len(directions) > len(groups):
            starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
            directions = np.add.reduceat(directions, starts, axis=0)
            directions /= np.array([[len(group)] for group in groups], np.float32)
        scores[batch] = torch.from_numpy(directions) @ torch.from_numpy(carried).T
    return _divided(scores, norm[None])


def ssim_pairs(
    seen: Sequence[Shaped[np.ndarray, "_ h w 3"]],
    decoded: Shaped[np.ndarray, "n H W 3"],
    orders: Int[np.ndarray, "k n"] | None = None,
) -> Float[np.ndarray, "k n"]:
    """Structural similarity of the pictures `seen[i]` with `decoded[orders[:, i]]`, averaged over the pictures of i.

    orders: which decoded picture each stimulus is held against; None: its own, as the only row. Permutations give the
    floor.
    Pixels are in 8-bit units, [0, 255], integers and floats alike.
    Grey pictures of 425 pixels; Gaussian weights (sigma 1.5, 11 x 11), population covariance, data range 1; the mean
    over the positions where the window fits. Equals skimage.metrics.structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1) of plain 2-D pictures: MindEye2's notebook passes
    `multichannel=True`, which newer versions ignore and older ones took for columns that are channels.
    Source: Wang et al. 2004. Raises UserError if floats are all in [0, 1], or a value is NaN.
    """
    orders = np.arange(len(decoded))[None] if orders is None else orders
    check_unit("seen", seen)
    check_unit("decoded", [decoded])
    kept = lru_cache(_KEPT_WINDOWS)(lambda row: _windows(decoded[row]))
    sums = np.zeros(orders.shape)
    for i, group in enumerate(seen):
        for own in map(_windows, group):
            sums[:, i] += [_ssim(own, kept(row)) / len(group) for row in orders[:, i].tolist()]
    return sums


def two_way_scores(similarity: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Score matrix of two-way identification from a score matrix of similarities [seen, decoded].

    Entry [i, j] is the share of the other seen pictures that are less similar to reconstruction j than picture i is;
    chance is .5, a tie counts as a failure. The diagonal's mean is the field's two-way score. For a feature space,
    see `feature_two_way`. Raises UserError if there is one stimulus only.
    """
    if len(similarity) < 2:
        raise UserError(
            f"two-way identification: expected at least 2 stimuli, got {len(similarity)}. A reconstruction is compared "
            "with the other seen pictures: score more of them."
        )
    return (rankdata(similarity, method="min", axis=0) - 1) / (len(similarity) - 1)


def feature_scores(
    seen: Float[np.ndarray, "p d"], decoded: Float[np.ndarray, "m e"], owner: Int[np.ndarray, "p"] | None = None
) -> Float[np.ndarray, "n m"]:
    """Score matrix of Pearson's r across features, 0 for a constant vector: `pattern_scores` in bounded memory.

    owner: the stimulus of each seen picture, 0 to n - 1, if some stimuli have several; r is averaged over them.
    Products are float32, sums float64; beside the features, a part of them is held at a time (250 MB).
    Raises UserError if features differ in number or are not finite.
    """
    return _owners_mean(_products("features", seen, decoded, centre=True), owner)


def feature_two_way(
    seen: Float[np.ndarray, "p d"], decoded: Float[np.ndarray, "n e"], owner: Int[np.ndarray, "p"] | None = None
) -> Float[np.ndarray, "n n"]:
    """Score matrix of two-way identification in a feature space: `two_way_scores` of `feature_scores`."""
    return two_way_scores(feature_scores(seen, decoded, owner))


def feature_distance_scores(
    seen: Float[np.ndarray, "p d"], decoded: Float[np.ndarray, "n e"], owner: Int[np.ndarray, "p"] | None = None
) -> Float[np.ndarray, "n n"]:
    """Score matrix of the correlation distance 1 - r (lower is better). Equals scipy's for its diagonal."""
    return 1 - feature_scores(seen, decoded, owner)


class RetrievalScores(NamedTuple):
    """Top-1 retrieval: `value` is the mean of `draws`, the share of queries that found their own item in each draw.

    `stimuli` is the share of the draws with that stimulus in which it was found (NaN if it was never drawn).
    """

    value: float
    draws: Float[np.ndarray, "draws"]
    stimuli: Float[np.ndarray, "n"]
    candidates: int
    chance: float


def retrieval(
    query: Float[np.ndarray, "n ..."],
    gallery: Float[np.ndarray, "n ..."],
    rng: np.random.Generator,
    draws: int = 30,
    candidates: int = 300,
) -> RetrievalScores:
    """Query -> gallery: how often item i of the gallery is the nearest to query i among those drawn with it.

    Each draw takes min(candidates, n) stimuli without replacement; each of them queries the gallery of all of them by
    the cosine of flattened embeddings. Chance is 1 / candidates, a tie counts as a failure (so does a query of zeros).
    Raises UserError if there is one stimulus only, or the embeddings differ in size or are not finite.
    """
    number = len(query)
    if number < 2:
        raise UserError(
            f"retrieval: expected at least 2 stimuli, got {number}. A query is answered by choosing among several: "
            "embed more of them."
        )
    candidates = min(candidates, number)
    cosine = _products("embeddings", query.reshape(number, -1), gallery.reshape(number, -1), centre=False)
    found = np.zeros((draws, number), bool)
    drawn = np.zeros((draws, number), bool)
    for draw in range(draws):
        chosen = rng.choice(number, candidates, replace=False)
        among = cosine[np.ix_(chosen, chosen)]
        own = among.diagonal().copy()
        np.fill_diagonal(among, -np.inf)
        drawn[draw, chosen] = True
        found[draw, chosen] = own > among.max(axis=1) + TIE
    times = drawn.sum(axis=0)
    stimuli = np.divide(found.sum(axis=0), times, out=np.full(number, np.nan), where=times > 0)
    shares = found.sum(axis=1) / candidates
    return RetrievalScores(float(shares.mean()), shares, stimuli, candidates, 1 / candidates)


def retrieval_scores(
    query: Float[np.ndarray, "n d"], gallery: Float[np.ndarray, "n d"], candidates: int
) -> Float[np.ndarray, "n n"]:
    """Score matrix of retrieval: the probability that query i picks item j among `candidates` that j is one of.

    Candidates are drawn without replacement; item j is picked if none of those drawn is as near, so that with k nearer
    or equal ones the probability is C(n - 1 - k, candidates - 1) / C(n - 1, candidates - 1).
    """
    number = len(query)
    cosine = _products("embeddings", query, gallery, centre=False)
    nearer = np.stack([(row[None] >= row[:, None] - TIE).sum(axis=1) - 1 for row in cosine])  # but itself
    free = number - 1 - np.arange(number)
    log = np.full(number, -np.inf)
    possible = free >= candidates - 1
    log[possible] = _log_choose(free[possible], candidates - 1) - _log_choose(np.array([number - 1]), candidates - 1)
    return np.exp(log)[nearer]


def _log_choose(n: Int[np.ndarray, "*k"], k: int) -> Float[np.ndarray, "*k"]:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def resized(pictures: Float[Tensor, "b c h w"], height: int, width: int) -> Float[Tensor, "b c height width"]:
    """Bilinear, antialiased; a picture that has the size already stays what it is."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    return torch.nn.functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True)


def as_tensor(pictures: Shaped[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Pictures as float32, channels first. Raises UserError if a value is not finite."""
    values = pictures.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(
            f"pictures: expected finite pixels, got {values[~np.isfinite(values)][0]}. Did the software that decoded "
            "them overflow? Decode those pictures again or leave them out."
        )
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def check_unit(name: str, groups: Sequence[Shaped[np.ndarray, "..."]]) -> None:
    """Raises UserError if pictures are floats that are all in [0, 1]: every score that has a unit would be wrong."""
    if all(np.issubdtype(group.dtype, np.floating) and group.max() <= 1 for group in groups):
        raise UserError(
            f"{name} pictures: expected pixel values up to {WHITE:g}, got floats of at most 1. "
            f"Are they in [0, 1]? Multiply them by {WHITE:g}."
        )


class _Axis(NamedTuple):
    """One axis of a picture after the step to 256 pixels: `resize` takes it on to 425 and is basis @ factor."""

    resize: Float[np.ndarray, "425 s"]
    basis: Float[np.ndarray, "425 s"]
    factor: Float[np.ndarray, "s s"]


@cache
def _axis(size: int) -> _Axis:
    """A picture of 256 or more is made smaller in fact; that of a smaller one to 256 is a part of `resize`."""
    identity = torch.eye(min(size, FIRST_SIZE), dtype=torch.float64)[None, None]
    first = resized(identity, FIRST_SIZE, identity.shape[-1])
    resize = resized(first, SIZE, identity.shape[-1])[0, 0].numpy()
    return _Axis(resize, *np.linalg.qr(resize))


def _coordinates(
    groups: Sequence[Shaped[np.ndarray, "_ h w c"]], axes: Sequence[_Axis], maps: Sequence[Float[np.ndarray, "_ _"]]
) -> Float[np.ndarray, "p d"]:
    """All pictures, minus the mean that each has when resized, with `maps` applied to their rows and columns.

    Resizing leaves a constant as it is: a constant picture becomes exactly 0.
    """
    rows, columns = (torch.from_numpy(one).float() for one in maps)
    weights = [torch.from_numpy(axis.resize.mean(axis=0)).float() for axis in axes]
    channels = groups[0].shape[3]
    flat = np.empty((sum(len(group) for group in groups), channels * len(rows) * len(columns)), np.float32)
    done = 0
    for some in _batches([len(group) for group in groups], groups[0][0].size, _CACHE_VALUES):
        pictures = as_tensor(np.concatenate(groups[some]))
        pictures = (pictures - pictures[:, :1, :1, :1]).contiguous()
        pictures = resized(pictures, axes[0].resize.shape[1], axes[1].resize.shape[1])
        pictures -= (weights[0] @ pictures @ weights[1]).mean(dim=1)[:, None, None, None]
        flat[done : done + len(pictures)] = (rows @ pictures @ columns.T).flatten(1).numpy()
        done += len(pictures)
    return flat


def _lengths(flat: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "p"]:
    return torch.linalg.vector_norm(torch.from_numpy(flat), dim=1).numpy()


class _Windows(NamedTuple):
    """A grey picture of 425 pixels minus its mean, and what its windows hold: weighted means (of the picture, and of it
    minus its mean) and variances."""

    deviation: Float[Tensor, "425 425"]
    mean: Float[Tensor, "415 415"]
    shift: Float[Tensor, "415 415"]
    variance: Float[Tensor, "415 415"]


def _windows(picture: Shaped[np.ndarray, "h w 3"]) -> _Windows:
    grey = torch.einsum("chw,c->hw", as_tensor(picture[None])[0], torch.tensor(GREY) / WHITE)[None, None]
    grey = resized(resized(grey, FIRST_SIZE, FIRST_SIZE), SIZE, SIZE)[0, 0]
    whole = grey.mean()
    deviation = grey - whole
    shift = _smooth(deviation)
    return _Windows(deviation, shift + whole, shift, _smooth(deviation.square()) - shift.square())


def _ssim(x: _Windows, y: _Windows) -> float:
    c1, c2 = 0.01**2, 0.03**2
    covariance = _smooth(x.deviation * y.deviation).addcmul_(x.shift, y.shift, value=-1)
    alike = covariance.mul_(2).add_(c2).mul_((x.mean * y.mean).mul_(2).add_(c1))
    largest = (x.mean.square().addcmul_(y.mean, y.mean).add_(c1)).mul_((x.variance + y.variance).add_(c2))
    return float(alike.div_(largest).mean(dtype=torch.float64))


def _smooth(picture: Float[Tensor, "h w"]) -> Float[Tensor, "k l"]:
    """Gaussian weighted means of 11 x 11 pixels. As sums of shifted pictures: eight times faster than a convolution."""
    for axis in (0, 1):
        length = picture.shape[axis] - len(_GAUSSIAN) + 1
        total = picture.narrow(axis, 0, length) * float(_GAUSSIAN[0])
        for shift, weight in enumerate(_GAUSSIAN[1:], start=1):
            total.add_(picture.narrow(axis, shift, length), alpha=float(weight))
        picture = total
    return picture


def _products(
    name: str, left: Float[np.ndarray, "p d"], right: Float[np.ndarray, "m e"], *, centre: bool
) -> Float[np.ndarray, "p m"]:
    """All products of rows of length 1 (centred: correlations, else cosines), some columns at a time."""
    _check_features(name, left, right)
    (left_mean, left_norm), (right_mean, right_norm) = _moments(left, centre), _moments(right, centre)
    products = np.zeros((len(left), len(right)))
    width = max(1, _BATCH_VALUES // (len(left) + len(right)))
    for start in range(0, left.shape[1], width):
        columns = slice(start, start + width)
        one = (left[:, columns] - left_mean.astype(np.float32)[:, None]).astype(np.float32, copy=False)
        other = (right[:, columns] - right_mean.astype(np.float32)[:, None]).astype(np.float32, copy=False)
        products += one @ other.T
    return _divided(products, left_norm[:, None] * right_norm[None])


def _moments(values: Float[np.ndarray, "p d"], centre: bool) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Mean of each row (0 if not centred) and length of the row minus it, exactly 0 for a constant row."""
    mean, norm = np.zeros(len(values)), np.zeros(len(values))
    for batch in _batches([1] * len(values), 4 * values.shape[1]):
        rows = values[batch].astype(np.float64)
        length = np.linalg.norm(rows, axis=1)
        if centre:
            mean[batch] = rows.mean(axis=1)
            rows -= mean[batch, None]
        norm[batch] = np.linalg.norm(rows, axis=1)
        norm[batch] *= norm[batch] > 1e-12 * length
    return mean, norm


def _owners_mean(values: Float[np.ndarray, "p *_"], owner: Int[np.ndarray, "p"] | None) -> Float[np.ndarray, "n *_"]:
    if owner is None:
        return values
    counts = np.bincount(owner)
    means = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(means, owner, values)
    return means / counts.reshape(-1, *[1] * (values.ndim - 1))


def _batches(counts: Sequence[int], values_each: int, values: int | None = None) -> Iterator[slice]:
    """Slices of stimuli whose pictures (`counts`) hold at most `values` (default _BATCH_VALUES) together, or of one."""
    limit = max(1, (values or _BATCH_VALUES) // values_each)
    start = total = 0
    for i, count in enumerate(counts):
        if i > start and total + count > limit:
            yield slice(start, i)
            start, total = i, 0
        total += count
    yield slice(start, len(counts))


def _check_features(name: str, left: Float[np.ndarray, "p d"], right: Float[np.ndarray, "m e"]) -> None:
    if left.shape[1] != right.shape[1]:
        raise UserError(
            f"{name}: expected as many values for what was decoded as for what was seen ({left.shape[1]}), got "
            f"{right.shape[1]}. Do they come from different networks or layers?"
        )
    for side, values in (("first", left), ("second", right)):
        for batch in _batches([1] * len(values), values.shape[1]):
            bad = ~np.isfinite(values[batch]).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{name}, {side} array: expected finite values, got NaN or infinity in row "
                    f"{batch.start + int(bad.argmax())}. Leave that picture out or embed it again."
                )


def _divided(values: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """`values / norm`, 0 for a constant picture."""
    return np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
