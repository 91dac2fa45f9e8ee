"""The linear model that stands beside every score, and the constant prediction.

Enters: a dataset, a subject, a direction. Leaves: what a cross-validated ridge regression, fitted to the averages of
the training split alone, predicts for the stimuli asked for; or one prediction for all of them.

    text->brain   from a bag of content words, or from a word-vector feature, whichever training data favour; it reads
                  all captions of a stimulus, as the model does. Constant: the mean training response
    image->brain  from pixels, built-in vision encoders or stored features, whichever training data favour
    brain->image  to pixels. Constant: the mean training picture
    brain->text   to a bag of content words; the caption is the n most probable words, n chosen by cross-validation, or,
                  where word order counts, the training caption nearest to the predicted words. Constant: the training
                  caption that has the highest CIDEr when it is said of all training stimuli

The ridge regression is that of core/ridge.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from brainjanus.core.errors import UserError
from brainjanus.core.ridge import Ridge, fit_ridge
from brainjanus.data.dataset import Averages, Dataset
from brainjanus.evaluate.captions import constant_caption
from brainjanus.evaluate.record import Direction
from brainjanus.evaluate.text import content_words, cosine_scores
from brainjanus.tokenizers.vision import ENCODERS, vision_encoder
from brainjanus.train.codes import features_of

PIXEL_SIDE = 32  # pixels; the pictures that the linear model reads
DECODED_SIDE = 64  # pixels; those that it decodes, enlarged to the size of the seen ones: more are noise, and memory
MAX_WORDS = 2000  # the most frequent ones; enough for all content words of everyday captions
MAX_CAPTION_WORDS = 15
NUM_FOLDS = 5
ENCODER = "wavelet"  # what the linear encoder reads of pictures that the dataset does not hold
RIDGE = "ridge on the training averages, penalty per target by generalised cross-validation"
TEXT_FEATURES = ("word2vec",)  # stored features that were made from words, hence no description of the picture
# (dataset, subject, what, split) -> what the linear model predicts for each stimulus
_fitted: dict[tuple[str, str, str, str], dict[str, Any]] = {}
_encoders: dict[tuple[str, str], "Ridge"] = {}  # (dataset, subject) -> the linear encoder
_decoders: dict[tuple[str, str], "Ridge"] = {}  # the linear decoder


class BagOfWords:
    """Captions as the share of a stimulus's captions that hold each content word.

    The words are those of the captions it was made from (the training ones), at most MAX_WORDS, the most frequent.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        counts: dict[str, int] = {}
        for group in captions:
            for word in {word for caption in group for word in content_words(caption)}:
                counts[word] = counts.get(word, 0) + 1
        self.words = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
        self._column = {word: column for column, word in enumerate(self.words)}

    def encode(self, captions: Sequence[Sequence[str]]) -> Float[np.ndarray, "n w"]:
        """One row per stimulus; unknown words are left out."""
        table = np.zeros((len(captions), len(self.words)), np.float32)
        for row, group in enumerate(captions):
            for caption in group:
                columns = [self._column[word] for word in content_words(caption) if word in self._column]
                table[row, columns] += 1 / len(group)
        return table

    def decode(self, scores: Float[np.ndarray, "n w"], num_words: int) -> list[str]:
        """The words with the highest scores, best first, as a caption."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :num_words]
        return [" ".join(self.words[column] for column in row) for row in best]


def linear_baseline(
    dataset: Dataset, subject: str, direction: Direction, stimulus_ids: Sequence[str], *, split: str = "test"
) -> Float[np.ndarray, "n v"] | Float[np.ndarray, "n h w 3"] | list[str]:
    """What the linear model predicts for some stimuli of a split, in the order of `stimulus_ids`.

    Fitted to the subject's training averages, once in a process. Responses are in z-scored units, pictures in [0, 255]
    (not clipped).
    Raises UserError if the training split is too small, or pictures or captions are missing.
    """
    values = _cached(dataset, subject, direction, stimulus_ids, split)
    return values if direction == "brain->text" else np.stack(values)


def linear_captions(dataset: Dataset, subject: str, stimulus_ids: Sequence[str], *, split: str = "test") -> list[str]:
    """For each stimulus the training caption whose content words are nearest (cosine) to those that ridge predicts.

    What a linear model says where word order counts. Raises UserError as `linear_baseline`.
    """
    return _cached(dataset, subject, "caption", stimulus_ids, split)


def constant_prediction(
    dataset: Dataset, subject: str, direction: Direction
) -> Float[np.ndarray, "v"] | Float[np.ndarray, "h w 3"] | str:
    """One prediction for all stimuli, from the training split alone; see the head of this file."""
    ids, responses, _ = dataset.averages(subject, "train")
    if direction.endswith("->brain"):
        return responses.mean(axis=0)
    if direction == "brain->image":
        total = np.zeros(dataset.pictures(ids[0]).shape[1:], np.float64)
        for stimulus in ids:
            total += dataset.pictures(stimulus).mean(axis=0)
        return (total / len(ids)).astype(np.float32)
    return constant_caption([group for group in map(dataset.captions, ids) if group])


def linear_encoder(dataset: Dataset, subject: str, pictures: Shaped[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n v"]:
    """The responses that ridge on the features ENCODER of training pictures predicts for any pictures in [0, 255]."""
    key = dataset.fingerprint, subject
    if key not in _encoders:
        ids, responses, _ = dataset.averages(subject, "train")
        _encoders[key] = fit_ridge(_flat(features_of(dataset, ENCODER, ids).numpy()), responses)
    pixels = torch.from_numpy(np.clip(pictures, 0, 255).astype(np.float32) / 255).permute(0, 3, 1, 2)
    encode = vision_encoder(ENCODER)
    with torch.no_grad():
        features = torch.cat([encode(part) for part in pixels.split(64)])
    return _encoders[key].predict(_flat(features.numpy()))


def linear_decoder(dataset: Dataset, subject: str, responses: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n h w 3"]:
    """The pictures that ridge, fitted to the training averages, decodes from any responses; [0, 255], not clipped."""
    key = dataset.fingerprint, subject
    if key not in _decoders:
        ids, measured, _ = dataset.averages(subject, "train")
        _decoders[key] = fit_ridge(measured, _small_pixels(dataset, ids, DECODED_SIDE) * 255)
    size = dataset.image_size or DECODED_SIDE
    side = min(DECODED_SIDE, size)
    small = torch.from_numpy(_decoders[key].predict(responses.astype(np.float32))).reshape(-1, 3, side, side)
    large = small if size == side else torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    return large.permute(0, 2, 3, 1).numpy()


def _cached(dataset: Dataset, subject: str, what: str, stimulus_ids: Sequence[str], split: str) -> list[Any]:
    key = dataset.fingerprint, subject, what, split
    if key not in _fitted:
        measured = dataset.averages(subject, split)
        _fitted[key] = dict(zip(measured.stimulus_ids, _predict(dataset, subject, what, measured), strict=True))
    return [_fitted[key][stimulus] for stimulus in stimulus_ids]


def _predict(dataset: Dataset, subject: str, direction: str, measured: Averages) -> np.ndarray | list[str]:
    """Fit to the training averages, predict for the stimuli of `measured`."""
    train_ids, train_responses, _ = dataset.averages(subject, "train")
    if direction.endswith("->brain"):
        sources = _text_features if direction == "text->brain" else _image_features
        pairs = sources(dataset, train_ids, measured.stimulus_ids)
        fits = [(fit_ridge(train, train_responses), test) for train, test in pairs]
        ridge, test = max(fits, key=lambda fit: fit[0].r2.mean())
        return ridge.predict(test)
    if direction == "brain->image":
        return linear_decoder(dataset, subject, measured.responses)
    given = [dataset.captions(stimulus) for stimulus in train_ids]
    captions = [group for group in given if group]
    train_responses = train_responses[[bool(group) for group in given]]
    bag = BagOfWords(captions)
    if not bag.words:
        raise UserError(
            f"{dataset.path}: expected captions of training stimuli to decode text, got none for {subject}. "
            "Prepare the dataset again with captions."
        )
    table = bag.encode(captions)
    predicted = fit_ridge(train_responses, table).predict(measured.responses)
    if direction == "caption":
        said = [caption for group in captions for caption in group]
        nearest = cosine_scores(predicted, bag.encode([[caption] for caption in said])).argmax(axis=1)
        return [said[row] for row in nearest]
    return bag.decode(predicted, _best_num_words(bag, train_responses, table, captions))


def _text_features(
    dataset: Dataset, train_ids: Sequence[str], stimulus_ids: Sequence[str]
) -> Iterator[list[np.ndarray]]:
    """Each description of the stimuli's text, for the training stimuli and for those asked for."""
    captions = [dataset.captions(stimulus) for stimulus in train_ids]
    bag = BagOfWords(captions)
    yield [bag.encode(captions), bag.encode([dataset.captions(stimulus) for stimulus in stimulus_ids])]
    for name in set(TEXT_FEATURES) & set(dataset.feature_names):
        yield [_flat(dataset.features(name, ids)) for ids in (train_ids, stimulus_ids)]


def _image_features(
    dataset: Dataset, train_ids: Sequence[str], stimulus_ids: Sequence[str]
) -> Iterator[list[np.ndarray]]:
    """Each description of the stimuli's pictures: small pixels, built-in encoders, and stored features of pictures."""
    if dataset.image_size is not None:
        yield [_small_pixels(dataset, ids, PIXEL_SIDE) for ids in (train_ids, stimulus_ids)]
        for name in sorted(set(ENCODERS) - set(dataset.feature_names)):
            yield [_flat(features_of(dataset, name, ids).numpy()) for ids in (train_ids, stimulus_ids)]
    for name in sorted(set(dataset.feature_names) - set(TEXT_FEATURES)):
        yield [_flat(dataset.features(name, ids)) for ids in (train_ids, stimulus_ids)]


def _flat(features: Float[np.ndarray, "n t c"]) -> Float[np.ndarray, "n d"]:
    return features.reshape(len(features), -1)


def _small_pixels(dataset: Dataset, ids: Sequence[str], most: int) -> Float[np.ndarray, "n d"]:
    """Pictures at no more than `most` pixels a side in [0, 1]; the mean over the pictures of a stimulus."""
    side = min(most, dataset.image_size or most)
    small = np.empty((len(ids), 3 * side * side), np.float32)
    for row, stimulus in enumerate(ids):
        mean = torch.from_numpy(dataset.pictures(stimulus).mean(axis=0, dtype=np.float32)).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(mean, (side, side), mode="bilinear", antialias=True)
        small[row] = resized.flatten().numpy() / 255
    return small


def _best_num_words(
    bag: BagOfWords,
    responses: Float[np.ndarray, "n v"],
    table: Float[np.ndarray, "n w"],
    captions: Sequence[Sequence[str]],
) -> int:
    """The caption length with the best content-word F1 on training stimuli that were left out of the fit."""
    fold = np.arange(len(responses)) % NUM_FOLDS  # ids are sorted, not ordered by content or time
    predicted = np.empty_like(table)
    for left_out in range(NUM_FOLDS):
        held = fold == left_out
        predicted[held] = fit_ridge(responses[~held], table[~held]).predict(responses[held])
    longest = min(MAX_CAPTION_WORDS, len(bag.words))
    best = np.argsort(-predicted, axis=1, kind="stable")[:, :longest]
    scores = np.zeros((len(captions), longest))  # of the first 1, 2, ... words
    for row, group in enumerate(captions):
        references = [content_words(caption) for caption in group]
        said = [bag.words[column] for column in best[row]]
        hits = np.cumsum([[word in reference for word in said] for reference in references], axis=1)
        lengths = np.array([[len(reference)] for reference in references])
        scores[row] = (2 * hits / (lengths + np.arange(1, longest + 1))).max(axis=0)
    return int(np.argmax(scores.mean(axis=0))) + 1
