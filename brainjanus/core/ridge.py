"""Ridge regression: features and targets in, a linear map with a penalty of its own for each target out.

Features are centred, not scaled, the intercept is free; one eigendecomposition serves all penalties. The penalty is
chosen for each target by generalised cross-validation (Golub, Heath & Wahba 1979), the rotation-invariant form of
leave-one-out, as himalaya and scikit-learn choose theirs by (leave-one-out) cross-validation per target. Why it is our
own: docs/decisions/0007-ridge.md.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.errors import UserError

PENALTIES = np.logspace(-4, 4, 25)  # in units of the mean eigenvalue of the features' scatter matrix
AMONG = np.logspace(-2, 3, 16)  # the same where priors are weighed, too: small ones profit from pictures that are alike
LESS_SAY = 0.01  # share of a target's variance by which a prior's error has to be larger to have 1/e of the say


# N training samples, P features, T targets, R rank
@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted ridge regression; see `fit_ridge`. penalties, r2: per target, r2 by generalised cross-validation."""

    feature_mean: Float[Tensor, "p"]
    axes: Float[Tensor, "p r"]
    weights: Float[Tensor, "r t"]
    target_mean: Float[Tensor, "t"]
    penalties: Float[np.ndarray, "t"]
    r2: Float[np.ndarray, "t"]

    def predict(self, features: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m t"]:
        """The targets of new samples."""
        centred = torch.from_numpy(features).to(self.axes.dtype) - self.feature_mean
        return (centred @ self.axes @ self.weights + self.target_mean).numpy()


def fit_ridge(
    features: Float[np.ndarray, "n p"],
    targets: Float[np.ndarray, "n t"],
    penalties: Float[np.ndarray, "a"] | None = None,
    *,
    shared: bool = False,
) -> Ridge:
    """Ridge regression with a penalty chosen per target by generalised cross-validation.

    penalties: the alphas of scikit-learn's `Ridge`; default PENALTIES times the mean eigenvalue. shared: one penalty
    for all targets, chosen by the sum of their errors: of few samples, one target alone tells little. Computed in the
    features' precision, on the smaller of the two scatter matrices: O(min(n, p)^3 + n p min(n, p) + n t min(n, p)).
    Raises UserError with fewer than three samples.
    """
    if len(features) < 3 or len(features) != len(targets):
        raise UserError(
            f"linear baseline: expected at least 3 training samples, as many features as targets, got {len(features)} "
            f"and {len(targets)}. Is the training split almost empty? Score with baseline=False."
        )
    x, y = torch.from_numpy(features), torch.from_numpy(targets)
    y = y.to(x.dtype)
    feature_mean, target_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - feature_mean, y - target_mean
    num_samples, num_features = x.shape
    scatter = x @ x.T if num_samples <= num_features else x.T @ x
    eigenvalues, vectors = eigen(scatter)
    kept = eigenvalues > eigenvalues[-1].clamp(min=0) * len(scatter) * torch.finfo(x.dtype).eps
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    scale = eigenvalues.sqrt()
    # x = left @ diag(scale) @ axes.T
    axes = x.T @ (vectors / scale) if num_samples <= num_features else vectors
    projected = vectors.T @ y if num_samples <= num_features else (axes / scale).T @ (x.T @ y)  # left.T @ y

    if penalties is None:
        penalties = PENALTIES * (float(eigenvalues.mean()) if len(eigenvalues) else 1.0)
    grid = torch.from_numpy(np.sort(np.asarray(penalties, np.float64))[::-1].copy()).to(x.dtype)
    left_over = grid[:, None] / (eigenvalues + grid[:, None])  # share of each component that is not fitted
    variance = y.square().sum(dim=0)
    outside = (variance - projected.square().sum(dim=0)).clamp(min=0)
    degrees = num_samples - 1 - len(eigenvalues) + left_over.sum(dim=1)  # residual degrees of freedom
    residual = left_over.square() @ projected.square() + outside
    error = num_samples * residual / degrees.square()[:, None].clamp(min=1e-12)
    best = error.argmin(dim=0)  # at a tie the largest penalty
    if shared:
        best = error.sum(dim=1).argmin().expand_as(best)
    chosen = grid[best]
    weights = scale[:, None] / (eigenvalues[:, None] + chosen) * projected
    spread = variance / num_samples
    r2 = torch.where(spread > 0, 1 - error.gather(0, best[None])[0] / spread.clamp(min=1e-30), 0.0)
    return Ridge(feature_mean, axes, weights, target_mean, chosen.double().numpy(), r2.double().numpy())


def eigen(scatter: Float[Tensor, "m m"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m m"]]:
    """Eigenvalues and vectors, in double precision where single precision does not converge (many equal ones)."""
    try:
        return torch.linalg.eigh(scatter)
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(scatter.double())
        return values.to(scatter.dtype), vectors.to(scatter.dtype)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Ridge regression under several priors for each target; see `fit_among`.

    say: how much each prior with each penalty has to say of each target; they sum to 1. weights act on features minus
    `feature_mean`. own: what each training sample says of its own prediction (its leverage), for each prior and
    penalty. r2: by generalised cross-validation with the best penalty, the mean over priors.
    """

    feature_mean: Float[Tensor, "p"]
    weights: Float[Tensor, "p t"]
    target_mean: Float[Tensor, "t"]
    say: Float[Tensor, "a g t"]
    own: Float[Tensor, "a g n"]
    r2: Float[Tensor, "t"]
    penalties: Float[Tensor, "a g"]

    def leverage(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "b t"]:
        """What these training samples say of their own predictions; the rest of these is due to the others."""
        total = self.say.new_zeros(len(rows), self.say.shape[2])
        for say, own in zip(self.say, self.own, strict=True):
            total += own[:, rows].T @ say
        return total


def fit_among(
    features: Float[Tensor, "n p"],
    targets: Float[Tensor, "n t"],
    priors: Float[Tensor, "a p"],
    penalties: Float[np.ndarray, "g"] = AMONG,
) -> Chosen:
    """Ridge regression under several priors and penalties; of these the mean, in which each has the less to say of a
    target the larger its error is by generalised cross-validation.

    Of the penalties of a prior, each has a say of error^(-n / 2), as models have by their likelihood: of few samples
    several, of many the best one alone. Of priors, by their best penalty: see LESS_SAY.

    priors: the standard deviation that each prior gives the weight of each feature, up to the penalty; 0 leaves a
    feature out. One decomposition a prior, on the smaller of the two scatter matrices. Raises UserError with fewer
    than three samples.
    """
    if len(features) < 3 or len(features) != len(targets):
        raise UserError(
            f"linear draft: expected at least 3 training samples, as many features as targets, got {len(features)} "
            f"and {len(targets)}. Is the training split almost empty?"
        )
    feature_mean, target_mean = features.mean(dim=0), targets.mean(dim=0)
    centred, y = features - feature_mean, targets - target_mean
    num, variance = len(y), y.square().sum(dim=0)
    errors, says, owns, grids = [], [], [], []
    weights, all_say = y.new_zeros(features.shape[1], y.shape[1]), torch.full((y.shape[1],), -torch.inf)
    for scale in priors:
        used = scale > 0
        x = centred[:, used] * scale[used]
        eigenvalues, vectors, axes = decomposed(x)
        grid = torch.from_numpy(np.sort(penalties)[::-1].copy()).to(x) * eigenvalues.mean()
        kept = eigenvalues / (eigenvalues + grid[:, None])  # of each component; g x r
        projected = vectors.T @ y
        residual = (1 - kept).square() @ projected.square() + (variance - projected.square().sum(dim=0)).clamp_min(0)
        degrees = num - 1 - kept.sum(dim=1)
        error = num * residual / degrees.square()[:, None].clamp_min(1e-12)
        error = torch.where(variance > 0, error / (variance / num).clamp_min(1e-30), 1.0)
        owns.append(kept @ vectors.square().T + 1 / num)
        grids.append(grid)
        says.append((-num / 2 * error.clamp_min(1e-30).log()).softmax(dim=0))
        errors.append(error.amin(dim=0))
        own_say = -errors[-1] / LESS_SAY
        before, all_say = all_say, torch.logaddexp(all_say, own_say)  # of all priors so far together
        shrunk = (says[-1].T @ kept).T / eigenvalues.sqrt()[:, None]
        weights *= (before - all_say).exp()
        weights[used] += scale[used, None] * (axes @ (shrunk * projected)) * (own_say - all_say).exp()
    error = torch.stack(errors)
    share = (-error / LESS_SAY).softmax(dim=0)
    own = torch.stack(owns).clamp_max(1 - 1e-4)
    r2 = 1 - (share * error).sum(dim=0)
    say = share[:, None] * torch.stack(says)
    return Chosen(feature_mean, weights, target_mean, say, own, r2, torch.stack(grids))


def decomposed(x: Float[Tensor, "n p"]) -> tuple[Float[Tensor, "r"], Float[Tensor, "n r"], Float[Tensor, "p r"]]:
    """x = vectors diag(sqrt(eigenvalues)) axes.T, by the smaller of its two scatter matrices; nothing that is noise."""
    wide = x.shape[0] <= x.shape[1]
    eigenvalues, found = eigen(x @ x.T if wide else x.T @ x)
    kept = eigenvalues > eigenvalues[-1].clamp(min=0) * len(found) * torch.finfo(x.dtype).eps
    eigenvalues, found = eigenvalues[kept], found[:, kept]
    other = (x.T if wide else x) @ found / eigenvalues.sqrt()
    return eigenvalues, (found if wide else other), (other if wide else found)
