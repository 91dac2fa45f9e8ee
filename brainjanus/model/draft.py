"""Draft: a linear estimate of a response, from a part of the same brain or from another brain; solved, not trained.

Enters: responses with NaN where a site was not measured. Leaves: the response to be expected at all sites of the same
subject (what is known stays), or of another subject.

Each subject has a Gaussian of few dimensions, x = mean + z axes + noise with z ~ N(0, I): what is known of a response
tells z, and z tells the rest. From one subject to another z is carried over by a linear map. And each subject has a
scatter: what a single trial has beside what the codes of its stimulus say, again of few dimensions and noise by site.
Source: Tipping & Bishop 1999 (probabilistic principal components; the rest given a part is its conditional mean).
Differs: the rank and the noise are chosen by hiding a part of left-out responses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.model.sequence import Block, brain_block
from brainjanus.tokenizers.brain import BrainTokenizer

RANKS = (4, 8, 16, 32, 64, 128, 256)
NOISES = (1.0, 2.0, 4.0, 8.0)  # in units of the variance of a site that the axes leave over
SCATTERED = 32  # dimensions in which single trials scatter together
SPARE, ROUNDS = 32, 4  # of the randomised decomposition (Halko et al. 2011): more axes than asked for, power iterations


# B rows, V sites, M dimensions of z
class Gaussian(nn.Module):
    """One subject's responses as a Gaussian of few dimensions."""

    mean: Tensor
    axes: Tensor
    noise: Tensor

    def __init__(self, num_sites: int, rank: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_sites))
        self.register_buffer("axes", torch.zeros(rank, num_sites))  # each as long as z spreads along it
        self.register_buffer("noise", torch.ones(()))  # variance of a site beside z

    def latents(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b m"]:
        """The mean of z given the sites that are not NaN."""
        known = ~values.isnan()
        if bool((known == known[:1]).all()):
            return self._given(values, known[0]) if len(values) else values.new_zeros(0, len(self.axes))
        z = values.new_zeros(len(values), len(self.axes))
        patterns, which = known.unique(dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            z[which == number] = self._given(values[which == number], pattern)
        return z

    def _given(self, values: Float[Tensor, "b v"], known: Bool[Tensor, "v"]) -> Float[Tensor, "b m"]:
        read = self.axes[:, known]
        precision = torch.eye(len(read), device=read.device) + read @ read.T / self.noise
        seen = (values[:, known] - self.mean[known]) @ read.T / self.noise
        return torch.linalg.solve(precision, seen.T).T

    def expected(self, z: Float[Tensor, "b m"]) -> Float[Tensor, "b v"]:
        return self.mean + z @ self.axes

    def complete(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The same responses with NaN replaced by what is to be expected there."""
        return torch.where(values.isnan(), self.expected(self.latents(values)), values)


class Carry(nn.Module):
    """From the z of one subject to that of another."""

    weight: Tensor
    offset: Tensor

    def __init__(self, rank: int, other_rank: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(rank, other_rank))
        self.register_buffer("offset", torch.zeros(other_rank))

    def forward(self, z: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        return z @ self.weight + self.offset


class Scatter(nn.Module):
    """What single trials of one subject have beside what codes say of their stimulus: a Gaussian around nothing."""

    axes: Tensor
    spread: Tensor

    def __init__(self, num_sites: int):
        super().__init__()
        self.register_buffer("axes", torch.zeros(min(SCATTERED, num_sites), num_sites))
        self.register_buffer("spread", torch.zeros(num_sites))  # standard deviation of a site beside the axes

    def solve(self, residuals: Float[np.ndarray, "t v"]) -> None:
        """residuals: of single trials."""
        _, axes = principal(residuals, len(self.axes))
        self.axes.zero_()[: len(axes)].copy_(torch.from_numpy(axes))
        left_over = torch.from_numpy(residuals.var(axis=0)) - self.axes.square().sum(dim=0)
        self.spread.copy_(left_over.clamp_min(0).sqrt())

    def draw(self, samples: int, seeds: Sequence[int]) -> Float[Tensor, "b s v"]:
        """So many draws for each seed."""
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            z = torch.randn(samples, len(self.axes), generator=generator).to(self.axes.device)
            own = torch.randn(samples, len(self.spread), generator=generator).to(self.axes.device)
            rows.append(z @ self.axes + own * self.spread)
        return torch.stack(rows)


class Trust(nn.Module):
    """How much of what the model adds to a draft of one subject's response is to be believed, from 0 to 1: of a draft
    from a part of the same brain, and of one from other brains."""

    part: Tensor
    brain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.ones(()))
        self.register_buffer("brain", torch.ones(()))


class Drafts(nn.Module):
    """All linear estimates between the subjects of a model, and how their trials scatter.

    ranks: subject -> (sites, dimensions). pairs: (from, to) that there is a map for.
    """

    def __init__(self, ranks: Mapping[str, Sequence[int]], pairs: Iterable[Sequence[str]]):
        super().__init__()
        self.ranks, self.pairs = {s: tuple(rank) for s, rank in ranks.items()}, tuple(tuple(pair) for pair in pairs)
        self.gaussians = nn.ModuleDict({f"brain:{s}": Gaussian(*rank) for s, rank in self.ranks.items()})
        self.trusts = nn.ModuleDict({f"brain:{s}": Trust() for s in self.ranks})
        self.scatters = nn.ModuleDict({f"brain:{s}": Scatter(rank[0]) for s, rank in self.ranks.items()})
        self.carries = nn.ModuleDict(
            {f"brain:{a}->{b}": Carry(self.ranks[a][1], self.ranks[b][1]) for a, b in self.pairs}
        )

    def gaussian(self, subject: str) -> Gaussian:
        if subject not in self.ranks:
            raise UserError(
                f"draft: expected one of the subjects {', '.join(self.ranks)}, got '{subject}'. Train on a dataset "
                "that has this subject."
            )
        found = self.gaussians[f"brain:{subject}"]
        assert isinstance(found, Gaussian)
        return found

    def scatter(self, subject: str) -> Scatter:
        self.gaussian(subject)
        found = self.scatters[f"brain:{subject}"]
        assert isinstance(found, Scatter)
        return found

    def trust(self, subject: str) -> Trust:
        self.gaussian(subject)
        found = self.trusts[f"brain:{subject}"]
        assert isinstance(found, Trust)
        return found

    def complete(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b v"]:
        """A response of which some sites are NaN, filled in."""
        return self.gaussian(subject).complete(values)

    def carried(self, values: Float[Tensor, "b v"], subject: str, other: str) -> Float[Tensor, "b w"] | None:
        """What the other subject's response is expected to be; None if there is no map between them."""
        if (subject, other) not in self.pairs:
            return None
        z = self.gaussian(subject).latents(values)
        return self.gaussian(other).expected(self.carries[f"brain:{subject}->{other}"](z))


@runtime_checkable
class Drafting(Protocol):
    """What gives drafts: `Drafts`, or the out-of-fold ones of training."""

    def complete(self, values: Tensor, subject: str) -> Tensor: ...

    def carried(self, values: Tensor, subject: str, other: str) -> Tensor | None: ...


def draft_of(drafts: Drafting, given: Mapping[str, Float[Tensor, "b _"]], subject: str) -> Float[Tensor, "b v"] | None:
    """The draft of a subject's response, from what is given of it, or else the mean of what other brains tell.

    given: brain:SUBJECT or part:SUBJECT -> responses, NaN where they are not known. None if there is no map.
    """
    if f"part:{subject}" in given:
        return drafts.complete(given[f"part:{subject}"], subject)
    carried = [drafts.carried(values, name.partition(":")[2], subject) for name, values in given.items()]
    found = [values for values in carried if values is not None]
    return torch.stack(found).mean(dim=0) if found else None


def draft_block(
    tokenizer: BrainTokenizer, draft: Float[Tensor, "b v"], subject: str, brain_input: str, fold: int = 1
) -> Block:
    """A draft as a condition of the response that it is a draft of: nothing of it was measured."""
    return brain_block(tokenizer, draft, subject, brain_input, fold, torch.ones_like(draft, dtype=torch.bool))


def beyond_codes(tokenizer: BrainTokenizer, draft: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b v"]:
    """What latents cannot hold of a draft. Added to what is decoded, a model that agrees with the draft returns it."""
    return draft - tokenizer.decode_latents(tokenizer.latents(draft, subject), subject)


# N responses
def chosen(responses: Float[np.ndarray, "n v"], seed: int = 0) -> tuple[int, float]:
    """The rank and the noise that predict hidden halves of left-out responses best."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(responses))
    left_out, others = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    known = rng.permutation(responses.shape[1]) < (responses.shape[1] + 1) // 2
    shown = torch.from_numpy(np.where(known, responses[left_out], np.nan)).float()
    truth = torch.from_numpy(responses[left_out][:, ~known]).float()
    mean, axes = principal(responses[others], RANKS[-1])

    def error(candidate: tuple[int, float]) -> float:
        filled = gaussian_of(responses[others], mean, axes, *candidate).complete(shown)[:, torch.from_numpy(~known)]
        return float((filled - truth).square().mean())

    most = max(1, min(len(axes) // 2, responses.shape[1] // 2))
    return min(((r, noise) for r in RANKS if r <= most or r == RANKS[0] for noise in NOISES), key=error)


def fit_gaussian(responses: Float[np.ndarray, "n v"], rank: int, noise: float) -> Gaussian:
    """The Gaussian of one subject's responses; `noise` in units of what the axes leave over."""
    return gaussian_of(responses, *principal(responses, rank), rank, noise)


def gaussian_of(
    responses: Float[np.ndarray, "n v"],
    mean: Float[np.ndarray, "v"],
    axes: Float[np.ndarray, "m v"],
    rank: int,
    noise: float,
) -> Gaussian:
    """Of the first `rank` axes, with `noise` times the variance of a site that they leave over."""
    axes = axes[:rank]
    left_over = float(responses.var(axis=0).mean() - (axes**2).sum() / axes.shape[1])
    found = Gaussian(axes.shape[1], len(axes))
    found.mean.copy_(torch.from_numpy(mean))
    found.axes.copy_(torch.from_numpy(axes))
    found.noise.fill_(max(noise * left_over, 1e-3 * float(responses.var(axis=0).mean()), 1e-9))
    return found


@contextmanager
def own_randomness() -> Iterator[None]:
    """For a decomposition that starts at random: the same start whatever was drawn before, and nothing drawn after."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def principal(responses: Float[np.ndarray, "n v"], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [v] and at most `most` principal axes [m, v], each as long as responses spread along it."""
    mean = responses.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = torch.from_numpy((responses - mean).astype(np.float32))
    count = min(most, *x.shape)
    with own_randomness():
        _, singular, rows = torch.svd_lowrank(x, q=min(count + SPARE, *x.shape), niter=ROUNDS)
    return mean, (rows.T[:count] * (singular[:count] / len(x) ** 0.5)[:, None]).numpy()
