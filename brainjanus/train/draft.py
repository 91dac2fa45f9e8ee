"""Drafts solved from the training split, and what stands in for a response that was never measured.

Two subjects rarely saw the same training pictures. So where one did not see a picture, the other's linear encoding
model says what its response would have been, and the map between them is fitted to measured and expected pairs alike.
What a training row is shown as its draft comes from a solution that did not see its stimulus (out of fold): a draft
that was fitted to the row itself would be trusted too much. For what pictures and words tell, leaving a stimulus out
needs no further solution: its leverage says what it did to its own prediction (exactly with one prior and penalty,
nearly with several).

A site that looks at a part of the picture is better predicted by a model that does so, too: of several priors, which
weigh the places of the picture's features by a Gaussian window, those have the most to say that generalise best.
Source: St-Yves & Naselaris 2018 (feature-weighted receptive fields), Breiman 1996 (stacking). Differs: the weights of
channels may vary within the window, shrunk by ridge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from brainjanus.core.progress import progress
from brainjanus.core.ridge import Chosen, Ridge, decomposed, fit_among, fit_ridge
from brainjanus.data.dataset import Dataset
from brainjanus.model.draft import (
    Carry,
    Drafts,
    Reading,
    Stack,
    channels_of,
    chosen,
    fit_gaussian,
    own_randomness,
    principal,
)
from brainjanus.model.sequence import Block

FOLDS = 4
LEAST, LEAST_PAIRS = 3, 12  # stimuli that a linear map is fitted to; that two subjects have to share without encoders
MOST_READ, NARROW = 256, 2048  # dimensions of a reading; width of descriptions when there are more stimuli than that
ENOUGH = 300  # stimuli that tell which part of a picture a site looks at
CENTRES, WIDTHS = 4, (0.17, 0.31)  # windows along a side, and their standard deviations in sides
MOST_GUESSED = 256  # of them are guessed from a response
MOST_PICTURED = 256  # dimensions in which pictures are drafted from one
MOST_DESCRIBED = 512  # principal components of the stimuli's features that an encoding model reads


# (subject, stimuli [b]) -> mean measured responses [b, v]; anything for a stimulus that the subject did not see
Means = Callable[[str, Int[Tensor, "b"]], Float[Tensor, "b v"]]


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
    told: Mapping[tuple[str, str], "LeftOut"] = field(default_factory=dict)
    guesses: Mapping[str, "LeftOut"] = field(default_factory=dict)
    facts: Float[Tensor, "n g"] | None = None  # what is guessed: facts, and the coordinates of small pictures

    def at(self, stimuli: Int[Tensor, "b"], means: "Means | None" = None) -> "OutOfFold":
        """Drafts of responses to these stimuli, row by row. means: the measured ones, of which each is left out of what
        pictures and words tell; None: none was there."""
        return OutOfFold(self, self.fold[stimuli], stimuli, means)

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
    stimuli: Int[Tensor, "b"]
    means: "Means | None" = None

    def told(self, blocks: Mapping[str, Block], subject: str) -> Float[Tensor, "b v"] | None:
        drafts, parts = self.solved.whole.drafts, {}
        for kind, description in drafts.descriptions(blocks):
            left_out = self.solved.told.get((kind, subject))
            if left_out is None or self.means is None:
                parts[kind] = drafts.reading(kind, subject)(description)
            else:
                parts[kind] = left_out.predict(description, self.stimuli, self.means(subject, self.stimuli))
        return drafts.combined(parts, subject)

    def guess(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b g"] | None:
        told, drafts = self._decoded(values, subject), self.solved.whole.drafts
        return drafts.guess(values, subject) if told is None else told[:, : drafts.guessed]

    def picture(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b 3 h w"] | None:
        told, drafts = self._decoded(values, subject), self.solved.whole.drafts
        if told is None or not drafts.pictured:
            return drafts.picture(values, subject)
        return drafts.painted(told[:, drafts.guessed :])

    def _decoded(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b g"] | None:
        """What responses to training stimuli tell of these, each left out; None for others."""
        left_out, facts = self.solved.guesses.get(subject), self.solved.facts
        if left_out is None or facts is None:
            return None
        return left_out.predict(self.complete(values, subject), self.stimuli, facts[self.stimuli])

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


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What a picture or words tell of one subject's response to a training stimulus, without that stimulus.

    row: of each stimulus of the split among those that the subject saw; -1 for others. described: of these, as the fit
    read them. axes, spread: of the fit, where a stimulus may be described in other words than the fit read; without
    them it is the same description.
    """

    reading: Reading
    fit: Chosen
    row: Int[Tensor, "n"]
    described: Float[Tensor, "s p"]
    axes: Float[Tensor, "p r"] | None = None
    spread: Float[Tensor, "r"] | None = None

    def predict(
        self, description: Float[Tensor, "b p"], stimuli: Int[Tensor, "b"], measured: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        """measured: the mean responses to these stimuli, which the fit saw."""
        rows = self.row[stimuli]
        shown, seen = self.described[rows], (rows >= 0)[:, None]
        own = self.fit.leverage(rows)
        missed = (measured - self.reading(shown)) / (1 - own)
        if self.axes is not None and self.spread is not None:
            both = ((description - self.reading.described) @ self.axes) * ((shown - self.reading.described) @ self.axes)
            cross = both @ (1 / (self.spread[:, None] + self.fit.penalties[0])) + 1 / len(self.described)
            own = cross @ self.fit.say[0]
        return self.reading(description) - own * missed * seen


class Described(NamedTuple):
    """What readings read of each stimulus of the split. varies: whether one stimulus may be described in several ways
    (its captions), of which this is the mean. side: places along a side of the picture, if it is a grid of them. mix:
    by which a picture's channels became the fewer ones of the table; None: they are as they were."""

    table: Float[Tensor, "n p"]
    varies: bool = False
    side: int = 0
    mix: Float[Tensor, "c m"] | None = None


def windows(width: int, side: int, num_stimuli: int) -> Float[Tensor, "a p"]:
    """Which places of a picture may tell of a site: all alike, or a Gaussian window. Few stimuli cannot tell which."""
    flat = torch.ones(1, width)
    if side < 3 or num_stimuli < ENOUGH:
        return flat
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = (torch.arange(CENTRES) + 0.5) / CENTRES * side - 0.5
    made = [
        torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (share * side) ** 2)).flatten()
        for cy in centres
        for cx in centres
        for share in WIDTHS
    ]
    return torch.cat([flat, torch.stack(made).repeat_interleave(width // side**2, dim=1)])


def standardised(x: Float[Tensor, "n p"], varies: bool) -> list[Float[Tensor, "1 p"]]:
    """As if all features varied alike, one more prior where few stimuli cannot tell. Not where a stimulus is described
    in several ways: what leaves out one of these is exact for one prior alone."""
    if varies or len(x) >= ENOUGH:
        return []
    spread = x.std(dim=0, correction=0)
    return [torch.where(spread > 1e-6 * spread.amax(), 1 / spread.clamp_min(1e-30), 0.0)[None]]


def solve_readings(
    drafts: Drafts,
    seen: Mapping[str, Int[np.ndarray, "s"]],
    means: Mapping[str, Float[np.ndarray, "s v"]],
    described: Mapping[str, Described],
) -> dict[tuple[str, str], LeftOut]:
    """Linear encoding models of every subject, into `drafts`, and what leaves out each of their stimuli."""
    told = {}
    num_stimuli = {len(one.table) for one in described.values()}
    with progress("linear encoding models", len(seen)) as advance:
        for number, (subject, rows) in enumerate(seen.items()):
            y, here = torch.from_numpy(means[subject]).float(), torch.from_numpy(rows)
            row = torch.full((max(num_stimuli),), -1)
            row[here] = torch.arange(len(here))
            apart = {}
            for kind, (table, varies, side, _) in described.items():
                x = table[here]
                fit = fit_among(x, y, torch.cat([windows(x.shape[1], side, len(x)), *standardised(x, varies)]))
                reading = drafts.reading(kind, subject)
                load_reading(reading, fit)
                axes = spread = None
                if varies:
                    spread, _, axes = decomposed(x - fit.feature_mean)
                told[kind, subject] = LeftOut(reading, fit, row, x, axes, spread)
                apart[kind] = told[kind, subject].predict(x, here, y)
            if len(apart) > 1:
                stack(drafts.stacks[f"brain:{subject}"], apart["image"], apart["text"], y)
            advance(number + 1, None)
    return told


def load_reading(reading: Reading, fit: Chosen) -> None:
    """Of a fit's weights as many dimensions as a reading has."""
    width, num_sites = fit.weights.shape
    rank = reading.read.shape[1]
    reading.described.copy_(fit.feature_mean)
    reading.offset.copy_(fit.target_mean)
    if rank == num_sites:
        read, write = fit.weights, torch.eye(num_sites)
    elif rank == width:
        read, write = torch.eye(width), fit.weights
    else:
        with own_randomness():
            left, singular, right = torch.svd_lowrank(fit.weights, q=min(rank + 32, width, num_sites), niter=4)
        read, write = left[:, :rank] * singular[:rank], right[:, :rank].T
    reading.read.copy_(read)
    reading.write.copy_(write)


def stack(
    made: torch.nn.Module, seen: Float[Tensor, "n v"], said: Float[Tensor, "n v"], y: Float[Tensor, "n v"]
) -> None:
    """At each site the weights of two predictions that left each stimulus out, by least squares, drawn to one half."""
    assert isinstance(made, Stack)
    centre = [x - x.mean(dim=0) for x in (seen, said, y)]
    a, b, missing = centre[0], centre[1], centre[2] - 0.5 * (centre[0] + centre[1])
    few = 0.1 * 0.5 * (a.square().sum(dim=0) + b.square().sum(dim=0)) + 1e-9
    aa, bb, ab = a.square().sum(dim=0) + few, b.square().sum(dim=0) + few, (a * b).sum(dim=0)
    am, bm = (a * missing).sum(dim=0), (b * missing).sum(dim=0)
    found = torch.stack([bb * am - ab * bm, aa * bm - ab * am]) / (aa * bb - ab.square())
    made.weights.copy_((0.5 + found).clamp(0, 1.5))
    made.offset.copy_(y.mean(dim=0) - made.weights[0] * seen.mean(dim=0) - made.weights[1] * said.mean(dim=0))


def solve_drafts(
    dataset: Dataset,
    descriptions: Float[Tensor, "n f"] | None,
    seed: int = 0,
    described: Mapping[str, Described] | None = None,
    pieces: Int[Tensor, "m"] | None = None,
    pictures: Float[Tensor, "n x"] | None = None,
) -> Solved:
    """All drafts of a dataset's training split.

    descriptions: features of the stimuli, rows as in `dataset.split_ids("train")`, by which responses to stimuli that
    a subject did not see are expected; None leaves pairs of subjects to the stimuli that both saw. described: "image"
    or "text" -> what their linear encoding models read; none are made without. pieces: the codes that are counted.
    pictures: the stimuli's, small, which are drafted from responses; None without any.
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
    facts = None if descriptions is None else facts_of(descriptions)
    guessed = 0 if facts is None else facts.shape[1]
    look = None
    if pictures is not None and facts is not None:
        look = look_of(pictures)
        facts = torch.cat([facts, (pictures - look[0]) @ look[1].T / look[1].square().sum(dim=1)], dim=1)
    drafts = with_readings(whole.drafts, described or {}, pieces, guessed, look)
    told = solve_readings(drafts, seen, means, described) if described else {}
    guesses = {} if facts is None else solve_guesses(drafts, seen, means, facts)
    whole = Solution(drafts, whole.encoders)
    return Solved(whole, folds, torch.from_numpy(fold), descriptions, told, guesses, facts)


def facts_of(descriptions: Float[Tensor, "n f"]) -> Float[Tensor, "n g"]:
    """Of a description what is guessed: its first numbers, each with a spread of 1."""
    count = min(MOST_GUESSED, descriptions.shape[1])
    count -= count % channels_of(count)
    return descriptions[:, :count] / descriptions[:, :count].std(dim=0, correction=0).clamp_min(1e-6)


def look_of(pictures: Float[Tensor, "n x"]) -> tuple[Float[Tensor, "x"], Float[Tensor, "g x"]]:
    """The mean of small pictures, and the axes along which they vary."""
    mean, axes = (torch.from_numpy(x) for x in principal(pictures.numpy(), MOST_PICTURED))
    return mean, axes[axes.square().sum(dim=1) > 0]


def solve_guesses(
    drafts: Drafts,
    seen: Mapping[str, Int[np.ndarray, "s"]],
    means: Mapping[str, Float[np.ndarray, "s v"]],
    facts: Float[Tensor, "n g"],
) -> dict[str, LeftOut]:
    """Linear decoding models of every subject, into `drafts`, and what leaves out each of their stimuli."""
    found = {}
    for subject, rows in seen.items():
        x, here = torch.from_numpy(means[subject]).float(), torch.from_numpy(rows)
        fit = fit_among(x, facts[here], torch.ones(1, x.shape[1]))
        reading = drafts.guesses[f"brain:{subject}"]
        assert isinstance(reading, Reading)
        load_reading(reading, fit)
        row = torch.full((len(facts),), -1)
        row[here] = torch.arange(len(here))
        spread, _, axes = decomposed(x - fit.feature_mean)
        found[subject] = LeftOut(reading, fit, row, x, axes, spread)
    return found


def with_readings(
    drafts: Drafts,
    described: Mapping[str, Described],
    pieces: Int[Tensor, "m"] | None,
    guessed: int,
    look: tuple[Float[Tensor, "x"], Float[Tensor, "g x"]] | None,
) -> Drafts:
    """The same with room for encoding and decoding models."""
    sizes = {kind: (one.table.shape[1], min(one.table.shape[1], MOST_READ)) for kind, one in described.items()}
    mix = described["image"].mix if "image" in described else None
    own = {"pieces": pieces, "mix": mix} | ({} if look is None else {"look_mean": look[0], "look": look[1]})
    made = Drafts(
        drafts.ranks, drafts.pairs, sizes,
        pieces=0 if pieces is None else len(pieces),
        guessed=guessed,
        pictured=0 if look is None else len(look[1]),
        mixed=(0, 0) if mix is None else tuple(mix.shape),
    )  # fmt: skip
    kept = {
        name: values for name, values in drafts.state_dict().items() if not name.startswith(("pieces", "mix", "look"))
    }
    made.load_state_dict(kept | {name: values for name, values in own.items() if values is not None}, strict=False)
    return made


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
