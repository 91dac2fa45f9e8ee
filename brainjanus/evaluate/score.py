"""Predictions in, records out: every figure with its floor, linear baseline, ceiling, n and p.

All metrics are score matrices [stimulus, prediction] (see `evaluate.brain`), so that one rule serves them all:
    value    the mean of the diagonal
    floor    the mean of the whole matrix: exactly what predictions shuffled over stimuli earn on average
    p        permutation p-value of `value`: (1 + shuffles that score at least as much) / (1 + shuffles)
    baseline the value of the linear model (`evaluate.baselines`), fitted to the training split in the same run
    ceiling  voxel_r: mean noise ceiling of the sites for the repeats that were averaged; content_f1: a human caption
Nothing is fitted on the split that is scored. Responses are averaged over repeats.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from jaxtyping import Float, Shaped

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Averages, Dataset
from brainjanus.evaluate.baselines import TEXT_FEATURES, linear_baseline
from brainjanus.evaluate.brain import MIN_CEILING, identification_ranks, pattern_scores, voxel_scores
from brainjanus.evaluate.image import pixcorr_scores, two_way_scores
from brainjanus.evaluate.record import SUBJECT_MEAN, Direction, Predictions, Record
from brainjanus.evaluate.text import content_f1_scores, cosine_scores, human_content_f1, word_vectors

MAIN_METRICS: Mapping[Direction, tuple[str, ...]] = {
    "brain->text": ("content_f1",),
    "brain->image": ("two_way", "pixcorr"),
    "image->brain": ("voxel_r",),
    "text->brain": ("voxel_r",),
}


@dataclass(frozen=True, eq=False)
class _Metric:
    scores: Float[np.ndarray, "n n"]
    ceiling: float | None = None


_Metrics = dict[tuple[str | None, str], _Metric]  # (roi, metric) -> its score matrix


def score(
    dataset: Dataset,
    predictions: Predictions,
    *,
    baseline: bool = True,
    seed: int = 0,
    permutations: int = 1000,
    split: str = "test",
) -> list[Record]:
    """Score the predictions of one direction, subject and estimator against a split of the dataset.

    ->brain: voxel_r, voxel_r_normalised, pattern_r, identification_top1, identification_rank (1 is best), for all
    sites and for each ROI. ->image: pixcorr, two_way (on pixels). ->text: content_f1, and text_similarity (cosine of
    word vectors) if the dataset has a feature of TEXT_FEATURES.
    baseline: also fit the linear model, once per dataset, subject and direction in this process.
    Raises UserError if a predicted stimulus is not in the split, fewer than two are predicted, or sites do not match.
    """
    order = np.argsort(np.array(predictions.stimulus_ids, dtype=str))
    ids = [str(predictions.stimulus_ids[position]) for position in order]
    measured = _measured(dataset, predictions, ids, split)
    values = predictions.values
    values = values[order] if isinstance(values, np.ndarray) else [values[position] for position in order]
    metrics = _METRICS[predictions.direction.partition("->")[2]]
    found = metrics(dataset, predictions.subject, measured, values)
    linear: _Metrics = {}
    if baseline:
        fitted = linear_baseline(dataset, predictions.subject, predictions.direction, ids, split=split)
        linear = metrics(dataset, predictions.subject, measured, fitted)

    shuffles = np.random.default_rng(seed).permuted(np.tile(np.arange(len(ids)), (permutations, 1)), axis=1)
    records = []
    for (roi, name), metric in found.items():
        value = float(np.trace(metric.scores)) / len(ids)
        null = metric.scores[np.arange(len(ids)), shuffles].mean(axis=1)
        record = Record(
            predictions.direction,
            dataset.name,
            predictions.subject,
            roi,
            predictions.estimator,
            name,
            value,
            floor=round(float(metric.scores.mean()), 12),
            baseline=float(np.trace(linear[roi, name].scores)) / len(ids) if linear else None,
            ceiling=metric.ceiling,
            n=len(ids),
            seed=seed,
            null=null,
        )
        records.append(replace(record, p=_p_value(record)))
    return records


def summary(records: Iterable[Record], *, dataset: str | None = None) -> list[Record]:
    """One record per figure: the mean over subjects (subject "mean"; n is the number of predictions of all).

    dataset: the name for the mean over several datasets, such as folds; by default each dataset has its own mean.
    The p-value is that of the mean, each shuffle being applied to all at once; None for records read from a file.
    """

    def figure(record: Record) -> tuple:
        return record.direction, dataset or record.dataset, record.roi or "", record.estimator, record.metric

    means = []
    for _, group in groupby(sorted(records, key=figure), key=figure):
        rows = list(group)
        first = rows[0]
        nulls = [row.null for row in rows if row.null is not None]
        joint = len(nulls) == len(rows) and len({len(null) for null in nulls}) == 1
        mean = replace(
            first,
            dataset=dataset or first.dataset,
            subject=SUBJECT_MEAN,
            value=float(np.mean([row.value for row in rows])),
            floor=_mean([row.floor for row in rows]),
            baseline=_mean([row.baseline for row in rows]),
            ceiling=_mean([row.ceiling for row in rows]),
            n=sum(row.n for row in rows),
            null=np.mean(nulls, axis=0) if joint else None,
        )
        means.append(replace(mean, p=_p_value(mean)))
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _p_value(record: Record) -> float | None:
    if record.null is None:
        return None
    better = -1 if record.metric == "identification_rank" else 1
    reached = better * record.null >= better * record.value - 1e-9  # the identity, met by chance, counts
    return float((1 + reached.sum()) / (1 + len(record.null)))


def _measured(dataset: Dataset, predictions: Predictions, ids: list[str], split: str) -> Averages:
    """The averages of the predicted stimuli, in their order."""
    averages = dataset.averages(predictions.subject, split)
    row = {stimulus: position for position, stimulus in enumerate(averages.stimulus_ids)}
    unknown = [stimulus for stimulus in ids if stimulus not in row]
    where = f"{predictions.direction} predictions for {predictions.subject}"
    if unknown:
        raise UserError(
            f"{where}: expected stimuli of the {split} split, got '{unknown[0]}' ({len(unknown)} of {len(ids)}). "
            "Scores on stimuli that were trained on say nothing: predict the stimuli of the split."
        )
    if len(ids) < 2:
        raise UserError(
            f"{where}: expected at least 2 stimuli, got {len(ids)}. A correlation across stimuli, and a shuffle of "
            "them, needs several: predict the whole split."
        )
    rows = [row[stimulus] for stimulus in ids]
    measured = Averages(ids, averages.responses[rows], averages.num_repeats[rows])
    if predictions.direction.endswith("->brain") and np.shape(predictions.values) != measured.responses.shape:
        raise UserError(
            f"{where}: expected {measured.responses.shape[1]} sites, got {np.shape(predictions.values)[1]}. "
            "Were they made with another subject's tokenizer or mask? Generate them again for this subject."
        )
    return measured


def _brain(dataset: Dataset, subject: str, measured: Averages, predicted: Float[np.ndarray, "n v"]) -> _Metrics:
    space = dataset.space(subject)
    ceiling = _ceiling(space, measured)
    metrics: _Metrics = {}
    for roi, sites in [(None, np.ones(space.num_sites, dtype=bool)), *space.rois.items()]:
        if not sites.any():
            continue
        pair = measured.responses[:, sites], predicted[:, sites]
        metrics[roi, "voxel_r"] = _Metric(
            voxel_scores(*pair), None if ceiling is None else float(ceiling[sites].mean())
        )
        if ceiling is not None and (ceiling[sites] >= MIN_CEILING).any():
            weights = np.where(ceiling[sites] >= MIN_CEILING, 1 / ceiling[sites].clip(min=MIN_CEILING), 0)
            weights /= (ceiling[sites] >= MIN_CEILING).sum()
            metrics[roi, "voxel_r_normalised"] = _Metric(voxel_scores(*pair, weights), 1.0)
        if sites.sum() > 1:
            similarity = pattern_scores(*pair)
            ranks = identification_ranks(similarity)
            metrics[roi, "pattern_r"] = _Metric(similarity)
            metrics[roi, "identification_top1"] = _Metric((ranks == 1).astype(np.float64))
            metrics[roi, "identification_rank"] = _Metric(ranks.astype(np.float64))
    return metrics


def _ceiling(space: BrainSpace, measured: Averages) -> Float[np.ndarray, "v"] | None:
    """The noise ceiling for the repeats at hand: noise variance is divided by their number in each stimulus."""
    if space.noise_variance is None:
        return None
    averaged = space.noise_variance * float(np.mean(1 / measured.num_repeats))
    return replace(space, noise_variance=averaged).noise_ceiling(1)


def _image(dataset: Dataset, subject: str, measured: Averages, decoded: Shaped[np.ndarray, "n h w 3"]) -> _Metrics:
    seen = [dataset.pictures(stimulus) for stimulus in measured.stimulus_ids]
    similarity = pixcorr_scores(seen, decoded)
    return {(None, "pixcorr"): _Metric(similarity), (None, "two_way"): _Metric(two_way_scores(similarity))}


def _text(dataset: Dataset, subject: str, measured: Averages, decoded: Sequence[str]) -> _Metrics:
    references = [dataset.captions(stimulus) for stimulus in measured.stimulus_ids]
    if not any(references):
        raise UserError(
            f"{dataset.path}: expected captions of the stimuli that are scored, got none. "
            "Prepare the dataset again with captions, or leave brain->text out."
        )
    metrics: _Metrics = {
        (None, "content_f1"): _Metric(content_f1_scores(references, decoded), human_content_f1(references))
    }
    for name in set(TEXT_FEATURES) & set(dataset.feature_names):
        train_ids = dataset.split_ids("train")
        train = dataset.features(name, train_ids).mean(axis=1)
        said = word_vectors(decoded, [dataset.captions(stimulus) for stimulus in train_ids], train)
        true = dataset.features(name, measured.stimulus_ids).mean(axis=1)
        metrics[None, "text_similarity"] = _Metric(cosine_scores(true, said))
    return metrics


_METRICS: Mapping[str, Callable[..., _Metrics]] = {"brain": _brain, "image": _image, "text": _text}
