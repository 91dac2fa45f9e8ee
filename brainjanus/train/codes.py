"""Codes: a split of a Dataset, tokenized once, from which every training step only picks rows.

Enters: a Dataset and tokenizers. Leaves: for each stimulus its picture codes, caption codes and vision features, for
each subject the codes of its responses, and batches of blocks for a task. Stored under the fingerprints of data and
tokenizers, so that a second run on the same data starts at once.

    STORE/image-SPLIT-KEY/part-*.safetensors                picture codes, in the smallest integers that hold them
          features-SPLIT-KEY/part-*.safetensors             vision features; float16 if they are of a network
          averages-SUBJECT-SPLIT-KEY/part-*.safetensors     mean responses to the stimuli that were repeated
          brain-SUBJECT-SPLIT-KEY/part-*.safetensors        codes of single trials, then of these averages

Responses, pixels and features stay on disk (store.py); captions, and codes that take little, are held in memory.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.core.weights import fingerprint
from brainjanus.data.dataset import Dataset
from brainjanus.model.checkpoint import Tokenizers
from brainjanus.model.draft import (
    PICTURE_SIDE,
    TOLD,
    beyond_codes,
    draft_block,
    draft_of,
    guess_of,
    lean_of,
    picture_of,
)
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Block, Task, brain_block, modality_of, subject_of
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.image import ImageTokenizer
from brainjanus.tokenizers.janus import JanusImageTokenizer
from brainjanus.tokenizers.text import END, Prompt, up_to_end
from brainjanus.tokenizers.vision import can_encode, vision_encoder
from brainjanus.train.draft import Described, Solved, descriptions_of
from brainjanus.train.store import Rows, Stored, held, in_chunks, stored

ENCODE_BATCH = 32
FEATURE_PART = 128  # stimuli of a part: features of a picture may take a megabyte
CHUNK = 256  # rows of pictures or features in memory at a time where all are gone through
REGIONS = 0.5  # how often a part of a brain is some of its regions; otherwise some stretches of cortex
STRETCHES = 64  # that a brain is cut into
MOST_PIECES = 2000  # codes of captions that encoding models read
MOST_RESIDUALS = 6000  # trials that tell how trials scatter
MOST_FLAT, MOST_MIXED = 8192, 2048  # numbers of a picture's features that encoding models read; of wider ones, so many
WIDEST, SMALL_PICTURE = 8192, 16  # numbers of a stimulus's features above which places are averaged; pixels a side
MOST_SAMPLED = 2**26  # numbers of features that tell how their channels spread; 256 MB
AVERAGES = 0.8  # how often a repeated stimulus is shown by its average; otherwise by one of its single trials

# What a response is: the average of all repeats (AVERAGES of the time, if there are several) or one of them; or the
# mean of a random number of random repeats, which is encoded as it is drawn.
Shown = Literal["averages", "repeats"]
Encoding = TypeVar("Encoding", bound=nn.Module)


# R rows, V sites, K codes, D codebook dimension
class BrainRows(NamedTuple):
    """Responses of one subject: single trials and, where a stimulus was repeated, their averages."""

    stimulus: Int[Tensor, "r"]  # row in Codes.ids
    is_average: Tensor  # bool [r]: the mean of all repeats of its stimulus
    values: Stored  # [r, v], float32 or float16
    codes: Stored  # [r, k]


# N stimuli of the split, S of them seen by the subject, T single trials
class RowsOfStimuli(NamedTuple):
    """Where the rows of each stimulus are among a subject's BrainRows."""

    seen: Int[Tensor, "s"]  # the stimuli with a row
    average: Int[Tensor, "n"]  # the row of its average; -1 without one
    trials: Int[Tensor, "t"]  # rows of single trials, those of one stimulus behind each other
    first: Int[Tensor, "n"]  # where in `trials` those of a stimulus begin
    num_trials: Int[Tensor, "n"]  # how many they are

    @classmethod
    def of(cls, brain: BrainRows, num_stimuli: int) -> "RowsOfStimuli":
        single, averages = (~brain.is_average).nonzero()[:, 0], brain.is_average.nonzero()[:, 0]
        trials = single[brain.stimulus[single].argsort(stable=True)]
        num_trials = torch.bincount(brain.stimulus[trials], minlength=num_stimuli)
        average = torch.full((num_stimuli,), -1)
        average[brain.stimulus[averages]] = averages
        return cls(num_trials.nonzero()[:, 0], average, trials, num_trials.cumsum(0) - num_trials, num_trials)


class Batch(NamedTuple):
    """What one training step reads: blocks, and the target before it was quantized (brain values or pixels).

    draft: that of a brain [b, v], or of a picture [b, 3, s, s], where the conditions come with one; beyond: what the
    codes of a brain cannot hold of it, where the model is shown the draft. judged: the sites of a brain whose
    expectation counts; None: all.
    """

    conditions: list[Block]
    target: Block
    continuous: Tensor | None
    draft: Tensor | None = None
    beyond: Float[Tensor, "b v"] | None = None
    judged: Bool[Tensor, "b v"] | None = None


class Drawn(NamedTuple):
    """Responses of one subject for a batch. expected: the same without noise where they were never measured."""

    values: Float[Tensor, "b v"]
    codes: Int[Tensor, "b k"]
    expected: Float[Tensor, "b v"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A tokenized split. `pictures_of` and `captions_of` list, for each stimulus, rows of `pixels` and `captions`.

    Rows may lie on disk or in memory. allowed: the stimuli that are drawn; None: all.
    """

    ids: tuple[str, ...]
    pixels: Rows | UInt8[Tensor, "p h w 3"] | None
    picture_codes: Rows | Integer[Tensor, "p k"] | None
    pictures_of: list[Tensor]
    caption_codes: Int[Tensor, "c l"] | None
    captions_of: list[Tensor]
    features: Mapping[str, Stored]  # [n, t, c], float32 or float16
    brains: Mapping[str, BrainRows]
    tokenizer: BrainTokenizer
    regions: Mapping[str, Bool[Tensor, "r v"]] = field(default_factory=dict)  # by which parts of a brain are drawn
    solved: Solved | None = None
    caption_prompts: Prompt | None = None  # what captions are as conditions; None: their codes, up to their end
    text_end: int = END  # the code that ends a caption
    shown: Shown = "averages"
    allowed: Bool[Tensor, "n"] | None = None

    def among(self, allowed: Bool[Tensor, "n"]) -> "Codes":
        """The same, of which only these stimuli are drawn."""
        return replace(self, allowed=allowed if self.allowed is None else allowed & self.allowed)

    @torch.no_grad()
    def batch(
        self,
        task: Task,
        size: int,
        generator: torch.Generator,
        config: OmniConfig,
        part: slice = slice(None),
        pixels: bool = True,
        weighing: bool = False,
    ) -> Batch:
        """Random stimuli for a task, all equally likely, among those that its first brain saw.

        A brain is shown as `shown` says. A target that its subject never saw is what its encoding model expects, with
        noise of its own. part: which of the `size` rows are read and made. All are drawn, so that several processes
        with generators of the same state make the parts of one batch, and their generators stay the same. pixels:
        whether those of a picture that is a target are read. weighing: whether drafts come along that the model is not
        shown, but weighed against.
        """
        drawn_stimuli = self._draw_stimuli(task, size, generator)
        stimuli = drawn_stimuli[part]
        drawn: dict[str, Drawn] = {}
        for subject in dict.fromkeys(filter(None, map(subject_of, (*task.conditions, task.target)))):
            drawn[subject] = self._draw(subject, drawn_stimuli, generator, part)
        given = {name: drawn[s].values for name in task.conditions if (s := subject_of(name)) is not None}
        for name in (name for name in given if name.startswith("part:")):
            subject = str(subject_of(name))
            order, regions = self.tokenizer.sites_of(subject).order, self.regions.get(subject)
            known = draw_part(order, regions, generator)
            given[name] = given[name].masked_fill(~known, float("nan"))

        conditions = []
        for name in task.conditions:
            if name in given:
                conditions.append(self._brain(name, given[name], stimuli, config))
            else:
                conditions.append(self._seen_or_said(name, drawn_stimuli, generator, config, part))
        target = str(subject_of(task.target))
        drafting = self.solved.at(stimuli, self._means) if self.solved else None
        if subject_of(task.target) is None and drafting is not None and given:
            guess = guess_of(drafting, given)
            conditions += [] if guess is None else [guess]
        if task.target == "text":
            return Batch(conditions, self._text(drawn_stimuli, generator, part), None)
        if task.target == "image":
            picked = pick(self.pictures_of, drawn_stimuli, generator, part)
            shown = unit_pixels(self.pixels[picked]) if pixels and self.pixels is not None else None
            alone = weighing and len(given) == len(task.conditions)
            picture = picture_of(drafting, given) if alone and drafting is not None else None
            return Batch(conditions, self._picture(picked), shown, picture)
        goal = Block("brain", codes=drawn[target].codes, subject=target)
        told_by = dict(zip(task.conditions, conditions, strict=True)) if weighing else {}
        drafted = draft_of(drafting, given, target, told_by) if drafting else None
        if drafted is None:
            return Batch(conditions, goal, drawn[target].expected)
        if drafted.kind in TOLD:
            return Batch(conditions, goal, drawn[target].expected, drafted.values)
        draft, judged = drafted.values, None
        if f"part:{target}" in given:
            judged = given[f"part:{target}"].isnan()
        else:
            conditions.append(draft_block(self.tokenizer, draft, target, config.brain_input, config.brain_fold))
        assert self.solved is not None
        near = self.solved.whole.drafts.trust(target).near(drafted.kind)
        lean = lean_of(self.tokenizer, draft, target, near)
        beyond = beyond_codes(self.tokenizer, draft, target, lean)
        return Batch(conditions, replace(goal, lean=lean), drawn[target].expected, draft, beyond, judged)

    def described(self, config: OmniConfig) -> dict[str, Described]:
        """What linear encoding models read of a picture and of a text, as the model reads them: features, or the pieces
        of words; pictures that are read as codes, and wide features of a text, are not described."""
        found = {}
        for kind, encoder in (("image", config.image_input), ("text", config.text_input)):
            if encoder in self.features and (kind == "image" or self.features[encoder][0].numel() <= MOST_FLAT):
                mix = self._mix(encoder) if kind == "image" else None
                rows = (x.float() for x in chunks(self.features[encoder]))
                table = torch.cat([x if mix is None else x @ mix for x in rows])
                side = math.isqrt(table.shape[1]) if kind == "image" else 0
                found[kind] = Described(table.flatten(1), side=side if side**2 == table.shape[1] else 0, mix=mix)
        if config.text_input == "codes" and self.caption_codes is not None:
            found["text"] = Described(self._said(), varies=True)
        return found

    def _mix(self, encoder: str) -> Float[Tensor, "c m"] | None:
        """The principal axes of the channels of features that are too wide to be read one by one; None for others."""
        places, channels = self.features[encoder][0].shape
        if places * channels <= MOST_FLAT:
            return None
        sample = self.sample_of_features(encoder).flatten(0, 1)
        covariance = torch.cov(sample.T)
        return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : max(1, MOST_MIXED // places)].contiguous()

    def pieces(self) -> Int[Tensor, "p"]:
        """The codes of captions that are counted, the most frequent first."""
        assert self.caption_codes is not None
        known, count = self.caption_codes.unique(return_counts=True)
        return known[count.argsort(descending=True, stable=True)[:MOST_PIECES]].long()

    def small_pictures(self) -> Float[Tensor, "n x"] | None:
        """Each stimulus's picture in [0, 1] as it is drafted, the mean over several; None without pictures."""
        if self.pixels is None:
            return None
        side = PICTURE_SIDE
        small = torch.cat([F.adaptive_avg_pool2d(unit_pixels(x), side).flatten(1) for x in chunks(self.pixels)])
        return torch.stack([small[rows].mean(dim=0) for rows in self.pictures_of])

    def _means(self, subject: str, stimuli: Int[Tensor, "b"]) -> Float[Tensor, "b v"]:
        """The mean responses of a subject to stimuli that it saw; to others anything."""
        brain, rows = self.brains[subject], self._rows_of_stimuli[subject]
        average = rows.average[stimuli]
        seen = rows.num_trials[stimuli] > 0
        single = rows.trials[torch.where(seen, rows.first[stimuli], 0)]
        return brain.values[torch.where(average >= 0, average, single)].float()

    def descriptions(self) -> Float[Tensor, "n f"] | None:
        """What linear encoding models read of each stimulus: its features (or a small picture) and the codes it is
        said in; None if nothing is known of stimuli."""
        kinds = []
        for rows in self.features.values():
            told = [x.float().flatten(1) if x[0].numel() <= WIDEST else x.float().mean(dim=1) for x in chunks(rows)]
            kinds.append(torch.cat(told))
        if not kinds and self.pixels is not None:
            pooled = [F.adaptive_avg_pool2d(unit_pixels(x), SMALL_PICTURE).flatten(1) for x in chunks(self.pixels)]
            small = torch.cat(pooled)
            kinds.append(torch.stack([small[rows].mean(dim=0) for rows in self.pictures_of]))
        if self.caption_codes is not None:
            kinds.append(self._said())
        return descriptions_of(kinds)

    def sample_of_features(self, name: str) -> Float[Tensor, "m _ _"]:
        """Vision features of stimuli that are evenly taken, at most MOST_SAMPLED numbers: how channels spread."""
        rows = self.features[name]
        return rows[:: -(-rows.shape.numel() // MOST_SAMPLED)].float()

    def _said(self) -> Float[Tensor, "n p"]:
        """The share of each stimulus's captions that have each of the MOST_PIECES most frequent codes."""
        assert self.caption_codes is not None
        codes, known = self.caption_codes.long(), self.pieces()
        column = torch.full((int(codes.max()) + 1,), len(known))
        column[known] = torch.arange(len(known))
        said = torch.zeros(len(self.captions_of), len(known) + 1)  # the last column holds the others
        for row, mine in enumerate(self.captions_of):
            for caption in codes[mine]:
                said[row, column[caption].unique()] += 1 / len(mine)
        return said[:, :-1]

    @torch.no_grad()
    def residuals(self, subject: str, most: int = MOST_RESIDUALS) -> Float[Tensor, "t v"]:
        """What at most so many single trials have beside what is decoded from the codes of their stimulus's average."""
        brain, rows = self.brains[subject], self._rows_of_stimuli[subject]
        trials = rows.trials[:: max(1, -(-len(rows.trials) // most))]
        average = rows.average[brain.stimulus[trials]]
        told = torch.where(average >= 0, average, trials)
        residuals = torch.empty(len(trials), brain.values.shape[1])
        for start in range(0, len(trials), ENCODE_BATCH):
            here = slice(start, start + ENCODE_BATCH)
            decoded = self.tokenizer.decode(brain.codes[told[here]].long(), subject)
            residuals[here] = brain.values[trials[here]].float() - decoded
        return residuals

    def stimuli_of(self, task: Task) -> Int[Tensor, "n"]:
        """Stimuli that every brain among the conditions saw, or the target's subject, where there is none; a target's
        subject that responses cannot be expected of has to have seen them, too."""
        brains = [subject for subject in map(subject_of, task.conditions) if subject is not None]
        target = subject_of(task.target)
        if brains and target is not None and not (self.solved and self.solved.expects(target)):
            brains.append(target)  # what was not measured cannot be expected either
        brains = brains or [subject for subject in [subject_of(task.target)] if subject is not None]
        drawable = torch.ones(len(self.ids), dtype=torch.bool) if self.allowed is None else self.allowed
        for subject in brains:
            drawable = drawable & (self._rows_of_stimuli[subject].num_trials > 0)
        return drawable.nonzero()[:, 0]

    def _draw_stimuli(self, task: Task, size: int, generator: torch.Generator) -> Int[Tensor, "b"]:
        seen = self.stimuli_of(task)
        if not len(seen):
            raise UserError(
                f"task {task}: expected training stimuli that all of its brains saw, got none. Brains can be paired "
                "only where they were shown the same stimuli: leave this task out."
            )
        return seen[torch.randint(len(seen), (size,), generator=generator)]

    def _draw(self, subject: str, stimuli: Int[Tensor, "b"], generator: torch.Generator, part: slice) -> Drawn:
        """Responses of this subject to a part of these stimuli; where it did not see one, what is expected, with noise.

        Drawn is for all of them, read and made only what the part needs.
        """
        brain, rows = self.brains[subject], self._rows_of_stimuli[subject]
        unseen = rows.num_trials[stimuli] == 0
        if self.shown == "repeats":
            values = self._mean_of_some(subject, stimuli, generator, part)
            codes, to_encode = torch.empty(len(values), brain.codes.shape[1], dtype=torch.long), torch.ones_like(unseen)
        else:
            picked = self._average_or_trial(subject, stimuli, generator)[part]
            values, codes, to_encode = brain.values[picked].float(), brain.codes[picked].long(), unseen
        expected = values
        if bool(unseen.any()):
            assert self.solved is not None, "stimuli that nobody can tell of are not drawn"
            noise, here = torch.rand(len(stimuli), generator=generator)[part], unseen[part]
            expected, values = values.clone(), values.clone()
            if bool(here.any()):
                expected[here] = self.solved.expected(subject, stimuli[part][here])
                values[here] = expected[here] + self._left_over(subject, noise[here])
        to_encode = to_encode[part]
        if bool(to_encode.any()):
            codes[to_encode] = self.tokenizer.encode(values[to_encode], subject)
        return Drawn(values, codes, expected)

    def _left_over(self, subject: str, which: Float[Tensor, "b"]) -> Float[Tensor, "b v"]:
        """What a measured mean response has besides the expected one; which: random numbers in [0, 1), each of which
        names a stimulus that the subject saw. Read anew, as those of all stimuli would be as large as the responses."""
        assert self.solved is not None
        brain, rows = self.brains[subject], self._rows_of_stimuli[subject]
        stimuli = rows.seen[(which * len(rows.seen)).long().clamp_max(len(rows.seen) - 1)]
        average = rows.average[stimuli]
        means = brain.values[torch.where(average >= 0, average, rows.trials[rows.first[stimuli]])].float()
        return means - self.solved.expected(subject, stimuli)

    def _average_or_trial(
        self, subject: str, stimuli: Int[Tensor, "b"], generator: torch.Generator
    ) -> Int[Tensor, "b"]:
        """For each stimulus a row of the subject: its average or one of its trials; of one it did not see, any."""
        rows = self._rows_of_stimuli[subject]
        num_trials, average = rows.num_trials[stimuli], rows.average[stimuli]
        averaged = torch.rand(len(stimuli), generator=generator) < AVERAGES
        which = (torch.rand(len(stimuli), generator=generator) * num_trials).long()
        trial = rows.trials[torch.where(num_trials > 0, rows.first[stimuli] + which, 0)]
        return torch.where(averaged & (average >= 0), average, trial)

    def _mean_of_some(
        self, subject: str, stimuli: Int[Tensor, "b"], generator: torch.Generator, part: slice
    ) -> Float[Tensor, "p v"]:
        """The mean of some repeats of each stimulus: of one to all, equally likely; zeros where there is none."""
        rows, values = self._rows_of_stimuli[subject], self.brains[subject].values
        num_trials = rows.num_trials[stimuli]
        share = torch.rand(len(stimuli), generator=generator)
        keys = torch.rand((len(stimuli), int(num_trials.max())), generator=generator)
        stimuli, num_trials, share, keys = (x[part] for x in (stimuli, num_trials, share, keys))
        count = torch.minimum(1 + (share * num_trials).long(), num_trials)
        keys[torch.arange(keys.shape[1]) >= num_trials[:, None]] = 2  # behind all that exist
        owner, repeat = (keys.argsort(dim=1).argsort(dim=1) < count[:, None]).nonzero(as_tuple=True)
        shown = values[rows.trials[rows.first[stimuli][owner] + repeat]].float()
        summed = torch.zeros(len(stimuli), values.shape[1]).index_add_(0, owner, shown)
        return summed / count.clamp_min(1)[:, None]

    def _brain(self, name: str, values: Float[Tensor, "b v"], stimuli: Int[Tensor, "b"], config: OmniConfig) -> Block:
        """A brain as a condition; a part of one is filled in."""
        subject = str(subject_of(name))
        if not name.startswith("part:"):
            return brain_block(self.tokenizer, values, subject, config.brain_input, config.brain_fold)
        if self.solved is None:
            raise UserError(f"task {name}: expected linear drafts to fill in the rest, got none. Leave it out.")
        filled = self.solved.at(stimuli).complete(values, subject)
        return brain_block(self.tokenizer, filled, subject, config.brain_input, config.brain_fold, values.isnan())

    def _seen_or_said(
        self, name: str, stimuli: Int[Tensor, "b"], generator: torch.Generator, config: OmniConfig, part: slice
    ) -> Block:
        """A picture or a text as a condition."""
        encoder = config.text_input if name == "text" else config.image_input
        if encoder != "codes":
            return Block(modality_of(name), vectors=self.features[encoder][stimuli[part]].float(), features=encoder)
        if name == "image":
            return self._picture(pick(self.pictures_of, stimuli, generator, part))
        assert self.caption_codes is not None
        picked = pick(self.captions_of, stimuli, generator, part)
        prompts = self.caption_prompts or Prompt(self.caption_codes, up_to_end(self.caption_codes, self.text_end))
        seen = prompts.seen[picked]
        seen = seen[:, : int(seen.sum(dim=1).max())]  # no longer than the longest of these
        return Block("text", codes=prompts.codes[picked, : seen.shape[1]].long(), seen=seen)

    def _text(self, stimuli: Int[Tensor, "b"], generator: torch.Generator, part: slice) -> Block:
        """A caption as a target: as long as the longest of the whole batch, whatever the part; nothing behind the end
        counts."""
        assert self.caption_codes is not None
        codes = self.caption_codes[pick(self.captions_of, stimuli, generator)].long()
        longest = int(up_to_end(codes, self.text_end).sum(dim=1).max())
        return Block("text", codes=codes[part, :longest])

    def _picture(self, picked: Int[Tensor, "b"]) -> Block:
        assert self.picture_codes is not None
        return Block("image", codes=self.picture_codes[picked].long())

    @cached_property
    def _rows_of_stimuli(self) -> dict[str, RowsOfStimuli]:
        return {subject: RowsOfStimuli.of(brain, len(self.ids)) for subject, brain in self.brains.items()}


def draw_part(
    order: Int[Tensor, "v"], regions: Bool[Tensor, "r v"] | None, generator: torch.Generator
) -> Bool[Tensor, "v"]:
    """Which sites are known: some regions, or some stretches of the cortical order; never all, and not none of many."""
    num_sites = len(order)
    share, coin, outside = torch.rand(3, generator=generator).tolist()
    known = torch.zeros(num_sites, dtype=torch.bool)
    if regions is not None and len(regions) > 1 and coin < REGIONS:
        kept = torch.rand(len(regions), generator=generator) < share
        known = regions[kept].any(dim=0) | (~regions.any(dim=0) & (outside < 0.5))
    else:
        stretch = max(1, num_sites // STRETCHES)
        kept = torch.rand(-(-num_sites // stretch), generator=generator) < share
        known[order] = kept.repeat_interleave(stretch)[:num_sites]
    if not 0 < int(known.sum()) < num_sites:
        known[order] = torch.arange(num_sites) < num_sites // 2
    return known


def pick(groups: Sequence[Tensor], which: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
    """One random member of each of the groups named in a part of `which`; drawn is for all of them."""
    draw = torch.rand(len(which), generator=generator)[part].tolist()
    return torch.stack([groups[i][int(d * len(groups[i]))] for i, d in zip(which[part].tolist(), draw, strict=True)])


def unit_pixels(pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as they are stored to what encoders read: in [0, 1], channels first."""
    return pictures.permute(0, 3, 1, 2).contiguous().float() / 255


def chunks(rows: Stored) -> Iterator[Tensor]:
    return in_chunks(rows, CHUNK)


def encode_split(
    dataset: Dataset,
    tokenizers: Tokenizers,
    split: str,
    features: Sequence[str],
    store: Path,
    device: torch.device | str = "cpu",
) -> Codes:
    """Tokenize a split into `store`; what these tokenizers made before, of the same data, is read from there.

    device: where it is encoded; what is returned is on the CPU, and so are its tokenizers.
    Raises UserError if a stimulus lacks a picture or a caption where the tokenizers have such.
    """
    ids = dataset.split_ids(split)
    row_of = {stimulus: row for row, stimulus in enumerate(ids)}
    pixels: Rows | None = None
    picture_codes: Stored | None = None
    pictures_of: list[Tensor] = []
    if tokenizers.image is not None:
        pixels, pictures_of = pictures_of_each(dataset, ids)
        picture_codes = encode_pictures(dataset, tokenizers.image, split, pixels, store, device)
    caption_codes, caption_prompts, captions_of = None, None, []
    if tokenizers.text is not None:
        captions = captions_of_each(dataset, ids)
        every = [caption for group in captions for caption in group]
        prompt = tokenizers.text.prompt(every)
        caption_codes, caption_prompts = tokenizers.text.encode(every).int(), Prompt(prompt.codes.int(), prompt.seen)
        captions_of = rows_of_groups([len(group) for group in captions])
    vision = {name: stored_features(dataset, tokenizers, split, name, store, device) for name in features}
    brains = {}
    for subject in tokenizers.brain.subjects:
        values, stimulus, is_average = training_rows(dataset, subject, split, row_of, store)
        codes = encode_brain(dataset, tokenizers.brain, subject, split, values, store, device)
        brains[subject] = BrainRows(stimulus, is_average, values, codes)
    rois = {subject: list(dataset.space(subject).rois.values()) for subject in tokenizers.brain.subjects}
    regions = {subject: torch.from_numpy(np.stack(masks)) for subject, masks in rois.items() if masks}
    return Codes(
        ids, pixels, picture_codes, pictures_of, caption_codes, captions_of, vision, brains, tokenizers.brain,
        regions=regions, caption_prompts=caption_prompts, text_end=tokenizers.text.end if tokenizers.text else END,
    )  # fmt: skip


def pictures_of_each(dataset: Dataset, ids: Sequence[str]) -> tuple[Rows, list[Tensor]]:
    """The pictures [p, h, w, 3] of these stimuli, on disk, and which of them show each. Raises UserError for one
    without a picture."""
    groups = [dataset.picture_rows(stimulus) for stimulus in ids]
    rows = torch.tensor([row for group in groups for row in group])
    return Rows.of(dataset.pictures_file, "pixels", rows), rows_of_groups([len(group) for group in groups])


def encode_pictures(
    dataset: Dataset,
    image: ImageTokenizer | JanusImageTokenizer,
    split: str,
    pixels: Rows,
    store: Path,
    device: torch.device | str = "cpu",
) -> Stored:
    dtype, there = dtype_of_codes(len(image.quantizer.codebook)), copy_on(image, device)
    rows = stored(
        store, f"image-{split}", (dataset.fingerprint, fingerprint(image)), len(pixels),
        lambda rows: there.encode(unit_pixels(pixels[rows].to(device))).to(dtype), "encode pictures",
    )  # fmt: skip
    return held(rows)


def encode_brain(
    dataset: Dataset,
    tokenizer: BrainTokenizer,
    subject: str,
    split: str,
    values: Rows,
    store: Path,
    device: torch.device | str = "cpu",
) -> Stored:
    dtype, there = dtype_of_codes(len(tokenizer.quantizer.codebook)), copy_on(tokenizer, device)
    rows = stored(
        store, f"brain-{subject}-{split}", (dataset.fingerprint, fingerprint(tokenizer)), len(values),
        lambda rows: there.encode(values[rows].to(device).float(), subject).to(dtype), f"encode {subject}",
    )  # fmt: skip
    return held(rows)


def copy_on(module: Encoding, device: torch.device | str) -> Encoding:
    """A copy on a device; the module itself where it is there already, so that it stays as it is in either case."""
    return module if torch.device(device).type == "cpu" else copy.deepcopy(module).to(device)


def dtype_of_codes(num_codes: int) -> torch.dtype:
    """The smallest integers that hold the codes of a codebook."""
    return next(t for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if num_codes - 1 <= torch.iinfo(t).max)


def stored_features(
    dataset: Dataset,
    tokenizers: Tokenizers,
    split: str,
    name: str,
    store: Path,
    device: torch.device | str = "cpu",
) -> Rows:
    """Vision features [n, t, c] of a split: those of the dataset, or made and stored, those of a network in float16.

    device: of a network; features that follow fixed rules are made on the CPU.
    """
    ids = dataset.split_ids(split)
    if name in dataset.feature_names:
        return Rows.of(dataset.features_file(name), "features", torch.from_numpy(dataset.rows_of(ids)))
    encoder, where, weights, dtype = tokenizers.encoder(name), torch.device("cpu"), "", torch.float32
    if isinstance(encoder, nn.Module):
        where, weights, dtype = torch.device(device), fingerprint(encoder), torch.float16
        encoder = copy_on(encoder, where)
    key = (dataset.fingerprint, name, weights)
    return stored(
        store, f"features-{split}", key, len(ids),
        lambda rows: features_of_some(dataset, ids[rows], encoder, where).to(dtype),
        f"{name} features", FEATURE_PART,
    )  # fmt: skip


def training_rows(
    dataset: Dataset, subject: str, split: str, row_of: Mapping[str, int], store: Path
) -> tuple[Rows, Int[Tensor, "r"], Tensor]:
    """Single trials, as they lie in the dataset, then averages of the repeated stimuli, which are made and stored, in
    the dataset's dtype: values, rows of their stimuli, which are averages."""
    trials = dataset.trials(subject)
    rows = torch.from_numpy(trials.rows(split))
    shown = torch.tensor([row_of[trials.stimulus_id[row]] for row in rows.tolist()])
    single = Rows.of(dataset.responses_file(subject), "responses", rows)
    by_stimulus = shown.argsort(stable=True)
    stimuli, counts = shown.unique(return_counts=True)
    repeated, repeats = stimuli[counts > 1], [g for g in by_stimulus.split(counts.tolist()) if len(g) > 1]
    values = single
    if repeats:
        averages = stored(
            store, f"averages-{subject}-{split}", (dataset.fingerprint,), len(repeats),
            lambda part: torch.stack([single[group].double().mean(dim=0) for group in repeats[part]]).to(single.dtype),
            f"averages of {subject}",
        )  # fmt: skip
        values = Rows.behind([single, averages])
    is_average = torch.arange(len(values)) >= len(single)
    return values, torch.cat([shown, repeated]), is_average


def captions_of_each(dataset: Dataset, ids: Sequence[str]) -> list[tuple[str, ...]]:
    """The captions of each stimulus. Raises UserError naming the first without one."""
    captions = [dataset.captions(stimulus) for stimulus in ids]
    if not all(captions):
        raise UserError(
            f"{dataset.path}: expected a caption for every stimulus, got none for {captions.count(())} of {len(ids)}, "
            f"'{ids[captions.index(())]}' among them. Prepare the dataset with their captions, or with none at all."
        )
    return captions


def features_of(
    dataset: Dataset, name: str, ids: Sequence[str], encoder: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "n t c"]:
    """Vision features by stimulus id: as stored in the dataset, or from an encoder (default: the one of this name).

    Features of a stimulus with several pictures are their mean.
    """
    if name in dataset.feature_names or (encoder is None and not can_encode(name)):
        return torch.from_numpy(dataset.features(name, ids))
    encode, parts = encoder or vision_encoder(name), []
    with progress(f"{name} features", len(ids)) as advance:
        for start in range(0, len(ids), ENCODE_BATCH):
            parts.append(features_of_some(dataset, ids[start : start + ENCODE_BATCH], encode).cpu())
            advance(min(start + ENCODE_BATCH, len(ids)), None)
    return torch.cat(parts)


@torch.no_grad()
def features_of_some(
    dataset: Dataset, ids: Sequence[str], encode: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
) -> Float[Tensor, "n t c"]:
    """Those of few stimuli, whose pictures are all in memory. device: where pictures are encoded."""
    groups = [torch.from_numpy(dataset.pictures(stimulus)) for stimulus in ids]
    encoded = torch.cat([encode(unit_pixels(part.to(device))) for part in torch.cat(groups).split(ENCODE_BATCH)])
    return torch.stack([features.mean(dim=0) for features in encoded.split([len(group) for group in groups])])


def rows_of_groups(sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive row numbers, cut into groups of these sizes."""
    return list(torch.arange(sum(sizes)).split(list(sizes)))
