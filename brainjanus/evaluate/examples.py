"""What a person looks at: stimuli beside what was decoded, responses beside what was predicted.

Enters: a dataset and predictions. Leaves: examples for the report. They are chosen at even ranks of their score, from
the best to the worst, so that nobody picks the lucky ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.baselines import linear_baseline
from brainjanus.evaluate.brain import pattern_r, voxel_r
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.image import pixcorr_scores
from brainjanus.evaluate.record import Direction, Predictions
from brainjanus.evaluate.text import content_f1_scores
from brainjanus.evaluate.topography import caption_groups, draw_topography

LINEAR = "linear"  # the name of the linear baseline beside the model's estimators


@dataclass(frozen=True, eq=False)
class ImageExample:
    """A seen picture and what was decoded, by name. note: a word beneath, such as its score."""

    stimulus_id: str
    seen: UInt8[np.ndarray, "h w 3"]
    decoded: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]
    note: str = ""


@dataclass(frozen=True, eq=False)
class CaptionExample:
    """The captions of a stimulus and what was decoded; `baseline` is the linear model's list of words."""

    stimulus_id: str
    picture: UInt8[np.ndarray, "h w 3"] | None
    references: Sequence[str]
    decoded: str
    baseline: str | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class MapExample:
    """A drawn map."""

    title: str
    png: bytes
    note: str = ""


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """How often each code of a tokenizer was used on held-out data."""

    name: str
    counts: Int[np.ndarray, "codes"]

    @property
    def used(self) -> float:
        """The share of codes that were used at all."""
        return float((self.counts > 0).mean())

    @property
    def perplexity(self) -> float:
        """How many codes, used evenly, would carry as much information."""
        share = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


def image_examples(dataset: Dataset, predictions: Sequence[Predictions], count: int = 8) -> list[ImageExample]:
    """Decoded pictures of one subject by estimator (one Predictions each), and the linear model's."""
    _expect(predictions, "brain->image")
    first = predictions[0]
    ids = list(first.stimulus_ids)
    scores = pixcorr_scores([dataset.pictures(stimulus) for stimulus in ids], np.asarray(first.values)).diagonal()
    linear = np.asarray(linear_baseline(dataset, first.subject, "brain->image", ids))
    examples = []
    for row in even_ranks(scores, count):
        decoded = {}
        for one in predictions:
            decoded[one.estimator] = displayable(np.asarray(one.values[list(one.stimulus_ids).index(ids[row])]))
        decoded[LINEAR] = displayable(linear[row])
        seen = dataset.pictures(ids[row])[0]
        examples.append(ImageExample(ids[row], seen, decoded, f"PixCorr {scores[row]:.2f}"))
    return examples


def caption_examples(dataset: Dataset, predictions: Predictions, count: int = 8) -> list[CaptionExample]:
    """Decoded captions of one subject beside the references and the linear model's words."""
    _expect([predictions], "brain->text")
    ids = list(predictions.stimulus_ids)
    references = [dataset.captions(stimulus) for stimulus in ids]
    scores = content_f1_scores(references, list(predictions.values)).diagonal()
    linear = linear_baseline(dataset, predictions.subject, "brain->text", ids)
    examples = []
    for row in even_ranks(scores, count):
        picture = dataset.pictures(ids[row])[0] if dataset.image_size is not None else None
        note = f"content-word F1 {scores[row]:.2f}"
        said = str(predictions.values[row])
        examples.append(CaptionExample(ids[row], picture, references[row], said, linear[row], note))
    return examples


def map_examples(dataset: Dataset, predictions: Predictions, count: int = 2) -> list[MapExample]:
    """Measured and predicted responses to some stimuli, how well each site is predicted, and what sites prefer."""
    _expect([predictions], "image->brain", "text->brain")
    subject, ids, predicted = predictions.subject, list(predictions.stimulus_ids), np.asarray(predictions.values)
    space, averages = dataset.space(subject), dataset.averages(subject, "test")
    row = {stimulus: position for position, stimulus in enumerate(averages.stimulus_ids)}
    measured = averages.responses[[row[stimulus] for stimulus in ids]]
    r = pattern_r(measured, predicted)
    examples = []
    for position in even_ranks(r, count + 2)[1:-1]:
        maps = {"measured": measured[position], "predicted": predicted[position]}
        title = f"{subject}, stimulus {ids[position]} ({predictions.direction})"
        note = f"r across sites {r[position]:.2f}"
        examples.append(MapExample(title, draw_maps(space, maps, label="response (z)"), note))
    quality = {"voxel r": voxel_r(measured, predicted)}
    repeats = int(np.median(averages.num_repeats))
    ceiling = space.noise_ceiling(repeats)
    if ceiling is not None:
        quality[f"noise ceiling ({repeats} repeats)"] = ceiling
    top = max(0.1, *(float(np.percentile(values, 99)) for values in quality.values()))
    png = draw_maps(space, quality, label="r across stimuli", limits=(0.0, round(top, 2)))
    examples.append(MapExample(f"{subject}, how well each site is predicted ({predictions.direction})", png))
    groups = caption_groups([dataset.captions(stimulus) for stimulus in ids])
    if groups and space.coordinates_mm is not None:
        title = f"{subject}, which sites prefer what ({predictions.direction})"
        examples.append(MapExample(title, draw_topography(space, measured, predicted, groups)))
    return examples


def even_ranks(scores: Float[np.ndarray, "n"], count: int) -> list[int]:
    """Positions of `count` scores at even ranks, the best first."""
    order = np.argsort(-scores, kind="stable")
    return [int(row) for row in order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]]


def displayable(pictures: Shaped[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """8-bit RGB; values outside [0, 255], which a linear model may predict, are clipped for display only."""
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)


def _expect(predictions: Sequence[Predictions], *directions: Direction) -> None:
    found = {one.direction for one in predictions}, {one.subject for one in predictions}
    if len(found[0]) != 1 or len(found[1]) != 1 or not found[0] <= set(directions):
        raise UserError(
            f"examples: expected predictions {' or '.join(directions)} of one subject, got {sorted(found[0])} of "
            f"{sorted(found[1])}. Pass one subject's predictions of one direction."
        )
