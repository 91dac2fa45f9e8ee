"""Draft: a linear estimate of a response, from a part of the same brain, another brain, a picture or words; solved, not
trained.

Enters: responses with NaN where a site was not measured, or conditions as blocks. Leaves: the response to be expected
at all sites of the same subject (what is known stays), or of another subject.

Each subject has a Gaussian of few dimensions, x = mean + z axes + noise with z ~ N(0, I): what is known of a response
tells z, and z tells the rest. From one subject to another z is carried over by a linear map. And each subject has a
scatter: what a single trial has beside what the codes of its stimulus say, again of few dimensions and noise by site.
A reading is the linear encoding model from a picture's features or from words; of both, the two are stacked. A guess
is the way back: what a response tells of its stimulus, by a linear decoding model, to start pictures and captions
from; so is the small picture that is weighed against the one that the model expects.
Source: Tipping & Bishop 1999 (probabilistic principal components; the rest given a part is its conditional mean).
Differs: the rank and the noise are chosen by hiding a part of left-out responses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.model.sequence import Block, brain_block
from brainjanus.tokenizers.brain import BrainTokenizer

RANKS = (4, 8, 16, 32, 64, 128, 256)
NOISES = (1.0, 2.0, 4.0, 8.0)  # in units of the variance of a site that the axes leave over
GUESS, GUESS_CHANNELS = "guess", 32  # how the model knows the features that a guess is; numbers that a token of it has
TOLD = ("image", "text", "image+text")  # what pictures and words tell of a response
PICTURE, PICTURE_SIDE = "picture", 32  # the draft of a picture, from responses; pixels along its sides
SHOWN = ("part", "brain")  # what drafts come from that the model is shown
KINDS = (*SHOWN, *TOLD, PICTURE)  # what a draft of a response comes from; and that of a picture
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


# P numbers that describe a stimulus
class Reading(nn.Module):
    """One subject's response as a linear function of a description: of a picture's features, or of words."""

    described: Tensor
    read: Tensor
    write: Tensor
    offset: Tensor

    def __init__(self, width: int, rank: int, num_sites: int):
        super().__init__()
        self.register_buffer("described", torch.zeros(width))  # the mean description
        self.register_buffer("read", torch.zeros(width, rank))
        self.register_buffer("write", torch.zeros(rank, num_sites))
        self.register_buffer("offset", torch.zeros(num_sites))

    def forward(self, description: Float[Tensor, "b p"]) -> Float[Tensor, "b v"]:
        return (description - self.described) @ self.read @ self.write + self.offset


class Stack(nn.Module):
    """What is expected of a picture and its words together: at each site, so much of what either tells."""

    weights: Tensor
    offset: Tensor

    def __init__(self, num_sites: int):
        super().__init__()
        self.register_buffer("weights", torch.full((2, num_sites), 0.5))
        self.register_buffer("offset", torch.zeros(num_sites))

    def forward(self, seen: Float[Tensor, "b v"], said: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        return seen * self.weights[0] + said * self.weights[1] + self.offset


class Trust(nn.Module):
    """Of each kind of draft of one subject's response, and of that of a picture from it: how much of what the model
    adds to it, or says in place of it, is to be believed, from 0 to 1, and how near to one that the model is shown the
    measured latents lie (the inverse of their variance around it, a dimension)."""

    def __init__(self) -> None:
        super().__init__()
        for kind in KINDS:
            self.register_buffer(kind.replace("+", "_"), torch.ones(()))
        for kind in SHOWN:
            self.register_buffer(f"near_{kind}", torch.ones(()))

    def of(self, kind: str) -> Tensor:
        """kind: one of KINDS."""
        return self.get_buffer(kind.replace("+", "_"))

    def near(self, kind: str) -> Tensor:
        """kind: one of SHOWN."""
        return self.get_buffer(f"near_{kind}")


class Drafts(nn.Module):
    """All linear estimates between the subjects of a model, and how their trials scatter.

    ranks: subject -> (sites, dimensions). pairs: (from, to) that there is a map for. readings: "image" or "text" ->
    (numbers of a description, dimensions of the map); every subject has those that there are. pieces: how many of the
    text's codes are counted. guessed: how many numbers of a stimulus are guessed from a response. pictured: in how many
    dimensions pictures are drafted; 0: not at all. mixed: channels of a picture's features, and to how many they are
    mixed before they are read; none: they are read one by one.
    """

    pieces: Tensor
    mix: Tensor
    look: Tensor
    look_mean: Tensor

    def __init__(
        self,
        ranks: Mapping[str, Sequence[int]],
        pairs: Iterable[Sequence[str]],
        readings: Mapping[str, Sequence[int]] | None = None,
        pieces: int = 0,
        guessed: int = 0,
        pictured: int = 0,
        mixed: Sequence[int] = (0, 0),
    ):
        super().__init__()
        self.reads = {kind: tuple(size) for kind, size in (readings or {}).items()}
        self.register_buffer("pieces", torch.zeros(pieces, dtype=torch.long))  # codes of a text that are counted
        self.register_buffer("mix", torch.zeros(*mixed))
        self.ranks, self.pairs = {s: tuple(rank) for s, rank in ranks.items()}, tuple(tuple(pair) for pair in pairs)
        self.gaussians = nn.ModuleDict({f"brain:{s}": Gaussian(*rank) for s, rank in self.ranks.items()})
        self.trusts = nn.ModuleDict({f"brain:{s}": Trust() for s in self.ranks})
        self.scatters = nn.ModuleDict({f"brain:{s}": Scatter(rank[0]) for s, rank in self.ranks.items()})
        self.carries = nn.ModuleDict(
            {f"brain:{a}->{b}": Carry(self.ranks[a][1], self.ranks[b][1]) for a, b in self.pairs}
        )

        self.readings = nn.ModuleDict(
            {
                f"{kind}->brain:{s}": Reading(width, min(rank, sizes[0]), sizes[0])
                for kind, (width, rank) in self.reads.items()
                for s, sizes in self.ranks.items()
            }
        )
        self.guessed, self.pictured, told = guessed, pictured, guessed + pictured
        backwards = {s: (sizes[0], min(sizes[0], told), told) for s, sizes in self.ranks.items() if told}
        self.guesses = nn.ModuleDict({f"brain:{s}": Reading(*sizes) for s, sizes in backwards.items()})
        pixels = 3 * PICTURE_SIDE**2 if pictured else 0
        self.register_buffer("look", torch.zeros(pictured, pixels))  # axes of small pictures
        self.register_buffer("look_mean", torch.zeros(pixels))
        both = self.ranks if len(self.reads) > 1 else {}
        self.stacks = nn.ModuleDict({f"brain:{s}": Stack(sizes[0]) for s, sizes in both.items()})

    def facts(self) -> dict[str, Any]:
        """What they are made with."""
        return {
            "ranks": self.ranks,
            "pairs": self.pairs,
            "readings": self.reads,
            "pieces": len(self.pieces),
            "guessed": self.guessed,
            "pictured": self.pictured,
            "mixed": tuple(self.mix.shape),
        }

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

    def described(self, block: Block) -> Float[Tensor, "b p"] | None:
        """A picture or a text as readings read it; None for what they do not read."""
        if block.modality not in self.reads:
            return None
        if block.features is not None:
            mixed = block.modality == "image" and self.mix.numel() > 0
            return (block.content.float() @ self.mix if mixed else block.content.float()).flatten(1)
        if block.modality == "image":
            return None
        codes = block.content if block.seen is None else block.content.masked_fill(~block.seen, -1)
        return (codes[:, :, None] == self.pieces).any(dim=1).float()

    def told(self, blocks: Mapping[str, Block], subject: str) -> Float[Tensor, "b v"] | None:
        """What a picture, words or both let expect of a subject's response; None without them."""
        return self.combined({kind: self.reading(kind, subject)(x) for kind, x in self.descriptions(blocks)}, subject)

    def descriptions(self, blocks: Mapping[str, Block]) -> list[tuple[str, Float[Tensor, "b p"]]]:
        """Those of the picture and of the text, as far as they are given and read."""
        found = [(kind, self.described(blocks[kind])) for kind in ("image", "text") if kind in blocks]
        return [(kind, description) for kind, description in found if description is not None]

    def combined(self, parts: Mapping[str, Float[Tensor, "b v"]], subject: str) -> Float[Tensor, "b v"] | None:
        """Of what a picture and what words tell, both together, or the one there is."""
        if len(parts) < 2:
            return next(iter(parts.values()), None)
        return self.stacks[f"brain:{subject}"](parts["image"], parts["text"])

    def guess(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b g"] | None:
        """What a response, filled in where it is not known, tells of its stimulus; None without a decoding model."""
        if not self.guessed:
            return None
        return self.guesses[f"brain:{subject}"](self.complete(values, subject))[:, : self.guessed]

    def picture(self, values: Float[Tensor, "b v"], subject: str) -> Float[Tensor, "b 3 h w"] | None:
        """The small picture, around [0, 1], that a response tells of; None where pictures are not drafted."""
        if not self.pictured:
            return None
        return self.painted(self.guesses[f"brain:{subject}"](self.complete(values, subject))[:, self.guessed :])

    def painted(self, scores: Float[Tensor, "b g"]) -> Float[Tensor, "b 3 h w"]:
        """The small picture of these coordinates."""
        return (self.look_mean + scores @ self.look).unflatten(1, (3, PICTURE_SIDE, PICTURE_SIDE))

    def reading(self, kind: str, subject: str) -> Reading:
        self.gaussian(subject)
        found = self.readings[f"{kind}->brain:{subject}"]
        assert isinstance(found, Reading)
        return found


@runtime_checkable
class Drafting(Protocol):
    """What gives drafts: `Drafts`, or the out-of-fold ones of training."""

    def complete(self, values: Tensor, subject: str) -> Tensor: ...

    def carried(self, values: Tensor, subject: str, other: str) -> Tensor | None: ...

    def told(self, blocks: Mapping[str, Block], subject: str) -> Tensor | None: ...

    def guess(self, values: Tensor, subject: str) -> Tensor | None: ...

    def picture(self, values: Tensor, subject: str) -> Tensor | None: ...


class Draft(NamedTuple):
    """An estimate of a response, and which of KINDS it comes from."""

    values: Float[Tensor, "b v"]
    kind: str


def draft_of(
    drafts: Drafting, given: Mapping[str, Float[Tensor, "b _"]], subject: str, blocks: Mapping[str, Block] | None = None
) -> Draft | None:
    """The draft of a subject's response, from what is given of it, or else the mean of what other brains tell, or else
    what the picture and the words tell.

    given: brain:SUBJECT or part:SUBJECT -> responses, NaN where they are not known. blocks: all conditions by name.
    None if there is no map.
    """
    if f"part:{subject}" in given:
        return Draft(drafts.complete(given[f"part:{subject}"], subject), "part")
    carried = [drafts.carried(values, name.partition(":")[2], subject) for name, values in given.items()]
    found = [values for values in carried if values is not None]
    if found:
        return Draft(torch.stack(found).mean(dim=0), "brain")
    told = drafts.told(blocks or {}, subject)
    if told is None:
        return None
    return Draft(told, "+".join(kind for kind in ("image", "text") if kind in (blocks or {})))


def guess_of(drafts: Drafting, given: Mapping[str, Float[Tensor, "b _"]]) -> Block | None:
    """What the given responses tell of their stimulus, the mean over brains, as a condition; None without any."""
    guesses = [drafts.guess(values, name.partition(":")[2]) for name, values in given.items()]
    found = [guess for guess in guesses if guess is not None]
    if not found:
        return None
    vectors = torch.stack(found).mean(dim=0)
    return Block("text", vectors=vectors.unflatten(1, (-1, channels_of(vectors.shape[1]))), features=GUESS)


def picture_of(drafts: Drafting, given: Mapping[str, Float[Tensor, "b _"]]) -> Float[Tensor, "b 3 h w"] | None:
    """The small picture that the given responses tell of, the mean over brains; None without any."""
    pictures = [drafts.picture(values, name.partition(":")[2]) for name, values in given.items()]
    found = [picture for picture in pictures if picture is not None]
    return torch.stack(found).mean(dim=0) if found else None


def weighed(
    expected: Float[Tensor, "b 3 h w"], draft: Float[Tensor, "b 3 s s"], trust: float
) -> Float[Tensor, "b 3 h w"]:
    """So much of the picture that the model expects, the rest of the small one, enlarged."""
    if trust == 1:
        return expected
    large = enlarged(draft, expected)
    return trust * expected + (1 - trust) * large


def enlarged(draft: Float[Tensor, "b 3 s s"], like: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """A small picture in the size of another."""
    return F.interpolate(draft, like.shape[-2:], mode="bilinear", antialias=True)


def channels_of(guessed: int) -> int:
    """How many numbers of a guess make a token."""
    return min(guessed, GUESS_CHANNELS)


def draft_block(
    tokenizer: BrainTokenizer, draft: Float[Tensor, "b v"], subject: str, brain_input: str, fold: int = 1
) -> Block:
    """A draft as a condition of the response that it is a draft of: nothing of it was measured."""
    return brain_block(tokenizer, draft, subject, brain_input, fold, torch.ones_like(draft, dtype=torch.bool))


def lean_of(
    tokenizer: BrainTokenizer, draft: Float[Tensor, "b v"], subject: str, near: float | Tensor
) -> Float[Tensor, "b k n"]:
    """What a draft says of the codes of a response, as logits: measured latents lie around those of the draft, normally
    distributed, with the inverse variance `near`. Of further stages of a quantizer it says that they are small."""
    latents, stages = tokenizer.latents(draft, subject), tokenizer.config.quantizer.stages
    around = torch.zeros_like(latents).repeat_interleave(stages, dim=1)
    around[:, ::stages] = latents
    codebook = tokenizer.quantizer.codebook
    logits = near * (around @ codebook.T - 0.5 * codebook.square().sum(dim=1))
    if stages > 1:
        size = len(codebook) // stages
        own = torch.arange(len(codebook), device=logits.device) // size
        stage = torch.arange(around.shape[1], device=logits.device) % stages
        logits = logits.masked_fill(stage[:, None] != own, -1e9)
    return logits


def beyond_codes(
    tokenizer: BrainTokenizer, draft: Float[Tensor, "b v"], subject: str, lean: Float[Tensor, "b k n"]
) -> Float[Tensor, "b v"]:
    """What the codes that a draft leans to do not hold of it. Added to what is decoded, a model that adds nothing to
    the draft returns it."""
    return draft - tokenizer.decode_probabilities(lean.softmax(dim=-1), subject)


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
