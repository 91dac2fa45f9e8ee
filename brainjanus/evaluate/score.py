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
from jaxtyping import Float, Shaped

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
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.figures import (
    MEASURES,
    NUM_FEW,
    NUM_SPINS,
    Draws,
    Figure,
    Figures,
    p_value,
    text_figures,
    word_figures,
)
from brainjanus.evaluate.metrics import ADDED, RETRIEVAL, metric_of
from brainjanus.evaluate.protocol import COMPARED, Protocol, hash_of_ids, software
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Direction, Predictions, Record
from brainjanus.evaluate.reference import Reference, reference_of

MAIN_METRICS: Mapping[Direction, tuple[str, ...]] = {
    "brain->text": ("content_f1", "cider"),
    "brain->image": ("two_way", "pixcorr", "ssim"),
    "image->brain": ("voxel_r", "voxel_r_normalised", "identification_top1", "encode_decode_two_way"),
    "text->brain": ("voxel_r", "voxel_r_normalised", "identification_top1"),
}
MAIN_ESTIMATORS = ("greedy", "mean")  # what `evaluate` draws from a model, beside samples and controls
LEVEL = 0.95
LARGEST = 1e9  # a number; squares of larger ones, summed over sites, leave single precision
ODD_SPREAD = 3  # times the measured standard deviation
LEAKED = "statistics computed with test trials"
_leaks: dict[tuple[str, str], list[Leak]] = {}  # by fingerprint and subject


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

    def __post_init__(self) -> None:
        for name in ("seed", "permutations", "resamples"):
            if getattr(self, name) < 0:
                remedy = {"seed": "Any such number will do.", "permutations": "0 leaves out p."}
                raise UserError(
                    f"--{name}: expected 0 or more, got {getattr(self, name)}. "
                    f"{remedy.get(name, '0 leaves out the intervals.')}"
                )


def main_records(records: Sequence[Record]) -> list[Record]:
    """The main metrics of each direction, in their order, for all sites, the mean over subjects if there is one."""
    whole = [record for record in records if record.roi is None]
    whole = [record for record in whole if record.subject == SUBJECT_MEAN] or whole
    return [r for d in DIRECTIONS for m in MAIN_METRICS[d] for r in whole if (r.direction, r.metric) == (d, m)]


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
    leaks = check_leaks(dataset, [predictions.subject])
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
    if len(ids) < 2:
        raise UserError(
            f"{where}: expected at least 2 stimuli, got {len(ids)}. Shuffles, and correlations across stimuli, need "
            "several: predict more of them."
        )
    if ids != sorted(reference.ids):
        raise UserError(
            f"{where}: expected one for each of the {len(reference.ids)} stimuli of {reference.name}, got {len(ids)}, "
            "for other ones or for some of them. Predict all of them."
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
    check_size(where, values)
    measure = MEASURES[predictions.direction.partition("->")[2]]
    among = None if reference.dataset is None else reference.dataset.split_ids(reference.split)
    draws = Draws.of(ids, options.seed, options.permutations, options.resamples, among)
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
    told = [] if finding is None else [finding.sentence]
    told += odd(reference, values)
    return Scored(records, dict(found.skipped), [f"{where} ({predictions.estimator}): {sentence}" for sentence in told])


def check_size(where: str, values: Shaped[np.ndarray, "n *_"] | Sequence[str]) -> None:
    """Raises UserError for numbers so large that their squares do not fit."""
    largest = float(np.abs(values).max()) if isinstance(values, np.ndarray) else 0.0
    if largest > LARGEST:
        raise UserError(
            f"{where}: expected responses or pixels, got numbers up to {largest:.2g}. Did the software that predicted "
            "them overflow?"
        )


def odd(reference: Reference, values: Shaped[np.ndarray, "n *_"] | Sequence[str]) -> list[str]:
    """What is allowed and hardly meant: the same prediction for all stimuli, responses in another unit."""
    if not isinstance(values, np.ndarray):
        same = len({caption.strip() for caption in values}) == 1
    else:
        same = bool((values == values[:1]).all())
    told = ["all predictions are the same: they say nothing of a stimulus."] if same else []
    if isinstance(values, np.ndarray) and values.ndim == 2 and reference.responses is not None:
        spread, true = float(values.std()), float(reference.responses.std())
        if spread > ODD_SPREAD * true or abs(float(values.mean() - reference.responses.mean())) > ODD_SPREAD * true:
            told.append(
                f"predicted responses have mean {values.mean():.3g} and standard deviation {spread:.3g}, the measured "
                f"ones {reference.responses.mean():.3g} and {true:.3g}: are they in another unit (see --units)? "
                "R2, MSE and cosine depend on it."
            )
    return told


def check_leaks(dataset: Dataset, subjects: Sequence[str]) -> list[str]:
    """What makes scores of some subjects doubtful, in sentences; looked for once in a process.

    Raises UserError if test stimuli, pictures or responses stand in training: then no score means anything. Statistics
    that were computed with test trials are told, and stand in the protocol: such results compare with their like.
    """
    for subject in subjects:
        if (dataset.fingerprint, subject) not in _leaks:
            _leaks[dataset.fingerprint, subject] = find_leaks(dataset, [subject])
    leaks = [leak for subject in subjects for leak in _leaks[dataset.fingerprint, subject]]
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
    """The middle 95 % of the resampled values, whose median is moved to the value, within what the metric can be.

    A resample holds some stimuli twice, and so less variance than the stimuli do: R2 in it is too low on average.
    """
    if record.resampled is None or not len(record.resampled):
        return None
    low, middle, high = np.quantile(record.resampled, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    least, most = metric_of(record.metric).bounds
    return max(float(record.value + low - middle), least), min(float(record.value + high - middle), most)


# figures of the linear and of the constant prediction: the same for all estimators of a subject
_known: dict[tuple, tuple[Figures, Figures]] = {}


def _beside(reference: Reference, direction: Direction, options: ScoreOptions) -> tuple[Figures, Figures]:
    extras = options.extras
    shown = reference.digest_of_pictures if extras.clip is not None and reference.pictures is not None else None
    where = reference.fingerprint, reference.held, shown, reference.subject, reference.split, direction
    how = options.baseline, options.constant_caption, extras.weights, extras.clip, extras.bert, extras.java
    key = (*where, *how, *ADDED.entries.values())
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


def repeated_split(reference: Reference) -> str:
    """The split whose repeats gave the noise variance: training, unless nothing was repeated there."""
    assert reference.dataset is not None
    trials = reference.dataset.trials(reference.subject)
    return "train" if len(trials.rows("train")) > len(trials.stimuli("train")) else "test"


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
    beside = {}
    if figure.floor is not None:
        pairs = "all pairs of stimuli" if figure.null is not None else f"{NUM_FEW} shuffles of stimuli"
        if name in ADDED.entries and not ADDED.entries[name].per_stimulus:
            pairs = f"{options.permutations} shuffles of stimuli"
        beside["floor"] = "1 / candidates" if name.startswith(RETRIEVAL) else f"mean over {pairs}"
    if figure.ceiling is not None and reference.space is not None and predictions.direction.endswith("->brain"):
        beside["ceiling"] = f"noise variance from repeats of the {repeated_split(reference)} split"
    if figure.resampled is not None:
        beside["interval"] = f"95 %, {options.resamples} bootstrap resamples of stimuli, median at the value"
    if figure.null is not None:
        beside["p"] = f"{options.permutations} shuffles of predictions over stimuli"
    elif figure.p is not None:
        beside["p"] = f"{NUM_SPINS} rotations of the cortex"
    if reference.dataset is not None and options.baseline:
        beside["baseline"] = RIDGE
        beside["constant"] = "from the training split"
    if predictions.direction == "brain->text" and (options.constant_caption or reference.dataset is None):
        chosen = options.constant_caption
        beside["constant"] = f"'{chosen}'" if chosen else "the best of the references themselves (CIDEr)"
    return Protocol(
        reference.fingerprint,
        reference.held,
        reference.subject,
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
        if len(rows) == 1:
            means.append(replace(rows[0], dataset=dataset or rows[0].dataset, subject=SUBJECT_MEAN))
            continue
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
        if name == "subjects":
            return ", ".join(dict.fromkeys(values))
        same = len(set(values)) == 1
        return (
            values[0] if same else f"{len(values)} different, {hash_of_ids(f'{i} {v}' for i, v in enumerate(values))}"
        )

    return replace(protocols[0], **dict[str, Any]({name: one(name) for name in COMPARED}))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _p_value(record: Record) -> float | None:
    return (
        None if record.null is None else p_value(record.value, record.null, lower=bool(metric_of(record.metric).lower))
    )
