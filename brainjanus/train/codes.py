"""Codes: a split of a Dataset, tokenized once, from which every training step only picks rows.

Enters: a Dataset and tokenizers. Leaves: for each stimulus its picture codes, caption codes and vision features, for
each subject the codes and latents of its responses, and batches of blocks for a task. Stored under the fingerprint of
the tokenizers, so that a second run on the same data starts at once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.progress import progress
from brainjanus.core.weights import fingerprint
from brainjanus.data.dataset import Dataset
from brainjanus.model.checkpoint import Tokenizers
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Block, Task, modality_of
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.vision import ENCODERS, vision_encoder

ENCODE_BATCH = 32
AVERAGES = 0.8  # how often a repeated stimulus is shown by its average; otherwise by one of its single trials


# R rows, V sites, K codes, D codebook dimension
class BrainRows(NamedTuple):
    """Responses of one subject: single trials and, where a stimulus was repeated, their averages."""

    stimulus: Int[Tensor, "r"]  # row in Codes.ids
    is_average: Tensor  # bool [r]: the mean of all repeats of its stimulus
    values: Float[Tensor, "r v"]
    codes: Int[Tensor, "r k"]
    latents: Float[Tensor, "r k d"]


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
    """What one training step reads: blocks, and the target before it was quantized (brain values or pixels)."""

    conditions: list[Block]
    target: Block
    continuous: Tensor | None


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

    def batch(self, task: Task, size: int, generator: torch.Generator, config: OmniConfig) -> Batch:
        """Random stimuli for a task, all equally likely, among those that its first brain saw.

        A brain is the average over the repeats of the stimulus (AVERAGES of the time, if it was repeated) or one of its
        single trials.
        """
        brains = [name.removeprefix("brain:") for name in (*task.conditions, task.target) if name.startswith("brain:")]
        rows: dict[str, Tensor] = {}
        if brains:
            seen = self._rows_of_stimuli[brains[0]].seen
            stimuli = seen[torch.randint(len(seen), (size,), generator=generator)]
            rows = {subject: self._draw_rows(subject, stimuli, generator) for subject in brains}
        else:
            stimuli = torch.randint(len(self.ids), (size,), generator=generator)

        def block(name: str, given: bool) -> tuple[Block, Tensor | None]:
            modality = modality_of(name)
            if modality == "brain":
                subject = name.removeprefix("brain:")
                brain, picked = self.brains[subject], rows[subject]
                if given and config.brain_input == "sites":
                    patches = self.tokenizer.patches(brain.values[picked].float(), subject)
                    return Block("brain", vectors=patches, subject=subject), None
                if given and config.brain_input == "latents":
                    return Block("brain", vectors=brain.latents[picked].float(), subject=subject), None
                return Block("brain", codes=brain.codes[picked].long(), subject=subject), brain.values[picked].float()
            encoder = config.text_input if modality == "text" else config.image_input
            if given and encoder != "codes":
                return Block(modality, vectors=self.features[encoder][stimuli].float(), features=encoder), None
            if modality == "text":
                assert self.caption_codes is not None
                return Block("text", codes=self.caption_codes[pick(self.captions_of, stimuli, generator)].long()), None
            assert self.picture_codes is not None and self.pixels is not None
            picked = pick(self.pictures_of, stimuli, generator)
            return Block("image", codes=self.picture_codes[picked].long()), self.pixels[picked].float() / 255

        conditions = [block(name, True)[0] for name in task.conditions]
        target, continuous = block(task.target, False)
        return Batch(conditions, target, continuous)

    @cached_property
    def _rows_of_stimuli(self) -> dict[str, RowsOfStimuli]:
        return {subject: RowsOfStimuli.of(brain, len(self.ids)) for subject, brain in self.brains.items()}

    def _draw_rows(self, subject: str, stimuli: Int[Tensor, "b"], generator: torch.Generator) -> Int[Tensor, "b"]:
        """A row of this subject for each stimulus. Raises UserError if it did not see one of them."""
        rows = self._rows_of_stimuli[subject]
        num_trials, average = rows.num_trials[stimuli], rows.average[stimuli]
        if not bool(num_trials.all()):
            missing = self.ids[int(stimuli[num_trials == 0][0])]
            raise UserError(
                f"subject {subject}: expected a response to '{missing}', which another subject saw, got none. "
                "Brain-to-brain tasks need training stimuli that were shown to both subjects."
            )
        averaged = torch.rand(len(stimuli), generator=generator) < AVERAGES
        which = (torch.rand(len(stimuli), generator=generator) * num_trials).long()
        return torch.where(averaged & (average >= 0), average, rows.trials[rows.first[stimuli] + which])


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
    caption_codes, captions_of = None, []
    if tokenizers.text is not None:
        captions = captions_of_each(dataset, ids)
        caption_codes = tokenizers.text.encode([caption for group in captions for caption in group]).int()
        captions_of = rows_of_groups([len(group) for group in captions])
    vision = {name: features_of(dataset, name, ids) for name in features}
    brains = {}
    for subject in tokenizers.brain.subjects:
        values, stimulus, is_average = training_rows(dataset, subject, split, row_of)
        tensors = stored(
            store, f"brain-{subject}-{split}", (dataset.fingerprint, fingerprint(tokenizers.brain)),
            partial(encode_brain, tokenizers.brain, values, subject),
        )  # fmt: skip
        brains[subject] = BrainRows(stimulus, is_average, values, tensors["codes"], tensors["latents"])
    return Codes(ids, pixels, picture_codes, pictures_of, caption_codes, captions_of, vision, brains, tokenizers.brain)


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


def features_of(dataset: Dataset, name: str, ids: Sequence[str]) -> Float[Tensor, "n t c"]:
    """Vision features by stimulus id: as stored in the dataset, or from a built-in encoder.

    Features of a stimulus with several pictures are their mean.
    """
    if name in dataset.feature_names or name not in ENCODERS:
        return torch.from_numpy(dataset.features(name, ids))
    encode = vision_encoder(name)
    groups = [dataset.pictures(stimulus) for stimulus in ids]
    pixels = torch.from_numpy(np.concatenate(groups)).permute(0, 3, 1, 2)
    encoded = in_batches(lambda x: encode(x.float() / 255), pixels, f"{name} features")
    return torch.stack([encoded[rows].mean(dim=0) for rows in rows_of_groups([len(group) for group in groups])])


def encode_brain(tokenizer: BrainTokenizer, values: Float[Tensor, "r v"], subject: str) -> dict[str, Tensor]:
    latents = in_batches(lambda x: tokenizer.latents(x, subject), values, f"encode {subject}")
    return {"codes": tokenizer.quantizer(latents).codes.int(), "latents": latents.half()}


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
