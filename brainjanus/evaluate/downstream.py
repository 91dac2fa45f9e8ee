"""What responses are good for: ridge from and to one subject's responses, measured or drawn again from their codes.

Enters: a dataset and a subject; then responses to its training and held-out stimuli. Leaves: scores in four directions.

    brain->image  ridge to small pixels (PixCorr, two-way) and to picture features (two-way)
    brain->text   ridge to content words; the training caption nearest to them (content-word F1, CIDEr)
    image->brain  ridge from picture features to the training responses; voxel r with the measured held-out averages
    text->brain   the same from content words

Decoders are fitted to the training responses given and read the held-out ones given; encoders are fitted to the former
and held against what was measured. With the measured responses themselves this is what a tokenizer loses from;
one that leaves noise out may exceed it. The floor is what predictions earn when they are shuffled over stimuli.
Source: the ablation of BrainJanus (arXiv 2606.30319), fig. 6, which decodes with its whole model. Differs: linear
models (`evaluate.baselines`), which take seconds and have no prior of what pictures look like to hide behind.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from brainjanus.core.errors import UserError
from brainjanus.core.ridge import fit_ridge
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.baselines import ENCODER, PIXEL_SIDE, TEXT_FEATURES, BagOfWords, _small_pixels
from brainjanus.evaluate.brain import voxel_scores
from brainjanus.evaluate.captions import CaptionScorer
from brainjanus.evaluate.image import feature_two_way, pixcorr_scores, two_way_scores
from brainjanus.evaluate.record import Direction
from brainjanus.evaluate.text import content_f1_scores, cosine_scores
from brainjanus.train.codes import features_of

NUM_SHUFFLES = 3  # for the floor of CIDEr, which has no score matrix


class DownstreamScore(NamedTuple):
    """One figure. floor: predictions shuffled over stimuli. n: stimuli. metric: as in `evaluate.metrics`, or
    "feature_two_way"."""

    direction: Direction
    metric: str
    value: float
    floor: float
    n: int


# N training stimuli, M held-out stimuli, V sites
class LinearProbe:
    """Pictures, words and features of one subject's stimuli, read once, with which any responses can be scored.

    Picture features are the first stored ones that were not made from words, else the built-in wavelets. What a dataset
    lacks (pictures, captions) is not scored. Raises UserError if it lacks both.
    """

    def __init__(self, dataset: Dataset, subject: str, split: str = "test") -> None:
        train, held = dataset.averages(subject, "train"), dataset.averages(subject, split)
        ids = train.stimulus_ids, held.stimulus_ids
        self.measured = held.responses
        self.features: tuple[np.ndarray, ...] | None = None
        self.pixels: np.ndarray | None = None
        self.words: tuple[np.ndarray, ...] | None = None
        stored = [name for name in dataset.feature_names if name not in TEXT_FEATURES]
        if stored or dataset.image_size is not None:
            name = stored[0] if stored else ENCODER
            self.features = tuple(features_of(dataset, name, part).flatten(1).numpy() for part in ids)
        if dataset.image_size is not None:
            self.pixels = _small_pixels(dataset, ids[0], PIXEL_SIDE)
            self.seen = [dataset.pictures(stimulus) for stimulus in ids[1]]
        captions = [[dataset.captions(stimulus) for stimulus in part] for part in ids]
        self.captioned = [np.array([bool(group) for group in part], bool) for part in captions]
        said, self.references = ([group for group in part if group] for part in captions)
        if said and len(self.references) > 1:
            bag = BagOfWords(said)
            self.words = bag.encode(said), bag.encode(self.references)
            self.sayings = [caption for group in said for caption in group]
            self.meanings = bag.encode([[caption] for caption in self.sayings])
        if self.features is None and self.words is None:
            raise UserError(
                f"{dataset.path}: expected pictures, picture features or captions to decode from responses, got none "
                "of them. Prepare the dataset with some, or leave the downstream scores out."
            )

    def score(self, train: Float[np.ndarray, "n v"], held: Float[np.ndarray, "m v"]) -> list[DownstreamScore]:
        """Scores of responses to the stimuli of `dataset.averages`, in its order: measured ones, or reconstructions."""
        return [*self._pictures(train, held), *self._captions(train, held), *self._responses(train)]

    def _pictures(self, train: np.ndarray, held: np.ndarray) -> list[DownstreamScore]:
        if self.features is None:
            return []
        targets = [self.features[0], *([] if self.pixels is None else [self.pixels])]
        predicted = fit_ridge(train, np.concatenate(targets, axis=1)).predict(held)  # one decomposition for all targets
        features, pixels = np.split(predicted, [self.features[0].shape[1]], axis=1)
        found = [_of_matrix("brain->image", "feature_two_way", feature_two_way(self.features[1], features))]
        if self.pixels is not None:
            side = round((pixels.shape[1] / 3) ** 0.5)
            similarity = pixcorr_scores(self.seen, pixels.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))
            found.append(_of_matrix("brain->image", "pixcorr", similarity))
            found.append(_of_matrix("brain->image", "two_way", two_way_scores(similarity)))
        return found

    def _captions(self, train: np.ndarray, held: np.ndarray) -> list[DownstreamScore]:
        if self.words is None:
            return []
        predicted = fit_ridge(train[self.captioned[0]], self.words[0]).predict(held[self.captioned[1]])
        nearest = cosine_scores(predicted, self.meanings).argmax(axis=1)
        decoded = [self.sayings[row] for row in nearest]
        found = [_of_matrix("brain->text", "content_f1", content_f1_scores(self.references, decoded))]
        rng = np.random.default_rng(0)
        with CaptionScorer(self.references, metrics=["cider"], java=False) as scorer:
            own = scorer.score(decoded).scores
            if "cider" in own:  # not where pycocoevalcap is missing
                shuffled = [
                    scorer.score([decoded[row] for row in rng.permutation(len(decoded))]).scores["cider"].value
                    for _ in range(NUM_SHUFFLES)
                ]
                found.append(
                    DownstreamScore(
                        "brain->text", "cider", own["cider"].value, float(np.mean(shuffled)), len(self.references)
                    )
                )
        return found

    def _responses(self, train: np.ndarray) -> list[DownstreamScore]:
        found = []
        if self.features is not None:
            predicted = fit_ridge(self.features[0], train).predict(self.features[1])
            found.append(_of_matrix("image->brain", "voxel_r", voxel_scores(self.measured, predicted)))
        if self.words is not None:
            predicted = fit_ridge(self.words[0], train[self.captioned[0]]).predict(self.words[1])
            measured = self.measured[self.captioned[1]]
            found.append(_of_matrix("text->brain", "voxel_r", voxel_scores(measured, predicted)))
        return found


def _of_matrix(direction: Direction, metric: str, scores: Float[np.ndarray, "n n"]) -> DownstreamScore:
    """The mean of the diagonal; that of the whole matrix is exactly what shuffled predictions earn."""
    return DownstreamScore(direction, metric, float(scores.diagonal().mean()), float(scores.mean()), len(scores))
