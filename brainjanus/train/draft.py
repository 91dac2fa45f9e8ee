"""Drafts solved from the training split, and what stands in for a response that was never measured.

Two subjects rarely saw the same training pictures. So where one did not see a picture, the other's linear encoding
model says what its response would have been, and the map between them is fitted to measured and expected pairs alike.
What a training row is shown as its draft comes from a solution that did not see its stimulus (out of fold): a draft
that was fitted to the row itself would be trusted too much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.progress import progress
from brainjanus.core.ridge import Ridge, fit_ridge
from brainjanus.data.dataset import Dataset
from brainjanus.model.draft import Carry, Drafts, chosen, fit_gaussian, own_randomness

FOLDS = 4
LEAST, LEAST_PAIRS = 3, 12  # stimuli that a linear map is fitted to; that two subjects have to share without encoders
MOST_DESCRIBED = 512  # principal components of the stimuli's features that an encoding model reads


# N stimuli of the training split, F features
class Solution(NamedTuple):
    """Drafts, and for each subject the linear encoding model from the stimuli's features to its z (None without)."""

    drafts: Drafts
    encoders: dict[str, Ridge | None]


@dataclass(frozen=True, eq=False)
class Solved:
    """whole: from all training stimuli. folds: the same without the stimuli of each fold. fold: that of a stimulus.

    descriptions: what the encoding models read of each stimulus.
    """

    whole: Solution
    folds: list[Solution]
    fold: Int[Tensor, "n"]
    descriptions: Float[Tensor, "n f"] | None

    def at(self, stimuli: Int[Tensor, "b"]) -> "OutOfFold":
        """Drafts of responses to these stimuli, row by row."""
        return OutOfFold(self, self.fold[stimuli])

    def for_others(self, count: int) -> "Solved":
        """Drafts of so many stimuli that none of this was solved on; responses that were not measured are not
        expected."""
        unexpecting = Solution(self.whole.drafts, dict.fromkeys(self.whole.encoders))
        return Solved(unexpecting, [unexpecting], torch.zeros(count, dtype=torch.long), None)

    def expects(self, subject: str) -> bool:
        """Whether responses to stimuli that this subject did not see can be expected."""
        return self.whole.encoders[subject] is not None

    def expected(self, subject: str, stimuli: Int[Tensor, "b"]) -> Float[Tensor, "b v"]:
        """The mean responses of a subject that its encoding model expects to these stimuli."""
        encoder = self.whole.encoders[subject]
        assert encoder is not None and self.descriptions is not None
        z = torch.from_numpy(encoder.predict(self.descriptions[stimuli].numpy()))
        return self.whole.drafts.gaussian(subject).expected(z)


class OutOfFold(NamedTuple):
    """Drafts of a batch, each row's from the solution that did not see its stimulus. fold: of each row."""

    solved: Solved
    fold: Int[Tensor, "b"]

    def complete(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b v"]:
        out = torch.empty_like(values)
        for number in self.fold.unique().tolist():
            rows = self.fold == number
            out[rows] = self.solved.folds[number].drafts.complete(values[rows], subject)
        return out

    def carried(self, values: Float[Tensor, "b v"], subject: str, other: str) -> Float[Tensor, "b w"] | None:
        whole, folds = self.solved.whole.drafts, [solution.drafts for solution in self.solved.folds]
        if any((subject, other) not in drafts.pairs for drafts in (whole, *folds)):
            return None  # of few pairs a fold may have none left; which rows are asked for has no say in it
        out = values.new_zeros(len(values), whole.ranks[other][0])
        for number in self.fold.unique().tolist():
            rows = self.fold == number
            drafted = folds[number].carried(values[rows], subject, other)
            assert drafted is not None
            out[rows] = drafted
        return out


def solve_drafts(dataset: Dataset, descriptions: Float[Tensor, "n f"] | None, seed: int = 0) -> Solved:
    """All drafts of a dataset's training split.

    descriptions: features of the stimuli, rows as in `dataset.split_ids("train")`, by which responses to stimuli that
    a subject did not see are expected; None leaves pairs of subjects to the stimuli that both saw.
    """
    row_of = {stimulus: row for row, stimulus in enumerate(dataset.split_ids("train"))}
    seen, means = {}, {}
    for subject in dataset.subjects:
        averages = dataset.averages(subject, "train")
        seen[subject] = np.array([row_of[stimulus] for stimulus in averages.stimulus_ids])
        means[subject] = averages.responses
    fold = np.random.default_rng(seed).permutation(len(row_of)) % FOLDS
    table = None if descriptions is None else descriptions.numpy()
    choices = {subject: chosen(responses) for subject, responses in means.items()}
    solutions = []
    with progress("linear drafts", FOLDS + 1) as advance:
        for number in range(FOLDS + 1):  # the last one leaves nothing out
            solutions.append(solve(seen, means, choices, table, fold != number))
            advance(number + 1, None)
    whole, folds = solutions[-1], solutions[:-1]
    return Solved(whole, folds, torch.from_numpy(fold), descriptions)


def solve(
    seen: dict[str, Int[np.ndarray, "s"]],
    means: dict[str, Float[np.ndarray, "s v"]],
    choices: dict[str, tuple[int, float]],
    table: Float[np.ndarray, "n f"] | None,
    used: np.ndarray,
) -> Solution:
    """From the stimuli that are used. seen: the stimuli of each subject, in the order of their mean responses."""
    gaussians, encoders, latents = {}, {}, {}
    for subject, rows in seen.items():
        keep = used[rows]
        if keep.sum() < LEAST:  # too few to leave any out
            keep = np.ones_like(keep)
        gaussians[subject] = fit_gaussian(means[subject][keep], *choices[subject])
        z = gaussians[subject].latents(torch.from_numpy(means[subject])).numpy()
        enough = table is not None and keep.sum() >= LEAST
        encoders[subject] = fit_ridge(table[rows[keep]], z[keep]) if enough else None  # type: ignore[index]
        latents[subject] = z
    pairs = {}
    for a, b in ((a, b) for a in seen for b in seen if a != b):
        carry = map_between(
            (seen[a], latents[a]), (seen[b], latents[b]), encoders[b], table, used, len(gaussians[b].axes)
        )
        if carry is not None:
            pairs[a, b] = carry
    drafts = Drafts({s: (g.axes.shape[1], len(g.axes)) for s, g in gaussians.items()}, pairs)
    for subject, gaussian in gaussians.items():
        drafts.gaussian(subject).load_state_dict(gaussian.state_dict())
    for (a, b), carry in pairs.items():
        drafts.carries[f"brain:{a}->{b}"].load_state_dict(carry.state_dict())
    return Solution(drafts, encoders)


def map_between(
    one: tuple[Int[np.ndarray, "s"], Float[np.ndarray, "s m"]],
    other: tuple[Int[np.ndarray, "t"], Float[np.ndarray, "t o"]],
    encoder: Ridge | None,
    table: Float[np.ndarray, "n f"] | None,
    used: np.ndarray,
    rank: int,
) -> Carry | None:
    """From the z of one subject to that of another: (stimuli, z) of each. None if nothing pairs them."""
    (rows, z), (other_rows, other_z) = one, other
    place = {stimulus: row for row, stimulus in enumerate(other_rows.tolist())}
    measured = np.array([stimulus in place for stimulus in rows.tolist()])
    paired = used[rows] & (measured if encoder is None else True)
    if (encoder is None and measured.sum() < LEAST_PAIRS) or paired.sum() < LEAST:
        return None
    target = np.zeros((len(rows), rank), np.float32)
    target[measured] = other_z[[place[stimulus] for stimulus in rows[measured].tolist()]]
    if encoder is not None and table is not None and not measured.all():
        target[~measured] = encoder.predict(table[rows[~measured]])
    ridge = fit_ridge(z[paired].astype(np.float32), target[paired])
    carry = Carry(z.shape[1], rank)
    carry.weight.copy_(ridge.axes @ ridge.weights)
    carry.offset.copy_(ridge.target_mean - ridge.feature_mean @ ridge.axes @ ridge.weights)
    return carry


def descriptions_of(kinds: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n f"] | None:
    """The principal components of features of several kinds, each kind with as much variance as the others."""
    scaled = []
    for kind in kinds:
        centred = kind.float() - kind.float().mean(dim=0)
        scaled.append(centred / centred.square().sum(dim=1).mean().sqrt().clamp_min(1e-6))
    if not scaled:
        return None
    table = torch.cat(scaled, dim=1)
    count = min(MOST_DESCRIBED, *table.shape)
    with own_randomness():
        left, singular, _ = torch.svd_lowrank(table, q=count)
    return left * singular
