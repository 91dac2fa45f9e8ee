"""Training of the tokenizers: one step function for brains, one for pictures; captions need no gradient.

A brain tokenizer is asked for more than to give back its input. Half of the target is the mean of the *other* repeats
of the same stimulus, whose noise the input cannot know (Lehtinen et al. 2018, Noise2Noise): so codes are spent on what
comes again. And a response that was decoded has to be encoded to the codes that it was decoded from.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.image import ImageTokenizer
from brainjanus.tokenizers.patch import PatchCoder
from brainjanus.tokenizers.quantizer import perplexity
from brainjanus.train.alignment import Alignment, AlignmentConfig, seen
from brainjanus.train.codes import unit_pixels
from brainjanus.train.fit import Steps, Watch, fit
from brainjanus.train.optim import OptimConfig
from brainjanus.train.parallel import CPU, Hardware
from brainjanus.train.state import read_facts, saved_states
from brainjanus.train.store import Rows
from brainjanus.train.watch import Sink

DRIFT = 1.0  # weight of the squared correction of the latents that the patch encoder solved for
MOST_RESIDUALS = 6000  # trials of a subject that tell what is noise; more take memory and say little
WHOLE = 0.25  # how often a repeated stimulus is shown by the mean of all its repeats


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a brain tokenizer is trained for.

    other_repeats: share of the other repeats of a stimulus in the target; the rest is the input itself, and all of it
    where a stimulus was shown once. noise: standard deviation of what is added to the input (z-scored units).
    consistency: weight of the squared distance between the latents of a decoded response and its codes' vectors,
    relative to the vectors' squares.
    """

    other_repeats: float = 0.5
    noise: float = 0.0
    consistency: float = 1.0
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.other_repeats <= 1:
            problems.append(f"other_repeats must lie in [0, 1], got {self.other_repeats}")
        problems += [
            f"{name} must be at least 0, got {getattr(self, name)}"
            for name in ("noise", "consistency")
            if not getattr(self, name) >= 0
        ]
        if problems:
            raise UserError("tokenizer objective: " + "; ".join(problems) + ". Correct the config.")


class Drawn(NamedTuple):
    """What a step sees of one subject. stimulus: rows of the training split's sorted stimuli."""

    input: Float[Tensor, "b v"]
    target: Float[Tensor, "b v"]
    stimulus: Int[Tensor, "b"]


class Repeats:
    """The training trials of one subject, by stimulus. Responses stay on disk until they are drawn.

    among: of these stimuli alone; None: all.
    """

    def __init__(self, dataset: Dataset, subject: str, among: Collection[str] | None = None):
        self.dataset, self.subject, self.among = dataset, subject, among
        trials = dataset.trials(subject)
        rows = trials.rows("train")
        if among is not None:
            rows = rows[np.isin(np.array(trials.stimulus_id)[rows], list(among))]
        row_of = {stimulus: row for row, stimulus in enumerate(dataset.split_ids("train"))}
        stimulus = np.array([row_of[trials.stimulus_id[row]] for row in rows])
        order = np.argsort(stimulus, kind="stable")
        self.rows = rows[order]  # those of one stimulus behind each other
        self.stimuli, self.first, self.count = np.unique(stimulus[order], return_index=True, return_counts=True)

    def draw(self, size: int, objective: ObjectiveConfig, generator: torch.Generator) -> Drawn:
        """Random stimuli, all equally likely; each shows the mean of a random part of its repeats.

        WHOLE of the time it is all of them, as they are encoded later, and then the target is the input.
        """
        which = torch.randint(len(self.stimuli), (size,), generator=generator).numpy()
        count, most = self.count[which], int(self.count[which].max())
        keys = torch.rand((size, most), generator=generator).numpy()
        keys[np.arange(most) >= count[:, None]] = 2  # behind all that exist
        rank = keys.argsort(axis=1).argsort(axis=1)
        whole, part = torch.rand((2, size), generator=generator).numpy()
        shown = np.where((whole < WHOLE) | (count == 1), count, 1 + (part * (count - 1)).astype(int))
        owner, repeat = np.nonzero(rank < count[:, None])
        rows, column = np.unique(self.rows[self.first[which][owner] + repeat], return_inverse=True)
        inside = rank[owner, repeat] < shown[owner]
        share = np.where(inside, shown[owner], (count - shown)[owner])
        weights = np.zeros((2, size, len(rows)), np.float32)  # of the input, of the others
        weights[np.where(inside, 0, 1), owner, column] = 1 / share
        x, others = map(torch.from_numpy, weights @ self.dataset.responses(self.subject, rows))
        share = torch.from_numpy(np.where(shown < count, objective.other_repeats, 0.0)).float()[:, None]
        target = share * others + (1 - share) * x
        if objective.noise > 0:
            x = x + objective.noise * torch.randn(x.shape, generator=generator)
        return Drawn(x, target, torch.from_numpy(self.stimuli[which]))


def solve_axes(tokenizer: BrainTokenizer, repeats: Repeats, other_repeats: float) -> None:
    """Give a subject the axes along which a mean response tells most of a target that holds other repeats.

    The target is that of training for a response that is encoded whole: `other_repeats` of it is another mean of as
    many repeats. Of n repeats, the mean's covariance holds 1 / n of the noise's; the residuals' mean square holds
    (n - 1) / n of it.
    """
    dataset, subject = repeats.dataset, repeats.subject
    means = dataset.averages(subject, "train", repeats.among).responses
    n = repeats.count[repeats.count > 1]
    repeated = np.repeat(repeats.count > 1, repeats.count)
    owner, rows = np.repeat(np.arange(len(repeats.stimuli)), repeats.count)[repeated], repeats.rows[repeated]
    noise = 0.0
    if len(n):
        one_trial = len(rows) / (len(rows) - len(n))  # covariance of one trial's noise, of the residuals'
        noise = other_repeats * one_trial * float(np.mean(1 / n)) * len(n) / len(means)
    some = slice(None, None, -(-len(rows) // MOST_RESIDUALS) or None)
    residuals = dataset.responses(subject, rows[some]) - means[owner[some]]
    tokenizer.solve(subject, torch.from_numpy(means), torch.from_numpy(residuals), noise)


def has_sound_state(folder: Path) -> bool:
    """Whether a training will go on from a state, whose axes are put back. The folder alone says nothing: it is there
    before its first state is, and a single state that is damaged is not gone on from."""
    for state in saved_states(folder):
        with suppress(UserError):
            read_facts(state)
            return True
    return False


class AlignedTokenizer(nn.Module):
    """A tokenizer and the maps that its alignment is measured through, trained as one."""

    def __init__(self, tokenizer: BrainTokenizer, alignment: Alignment):
        super().__init__()
        self.tokenizer, self.alignment = tokenizer, alignment


def fit_brain_tokenizer(
    tokenizer: BrainTokenizer,
    dataset: Dataset,
    config: OptimConfig,
    folder: Path,
    seed: int,
    objective: ObjectiveConfig = ObjectiveConfig(),
    *,
    maps_only: bool = False,
    hardware: Hardware = CPU,
    sinks: Sequence[Sink] = (),
    option: str = "--brain-training",
) -> BrainTokenizer:
    """Train on the training split of all subjects of the dataset; each step sees one subject.

    maps_only: train only what belongs to these subjects; codebook and all that is shared stay as they are. sinks: where
    the log goes besides. option: where a user finds `config`.
    """
    repeats = {subject: Repeats(dataset, subject) for subject in dataset.subjects}
    subjects = list(repeats)
    if not has_sound_state(folder / "state"):
        for subject in subjects:
            solve_axes(tokenizer, repeats[subject], objective.other_repeats)
    alignment = None
    if objective.alignment.weight > 0:
        stimuli = seen(dataset, dataset.split_ids("train"), objective.alignment)
        alignment = Alignment(objective.alignment, tokenizer, stimuli)
    if maps_only:
        tokenizer.requires_grad_(False)
        for subject in subjects:
            tokenizer.of_subject(subject).requires_grad_(True)
        if not any(p.requires_grad for p in tokenizer.parameters()):
            return tokenizer.eval()  # the paper encoder knows no subjects

    def draw(step: int, generator: torch.Generator, _: slice) -> tuple[str, Drawn]:
        subject = subjects[step % len(subjects)]
        return subject, repeats[subject].draw(config.batch_size, objective, generator)

    def losses(_: object, batch: tuple[str, Drawn], generator: torch.Generator, __: Tensor) -> dict[str, Tensor]:
        subject, (x, target, stimulus) = batch
        update = None if maps_only else generator
        align = None if alignment is None else partial(alignment.loss, subject=subject, stimuli=stimulus)
        return brain_losses(tokenizer, subject, x, target, objective, update, align)

    module = tokenizer if alignment is None else AlignedTokenizer(tokenizer, alignment)
    fit(
        module, Steps(draw, losses), config, stage="brain tokenizer", folder=folder, seed=seed, hardware=hardware,
        watch=Watch(sinks=sinks), option=option,
    )  # fmt: skip
    return tokenizer


def brain_losses(
    tokenizer: BrainTokenizer,
    subject: str,
    x: Float[Tensor, "b v"],
    target: Float[Tensor, "b v"],
    objective: ObjectiveConfig,
    update: torch.Generator | None,
    align: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses of one batch of one subject. update: moves the codebook, too. align: the alignment of latents."""
    out = tokenizer(x, subject)
    if update is not None:
        tokenizer.quantizer.update(out.latents, out.quantized.codes, update)
    losses = {"mse": F.mse_loss(out.values.float(), target)}
    loss = losses["mse"] + out.quantized.loss
    codes = out.quantized.values.detach()
    size = codes.square().mean().clamp_min(1e-6)  # all codes may be zero
    if objective.consistency > 0:
        again = tokenizer.latents(out.values.detach().float(), subject)
        loss = loss + objective.consistency * F.mse_loss(again.float(), codes) / size
    if isinstance(tokenizer.coder, PatchCoder):  # corrections of the latents serve the other losses alone
        loss = loss + DRIFT * F.mse_loss(out.latents, out.solved) / size
    if align is not None:
        losses["alignment"] = align(out.latents)
        loss = loss + objective.alignment.weight * losses["alignment"]
    used = perplexity(out.quantized.codes, tokenizer.quantizer.config.num_entries)
    return {"loss": loss} | losses | {"perplexity": torch.tensor(used)}


def fit_image_tokenizer(
    tokenizer: ImageTokenizer,
    pixels: Rows | UInt8[Tensor, "p h w 3"],
    config: OptimConfig,
    folder: Path,
    seed: int,
    *,
    hardware: Hardware = CPU,
    sinks: Sequence[Sink] = (),
) -> ImageTokenizer:
    """Train on the pictures of the training split, which may lie on disk. sinks: where the log goes besides."""

    def draw(step: int, generator: torch.Generator, _: slice) -> Tensor:
        return pixels[torch.randint(len(pixels), (config.batch_size,), generator=generator)]

    def losses(_: object, batch: Tensor, generator: torch.Generator, __: Tensor) -> dict[str, Tensor]:
        x = unit_pixels(batch)
        out = tokenizer(x)
        tokenizer.quantizer.update(out.latents, out.quantized.codes, generator)
        wrong = out.pixels.float() - x
        used = torch.tensor(perplexity(out.quantized.codes, tokenizer.quantizer.config.num_codes))
        found = {"mse": wrong.square().mean(), "perplexity": used}
        return {"loss": wrong.abs().mean() + 4 * found["mse"] + 0.1 * out.quantized.loss} | found

    fit(
        tokenizer, Steps(draw, losses), config, stage="image tokenizer", folder=folder, seed=seed, hardware=hardware,
        watch=Watch(sinks=sinks), option="--image-training",
    )  # fmt: skip
    return tokenizer
