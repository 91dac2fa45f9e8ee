"""The paper's analyses from files: a picture and its numbers leave.

    captions      how well captions from several sources fit the pictures (or the other captions) of the stimuli
    repeats       how responses to the repeats of one stimulus are distributed
    consistency   how alike responses to the same stimulus are, in training and in test

Each writes OUT/NAME.png and OUT/NAME.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainjanus.core.errors import UserError, written_beside
from brainjanus.data.dataset import Dataset
from brainjanus.data.readers.predictions import read_picture_predictions
from brainjanus.data.readers.tables import read_captions
from brainjanus.evaluate.analyses import (
    AGREEMENT,
    caption_agreement,
    caption_density,
    draw_caption_density,
    draw_repeat_distribution,
    draw_voxel_consistency,
    repeat_distribution,
    voxel_consistency,
)
from brainjanus.evaluate.clip import CLIP_PREFIX, ClipModel, clip_s
from brainjanus.scoring import named_files

SPLITS = ("train", "test")


def analyse_captions(
    out: Path | str,
    sources: Sequence[str] = (),
    *,
    dataset: Path | str | None = None,
    references: Path | str | None = None,
    pictures: Path | str | None = None,
    clip: str | None = None,
) -> Path:
    """Density of caption scores: CLIP-S with pictures if a CLIP model is given, else agreement with the references.

    sources: "NAME=FILE" with captions by stimulus id; of several the first counts. references: captions by people, and
    dataset: where they and the pictures may come from instead. Returns the picture's path.
    Raises UserError if there is nothing to score captions by, or a source lacks a stimulus.
    """
    given = {
        name: {stimulus: group[0] for stimulus, group in read_captions(Path(file)).items() if group}
        for name, file in named_files("sources", sources).items()
    }
    opened = None if dataset is None else Dataset.open(dataset)
    known: dict[str, Sequence[str]] = {}
    if references is not None:
        known = dict(read_captions(Path(references)))
    elif opened is not None:
        known = {stimulus: opened.captions(stimulus) for stimulus in opened.stimulus_ids if opened.captions(stimulus)}
    if clip is None:
        if not known:
            raise UserError(
                "analyse captions: expected --references, a --dataset with captions, or --clip with pictures to score "
                "captions by, got none of them. Give one."
            )
        agreement = caption_agreement(known, given)
        found = caption_density(agreement.scores, label=AGREEMENT, bounds=(0.0, 1.0))
        return _write(out, "captions", draw_caption_density(found), found.figures())
    if known:
        given = {"first reference": {stimulus: group[0] for stimulus, group in known.items()}} | given
    ids = sorted(set.intersection(*(set(captions) for captions in given.values()))) if given else []
    if pictures is not None:
        names, images = read_picture_predictions(str(pictures))
        seen = dict(zip(names, images, strict=True))
        ids = [stimulus for stimulus in ids if stimulus in seen]
        arrays = [seen[stimulus] for stimulus in ids]
    elif opened is not None and opened.image_size is not None:
        arrays = list(opened.images(ids))
    else:
        raise UserError(
            "analyse captions: expected --pictures or a --dataset with pictures beside --clip, got neither. Give one."
        )
    if not ids:
        raise UserError(
            "analyse captions: expected stimuli that all sources and the pictures share, got none. "
            "Are they keyed by the same stimulus ids?"
        )
    model = ClipModel.load(clip)
    embedded = np.concatenate([model.embed_pictures(picture[None]) for picture in arrays])
    scores = {
        name: clip_s(embedded, model.embed_captions([CLIP_PREFIX + captions[stimulus] for stimulus in ids]))
        for name, captions in given.items()
    }
    found = caption_density(scores)
    return _write(out, "captions", draw_caption_density(found), found.figures() | {"definition": model.definition})


def analyse_repeats(dataset: Path | str, out: Path | str, subject: str, stimulus: str | None = None) -> Path:
    """Distribution of the responses to each repeat of one stimulus (default: the one with most repeats)."""
    found = repeat_distribution(Dataset.open(dataset), subject, stimulus)
    return _write(out, "repeats", draw_repeat_distribution(found), found.figures())


def analyse_consistency(dataset: Path | str, out: Path | str, subject: str, seed: int = 0) -> Path:
    """MSE, cosine and Pearson's r between responses to one stimulus, pairwise and to their mean, in train and test."""
    if seed < 0:
        raise UserError(f"--seed: expected 0 or more, got {seed}. Any such number will do.")
    opened = Dataset.open(dataset)
    found = [voxel_consistency(opened, subject, split, seed=seed) for split in SPLITS]
    numbers = {split: one.figures() for split, one in zip(SPLITS, found, strict=True)}
    return _write(out, "consistency", draw_voxel_consistency(found), numbers)


def _write(out: Path | str, name: str, png: bytes, numbers: dict[str, Any]) -> Path:
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for {name}.png and {name}.json, got a file. Choose another --out.")
    with written_beside(out / f"{name}.json") as beside:
        beside.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with written_beside(out / f"{name}.png") as beside:
        beside.write_bytes(png)
    return out / f"{name}.png"
