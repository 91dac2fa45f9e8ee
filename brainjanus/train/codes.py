"""Codes: a split of a Dataset, tokenized once, from which every training step only picks rows.

Enters: a Dataset and tokenizers. Leaves: for each stimulus its picture codes, caption codes and vision features, for
each subject the codes of its responses, and batches of blocks for a task. Stored under the fingerprint of
the tokenizers, so that a second run on the same data starts at once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.progress import progress
from brainjanus.core.weights import fingerprint
from brainjanus.data.dataset import Dataset
from brainjanus.model.checkpoint import Tokenizers
from brainjanus.model.draft import beyond_codes, draft_block, draft_of
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Block, Task, brain_block, modality_of, subject_of
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.text import END, Prompt, up_to_end
from brainjanus.tokenizers.vision import can_encode, vision_encoder
from brainjanus.train.draft import Solved, descriptions_of

ENCODE_BATCH = 32
REGIONS = 0.5  # how often a part of a brain is some of its regions; otherwise some stretches of cortex
STRETCHES = 64  # that a brain is cut into
MOST_PIECES = 2000  # codes of captions that encoding models read
MOST_RESIDUALS = 6000  # trials that tell how trials scatter
WIDEST, SMALL_PICTURE = 8192, 16  # numbers of a stimulus's features above which places are averaged; pixels a side
AVERAGES = 0.8  # how often a repeated stimulus is shown by its average; otherwise by one of its single trials


# R rows, V sites, K codes, D codebook dimension
class BrainRows(NamedTuple):
    """Responses of one subject: single trials and, where a stimulus was repeated, their averages."""

    stimulus: Int[Tensor, "r"]  # row in Codes.ids
    is_average: Tensor  # bool [r]: the mean of all repeats of its stimulus
    values: Float[Tensor, "r v"]
    codes: Int[Tensor, "r k"]


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

    draft: that of a brain, where the conditions come with one; beyond: what its codes cannot hold of it. judged: the
    sites of a brain whose expectation counts; None: all.
    """

    conditions: list[Block]
    target: Block
    continuous: Tensor | None
    draft: Float[Tensor, "b v"] | None = None
    beyond: Float[Tensor, "b v"] | None = None
    judged: Bool[Tensor, "b v"] | None = None


class Drawn(NamedTuple):
    """Responses of one subject for a batch. expected: the same without noise where they were never measured."""

    values: Float[Tensor, "b v"]
    codes: Int[Tensor, "b k"]
    expected: Float[Tensor, "b v"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A tokenized split. `pictures_of` and `captions_of` list, for each stimulus, rows of `pixels` and `captions`."""

    ids: tuple[str, ...]
    pixels: UInt8[Tensor, "p 3 h w"] | None
    picture_codes: Int[Tensor, "p k"] | None
    pictures_of: list[Tensor]
    caption_codes: Int[Tensor, "c l"] | None
    captions_of: list[Tensor]
    features: Mapping[str, Float[Tensor, "n _ _"]]
    brains: Mapping[str, BrainRows]
    tokenizer: BrainTokenizer
    regions: Mapping[str, Bool[Tensor, "r v"]] = field(default_factory=dict)  # by which parts of a brain are drawn
    solved: Solved | None = None
    caption_prompts: Prompt | None = None  # what captions are as conditions; None: their codes, up to their end

    def batch(self, task: Task, size: int, generator: torch.Generator, config: OmniConfig) -> Batch:
        """Random stimuli for a task, all equally likely, among those that its first brain saw.

        A brain is the average over the repeats of the stimulus (AVERAGES of the time, if it was repeated) or one of its
        single trials. A target that its subject never saw is what its encoding model expects, with noise of its own.
        """
        stimuli = self._draw_stimuli(task, size, generator)
        drawn: dict[str, Drawn] = {}
        for subject in dict.fromkeys(filter(None, map(subject_of, (*task.conditions, task.target)))):
            drawn[subject] = self._draw(subject, stimuli, generator)
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
                conditions.append(self._seen_or_said(name, stimuli, generator, config))
        target = str(subject_of(task.target))
        if target not in drawn or not task.target.startswith("brain:"):
            block, continuous = self._target(task.target, stimuli, generator)
            return Batch(conditions, block, continuous)
        goal = Block("brain", codes=drawn[target].codes, subject=target)
        draft = draft_of(self.solved.at(stimuli), given, target) if self.solved and given else None
        if draft is None:
            return Batch(conditions, goal, drawn[target].expected)
        judged = None
        if f"part:{target}" in given:
            judged = given[f"part:{target}"].isnan()
        else:
            conditions.append(draft_block(self.tokenizer, draft, target, config.brain_input))
        beyond = beyond_codes(self.tokenizer, draft, target)
        return Batch(conditions, goal, drawn[target].expected, draft, beyond, judged)

    def descriptions(self) -> Float[Tensor, "n f"] | None:
        """What linear encoding models read of each stimulus: its features (or a small picture) and the codes it is
        said in; None if nothing is known of stimuli."""
        features = self.features.values()
        kinds = [x.flatten(1) if x[0].numel() <= WIDEST else x.mean(dim=1) for x in features]
        if not kinds and self.pixels is not None:
            small = F.adaptive_avg_pool2d(self.pixels.float() / 255, SMALL_PICTURE).flatten(1)
            kinds.append(torch.stack([small[rows].mean(dim=0) for rows in self.pictures_of]))
        if self.caption_codes is not None:
            kinds.append(self._said())
        return descriptions_of(kinds)

    def _said(self) -> Float[Tensor, "n p"]:
        """The share of each stimulus's captions that have each of the MOST_PIECES most frequent codes."""
        assert self.caption_codes is not None
        codes = self.caption_codes.long()
        known, count = codes.unique(return_counts=True)
        known = known[count.argsort(descending=True, stable=True)[:MOST_PIECES]]
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
        told = brain.codes[torch.where(average >= 0, average, trials)].long()
        decoded = [self.tokenizer.decode(part, subject) for part in told.split(ENCODE_BATCH)]
        return brain.values[trials].float() - torch.cat(decoded)

    def stimuli_of(self, task: Task) -> Int[Tensor, "n"]:
        """Stimuli that every brain among the conditions saw, or the target's subject, where there is none; a target's
        subject that responses cannot be expected of has to have seen them, too."""
        brains = [subject for subject in map(subject_of, task.conditions) if subject is not None]
        target = subject_of(task.target)
        if brains and target is not None and not (self.solved and self.solved.expects(target)):
            brains.append(target)  # what was not measured cannot be expected either
        brains = brains or [subject for subject in [subject_of(task.target)] if subject is not None]
        if not brains:
            return torch.arange(len(self.ids))
        saw = torch.stack([self._rows_of_stimuli[subject].num_trials > 0 for subject in brains]).all(dim=0)
        return saw.nonzero()[:, 0]

    def _draw_stimuli(self, task: Task, size: int, generator: torch.Generator) -> Int[Tensor, "b"]:
        seen = self.stimuli_of(task)
        if not len(seen):
            raise UserError(
                f"task {task}: expected training stimuli that all of its brains saw, got none. Brains can be paired "
                "only where they were shown the same stimuli: leave this task out."
            )
        return seen[torch.randint(len(seen), (size,), generator=generator)]

    def _draw(self, subject: str, stimuli: Int[Tensor, "b"], generator: torch.Generator) -> Drawn:
        """Responses of this subject; where it did not see a stimulus, expected ones with noise of their own."""
        brain, rows = self.brains[subject], self._rows_of_stimuli[subject]
        num_trials, average = rows.num_trials[stimuli], rows.average[stimuli]
        averaged = torch.rand(len(stimuli), generator=generator) < AVERAGES
        which = (torch.rand(len(stimuli), generator=generator) * num_trials).long()
        one = rows.trials[(rows.first[stimuli] + which).clamp_max(len(rows.trials) - 1)]
        picked = torch.where(averaged & (average >= 0), average, one)
        values, codes = brain.values[picked].float(), brain.codes[picked].long()
        unseen = num_trials == 0
        if not bool(unseen.any()):
            return Drawn(values, codes, values)
        assert self.solved is not None, "stimuli that nobody can tell of are not drawn"
        expected = values.clone()
        expected[unseen] = self.solved.expected(subject, stimuli[unseen])
        values[unseen] = expected[unseen] + self.solved.left_over(subject, int(unseen.sum()), generator)
        codes[unseen] = self.tokenizer.encode(values[unseen], subject)
        return Drawn(values, codes, expected)

    def _brain(self, name: str, values: Float[Tensor, "b v"], stimuli: Int[Tensor, "b"], config: OmniConfig) -> Block:
        """A brain as a condition; a part of one is filled in."""
        subject = str(subject_of(name))
        if not name.startswith("part:"):
            return brain_block(self.tokenizer, values, subject, config.brain_input)
        if self.solved is None:
            raise UserError(f"task {name}: expected linear drafts to fill in the rest, got none. Leave it out.")
        filled = self.solved.at(stimuli).complete(values, subject)
        return brain_block(self.tokenizer, filled, subject, config.brain_input, values.isnan())

    def _seen_or_said(
        self, name: str, stimuli: Int[Tensor, "b"], generator: torch.Generator, config: OmniConfig
    ) -> Block:
        """A picture or a text as a condition."""
        encoder = config.text_input if name == "text" else config.image_input
        if encoder != "codes":
            return Block(modality_of(name), vectors=self.features[encoder][stimuli].float(), features=encoder)
        if name == "image":
            return self._target(name, stimuli, generator)[0]
        assert self.caption_codes is not None
        picked = pick(self.captions_of, stimuli, generator)
        prompts = self.caption_prompts or Prompt(self.caption_codes, up_to_end(self.caption_codes, END))
        seen = prompts.seen[picked]
        seen = seen[:, : int(seen.sum(dim=1).max())]  # no longer than the longest of these
        return Block("text", codes=prompts.codes[picked, : seen.shape[1]].long(), seen=seen)

    def _target(
        self, name: str, stimuli: Int[Tensor, "b"], generator: torch.Generator
    ) -> tuple[Block, Float[Tensor, "b 3 h w"] | None]:
        """A picture or a text by its codes; the pixels of a picture."""
        if name == "text":
            assert self.caption_codes is not None
            return Block("text", codes=self.caption_codes[pick(self.captions_of, stimuli, generator)].long()), None
        assert self.picture_codes is not None and self.pixels is not None
        picked = pick(self.pictures_of, stimuli, generator)
        return Block("image", codes=self.picture_codes[picked].long()), self.pixels[picked].float() / 255

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


def pick(groups: Sequence[Tensor], which: Tensor, generator: torch.Generator) -> Tensor:
    """One random member of each of the groups named in `which`."""
    draw = torch.rand(len(which), generator=generator)
    return torch.stack([groups[i][int(d * len(groups[i]))] for i, d in zip(which.tolist(), draw.tolist(), strict=True)])


def encode_split(dataset: Dataset, tokenizers: Tokenizers, split: str, features: Sequence[str], store: Path) -> Codes:
    """Tokenize a split, or read it from `store` if these tokenizers have done so before.

    Raises UserError if a stimulus lacks a picture or a caption where the tokenizers have such.
    """
    ids = dataset.split_ids(split)
    row_of = {stimulus: row for row, stimulus in enumerate(ids)}
    picture_codes, pixels, pictures_of = None, None, []
    if tokenizers.image is not None:
        groups = [dataset.pictures(stimulus) for stimulus in ids]
        pixels = torch.from_numpy(np.concatenate(groups)).permute(0, 3, 1, 2).contiguous()
        pictures_of = rows_of_groups([len(group) for group in groups])
        image = tokenizers.image
        picture_codes = stored(
            store, f"image-{split}", (dataset.fingerprint, fingerprint(image)),
            lambda: {"codes": in_batches(lambda x: image.encode(x.float() / 255), pixels, "encode pictures").int()},
        )["codes"]  # fmt: skip
    caption_codes, caption_prompts, captions_of = None, None, []
    if tokenizers.text is not None:
        captions = captions_of_each(dataset, ids)
        every = [caption for group in captions for caption in group]
        caption_codes, caption_prompts = tokenizers.text.encode(every).int(), tokenizers.text.prompt(every)
        captions_of = rows_of_groups([len(group) for group in captions])
    vision = {name: stored_features(dataset, tokenizers, split, name, store) for name in features}
    brains = {}
    for subject in tokenizers.brain.subjects:
        values, stimulus, is_average = training_rows(dataset, subject, split, row_of)
        tensors = stored(
            store, f"brain-{subject}-{split}", (dataset.fingerprint, fingerprint(tokenizers.brain)),
            partial(encode_brain, tokenizers.brain, values, subject),
        )  # fmt: skip
        brains[subject] = BrainRows(stimulus, is_average, values, tensors["codes"])
    rois = {subject: list(dataset.space(subject).rois.values()) for subject in tokenizers.brain.subjects}
    regions = {subject: torch.from_numpy(np.stack(masks)) for subject, masks in rois.items() if masks}
    return Codes(
        ids, pixels, picture_codes, pictures_of, caption_codes, captions_of, vision, brains, tokenizers.brain,
        regions=regions, caption_prompts=caption_prompts,
    )  # fmt: skip


def stored_features(
    dataset: Dataset, tokenizers: Tokenizers, split: str, name: str, store: Path
) -> Float[Tensor, "n t c"]:
    """Vision features of a split; those of a network are read from `store` if they were made before, in float16."""
    ids = dataset.split_ids(split)
    encoder = None if name in dataset.feature_names else tokenizers.encoder(name)
    if not isinstance(encoder, nn.Module):
        return features_of(dataset, name, ids)
    return stored(
        store, f"features-{split}", (dataset.fingerprint, name, fingerprint(encoder)),
        lambda: {"features": features_of(dataset, name, ids, encoder).half()},
    )["features"]  # fmt: skip


def training_rows(
    dataset: Dataset, subject: str, split: str, row_of: Mapping[str, int]
) -> tuple[Float[Tensor, "r v"], Int[Tensor, "r"], Tensor]:
    """Single trials, then averages of the repeated stimuli: values, rows of their stimuli, which are averages."""
    trials = dataset.trials(subject)
    rows = trials.rows(split)
    averages = dataset.averages(subject, split)
    repeated = averages.num_repeats > 1
    ids = [trials.stimulus_id[row] for row in rows]
    ids += [stimulus for stimulus, many in zip(averages.stimulus_ids, repeated, strict=True) if many]
    values = np.concatenate([dataset.responses(subject, rows), averages.responses[repeated]])
    is_average = torch.arange(len(ids)) >= len(rows)
    return torch.from_numpy(values).float(), torch.tensor([row_of[i] for i in ids]), is_average


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
    encode = encoder or vision_encoder(name)
    groups = [dataset.pictures(stimulus) for stimulus in ids]
    pixels = torch.from_numpy(np.concatenate(groups)).permute(0, 3, 1, 2)
    encoded = in_batches(lambda x: encode(x.float() / 255), pixels, f"{name} features")
    return torch.stack([encoded[rows].mean(dim=0) for rows in rows_of_groups([len(group) for group in groups])])


def encode_brain(tokenizer: BrainTokenizer, values: Float[Tensor, "r v"], subject: str) -> dict[str, Tensor]:
    latents = in_batches(lambda x: tokenizer.latents(x, subject), values, f"encode {subject}")
    return {"codes": tokenizer.quantizer(latents).codes.int()}


@torch.no_grad()
def in_batches(encode: Callable[[Tensor], Tensor], rows: Tensor, name: str) -> Tensor:
    parts = []
    with progress(name, len(rows)) as advance:
        for start in range(0, len(rows), ENCODE_BATCH):
            parts.append(encode(rows[start : start + ENCODE_BATCH]))
            advance(min(start + ENCODE_BATCH, len(rows)), None)
    return torch.cat(parts)


def rows_of_groups(sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive row numbers, cut into groups of these sizes."""
    return list(torch.arange(sum(sizes)).split(list(sizes)))


def stored(store: Path, name: str, key: tuple[str, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` returns, read back if it was made before from the same data by the same tokenizer."""
    path = store / f"{name}-{hashlib.sha256(' '.join(key).encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError:
            pass  # damaged: make it again
    tensors = {key: value.contiguous() for key, value in make().items()}
    with written_beside(path) as beside:
        save_file(tensors, beside)
    return tensors
