"""Predictions in, records out: every figure with its floor, constant, linear baseline, ceiling, interval, n and p.

    value    of the metric, see `evaluate.metrics`
    floor    what the same predictions earn when they are shuffled over stimuli, on average
    constant what one prediction for all stimuli earns: the mean training response or picture, a caption
    baseline the value of the linear model (`evaluate.baselines`), fitted to the training split in the same run
    ceiling  the noise ceiling for the repeats that were averaged, or what a human caption earns
    interval of 95 %, by bootstrap over stimuli
    p        permutation p-value: (1 + shuffles that score at least as much) / (1 + shuffles)
Nothing is fitted on the split that is scored. Responses are averaged over repeats.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from brainjanus.core.errors import UserError
from brainjanus.data.audit import Leak, find_leaks, shuffled_ids
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.baselines import (
    RIDGE,
    constant_prediction,
    linear_baseline,
    linear_captions,
)
from brainjanus.evaluate.captions import constant_caption
from brainjanus.evaluate.figures import (
    MEASURES,
    NUM_FEW,
    NUM_SPINS,
    Draws,
    Extras,
    Figure,
    Figures,
    text_figures,
    word_figures,
)
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.protocol import COMPARED, Protocol, hash_of_ids, software
from brainjanus.evaluate.record import SUBJECT_MEAN, Direction, Predictions, Record
from brainjanus.evaluate.reference import Reference, reference_of

MAIN_METRICS: Mapping[Direction, tuple[str, ...]] = {
    "brain->text": ("content_f1", "cider"),
    "brain->image": ("two_way", "pixcorr", "ssim"),
    "image->brain": ("voxel_r", "voxel_r_normalised", "identification_top1", "encode_decode_two_way"),
    "text->brain": ("voxel_r", "voxel_r_normalised", "identification_top1"),
}
LEVEL = 0.95
LEAKED = "statistics computed with test trials"
_leaks: dict[str, list[Leak]] = {}  # by fingerprint


@dataclass(frozen=True)
class ScoreOptions:
    """How to score. baseline: also fit the linear model, once per dataset, subject and direction in this process.

    permutations, resamples: of the test and of the interval. constant_caption: the caption that stands for all stimuli
    where there is no training split to choose one from. extras: pretrained networks and supplied features.
    """

    baseline: bool = True
    seed: int = 0
    permutations: int = 1000
    resamples: int = 1000
    constant_caption: str | None = None
    extras: Extras = field(default_factory=Extras)


class Scored(NamedTuple):
    """records; for each metric that could not be computed one sentence that says why, and what to do; warnings.

    warnings: what makes the scores doubtful: test trials in the z-scoring, predictions that fit other stimuli better.
    """

    records: list[Record]
    skipped: dict[str, str]
    warnings: list[str]


def score(
    dataset: Dataset, predictions: Predictions, options: ScoreOptions | None = None, *, split: str = "test"
) -> Scored:
    """Score the predictions of one direction, subject and estimator against a split of the dataset.

    Raises UserError if a predicted stimulus is not in the split, fewer than two are predicted, sites do not match, or
    test stimuli are among the training stimuli.
    """
    predictions = in_order(predictions)
    leaks = check_leaks(dataset)
    reference = reference_of(dataset, predictions, list(predictions.stimulus_ids), split)
    if leaks:
        reference = replace(reference, units=f"{reference.units}; {LEAKED}")
    scored = score_against(reference, predictions, options)
    return scored._replace(warnings=[*leaks, *scored.warnings])


def score_against(reference: Reference, predictions: Predictions, options: ScoreOptions | None = None) -> Scored:
    """Score predictions against a reference of any origin; baseline and constant need a reference with a dataset.

    Raises UserError if their stimuli or sites differ.
    """
    options, predictions = options or ScoreOptions(), in_order(predictions)
    ids = list(predictions.stimulus_ids)
    where = f"{predictions.direction} predictions for {predictions.subject}"
    if len(ids) < 2 or ids != sorted(reference.ids):
        raise UserError(
            f"{where}: expected the stimuli of {reference.name}, at least 2, got {len(ids)} others or in part. "
            "A score needs one prediction for each of them."
        )
    reference = reference.restricted(ids)
    values = predictions.values
    if reference.responses is not None and predictions.direction.endswith("->brain"):
        sites = reference.responses.shape[1]
        if np.shape(values)[1] != sites:
            raise UserError(
                f"{where}: expected {sites} sites, as in {reference.name}, got {np.shape(values)[1]}. "
                "Were they made with another mask? Predict the sites that were measured."
            )
    measure = MEASURES[predictions.direction.partition("->")[2]]
    draws = Draws.of(len(ids), options.seed, options.permutations, options.resamples)
    found = measure(reference, values, draws, options.extras)
    linear, constant = _beside(reference, predictions.direction, options)
    records, versions = [], software()
    for (roi, name), figure in found.figures.items():
        protocol = _protocol(reference, predictions, name, figure, options, versions)
        record = Record(
            predictions.direction,
            reference.name,
            predictions.subject,
            roi,
            predictions.estimator,
            name,
            figure.value,
            floor=figure.floor,
            baseline=linear[roi, name].value if (roi, name) in linear else None,
            ceiling=figure.ceiling,
            n=len(ids),
            seed=options.seed,
            constant=constant[roi, name].value if (roi, name) in constant else None,
            protocol=protocol,
            null=figure.null,
            resampled=figure.resampled,
        )
        records.append(replace(record, p=figure.p or _p_value(record), interval=interval_of(record)))
    finding = shuffled_ids(found.order, ids)
    told = [] if finding is None else [f"{where} ({predictions.estimator}): {finding.sentence}"]
    return Scored(records, dict(found.skipped), told)


def check_leaks(dataset: Dataset) -> list[str]:
    """What makes scores on a dataset doubtful, in sentences; looked for once in a process.

    Raises UserError if test stimuli, pictures or responses stand in training: then no score means anything. Statistics
    that were computed with test trials are told, and stand in the protocol: such results compare with their like.
    """
    if dataset.fingerprint not in _leaks:
        _leaks[dataset.fingerprint] = find_leaks(dataset)
    leaks = _leaks[dataset.fingerprint]
    worst = next((leak for leak in leaks if leak.kind in ("stimulus", "picture", "response")), None)
    if worst is not None:
        raise UserError(f"{dataset.path}: {worst.sentence}")
    return [f"{dataset.name}: {leak.sentence}" for leak in leaks if leak.certain]


def in_order(predictions: Predictions) -> Predictions:
    """The same, sorted by stimulus id: draws then mean the same stimuli for every system and subject."""
    order = np.argsort(np.array(predictions.stimulus_ids, dtype=str))
    values = predictions.values
    return replace(
        predictions,
        stimulus_ids=[str(predictions.stimulus_ids[position]) for position in order],
        values=values[order] if isinstance(values, np.ndarray) else [values[position] for position in order],
    )


def interval_of(record: Record) -> tuple[float, float] | None:
    """The middle 95 % of the resampled values, whose mean is moved to the value.

    A resample holds some stimuli twice, and so less variance than the stimuli do: R2 in it is too low on average.
    """
    if record.resampled is None or not len(record.resampled):
        return None
    low, high = np.quantile(record.resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - record.resampled.mean()
    return float(record.value + low), float(record.value + high)


# figures of the linear and of the constant prediction: the same for all estimators of a subject
_known: dict[tuple, tuple[Figures, Figures]] = {}


def _beside(reference: Reference, direction: Direction, options: ScoreOptions) -> tuple[Figures, Figures]:
    extras = options.extras
    where = reference.fingerprint, reference.subject, reference.split, reference.stimuli, direction
    how = options.baseline, options.constant_caption, extras.weights, extras.clip, extras.bert, extras.java
    key = (*where, *how)
    if key not in _known:
        linear = _baseline(reference, direction, options) if options.baseline else {}
        _known[key] = linear, _constant(reference, direction, options)
    return _known[key]


def _baseline(reference: Reference, direction: Direction, options: ScoreOptions) -> Figures:
    """What the linear model earns; of captions its words where they are a set, its sentence where order counts."""
    dataset, ids = reference.dataset, list(reference.ids)
    if dataset is None:
        return {}
    plain = replace(options.extras, features={}, seen_features={})
    fitted = linear_baseline(dataset, reference.subject, direction, ids, split=reference.split)
    if direction == "brain->text":
        assert isinstance(fitted, list)
        said = linear_captions(dataset, reference.subject, ids, split=reference.split)
        return text_figures(reference, said, None, plain).figures | word_figures(reference, fitted)
    return MEASURES[direction.partition("->")[2]](reference, fitted, None, plain).figures


def _constant(reference: Reference, direction: Direction, options: ScoreOptions) -> Figures:
    """What one prediction for all stimuli earns: that of the training split, or the caption that the user gives.

    Without either, a caption is chosen among the references themselves: a floor that is higher than an honest one.
    """
    target, n = direction.partition("->")[2], len(reference.ids)
    plain = replace(options.extras, features={}, seen_features={})
    if direction == "brain->text" and (options.constant_caption is not None or reference.dataset is None):
        caption = options.constant_caption or constant_caption(reference.captions or ())
        return text_figures(reference, [caption] * n, None, plain).figures
    if reference.dataset is None or not options.baseline:
        return {}
    one = constant_prediction(reference.dataset, reference.subject, direction)
    values = [one] * n if isinstance(one, str) else np.broadcast_to(one, (n, *one.shape))
    return MEASURES[target](reference, values, None, plain).figures


def _protocol(
    reference: Reference,
    predictions: Predictions,
    name: str,
    figure: Figure,
    options: ScoreOptions,
    versions: Mapping[str, str],
) -> Protocol:
    metric = metric_of(name)
    beside = {"floor": f"mean over {'all pairs' if figure.null is not None else f'{NUM_FEW} shuffles'} of stimuli"}
    if figure.resampled is not None:
        beside["interval"] = f"95 %, {options.resamples} bootstrap resamples of stimuli, centred on the value"
    if figure.null is not None:
        beside["p"] = f"{options.permutations} shuffles of predictions over stimuli"
    elif figure.p is not None:
        beside["p"] = f"{NUM_SPINS} rotations of the cortex"
    if reference.dataset is not None and options.baseline:
        beside["baseline"] = RIDGE
        beside["constant"] = "from the training split"
    elif predictions.direction == "brain->text":
        chosen = options.constant_caption
        beside["constant"] = f"'{chosen}'" if chosen else "the best of the references themselves (CIDEr)"
    return Protocol(
        reference.fingerprint,
        reference.split,
        reference.stimuli,
        reference.units,
        reference.repeats() if predictions.direction.endswith("->brain") else predictions.repeats,
        figure.definition or metric.definition or metric.title,
        beside,
        versions,
    )


def summary(records: Iterable[Record], *, dataset: str | None = None) -> list[Record]:
    """One record per figure: the mean over subjects (subject "mean"; n is the number of predictions of all).

    dataset: the name for the mean over several datasets, such as folds; by default each dataset has its own mean.
    The p-value and the interval are those of the mean, each shuffle and each resample being applied to all at once;
    None for records read from a file.
    """

    def figure(record: Record) -> tuple:
        return record.direction, dataset or record.dataset, record.roi or "", record.estimator, record.metric

    means = []
    for _, group in groupby(sorted(records, key=figure), key=figure):
        rows = list(group)
        mean = replace(
            rows[0],
            dataset=dataset or rows[0].dataset,
            subject=SUBJECT_MEAN,
            value=float(np.mean([row.value for row in rows])),
            floor=_mean([row.floor for row in rows]),
            constant=_mean([row.constant for row in rows]),
            baseline=_mean([row.baseline for row in rows]),
            ceiling=_mean([row.ceiling for row in rows]),
            n=sum(row.n for row in rows),
            protocol=_joint_protocol([row.protocol for row in rows]),
            null=_joint([row.null for row in rows]),
            resampled=_joint([row.resampled for row in rows]),
        )
        means.append(replace(mean, p=_p_value(mean), interval=interval_of(mean)))
    return means


def _joint(draws: Sequence[np.ndarray | None]) -> Float[np.ndarray, "draws"] | None:
    known = [values for values in draws if values is not None]
    joint = len(known) == len(draws) and len({len(values) for values in known}) == 1
    return np.mean(known, axis=0) if joint else None


def _joint_protocol(protocols: Sequence[Protocol]) -> Protocol:
    """What they share; where they differ (the stimuli of subjects, the datasets of folds), a hash of all in order."""

    def one(name: str) -> str:
        values = [getattr(protocol, name) for protocol in protocols]
        same = len(set(values)) == 1
        return (
            values[0] if same else f"{len(values)} different, {hash_of_ids(f'{i} {v}' for i, v in enumerate(values))}"
        )

    return replace(protocols[0], **dict[str, Any]({name: one(name) for name in COMPARED}))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _p_value(record: Record) -> float | None:
    if record.null is None:
        return None
    better = -1 if metric_of(record.metric).lower else 1
    reached = better * record.null >= better * record.value - 1e-9  # the identity, met by chance, counts
    return float((1 + reached.sum()) / (1 + len(record.null)))
