"""Scores of decoded pictures.

Enters: the pictures that were seen and the pictures that were decoded. Leaves: score matrices `[seen, decoded]`, as in
`evaluate.brain`. Definitions follow MindEye2's final evaluation (Scotti et al. 2024): PixCorr is Pearson's r of the
pictures resized to 425 pixels (bilinear, antialiased), two-way identification compares one reconstruction with all
other seen pictures. Differs: a stimulus may stand for several pictures (a block, a category); its score is the mean
over its pictures. Resizing is linear, so the correlations of the resized pictures are computed without making them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.stats import rankdata

SIZE = 425  # pixels, the side of NSD's stimuli


# N stimuli, P pictures, H height, W width, C = 3
def pixcorr_scores(
    seen: Sequence[Shaped[np.ndarray, "_ h w c"]], decoded: Shaped[np.ndarray, "n H W c"]
) -> Float[np.ndarray, "n n"]:
    """Score matrix of PixCorr: row i is the mean over the pictures `seen[i]` of r with each decoded picture.

    Any pixel unit (r ignores scale); a constant picture scores 0.
    """
    pictures = np.concatenate(seen)
    owner = np.repeat(np.arange(len(seen)), [len(group) for group in seen])
    rows, columns = _resize_matrix(pictures.shape[1]), _resize_matrix(pictures.shape[2])
    decoded_rows, decoded_columns = _resize_matrix(decoded.shape[1]), _resize_matrix(decoded.shape[2])
    pictures = _centred(pictures, rows, columns)
    decoded = _centred(decoded, decoded_rows, decoded_columns)

    # <A x A', B y B'> = <x, A'B y B'A>: the inner product of resized pictures, taken at the size of the seen ones
    carried = _apply(rows.T @ decoded_rows, decoded, columns.T @ decoded_columns)
    picture_norm = np.sqrt((pictures * _apply(rows.T @ rows, pictures, columns.T @ columns)).sum(axis=(1, 2, 3)))
    grams = decoded_rows.T @ decoded_rows, decoded_columns.T @ decoded_columns
    decoded_norm = np.sqrt((decoded * _apply(grams[0], decoded, grams[1])).sum(axis=(1, 2, 3)))
    directions = _divided(pictures, picture_norm[:, None, None, None])
    mean_direction = np.zeros((len(seen), *directions.shape[1:]), directions.dtype)
    np.add.at(mean_direction, owner, directions)
    mean_direction /= np.bincount(owner)[:, None, None, None]
    products = mean_direction.reshape(len(seen), -1) @ carried.reshape(len(decoded), -1).T
    return _divided(products, decoded_norm[None]).astype(np.float64)


def two_way_scores(similarity: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Score matrix of two-way identification from a score matrix of similarities [seen, decoded].

    Entry [i, j] is the share of the other seen pictures that are less similar to reconstruction j than picture i is;
    chance is .5, a tie counts as a failure. The diagonal's mean is the field's two-way score. For a feature space,
    pass `pattern_scores(features of seen, features of decoded)`.
    """
    return (rankdata(similarity, method="min", axis=0) - 1) / (len(similarity) - 1)


def _resize_matrix(size: int) -> Float[np.ndarray, "425 size"]:
    """The linear map that resizes one axis of a picture from `size` to SIZE pixels."""
    identity = torch.eye(size)[None, None]
    resized = torch.nn.functional.interpolate(identity, (SIZE, size), mode="bilinear", antialias=True)
    return resized[0, 0].numpy()


def _centred(
    pictures: Shaped[np.ndarray, "p h w c"], rows: Float[np.ndarray, "_ h"], columns: Float[np.ndarray, "_ w"]
) -> Float[np.ndarray, "p h w c"]:
    """Minus the mean that the resized picture has (resizing leaves a constant as it is); exactly 0 if constant."""
    pictures = pictures.astype(np.float32)
    pictures -= pictures[:, :1, :1, :1].copy()
    mean = np.einsum("h,phwc,w->p", rows.mean(axis=0), pictures, columns.mean(axis=0), optimize=True)
    return pictures - mean[:, None, None, None] / pictures.shape[3]


def _apply(
    rows: Float[np.ndarray, "k h"], pictures: Float[np.ndarray, "p h w c"], columns: Float[np.ndarray, "l w"]
) -> Float[np.ndarray, "p k l c"]:
    return np.einsum("kh,phwc,lw->pklc", rows, pictures, columns, optimize=True)


def _divided(values: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """`values / norm`, 0 for a constant picture."""
    return np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
