"""Axes: what each token of a subject reads and writes, solved from training responses rather than trained.

Enters: mean responses and what repeats differ by, in cortical order. Leaves: for each patch a few axes over all sites.
The axes of all tokens together span the principal axes of the response, so that no linear code of as many numbers keeps
more; within the bands of the first K, the second K, ... principal axes they are turned towards the patches (Loewdin
1950, symmetric orthogonalisation: of all orthonormal axes of that span, those nearest to the patches' own), so that a
token is still a place on the cortex.

What does not come again is left out: the covariance is that of the mean response less `other_repeats` times the part
of it that is noise, as repeats tell; this is the covariance of the input with the target that the tokenizer is trained
on (train/tokenizer.py).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SPARE = 100  # principal axes of the mean responses beyond those asked for, in which noise is weighed
SMALL = 4000  # sites or stimuli; up to so many the decomposition is exact


class Axes(NamedTuple):
    """What a token reads, `turn @ principal`, and what it writes, `back @ principal`.

    spread: standard deviation of training responses along what is read.
    """

    principal: Float[np.ndarray, "c v"]  # orthonormal rows
    turn: Float[np.ndarray, "k r c"]  # zero where there is no axis left for a token
    back: Float[np.ndarray, "k r c"]
    spread: Float[np.ndarray, "k r"]


# N stimuli, T trials of repeated stimuli, V = K P sites in cortical order, filled up; r axes a token, C of the whole
def cortical_axes(
    means: Float[np.ndarray, "n v"],
    residuals: Float[np.ndarray, "t v"],
    noise: float,
    *,
    patch_size: int,
    per_patch: int,
    rank: int,
) -> Axes:
    """Axes over the whole response, each token's turned to its patch.

    means: mean response to each stimulus. residuals: what differs from it in each trial of a repeated stimulus.
    noise: how many times the residuals' covariance is deducted from that of the means. rank: the most axes.
    What is written is the best linear estimate of what comes again: it leaves out of each axis what is noise.
    """
    own = own_axes(means, patch_size, per_patch)
    num_patches = len(own)
    principal, repeated = repeated_axes(means, residuals, noise, min(rank, num_patches * per_patch))
    turn = np.zeros((num_patches, per_patch, len(principal)), np.float32)
    for band, first in enumerate(range(0, len(principal), num_patches)):
        here = slice(first, first + num_patches)
        span = principal[here].reshape(-1, num_patches, patch_size)
        left, _, right = np.linalg.svd(np.einsum("ckp,kp->ck", span, own[:, band]), full_matrices=False)
        turn[:, band, here] = (left @ right).T
    read = turn.reshape(num_patches * per_patch, len(principal))
    along = (means @ principal.T) @ read.T
    back = np.linalg.pinv(along.T @ along / len(along), rcond=1e-6, hermitian=True) @ (read * repeated)
    spread = along.std(axis=0).reshape(num_patches, per_patch)
    return Axes(principal.astype(np.float32), turn, back.reshape(turn.shape).astype(np.float32), spread)


def own_axes(means: Float[np.ndarray, "n v"], patch_size: int, per_patch: int) -> Float[np.ndarray, "k r p"]:
    """The principal axes of each patch by itself; zero beyond the patch's size."""
    patches = means.reshape(len(means), -1, patch_size)
    _, vectors = np.linalg.eigh(np.einsum("nkp,nkq->kpq", patches, patches, optimize=True))
    own = np.zeros((patches.shape[1], per_patch, patch_size), np.float32)
    found = vectors.swapaxes(1, 2)[:, ::-1][:, :per_patch]
    own[:, : found.shape[1]] = found
    return own


def repeated_axes(
    means: Float[np.ndarray, "n v"], residuals: Float[np.ndarray, "t v"], noise: float, wanted: int
) -> tuple[Float[np.ndarray, "c v"], Float[np.ndarray, "c"]]:
    """At most `wanted` orthonormal axes along which responses vary most, noise deducted, and these variances.

    Fewer where nothing is left.
    """
    count = min(wanted + SPARE, *means.shape)
    if min(means.shape) <= SMALL:
        _, singular, rows = np.linalg.svd(means, full_matrices=False)
    else:
        from sklearn.utils.extmath import randomized_svd

        _, singular, rows = randomized_svd(means, count, random_state=0)
    rows = rows[:count]
    covariance = np.diag(singular[:count].astype(np.float64) ** 2 / len(means))
    if len(residuals) and noise > 0:
        along = residuals @ rows.T
        covariance = covariance - noise * (along.T @ along) / len(residuals)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-values)[:wanted]
    order = order[values[order] > 1e-6 * values.max()]
    return vectors[:, order].T @ rows, values[order]
